"""A trace that a test plays by hand: the core without any of its drivers."""

from __future__ import annotations

from typing import Any

from engine.core import machine
from engine.core.checks import check
from engine.core.effects import TimerKind
from engine.core.events import Event, NodeFailed, TaskScheduled, TraceStarted
from engine.core.failure import Failure
from engine.core.graph import Graph, compile_graph
from engine.core.machine import Abort, Failed, Succeeded, TimerFired
from engine.core.payload import Payload, of_value, to_value
from engine.core.playbook import Playbook
from engine.core.state import NodeState
from engine.core.status import NodeStatus, TraceStatus
from engine.document.examine import examine_text

TRACE = bytes(range(16))
START = 1_000_000  # milliseconds since 1970
HEADER = "playbook: story\napp: shop\n"


def drawn(text: str) -> Playbook:
    """The playbook of a document without its first two lines; it must be faultless."""
    examined = examine_text(HEADER + text)
    assert not examined.errors, examined.errors
    assert examined.playbook is not None
    return examined.playbook


def graph_of(text: str) -> Graph:
    return compile_graph(drawn(text), 7, 42)


def compiled(playbook: Playbook) -> Graph:
    assert not [finding for finding in check(playbook) if not finding.warning]
    return compile_graph(playbook, 7, 42)


def started(payload: Payload) -> TraceStarted:
    return TraceStarted(7, 42, "shop", "shop/story", payload, START - 5, "ann", 3)


class Trace:
    """One trace; every call returns the events that it caused. Times are set by the test."""

    def __init__(self, document: str | Graph, input: Any = None, trace_id: bytes = TRACE) -> None:
        self.graph = graph_of(document) if isinstance(document, str) else document
        self.now = START
        payload = input if isinstance(input, Payload) else of_value(input)
        self.state, self.events = machine.start(self.graph, trace_id, started(payload), self.now)

    # What happens to it.

    def returns(
        self, code: str, output: Any = None, attempt: int = 0, env: Any = None
    ) -> list[Event]:
        """The node's current attempt, or another one, succeeds."""
        index = self.graph.by_code[code]
        payload = output if isinstance(output, Payload) else of_value(output)
        changes = b"" if env is None else env if isinstance(env, bytes) else of_value(env).data
        number = attempt or self.state.nodes[index].attempt
        return self._decide(Succeeded(index, number, payload, changes, "worker-1"))

    def fails(self, code: str, failure: Failure | str = "BOOM", attempt: int = 0) -> list[Event]:
        index = self.graph.by_code[code]
        failure = failure if isinstance(failure, Failure) else Failure(failure, "it broke")
        number = attempt or self.state.nodes[index].attempt
        return self._decide(Failed(index, number, failure, "worker-1"))

    def fires(self, kind: TimerKind, code: str = "", attempt: int = 0) -> list[Event]:
        index = self.graph.by_code[code] if code else -1
        return self._decide(TimerFired(kind, index, attempt))

    def aborts(self, why: str = "enough") -> list[Event]:
        return self._decide(Abort("ann", why))

    def _decide(self, command: machine.Command) -> list[Event]:
        events = machine.decide(self.graph, self.state, command, self.now)
        self.events += events
        return events

    # How it stands.

    def node(self, code: str) -> NodeState:
        return self.state.nodes[self.graph.by_code[code]]

    def status(self, code: str) -> NodeStatus:
        return self.node(code).status

    def input(self, code: str) -> Any:
        payload = self.node(code).input
        assert payload is not None, f"{code} has no input"
        return to_value(payload)

    @property
    def output(self) -> Any:
        assert self.state.status is TraceStatus.SUCCEEDED, self.state.failure
        assert self.state.output is not None
        return to_value(self.state.output)

    @property
    def failure(self) -> Failure:
        assert self.state.failure is not None
        return self.state.failure

    @property
    def queued(self) -> set[str]:
        """The nodes that a worker could work on now."""
        return {
            node.code
            for node, state in zip(self.graph.nodes, self.state.nodes, strict=True)
            if state.status is NodeStatus.QUEUED and not state.retry_at
        }

    @property
    def ran(self) -> list[str]:
        """The nodes that were given to workers, in order, once per attempt."""
        scheduled = [event for event in self.events if isinstance(event, TaskScheduled)]
        return [self.graph.nodes[event.node].code for event in scheduled]

    def taken_by_failure(self, code: str) -> str:
        """Where the failure of a node led to; empty when nothing handled it."""
        index = self.graph.by_code[code]
        failed = next(e for e in self.events if isinstance(e, NodeFailed) and e.node == index)
        if failed.taken < 0:
            return ""
        return self.graph.nodes[self.graph.edges[failed.taken].target].code
