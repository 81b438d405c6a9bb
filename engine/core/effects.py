"""What is owed to the world because of what happened. Released only after the commit."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from enum import IntEnum

from engine.core.deadlines import attempt_due, queue_due, total_due, trace_due, waits_for_worker
from engine.core.events import (
    AttemptFailed,
    AttemptLost,
    CallStarted,
    Event,
    HookOpened,
    NodeFailed,
    NodeSkipped,
    NodeSucceeded,
    ScopeOpened,
    SleepStarted,
    TaskScheduled,
    TraceEnded,
    TraceFailing,
    TraceReleased,
    TraceResumed,
    TraceRevived,
    TraceStarted,
)
from engine.core.failure import OUT_OF_TIME, Code
from engine.core.playbook import Subplaybook
from engine.core.state import Graphs, NodeState, ScopeState, TraceState, drawn
from engine.core.status import NodeStatus


class TimerKind(IntEnum):
    ATTEMPT = 1  # one attempt's time is up
    TOTAL = 2  # all attempts' time is up
    RETRY = 3  # the wait before the next attempt is over
    TRACE = 4  # the trace's time is up
    DUE = 5  # a hook expires, a sleep ends
    QUEUE = 6  # a worker should have begun
    START = 7  # a delayed trace begins


@dataclass(frozen=True, slots=True)
class Dispatch:
    """Give this attempt to a worker."""

    scope: int
    node: int
    attempt: int


@dataclass(frozen=True, slots=True)
class Cancel:
    """Tell whoever works on this attempt that it no longer counts."""

    scope: int
    node: int
    attempt: int


@dataclass(frozen=True, slots=True)
class Wake:
    """Come back at `at` (milliseconds since 1970) with this timer."""

    at: int
    kind: TimerKind
    scope: int
    node: int
    attempt: int


@dataclass(frozen=True, slots=True)
class Lookup:
    """Find out which snapshot the node is to call, and come back with a `Call`."""

    scope: int
    node: int


@dataclass(frozen=True, slots=True)
class Quarantine:
    """Put the attempt aside, with its input, for whoever finds out why workers end over it."""

    scope: int
    node: int
    attempt: int


@dataclass(frozen=True, slots=True)
class Notify:
    """The trace has ended: tell those who wait."""


Effect = Dispatch | Cancel | Wake | Lookup | Quarantine | Notify


def effects_of(graphs: Graphs, state: TraceState, event: Event) -> Iterator[Effect]:
    """What the event owes. Call it once the event, and those decided with it, were applied: what
    they have overtaken is not owed."""
    if isinstance(event, TaskScheduled):
        yield Dispatch(event.scope, event.node, event.attempt)
        yield from _attempt_timers(graphs, state, event.scope, event.node)
    elif isinstance(event, NodeSucceeded):
        if not event.worker and event.attempt:
            yield from _abandoned(graphs, state, event.scope, event.node, event.attempt)
    elif isinstance(event, AttemptLost):
        yield Dispatch(event.scope, event.node, event.attempt)
        yield from _queue_timer(graphs, state, event.scope, event.node)
    elif isinstance(event, CallStarted):
        yield from _call_owes(graphs, state, event.scope, event.node)
    elif isinstance(event, AttemptFailed):
        if event.failure.code in OUT_OF_TIME or not event.worker:
            yield from _abandoned(graphs, state, event.scope, event.node, event.attempt)
        yield Wake(event.retry_at, TimerKind.RETRY, event.scope, event.node, event.attempt)
    elif isinstance(event, NodeFailed | NodeSkipped):
        attempt = event.attempt if isinstance(event, NodeFailed) else -1
        yield from _abandoned(graphs, state, event.scope, event.node, attempt)
        if _is_poison(graphs, state, event):
            yield Quarantine(event.scope, event.node, attempt)
    elif isinstance(event, ScopeOpened):
        yield from _attempt_timers(graphs, state, event.scope, event.node)
    elif isinstance(event, HookOpened | SleepStarted):
        if event.due_at:
            yield Wake(event.due_at, TimerKind.DUE, event.scope, event.node, 0)
    elif isinstance(event, TraceStarted | TraceReleased):
        yield from _trace_timers(graphs, state)
    elif isinstance(event, TraceResumed | TraceRevived):
        yield from (effect for effect in owed(graphs, state) if isinstance(effect, Wake))
    elif isinstance(event, TraceEnded | TraceFailing):
        for scope in range(len(state.scopes)):
            yield from _cancelled(graphs, state, scope, deep=False)
        if isinstance(event, TraceEnded):
            yield Notify()


def _is_poison(graphs: Graphs, state: TraceState, event: NodeFailed | NodeSkipped) -> bool:
    """A playbook node may fail for the same reason: what is put aside is the task inside it."""
    if not isinstance(event, NodeFailed) or event.failure.code != Code.WORKER_LOST:
        return False
    return bool(drawn(graphs, state, event.scope, event.node).function)


def owed(graphs: Graphs, state: TraceState) -> Iterator[Effect]:
    """Everything that a new owner of a live trace must do again: dispatches, lookups, timers.
    The timers of a paused trace stand still."""
    still = bool(state.paused_at)
    if not still:
        yield from _trace_timers(graphs, state)
    for number, scope in enumerate(state.scopes):
        if scope.closed:
            continue
        for index, node in enumerate(scope.nodes):
            for effect in _node_owes(graphs, state, number, index, node):
                if not still or not isinstance(effect, Wake):
                    yield effect


def _node_owes(
    graphs: Graphs, state: TraceState, scope: int, index: int, node: NodeState
) -> Iterator[Effect]:
    if node.status is NodeStatus.QUEUED:
        if node.retry_at:
            yield Wake(node.retry_at, TimerKind.RETRY, scope, index, node.attempt)
            yield from _total_timer(graphs, state, scope, index)
        else:
            yield Dispatch(scope, index, node.attempt)
            yield from _attempt_timers(graphs, state, scope, index, again=True)
    elif node.status is NodeStatus.RUNNING:
        yield from _call_owes(graphs, state, scope, index, again=True)
    elif node.due_at and node.status in (NodeStatus.PAUSED, NodeStatus.SLEEPING):
        yield Wake(node.due_at, TimerKind.DUE, scope, index, 0)


def wants_callee(graphs: Graphs, state: TraceState, scope: int, index: int) -> bool:
    """Whether the node is under way and does not know yet what it calls."""
    node = state.scopes[scope].nodes[index]
    if node.status is not NodeStatus.RUNNING or state.scopes[scope].closed:
        return False
    if node.scope >= 0 and not state.scopes[node.scope].closed:
        return False
    return isinstance(drawn(graphs, state, scope, index).drawn.kind, Subplaybook)


def _call_owes(
    graphs: Graphs, state: TraceState, scope: int, index: int, again: bool = False
) -> Iterator[Effect]:
    if wants_callee(graphs, state, scope, index):
        yield Lookup(scope, index)
    yield from _attempt_timers(graphs, state, scope, index, again)


def _trace_timers(graphs: Graphs, state: TraceState) -> Iterator[Wake]:
    if state.start_at:
        yield Wake(state.start_at, TimerKind.START, -1, -1, 0)
    elif state.ending is None:
        due = trace_due(graphs, state)
        if due:
            yield Wake(due, TimerKind.TRACE, -1, -1, 0)


def _attempt_timers(
    graphs: Graphs, state: TraceState, scope: int, index: int, again: bool = False
) -> Iterator[Wake]:
    node, now = drawn(graphs, state, scope, index), state.scopes[scope].nodes[index]
    plain = node.drawn
    if not (plain.timeout or plain.total_timeout or plain.queue_timeout or now.scope >= 0):
        return
    due = attempt_due(graphs, state, node, now)
    if due:
        yield Wake(due, TimerKind.ATTEMPT, scope, index, now.attempt)
    yield from _queue_timer(graphs, state, scope, index)
    if now.attempt == now.first or again:
        yield from _total_timer(graphs, state, scope, index)


def _queue_timer(graphs: Graphs, state: TraceState, scope: int, index: int) -> Iterator[Wake]:
    now = state.scopes[scope].nodes[index]
    due = queue_due(drawn(graphs, state, scope, index), now)
    if due and waits_for_worker(now):
        yield Wake(due, TimerKind.QUEUE, scope, index, now.attempt)


def _total_timer(graphs: Graphs, state: TraceState, scope: int, index: int) -> Iterator[Wake]:
    due = total_due(drawn(graphs, state, scope, index), state.scopes[scope].nodes[index])
    if due:
        yield Wake(due, TimerKind.TOTAL, scope, index, 0)


def _abandoned(
    graphs: Graphs, state: TraceState, scope: int, index: int, attempt: int
) -> Iterator[Cancel]:
    """Whatever a node that gave up, or was overruled, may have at work. Cancelling what has
    answered already harms nobody."""
    node = state.scopes[scope].nodes[index]
    attempt = node.attempt if attempt < 0 else attempt
    failure = node.failure
    overruled = failure is None or failure.code in OUT_OF_TIME or not node.worker
    if attempt and overruled and drawn(graphs, state, scope, index).function:
        yield Cancel(scope, index, attempt)
    if node.scope >= 0:
        yield from _cancelled(graphs, state, node.scope)


def _cancelled(
    graphs: Graphs, state: TraceState, scope: int, deep: bool = True
) -> Iterator[Cancel]:
    here: ScopeState = state.scopes[scope]
    for index, node in enumerate(here.nodes):
        if node.status is not NodeStatus.CANCELLED:
            continue
        if node.attempt and drawn(graphs, state, scope, index).function:
            yield Cancel(scope, index, node.attempt)
        if deep and node.scope >= 0:
            yield from _cancelled(graphs, state, node.scope)
