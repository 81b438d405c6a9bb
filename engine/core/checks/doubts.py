"""What cannot be relied on in a graph that has faults, so that one fault does not show as many.

An edge is in doubt that the document does not tell whole, that begins or ends nowhere, or that may
be one too many in a circle. Where it leads to, more may come than the others tell.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from engine.core.playbook import Edge, Playbook


@dataclass(frozen=True, slots=True)
class Doubts:
    """`edges`: places of edges. `nodes`: those that may have other sources than it seems. Both
    empty for a faultless graph."""

    edges: frozenset[int] = frozenset()
    nodes: frozenset[str] = frozenset()


def doubts_of(playbook: Playbook, untold: frozenset[int]) -> Doubts:
    """`untold` are places of edges whose kind or ends could not be read."""
    codes = {node.code for node in playbook.nodes}
    edges = {
        index
        for index, edge in enumerate(playbook.edges)
        if index in untold or edge.source not in codes or edge.target not in codes
    }
    rest = {i: edge for i, edge in enumerate(playbook.edges) if i not in edges}
    core = _circling(rest.values())
    edges |= {i for i, edge in rest.items() if edge.source in core and edge.target in core}
    targets = {playbook.edges[index].target for index in edges}
    return Doubts(frozenset(edges), frozenset(codes if targets - codes else targets))


def _circling(edges: Iterable[Edge]) -> set[str]:
    """The nodes on circles and between them: what is left after those that nothing leads to, and
    those that lead nowhere, have gone, again and again."""
    edges = list(edges)
    core = {code for edge in edges for code in (edge.source, edge.target)}
    for forward in (True, False):
        core -= _without_circles(core, edges, forward)
    return core


def _without_circles(core: set[str], edges: list[Edge], forward: bool) -> set[str]:
    """The nodes that only nodes outside of circles lead to; backward: that they lead to."""
    counts = dict.fromkeys(core, 0)
    after: dict[str, list[str]] = {code: [] for code in core}
    for edge in edges:
        one, other = (edge.source, edge.target) if forward else (edge.target, edge.source)
        if one in core and other in core:
            counts[other] += 1
            after[one].append(other)
    free = [code for code, count in counts.items() if not count]
    gone = set(free)
    while free:
        for code in after[free.pop()]:
            counts[code] -= 1
            if not counts[code]:
                gone.add(code)
                free.append(code)
    return gone
