"""Why an attempt, a node or a trace failed: data, never raised."""

from __future__ import annotations

from enum import StrEnum
from typing import Any

import msgspec

from engine.core.payload import NotJson, Payload, to_value

MAX_MESSAGE = 4_096  # characters


class Code(StrEnum):
    """The engine's own failure codes; a function may use any other."""

    TIMEOUT = "TIMEOUT"
    TOTAL_TIMEOUT = "TOTAL_TIMEOUT"
    TRACE_TIMEOUT = "TRACE_TIMEOUT"
    NO_BRANCH_MATCHED = "NO_BRANCH_MATCHED"
    EXPRESSION_ERROR = "EXPRESSION_ERROR"
    INPUT_MAPPING = "INPUT_MAPPING"
    OUTPUT_MAPPING = "OUTPUT_MAPPING"
    PAYLOAD_TOO_LARGE = "PAYLOAD_TOO_LARGE"
    ENV_INVALID = "ENV_INVALID"
    WORKER_LOST = "WORKER_LOST"
    QUEUE_TIMEOUT = "QUEUE_TIMEOUT"
    HEARTBEAT_TIMEOUT = "HEARTBEAT_TIMEOUT"
    HOOK_TIMEOUT = "HOOK_TIMEOUT"
    REJECTED = "REJECTED"
    SLEEP_INVALID = "SLEEP_INVALID"
    MAP_NOT_A_LIST = "MAP_NOT_A_LIST"
    MAP_TOO_LARGE = "MAP_TOO_LARGE"
    REPEAT_EXHAUSTED = "REPEAT_EXHAUSTED"
    INPUT_INVALID = "INPUT_INVALID"
    OUTPUT_INVALID = "OUTPUT_INVALID"
    DEPTH_EXCEEDED = "DEPTH_EXCEEDED"
    TRACE_TOO_LARGE = "TRACE_TOO_LARGE"
    PERMISSION_DENIED = "PERMISSION_DENIED"
    PLAYBOOK_NOT_FOUND = "PLAYBOOK_NOT_FOUND"
    PLAYBOOK_NOT_ACTIVE = "PLAYBOOK_NOT_ACTIVE"
    SNAPSHOT_NOT_FOUND = "SNAPSHOT_NOT_FOUND"
    FAILED_BY_OPERATOR = "FAILED_BY_OPERATOR"
    ABORTED = "ABORTED"
    INTERNAL_ERROR = "INTERNAL_ERROR"


OUT_OF_TIME = frozenset(
    (
        Code.TIMEOUT,
        Code.TOTAL_TIMEOUT,
        Code.QUEUE_TIMEOUT,
        Code.HEARTBEAT_TIMEOUT,
        Code.HOOK_TIMEOUT,
    )
)


class Failure(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """`node` is a path, `attempt` counts from 1 (0: none was made), `retry_after` is the wait
    that the worker asks for, in milliseconds."""

    code: str
    message: str = ""
    retryable: bool = False
    node: str = ""
    attempt: int = 0
    details: Payload | None = None
    retry_after: int = 0

    def at(self, node: str, attempt: int) -> Failure:
        """The same failure, at the place where it happened."""
        return Failure(
            self.code,
            self.message[:MAX_MESSAGE],
            self.retryable,
            node,
            attempt,
            self.details,
            self.retry_after,
        )

    def as_value(self) -> dict[str, Any]:
        """What `$.<node>.error` sees."""
        details: Any = None
        if self.details is not None:
            try:
                details = to_value(self.details)
            except NotJson:
                details = None
        return {
            "code": self.code,
            "message": self.message,
            "attempt": self.attempt,
            "details": details,
        }
