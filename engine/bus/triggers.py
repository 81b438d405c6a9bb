"""What travels from admission to the owner of a partition."""

from __future__ import annotations

import msgspec

from engine.core.failure import Failure
from engine.core.machine import Outcome
from engine.core.payload import Payload
from engine.core.playbook import DEFAULT_PRIORITY


class Rerun(msgspec.Struct, array_like=True):
    """Another trace begins again at one of its nodes; empty: from the start. `outputs` and
    `failures`, by node code, are outcomes that the new trace takes over; `input` replaces that
    of the node."""

    of: bytes
    node: str
    why: str
    input: Payload | None
    outputs: dict[str, Payload]
    failures: dict[str, Failure]

    def outcomes(self) -> dict[str, Outcome]:
        return {**self.outputs, **self.failures}


class StartTrace(msgspec.Struct, array_like=True):
    """An accepted trigger. Times are milliseconds since 1970. `key` and `request` are digests of
    an idempotency key and of what it was used for."""

    trace_id: bytes
    playbook_id: int
    snapshot_id: int
    input: Payload
    triggered_at: int
    by: str
    start_at: int = 0
    priority: int = DEFAULT_PRIORITY
    key: bytes = b""
    request: bytes = b""
    rerun: Rerun | None = None


_encoder = msgspec.msgpack.Encoder()
_decoder = msgspec.msgpack.Decoder(list[StartTrace])


def encode_triggers(triggers: list[StartTrace]) -> bytes:
    return _encoder.encode(triggers)


def decode_triggers(data: bytes) -> list[StartTrace]:
    """Errors: `ValueError`."""
    try:
        return _decoder.decode(data)
    except msgspec.MsgspecError as error:
        raise ValueError(f"not a frame of triggers: {error}") from error
