"""A drawing for the terminal: boxes and lines where they fit, an outline where they do not."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass

from rich.cells import cell_len
from rich.text import Text

from cli.drawing.canvas import Canvas
from cli.drawing.channels import Channel, Path, channel_of
from cli.drawing.layers import Part, node_depths
from cli.drawing.layout import Layout, Line, Spaces, Spot, arrange
from cli.drawing.model import Arrow, Drawing, Shape, Style
from cli.drawing.words import fold, printable, shorten, widest

STYLES = {
    Style.PARALLEL: "default",
    Style.CHOICE: "cyan",
    Style.OTHERWISE: "cyan",
    Style.ERROR: "red",
}
_SPACES = Spaces(items=3, bends=2, ports=2)
_NARROWEST = 9  # columns of a box
_MOST_ITEMS = 1_500  # beyond, nobody follows the lines on a terminal


@dataclass(frozen=True, slots=True)
class Sizes:
    """How wide texts may become before they are folded or cut."""

    box: int
    label: int
    label_lines: int
    callee: bool


_TRIES = (Sizes(36, 28, 2, True), Sizes(24, 18, 3, True), Sizes(20, 14, 3, False))


def draw(drawing: Drawing, width: int) -> Text:
    """At most `width` columns, if any way of drawing is so narrow; then what was cut short."""
    depths = node_depths(len(drawing.shapes), [(a.source, a.target) for a in drawing.arrows])
    crowd = max(Counter(depths).values(), default=0)
    for sizes in _TRIES if crowd * (_NARROWEST + _SPACES.items) <= width else ():
        boxes = [box_lines(shape, sizes) for shape in drawing.shapes]
        labels = [fold(arrow.label, sizes.label, sizes.label_lines) for arrow in drawing.arrows]
        layout = arrange(drawing, _box_widths(drawing, boxes), [*map(widest, labels)], _SPACES)
        if layout.width <= width and len(layout.spots) <= _MOST_ITEMS:
            picture = _Picture(drawing, layout, boxes, labels).text()
            return _with_notes(picture, drawing, labels)
    return outline(drawing)


def box_lines(shape: Shape, sizes: Sizes) -> list[str]:
    """What stands in a box."""
    lines = [shape.code, shape.kind]
    if sizes.callee and shape.callee:
        lines[1] = f"{shape.kind} {shape.callee}"
    if shape.join_any:
        lines.append("join any")
    return [shorten(line, sizes.box) for line in lines]


def _box_widths(drawing: Drawing, boxes: list[list[str]]) -> list[int]:
    """Each box has room for its text, and above for an arrow head per edge."""
    arriving = Counter(arrow.target for arrow in drawing.arrows)
    return [
        max(widest(lines) + 4, 2 * arriving[place] + 1, _NARROWEST)
        for place, lines in enumerate(boxes)
    ]


class _Picture:
    """Rows are counted from the top: a layer, the channel below it, the next layer."""

    def __init__(
        self, drawing: Drawing, layout: Layout, boxes: list[list[str]], labels: list[list[str]]
    ) -> None:
        self._drawing = drawing
        self._layout = layout
        self._boxes = boxes
        self._labels = labels
        self._canvas = Canvas()

    def text(self) -> Text:
        top = 0
        lines: dict[int, list[Line]] = {}
        for line in self._layout.lines:
            lines.setdefault(self._layout.spots[line.upper].rank, []).append(line)
        for rank, row in enumerate(self._layout.rows):
            bottom = top + max(map(self._height, row))
            for place in row:
                self._item(place, top, bottom, lines.get(rank, []))
            below = self._layout.rows[rank + 1] if rank + 1 < len(self._layout.rows) else ()
            top = self._channel(channel_of(lines.get(rank, [])), bottom, below)
        return self._canvas.text()

    def _height(self, place: int) -> int:
        spot = self._layout.spots[place]
        if spot.part is Part.BEND:
            return 1
        texts = self._boxes if spot.part is Part.NODE else self._labels
        return len(texts[spot.index]) + (2 if spot.part is Part.NODE else 0)

    def _item(self, place: int, top: int, bottom: int, leaving: list[Line]) -> None:
        spot = self._layout.spots[place]
        height = self._height(place)
        if spot.part is Part.NODE:
            self._box(spot, top)
        elif spot.part is Part.LABEL:
            self._label(spot, top)
        else:
            height = 0
        for line in leaving:
            if line.upper != place:
                continue
            style = self._style(line)
            self._canvas.down(line.start, 2 * (top + height), 2 * bottom, line.net, style)
            if spot.part is Part.NODE:
                self._canvas.put(line.start, top + height - 1, "┬", "default")

    def _box(self, spot: Spot, top: int) -> None:
        inner = spot.width - 2
        self._canvas.put(spot.left, top, "╭" + "─" * inner + "╮")
        for number, line in enumerate(self._boxes[spot.index]):
            self._canvas.put(spot.left, top + 1 + number, "│" + " " * inner + "│")
            style = "bold" if not number else "dim"
            self._canvas.put(spot.left + 2, top + 1 + number, line, style)
        last = top + 1 + len(self._boxes[spot.index])
        self._canvas.put(spot.left, last, "╰" + "─" * inner + "╯")

    def _label(self, spot: Spot, top: int) -> None:
        style = STYLES[self._drawing.arrows[spot.index].style]
        for number, line in enumerate(self._labels[spot.index]):
            left = spot.middle - cell_len(line) // 2
            self._canvas.put(left, top + number, line, style)

    def _channel(self, channel: Channel, top: int, below: tuple[int, ...]) -> int:
        """Draws the lines between two layers; returns the row of the next layer."""
        spots = self._layout.spots
        heads = any(spots[place].part is Part.NODE for place in below)
        bottom = top + channel.rows + heads
        if not channel.rows and not heads and below:
            bottom += 1
        for path in channel.paths:
            self._path(path, top, bottom)
        return bottom

    def _path(self, path: Path, top: int, bottom: int) -> None:
        line, style = path.line, self._style(path.line)
        column, height = line.start, 2 * top
        for row, to in path.turns:
            level = 2 * (top + row) + 1
            self._canvas.down(column, height, level, line.net, style)
            self._canvas.across(column, to, top + row, line.net, style)
            column, height = to, level
        self._canvas.down(column, height, 2 * bottom, line.net, style)
        if self._layout.spots[line.lower].part is Part.NODE:
            self._canvas.put(line.end, bottom - 1, "▼", style)

    def _style(self, line: Line) -> str:
        return STYLES[self._drawing.arrows[line.edge].style]


def _with_notes(picture: Text, drawing: Drawing, labels: list[list[str]]) -> Text:
    """The picture, and in full what did not fit into it."""
    for arrow, label in zip(drawing.arrows, labels, strict=True):
        if label and label[-1].endswith("…"):
            picture.append(f"\n{printable(arrow.sentence)}", STYLES[arrow.style])
    return picture


def outline(drawing: Drawing) -> Text:
    """Every node once, layer by layer, with the edges that leave it."""
    edges = [(arrow.source, arrow.target) for arrow in drawing.arrows]
    depths = node_depths(len(drawing.shapes), edges)
    leaving: dict[int, list[Arrow]] = {}
    for arrow in drawing.arrows:
        leaving.setdefault(arrow.source, []).append(arrow)
    text = Text()
    for place in sorted(range(len(depths)), key=lambda p: (depths[p], p)):
        shape = drawing.shapes[place]
        joined = " (join any)" if shape.join_any else ""
        text.append(f"{depths[place] + 1:>3}  ", "dim").append(printable(shape.code), "bold")
        text.append(f"  {printable(' '.join((shape.kind, shape.callee)).strip())}{joined}\n", "dim")
        arrows = leaving.get(place, [])
        for number, arrow in enumerate(arrows):
            sign = "└" if number == len(arrows) - 1 else "├"
            target = drawing.shapes[arrow.target].code
            label = f"  {printable(arrow.label)}" if arrow.label else ""
            text.append(f"     {sign}─▶ {target}{label}\n", STYLES[arrow.style])
    text.rstrip()
    return text
