"""What can go wrong in a call, and what a function may raise.

Every error of a call is a `MagicflowError` with a stable `reason`; `TraceFailed` says that the call
went well and the trace did not. A function fails its task with `TaskError`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import grpc
import grpc.aio
from google.protobuf.message import DecodeError
from google.rpc import error_details_pb2, status_pb2

from magicflow.v1.error_pb2 import Failure

DOMAIN = "magicflow.dev"


@dataclass(frozen=True, slots=True)
class Violation:
    """One wrong field: its path, a stable code, and a sentence with place and mend."""

    field: str
    code: str
    description: str


class MagicflowError(Exception):
    """The root. `reason` is stable, `mend` says what to do, `retry_after` is in seconds."""

    def __init__(
        self,
        message: str,
        *,
        reason: str = "",
        violations: tuple[Violation, ...] = (),
        mend: str = "",
        metadata: dict[str, str] | None = None,
        retry_after: float | None = None,
    ) -> None:
        super().__init__(message)
        self.message = message
        self.reason = reason
        self.violations = violations
        self.mend = mend
        self.metadata = dict(metadata or {})
        self.retry_after = retry_after


class Invalid(MagicflowError):
    """The input can never be right as it is; see `violations`."""


class NotFound(MagicflowError):
    """What was named does not exist."""


class AlreadyExists(MagicflowError):
    """It is there already, and differs."""


class WrongState(MagicflowError):
    """Its state does not allow this now."""


class Conflict(MagicflowError):
    """Somebody else changed it first."""


class Exhausted(MagicflowError):
    """A quota is used up; come back after `retry_after`."""


class Denied(MagicflowError):
    """The token does not allow this."""


class Unauthenticated(MagicflowError):
    """The token is missing or not good."""


class Unavailable(MagicflowError):
    """The server, or one that it needs, is out of reach."""


class DeadlineExceeded(MagicflowError):
    """The time is up; the work may go on."""


class Unimplemented(MagicflowError):
    """The server's version does not offer this."""


class Internal(MagicflowError):
    """A fault in the server; its log has the details."""


class TraceFailed(MagicflowError):
    """A trace ended otherwise than well. `status` is `FAILED`, `ABORTED` or `TIMED_OUT`;
    `code` is the failure's code and `node` the path where it happened."""

    def __init__(self, trace_id: str, status: str, failure: Failure) -> None:
        where = f" at {failure.node}" if failure.node else ""
        super().__init__(
            f"trace {trace_id} {status}{where}: {failure.code}: {failure.message}",
            reason=failure.code,
        )
        self.trace_id = trace_id
        self.status = status
        self.failure = failure
        self.code = failure.code
        self.node = failure.node


class TaskError(Exception):
    """Raised by a function: fails the attempt with a code of the function's own.

    `retryable` says whether another attempt may help; `details` is any JSON value;
    `retry_after` is the least wait before the next attempt, in seconds.
    """

    def __init__(
        self,
        code: str,
        message: str = "",
        *,
        retryable: bool = True,
        details: Any = None,
        retry_after: float = 0.0,
    ) -> None:
        super().__init__(f"{code}: {message}" if message else code)
        self.code = code
        self.message = message or code
        self.retryable = retryable
        self.details = details
        self.retry_after = retry_after


_CLASSES: dict[grpc.StatusCode, type[MagicflowError]] = {
    grpc.StatusCode.INVALID_ARGUMENT: Invalid,
    grpc.StatusCode.NOT_FOUND: NotFound,
    grpc.StatusCode.ALREADY_EXISTS: AlreadyExists,
    grpc.StatusCode.FAILED_PRECONDITION: WrongState,
    grpc.StatusCode.ABORTED: Conflict,
    grpc.StatusCode.RESOURCE_EXHAUSTED: Exhausted,
    grpc.StatusCode.PERMISSION_DENIED: Denied,
    grpc.StatusCode.UNAUTHENTICATED: Unauthenticated,
    grpc.StatusCode.UNAVAILABLE: Unavailable,
    grpc.StatusCode.CANCELLED: Unavailable,  # by a server that stops; our own are no RPC errors
    grpc.StatusCode.DEADLINE_EXCEEDED: DeadlineExceeded,
    grpc.StatusCode.UNIMPLEMENTED: Unimplemented,
}


def from_rpc(error: grpc.aio.AioRpcError, address: str = "") -> MagicflowError:
    """The error of a call, with everything that its status details say."""
    kind = _CLASSES.get(error.code(), Internal)
    status = _details(error)
    message = error.details() or error.code().name
    if kind is Unavailable and status is None:
        at = f" at {address}" if address else ""
        return Unavailable(
            f"no magicflow server answers{at}",
            reason="SERVER_UNREACHABLE",
            mend="start one with `magicflow dev`, or set MAGICFLOW_ADDRESS",
        )
    reason, metadata, violations, retry_after = "", {}, [], None
    for detail in status.details if status is not None else ():
        info = error_details_pb2.ErrorInfo()
        bad = error_details_pb2.BadRequest()
        retry = error_details_pb2.RetryInfo()
        if detail.Unpack(info) and info.domain == DOMAIN:
            reason, metadata = info.reason, dict(info.metadata)
        elif detail.Unpack(bad):
            violations = [
                Violation(v.field, getattr(v, "reason", ""), v.description)
                for v in bad.field_violations
            ]
        elif detail.Unpack(retry):
            retry_after = retry.retry_delay.ToMilliseconds() / 1_000
    return kind(
        message,
        reason=reason or error.code().name,
        violations=tuple(violations),
        mend=metadata.pop("mend", ""),
        metadata=metadata,
        retry_after=retry_after,
    )


def _details(error: grpc.aio.AioRpcError) -> status_pb2.Status | None:
    for key, value in error.trailing_metadata() or ():
        if key == "grpc-status-details-bin" and isinstance(value, bytes):
            try:
                return status_pb2.Status.FromString(value)
            except DecodeError:
                return None  # the code and the message still say what happened
    return None
