"""Why a node does not run, as a typed reason."""

from __future__ import annotations

from dataclasses import dataclass
from enum import IntEnum

from engine.core.graph import Graph
from engine.core.state import TraceState
from engine.core.status import NodeStatus, TraceStatus


class WaitCode(IntEnum):
    """The numbers are those of the contracts."""

    EDGES = 1
    WORKER_BUSY = 2
    NO_WORKER = 3
    BACKOFF = 4
    PAUSED = 7


@dataclass(frozen=True, slots=True)
class Wait:
    """`until` is milliseconds since 1970, 0 when time alone does not release it."""

    code: WaitCode
    message: str
    holders: tuple[str, ...] = ()
    until: int = 0


def why(graph: Graph, state: TraceState, index: int, offered: frozenset[str]) -> Wait | None:
    """The reason, or None for a node that runs or has settled. `offered` names the functions
    that live workers offer now."""
    node, current = graph.nodes[index], state.nodes[index]
    if current.status.settled or state.status.ended:
        return None
    if state.status is TraceStatus.PAUSED:
        return Wait(WaitCode.PAUSED, "the trace is paused")
    if current.status is NodeStatus.PENDING:
        open_edges = {
            graph.nodes[edge.source].code
            for edge in node.incoming
            if not state.nodes[edge.source].status.settled
        }
        names = tuple(sorted(open_edges))
        return Wait(WaitCode.EDGES, f"waits for {', '.join(names)}", names)
    if current.retry_at:
        cause = f" after {current.failure.code}" if current.failure else ""
        message = f"attempt {current.attempt + 1} follows{cause}"
        return Wait(WaitCode.BACKOFF, message, (), current.retry_at)
    if node.function not in offered:
        message = f"no live worker offers {node.function}"
        return Wait(WaitCode.NO_WORKER, message, (node.function,))
    return Wait(
        WaitCode.WORKER_BUSY, f"waits for a free slot for {node.function}", (node.function,)
    )
