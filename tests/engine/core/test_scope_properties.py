"""What holds for every trace with calls, maps, repeats, hooks, sleeps and compensations, whatever
workers, timers and operators do to it, and in any order."""

from __future__ import annotations

from collections import Counter
from typing import Any

import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from engine.core import machine, steering
from engine.core import state as state_module
from engine.core.effects import Dispatch, Lookup, Wake, effects_of, owed
from engine.core.events import (
    Event,
    NodeFailed,
    NodeSkipped,
    NodeSucceeded,
    ScopeKind,
    TaskScheduled,
    TraceEnded,
    TraceRevived,
    TraceStarted,
)
from engine.core.failure import Failure
from engine.core.graph import Graph, compile_graph
from engine.core.machine import Call, Failed, Succeeded, TimerFired
from engine.core.payload import of_value
from engine.core.places import find, path_of
from engine.core.playbook import (
    Compensation,
    Edge,
    EdgeKind,
    Hook,
    Join,
    Map,
    Node,
    Nop,
    Playbook,
    Repeat,
    Retry,
    Sleep,
    Subplaybook,
    Task,
)
from engine.core.state import TraceState, apply, begin, dump, load
from engine.core.status import NodeStatus, TraceStatus
from engine.core.steering import Act, Refused, Verb
from engine.core.waits import why
from tests.engine.core.playing import START, TRACE, Shelf, started

tries = settings(max_examples=200, deadline=None, suppress_health_check=[HealthCheck.too_slow])


@st.composite
def kinds(draw: st.DrawFn, callees: tuple[str, ...]) -> Any:
    dice = draw(st.integers(0, 9))
    if dice <= 3:
        return Task("shop/f")
    if dice == 4:
        return Nop()
    if dice == 5:
        return Hook(draw(st.sampled_from((0, 40))))
    if dice == 6:
        return Sleep(draw(st.sampled_from((0, 30))))
    body = Task("shop/f") if not callees else Subplaybook(draw(st.sampled_from(callees)))
    if dice == 7:
        over = draw(st.sampled_from(([], [1], [1, 2, 3], "$$$.none?")))
        tolerate = draw(st.sampled_from((0, 1)))
        return Map(over, body, draw(st.sampled_from((0, 1, 2))), tolerate)
    if not callees:
        return Task("shop/f")
    callee = draw(st.sampled_from(callees))
    if dice == 8:
        return Repeat(callee, 0, "$index >= 1", draw(st.sampled_from((1, 2, 3))))
    return Subplaybook(callee)


@st.composite
def playbooks(draw: st.DrawFn, name: str, callees: tuple[str, ...]) -> Playbook:
    count = draw(st.integers(1, 4))
    nodes = []
    for index in range(count):
        kind = draw(kinds(callees))
        task = isinstance(kind, Task)
        works = not isinstance(kind, Nop | Hook | Sleep)
        nodes.append(
            Node(
                f"n{index}",
                kind,
                join=draw(st.sampled_from((Join.ALL, Join.ANY))),
                retry=Retry(draw(st.integers(1, 2)) if works else 1, 10),
                timeout=draw(st.sampled_from((0, 50))) if works else 0,
                queue_timeout=draw(st.sampled_from((0, 20))) if task else 0,
                hook_after=task and draw(st.integers(0, 4)) == 0,
                compensate=Compensation("shop/undo") if works and draw(st.booleans()) else None,
            )
        )
    pairs = [(a, b) for b in range(count) for a in range(b)]
    chosen = draw(st.lists(st.sampled_from(pairs), max_size=5, unique=True)) if pairs else []
    kind_of = st.sampled_from((EdgeKind.PARALLEL, EdgeKind.PARALLEL, EdgeKind.ERROR))
    edges = tuple(Edge(f"n{a}", f"n{b}", draw(kind_of)) for a, b in chosen)
    return Playbook(name, "shop", tuple(nodes), edges, timeout=draw(st.sampled_from((0, 0, 300))))


@st.composite
def shelves(draw: st.DrawFn) -> tuple[Graph, Shelf]:
    inner = compile_graph(draw(playbooks("inner", ())), 3, 3)
    middle = compile_graph(draw(playbooks("middle", ("shop/inner",))), 2, 2)
    outer = compile_graph(draw(playbooks("outer", ("shop/inner", "shop/middle"))), 7, 42)
    return outer, Shelf(outer, middle, inner)


class Player:
    """Keeps what is in flight, and forgets nothing when it is used."""

    def __init__(self, graph: Graph, shelf: Shelf, draw: st.DrawFn) -> None:
        self.graphs, self.draw, self.now = shelf, draw, START
        self.tasks: list[Dispatch] = []
        self.timers: list[Wake] = []
        self.lookups: list[Lookup] = []
        self.log: list[tuple[int, Event]] = []
        self._set_hidden()
        payload = of_value({"x": 1})
        self.state, events = machine.start(shelf, TRACE, started(payload), START)
        self.take(events)

    def _set_hidden(self) -> None:
        """Whether a callee is known at once is up to chance."""
        names = ("shop/inner", "shop/middle")
        self.graphs.hidden = {name for name in names if self.draw(st.integers(0, 3)) == 0}

    def play(self) -> None:
        for _ in range(self.draw(st.integers(0, 40))):
            if self.state.status.ended:
                self._maybe_retry()
                return
            self.now += self.draw(st.integers(0, 25))
            self._set_hidden()
            self.do(self.anything())

    def _maybe_retry(self) -> None:
        if self.draw(st.booleans()):
            act = Act(Verb.RETRY, "ann")
            try:
                self.state, events = steering.retry(self.graphs, self.state, act, self.now)
            except Refused:
                return
            self.take(events)

    def finish(self) -> None:
        """An end is always within reach, with everybody doing their part."""
        self.graphs.hidden = set()
        for _ in range(600):
            if self.state.status.ended:
                return
            if self.state.status is TraceStatus.PAUSED:
                self.do(Act(Verb.RESUME, "ann"))
                continue
            self.do(self._next())
        raise AssertionError("the trace does not end")

    def _next(self) -> machine.Command | Act:
        for scope, here in enumerate(self.state.scopes):
            for index, node in enumerate(here.nodes):
                if here.closed or node.status.settled:
                    continue
                place = (scope, index)
                if node.status is NodeStatus.QUEUED and not node.retry_at:
                    return Succeeded(*place, node.attempt, of_value(1), b"", "w")
                if node.status is NodeStatus.PAUSED:
                    path = path_of(self.graphs, self.state, *place)
                    return Act(Verb.SIGNAL, "ann", node=path)
                for effect in owed(self.graphs, self.state):
                    if isinstance(effect, Lookup) and (effect.scope, effect.node) == place:
                        return Call(*place)
                    waits = node.status is NodeStatus.SLEEPING or node.retry_at
                    if isinstance(effect, Wake) and (effect.scope, effect.node) == place and waits:
                        self.now = max(self.now, effect.at)
                        return TimerFired(effect.kind, *place, effect.attempt)
        raise AssertionError(f"nothing is owed and the trace has not ended: {self.state}")

    def anything(self) -> machine.Command | Act:
        draw = self.draw
        dice = draw(st.integers(0, 23))
        if dice <= 5:
            return self._act(dice)
        if dice <= 8 and self.timers:
            timer = draw(st.sampled_from(self.timers))
            return TimerFired(timer.kind, timer.scope, timer.node, timer.attempt)
        if dice <= 11 and self.lookups:
            lookup = draw(st.sampled_from(self.lookups))
            refusal = Failure("PLAYBOOK_NOT_FOUND") if draw(st.integers(0, 4)) == 0 else None
            return Call(lookup.scope, lookup.node, refusal)
        if not self.tasks:
            return Succeeded(0, 0, 1, of_value(1), b"", "w")
        task = draw(st.sampled_from(self.tasks))
        place = (task.scope, task.node)
        if dice <= 14:
            failure = Failure("BOOM", "", draw(st.booleans()))
            return Failed(*place, task.attempt, failure, "w")
        if dice == 15:
            return machine.Began(*place, task.attempt, "w")
        return Succeeded(*place, task.attempt, of_value(draw(st.integers(0, 2))), b"", "w")

    def _act(self, dice: int) -> Act:
        """Operators do anything to anything."""
        scope = self.draw(st.integers(0, len(self.state.scopes) - 1))
        nodes = self.state.scopes[scope].nodes
        index = self.draw(st.integers(0, max(0, len(nodes) - 1)))
        path = path_of(self.graphs, self.state, scope, index) if nodes else "nowhere"
        verbs = (Verb.SIGNAL, Verb.COMPLETE, Verb.FAIL, Verb.SKIP, Verb.PAUSE, Verb.RESUME)
        verb = verbs[dice]
        if self.draw(st.integers(0, 30)) == 0:
            return Act(Verb.ABORT, "ann", compensate=self.draw(st.booleans()))
        return Act(verb, "ann", "because", path, approve=self.draw(st.booleans()))

    def decide(self, command: machine.Command | Act, state: TraceState) -> list[Event]:
        if not isinstance(command, Act):
            return machine.decide(self.graphs, state, command, self.now)
        try:
            return steering.steer(self.graphs, state, command, self.now)
        except Refused:
            return []

    def do(self, command: machine.Command | Act) -> None:
        before = dump(self.state)
        events = self.decide(command, self.state)
        if not events:
            assert dump(self.state) == before, f"{command} left no event and changed the state"
        self.take(events)

    def take(self, events: list[Event]) -> None:
        self.log += [(self.now, event) for event in events]
        for event in events:
            for effect in effects_of(self.graphs, self.state, event):
                if isinstance(effect, Dispatch):
                    path = path_of(self.graphs, self.state, effect.scope, effect.node)
                    again = [
                        task
                        for task in self.tasks
                        if task.attempt == effect.attempt
                        and path_of(self.graphs, self.state, task.scope, task.node) == path
                    ]
                    assert not again, f"{path} attempt {effect.attempt} was given out twice"
                    self.tasks.append(effect)
                elif isinstance(effect, Wake):
                    self.timers.append(effect)
                elif isinstance(effect, Lookup):
                    self.lookups.append(effect)
        check_state(self.graphs, self.state, self.now)


def check_state(graphs: Shelf, state: TraceState, now: int) -> None:
    """What is true after every turn."""
    assert machine.resume(graphs, load(dump(state)), now) == [], "a turn left work undone"
    for number, scope in enumerate(state.scopes):
        unsettled = sum(not node.status.settled for node in scope.nodes)
        assert scope.open == unsettled
        if scope.closed:
            assert not unsettled
        if scope.kind is ScopeKind.MAP and not scope.closed:
            working = [n for n in scope.nodes if n.started_at and not n.status.settled]
            assert scope.running == len(working)
        for index, node in enumerate(scope.nodes):
            path = path_of(graphs, state, number, index)
            if find(graphs, state, path) == (number, index) and not node.status.settled:
                assert why(graphs, state, number, index, frozenset()) is not None
    if not state.status.ended:
        assert any(scope.open for scope in state.scopes) or state.status is TraceStatus.PAUSED
        queued = {
            (number, index, node.attempt)
            for number, scope in enumerate(state.scopes)
            for index, node in enumerate(scope.nodes)
            if node.status is NodeStatus.QUEUED and not node.retry_at
        }
        owing = [e for e in owed(graphs, state) if isinstance(e, Dispatch)]
        assert {(e.scope, e.node, e.attempt) for e in owing} == queued
        assert len(owing) == len(queued)


def replayed(graphs: Shelf, log: list[tuple[int, Event]]) -> TraceState:
    state: TraceState | None = None
    for at, event in log:
        if isinstance(event, TraceStarted):
            state = begin(graphs, TRACE, event, at)
        elif isinstance(event, TraceRevived):
            state = load(event.state)
        else:
            assert state is not None
            apply(graphs, state, event, at)
    assert state is not None
    return state


@tries
@given(shelves(), st.data())
def test_whatever_happens_the_trace_can_end_and_replays_to_the_same_bytes(
    shelf: tuple[Graph, Shelf], data: Any
) -> None:
    player = Player(*shelf, data.draw)
    player.play()
    player.finish()
    assert dump(replayed(player.graphs, player.log)) == dump(player.state)
    events = [event for _, event in player.log]
    assert isinstance(events[-1], TraceEnded)
    if not any(isinstance(event, TraceRevived) for event in events):
        ends = Counter(
            (event.scope, event.node)
            for event in events
            if isinstance(event, NodeSucceeded | NodeFailed | NodeSkipped)
        )
        assert all(count == 1 for count in ends.values()), "a node settled twice"


@tries
@given(shelves(), st.data())
def test_a_log_that_was_cut_anywhere_is_carried_on_to_an_end(
    shelf: tuple[Graph, Shelf], data: Any
) -> None:
    player = Player(*shelf, data.draw)
    player.play()
    cut = data.draw(st.integers(1, len(player.log)))
    player.log = player.log[:cut]
    player.state = replayed(player.graphs, player.log)
    player.tasks, player.timers, player.lookups = [], [], []
    if player.state.status.ended:
        return
    for effect in owed(player.graphs, player.state):
        if isinstance(effect, Lookup):
            player.lookups.append(effect)
    player.take(machine.resume(player.graphs, player.state, player.now))
    player.finish()
    assert dump(replayed(player.graphs, player.log)) == dump(player.state)


@tries
@given(shelves(), st.data())
def test_a_state_stored_in_mid_flight_goes_on_as_if_nothing_had_been(
    shelf: tuple[Graph, Shelf], data: Any
) -> None:
    player = Player(*shelf, data.draw)
    for _ in range(data.draw(st.integers(0, 15))):
        if player.state.status.ended:
            return
        player.now += data.draw(st.integers(0, 25))
        command, other = player.anything(), load(dump(player.state))
        there = player.decide(command, other)
        player.do(command)
        assert dump(other) == dump(player.state)
        assert there == [event for _, event in player.log[len(player.log) - len(there) :]]


@pytest.mark.parametrize("broken", ["closing", "windows"])
def test_negative_control_a_broken_rule_is_found(
    broken: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    if broken == "closing":
        monkeypatch.setattr(state_module, "_close", lambda state, scope, at: None)
    else:
        monkeypatch.setattr(machine.Turn, "_look_at_map", lambda turn, scope, here: None)

    run = settings(
        max_examples=600,
        deadline=None,
        database=None,
        derandomize=True,
        phases=[Phase.generate],
        suppress_health_check=list(HealthCheck),
    )(
        given(shelves(), st.data())(
            test_whatever_happens_the_trace_can_end_and_replays_to_the_same_bytes.hypothesis.inner_test  # type: ignore[attr-defined]
        )
    )
    with pytest.raises(BaseException):  # noqa: B017
        run()


def test_tasks_are_given_out_by_events_only() -> None:
    """The list of what is owed at a takeover names no attempt that no event scheduled."""
    graph = compile_graph(Playbook("p", "shop", (Node("a", Map([1, 2], Task("shop/f"))),)), 7, 42)
    shelf = Shelf(graph)
    state, events = machine.start(shelf, TRACE, started(of_value(None)), START)
    scheduled = {(e.scope, e.node, e.attempt) for e in events if isinstance(e, TaskScheduled)}
    owing = {(e.scope, e.node, e.attempt) for e in owed(shelf, state) if isinstance(e, Dispatch)}
    assert scheduled == owing == {(1, 0, 1), (1, 1, 1)}
