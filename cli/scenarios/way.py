"""What a story is told with: the port that the core alone and the real services both implement."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from cli.scenarios.expectations import node_status, shown_failure, trace_status, wait_reason
from cli.scenarios.story import Act, Grant, Story, Trigger, Wait
from magicflow.conformance import Call
from magicflow.v1.event_pb2 import Event
from magicflow.v1.trace_pb2 import NodeState, Trace

PATIENCE = 30.0  # seconds that a wait may take
_LIVE = ("RUNNING", "PAUSED")


@dataclass(frozen=True, slots=True)
class Published:
    """`playbook` is app/name."""

    playbook: str
    snapshot_id: int


@dataclass(frozen=True, slots=True)
class Violation:
    """One thing that publishing found wrong."""

    code: str
    at: str
    message: str


class Refused(Exception):
    """The services did not do it. `code` is that of gRPC."""

    def __init__(
        self, code: str, reason: str, message: str, violations: tuple[Violation, ...] = ()
    ) -> None:
        super().__init__(f"{code} {reason}: {message}")
        self.code = code
        self.reason = reason
        self.message = message
        self.violations = violations


class InVain(Exception):
    """What is waited for does not come. The message says what was seen instead."""


class Way(Protocol):
    """What a story is told with. One story at a time, between `begin` and `finish`.

    Trace ids are 32 hex digits; snapshots are named by their real ids. Every verb may raise
    `Refused`. `patience` is for how many seconds a trace that has not ended is given to become
    what is expected of it.
    """

    patience: float

    async def begin(self, story: Story) -> str:
        """Makes apps, grants and functions ready. A text says why the story cannot be told."""
        ...

    async def finish(self) -> None:
        """Leaves nothing running of the story. Also after a `begin` that failed."""
        ...

    async def publish(self, text: str) -> Published: ...

    async def switch(self, playbook: str, snapshot_id: int) -> None: ...

    async def grant(self, grant: Grant) -> None: ...

    async def trigger(self, trigger: Trigger, snapshot_id: int) -> str:
        """The trace's id. `snapshot_id` 0 means the active one."""
        ...

    async def act(self, trace_id: str, act: Act, snapshot_id: int) -> str:
        """For a rerun the new trace's id, else empty."""
        ...

    async def wait(self, trace_id: str, wait: Wait) -> None:
        """Errors: `InVain`."""
        ...

    async def advance(self, by: int) -> None: ...

    async def trace(self, trace_id: str) -> Trace:
        """The trace with its nodes, now."""
        ...

    async def events(self, trace_id: str) -> Sequence[Event]:
        """In order; of an ended trace all of them."""
        ...

    async def calls(self) -> Sequence[Call]:
        """The calls of the story so far."""
        ...


def is_there(trace: Trace, wait: Wait) -> bool:
    """Whether the trace is what is waited for."""
    if not (wait.status or wait.reason):
        return trace_status(trace) not in _LIVE
    if not wait.node:
        return trace_status(trace) == wait.status
    return any(node.path == wait.node and _is_so(node, wait) for node in trace.nodes)


def _is_so(node: NodeState, wait: Wait) -> bool:
    as_wanted = wait.status in ("", node_status(node))
    return as_wanted and wait.reason in ("", wait_reason(node))


def check_hope(trace: Trace, wait: Wait) -> None:
    """Errors: `InVain` when the trace has ended and so will never become what is waited for."""
    if trace_status(trace) not in _LIVE and not is_there(trace, wait):
        raise InVain(what_is(trace, wait))


def what_is(trace: Trace, wait: Wait) -> str:
    """`expected a to be PAUSED, the trace is RUNNING and a QUEUED`."""
    wanted = f"{wait.node or 'the trace'} to be {wait.status}" if wait.status else "the end"
    if wait.reason:
        wanted = f"{wait.node} to wait for {wait.reason}"
    seen = f"the trace is {trace_status(trace)}{shown_failure(trace)}"
    if wait.node:
        found = [_standing(node) for node in trace.nodes if node.path == wait.node]
        seen += f" and {wait.node} {found[0] if found else 'is not there'}"
    return f"expected {wanted}, {seen}"


def _standing(node: NodeState) -> str:
    reason = wait_reason(node)
    return node_status(node) + (f" ({reason})" if reason else "")
