"""Why a node does not run, as a typed reason."""

from __future__ import annotations

from dataclasses import dataclass
from enum import IntEnum

from engine.core.events import ScopeKind
from engine.core.moments import text_of
from engine.core.playbook import Hook, Map
from engine.core.state import Graphs, NodeState, TraceState, drawn
from engine.core.status import NodeStatus, TraceStatus


class WaitCode(IntEnum):
    """The numbers are those of the contracts."""

    EDGES = 1
    WORKER_BUSY = 2
    NO_WORKER = 3
    BACKOFF = 4
    SIGNAL = 5
    SLEEP = 6
    PAUSED = 7
    START = 11
    WINDOW = 12
    CALL = 13
    CHILDREN = 14


@dataclass(frozen=True, slots=True)
class Wait:
    """`until` is milliseconds since 1970, 0 when time alone does not release it."""

    code: WaitCode
    message: str
    holders: tuple[str, ...] = ()
    until: int = 0


def why(
    graphs: Graphs, state: TraceState, scope: int, index: int, offered: frozenset[str]
) -> Wait | None:
    """The reason, or None for a node that has settled. `offered` names the functions that live
    workers offer now."""
    current = state.scopes[scope].nodes[index]
    if current.status.settled or state.status.ended:
        return None
    if state.status is TraceStatus.PAUSED:
        who = state.paused_by or "somebody"
        message = f"{who} paused the trace at {text_of(state.paused_at)}"
        return Wait(WaitCode.PAUSED, message, (state.paused_by,) if state.paused_by else ())
    match current.status:
        case NodeStatus.PENDING:
            return _pending(graphs, state, scope, index)
        case NodeStatus.PAUSED:
            return _hook(graphs, state, scope, index, current)
        case NodeStatus.SLEEPING:
            return Wait(WaitCode.SLEEP, "sleeps", (), current.due_at)
        case NodeStatus.RUNNING:
            return _call(graphs, state, scope, index, current)
        case _:
            return _queued(graphs, state, scope, index, current, offered)


def _pending(graphs: Graphs, state: TraceState, scope: int, index: int) -> Wait:
    if state.start_at:
        return Wait(WaitCode.START, "the trace has not begun yet", (), state.start_at)
    here = state.scopes[scope]
    if here.kind is ScopeKind.MAP:
        kind = drawn(graphs, state, here.parent, here.node).drawn.kind
        assert isinstance(kind, Map)
        return Wait(WaitCode.WINDOW, f"waits for one of {kind.concurrency} places in the map")
    if here.kind is not ScopeKind.PLAYBOOK:
        return Wait(WaitCode.WINDOW, "waits for the one before")
    nodes = graphs.graph(here.snapshot_id).nodes
    open_edges = {
        nodes[edge.source].code
        for edge in nodes[index].incoming
        if not here.nodes[edge.source].status.settled
    }
    names = tuple(sorted(open_edges))
    return Wait(WaitCode.EDGES, f"waits for {', '.join(names)}", names)


def _hook(graphs: Graphs, state: TraceState, scope: int, index: int, current: NodeState) -> Wait:
    kind = drawn(graphs, state, scope, index).drawn.kind
    message = "waits for a signal" if isinstance(kind, Hook) else "has run; waits for a signal"
    return Wait(WaitCode.SIGNAL, message, (), current.due_at)


def _call(graphs: Graphs, state: TraceState, scope: int, index: int, current: NodeState) -> Wait:
    if current.scope < 0 or state.scopes[current.scope].closed:
        return Wait(WaitCode.CALL, "the snapshot to call is being looked up")
    inner = state.scopes[current.scope]
    settled = len(inner.nodes) - inner.open
    return Wait(WaitCode.CHILDREN, f"{settled} of {len(inner.nodes)} inside have settled")


def _queued(
    graphs: Graphs,
    state: TraceState,
    scope: int,
    index: int,
    current: NodeState,
    offered: frozenset[str],
) -> Wait:
    if current.retry_at:
        cause = f" after {current.failure.code}" if current.failure else ""
        message = f"attempt {current.attempt + 1} follows{cause}"
        return Wait(WaitCode.BACKOFF, message, (), current.retry_at)
    function = drawn(graphs, state, scope, index).function
    if function not in offered:
        return Wait(WaitCode.NO_WORKER, f"no live worker offers {function}", (function,))
    return Wait(WaitCode.WORKER_BUSY, f"waits for a free slot for {function}", (function,))
