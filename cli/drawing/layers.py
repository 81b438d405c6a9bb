"""A graph in layers, after Sugiyama: every node below all its sources, few lines that cross.

Written here because the libraries that do it well (igraph, grandalf) come under the GPL, and the
one that does not (fast-sugiyama) knows neither sizes of boxes nor labels.
"""

from __future__ import annotations

from bisect import bisect_right, insort
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from enum import Enum
from itertools import pairwise

SWEEPS = 12
MAX_BENDS = 20_000  # over all long edges; what is beyond is drawn straight through


class Part(Enum):
    """A bend is where a long edge passes a layer."""

    NODE = 1
    LABEL = 2
    BEND = 3


@dataclass(slots=True, eq=False)
class Item:
    """Something in a layer. `index` is the node's place, or the edge's for label and bend;
    `above` and `below` are what it is connected with in the neighbouring layers."""

    part: Part
    index: int
    rank: int
    above: list[Item] = field(default_factory=list)
    below: list[Item] = field(default_factory=list)
    place: int = 0  # in its layer, from 0


@dataclass(frozen=True, slots=True)
class Link:
    """One piece of an edge, from an item to one in the next layer. An edge that skips its bends
    is one piece over several layers."""

    edge: int
    upper: Item
    lower: Item


@dataclass(frozen=True, slots=True)
class Layers:
    """Each edge is a chain of links from its source to its target."""

    rows: tuple[list[Item], ...]
    links: tuple[Link, ...]


def layered(count: int, edges: Sequence[tuple[int, int]], labelled: Sequence[bool]) -> Layers:
    """`count` nodes in layers, with a layer between for labels where an edge has one.

    The same input gives the same layers. Errors: `ValueError` when the graph has a cycle.
    """
    depths = node_depths(count, edges)
    crowded = {depths[s] for (s, _), marked in zip(edges, labelled, strict=True) if marked}
    ranks = _ranks(max(depths, default=-1) + 1, crowded)
    nodes = [Item(Part.NODE, index, ranks[depth]) for index, depth in enumerate(depths)]
    items = list(nodes)
    links: list[Link] = []
    straight = _too_long(edges, [node.rank for node in nodes])
    for index, (source, target) in enumerate(edges):
        chain = _chain(index, nodes[source], nodes[target], labelled[index], index in straight)
        items.extend(chain[1:-1])
        links.extend(Link(index, *pair) for pair in pairwise(chain))
    for link in links:
        if link.lower.rank == link.upper.rank + 1:
            link.upper.below.append(link.lower)
            link.lower.above.append(link.upper)
    rows = _first_order(items)
    _uncross(rows)
    return Layers(tuple(rows), tuple(links))


def node_depths(count: int, edges: Sequence[tuple[int, int]]) -> list[int]:
    """The length of the longest way to each node. Errors: `ValueError` for a cycle."""
    targets: list[list[int]] = [[] for _ in range(count)]
    missing = [0] * count
    for source, target in edges:
        targets[source].append(target)
        missing[target] += 1
    depths = [0] * count
    ready = [node for node in range(count) if not missing[node]]
    for node in ready:  # grows while it is walked
        for target in targets[node]:
            depths[target] = max(depths[target], depths[node] + 1)
            missing[target] -= 1
            if not missing[target]:
                ready.append(target)
    if len(ready) < count:
        raise ValueError("the graph has a cycle")
    return depths


def _ranks(depths: int, crowded: set[int]) -> list[int]:
    """The rank of each depth: below a depth where labels begin, one rank is theirs."""
    ranks, rank = [], 0
    for depth in range(depths):
        ranks.append(rank)
        rank += 2 if depth in crowded else 1
    return ranks


def _too_long(edges: Sequence[tuple[int, int]], ranks: list[int]) -> set[int]:
    """The longest edges, when all together would have more bends than anybody can follow."""
    lengths = sorted((ranks[t] - ranks[s], i) for i, (s, t) in enumerate(edges))
    total, straight = 0, set()
    for length, index in lengths:
        total += length - 1
        if total > MAX_BENDS:
            straight.add(index)
    return straight


def _chain(index: int, source: Item, target: Item, labelled: bool, straight: bool) -> list[Item]:
    chain = [source]
    rank = source.rank + 1
    if labelled:
        chain.append(Item(Part.LABEL, index, rank))
        rank += 1
    if not straight:
        chain += [Item(Part.BEND, index, between) for between in range(rank, target.rank)]
    return [*chain, target]


def _first_order(items: list[Item]) -> list[list[Item]]:
    """Depth first in document order: a tree comes out without crossings."""
    rows: list[list[Item]] = [[] for _ in range(max((i.rank for i in items), default=-1) + 1)]
    seen: set[Item] = set()
    for start in items:
        stack = [start] if not start.above else []
        while stack:
            item = stack.pop()
            if item in seen:
                continue
            seen.add(item)
            rows[item.rank].append(item)
            stack.extend(reversed(item.below))
    for row in rows:
        _number(row)
    return rows


def _number(row: list[Item]) -> None:
    for place, item in enumerate(row):
        item.place = place


def _uncross(rows: list[list[Item]]) -> None:
    """Sweeps down and up by barycentres and exchanges of neighbours; the best order stays."""
    best, fewest = [list(row) for row in rows], crossings(rows)
    for sweep in range(SWEEPS):
        if not fewest:
            break
        down = sweep % 2 == 0
        for row in rows if down else reversed(rows):
            _by_barycentre(row, (lambda i: i.above) if down else (lambda i: i.below))
        if sum(map(len, rows)) < 2_000:
            _exchange(rows)
        now = crossings(rows)
        if now < fewest:
            best, fewest = [list(row) for row in rows], now
    for row, kept in zip(rows, best, strict=True):
        row[:] = kept
        _number(row)


def _by_barycentre(row: list[Item], near: Callable[[Item], list[Item]]) -> None:
    def centre(item: Item) -> float:
        others = near(item)
        return sum(o.place for o in others) / len(others) if others else float(item.place)

    row.sort(key=centre)
    _number(row)


def _exchange(rows: list[list[Item]]) -> None:
    """Neighbours change places where that saves crossings."""
    for row in rows:
        for place in range(len(row) - 1):
            left, right = row[place], row[place + 1]
            now = _inversions(left.above, right.above) + _inversions(left.below, right.below)
            then = _inversions(right.above, left.above) + _inversions(right.below, left.below)
            if then < now:
                row[place], row[place + 1] = right, left
                left.place, right.place = place + 1, place


def _inversions(left: list[Item], right: list[Item]) -> int:
    return sum(a.place > b.place for a in left for b in right)


def crossings(rows: Sequence[list[Item]]) -> int:
    """How many pairs of links cross."""
    total = 0
    for row in rows:
        passed: list[int] = []
        for item in row:
            ends = sorted(below.place for below in item.below)
            total += sum(len(passed) - bisect_right(passed, end) for end in ends)
            for end in ends:
                insort(passed, end)
    return total
