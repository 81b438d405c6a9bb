"""What holds for every playbook and every order of things, tried on random ones."""

from __future__ import annotations

from collections import Counter
from typing import Any

import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from engine.core import machine
from engine.core.effects import Dispatch, TimerKind, Wake, effects_of, owed
from engine.core.events import (
    AttemptFailed,
    Event,
    NodeFailed,
    NodeSkipped,
    NodeSucceeded,
    OperatorActed,
    TaskScheduled,
    TraceEnded,
    TraceStarted,
)
from engine.core.failure import Failure
from engine.core.graph import Graph
from engine.core.machine import Failed, Succeeded, TimerFired
from engine.core.payload import Payload, of_value
from engine.core.playbook import Edge, EdgeKind, Join, Node, Nop, Playbook, Retry, Task
from engine.core.state import TraceState, apply, begin, dump, load
from engine.core.status import NodeStatus
from engine.core.steering import Act, Verb, steer
from tests.engine.core.playing import START, TRACE, Shelf, compiled, started

NodeEnd = NodeSucceeded | NodeFailed | NodeSkipped
tries = settings(max_examples=250, deadline=None, suppress_health_check=[HealthCheck.too_slow])


# Random playbooks.


@st.composite
def nodes(draw: st.DrawFn, code: str, before: list[str]) -> Node:
    join = draw(st.sampled_from((Join.ALL, Join.ANY)))
    if draw(st.integers(0, 3)) == 0:
        return Node(code, Nop(), join=join)
    template: dict[str, Any] = {}
    if before and draw(st.booleans()):
        template["input"] = {"seen": f"$.{draw(st.sampled_from(before))}?", "text": "${ 1 + 1 }"}
    retry = Retry(draw(st.integers(1, 3)), 10, 2.0, 1_000, draw(st.sampled_from((0.0, 0.5))))
    times = st.sampled_from((0, 0, 50))
    return Node(
        code,
        Task("shop/f"),
        join=join,
        retry=retry,
        timeout=draw(times),
        total_timeout=draw(times),
        **template,
    )


CONDITIONS = ("$$ == 1", "$$ == 2", "$$ > 1", "has($$.x)", "$$.x > 1", "1 == 1", "$._env.k == 1")


@st.composite
def edges(draw: st.DrawFn, source: str, target: str) -> Edge:
    kind = draw(st.sampled_from(EdgeKind))
    if kind is EdgeKind.CHOICE:
        when = draw(st.sampled_from(CONDITIONS))
        return Edge(source, target, kind, when, draw(st.integers(-2, 2)))
    if kind is EdgeKind.ERROR:
        codes = draw(st.sampled_from(((), (), ("BOOM",), ("TIMEOUT", "BAD"))))
        return Edge(source, target, kind, "", draw(st.integers(-2, 2)), codes)
    return Edge(source, target, kind)


def without_faults(drawn: list[Edge]) -> tuple[Edge, ...]:
    """Drops what publishing would refuse: doubles, a second otherwise, one without a choice,
    choices in the shadow of others."""
    kept: dict[tuple[Any, ...], Edge] = {}
    for edge in drawn:
        if edge.kind is EdgeKind.OTHERWISE:
            kept.setdefault((edge.source, "otherwise"), edge)
        elif edge.kind is EdgeKind.CHOICE:
            kept.setdefault((edge.source, edge.when), edge)
        else:
            kept.setdefault((edge.source, edge.target, edge.kind, edge.codes), edge)
    deciding = {edge.source for edge in kept.values() if edge.kind is EdgeKind.CHOICE}
    return tuple(
        edge
        for edge in kept.values()
        if edge.kind is not EdgeKind.OTHERWISE or edge.source in deciding
    )


@st.composite
def graphs(draw: st.DrawFn) -> Graph:
    """Acyclic, because every edge leads to a node that comes later; the document's order is
    another one."""
    count = draw(st.integers(1, 8))
    codes = [f"n{index}" for index in range(count)]
    pairs = [(a, b) for b in range(count) for a in range(b)]
    chosen = draw(st.lists(st.sampled_from(pairs), max_size=14)) if pairs else []
    arrows = [draw(edges(codes[a], codes[b])) for a, b in chosen]
    kept = without_faults(arrows)
    ancestors: dict[str, set[str]] = {code: set() for code in codes}
    for code in codes:
        for edge in kept:
            if edge.target == code:
                ancestors[code] |= {edge.source} | ancestors[edge.source]
    made = [draw(nodes(code, sorted(ancestors[code]))) for code in codes]
    return compiled(
        Playbook(
            "story",
            "shop",
            tuple(draw(st.permutations(made))),
            kept,
            timeout=draw(st.sampled_from((0, 0, 0, 400))),
        )
    )


# A driver that plays anything that can happen, in any order.

OUTPUTS = [of_value(v) for v in (1, 2, None, {"x": 3}, "text")] + [Payload(b"\x00", "image/png")]
ENVS = (b"", b"", b'{"k": 1}', b"[]")
FAILURES = (
    Failure("BOOM"),
    Failure("BAD", retryable=True),
    Failure("BAD", "", True, retry_after=7),
)


class Player:
    """Keeps what is in flight: dispatched attempts and armed timers. It forgets neither when
    they are used, so that everything comes again and too late as well."""

    def __init__(self, graph: Graph, draw: st.DrawFn) -> None:
        self.graph = graph
        self.graphs = Shelf(graph)
        self.draw = draw
        self.now = START
        self.attempts: list[Dispatch] = []
        self.timers: list[Wake] = []
        self.log: list[tuple[int, Event]] = []
        self.state, events = machine.start(self.graphs, TRACE, started(of_value({"x": 1})), START)
        self._take(events)

    def play(self) -> None:
        """Until the trace has ended; first at random, then straight on, to show that an end is
        always within reach."""
        for _ in range(self.draw(st.integers(0, 30))):
            if self.state.status.ended:
                break
            self.now += self.draw(st.integers(0, 30))
            self._do(self._anything())
        self._straight_on()
        for _ in range(3):  # whatever comes after the end is without effect
            assert self._decide(self._anything()) == []

    def _straight_on(self) -> None:
        for _ in range(200):
            if self.state.status.ended:
                return
            index, node = next(
                (i, n) for i, n in enumerate(self.state.nodes) if n.status is NodeStatus.QUEUED
            )
            if node.retry_at:
                self.now = max(self.now, node.retry_at)
                self._do(TimerFired(TimerKind.RETRY, 0, index, node.attempt))
            else:
                self._do(Succeeded(0, index, node.attempt, OUTPUTS[0]))
        raise AssertionError("the trace does not end")

    def _anything(self) -> machine.Command | Act:
        draw = self.draw
        dice = draw(st.integers(0, 19))
        if dice == 0:
            return Act(Verb.ABORT, "ann")
        if dice <= 6 and self.timers:
            timer = draw(st.sampled_from(self.timers))
            return TimerFired(timer.kind, timer.scope, timer.node, timer.attempt)
        if not self.attempts:
            return Succeeded(0, 0, draw(st.integers(0, 9)), OUTPUTS[0])
        task = draw(st.sampled_from(self.attempts))
        if dice <= 10:
            return Failed(0, task.node, task.attempt, draw(st.sampled_from(FAILURES)), "w")
        output, env = draw(st.sampled_from(OUTPUTS)), draw(st.sampled_from(ENVS))
        return Succeeded(0, task.node, task.attempt, output, env, "w", self.now)

    def _decide(
        self, command: machine.Command | Act, other: TraceState | None = None
    ) -> list[Event]:
        state = other or self.state
        if isinstance(command, Act):
            return [] if state.status.ended else steer(self.graphs, state, command, self.now)
        return machine.decide(self.graphs, state, command, self.now)

    def _do(self, command: machine.Command | Act) -> None:
        before = dump(self.state)
        events = self._decide(command)
        if not events:
            assert dump(self.state) == before, "no events, yet the state has changed"
        self._take(events)

    def _take(self, events: list[Event]) -> None:
        """The log grows, and what it owes goes out."""
        self.log += [(self.now, event) for event in events]
        for event in events:
            for effect in effects_of(self.graphs, self.state, event):
                if isinstance(effect, Dispatch):
                    assert effect not in self.attempts, "one attempt was given out twice"
                    self.attempts.append(effect)
                elif isinstance(effect, Wake):
                    self.timers.append(effect)
        assert_owed(self.graphs, self.graph, self.state)


def assert_owed(graphs: Shelf, graph: Graph, state: TraceState) -> None:
    """A new owner would do exactly what is open: a task for each attempt at work, a retry timer
    for each that waits, and the time limits of both."""
    if state.status.ended:
        return
    owing = list(owed(graphs, state))
    queued = [
        (index, node) for index, node in enumerate(state.nodes) if node.status is NodeStatus.QUEUED
    ]
    tasks = [(e.node, e.attempt) for e in owing if isinstance(e, Dispatch)]
    assert tasks == [(index, node.attempt) for index, node in queued if not node.retry_at]
    assert all(machine.is_current(state, 0, *task) for task in tasks)
    wakes = [e for e in owing if isinstance(e, Wake)]
    retries = {(e.node, e.attempt, e.at) for e in wakes if e.kind is TimerKind.RETRY}
    assert retries == {(i, node.attempt, node.retry_at) for i, node in queued if node.retry_at}
    totals = {e.node for e in wakes if e.kind is TimerKind.TOTAL}
    assert totals == {i for i, _ in queued if graph.nodes[i].drawn.total_timeout}
    limits = {(e.node, e.attempt) for e in wakes if e.kind is TimerKind.ATTEMPT}
    assert limits == {task for task in tasks if graph.nodes[task[0]].drawn.timeout}


def replayed(graph: Graph, log: list[tuple[int, Event]]) -> TraceState:
    at, first = log[0]
    assert isinstance(first, TraceStarted)
    graphs = Shelf(graph)
    state = begin(graphs, TRACE, first, at)
    for at, event in log[1:]:
        apply(graphs, state, event, at)
    return state


# What always holds.


def assert_settled_once(graph: Graph, state: TraceState, events: list[Event]) -> None:
    ends = Counter(event.node for event in events if isinstance(event, NodeEnd))
    assert all(count == 1 for count in ends.values())
    assert all(node.status.settled for node in state.nodes)
    assert state.scopes[0].open == 0
    cancelled = {i for i, n in enumerate(state.nodes) if n.status is NodeStatus.CANCELLED}
    assert set(ends) | cancelled == set(range(len(graph.nodes)))
    assert not set(ends) & cancelled
    assert [type(event) for event in events].count(TraceEnded) == 1
    assert isinstance(events[-1], TraceEnded)


def assert_in_order(graph: Graph, events: list[Event]) -> None:
    """No node begins, or is skipped, before its edges allow it; attempts count up by one."""
    resolved: dict[int, bool] = {}  # edge to whether it was taken
    attempts: Counter[int] = Counter()
    for event in events:
        if isinstance(event, TraceStarted | TraceEnded | OperatorActed):
            continue
        node = graph.nodes[event.node]
        known = [resolved[edge.index] for edge in node.incoming if edge.index in resolved]
        complete = len(known) == len(node.incoming)
        if isinstance(event, NodeSkipped):
            assert complete and node.incoming and not any(known)
        elif isinstance(event, TaskScheduled | NodeSucceeded | NodeFailed | AttemptFailed):
            assert node.starts or (any(known) and (complete or node.join is Join.ANY))
        if isinstance(event, TaskScheduled):
            attempts[event.node] += 1
            assert event.attempt == attempts[event.node] <= node.drawn.retry.attempts
        elif isinstance(event, AttemptFailed):
            assert event.attempt == attempts[event.node]
        elif isinstance(event, NodeEnd):
            taken = taken_by(event)
            for edge in node.outgoing:
                assert edge.index not in resolved
                resolved[edge.index] = edge.index in taken


def taken_by(event: NodeEnd) -> tuple[int, ...]:
    if isinstance(event, NodeSucceeded):
        return event.taken
    return (event.taken,) if isinstance(event, NodeFailed) and event.taken >= 0 else ()


def assert_choices(graph: Graph, events: list[Event]) -> None:
    """All parallel edges and exactly one of the deciding ones; of errors at most one."""
    for event in events:
        if isinstance(event, NodeSucceeded):
            node, taken = graph.nodes[event.node], set(event.taken)
            assert {edge.index for edge in node.parallel} <= taken
            decided = taken - {edge.index for edge in node.parallel}
            assert len(decided) == bool(node.choices)
            assert not taken & {edge.index for edge in node.errors}
        elif isinstance(event, NodeFailed) and event.taken >= 0:
            edge = graph.edges[event.taken]
            assert edge.kind is EdgeKind.ERROR
            assert edge.matches(event.failure.code)


@tries
@given(graphs(), st.data())
def test_every_node_settles_once_in_order_and_the_trace_ends(graph: Graph, data: Any) -> None:
    player = Player(graph, data.draw)
    player.play()
    events = [event for _, event in player.log]
    assert_settled_once(graph, player.state, events)
    assert_in_order(graph, events)
    assert_choices(graph, events)


@tries
@given(graphs(), st.data())
def test_replaying_the_events_gives_the_same_bytes(graph: Graph, data: Any) -> None:
    player = Player(graph, data.draw)
    player.play()
    state = replayed(graph, player.log)
    assert dump(state) == dump(player.state)
    assert dump(load(dump(state))) == dump(state)


@tries
@given(graphs(), st.data())
def test_a_log_that_was_cut_anywhere_is_carried_on_to_an_end(graph: Graph, data: Any) -> None:
    player = Player(graph, data.draw)
    player.play()
    cut = data.draw(st.integers(1, len(player.log)))
    player.log = player.log[:cut]
    player.state = replayed(graph, player.log)
    player.attempts, player.timers = [], []
    player._take(machine.resume(player.graphs, player.state, player.now))
    assert machine.resume(player.graphs, player.state, player.now) == []
    player._straight_on()
    events = [event for _, event in player.log]
    assert_settled_once(graph, player.state, events)
    assert_in_order(graph, events)
    assert dump(replayed(graph, player.log)) == dump(player.state)


@tries
@given(graphs(), st.data())
def test_a_state_stored_in_mid_flight_goes_on_as_if_nothing_had_been(
    graph: Graph, data: Any
) -> None:
    player = Player(graph, data.draw)
    for _ in range(data.draw(st.integers(0, 10))):
        if player.state.status.ended:
            return
        command = player._anything()
        other = load(dump(player.state))
        there = player._decide(command, other)
        player._do(command)
        assert dump(other) == dump(player.state)
        assert there == [event for _, event in player.log[len(player.log) - len(there) :]]


# The tests above can fail.


@pytest.mark.parametrize("broken", ["joins", "duplicates", "dead paths"])
def test_negative_control_a_broken_rule_is_found(
    broken: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    if broken == "joins":
        monkeypatch.setattr(machine, "_decidable", lambda node, state: bool(state.taken))
    elif broken == "duplicates":
        monkeypatch.setattr(machine, "is_current", lambda state, scope, node, attempt: True)
    else:
        monkeypatch.setattr(machine.Turn, "_follow", lambda turn, scope, node: None)

    run = settings(
        max_examples=300,
        deadline=None,
        database=None,
        derandomize=True,
        phases=[Phase.generate],
        suppress_health_check=[HealthCheck.too_slow],
    )(
        given(graphs(), st.data())(
            test_every_node_settles_once_in_order_and_the_trace_ends.hypothesis.inner_test  # type: ignore[attr-defined]
        )
    )
    with pytest.raises(Exception):  # noqa: B017
        run()
