"""Tasks, traces and events to messages."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from engine.core.events import (
    AttemptBegan,
    AttemptFailed,
    AttemptLost,
    AttemptResumed,
    CallStarted,
    Event,
    HookOpened,
    NodeFailed,
    NodeSkipped,
    NodeSucceeded,
    OperatorActed,
    RoundStarted,
    ScopeKind,
    ScopeOpened,
    SleepStarted,
    TaskScheduled,
    TraceEnded,
    TraceFailing,
    TracePaused,
    TraceReleased,
    TraceResumed,
    TraceRevived,
    TraceStarted,
)
from engine.core.graph import GraphNode
from engine.core.payload import Payload, of_value
from engine.core.places import path_of
from engine.core.playbook import UNSET, Nop, kind_name
from engine.core.state import ROOT, Graphs, NodeState, ScopeState, TraceState, drawn
from engine.core.status import NodeStatus
from engine.core.waits import Wait, why
from engine.wire.values import duration, failure_message, payload_message, timestamp
from magicflow.v1 import event_pb2, task_pb2, trace_pb2, trigger_service_pb2

Running = Mapping[tuple[int, int, int], tuple[str, int]]
"""Which attempts a worker has begun: (scope, node, attempt) to (worker, milliseconds)."""


# Tasks.


def idempotency_key(trace_id: bytes, path: str) -> str:
    return f"{trace_id.hex()}/{path}"


def task_message(
    graphs: Graphs, state: TraceState, scope: int, index: int, epoch: int
) -> task_pb2.Task:
    """The task of a node's current attempt."""
    node, current = drawn(graphs, state, scope, index), state.scopes[scope].nodes[index]
    plain = node.drawn
    assert current.input is not None
    deadline = current.dispatched_at + plain.timeout if plain.timeout else 0
    path = path_of(graphs, state, scope, index)
    return task_pb2.Task(
        id=task_pb2.TaskId(trace_id=state.trace_id, node=path, attempt=current.attempt),
        function=node.function,
        input=payload_message(current.input),
        env=task_env(state, node),
        deadline=timestamp(deadline),
        heartbeat=duration(plain.heartbeat),
        epoch=epoch,
        snapshot_id=state.snapshot_id,
        playbook=f"{state.app}/{state.playbook}",
        priority=task_priority(state, node),
        before=plain.before,
        after=plain.after,
        dispatched_at=timestamp(current.dispatched_at),
        idempotency_key=idempotency_key(state.trace_id, path),
        affinity=plain.affinity,
    )


def task_priority(state: TraceState, node: GraphNode) -> int:
    """The node's own, else the trace's."""
    own = node.drawn.own_priority
    return state.priority if own is None else own


def task_env(state: TraceState, node: GraphNode) -> bytes:
    """What the function sees as env: the trace's, with the node's own on top."""
    own = node.drawn.env
    if own is UNSET:
        return of_value(state.env).data if state.env else b""
    return of_value({**state.env, **own}).data


# Traces.


def trace_message(
    graphs: Graphs,
    state: TraceState,
    offered: frozenset[str] = frozenset(),
    running: Running | None = None,
) -> trace_pb2.Trace:
    """The trace with its nodes, each followed by those inside it."""
    message = summary_message(state)
    message.nodes.extend(
        _node_message(graphs, state, scope, index, path, offered, running or {})
        for scope, index, path in _places(graphs, state)
    )
    return message


def _places(graphs: Graphs, state: TraceState) -> Iterator[tuple[int, int, str]]:
    """Every node that counts, with its path: the trace's own, those inside calls, maps and
    repeats, and compensations last."""
    yield from _below(graphs, state, ROOT)
    for number, scope in enumerate(state.scopes):
        if scope.kind is ScopeKind.COMPENSATION:
            yield from _below(graphs, state, number)


def _below(graphs: Graphs, state: TraceState, scope: int) -> Iterator[tuple[int, int, str]]:
    for index, node in enumerate(state.scopes[scope].nodes):
        yield scope, index, path_of(graphs, state, scope, index)
        if node.scope >= 0:
            yield from _below(graphs, state, node.scope)


def summary_message(state: TraceState) -> trace_pb2.Trace:
    """The trace without its nodes."""
    return trace_pb2.Trace(
        trace_id=state.trace_id.hex(),
        app=state.app,
        playbook=state.playbook,
        playbook_id=state.playbook_id,
        snapshot_id=state.snapshot_id,
        status=trace_pb2.TraceStatus.ValueType(state.status),
        input=payload_message(state.input),
        output=payload_message(state.output),
        failure=failure_message(state.failure),
        triggered_at=timestamp(state.triggered_at),
        started_at=timestamp(0 if state.start_at else state.started_at),
        ended_at=timestamp(state.ended_at),
        env=of_value(state.env).data if state.env else b"",
        triggered_by=state.by,
        start_at=timestamp(state.start_at),
        priority=state.priority,
        rerun_of=state.rerun_of.hex(),
        ending=trace_pb2.TraceStatus.ValueType(state.ending or 0),
    )


def _node_message(
    graphs: Graphs,
    state: TraceState,
    scope: int,
    index: int,
    path: str,
    offered: frozenset[str],
    running: Running,
) -> trace_pb2.NodeState:
    node, current = drawn(graphs, state, scope, index), state.scopes[scope].nodes[index]
    status, worker, wait = current.status, current.worker, None
    begun = running.get((scope, index, current.attempt))
    if status is NodeStatus.QUEUED and not current.retry_at and begun is not None:
        status, worker = NodeStatus.RUNNING, begun[0]
    else:
        wait = why(graphs, state, scope, index, offered)
    inside = _inside(state, current.scope)
    return trace_pb2.NodeState(
        path=path,
        status=trace_pb2.NodeStatus.ValueType(status),
        kind=kind_name(node.drawn.kind),
        function=node.function,
        attempt=current.attempt,
        input=payload_message(_input_of(node, current)),
        output=None if status is NodeStatus.SKIPPED else payload_message(current.output),
        failure=failure_message(current.failure),
        started_at=timestamp(current.started_at),
        ended_at=timestamp(current.ended_at),
        worker=worker,
        wait=_wait_message(wait),
        playbook=graphs.graph(inside.snapshot_id).full_name if inside else "",
        snapshot_id=inside.snapshot_id if inside else 0,
        losses=len(current.lost),
    )


def _input_of(node: GraphNode, current: NodeState) -> Payload | None:
    """A nop hands its input on, so that the state keeps one of the two."""
    return current.output if isinstance(node.drawn.kind, Nop) else current.input


def _inside(state: TraceState, scope: int) -> ScopeState | None:
    """The playbook scope that a node opened."""
    if scope < 0 or state.scopes[scope].kind is not ScopeKind.PLAYBOOK:
        return None
    return state.scopes[scope]


def _wait_message(wait: Wait | None) -> trace_pb2.WaitReason | None:
    if wait is None:
        return None
    return trace_pb2.WaitReason(
        code=trace_pb2.WaitCode.ValueType(wait.code),
        message=wait.message,
        holders=wait.holders,
        until=timestamp(wait.until),
    )


def outcome_message(state: TraceState) -> trigger_service_pb2.Outcome:
    return trigger_service_pb2.Outcome(
        status=trace_pb2.TraceStatus.ValueType(state.status),
        output=payload_message(state.output),
        failure=failure_message(state.failure),
        ended_at=timestamp(state.ended_at),
    )


def outcome_of(trace: trace_pb2.Trace) -> trigger_service_pb2.Outcome:
    """The outcome of an ended trace."""
    return trigger_service_pb2.Outcome(
        status=trace.status,
        output=trace.output if trace.HasField("output") else None,
        failure=trace.failure if trace.HasField("failure") else None,
        ended_at=trace.ended_at,
    )


# Events.


class EventWriter:
    """Writes a trace's events as messages. `state` must have seen all of them, for it knows the
    scopes that they name."""

    def __init__(self, graphs: Graphs, state: TraceState) -> None:
        self._graphs = graphs
        self._state = state

    def message(
        self, event: Event, partition: int, sequence: int, index: int, at: int
    ) -> event_pb2.Event:
        message = event_pb2.Event(
            partition=partition,
            sequence=sequence,
            index=index,
            at=timestamp(at),
            trace_id=self._state.trace_id.hex(),
        )
        name, body = self._body(event)
        getattr(message, name).CopyFrom(body)
        return message

    def _path(self, event: Any) -> str:
        return (
            path_of(self._graphs, self._state, event.scope, event.node) if event.node >= 0 else ""
        )

    def _target(self, scope: int, edge: int) -> str:
        here = self._state.scopes[scope]
        if edge < 0 or here.kind is not ScopeKind.PLAYBOOK:
            return ""
        graph = self._graphs.graph(here.snapshot_id)
        return path_of(self._graphs, self._state, scope, graph.edges[edge].target)

    def _body(self, event: Event) -> tuple[str, Any]:
        match event:
            case TraceStarted():
                return "trace_started", event_pb2.TraceStarted(
                    snapshot_id=event.snapshot_id,
                    playbook_id=event.playbook_id,
                    app=event.app,
                    playbook=event.playbook,
                    input=payload_message(event.input),
                    triggered_at=timestamp(event.triggered_at),
                    triggered_by=event.by,
                )
            case TaskScheduled():
                node = drawn(self._graphs, self._state, event.scope, event.node)
                return "task_scheduled", event_pb2.TaskScheduled(
                    node=self._path(event),
                    attempt=event.attempt,
                    input=payload_message(event.input),
                    function=node.function,
                )
            case NodeSucceeded():
                return "node_succeeded", event_pb2.NodeSucceeded(
                    node=self._path(event),
                    attempt=event.attempt,
                    output=payload_message(event.output),
                    env=event.env,
                    taken=[self._target(event.scope, edge) for edge in event.taken],
                    worker=event.worker,
                    began_at=timestamp(event.began_at),
                )
            case AttemptFailed():
                return "attempt_failed", event_pb2.AttemptFailed(
                    node=self._path(event),
                    attempt=event.attempt,
                    failure=failure_message(event.failure),
                    retry_at=timestamp(event.retry_at),
                    worker=event.worker,
                )
            case NodeFailed():
                return "node_failed", event_pb2.NodeFailed(
                    node=self._path(event),
                    attempt=event.attempt,
                    failure=failure_message(event.failure),
                    taken=self._target(event.scope, event.taken),
                    worker=event.worker,
                )
            case NodeSkipped():
                return "node_skipped", event_pb2.NodeSkipped(node=self._path(event))
            case TraceEnded():
                return "trace_ended", event_pb2.TraceEnded(
                    status=event.status.name,
                    output=payload_message(event.output),
                    failure=failure_message(event.failure),
                )
            case OperatorActed():
                return "operator_acted", event_pb2.OperatorActed(
                    verb=event.verb, node=self._path(event), by=event.by, why=event.why
                )
            case _:
                return self._rarer(event)

    def _rarer(self, event: Event) -> tuple[str, Any]:
        match event:
            case CallStarted():
                return "call_started", event_pb2.CallStarted(
                    node=self._path(event),
                    attempt=event.attempt,
                    input=payload_message(event.input),
                )
            case ScopeOpened():
                return "scope_opened", event_pb2.ScopeOpened(
                    node=self._path(event),
                    kind=event.kind.name.lower(),
                    snapshot_id=event.snapshot_id,
                )
            case RoundStarted():
                here = self._state.scopes[event.scope]
                path = path_of(self._graphs, self._state, here.parent, here.node)
                return "round_started", event_pb2.RoundStarted(node=path)
            case HookOpened():
                return "hook_opened", event_pb2.HookOpened(
                    node=self._path(event),
                    expires_at=timestamp(event.due_at),
                    input=payload_message(event.input),
                    output=payload_message(event.output),
                    env=event.env,
                    worker=event.worker,
                )
            case SleepStarted():
                return "sleep_started", event_pb2.SleepStarted(
                    node=self._path(event), until=timestamp(event.due_at)
                )
            case AttemptBegan():
                return "attempt_began", event_pb2.AttemptBegan(
                    node=self._path(event), attempt=event.attempt, worker=event.worker
                )
            case AttemptLost():
                return "attempt_lost", event_pb2.AttemptLost(
                    node=self._path(event), attempt=event.attempt, worker=event.worker
                )
            case AttemptResumed():
                return "attempt_resumed", event_pb2.AttemptResumed(
                    node=self._path(event), attempt=event.attempt, worker=event.worker
                )
            case TracePaused():
                return "trace_paused", event_pb2.TracePaused()
            case TraceResumed():
                return "trace_resumed", event_pb2.TraceResumed()
            case TraceReleased():
                return "trace_released", event_pb2.TraceReleased()
            case TraceFailing():
                return "trace_failing", event_pb2.TraceFailing(
                    status=event.status.name,
                    failure=failure_message(event.failure),
                    undo=[path_of(self._graphs, self._state, *place) for place in event.undo],
                )
            case TraceRevived():
                return "trace_revived", event_pb2.TraceRevived()
            case _:
                raise AssertionError(f"no message for {type(event).__name__}")
