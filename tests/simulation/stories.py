"""One trace as its log tells it, checked against the graph and not against the machine.

A second opinion on the rules: written from `docs/playbook.md`, it knows nothing of how the
machine decides, only in what order events may stand in a log. The nodes of the trace's own
playbook are held against its edges; of those in scopes below it is only known that attempts
count up and that each is decided once.
"""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass, field
from typing import Any

from engine.core.events import (
    AttemptFailed,
    Event,
    HookOpened,
    NodeFailed,
    NodeSkipped,
    NodeSucceeded,
    OperatorActed,
    SleepStarted,
    TaskScheduled,
    TraceEnded,
    TracePaused,
    TraceResumed,
    TraceStarted,
)
from engine.core.graph import Graph, GraphNode
from engine.core.payload import to_value
from engine.core.places import Place
from engine.core.playbook import Join
from engine.core.state import ROOT
from engine.core.status import TraceStatus


class Violation(AssertionError):
    """A promise is broken."""


@dataclass(slots=True)
class Told:
    """What was told of one node."""

    attempt: int = 0
    at_work: bool = False
    retry_at: int = 0
    settled: bool = False
    waiting: bool = False  # a hook that is open
    runs: dict[int, int] = field(default_factory=dict)  # attempt to the run that decided it
    workers: dict[int, str] = field(default_factory=dict)


class Story:
    """The trace, told up to now. Errors of every call: `Violation`."""

    def __init__(self, trace_id: bytes, graph: Graph) -> None:
        self.trace_id = trace_id
        self.graph = graph
        self.started = False
        self.paused_at = 0
        self.status: TraceStatus | None = None
        self.acts: set[str] = set()
        self.nodes: dict[Place, Told] = defaultdict(Told)
        self.paths: dict[tuple[str, int], Place] = {}  # (path, attempt)
        self._edges: dict[int, bool] = {}

    @property
    def ended(self) -> bool:
        return self.status is not None

    def find(self, path: str, attempt: int) -> Place | None:
        """Where this attempt was scheduled."""
        return self.paths.get((path, attempt))

    def open_hooks(self) -> list[str]:
        return [
            self.graph.nodes[node].code
            for (scope, node), told in self.nodes.items()
            if scope == ROOT and told.waiting
        ]

    def unsettled(self) -> list[tuple[Any, ...]]:
        """For people."""
        return [
            (*place, told.attempt, told.at_work, told.retry_at, told.waiting)
            for place, told in self.nodes.items()
            if not told.settled
        ]

    def tell(self, event: Event, at: int) -> None:
        """The next event, decided at `at` by its owner's clock."""
        self._demand(not self.ended, f"{event} after the end")
        self._demand(self.started or isinstance(event, TraceStarted), f"{event} before the start")
        match event:
            case TraceStarted():
                self._demand(not self.started, "started twice")
                self.started = True
            case TaskScheduled():
                self._scheduled(event, at)
            case HookOpened() | SleepStarted():
                self._still(event)
                told = self.nodes[event.scope, event.node]
                self._demand(not told.settled, f"opened after its end: {event}")
                told.waiting = isinstance(event, HookOpened)
                if event.scope == ROOT:
                    self._entered(self.graph.nodes[event.node])
            case NodeSucceeded():
                place = event.scope, event.node
                self._decided(place, event.attempt, _run_of_output(event), event.worker)
                self._settled(place, event.taken)
            case AttemptFailed():
                place = event.scope, event.node
                self._demand(event.attempt > 0, f"no attempt failed: {event}")
                self._decided(place, event.attempt, _run_of_failure(event), event.worker)
                self.nodes[place].retry_at = event.retry_at
            case NodeFailed():
                place = event.scope, event.node
                run = _run_of_failure(event)
                self._decided(place, event.attempt, run, event.worker, waiting=True)
                self._settled(place, () if event.taken < 0 else (event.taken,))
            case NodeSkipped():
                if event.scope == ROOT:
                    self._entered(self.graph.nodes[event.node], skipped=True)
                self._settled((event.scope, event.node), ())
            case OperatorActed():
                self.acts.add(event.by)
            case TracePaused():
                self._demand(not self.paused_at, "paused twice")
                self.paused_at = at
            case TraceResumed():
                self._resumed(at)
            case TraceEnded():
                self._ended(event)

    # The rules.

    def _scheduled(self, event: TaskScheduled, at: int) -> None:
        self._still(event)
        told = self.nodes[event.scope, event.node]
        self._demand(not told.settled and not told.at_work, f"scheduled twice: {event}")
        if told.attempt:
            self._demand(event.attempt == told.attempt + 1, f"attempts do not count up: {event}")
            self._demand(0 < told.retry_at <= at, f"before its time: {event} at {at}")
        elif event.scope == ROOT:
            self._demand(event.attempt == 1, f"attempts do not count up: {event}")
            self._entered(self.graph.nodes[event.node])
        if event.scope == ROOT:
            most = max(1, self.graph.nodes[event.node].drawn.retry.attempts)
            self._demand(event.attempt <= most, f"too many attempts: {event}")
        told.attempt, told.at_work, told.retry_at = event.attempt, True, 0

    def _still(self, event: Event) -> None:
        self._demand(not self.paused_at, f"the trace is paused: {event}")

    def _decided(
        self, place: Place, attempt: int, run: int, worker: str, waiting: bool = False
    ) -> None:
        told = self.nodes[place]
        self._demand(not told.settled, f"node {place} has a second result")
        if not told.attempt:  # it needs no worker, or failed before it came to one
            if place[0] == ROOT:
                self._entered(self.graph.nodes[place[1]])
            return
        self._demand(attempt == told.attempt, f"node {place} decided by attempt {attempt}")
        self._demand(told.at_work or waiting, f"attempt {attempt} of {place} is not at work")
        self._demand(attempt not in told.runs or waiting, f"attempt {attempt} decided twice")
        told.at_work = False
        told.runs.setdefault(attempt, run)  # a time limit may end the node in the wait after it
        told.workers.setdefault(attempt, worker)

    def _settled(self, place: Place, taken: tuple[int, ...]) -> None:
        told = self.nodes[place]
        self._demand(not told.settled, f"node {place} has ended twice")
        told.settled, told.waiting = True, False
        if place[0] != ROOT:
            return
        for edge in self.graph.nodes[place[1]].outgoing:
            self._demand(edge.index not in self._edges, f"edge {edge.index} was decided twice")
            self._edges[edge.index] = edge.index in taken

    def _entered(self, node: GraphNode, skipped: bool = False) -> None:
        """The incoming edges allow it."""
        known = [self._edges[e.index] for e in node.incoming if e.index in self._edges]
        complete = len(known) == len(node.incoming)
        if skipped:
            self._demand(complete and bool(known) and not any(known), f"{node.code} was skipped")
        else:
            enough = complete or node.join is Join.ANY
            self._demand(node.starts or (any(known) and enough), f"{node.code} came too early")

    def _resumed(self, at: int) -> None:
        """Waits before another attempt go on, later by the pause."""
        self._demand(bool(self.paused_at), "resumed without a pause")
        for told in self.nodes.values():
            if told.retry_at:
                told.retry_at += max(0, at - self.paused_at)
        self.paused_at = 0

    def _ended(self, event: TraceEnded) -> None:
        self.status = event.status
        if event.status is TraceStatus.SUCCEEDED:
            settled = [told.settled for place, told in self.nodes.items() if place[0] == ROOT]
            whole = len(settled) == len(self.graph.nodes) and all(settled)
            self._demand(whole, "succeeded with open nodes")

    def _demand(self, holds: bool, what: str) -> None:
        if not holds:
            raise Violation(f"trace {self.trace_id.hex()}: {what}")


def _run_of_output(event: NodeSucceeded) -> int:
    value: Any = to_value(event.output) if event.attempt else None
    return int(value["run"]) if isinstance(value, dict) and "run" in value else 0


def _run_of_failure(event: AttemptFailed | NodeFailed) -> int:
    """Workers say `run 7`; of anything else it is not known who said it."""
    word, _, number = event.failure.message.partition(" ")
    return int(number) if word == "run" and number.isdigit() else 0
