"""A drawing as SVG: one file without scripts, links or fonts, for light and dark pages."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from xml.etree import ElementTree as ET

from cli.drawing.elements import add, label_at, rect
from cli.drawing.layers import Part
from cli.drawing.layout import Line, Spaces, Spot, arrange
from cli.drawing.legend import add_legend
from cli.drawing.model import Arrow, Drawing, Shape
from cli.drawing.progress import Mark, Passage, Progress
from cli.drawing.states import look_of, state_word
from cli.drawing.stylesheet import EM, css_name, stylesheet, width_of
from cli.drawing.words import fold, shorten, widest

_SPACES = Spaces(items=36, bends=22, ports=16)
_MARGIN = 24
_LINE = 18  # pixels from one text line to the next in a box
_PAD = 14
_CODE, _SMALL, _TINY = 14, 12, 10  # font sizes
_NARROWEST = 420
_MOST_PORTS = 60


@dataclass(frozen=True, slots=True)
class _Card:
    """A node's box: its lines of text with their classes, and its size."""

    lines: tuple[tuple[str, str], ...]
    kind: str
    width: int
    height: int


def render(drawing: Drawing, progress: Progress | None = None) -> str:
    """The text of an SVG file; with a progress, coloured by state."""
    return _Writer(drawing, progress).svg()


class _Writer:
    def __init__(self, drawing: Drawing, progress: Progress | None) -> None:
        self._drawing = drawing
        self._progress = progress
        self._cards = self._make_cards()
        self._labels = [fold(arrow.label, 30, 2) for arrow in drawing.arrows]
        self._layout = arrange(
            drawing,
            [card.width for card in self._cards],
            [width_of(widest(label), _SMALL) + 16 if label else 0 for label in self._labels],
            _SPACES,
        )
        self._lines: list[list[Line]] = [[] for _ in drawing.arrows]  # from source to target
        for line in self._layout.lines:
            self._lines[line.edge].append(line)
        self._width = max(self._layout.width, _NARROWEST) + 2 * _MARGIN
        self._left = (self._width - self._layout.width) // 2
        self._rows: list[tuple[int, int]] = []  # top and bottom of each layer

    def svg(self) -> str:
        root = ET.Element("svg", {"xmlns": "http://www.w3.org/2000/svg", "role": "img"})
        add(root, "title", self._drawing.title)
        add(root, "desc", "\n".join(self._sentences()))
        add(root, "style", stylesheet())
        sheet = add(root, "rect", css="sheet")
        self._rows = self._stack(self._header(root))
        edges = add(root, "g", css="edges")
        for number, arrow in enumerate(self._drawing.arrows):
            self._edge(edges, number, arrow)
        nodes = add(root, "g", css="nodes")
        for spot in self._layout.spots:
            if spot.part is Part.NODE:
                self._node(nodes, spot)
        bottom = (self._rows[-1][1] if self._rows else 60) + 32
        states = {mark.state for mark in self._marks().values()}
        height = add_legend(root, self._drawing, states, _MARGIN, bottom, self._width) + _MARGIN
        root.set("class", "magicflow")
        root.set("viewBox", f"0 0 {self._width} {height}")
        root.set("width", str(self._width))
        root.set("height", str(height))
        sheet.set("width", str(self._width))
        sheet.set("height", str(height))
        ET.indent(root, " ")
        return '<?xml version="1.0" encoding="UTF-8"?>\n' + ET.tostring(root, "unicode") + "\n"

    def _marks(self) -> dict[str, Mark]:
        return self._progress.marks if self._progress is not None else {}

    def _sentences(self) -> list[str]:
        """The picture in words, for those who do not see it."""
        told = [self._drawing.description] if self._drawing.description else []
        if self._progress is not None:
            told += [text for text in (self._progress.headline, self._progress.failure) if text]
        for shape in self._drawing.shapes:
            mark = self._marks().get(shape.code)
            state = f": {state_word(mark.state)}" if mark else ""
            told.append(f"{shape.code}, {shape.kind} {shape.callee}".rstrip() + state)
        return told + [arrow.sentence for arrow in self._drawing.arrows]

    # Sizes.

    def _make_cards(self) -> list[_Card]:
        arriving = Counter(arrow.target for arrow in self._drawing.arrows)
        return [
            _card(shape, self._marks().get(shape.code), arriving[place])
            for place, shape in enumerate(self._drawing.shapes)
        ]

    def _height(self, spot: Spot) -> int:
        if spot.part is Part.NODE:
            return self._cards[spot.index].height
        return _label_height(self._labels[spot.index]) if spot.part is Part.LABEL else 0

    def _stack(self, top: int) -> list[tuple[int, int]]:
        """Top and bottom of each layer; lines that go far aside get more room to do it."""
        spots = self._layout.spots
        reach = [0] * len(self._layout.rows)
        for line in self._layout.lines:
            rank = spots[line.upper].rank
            reach[rank] = max(reach[rank], abs(line.end - line.start))
        rows = []
        for rank, row in enumerate(self._layout.rows):
            bottom = top + max(self._height(spots[place]) for place in row)
            rows.append((top, bottom))
            top = bottom + min(34 + reach[rank] // 10, 90)
        return rows

    # Parts.

    def _header(self, root: ET.Element) -> int:
        cells = int((self._width - 2 * _MARGIN) / (_SMALL * EM))
        y = _MARGIN + 14
        label_at(root, _MARGIN, y, shorten(self._drawing.title, cells), "title")
        lines = [("note", line) for line in fold(self._drawing.description, cells, 3)]
        if self._progress is not None:
            css = f"word s-{css_name(self._progress.state)}"
            lines.append((css, f"{look_of(self._progress.state).sign} {self._progress.headline}"))
            failed = fold(self._progress.failure, cells, 2)
            lines += [("word s-failed", line) for line in failed]
        for css, line in lines:
            y += _LINE
            label_at(root, _MARGIN, y, line, css)
        return y + 26

    def _node(self, parent: ET.Element, spot: Spot) -> None:
        shape, card = self._drawing.shapes[spot.index], self._cards[spot.index]
        mark = self._marks().get(shape.code)
        state = f" s-{css_name(mark.state)}" if mark else ""
        group = add(parent, "g", css=f"node k-{shape.kind}{state}")
        group.set("data-node", shape.code)
        add(group, "title", "\n".join(_about(shape, mark)))
        x, y = self._left + spot.left, self._node_top(spot)
        rect(group, x, y, spot.width, card.height, 9, "box")
        label_at(group, x + spot.width - _PAD, y + 22, card.kind, "kind", anchor="end")
        for number, (css, line) in enumerate(card.lines):
            label_at(group, x + _PAD, y + 23 + number * _LINE, line, css)

    def _node_top(self, spot: Spot) -> int:
        top, bottom = self._rows[spot.rank]
        return top + (bottom - top - self._height(spot)) // 2

    def _edge(self, parent: ET.Element, number: int, arrow: Arrow) -> None:
        passage = Passage.OPEN
        if self._progress is not None:
            passage = self._progress.passages[number]
        group = add(parent, "g", css=f"edge e-{arrow.style} {passage}")
        group.set("data-edge", str(number))
        add(group, "title", arrow.sentence)
        lines = self._lines[number]
        x, y = self._left + lines[-1].end, self._node_top(self._layout.spots[lines[-1].lower])
        path = " ".join(self._piece(line) for line in lines)
        add(group, "path", css="line").set("d", f"{path} V{y - 8}")
        add(group, "path", css="head").set("d", f"M{x - 5} {y - 9} L{x + 5} {y - 9} L{x} {y} Z")
        for line in lines:
            spot = self._layout.spots[line.lower]
            if spot.part is Part.LABEL:
                self._label(group, spot)

    def _piece(self, line: Line) -> str:
        """From the lower edge of one item to the upper edge of the layer below."""
        upper, lower = self._layout.spots[line.upper], self._layout.spots[line.lower]
        begin, end = self._rows[upper.rank][1], self._rows[lower.rank][0]
        start, to = self._left + line.start, self._left + line.end
        first = ""
        if upper.part is Part.NODE:
            first = f"M{start} {self._node_top(upper) + self._height(upper)} "
        if start == to:
            return f"{first}V{end}"
        half = (begin + end) // 2
        return f"{first}V{begin} C{start} {half} {to} {half} {to} {end}"

    def _label(self, parent: ET.Element, spot: Spot) -> None:
        lines = self._labels[spot.index]
        height = _label_height(lines)
        x, y = self._left + spot.left, self._node_top(spot)
        rect(parent, x, y, spot.width, height, 8, "pill")
        for number, line in enumerate(lines):
            middle = self._left + spot.middle
            label_at(parent, middle, y + 15 + number * 15, line, "label", anchor="middle")


def _label_height(lines: list[str]) -> int:
    return 15 * len(lines) + 7


def _card(shape: Shape, mark: Mark | None, arriving: int) -> _Card:
    lines = [("code", shorten(shape.code, 40))]
    kind = f"{shape.kind} · join any" if shape.join_any else shape.kind
    if shape.callee:
        lines.append(("callee", shorten(shape.callee, 40)))
    if mark is not None:
        sign = look_of(mark.state).sign
        note = f" · {mark.note}" if mark.note else ""
        lines.append(("state", shorten(f"{sign} {state_word(mark.state)}{note}", 40)))
        if mark.failed:
            lines.append(("inner", shorten(f"failed at {mark.failed}", 40)))
    head = width_of(widest([lines[0][1]]), _CODE) + width_of(len(kind), _TINY) + 16
    body = width_of(widest([line for _, line in lines[1:]]), _SMALL)
    ports = _SPACES.ports * min(arriving, _MOST_PORTS)
    width = max(head, body, ports) + 2 * _PAD
    return _Card(tuple(lines), kind, width | 1, 18 + _LINE * len(lines))


def _about(shape: Shape, mark: Mark | None) -> list[str]:
    """The tooltip."""
    lines = [f"{shape.code}: {shape.kind} {shape.callee}".rstrip()]
    if mark is not None:
        note = f", {mark.note}" if mark.note else ""
        lines += [f"{state_word(mark.state)}{note}", *mark.facts]
    return [*lines, *shape.facts]
