"""Payloads, failures and times to messages and back."""

from __future__ import annotations

import msgspec
from google.protobuf.duration_pb2 import Duration
from google.protobuf.timestamp_pb2 import Timestamp

from engine.core.failure import Failure
from engine.core.payload import Payload, of_value
from engine.errors import FieldViolation, Invalid
from magicflow.v1 import error_pb2, payload_pb2

MAX_PAYLOAD = 1_048_576  # bytes

_raw = msgspec.json.Decoder(msgspec.Raw)


# Time. Milliseconds since 1970 inside, `Timestamp` and `Duration` outside; 0 and unset agree.


def timestamp(at: int) -> Timestamp | None:
    return Timestamp(seconds=at // 1_000, nanos=at % 1_000 * 1_000_000) if at else None


def milliseconds(at: Timestamp) -> int:
    return at.seconds * 1_000 + at.nanos // 1_000_000


def duration(span: int) -> Duration | None:
    return Duration(seconds=span // 1_000, nanos=span % 1_000 * 1_000_000) if span else None


def span(length: Duration) -> int:
    return length.seconds * 1_000 + length.nanos // 1_000_000


# Payloads and failures.


def payload_message(payload: Payload | None) -> payload_pb2.Payload | None:
    if payload is None:
        return None
    return payload_pb2.Payload(
        data=payload.data, content_type=payload.content_type, metadata=payload.metadata
    )


def payload(message: payload_pb2.Payload) -> Payload:
    return Payload(message.data, message.content_type, dict(message.metadata) or None)


def checked_payload(message: payload_pb2.Payload, field: str) -> Payload:
    """A payload from outside: within the size limit and, if it says so, valid JSON. An empty
    one is JSON null.

    Errors: `Invalid`.
    """
    if len(message.data) > MAX_PAYLOAD:
        raise Invalid(
            f"{field} has {len(message.data)} bytes; {MAX_PAYLOAD} are allowed",
            reason="PAYLOAD_TOO_LARGE",
            mend="store the data elsewhere and pass a reference to it",
        )
    taken = payload(message)
    if not taken.is_json:
        return taken
    if not taken.data:
        return Payload(b"null", "", taken.metadata)
    complaint = json_complaint(taken.data)
    if complaint:
        raise Invalid(
            f"{field} is not valid JSON: {complaint}",
            reason="INPUT_INVALID",
            violations=[FieldViolation(field, "INPUT_INVALID", complaint)],
            mend="send JSON, or set the content type",
        )
    return taken


def json_complaint(data: bytes) -> str:
    """Why the bytes are no JSON; empty when they are."""
    try:
        _raw.decode(data)
        data.decode()
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        return str(error)
    return ""


def failure_message(failure: Failure | None) -> error_pb2.Failure | None:
    if failure is None:
        return None
    return error_pb2.Failure(
        code=failure.code,
        message=failure.message,
        retryable=failure.retryable,
        node=failure.node,
        attempt=failure.attempt,
        details=payload_message(failure.details),
        retry_after=duration(failure.retry_after),
    )


def failure(message: error_pb2.Failure) -> Failure:
    """A failure from outside, cut to its limits."""
    details = payload(message.details) if message.HasField("details") else None
    if details is not None and len(details.data) > 65_536:
        details = of_value({"cut": "the details were larger than 64 KiB"})
    return Failure(
        code=message.code[:128] or "FUNCTION_ERROR",
        message=message.message[:4_096],
        retryable=message.retryable,
        details=details,
        retry_after=max(0, min(span(message.retry_after), 86_400_000)),
    )
