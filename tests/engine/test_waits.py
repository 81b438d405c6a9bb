"""Why a node waits: every reason, every place that decides so, and the numbers of the contract."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from random import Random
from typing import get_args

import pytest
from msgspec.structs import replace

from engine.core import events as e
from engine.core import machine, steering
from engine.core.events import Event, ScopeKind
from engine.core.machine import TimerFired
from engine.core.payload import of_value
from engine.core.state import TraceState, apply, begin, drawn
from engine.core.status import NodeStatus, TraceStatus
from engine.core.steering import Act, Verb
from engine.core.waits import Wait, WaitCode, why
from magicflow.v1.trace_pb2 import WaitCode as Contract
from tests.engine.core.courses import waits_of
from tests.engine.core.playing import START, TRACE, Trace, started

INNER = "playbook: inner\napp: shop\nnodes: {i: {task: f}}"
ALL = """
nodes:
  task: {task: f, retry: {attempts: 2, backoff: 5s, on: [BOOM]}}
  after: {task: f}
  call: {playbook: inner}
  map: {map: {over: [1, 2], task: f, concurrency: 1}}
  hook: {hook: {timeout: 1h}}
  ran: {task: f, hook: true}
  sleep: {sleep: 1h}
  more: {repeat: {playbook: inner, until: $$.i == 1, max: 3}}
edges: [{from: task, to: after}]
"""
UNDONE = """
nodes:
  a: {task: f, compensate: {task: f}}
  b: {task: f, compensate: {task: f}}
  c: {task: f}
"""


def hidden() -> Trace:
    trace = Trace("nodes: {a: {task: f}, call: {playbook: inner}}\nedges: [{from: a, to: call}]",
                  callees=[INNER])  # fmt: skip
    trace.graphs.hidden = {"shop/inner"}
    trace.returns("a")
    return trace


def everything(do: Callable[[Trace], object] = lambda trace: None) -> Trace:
    trace = Trace(ALL, callees=[INNER])
    do(trace)
    return trace


def delayed() -> Trace:
    return Trace(ALL, callees=[INNER], event=replace(started(of_value(None)), start_at=START + 9))


def undoing() -> Trace:
    trace = Trace(UNDONE)
    trace.returns("a")
    trace.returns("b")
    trace.fails("c")
    return trace


def paused_long_ago() -> Trace:
    """By a version that did not keep who did it."""
    trace = everything(lambda trace: trace.steer(Verb.PAUSE))
    trace.state.paused_by = ""
    return trace


def cut_off() -> Trace:
    """A repeat whose owner died between the events of a turn, before a round was entered."""
    trace = Trace("nodes: {more: {repeat: {playbook: inner, until: $$.i == 1, max: 3}}}",
                  callees=[INNER])  # fmt: skip
    whole, first = trace.events, trace.events[0]
    assert isinstance(first, e.TraceStarted)
    place = next(i for i, event in enumerate(whole) if isinstance(event, e.RoundStarted))
    trace.state = begin(trace.graphs, TRACE, first, START)
    for event in whole[1 : place + 1]:
        apply(trace.graphs, trace.state, event, START)
    return trace


F = frozenset(("shop/f",))
PAUSED = "ann paused the trace at 1970-01-01T00:16:40.000Z"
TABLE = [
    (everything, "after", F, WaitCode.EDGES, "waits for task", ("task",), 0),
    (everything, "task", F, WaitCode.WORKER_BUSY, "free slot", ("shop/f",), 0),
    (everything, "task", frozenset(), WaitCode.NO_WORKER, "no live worker", ("shop/f",), 0),
    (everything, "map[0]", frozenset(), WaitCode.NO_WORKER, "no live worker", ("shop/f",), 0),
    (undoing, "b:compensate", frozenset(), WaitCode.NO_WORKER, "no live worker", ("shop/f",), 0),
    (lambda: everything(lambda t: t.fails("task")), "task", F, WaitCode.BACKOFF, "after BOOM", (),
     START + 5_000),
    (everything, "hook", F, WaitCode.SIGNAL, "waits for a signal", (), START + 3_600_000),
    (lambda: everything(lambda t: t.returns("ran")), "ran", F, WaitCode.SIGNAL, "has run; waits",
     (), 0),
    (everything, "sleep", F, WaitCode.SLEEP, "sleeps", (), START + 3_600_000),
    (lambda: everything(lambda t: t.steer(Verb.PAUSE)), "task", F, WaitCode.PAUSED, PAUSED,
     ("ann",), 0),
    (paused_long_ago, "after", F, WaitCode.PAUSED, "somebody paused", (), 0),
    (delayed, "task", F, WaitCode.START, "not begun", (), START + 9),
    (everything, "map[1]", F, WaitCode.WINDOW, "1 places in the map", (), 0),
    (cut_off, "more[0]", F, WaitCode.WINDOW, "the one before", (), 0),
    (undoing, "a:compensate", F, WaitCode.WINDOW, "the one before", (), 0),
    (hidden, "call", F, WaitCode.CALL, "looked up", (), 0),
    (everything, "call", F, WaitCode.CHILDREN, "0 of 1", (), 0),
    (everything, "map", F, WaitCode.CHILDREN, "0 of 2", (), 0),
    (everything, "more", F, WaitCode.CHILDREN, "0 of 1", (), 0),
    (everything, "more[0]", F, WaitCode.CHILDREN, "0 of 1", (), 0),
]  # fmt: skip


@pytest.mark.parametrize(
    ("make", "path", "offered", "code", "word", "holders", "until"),
    TABLE,
    ids=[f"{row[3].name} {row[1]}" for row in TABLE],
)
def test_a_node_says_why_it_waits_and_what_releases_it(
    make: Callable[[], Trace],
    path: str,
    offered: frozenset[str],
    code: WaitCode,
    word: str,
    holders: tuple[str, ...],
    until: int,
) -> None:
    trace = make()
    wait = why(trace.graphs, trace.state, *trace.place(path), offered)
    assert isinstance(wait, Wait)
    assert (wait.code, wait.holders, wait.until) == (code, holders, until)
    assert word in wait.message


def test_the_table_has_every_reason() -> None:
    assert {row[3] for row in TABLE} == set(WaitCode)


def test_a_settled_node_waits_for_nothing() -> None:
    trace = everything(lambda trace: trace.returns("task"))
    assert why(trace.graphs, trace.state, *trace.place("task"), F) is None


def test_who_paused_is_forgotten_when_the_trace_goes_on() -> None:
    trace = everything(lambda trace: trace.steer(Verb.PAUSE))
    trace.steer(Verb.RESUME)
    assert trace.state.paused_by == ""


def test_every_reason_has_its_number_in_the_contract() -> None:
    for code in WaitCode:
        assert Contract.Name(code) == f"WAIT_CODE_{code.name}"


# Every place where the engine decides not to run a node.

QUEUED = {WaitCode.NO_WORKER, WaitCode.WORKER_BUSY}
AFTER: dict[type, set[WaitCode]] = {
    e.TaskScheduled: QUEUED,
    e.AttemptBegan: QUEUED,
    e.AttemptLost: QUEUED,
    e.AttemptResumed: QUEUED,
    e.AttemptFailed: {WaitCode.BACKOFF},
    e.CallStarted: {WaitCode.CALL},
    e.ScopeOpened: {WaitCode.CHILDREN},
    e.HookOpened: {WaitCode.SIGNAL},
    e.SleepStarted: {WaitCode.SLEEP},
}
"""What a node waits for, by the last event of it."""
SETTLES = {e.NodeSucceeded, e.NodeFailed, e.NodeSkipped}
OF_TRACES = {
    e.TraceStarted, e.TraceEnded, e.TracePaused, e.TraceResumed, e.TraceReleased, e.TraceFailing,
    e.TraceRevived, e.OperatorActed, e.RoundStarted,
}  # fmt: skip


def test_every_event_either_settles_a_node_or_has_a_reason_or_is_of_the_trace() -> None:
    """A new event must say here what its node waits for."""
    assert set(AFTER) | SETTLES | OF_TRACES == set(get_args(Event))


def expected(trace: Trace, scope: int, index: int, last: type | None) -> set[WaitCode]:
    """By what the machine itself decides with."""
    state = trace.state
    here = state.scopes[scope]
    node = here.nodes[index]
    if state.status is TraceStatus.PAUSED:
        return {WaitCode.PAUSED}
    if last is not None:
        return AFTER[last]
    assert node.status is NodeStatus.PENDING
    if state.start_at:
        return {WaitCode.START}
    if here.kind is ScopeKind.MAP:
        assert here.running == 2  # the window of the document below
        return {WaitCode.WINDOW}
    if here.kind is ScopeKind.COMPENSATION:
        return {WaitCode.WINDOW}
    assert not machine._decidable(drawn(trace.graphs, state, scope, index), node)
    return {WaitCode.EDGES}


ANY = """
nodes:
  first: {task: f, retry: {attempts: 2, backoff: 1s, on: [BUSY]}, compensate: {task: f}}
  other: {task: f, hook: true, compensate: {task: f}}
  early: {nop: {}, join: any}
  call: {playbook: inner}
  each: {map: {over: [1, 2, 3, 4], task: f, concurrency: 2, tolerate: 4}}
  more: {repeat: {playbook: inner, until: $index == 1, max: 2}}
  ask: {hook: {}}
  cool: {sleep: 1m}
  last: {task: f}
  mend: {task: f}
edges:
  - {from: first, to: early}
  - {from: other, to: early}
  - {from: early, to: each}
  - {from: first, to: call}
  - {from: call, to: last}
  - {from: more, to: last}
  - {from: ask, to: cool}
  - {from: cool, to: last}
  - {from: call, to: mend, on: error}
  - {from: more, to: mend, on: error}
"""


def open_nodes(state: TraceState) -> Iterator[tuple[int, int]]:
    for scope, here in enumerate(state.scopes):
        for index, node in enumerate(here.nodes):
            if not here.closed and not node.status.settled:
                yield scope, index


def test_wherever_the_engine_does_not_run_a_node_the_reason_is_that_of_its_decision() -> None:
    seen: set[WaitCode] = set()
    for seed in range(80):
        random = Random(seed)
        event = started(of_value(None))
        if seed % 5 == 0:
            event = replace(event, start_at=START + 1_000)
        trace = Trace(ANY, callees=[INNER], event=event)
        if seed % 3 == 0:
            trace.graphs.hidden = {"shop/inner"}
        last: dict[tuple[int, int], type] = {}
        turn = trace.events
        for _ in range(400):
            for happened in turn:
                if type(happened) in AFTER:
                    last[happened.scope, happened.node] = type(happened)  # type: ignore[union-attr]
            for place in open_nodes(trace.state):
                offered = F if random.random() < 0.5 else frozenset()
                wait = why(trace.graphs, trace.state, *place, offered)
                assert wait is not None
                wanted = expected(trace, *place, last.get(place))
                if wanted == QUEUED:
                    wanted = {WaitCode.WORKER_BUSY if offered else WaitCode.NO_WORKER}
                assert {wait.code} == wanted, (seed, place, wait)
                seen.add(wait.code)
            if trace.state.status.ended:
                break
            turn = _a_step(trace, random)
        else:
            raise AssertionError(f"seed {seed} has no end")
    assert seen == set(WaitCode)


def _a_step(trace: Trace, random: Random) -> list[Event]:
    paused = trace.state.status is TraceStatus.PAUSED
    if random.random() < (0.5 if paused else 0.1):
        return trace.steer(Verb.RESUME if paused else Verb.PAUSE)
    waits = list(waits_of(trace.graphs, trace.state))
    if not waits:
        return []
    wait = random.choice(waits)
    trace.now = max(trace.now, wait.at)
    step = random.choice(wait.steps)
    if not isinstance(step, TimerFired) and random.random() < 0.5:
        trace.graphs.hidden = set()
    if isinstance(step, Act):
        return steering.steer(trace.graphs, trace.state, step, trace.now)
    return machine.decide(trace.graphs, trace.state, step, trace.now)
