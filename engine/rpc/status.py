"""Errors as gRPC statuses: one table, and the rich details that SDKs read."""

from __future__ import annotations

import grpc
from google.protobuf.any_pb2 import Any
from google.protobuf.duration_pb2 import Duration
from google.rpc import error_details_pb2, status_pb2

from engine import errors
from engine.errors import FieldViolation, MagicflowError

DOMAIN = "magicflow.dev"

CODES: dict[type[MagicflowError], grpc.StatusCode] = {
    errors.Invalid: grpc.StatusCode.INVALID_ARGUMENT,
    errors.NotFound: grpc.StatusCode.NOT_FOUND,
    errors.AlreadyExists: grpc.StatusCode.ALREADY_EXISTS,
    errors.WrongState: grpc.StatusCode.FAILED_PRECONDITION,
    errors.Conflict: grpc.StatusCode.ABORTED,
    errors.Exhausted: grpc.StatusCode.RESOURCE_EXHAUSTED,
    errors.Denied: grpc.StatusCode.PERMISSION_DENIED,
    errors.Unauthenticated: grpc.StatusCode.UNAUTHENTICATED,
    errors.Unavailable: grpc.StatusCode.UNAVAILABLE,
    errors.DeadlineExceeded: grpc.StatusCode.DEADLINE_EXCEEDED,
    errors.Unimplemented: grpc.StatusCode.UNIMPLEMENTED,
    errors.Corrupt: grpc.StatusCode.DATA_LOSS,
}

_CLASSES = {code: kind for kind, code in CODES.items()}
_MAX_VIOLATIONS = 50  # what fits into the trailers that clients accept


def to_status(error: MagicflowError) -> status_pb2.Status:
    """The status with `ErrorInfo`, and where they apply `BadRequest`, `RetryInfo`, `Help`."""
    code = CODES.get(type(error), grpc.StatusCode.INTERNAL)
    metadata = dict(error.metadata)
    if error.mend:
        metadata["mend"] = error.mend
    status = status_pb2.Status(code=code.value[0], message=error.message)
    _add(
        status,
        error_details_pb2.ErrorInfo(reason=error.reason, domain=DOMAIN, metadata=metadata),
    )
    if error.violations:
        bad = error_details_pb2.BadRequest()
        for violation in error.violations[:_MAX_VIOLATIONS]:
            bad.field_violations.add(
                field=violation.field, description=describe(violation), reason=violation.code
            )
        _add(status, bad)
    if error.retry_after is not None:
        delay = Duration()
        delay.FromMilliseconds(int(error.retry_after * 1_000))
        _add(status, error_details_pb2.RetryInfo(retry_delay=delay))
    return status


def _add(status: status_pb2.Status, detail: object) -> None:
    packed = Any()
    packed.Pack(detail)  # type: ignore[arg-type]
    status.details.append(packed)


def describe(violation: FieldViolation) -> str:
    """One line: place, message, what was seen, how to mend it."""
    place = f"line {violation.line}, column {violation.column}: " if violation.line else ""
    seen = f" (seen: {violation.seen})" if violation.seen else ""
    mend = f"; {violation.mend}" if violation.mend else ""
    return f"{place}{violation.message}{seen}{mend}"


def from_call(error: grpc.aio.AioRpcError) -> MagicflowError:
    """The error that another service answered with, as whole as it was raised there."""
    kind = _CLASSES.get(error.code(), errors.Unavailable)
    message = error.details() or str(error.code())
    for key, value in error.trailing_metadata() or ():
        if key == "grpc-status-details-bin" and isinstance(value, bytes):
            return _whole(kind, message, status_pb2.Status.FromString(value))
    return kind(message)


def _whole(kind: type[MagicflowError], message: str, status: status_pb2.Status) -> MagicflowError:
    info, bad = error_details_pb2.ErrorInfo(), error_details_pb2.BadRequest()
    retry = error_details_pb2.RetryInfo()
    retry_after: float | None = None
    for detail in status.details:
        if not (detail.Unpack(info) or detail.Unpack(bad)) and detail.Unpack(retry):
            retry_after = retry.retry_delay.ToMilliseconds() / 1_000
    metadata = dict(info.metadata)
    return kind(
        message,
        reason=info.reason or None,
        violations=[FieldViolation(v.field, v.reason, v.description) for v in bad.field_violations],
        mend=metadata.pop("mend", ""),
        metadata=metadata,
        retry_after=retry_after,
    )
