"""Colours, strokes and fonts of SVG drawings, light and dark."""

from __future__ import annotations

from math import ceil

from cli.drawing.model import Style
from cli.drawing.states import LOOKS, RED

EM = 0.62  # the width of a character of any usual monospaced font, in font sizes
_STROKES = {  # colour, colour on dark, dashes
    Style.PARALLEL: ("#57606a", "#a1aab4", ""),
    Style.CHOICE: ("#7d4bd1", "#bc8cff", ""),
    Style.OTHERWISE: ("#7d4bd1", "#bc8cff", "7 4"),
    Style.ERROR: ("#cf222e", "#ff7b72", "2 4"),
}
_BASE = """
.magicflow text {
  font: 12px ui-monospace, SFMono-Regular, Menlo, Consolas, "DejaVu Sans Mono", monospace;
}
.magicflow .sheet { fill: #ffffff; }
.magicflow text { fill: #1f2328; }
.magicflow .title { font-size: 16px; font-weight: 700; }
.magicflow .code { font-size: 14px; font-weight: 700; }
.magicflow .kind { font-size: 10px; }
.magicflow .kind, .magicflow .callee, .magicflow .note { fill: #59636e; }
.magicflow .box { fill: #f6f8fa; stroke: #8c959f; stroke-width: 1.5; }
.magicflow .pill { fill: #ffffff; stroke-width: 1; }
.magicflow .line { fill: none; stroke-width: 1.6; stroke-linecap: round; }
.magicflow .head { stroke: none; }
.magicflow .taken .line { stroke-width: 3.4; }
.magicflow .dead .line, .magicflow .dead .head { opacity: 0.4; }
.magicflow .dead .pill { stroke-opacity: 0.4; }
.magicflow .dead .label { opacity: 0.75; }
.magicflow .edge:hover .line { stroke-width: 4; }
.magicflow .state { font-weight: 700; }
"""
_DARK = """
.magicflow .sheet, .magicflow .pill { fill: #0d1117; }
.magicflow text { fill: #e6edf3; }
.magicflow .kind, .magicflow .callee, .magicflow .note { fill: #9da7b3; }
.magicflow .box { fill: #161b22; stroke: #6e7681; }
"""


def width_of(cells: int, size: int) -> int:
    """Pixels that a text needs at most."""
    return ceil(cells * size * EM)


def css_name(state: str) -> str:
    return state.lower().replace("_", "-")


def stylesheet() -> str:
    """Media queries instead of variables: viewers that know neither show the light colours."""
    light = [_BASE.strip(), *_lines(dark=False), *_states(dark=False)]
    dark = [_DARK.strip(), *_lines(dark=True), *_states(dark=True)]
    return "\n".join(["", *light, "@media (prefers-color-scheme: dark) {", *dark, "}", ""])


def _lines(dark: bool) -> list[str]:
    rules = []
    for style, (light_colour, dark_colour, dashes) in _STROKES.items():
        colour = dark_colour if dark else light_colour
        scope = f".magicflow .e-{style}"
        dash = f" stroke-dasharray: {dashes};" if dashes and not dark else ""
        rules.append(f"{scope} .line {{ stroke: {colour};{dash} }}")
        rules.append(f"{scope} .head, {scope} .label {{ fill: {colour}; }}")
        rules.append(f"{scope} .pill {{ stroke: {colour}; }}")
    rules.append(f".magicflow .inner {{ fill: {RED.dark_line if dark else RED.line}; }}")
    return rules


def _states(dark: bool) -> list[str]:
    rules = []
    for state, look in LOOKS.items():
        paint, scope = look.paint, f".magicflow .s-{css_name(state)}"
        fill, line = (paint.dark_fill, paint.dark_line) if dark else (paint.fill, paint.line)
        dash = " stroke-dasharray: 5 4;" if look.dashed and not dark else ""
        rules.append(f"{scope} .box {{ fill: {fill}; stroke: {line};{dash} }}")
        rules.append(f"{scope} .state, {scope}.word {{ fill: {line}; }}")
    return rules
