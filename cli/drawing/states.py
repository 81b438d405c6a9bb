"""How each state looks: one table for the terminal and for pictures."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Paint:
    """A colour on the terminal, and as fill and line of a box in light and in dark pictures."""

    terminal: str
    fill: str
    line: str
    dark_fill: str
    dark_line: str


PLAIN = Paint("dim", "#ffffff", "#656d76", "#161b22", "#8b949e")
GREY = Paint("dim", "#f3f4f6", "#656d76", "#1c2128", "#8b949e")
GREEN = Paint("green", "#dcf5e3", "#1a7f37", "#12351f", "#3fb950")
RED = Paint("red", "#ffe0de", "#cf222e", "#4b1518", "#ff7b72")
ORANGE = Paint("dark_orange", "#ffe8d1", "#c2570c", "#472807", "#f0883e")
BLUE = Paint("dodger_blue2", "#ddeeff", "#0969da", "#0f2d52", "#58a6ff")
CYAN = Paint("cyan", "#d9f4f5", "#1b7c83", "#0b3437", "#39c5cf")
YELLOW = Paint("yellow", "#fdf3c4", "#946800", "#3c2e05", "#e3b341")
VIOLET = Paint("medium_purple1", "#eee5ff", "#7d4bd1", "#30204f", "#bc8cff")
MAGENTA = Paint("magenta", "#fde3f1", "#a8377a", "#46142f", "#f778ba")


@dataclass(frozen=True, slots=True)
class Look:
    """`sign` is one character; a dashed box stands for what never ran."""

    sign: str
    paint: Paint
    dashed: bool = False


LOOKS = {
    "PENDING": Look("·", PLAIN),
    "QUEUED": Look("◷", CYAN),
    "RUNNING": Look("▶", BLUE),
    "SUCCEEDED": Look("✓", GREEN),
    "FAILED": Look("✗", RED),
    "TIMED_OUT": Look("✗", ORANGE),
    "ABORTED": Look("✗", MAGENTA),
    "CANCELLED": Look("✗", MAGENTA, dashed=True),
    "SKIPPED": Look("–", GREY, dashed=True),
    "PAUSED": Look("‖", YELLOW),
    "SLEEPING": Look("z", VIOLET),
}
UNKNOWN = Look("?", PLAIN)


def look_of(state: str) -> Look:
    """Never fails: a newer server may know states that this program does not."""
    return LOOKS.get(state, UNKNOWN)


def state_word(state: str) -> str:
    """For people: `timed out`."""
    return state.lower().replace("_", " ")
