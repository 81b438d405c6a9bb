"""What a rerun takes over from the trace that it repeats."""

from __future__ import annotations

from engine.core.graph import Graph
from engine.core.machine import Outcome
from engine.core.state import Graphs, TraceState
from engine.core.status import NodeStatus


class NoSuchNode(ValueError):
    """The snapshot has no node to begin at."""


def outcomes_before(
    graphs: Graphs, former: TraceState, snapshot: Graph, node: str
) -> dict[int, Outcome]:
    """The outcomes of every settled node that does not come after `node`, by the place of the
    node of the same code in the snapshot that runs now. Skipped ones follow from the others.

    Errors: `NoSuchNode`.
    """
    if not node:
        return {}
    start = snapshot.by_code.get(node)
    if start is None:
        raise NoSuchNode(f"{snapshot.full_name}@{snapshot.snapshot_id} has no node {node}")
    anew = _from(snapshot, start)
    taken: dict[int, Outcome] = {}
    for drawn, state in zip(graphs.graph(former.snapshot_id).nodes, former.nodes, strict=True):
        place = snapshot.by_code.get(drawn.code)
        if place is None or place in anew:
            continue
        if state.status is NodeStatus.SUCCEEDED and state.output is not None:
            taken[place] = state.output
        elif state.failure is not None and state.handled:
            taken[place] = state.failure
    return taken


def _from(graph: Graph, start: int) -> set[int]:
    """The node and everything that comes after it."""
    found, open_ = {start}, [start]
    while open_:
        for edge in graph.nodes[open_.pop()].outgoing:
            if edge.target not in found:
                found.add(edge.target)
                open_.append(edge.target)
    return found
