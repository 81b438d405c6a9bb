"""Python values to payloads and back. JSON unless the value is bytes.

Dataclasses, enums, `datetime` (ISO 8601), `UUID`, `Decimal` (as text), sets, tuples, msgspec
Structs and pydantic models are written as JSON; integers are exact whatever their size; NaN and
infinity are refused.
"""

from __future__ import annotations

import dataclasses
import datetime as dt
import decimal
import enum
import json
import uuid
from collections.abc import Iterable
from typing import Any

import msgspec

from magicflow.errors import TaskError
from magicflow.v1.payload_pb2 import Payload

OCTETS = "application/octet-stream"
_NULL = b"null"


def to_payload(value: Any) -> Payload:
    """Errors: `TypeError` or `ValueError` for a value that has no JSON form."""
    if isinstance(value, Payload):
        return value
    if isinstance(value, bytes | bytearray | memoryview):
        return Payload(data=bytes(value), content_type=OCTETS)
    return Payload(data=to_json(value))


def to_json(value: Any) -> bytes:
    """Compact JSON, UTF-8."""
    return _ENCODER.encode(value).encode()


def from_payload(payload: Payload) -> Any:
    """The value; bytes for a type other than JSON. Errors: `ValueError` for malformed
    JSON."""
    if payload.content_type and payload.content_type != "application/json":
        return payload.data
    return msgspec.json.decode(payload.data or _NULL)


def _plain(value: Any) -> Any:
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {f.name: getattr(value, f.name) for f in dataclasses.fields(value)}
    if isinstance(value, enum.Enum):
        return value.value
    if isinstance(value, dt.datetime | dt.date | dt.time):
        return value.isoformat()
    if isinstance(value, uuid.UUID | decimal.Decimal):
        return str(value)
    if isinstance(value, set | frozenset):
        return _in_order(value)
    if isinstance(value, msgspec.Struct | dt.timedelta):
        return msgspec.to_builtins(value, enc_hook=_plain)
    dump = getattr(value, "model_dump", None)
    if callable(dump):
        return dump(mode="json")
    raise TypeError(f"{type(value).__name__} has no JSON form")


def _in_order(values: Iterable[Any]) -> list[Any]:
    """The same set is the same text, wherever its members have an order."""
    try:
        return sorted(values)
    except TypeError:
        return list(values)


# Made once: `json.dumps` would build one for every call.
_ENCODER = json.JSONEncoder(
    ensure_ascii=False, allow_nan=False, separators=(",", ":"), default=_plain
)


def env_json(changes: dict[str, Any], limit: int) -> bytes:
    """The env keys that a function has set; empty for none. Errors: as `result_payload`."""
    if not changes:
        return b""
    try:
        text = to_json(changes)
    except (TypeError, ValueError, RecursionError) as error:
        raise TaskError(
            "OUTPUT_INVALID", f"the env cannot be sent: {error}", retryable=False
        ) from error
    if len(text) > limit:
        raise TaskError(
            "PAYLOAD_TOO_LARGE",
            f"the env has {len(text)} bytes; {limit} are allowed",
            retryable=False,
        )
    return text


def result_payload(value: Any, limit: int) -> Payload:
    """The payload of a function's result. Errors: `TaskError`, not retryable, when the value
    has no JSON form or is larger than `limit` bytes."""
    try:
        payload = to_payload(value)
    except (TypeError, ValueError, RecursionError) as error:
        raise TaskError(
            "OUTPUT_INVALID", f"the result cannot be sent: {error}", retryable=False
        ) from error
    if len(payload.data) > limit:
        raise TaskError(
            "PAYLOAD_TOO_LARGE",
            f"the result has {len(payload.data)} bytes; {limit} are allowed: "
            "store it elsewhere and return a reference",
            retryable=False,
        )
    return payload
