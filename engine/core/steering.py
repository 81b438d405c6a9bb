"""What an operator may do to a trace: `steer(graphs, state, act, now) -> events`.

Each act is recorded with who and why, and what it causes are events like any others. An act that
the state does not allow is refused with the exact reason, and nothing is recorded.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum

from msgspec.structs import replace

from engine.core.events import (
    Event,
    OperatorActed,
    TracePaused,
    TraceResumed,
    TraceRevived,
    TraceStarted,
)
from engine.core.failure import Code, Failure
from engine.core.machine import MAX_PAYLOAD, Outcome, Turn, start
from engine.core.payload import NULL, Payload
from engine.core.places import Place, find
from engine.core.playbook import Hook
from engine.core.refusal import Refused as Refused
from engine.core.reruns import setters, unpack
from engine.core.state import (
    ROOT,
    Graphs,
    NodeState,
    TraceState,
    dump,
    load,
    revive,
    unhandled,
)
from engine.core.status import NodeStatus, TraceStatus


class Verb(StrEnum):
    SIGNAL = "signal"
    ABORT = "abort"
    PAUSE = "pause"
    RESUME = "resume"
    COMPLETE = "complete"
    FAIL = "fail"
    SKIP = "skip"
    RETRY = "retry"
    RERUN = "rerun"  # recorded in the new trace


@dataclass(frozen=True, slots=True)
class Act:
    """`node` is a path, for verbs that need one; `payload` a signal's or a completion's;
    `approve` is a signal's decision; `nodes` limits a retry."""

    verb: Verb
    by: str
    why: str = ""
    node: str = ""
    payload: Payload | None = None
    failure: Failure | None = None
    approve: bool = True
    compensate: bool = False
    nodes: tuple[str, ...] = ()


def steer(graphs: Graphs, state: TraceState, act: Act, now: int) -> list[Event]:
    """The events of an act on a live trace. Errors: `Refused`, `Undecided`."""
    if state.status.ended:
        raise Refused("TRACE_ENDED", f"the trace has ended: {state.status.name}")
    with Turn(graphs, state, now) as turn:
        match act.verb:
            case Verb.PAUSE:
                _pause(turn, act)
            case Verb.RESUME:
                _resume(turn, act)
            case Verb.ABORT:
                _abort(turn, act)
            case Verb.SIGNAL:
                _signal(turn, act)
            case Verb.COMPLETE:
                _complete(turn, act)
            case Verb.FAIL:
                _fail(turn, act)
            case Verb.SKIP:
                _skip(turn, act)
            case Verb.RETRY:
                raise Refused("TRACE_STATE", f"the trace is {state.status.name}: it has not ended")
            case Verb.RERUN:
                raise AssertionError("a rerun is a trigger")
        turn.run()
    return turn.events


def rerun(
    graphs: Graphs,
    trace_id: bytes,
    started: TraceStarted,
    act: Act,
    outcomes: Mapping[int, Outcome],
    now: int,
) -> tuple[TraceState, list[Event]]:
    """The state and the first events of a trace that begins at a node of another. The act's
    payload replaces the node's input; `outcomes` are those of `reruns.outcomes_before`."""
    place = graphs.graph(started.snapshot_id).by_code.get(act.node, -1)
    if place >= 0 and act.payload is not None:
        started = replace(started, patched=place, patch=act.payload)
    taken = {place: unpack(outcome) for place, outcome in outcomes.items()}
    started = replace(started, setters=setters(taken))
    record = OperatorActed(act.verb, act.by, act.why, place)
    return start(graphs, trace_id, started, now, taken, record)


def retry(graphs: Graphs, ended: TraceState, act: Act, now: int) -> tuple[TraceState, list[Event]]:
    """The state and the first events of an ended trace that runs again from what failed.
    Errors: `Refused`, `Undecided`."""
    _check_retry(graphs, ended, act)
    state = load(dump(ended))
    revive(state, now)
    with Turn(graphs, state, now) as turn:
        turn.events.append(TraceRevived(dump(state)))
        turn.emit(OperatorActed(act.verb, act.by, act.why))
        turn.look_everywhere()
        turn.run()
    return state, turn.events


def _check_retry(graphs: Graphs, state: TraceState, act: Act) -> None:
    if not state.status.ended:
        raise Refused("TRACE_STATE", f"the trace is {state.status.name}: it has not ended")
    if state.status is TraceStatus.SUCCEEDED:
        mend = "rerun it from a node instead"
        raise Refused("TRACE_STATE", "the trace has succeeded: nothing failed", mend)
    if any(scope.undo for scope in state.scopes):
        message = "compensations have undone what the failed nodes rest on"
        raise Refused("TRACE_STATE", message, "rerun it from the start, without a node")
    if not act.nodes:
        return
    failed = {place for place in unhandled(state) if place[0] == ROOT}
    named = {_place(graphs, state, path) for path in act.nodes}
    for path in act.nodes:
        place = _place(graphs, state, path)
        status = state.scopes[place[0]].nodes[place[1]].status
        if place not in failed and place not in set(unhandled(state)):
            raise Refused("NODE_STATE", f"{path} is {status.name}: no failure to retry")
    left = failed - {(scope, node) for scope, node in named} - _enclosing(state, named)
    if left:
        graph = graphs.graph(state.snapshot_id)
        others = ", ".join(sorted(graph.nodes[node].code for _, node in left))
        message = f"{others} failed too, and nothing handles it"
        raise Refused("NODE_STATE", message, "name it as well, or name none to retry all")


def _enclosing(state: TraceState, places: set[Place]) -> set[Place]:
    found: set[Place] = set()
    for scope, _ in places:
        while state.scopes[scope].parent >= 0:
            here = state.scopes[scope]
            found.add((here.parent, here.node))
            scope = here.parent
    return found


def _pause(turn: Turn, act: Act) -> None:
    if turn.state.status is TraceStatus.PAUSED:
        raise Refused("TRACE_STATE", "the trace is paused already")
    _record(turn, act)
    turn.emit(TracePaused(act.by))


def _resume(turn: Turn, act: Act) -> None:
    if turn.state.status is not TraceStatus.PAUSED:
        raise Refused("TRACE_STATE", f"the trace is {turn.state.status.name}, not paused")
    _record(turn, act)
    turn.emit(TraceResumed())
    turn.look_everywhere()


def _abort(turn: Turn, act: Act) -> None:
    _record(turn, act)
    message = f"aborted by {act.by}" + (f": {act.why}" if act.why else "")
    turn.end(TraceStatus.ABORTED, Failure(Code.ABORTED, message), act.compensate)


def _signal(turn: Turn, act: Act) -> None:
    scope, index = place = _place(turn.graphs, turn.state, act.node)
    node, state = turn.drawn(scope, index), _state(turn, place)
    if state.status is not NodeStatus.PAUSED:
        is_hook = isinstance(node.drawn.kind, Hook) or node.drawn.hook_after
        what = "it does not wait for a signal now" if is_hook else "it is no hook"
        raise Refused("NODE_STATE", f"{act.node} is {state.status.name}: {what}")
    _record(turn, act, place)
    if act.approve:
        kept = state.output if node.drawn.hook_after else NULL
        output = act.payload if act.payload is not None else kept or NULL
        turn.succeed(scope, index, state.attempt, output, b"", state.worker, state.began_at)
        return
    message = act.why or f"rejected by {act.by}"
    failure = Failure(Code.REJECTED, message, details=act.payload)
    turn.fail(scope, index, state.attempt, failure)


def _complete(turn: Turn, act: Act) -> None:
    place = _under_way(turn, act)
    output = act.payload or NULL
    if len(output.data) > MAX_PAYLOAD:
        message = f"the output has {len(output.data)} bytes; {MAX_PAYLOAD} are allowed"
        raise Refused("PAYLOAD_TOO_LARGE", message)
    _record(turn, act, place)
    turn.succeed(*place, _state(turn, place).attempt, output)


def _fail(turn: Turn, act: Act) -> None:
    place = _under_way(turn, act)
    given = act.failure or Failure("")
    code = given.code or Code.FAILED_BY_OPERATOR
    message = given.message or act.why or f"failed by {act.by}"
    _record(turn, act, place)
    failure = Failure(code, message, details=given.details)
    turn.fail(*place, _state(turn, place).attempt, failure)


def _skip(turn: Turn, act: Act) -> None:
    place = _place(turn.graphs, turn.state, act.node)
    _check_open(turn, act, place)
    _record(turn, act, place)
    turn.skip(*place)


def _under_way(turn: Turn, act: Act) -> Place:
    place = _place(turn.graphs, turn.state, act.node)
    _check_open(turn, act, place)
    if _state(turn, place).status is NodeStatus.PENDING:
        message = f"{act.node} is PENDING: the trace has not reached it yet"
        raise Refused("NODE_STATE", message, "skip it, or wait until it is reached")
    return place


def _check_open(turn: Turn, act: Act, place: Place) -> None:
    status = _state(turn, place).status
    if status.settled or turn.state.scopes[place[0]].closed:
        raise Refused("NODE_STATE", f"{act.node} is {status.name}: it has settled")


def _place(graphs: Graphs, state: TraceState, path: str) -> Place:
    place = find(graphs, state, path)
    if place is None:
        codes = ", ".join(node.code for node in graphs.graph(state.snapshot_id).nodes[:20])
        message = f"the trace has no node {path}"
        raise Refused("NODE_NOT_FOUND", message, f"its own nodes are {codes}")
    return place


def _state(turn: Turn, place: Place) -> NodeState:
    return turn.state.scopes[place[0]].nodes[place[1]]


def _record(turn: Turn, act: Act, place: Place = (ROOT, -1)) -> None:
    scope, node = place
    turn.emit(OperatorActed(act.verb, act.by, act.why, node, scope))
