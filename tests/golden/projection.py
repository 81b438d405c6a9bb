"""The bytes of a state or a frame as an older version of the code would have written them.

Fields are only ever appended, with a default. So the arrays that a later version writes are those
of the older one with more behind them, at every level. A golden log keeps the shape of its time,
the number of fields of each structure; what has come since is cut off before bytes are compared.
Whatever an older version knew must be the same, byte by byte.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, get_args

import msgspec

from engine.core.events import Event
from engine.core.failure import Failure
from engine.core.journal import Checkpoint, Entry, Frame, PartitionState
from engine.core.keys import Keys
from engine.core.payload import Payload
from engine.core.state import NodeState, ScopeState, TraceState

STRUCTURES: tuple[type[msgspec.Struct], ...] = (
    *get_args(Event),
    *(Failure, Payload, Entry, Frame, Checkpoint),
    *(PartitionState, Keys, TraceState, ScopeState, NodeState),
)

Shape = Mapping[str, int]  # structure to the number of its fields

_encoder = msgspec.msgpack.Encoder()


def shape_now() -> dict[str, int]:
    return {kind.__name__: len(kind.__struct_fields__) for kind in STRUCTURES}


def project(value: Any, shape: Shape) -> bytes:
    """The bytes of a structure, without what the shape does not know. Sets in order, as they
    have none. Errors: `KeyError` for a structure that stands where it could not have stood."""
    return _encoder.encode(_cut(value, shape))


def _cut(value: Any, shape: Shape) -> Any:
    if isinstance(value, msgspec.Struct):
        return list(_fields(value, shape))
    if isinstance(value, dict):
        return {key: _cut(item, shape) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_cut(item, shape) for item in value]
    if isinstance(value, set):
        return sorted(value)
    return value


def _fields(value: msgspec.Struct, shape: Shape) -> Iterator[Any]:
    kind = type(value)
    tag = kind.__struct_config__.tag
    if tag is not None:
        yield tag
    for name in kind.__struct_fields__[: shape[kind.__name__]]:
        yield _cut(getattr(value, name), shape)
