"""The one tree of errors that cross a service's edge.

Each class says which kind of thing went wrong; each instance carries a stable `reason` that
programs may branch on, the fields at fault, and how to mend it. `engine.rpc.status` maps the
classes to gRPC codes in one table. A task's failure is not in here: it is data (`Failure`).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class FieldViolation:
    """One thing that is wrong in a caller's input.

    `field` is a path into the request or document (`nodes.pay.retry.attempts`); `line` and
    `column` count from 1 and are 0 where the input has no text. `seen` is a short rendering of
    the offending value, `mend` a sentence that says what to write instead.
    """

    field: str
    code: str
    message: str
    seen: str = ""
    mend: str = ""
    line: int = 0
    column: int = 0


class MagicflowError(Exception):
    """The root: something a caller may be told about."""

    default_reason = "INTERNAL"

    def __init__(
        self,
        message: str,
        *,
        reason: str | None = None,
        violations: Sequence[FieldViolation] = (),
        mend: str = "",
        metadata: dict[str, str] | None = None,
        retry_after: float | None = None,
    ) -> None:
        super().__init__(message)
        self.message = message
        self.reason = reason or self.default_reason
        self.violations = tuple(violations)
        self.mend = mend
        self.metadata = dict(metadata or {})
        self.retry_after = retry_after  # seconds; only where trying again can help


class Invalid(MagicflowError):
    """The input can never be right as it is."""

    default_reason = "INVALID"


class NotFound(MagicflowError):
    """What was named does not exist."""

    default_reason = "NOT_FOUND"


class AlreadyExists(MagicflowError):
    """What was to be made is there already, and differs."""

    default_reason = "ALREADY_EXISTS"


class WrongState(MagicflowError):
    """It exists, but its state does not allow this now."""

    default_reason = "WRONG_STATE"


class Conflict(MagicflowError):
    """Somebody else changed it first; read again and retry."""

    default_reason = "CONFLICT"


class Exhausted(MagicflowError):
    """A quota or a bound is used up; `retry_after` says when to come back."""

    default_reason = "EXHAUSTED"


class Denied(MagicflowError):
    """The caller is known and may not do this."""

    default_reason = "PERMISSION_DENIED"


class Unauthenticated(MagicflowError):
    """The caller did not prove who it is."""

    default_reason = "UNAUTHENTICATED"


class Unavailable(MagicflowError):
    """A server this depends on is out of reach; the same call may work later."""

    default_reason = "UNAVAILABLE"


class DeadlineExceeded(MagicflowError):
    """The caller's time was up first. The work may still go on."""

    default_reason = "DEADLINE_EXCEEDED"


class Unimplemented(MagicflowError):
    """The contract names it, this version does not do it yet."""

    default_reason = "UNIMPLEMENTED"


class Corrupt(MagicflowError):
    """Stored bytes do not say what their checksum or schema promises."""

    default_reason = "CORRUPT"
