"""What the lines and colours of an SVG drawing mean; only those that occur in it."""

from __future__ import annotations

from collections.abc import Iterator
from xml.etree import ElementTree as ET

from cli.drawing.elements import add, label_at, rect
from cli.drawing.model import Drawing, Style
from cli.drawing.states import LOOKS, look_of, state_word
from cli.drawing.stylesheet import css_name, width_of

_SAMPLE = 34  # pixels
_ROW = 24
_WORDS = {
    Style.PARALLEL: "always",
    Style.CHOICE: "first condition that is true, by priority",
    Style.OTHERWISE: "no condition was true",
    Style.ERROR: "after a failure",
}


def add_legend(
    root: ET.Element, drawing: Drawing, states: set[str], left: int, top: int, width: int
) -> int:
    """Writes it from `top` on, wrapped to the width; returns its lower end."""
    legend = add(root, "g", css="legend")
    x, y = left, top
    for css, sample, words in _entries(drawing, states):
        needed = _SAMPLE + 8 + width_of(len(words), 12)
        if x > left and x + needed > width - left:
            x, y = left, y + _ROW
        entry = add(legend, "g", css=css)
        if sample == "line":
            _line(entry, x, y)
        elif sample:
            rect(entry, x, y - 8, _SAMPLE, 16, 5, "box")
            label_at(entry, x + _SAMPLE // 2, y + 4, sample, "state", anchor="middle")
        label_at(entry, x + _SAMPLE + 8 if sample else x, y + 4, words, "note")
        x += needed + 20
    return y + 10


def _entries(drawing: Drawing, states: set[str]) -> Iterator[tuple[str, str, str]]:
    """Class, sample (`line`, a sign in a box, or none) and words."""
    used = {arrow.style for arrow in drawing.arrows}
    for style in Style:
        if style in used:
            yield f"edge e-{style}", "line", f"{style}: {_WORDS[style]}"
    if any(shape.join_any for shape in drawing.shapes):
        yield "", "", "join any: runs after the first taken edge, not after all"
    if states and used:
        yield "edge e-parallel taken", "line", "taken"
        yield "edge e-parallel dead", "line", "not taken"
    for state in sorted(states, key=[*LOOKS, *sorted(states)].index):
        yield f"node s-{css_name(state)}", look_of(state).sign, state_word(state)


def _line(parent: ET.Element, x: int, y: int) -> None:
    end = x + _SAMPLE
    add(parent, "path", css="line").set("d", f"M{x} {y} H{end - 8}")
    add(parent, "path", css="head").set("d", f"M{end - 9} {y - 5} L{end} {y} L{end - 9} {y + 5} Z")
