"""Workers that disappear: not a failure, until it looks as if the task ended them."""

from __future__ import annotations

from engine.core.effects import Cancel, Dispatch, Quarantine, TimerKind, Wake, effects_of, owed
from engine.core.events import (
    AttemptBegan,
    AttemptFailed,
    AttemptLost,
    AttemptResumed,
    Event,
    NodeFailed,
)
from engine.core.machine import Began, Lost, Resumed, TimerFired
from engine.core.retry import QUARANTINE_AFTER
from engine.core.status import NodeStatus, TraceStatus
from tests.engine.core.playing import Trace

ONE = "nodes: {a: {task: f}}\n"


def loses(trace: Trace, worker: str, at: int, attempt: int = 0, path: str = "a") -> list[Event]:
    number = attempt or trace.node(path).attempt
    return trace.decide(Lost(*trace.place(path), number, worker, at))


def comes_back(trace: Trace, worker: str, path: str = "a") -> list[Event]:
    return trace.decide(Resumed(*trace.place(path), trace.node(path).attempt, worker))


def effects(trace: Trace, events: list[Event]) -> list[object]:
    return [e for event in events for e in effects_of(trace.graphs, trace.state, event)]


def test_a_lost_attempt_is_dispatched_again_as_the_same_attempt() -> None:
    trace = Trace(ONE)
    events = loses(trace, "w1", 5)
    assert events == [AttemptLost(0, 1, "w1", 0, 5)]
    assert effects(trace, events) == [Dispatch(0, 0, 1)]
    assert trace.node("a").status is NodeStatus.QUEUED
    trace.returns("a", 7)
    assert trace.state.status is TraceStatus.SUCCEEDED


def test_a_task_that_ends_its_workers_fails_its_node_and_is_put_aside() -> None:
    trace = Trace(ONE)
    for number in range(QUARANTINE_AFTER - 1):
        loses(trace, f"w{number}", number)
    (failed, _) = loses(trace, "w9", 9)
    assert isinstance(failed, NodeFailed)
    assert failed.failure.code == "WORKER_LOST"
    assert "w0, w1, w9" in failed.failure.message
    assert effects(trace, [failed]) == [Cancel(0, 0, 1), Quarantine(0, 0, 1)]
    assert trace.state.status is TraceStatus.FAILED


def test_one_loss_that_is_told_twice_counts_once() -> None:
    trace = Trace(ONE)
    for _ in range(QUARANTINE_AFTER):
        loses(trace, "w1", 5)
    assert trace.node("a").lost == [("w1", 5)]


def test_a_worker_that_comes_back_with_the_task_takes_its_loss_back() -> None:
    trace = Trace(ONE)
    for number in range(10):
        loses(trace, "w1", number)
        assert comes_back(trace, "w1") == [AttemptResumed(0, 1, "w1")]
    assert trace.node("a").lost == []


def test_a_worker_that_was_never_lost_changes_nothing_by_coming_back() -> None:
    trace = Trace(ONE)
    loses(trace, "w1", 1)
    assert comes_back(trace, "w2") == []


def test_a_lost_worker_whose_result_comes_after_all_is_believed() -> None:
    trace = Trace(ONE)
    loses(trace, "w1", 1)
    assert trace.returns("a", 1, attempt=1)


def test_a_loss_of_a_former_attempt_means_nothing() -> None:
    trace = Trace("nodes: {a: {task: f, retry: {attempts: 2, on: [BOOM]}}}\n")
    trace.fails("a")
    trace.fires(TimerKind.RETRY, "a", 1)
    assert trace.node("a").attempt == 2
    assert loses(trace, "w1", 1, attempt=1) == []


def test_losses_are_counted_per_attempt() -> None:
    trace = Trace("nodes: {a: {task: f, retry: {attempts: 2, on: [BOOM]}}}\n")
    for number in range(QUARANTINE_AFTER - 1):
        loses(trace, "w", number)
    trace.fails("a")
    trace.fires(TimerKind.RETRY, "a", 1)
    assert trace.node("a").lost == []


def test_poison_is_not_retried_unless_the_node_says_so_by_name() -> None:
    plain = Trace("nodes: {a: {task: f, retry: {attempts: 5}}}\n")
    named = Trace("nodes: {a: {task: f, retry: {attempts: 5, on: [WORKER_LOST]}}}\n")
    for trace in (plain, named):
        for number in range(QUARANTINE_AFTER):
            last = loses(trace, "w", number)
    assert plain.state.status is TraceStatus.FAILED
    assert isinstance(last[0], AttemptFailed)
    assert any(isinstance(effect, Wake) for effect in effects(named, last))


def test_an_error_edge_may_take_up_what_ended_its_workers() -> None:
    trace = Trace(
        "nodes: {a: {task: f}, b: {nop: {}}}\n"
        "edges: [{from: a, to: b, on: error, codes: [WORKER_LOST]}]\n"
    )
    for number in range(QUARANTINE_AFTER):
        loses(trace, "w", number)
    assert trace.state.status is TraceStatus.SUCCEEDED


QUEUED = "nodes: {a: {task: f, queue_timeout: 5s}}\n"


def begins(trace: Trace, worker: str) -> list[Event]:
    return trace.decide(Began(*trace.place("a"), trace.node("a").attempt, worker))


def looks(trace: Trace) -> list[Event]:
    """The timer goes off, whether it is time or not."""
    return trace.decide(TimerFired(TimerKind.QUEUE, *trace.place("a"), trace.node("a").attempt))


def test_after_a_loss_the_queue_timeout_counts_anew() -> None:
    trace = Trace(QUEUED)
    begins(trace, "w1")
    trace.now += 60_000
    events = loses(trace, "w1", 60_000)
    due = trace.now + 5_000
    assert Wake(due, TimerKind.QUEUE, 0, 0, 1) in effects(trace, events)
    assert Wake(due, TimerKind.QUEUE, 0, 0, 1) in list(owed(trace.graphs, trace.state))
    trace.now = due - 1
    assert looks(trace) == []
    trace.now = due
    looks(trace)
    assert trace.failure.code == "QUEUE_TIMEOUT"


def test_a_worker_that_begins_after_a_loss_or_comes_back_ends_the_wait() -> None:
    for worker in ("w1", "w2"):
        trace = Trace(QUEUED)
        begins(trace, "w1")
        loses(trace, "w1", 60_000)
        assert [type(event) for event in begins(trace, worker)] == [AttemptBegan]
        assert begins(trace, worker) == []
        trace.now += 60_000
        assert looks(trace) == []
