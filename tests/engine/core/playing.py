"""A trace that a test plays by hand: the core without any of its drivers."""

from __future__ import annotations

from typing import Any

from engine.core import machine, steering
from engine.core.checks.rules import check
from engine.core.effects import TimerKind, Wake, owed
from engine.core.events import Event, NodeFailed, TaskScheduled, TraceStarted
from engine.core.failure import Failure
from engine.core.graph import Graph, compile_graph
from engine.core.machine import Call, Failed, Succeeded, TimerFired
from engine.core.payload import Payload, of_value, to_value
from engine.core.places import Place, find, path_of
from engine.core.playbook import Playbook, Subplaybook
from engine.core.state import NodeState
from engine.core.status import NodeStatus, TraceStatus
from engine.core.steering import Act, Verb
from engine.document.examine import examine_text

TRACE = bytes(range(16))
START = 1_000_000  # milliseconds since 1970
# Drawn at random, a graph has parts that never run or do nothing. Publishing refuses them, for
# people; the rules of execution hold with them as well.
POINTLESS = ("CHOICE_SHADOWED", "EDGE_NEVER_TAKEN", "NODE_UNREACHABLE", "OPTION_WITHOUT_EFFECT")
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
    findings = [f for f in check(playbook) if not f.warning and f.code not in POINTLESS]
    assert not findings, findings
    return compile_graph(playbook, 7, 42)


def started(payload: Payload) -> TraceStarted:
    return TraceStarted(7, 42, "shop", "shop/story", payload, START - 5, "ann", 3)


class Shelf:
    """The graphs that a trace may need; what is not loaded has to be looked up."""

    def __init__(self, *graphs: Graph) -> None:
        self.graphs = {graph.snapshot_id: graph for graph in graphs}
        self.active = {graph.full_name: graph.snapshot_id for graph in graphs}
        self.hidden: set[str] = set()
        self.denied: set[tuple[str, str]] = set()

    def graph(self, snapshot_id: int) -> Graph:
        return self.graphs[snapshot_id]

    def callee(self, callee: Subplaybook) -> Graph | Failure | None:
        if callee.playbook in self.hidden:
            return None
        snapshot_id = callee.snapshot_id or self.active.get(callee.playbook, 0)
        if snapshot_id not in self.graphs:
            return Failure("PLAYBOOK_NOT_FOUND", f"there is no playbook {callee.playbook}")
        return self.graphs[snapshot_id]

    def granted(self, app: str, target: str) -> bool:
        return (app, target) not in self.denied


def shelf_of(graph: Graph) -> Shelf:
    return Shelf(graph)


class Trace:
    """One trace; every call returns the events that it caused. Times are set by the test."""

    def __init__(
        self,
        document: str | Graph,
        input: Any = None,
        trace_id: bytes = TRACE,
        *,
        callees: list[str] | None = None,
        event: TraceStarted | None = None,
    ) -> None:
        self.graph = graph_of(document) if isinstance(document, str) else document
        others = [
            compile_graph(_named(text), 100 + number, 100 + number)
            for number, text in enumerate(callees or ())
        ]
        self.graphs = Shelf(self.graph, *others)
        self.now = START
        payload = input if isinstance(input, Payload) else of_value(input)
        first = event or started(payload)
        self.state, self.events = machine.start(self.graphs, trace_id, first, self.now)

    # What happens to it.

    def returns(
        self, path: str, output: Any = None, attempt: int = 0, env: Any = None
    ) -> list[Event]:
        """The node's current attempt, or another one, succeeds."""
        place = self.place(path)
        payload = output if isinstance(output, Payload) else of_value(output)
        changes = b"" if env is None else env if isinstance(env, bytes) else of_value(env).data
        number = attempt or self.node(path).attempt
        return self.decide(Succeeded(*place, number, payload, changes, "worker-1"))

    def fails(self, path: str, failure: Failure | str = "BOOM", attempt: int = 0) -> list[Event]:
        failure = failure if isinstance(failure, Failure) else Failure(failure, "it broke")
        number = attempt or self.node(path).attempt
        return self.decide(Failed(*self.place(path), number, failure, "worker-1"))

    def fires(self, kind: TimerKind, path: str = "", attempt: int = 0) -> list[Event]:
        """A timer fires, and not before it is due if it is armed."""
        place = self.place(path) if path else (-1, -1)
        for wake in owed(self.graphs, self.state):
            if isinstance(wake, Wake) and (wake.kind, wake.scope, wake.node) == (kind, *place):
                self.now = max(self.now, wake.at)
        return self.decide(TimerFired(kind, *place, attempt))

    def found(self, path: str, failure: Failure | None = None) -> list[Event]:
        """The lookup of what the node calls has come to an end."""
        return self.decide(Call(*self.place(path), failure))

    def aborts(self, why: str = "enough", compensate: bool = False) -> list[Event]:
        return self.steer(Verb.ABORT, why=why, compensate=compensate)

    def steer(self, verb: Verb, node: str = "", **rest: Any) -> list[Event]:
        act = Act(verb, "ann", node=node, **rest)
        events = steering.steer(self.graphs, self.state, act, self.now)
        self.events += events
        return events

    def retry(self, *nodes: str) -> list[Event]:
        act = Act(Verb.RETRY, "ann", nodes=nodes)
        self.state, events = steering.retry(self.graphs, self.state, act, self.now)
        self.events += events
        return events

    def decide(self, command: machine.Command) -> list[Event]:
        events = machine.decide(self.graphs, self.state, command, self.now)
        self.events += events
        return events

    # How it stands.

    def place(self, path: str) -> Place:
        place = find(self.graphs, self.state, path)
        assert place is not None, f"there is no node {path}"
        return place

    def node(self, path: str) -> NodeState:
        scope, index = self.place(path)
        return self.state.scopes[scope].nodes[index]

    def status(self, path: str) -> NodeStatus:
        return self.node(path).status

    def input(self, path: str) -> Any:
        payload = self.node(path).input
        assert payload is not None, f"{path} has no input"
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
            path_of(self.graphs, self.state, scope, index)
            for scope, here in enumerate(self.state.scopes)
            for index, state in enumerate(here.nodes)
            if not here.closed and state.status is NodeStatus.QUEUED and not state.retry_at
        }

    @property
    def ran(self) -> list[str]:
        """The nodes that were given to workers, in order, once per attempt."""
        scheduled = [event for event in self.events if isinstance(event, TaskScheduled)]
        return [path_of(self.graphs, self.state, e.scope, e.node) for e in scheduled]

    def taken_by_failure(self, code: str) -> str:
        """Where the failure of a node led to; empty when nothing handled it."""
        scope, index = self.place(code)
        failed = next(
            e
            for e in self.events
            if isinstance(e, NodeFailed) and (e.scope, e.node) == (scope, index)
        )
        if failed.taken < 0:
            return ""
        return self.graph.nodes[self.graph.edges[failed.taken].target].code


def _named(text: str) -> Playbook:
    """The playbook of a whole document."""
    examined = examine_text(text)
    assert not examined.errors, examined.errors
    assert examined.playbook is not None
    return examined.playbook
