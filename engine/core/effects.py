"""What is owed to the world because of what happened. Released only after the commit."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from enum import IntEnum

from engine.core.events import (
    AttemptFailed,
    Event,
    NodeFailed,
    TaskScheduled,
    TraceEnded,
    TraceStarted,
)
from engine.core.graph import Graph
from engine.core.state import NodeState, TraceState
from engine.core.status import NodeStatus


class TimerKind(IntEnum):
    ATTEMPT = 1  # one attempt's time is up
    TOTAL = 2  # all attempts' time is up
    RETRY = 3  # the wait before the next attempt is over
    TRACE = 4  # the trace's time is up


@dataclass(frozen=True, slots=True)
class Dispatch:
    """Give this attempt to a worker."""

    node: int
    attempt: int


@dataclass(frozen=True, slots=True)
class Cancel:
    """Tell whoever works on this attempt that it no longer counts."""

    node: int
    attempt: int


@dataclass(frozen=True, slots=True)
class Wake:
    """Come back at `at` (milliseconds since 1970) with this timer."""

    at: int
    kind: TimerKind
    node: int
    attempt: int


@dataclass(frozen=True, slots=True)
class Notify:
    """The trace has ended: tell those who wait."""


Effect = Dispatch | Cancel | Wake | Notify


def effects_of(graph: Graph, state: TraceState, event: Event) -> Iterator[Effect]:
    """What the event owes. Call it once the event was applied."""
    if isinstance(event, TaskScheduled):
        yield Dispatch(event.node, event.attempt)
        yield from _attempt_timers(graph, state.nodes[event.node], event.node)
    elif isinstance(event, AttemptFailed):
        if event.failure.code == "TIMEOUT":
            yield Cancel(event.node, event.attempt)
        yield Wake(event.retry_at, TimerKind.RETRY, event.node, event.attempt)
    elif isinstance(event, NodeFailed):
        if event.attempt and event.failure.code in ("TIMEOUT", "TOTAL_TIMEOUT"):
            yield Cancel(event.node, event.attempt)
    elif isinstance(event, TraceStarted):
        if graph.drawn.timeout:
            yield _trace_timer(graph, state)
    elif isinstance(event, TraceEnded):
        for index, node in enumerate(state.nodes):
            if node.status is NodeStatus.CANCELLED and node.attempt:
                yield Cancel(index, node.attempt)
        yield Notify()


def owed(graph: Graph, state: TraceState) -> Iterator[Effect]:
    """Everything that a new owner of a live trace must do again: dispatches and timers."""
    if graph.drawn.timeout:
        yield _trace_timer(graph, state)
    for index, node in enumerate(state.nodes):
        if node.status is not NodeStatus.QUEUED:
            continue
        if node.retry_at:
            yield Wake(node.retry_at, TimerKind.RETRY, index, node.attempt)
            yield from _total_timer(graph, node, index)
        else:
            yield Dispatch(index, node.attempt)
            yield from _attempt_timers(graph, node, index, again=True)


def _trace_timer(graph: Graph, state: TraceState) -> Wake:
    return Wake(state.started_at + graph.drawn.timeout, TimerKind.TRACE, -1, 0)


def _attempt_timers(
    graph: Graph, node: NodeState, index: int, again: bool = False
) -> Iterator[Wake]:
    timeout = graph.nodes[index].drawn.timeout
    if timeout:
        yield Wake(node.dispatched_at + timeout, TimerKind.ATTEMPT, index, node.attempt)
    if node.attempt == 1 or again:
        yield from _total_timer(graph, node, index)


def _total_timer(graph: Graph, node: NodeState, index: int) -> Iterator[Wake]:
    total = graph.nodes[index].drawn.total_timeout
    if total:
        yield Wake(node.started_at + total, TimerKind.TOTAL, index, 0)
