"""The simulation can fail: each planted bug is found within so many seeds, by the right promise.

Run with `-s` to see after how many.
"""

from __future__ import annotations

import zlib
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager
from typing import Any
from unittest import mock

import pytest

from engine.core import effects, machine
from engine.core.effects import Effect, Wake
from engine.core.events import Event, NodeSucceeded, TaskScheduled, TraceResumed
from engine.core.machine import TimerFired
from engine.core.state import ROOT, apply
from engine.core.status import NodeStatus, TraceStatus
from magicflow.v1.task_pb2 import Task
from services.dispatcher.outbox import Outbox
from tests.simulation.world import Failed, World, simulate

Plant = AbstractContextManager[Any]


def lost_effect() -> Plant:
    """One dispatch in twenty is not let out."""
    dispatch = Outbox.dispatch

    async def some(self: Outbox, tasks: list[Task]) -> None:
        await dispatch(self, [t for t in tasks if zlib.crc32(t.id.SerializeToString()) % 20])

    return mock.patch.object(Outbox, "dispatch", some)


def double_join() -> Plant:
    """A join of any runs once more when the second edge into it is taken."""
    decide = machine.decide

    def twice(graphs: Any, state: Any, command: Any, now: int) -> list[Event]:
        events = decide(graphs, state, command, now)
        entered = {e.node for e in events if isinstance(e, TaskScheduled) and e.scope == ROOT}
        for event in list(events):
            if isinstance(event, NodeSucceeded) and event.scope == ROOT and not state.status.ended:
                graph = graphs.graph(state.snapshot_id)
                for target in [graph.edges[edge].target for edge in event.taken]:
                    node = state.nodes[target]
                    if node.status is NodeStatus.QUEUED and target not in entered:
                        again = TaskScheduled(target, node.attempt, None)
                        apply(graphs, state, again, now)
                        events.append(again)
        return events

    return mock.patch.object(machine, "decide", twice)


def stale_result() -> Plant:
    """The result of an attempt that was given up is taken for that of the one at work."""
    is_current = machine.is_current

    def lax(state: Any, scope: int, node: int, attempt: int) -> bool:
        return any(is_current(state, scope, node, later) for later in range(attempt, attempt + 4))

    return mock.patch.object(machine, "is_current", lax)


def lost_timer() -> Plant:
    """A new owner arms no timers."""

    def without(graphs: Any, state: Any) -> Iterator[Effect]:
        return (e for e in effects.owed(graphs, state) if not isinstance(e, Wake))

    return mock.patch("services.dispatcher.processor.owed", without)


def pause_race() -> Plant:
    """A timer that was armed before the pause is obeyed in it."""
    decide = machine.decide

    def hasty(graphs: Any, state: Any, command: Any, now: int) -> list[Event]:
        if not isinstance(command, TimerFired) or state.status is not TraceStatus.PAUSED:
            return decide(graphs, state, command, now)
        since, state.status, state.paused_at = state.paused_at, TraceStatus.RUNNING, 0
        events = decide(graphs, state, command, now)
        if not state.status.ended:
            state.status, state.paused_at = TraceStatus.PAUSED, since
        return events

    return mock.patch.object(machine, "decide", hasty)


def forgotten_resume() -> Plant:
    """The timers that stood still do not go on."""

    def without(graphs: Any, state: Any, event: Event) -> Iterator[Effect]:
        found = effects.effects_of(graphs, state, event)
        return iter(()) if isinstance(event, TraceResumed) else found

    return mock.patch("services.dispatcher.processor.effects_of", without)


def lost_suffix() -> Plant:
    """A log server that acknowledges before the disk has it, and loses its power."""
    crash = World._crash

    def with_its_server(self: World) -> None:
        crash(self)
        for partition in range(self.partitions):
            self.server.lose_suffix(f"FLOW_LOG_{partition}", 2)

    return mock.patch.object(World, "_crash", with_its_server)


PLANTS: Mapping[str, tuple[Any, int, str]] = {
    "a lost effect": (lost_effect, 40, "liveness"),
    "a double join": (double_join, 400, "scheduled twice"),
    "a stale result accepted": (stale_result, 200, "decided by attempt|is not at work|B: "),
    "a timer lost at takeover": (lost_timer, 100, "liveness"),
    "a pause race": (pause_race, 200, "paused"),
    "a resume that forgets timers": (forgotten_resume, 100, "liveness"),
    "an acknowledged suffix lost": (lost_suffix, 40, "A: |E: |liveness|KeyError"),
}


def first_found(plant: Any, most: int) -> tuple[int, str]:
    """After how many seeds, and the first line of what was found."""
    with plant():
        for seed in range(most):
            try:
                simulate(seed)
            except Failed as failed:
                return seed + 1, str(failed)
    return 0, ""


@pytest.mark.parametrize("name", PLANTS)
def test_a_planted_bug_is_found(name: str) -> None:
    plant, most, by = PLANTS[name]
    seeds, report = first_found(plant, most)
    assert seeds, f"{name} was not found within {most} seeds"
    print(f"{name}: after {seeds} seeds: {report.splitlines()[0]}")
    found = report.partition("replay:")[0]
    assert any(sign in found for sign in by.split("|")), report
