"""The state of one trace, and the fold that makes it: `apply(graph, state, event, at)`.

Mutable, because it is the hottest data of the engine and lives inside one partition's turn;
nothing else may change it but `apply`. Its bytes after a replay equal those before
(`tests/engine/core/test_properties.py`).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import msgspec

from engine.core.events import (
    AttemptFailed,
    Event,
    NodeFailed,
    NodeSkipped,
    NodeSucceeded,
    OperatorActed,
    TaskScheduled,
    TraceEnded,
    TraceStarted,
)
from engine.core.failure import Code, Failure
from engine.core.graph import Graph
from engine.core.payload import NULL, Payload
from engine.core.status import NodeStatus, TraceStatus


class NodeState(msgspec.Struct, array_like=True):
    """Times are milliseconds since 1970; 0 means not yet. `unresolved` counts incoming edges
    that are neither taken nor dead; `taken` holds the sources of the taken ones, in the order
    in which they were taken."""

    unresolved: int
    status: NodeStatus = NodeStatus.PENDING
    taken: list[int] = []
    attempt: int = 0
    started_at: int = 0
    dispatched_at: int = 0
    retry_at: int = 0
    ended_at: int = 0
    began_at: int = 0
    worker: str = ""
    input: Payload | None = None
    output: Payload | None = None
    failure: Failure | None = None


class TraceState(msgspec.Struct, array_like=True):
    """`open` counts the nodes that are not settled."""

    trace_id: bytes
    playbook_id: int
    snapshot_id: int
    app: str
    playbook: str
    input: Payload
    triggered_at: int
    started_at: int
    by: str
    nodes: list[NodeState]
    open: int
    status: TraceStatus = TraceStatus.RUNNING
    env: dict[str, Any] = {}
    ended_at: int = 0
    output: Payload | None = None
    failure: Failure | None = None


_encoder = msgspec.msgpack.Encoder()
_decoder = msgspec.msgpack.Decoder(TraceState)
_env_decoder = msgspec.json.Decoder(dict[str, Any])


def dump(state: TraceState) -> bytes:
    """The state's one byte form."""
    return _encoder.encode(state)


def fits_state(env: dict[str, Any]) -> bool:
    """Whether the env can be dumped: MessagePack has no integers beyond 64 bits."""
    try:
        _encoder.encode(env)
    except OverflowError:
        return False
    return True


def load(data: bytes) -> TraceState:
    """Errors: `msgspec.MsgspecError` when the bytes are no state."""
    return _decoder.decode(data)


def begin(graph: Graph, trace_id: bytes, event: TraceStarted, at: int) -> TraceState:
    """The state right after its first event."""
    return TraceState(
        trace_id=trace_id,
        playbook_id=event.playbook_id,
        snapshot_id=event.snapshot_id,
        app=event.app,
        playbook=event.playbook,
        input=event.input,
        triggered_at=event.triggered_at,
        started_at=at,
        by=event.by,
        nodes=[NodeState(len(node.incoming)) for node in graph.nodes],
        open=len(graph.nodes),
        env=dict(graph.drawn.env),
    )


def apply(graph: Graph, state: TraceState, event: Event, at: int) -> None:
    """Changes the state by one event that was decided at `at`."""
    _APPLY[type(event)](graph, state, event, at)


def _task_scheduled(graph: Graph, state: TraceState, event: TaskScheduled, at: int) -> None:
    node = state.nodes[event.node]
    node.status = NodeStatus.QUEUED
    node.attempt = event.attempt
    node.dispatched_at = at
    node.retry_at = 0
    if event.attempt == 1:
        node.started_at = at
    if event.input is not None:
        node.input = event.input


def _node_succeeded(graph: Graph, state: TraceState, event: NodeSucceeded, at: int) -> None:
    node = state.nodes[event.node]
    node.output = event.output
    node.worker = event.worker
    node.began_at = event.began_at
    node.failure = None
    if event.env:
        state.env.update(_env_decoder.decode(event.env))
    _settle(state, node, NodeStatus.SUCCEEDED, at)
    _resolve(graph, state, event.node, event.taken)


def _attempt_failed(graph: Graph, state: TraceState, event: AttemptFailed, at: int) -> None:
    node = state.nodes[event.node]
    node.failure = event.failure
    node.retry_at = event.retry_at
    node.worker = event.worker


def _node_failed(graph: Graph, state: TraceState, event: NodeFailed, at: int) -> None:
    node = state.nodes[event.node]
    node.failure = event.failure
    node.worker = event.worker
    timed_out = event.failure.code in (Code.TIMEOUT, Code.TOTAL_TIMEOUT)
    _settle(state, node, NodeStatus.TIMED_OUT if timed_out else NodeStatus.FAILED, at)
    if event.taken >= 0:
        _resolve(graph, state, event.node, (event.taken,))


def _node_skipped(graph: Graph, state: TraceState, event: NodeSkipped, at: int) -> None:
    node = state.nodes[event.node]
    node.output = NULL
    _settle(state, node, NodeStatus.SKIPPED, at)
    _resolve(graph, state, event.node, ())


def _trace_ended(graph: Graph, state: TraceState, event: TraceEnded, at: int) -> None:
    for node in state.nodes:
        if not node.status.settled:
            _settle(state, node, NodeStatus.CANCELLED, at)
    state.status = event.status
    state.output = event.output
    state.failure = event.failure
    state.ended_at = at


def _operator_acted(graph: Graph, state: TraceState, event: OperatorActed, at: int) -> None:
    """Recorded for people; what it causes are events of their own."""


def _settle(state: TraceState, node: NodeState, status: NodeStatus, at: int) -> None:
    node.status = status
    node.retry_at = 0
    node.ended_at = at
    if not node.started_at:
        node.started_at = at
    state.open -= 1


def _resolve(graph: Graph, state: TraceState, source: int, taken: tuple[int, ...]) -> None:
    for edge in graph.nodes[source].outgoing:
        target = state.nodes[edge.target]
        target.unresolved -= 1
        if edge.index in taken:
            target.taken.append(source)


_APPLY: dict[type, Callable[[Graph, TraceState, Any, int], None]] = {
    TaskScheduled: _task_scheduled,
    NodeSucceeded: _node_succeeded,
    AttemptFailed: _attempt_failed,
    NodeFailed: _node_failed,
    NodeSkipped: _node_skipped,
    TraceEnded: _trace_ended,
    OperatorActed: _operator_acted,
}
