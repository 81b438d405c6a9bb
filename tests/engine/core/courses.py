"""The courses that a trace can take: each outcome of all that it waits for, in any order."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from random import Random

from engine.core import machine, steering
from engine.core.effects import Dispatch, Effect, Lookup, TimerKind, Wake, owed
from engine.core.failure import Failure
from engine.core.machine import Began, Call, Failed, Lost, Succeeded, TimerFired
from engine.core.payload import of_value
from engine.core.places import path_of
from engine.core.state import Graphs, TraceState, dump, load
from engine.core.status import NodeStatus
from engine.core.steering import Act, Verb

OUTPUTS = (of_value(1), of_value({"x": 1}), of_value(None))
FAILURES = (Failure("BOOM"), Failure("BUSY", retryable=True))
LIMITS = (TimerKind.TRACE, TimerKind.ATTEMPT, TimerKind.TOTAL, TimerKind.QUEUE)

Step = machine.Command | Act


@dataclass(frozen=True, slots=True)
class Wait:
    """Something that the trace waits for. `steps` are what the world may do about it, `at` when
    at the earliest. A `limit` is there only to end something that goes on for too long."""

    steps: tuple[Step, ...]
    at: int = 0
    limit: bool = False


def waits_of(graphs: Graphs, state: TraceState) -> Iterator[Wait]:
    """Everything that the trace waits for."""
    for effect in owed(graphs, state):
        yield _wait(effect)
    for number, scope in enumerate(state.scopes):
        for index, node in enumerate(scope.nodes):
            if not scope.closed and node.status is NodeStatus.PAUSED:
                path = path_of(graphs, state, number, index)
                act = Act(Verb.SIGNAL, "ann", node=path)
                yield Wait((act, Act(Verb.SIGNAL, "ann", node=path, approve=False)))


def _wait(effect: Effect) -> Wait:
    if isinstance(effect, Dispatch):
        place = (effect.scope, effect.node, effect.attempt)
        ends: list[Step] = [Succeeded(*place, output, b"", "w") for output in OUTPUTS]
        return Wait((*ends, *(Failed(*place, failure, "w") for failure in FAILURES)))
    if isinstance(effect, Lookup):
        return Wait((Call(effect.scope, effect.node),))
    assert isinstance(effect, Wake)
    fired = TimerFired(effect.kind, effect.scope, effect.node, effect.attempt)
    return Wait((fired,), effect.at, effect.kind in LIMITS)


def take(graphs: Graphs, state: TraceState, at: int, step: Step) -> None:
    """The state is as after the step, which must have had an effect."""
    if isinstance(step, Act):
        events = steering.steer(graphs, state, step, at)
    else:
        events = machine.decide(graphs, state, step, at)
    assert events, f"{step} changed nothing"


@dataclass(slots=True)
class Walked:
    """`ends` of whole courses; `cut`: there are more of them than could be followed."""

    ends: int = 0
    cut: bool = False


def walk(graphs: Graphs, state: TraceState, now: int, most: int) -> Walked:
    """Follows every outcome of the first thing that the trace waits for, limits left out, and so
    on, depth first, for up to `most` steps. A trace that waits for nothing and has not ended is
    an assertion's failure."""
    found, open_ = Walked(), [(now, state)]
    while open_:
        now, state = open_.pop()
        if state.status.ended:
            found.ends += 1
            continue
        if most <= 0:
            found.cut = True
            break
        first = next((wait for wait in waits_of(graphs, state) if not wait.limit), None)
        assert first is not None, f"stuck: {state}"
        for step in first.steps:
            most -= 1
            after = load(dump(state))
            take(graphs, after, max(now, first.at), step)
            open_.append((max(now, first.at), after))
    return found


def wander(graphs: Graphs, state: TraceState, now: int, random: Random, most: int) -> set[str]:
    """Follows one course to its end, with any outcome of anything that the trace waits for at
    each step: results in any order, timers in time or late, limits that are reached, workers that
    begin or disappear. Returns what happened: names of commands and timers.

    A trace that waits for nothing, or has not ended after `most` steps, is an assertion's failure.
    """
    happened: set[str] = set()
    for number in range(most):
        if state.status.ended:
            return happened
        waits = list(waits_of(graphs, state))
        assert any(not wait.limit for wait in waits), f"stuck: {state}"
        limits = [wait for wait in waits if wait.limit]
        pick = limits if limits and random.random() < 0.1 else waits
        wait = random.choice([wait for wait in pick if pick is limits or not wait.limit])
        step = random.choice(wait.steps)
        if isinstance(step, Succeeded) and random.random() < 0.1:
            step = _instead(step, number, random)
        now = max(now, wait.at)
        if not isinstance(step, Began):
            take(graphs, state, now, step)
        else:  # of no consequence where nothing limits the time in the queue
            machine.decide(graphs, state, step, now)
        happened.add(step.kind.name if isinstance(step, TimerFired) else type(step).__name__)
    raise AssertionError(f"no end after {most} steps: {state}")


def _instead(step: Succeeded, number: int, random: Random) -> Step:
    """What a worker may do before it has a result."""
    place = (step.scope, step.node, step.attempt)
    if random.random() < 0.5:
        return Began(*place, "w")
    return Lost(*place, f"w{number}", number)
