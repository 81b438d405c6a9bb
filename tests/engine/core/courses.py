"""Every course that a trace can take, with each outcome of each thing that it waits for."""

from __future__ import annotations

from engine.core import machine, steering
from engine.core.effects import Dispatch, Effect, Lookup, TimerKind, Wake, owed
from engine.core.failure import Failure
from engine.core.machine import Call, Failed, Succeeded, TimerFired
from engine.core.payload import of_value
from engine.core.places import path_of
from engine.core.state import Graphs, TraceState, dump, load
from engine.core.status import NodeStatus
from engine.core.steering import Act, Verb

OUTPUTS = (of_value(1), of_value({"x": 1}), of_value(None))
FAILURES = (Failure("BOOM"), Failure("BUSY", retryable=True))
LIMITS = (TimerKind.TRACE, TimerKind.ATTEMPT, TimerKind.TOTAL, TimerKind.QUEUE)

Step = machine.Command | Act


def steps_of(graphs: Graphs, state: TraceState) -> list[tuple[int, Step]]:
    """What the world may do about the first thing that the trace waits for, each with the time
    at which it does so at the earliest. Empty: the trace waits for nothing."""
    waits = [e for e in owed(graphs, state) if not (isinstance(e, Wake) and e.kind in LIMITS)]
    for effect in waits:
        return _answers(effect)
    for number, scope in enumerate(state.scopes):
        for index, node in enumerate(scope.nodes):
            if not scope.closed and node.status is NodeStatus.PAUSED:
                path = path_of(graphs, state, number, index)
                decisions = (True, False)
                return [(0, Act(Verb.SIGNAL, "ann", node=path, approve=d)) for d in decisions]
    return []


def _answers(effect: Effect) -> list[tuple[int, Step]]:
    if isinstance(effect, Dispatch):
        place = (effect.scope, effect.node, effect.attempt)
        ends: list[Step] = [Succeeded(*place, output, b"", "w") for output in OUTPUTS]
        return [(0, end) for end in (*ends, *(Failed(*place, f, "w") for f in FAILURES))]
    if isinstance(effect, Lookup):
        return [(0, Call(effect.scope, effect.node))]
    assert isinstance(effect, Wake)
    fired = TimerFired(effect.kind, effect.scope, effect.node, effect.attempt)
    return [(effect.at, fired)]


def take(graphs: Graphs, state: TraceState, at: int, step: Step) -> TraceState:
    """The state after a step, in a copy."""
    copy = load(dump(state))
    if isinstance(step, Act):
        steering.steer(graphs, copy, step, at)
    else:
        machine.decide(graphs, copy, step, at)
    return copy


def walk(graphs: Graphs, state: TraceState, now: int, most: int) -> int:
    """Follows up to `most` steps of all courses, depth first, and returns how many ends it came
    to. A trace that waits for nothing and has not ended is an assertion's failure."""
    ends, open_ = 0, [(now, state)]
    while open_ and most:
        now, state = open_.pop()
        if state.status.ended:
            ends += 1
            continue
        steps = steps_of(graphs, state)
        assert steps, f"stuck: {state}"
        before = dump(state)
        for at, step in steps:
            most = max(0, most - 1)
            after = take(graphs, state, max(now, at), step)
            assert dump(after) != before, f"{step} changed nothing"
            open_.append((max(now, at), after))
    return ends
