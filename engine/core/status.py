"""Where nodes and traces stand. The numbers are those of the contracts."""

from __future__ import annotations

from enum import IntEnum


class TraceStatus(IntEnum):
    RUNNING = 1
    PAUSED = 2
    SUCCEEDED = 3
    FAILED = 4
    ABORTED = 5
    TIMED_OUT = 6

    @property
    def ended(self) -> bool:
        return self >= TraceStatus.SUCCEEDED


class NodeStatus(IntEnum):
    PENDING = 1
    QUEUED = 2
    RUNNING = 3  # seen by the gateway, never in the state: starts of attempts are not logged
    SUCCEEDED = 4
    FAILED = 5
    TIMED_OUT = 6
    CANCELLED = 7
    SKIPPED = 8
    PAUSED = 9
    SLEEPING = 10

    @property
    def settled(self) -> bool:
        return NodeStatus.SUCCEEDED <= self <= NodeStatus.SKIPPED
