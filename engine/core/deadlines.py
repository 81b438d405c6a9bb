"""When the time limits of a trace and its nodes run out; 0 where there is none.

The one place that knows, for the timers that are armed and for the rules that check them. A
timer that fires earlier than its deadline says has been overtaken (by a pause, a new attempt)
and means nothing.
"""

from __future__ import annotations

from engine.core.events import ScopeKind
from engine.core.graph import GraphNode
from engine.core.playbook import Map
from engine.core.state import ROOT, Graphs, NodeState, TraceState
from engine.core.status import NodeStatus


def trace_due(graphs: Graphs, state: TraceState) -> int:
    """When the whole trace is out of time."""
    timeout = graphs.graph(state.scopes[ROOT].snapshot_id).drawn.timeout
    return state.timeout_from + timeout if timeout else 0


def attempt_due(graphs: Graphs, state: TraceState, node: GraphNode, now: NodeState) -> int:
    """When the current attempt is out of time. A map's limits are those of its items."""
    limit = attempt_limit(graphs, state, node, now)
    return now.dispatched_at + limit if limit else 0


def attempt_limit(graphs: Graphs, state: TraceState, node: GraphNode, now: NodeState) -> int:
    """Milliseconds that one attempt may take: the node's timeout or that of the playbook that
    it calls, whichever is shorter."""
    if isinstance(node.drawn.kind, Map):
        return 0
    limits = [node.drawn.timeout]
    if now.status is NodeStatus.RUNNING and now.scope >= 0:
        scope = state.scopes[now.scope]
        if scope.kind is ScopeKind.PLAYBOOK and not scope.closed:
            limits.append(graphs.graph(scope.snapshot_id).drawn.timeout)
    return min((limit for limit in limits if limit), default=0)


def queue_due(node: GraphNode, now: NodeState) -> int:
    """When a worker should have begun, or the next one after a loss."""
    limit = node.drawn.queue_timeout
    return (now.queued_at or now.dispatched_at) + limit if limit and node.function else 0


def waits_for_worker(now: NodeState) -> bool:
    """Whether nobody has begun the current attempt, or nobody anew since the last loss."""
    return not now.began_at or bool(now.queued_at)


def total_due(node: GraphNode, now: NodeState) -> int:
    """When all attempts together are out of time."""
    limit = 0 if isinstance(node.drawn.kind, Map) else node.drawn.total_timeout
    return now.total_from + limit if limit else 0
