"""Where everything stands across: columns of boxes, labels and bends, and the ports of lines.

All positions are whole numbers of the writer's unit (characters or pixels). Widths are odd, so
that every item has a middle. Heights are the writers' own business.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import median

from cli.drawing.layers import Item, Layers, Link, Part, layered
from cli.drawing.model import Drawing, Style

ROUNDS = 12
_STAYS = 1_000  # a weight beyond all others
_PULLS = {Part.NODE: 1, Part.LABEL: 3, Part.BEND: 6}


@dataclass(frozen=True, slots=True)
class Spaces:
    """Least distances between neighbours in a layer, of anything from a bend, and of ports."""

    items: int
    bends: int
    ports: int


@dataclass(frozen=True, slots=True)
class Line:
    """One piece of an edge between neighbouring layers: it leaves at `start`, arrives at `end`.
    Lines of one `net` leave their item at the same point: those of a node's parallel edges, of
    its choices, of its error edges."""

    edge: int
    upper: int
    lower: int
    start: int
    end: int
    net: tuple[int, str]


@dataclass(frozen=True, slots=True)
class Spot:
    """A placed item; `index` is its node's place, or its edge's. `middle` is its column."""

    part: Part
    index: int
    rank: int
    middle: int
    width: int

    @property
    def left(self) -> int:
        return self.middle - self.width // 2

    @property
    def right(self) -> int:
        return self.middle + self.width // 2


@dataclass(frozen=True, slots=True)
class Layout:
    """`rows` hold places in `spots`, from left to right; `width` is that of all."""

    spots: tuple[Spot, ...]
    rows: tuple[tuple[int, ...], ...]
    lines: tuple[Line, ...]
    width: int


def arrange(
    drawing: Drawing, boxes: Sequence[int], labels: Sequence[int], spaces: Spaces
) -> Layout:
    """Places a drawing whose boxes and labels are as wide as said; a label of 0 is none.

    Nothing overlaps, and the same drawing is always placed in the same way.
    """
    edges = [(arrow.source, arrow.target) for arrow in drawing.arrows]
    layers = layered(len(boxes), edges, [width > 0 for width in labels])
    widths = _widths(layers, boxes, labels)
    middles = _middles(layers, widths, spaces)
    order = [item for row in layers.rows for item in row]
    number = {item: place for place, item in enumerate(order)}
    spots = tuple(Spot(i.part, i.index, i.rank, middles[i], widths[i]) for i in order)
    rows = tuple(tuple(number[item] for item in row) for row in layers.rows)
    lines = _lines(drawing, spots, layers.links, number, spaces.ports)
    return Layout(spots, rows, lines, max((spot.right + 1 for spot in spots), default=0))


def _widths(layers: Layers, boxes: Sequence[int], labels: Sequence[int]) -> dict[Item, int]:
    def width(item: Item) -> int:
        wanted = {Part.NODE: boxes, Part.LABEL: labels}.get(item.part)
        return wanted[item.index] | 1 if wanted is not None else 1

    return {item: width(item) for row in layers.rows for item in row}


def _middles(layers: Layers, widths: dict[Item, int], spaces: Spaces) -> dict[Item, int]:
    """Sweeps up and down: every item as near to the middle of its neighbours as room allows."""
    gaps = [_offsets(row, widths, spaces) for row in layers.rows]
    at = {
        item: offset
        for row, gap in zip(layers.rows, gaps, strict=True)
        for item, offset in zip(row, gap, strict=True)
    }
    for turn in range(ROUNDS):
        down = turn % 2 == 0
        both = turn >= ROUNDS - 2
        numbers = range(len(layers.rows))
        for number in numbers if down else reversed(numbers):
            wishes = [_wish(item, at, down, both) for item in layers.rows[number]]
            at.update(_settle(wishes, layers.rows[number], gaps[number]))
    for row, gap in zip(layers.rows, gaps, strict=True):
        at.update(_settle([_straight(item, at) for item in row], row, gap))
    left = min((at[i] - widths[i] // 2 for row in layers.rows for i in row), default=0)
    return {key: column - left for key, column in at.items()}


def _offsets(row: list[Item], widths: dict[Item, int], spaces: Spaces) -> list[int]:
    """The middles of a row that is pushed together as far as it goes."""
    offsets: list[int] = []
    for place, item in enumerate(row):
        if not place:
            offsets.append(0)
            continue
        before = row[place - 1]
        bend = Part.BEND in (before.part, item.part)
        room = spaces.bends if bend else spaces.items
        halves = widths[before] // 2 + widths[item] // 2
        offsets.append(offsets[-1] + halves + 1 + room)
    return offsets


def _wish(item: Item, at: dict[Item, int], down: bool, both: bool) -> tuple[float, int]:
    """Where it wants to be, and how much: long edges want most to be straight."""
    near = item.above + item.below if both else item.above if down else item.below
    if not near:
        return float(at[item]), 1
    if item.part is not Part.NODE:
        near = [other for other in near if other.part is not Part.NODE] or near
    return float(median(at[other] for other in near)), _PULLS[item.part] + len(near)


def _straight(item: Item, at: dict[Item, int]) -> tuple[float, int]:
    """At the end nodes stay; labels and bends go straight below what is above them alone, or else
    straight above what is below them alone."""
    if item.part is Part.NODE:
        return float(at[item]), _STAYS
    for near in (*item.above, *item.below):
        if len(near.below if near in item.above else near.above) == 1:
            return float(at[near]), 1
    return float(at[item]), _STAYS


def _settle(
    wishes: list[tuple[float, int]], row: list[Item], offsets: list[int]
) -> dict[Item, int]:
    """The columns closest to the wishes (least squares) that keep order and distances: isotonic
    regression by pooling neighbours that would overlap."""
    blocks: list[tuple[float, float, int]] = []  # sum of wishes, weight, items
    for (wish, pull), offset in zip(wishes, offsets, strict=True):
        block = ((wish - offset) * pull, float(pull), 1)
        while blocks and blocks[-1][0] / blocks[-1][1] >= block[0] / block[1]:
            before = blocks.pop()
            block = (before[0] + block[0], before[1] + block[1], before[2] + block[2])
        blocks.append(block)
    columns: list[int] = []
    for total, weight, count in blocks:
        base = round(total / weight)
        columns += [base + offset for offset in offsets[len(columns) : len(columns) + count]]
    return dict(zip(row, columns, strict=True))


def _lines(
    drawing: Drawing,
    spots: tuple[Spot, ...],
    links: Sequence[Link],
    number: dict[Item, int],
    space: int,
) -> tuple[Line, ...]:
    ends = [(number[link.upper], number[link.lower]) for link in links]
    nets = [
        (upper, _family(drawing.arrows[link.edge].style) if _is_node(spots, upper) else "")
        for link, (upper, _) in zip(links, ends, strict=True)
    ]
    starts = _starts(spots, ends, nets, space)
    alone = Counter(nets)
    aims = [
        starts[net] if alone[net] == 1 else spots[lower].middle
        for net, (_, lower) in zip(nets, ends, strict=True)
    ]
    arrivals = _arrivals(spots, ends, [starts[net] for net in nets], aims, space)
    return tuple(
        Line(link.edge, upper, lower, starts[net], end, net)
        for link, (upper, lower), net, end in zip(links, ends, nets, arrivals, strict=True)
    )


def _is_node(spots: tuple[Spot, ...], place: int) -> bool:
    return spots[place].part is Part.NODE


def _family(style: Style) -> str:
    """Which edges of a node leave it together."""
    return "choice" if style is Style.OTHERWISE else style.value


def _starts(
    spots: tuple[Spot, ...],
    ends: list[tuple[int, int]],
    nets: list[tuple[int, str]],
    space: int,
) -> dict[tuple[int, str], int]:
    """The column where each net leaves its item: the middle when it is alone."""
    targets: dict[tuple[int, str], list[int]] = {}
    for net, (_, lower) in zip(nets, ends, strict=True):
        targets.setdefault(net, []).append(spots[lower].middle)
    leaving: dict[int, list[tuple[int, str]]] = {}
    for net in targets:
        leaving.setdefault(net[0], []).append(net)
    starts: dict[tuple[int, str], int] = {}
    for upper, together in leaving.items():
        together.sort(key=lambda net: (sum(targets[net]) / len(targets[net]), net[1]))
        wishes = [spots[upper].middle] * len(together)
        for net, column in zip(together, _ports(wishes, spots[upper], space), strict=True):
            starts[net] = column
    return starts


def _arrivals(
    spots: tuple[Spot, ...],
    ends: list[tuple[int, int]],
    starts: list[int],
    aims: list[int],
    space: int,
) -> list[int]:
    """The column where each line arrives: where it aims at, as far as the box is wide. Several
    arrive in the order in which they start."""
    arriving: dict[int, list[int]] = {}
    for place, (_, lower) in enumerate(ends):
        arriving.setdefault(lower, []).append(place)
    columns = [0] * len(ends)
    for lower, places in arriving.items():
        places.sort(key=starts.__getitem__)
        wishes = [(aims if len(places) == 1 else starts)[place] for place in places]
        for place, column in zip(places, _ports(wishes, spots[lower], space), strict=True):
            columns[place] = column
    return columns


def _ports(wishes: list[int], spot: Spot, space: int) -> list[int]:
    """Columns inside the item near the wishes, apart from each other as far as it is wide."""
    if spot.part is not Part.NODE:
        return [spot.middle] * len(wishes)
    margin = min(space // 2, spot.width // 2)
    left, right = spot.left + margin, spot.right - margin
    count = len(wishes)
    step = min(space, (right - left) // (count - 1)) if count > 1 else 0
    settled: list[int] = []
    clamped = [min(max(wish, left), right) for wish in wishes]
    middle = (sum(clamped) // count) - step * (count - 1) // 2
    for place, wish in enumerate(clamped):
        low = left + place * step
        high = right - (count - 1 - place) * step
        wanted = wish if len(set(clamped)) == count else middle + place * step
        low = max(low, settled[-1] + step) if settled else low
        settled.append(min(max(wanted, low), max(high, low)))
    return settled
