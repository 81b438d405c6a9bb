"""A sheet of characters on which lines join, turn and cross."""

from __future__ import annotations

from dataclasses import dataclass, field

from rich.cells import cell_len
from rich.text import Text

_UP, _DOWN, _LEFT, _RIGHT = 1, 2, 4, 8
_GLYPHS = {
    _UP | _DOWN: "│",
    _LEFT | _RIGHT: "─",
    _DOWN | _RIGHT: "╭",
    _DOWN | _LEFT: "╮",
    _UP | _RIGHT: "╰",
    _UP | _LEFT: "╯",
    _UP | _DOWN | _RIGHT: "├",
    _UP | _DOWN | _LEFT: "┤",
    _DOWN | _LEFT | _RIGHT: "┬",
    _UP | _LEFT | _RIGHT: "┴",
    _UP | _DOWN | _LEFT | _RIGHT: "┼",
    _UP: "│",
    _DOWN: "│",
    _LEFT: "─",
    _RIGHT: "─",
}
_VERTICAL = _UP | _DOWN

Net = tuple[int, str]


@dataclass(slots=True)
class _Cell:
    ways: dict[Net, int] = field(default_factory=dict)
    style: str = "default"
    text: str | None = None  # "" is the right half of a wide character

    def glyph(self) -> str:
        """Where lines of two nets cross, the upright one is whole: `─│─` is no junction."""
        if self.text is not None:
            return self.text
        ways = list(self.ways.values())
        return _GLYPHS[ways[0]] if len(ways) == 1 else _GLYPHS[_VERTICAL]


class Canvas:
    """Columns and rows from 0; texts lie above lines."""

    def __init__(self) -> None:
        self._rows: dict[int, dict[int, _Cell]] = {}

    def _cell(self, column: int, row: int) -> _Cell:
        return self._rows.setdefault(row, {}).setdefault(column, _Cell())

    def put(self, column: int, row: int, text: str, style: str = "default") -> None:
        """Writes over whatever is there."""
        for character in text:
            cell = self._cell(column, row)
            cell.text, cell.style = character, style
            for half in range(1, cell_len(character)):
                self._cell(column + half, row).text = ""
            column += cell_len(character)

    def down(self, column: int, start: int, end: int, net: Net, style: str) -> None:
        """An upright line. Heights are half rows: row r begins at 2r, its middle is at 2r + 1."""
        for half in range(start, end):
            row, lower = divmod(half, 2)
            self._go(column, row, net, _DOWN if lower else _UP, style)

    def across(self, start: int, end: int, row: int, net: Net, style: str) -> None:
        """A line in one row, between the middles of two columns."""
        left, right = min(start, end), max(start, end)
        for column in range(left, right + 1):
            ways = (_LEFT if column > left else 0) | (_RIGHT if column < right else 0)
            self._go(column, row, net, ways, style)

    def _go(self, column: int, row: int, net: Net, ways: int, style: str) -> None:
        cell = self._cell(column, row)
        cell.ways[net] = cell.ways.get(net, 0) | ways
        if len(cell.ways) == 1 or cell.ways[net] & _VERTICAL:
            cell.style = style

    def text(self) -> Text:
        """The sheet, without blanks at the ends of lines."""
        text = Text(no_wrap=True, overflow="ignore")
        for row in range(max(self._rows, default=-1) + 1):
            cells, column = self._rows.get(row, {}), 0
            for at in sorted(cells):
                text.append(" " * (at - column)).append(cells[at].glyph(), cells[at].style)
                column = at + 1
            text.rstrip()
            text.append("\n")
        text.rstrip()
        return text
