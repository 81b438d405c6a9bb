"""The room between two layers of a text drawing: which line turns in which row.

Lines of one net share a trunk, a level piece from where they leave to all their ends. Trunks that
overlap get rows of their own; where one net ends in the column in which another begins, the one
that begins turns away first.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from cli.drawing.layout import Line

Net = tuple[int, str]


@dataclass(frozen=True, slots=True)
class Path:
    """The line goes down from its start; each turn is a row to go level in, and to which column."""

    line: Line
    turns: tuple[tuple[int, int], ...]


@dataclass(frozen=True, slots=True)
class Channel:
    paths: tuple[Path, ...]
    rows: int


@dataclass(slots=True, eq=False)
class _Trunk:
    net: Net
    start: int
    ends: frozenset[int]
    before: _Trunk | None = None
    row: int = -1

    @property
    def reach(self) -> tuple[int, int]:
        return min(self.start, *self.ends), max(self.start, *self.ends)

    def precedes(self, other: _Trunk) -> bool:
        """Whether this one must turn away in a row above the other's."""
        if self.before is other or self is other:
            return False
        return other.before is self or self.start in other.ends

    def meets(self, other: _Trunk) -> bool:
        left, right = self.reach
        return left <= other.reach[1] and other.reach[0] <= right


def channel_of(lines: Sequence[Line]) -> Channel:
    """Rows for the lines between two layers. Lines of different nets never lie on each other:
    they only cross."""
    placed = _placed(_trunks(lines), {c for line in lines for c in (line.start, line.end)})
    by_net: dict[Net, list[_Trunk]] = {}
    for trunk in placed:
        by_net.setdefault(trunk.net, []).append(trunk)
    paths = tuple(Path(line, _turns(line, by_net.get(line.net, []))) for line in lines)
    return Channel(paths, max((trunk.row + 1 for trunk in placed), default=0))


def _turns(line: Line, trunks: list[_Trunk]) -> tuple[tuple[int, int], ...]:
    if line.end == line.start:
        return ()
    return tuple(
        (trunk.row, line.end if trunk is trunks[-1] else next(iter(trunk.ends))) for trunk in trunks
    )


def _trunks(lines: Sequence[Line]) -> list[_Trunk]:
    """In the order in which they should be placed: those that go right from the right, those
    that go left from the left, so that they do not cross each other."""
    starts = {line.net: line.start for line in lines}
    ends: dict[Net, set[int]] = {}
    for line in lines:
        ends.setdefault(line.net, set()).add(line.end)
    trunks = [
        _Trunk(net, start, frozenset(ends[net]))
        for net, start in starts.items()
        if ends[net] != {start}
    ]
    return sorted(trunks, key=_turn_of)


def _turn_of(trunk: _Trunk) -> tuple[bool, int]:
    right = sum(trunk.ends) / len(trunk.ends) >= trunk.start
    return right, -trunk.start if right else trunk.start


def _placed(waiting: list[_Trunk], taken: set[int]) -> list[_Trunk]:
    placed: list[_Trunk] = []
    while waiting:
        free = next((t for t in waiting if not any(w.precedes(t) for w in waiting)), None)
        if free is None:  # two nets exchange columns: one makes a detour
            waiting[:1] = _split(waiting[0], taken)
            continue
        waiting.remove(free)
        free.row = _row(free, placed)
        placed.append(free)
    return placed


def _row(trunk: _Trunk, placed: list[_Trunk]) -> int:
    row = max((before.row + 1 for before in placed if before.precedes(trunk)), default=0)
    while any(other.row == row and other.meets(trunk) for other in placed):
        row += 1
    return row


def _split(trunk: _Trunk, taken: set[int]) -> list[_Trunk]:
    left, right = trunk.reach
    column = next((c for c in range(left + 1, right) if c not in taken), max(taken) + 1)
    taken.add(column)
    first = _Trunk(trunk.net, trunk.start, frozenset({column}))
    return [first, _Trunk(trunk.net, column, trunk.ends, first)]
