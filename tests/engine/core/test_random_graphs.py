"""Rules that hold for every graph and every order of events that the bus can produce."""

from __future__ import annotations

import random
from dataclasses import dataclass
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from engine.core import machine
from engine.core.checks import check
from engine.core.effects import Dispatch, TimerKind, owed
from engine.core.events import (
    AttemptFailed,
    Event,
    NodeFailed,
    NodeSkipped,
    NodeSucceeded,
    TaskScheduled,
    TraceEnded,
    TraceStarted,
)
from engine.core.failure import Failure
from engine.core.graph import Graph, compile_graph
from engine.core.payload import of_value
from engine.core.playbook import Edge, EdgeKind, Join, Node, Nop, Playbook, Retry, Task
from engine.core.state import TraceState, apply, begin, dump, load
from engine.core.status import NodeStatus

TRACE = bytes(range(16))
STARTED = TraceStarted(1, 1, "a", "p", of_value({"n": 1}), 5, "test")


@st.composite
def playbooks(draw: st.DrawFn) -> Playbook:
    """Acyclic graphs of up to nine nodes with every kind of edge, join and retry."""
    count = draw(st.integers(1, 9))
    nodes, edges = [], []
    for index in range(count):
        kind = draw(st.sampled_from([Task("a/f"), Task("a/f"), Nop()]))
        attempts = draw(st.integers(1, 3)) if isinstance(kind, Task) else 1
        timeout = draw(st.sampled_from([0, 50])) if isinstance(kind, Task) else 0
        join = draw(st.sampled_from([Join.ALL, Join.ALL, Join.ANY]))
        retry = Retry(attempts=attempts, backoff=10)
        nodes.append(Node(f"n{index}", kind, join=join, retry=retry, timeout=timeout))
    for source in range(count):
        targets = (
            draw(st.sets(st.integers(source + 1, count - 1), max_size=4))
            if (source + 1 < count)
            else set()
        )
        has_choice = False
        for target in sorted(targets):
            kind_of = draw(st.sampled_from(list(EdgeKind)))
            edge = Edge(f"n{source}", f"n{target}", kind_of)
            if kind_of is EdgeKind.CHOICE:
                limit = draw(st.integers(0, 3))
                edge = Edge(
                    f"n{source}", f"n{target}", kind_of, f"$$ != {limit} && {target} > 0", target
                )
                has_choice = True
            elif kind_of is EdgeKind.OTHERWISE and (
                not has_choice
                or any(e.kind is EdgeKind.OTHERWISE and e.source == edge.source for e in edges)
            ):
                edge = Edge(f"n{source}", f"n{target}", EdgeKind.PARALLEL)
            elif kind_of is EdgeKind.ERROR and draw(st.booleans()):
                edge = Edge(f"n{source}", f"n{target}", kind_of, codes=("BAD",))
            edges.append(edge)
    return Playbook("p", "a", tuple(nodes), tuple(edges))


@dataclass
class Played:
    graph: Graph
    state: TraceState
    turns: list[tuple[int, list[Event]]]

    @property
    def events(self) -> list[Event]:
        return [event for _, events in self.turns for event in events]


def play(drawn: Playbook, seed: int, decide: Any = machine.decide) -> Played:
    """Plays a trace with a worker and a bus that reorder, repeat and lose what they may."""
    assert not [finding for finding in check(drawn) if not finding.warning]
    chance = random.Random(seed)
    graph = compile_graph(drawn, 1, 1)
    now = 1_000
    state, events = machine.start(graph, TRACE, STARTED, now)
    played = Played(graph, state, [(now, events)])
    stale: list[machine.Command] = []
    for _ in range(2_000):
        if state.status.ended:
            break
        now += chance.randrange(1, 30)
        command = _next_command(graph, state, chance, stale)
        before = dump(state)
        made = decide(graph, state, command, now)
        assert made or dump(state) == before
        if made:
            played.turns.append((now, made))
    return played


def _next_command(
    graph: Graph, state: TraceState, chance: random.Random, stale: list[machine.Command]
) -> machine.Command:
    if stale and chance.random() < 0.3:
        return chance.choice(stale)
    active = [i for i, node in enumerate(state.nodes) if node.status is NodeStatus.QUEUED]
    index = chance.choice(active)
    node = state.nodes[index]
    command: machine.Command
    if node.retry_at:
        command = machine.TimerFired(TimerKind.RETRY, index, node.attempt)
    elif chance.random() < 0.1:
        command = machine.TimerFired(TimerKind.ATTEMPT, index, node.attempt)
    elif chance.random() < 0.35:
        code = chance.choice(["BAD", "WORSE"])
        failure = Failure(code, "no", retryable=chance.random() < 0.7)
        command = machine.Failed(index, node.attempt, failure)
    else:
        value = of_value(chance.randrange(4))
        command = machine.Succeeded(index, node.attempt, value, b'{"k":1}')
    stale.append(command)
    return command


random_traces = given(playbooks(), st.integers(0, 2**32))
often = settings(
    max_examples=250, deadline=None, suppress_health_check=[HealthCheck.too_slow], derandomize=True
)


def replay(graph: Graph, turns: list[tuple[int, list[Event]]]) -> TraceState:
    at, events = turns[0]
    first = events[0]
    assert isinstance(first, TraceStarted)
    state = begin(graph, TRACE, first, at)
    for at, events in turns:
        for event in events:
            if not isinstance(event, TraceStarted):
                apply(graph, state, event, at)
    return state


@often
@random_traces
def test_every_trace_ends_and_every_node_settles_exactly_once(drawn: Playbook, seed: int) -> None:
    played = play(drawn, seed)
    assert played.state.status.ended
    assert isinstance(played.events[-1], TraceEnded)
    settled = [
        event.node
        for event in played.events
        if isinstance(event, NodeSucceeded | NodeFailed | NodeSkipped)
    ]
    assert len(settled) == len(set(settled))
    assert all(node.status.settled for node in played.state.nodes)
    assert played.state.open == 0


@often
@random_traces
def test_nothing_runs_before_the_edges_that_lead_to_it(drawn: Playbook, seed: int) -> None:
    played = play(drawn, seed)
    resolved: dict[int, int] = {}  # target to resolved edges
    taken: dict[int, int] = {}
    for event in played.events:
        if isinstance(event, TaskScheduled) and event.attempt == 1:
            _check_may_run(played.graph, event.node, resolved, taken)
        if isinstance(event, NodeSucceeded) and event.attempt == 0:
            _check_may_run(played.graph, event.node, resolved, taken)
        if isinstance(event, NodeSucceeded | NodeFailed | NodeSkipped):
            chosen = {
                NodeSucceeded: lambda e: set(e.taken),
                NodeFailed: lambda e: {e.taken},
                NodeSkipped: lambda e: set(),
            }[type(event)](event)
            for edge in played.graph.nodes[event.node].outgoing:
                resolved[edge.target] = resolved.get(edge.target, 0) + 1
                if edge.index in chosen:
                    taken[edge.target] = taken.get(edge.target, 0) + 1


def _check_may_run(
    graph: Graph, index: int, resolved: dict[int, int], taken: dict[int, int]
) -> None:
    node = graph.nodes[index]
    if node.starts:
        return
    assert taken.get(index, 0) > 0
    if node.join is Join.ALL:
        assert resolved[index] == len(node.incoming)


@often
@random_traces
def test_replaying_the_events_gives_the_same_bytes(drawn: Playbook, seed: int) -> None:
    played = play(drawn, seed)
    again = replay(played.graph, played.turns)
    assert dump(again) == dump(played.state)
    assert dump(load(dump(again))) == dump(again)


@often
@random_traces
def test_every_intermediate_state_owes_exactly_its_current_attempts(
    drawn: Playbook, seed: int
) -> None:
    played = play(drawn, seed)
    for length in range(1, len(played.turns)):
        state = replay(played.graph, played.turns[:length])
        dispatches = {
            (effect.node, effect.attempt)
            for effect in owed(played.graph, state)
            if isinstance(effect, Dispatch)
        }
        current = {
            (index, node.attempt)
            for index, node in enumerate(state.nodes)
            if machine.is_current(state, index, node.attempt)
        }
        assert dispatches == current


@often
@random_traces
def test_a_turn_cut_in_two_by_a_crash_goes_on_to_the_same_nodes(drawn: Playbook, seed: int) -> None:
    played = play(drawn, seed)
    chance = random.Random(seed)
    turn = chance.randrange(len(played.turns))
    at, events = played.turns[turn]
    keep = chance.randrange(1, len(events) + 1)
    cut = [*played.turns[:turn], (at, events[:keep])]
    state = replay(played.graph, cut)
    if state.status.ended:
        return
    rest = machine.resume(played.graph, state, at)
    whole = replay(played.graph, played.turns[: turn + 1])
    assert [node.status for node in state.nodes] == [node.status for node in whole.nodes]
    assert state.status == whole.status, rest


def test_the_checks_notice_a_machine_that_accepts_stale_attempts(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A negative control: without the guard on attempts, the promises above are broken."""
    monkeypatch.setattr(
        machine,
        "is_current",
        lambda state, node, attempt: (
            not state.status.ended and state.nodes[node].status is not NodeStatus.PENDING
        ),
    )
    drawn = Playbook(
        "p",
        "a",
        tuple(Node(f"n{i}", Task("a/f"), retry=Retry(attempts=3, backoff=10)) for i in range(4)),
        tuple(Edge(f"n{i}", f"n{i + 1}") for i in range(3)),
    )
    broken = 0
    for seed in range(30):
        try:
            played = play(drawn, seed)
            settled = [e.node for e in played.events if isinstance(e, NodeSucceeded | NodeFailed)]
            broken += len(settled) != len(set(settled)) or played.state.open != 0
        except (AssertionError, IndexError, KeyError):
            broken += 1
    assert broken > 0


def test_a_retry_keeps_the_input_of_the_first_attempt() -> None:
    drawn = Playbook("p", "a", (Node("n", Task("a/f"), retry=Retry(attempts=2, backoff=10)),))
    graph = compile_graph(drawn, 1, 1)
    state, _ = machine.start(graph, TRACE, STARTED, 1_000)
    failure = Failure("BUSY", retryable=True)
    (failed,) = machine.decide(graph, state, machine.Failed(0, 1, failure), 1_001)
    assert isinstance(failed, AttemptFailed)
    assert failed.retry_at == 1_011
    machine.decide(graph, state, machine.TimerFired(TimerKind.RETRY, 0, 1), 1_011)
    assert state.nodes[0].attempt == 2
    assert state.nodes[0].input == STARTED.input
