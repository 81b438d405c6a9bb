"""Texts of documents, made fit for a place of limited width. Widths count terminal columns."""

from __future__ import annotations

from rich.cells import cell_len, chop_cells


def widest(lines: list[str]) -> int:
    return max(map(cell_len, lines), default=0)


def shorten(text: str, width: int) -> str:
    """Cut to the width with an ellipsis; control characters become visible."""
    text = printable(text)
    return text if cell_len(text) <= width else chop_cells(text, width - 1)[0] + "…"


def printable(text: str) -> str:
    """Texts of documents may hold escape sequences; a terminal must not obey them."""
    return "".join(c if c.isprintable() else f"\\x{ord(c):02x}" for c in text)


def fold(text: str, width: int, most: int) -> list[str]:
    """Lines of at most the width, at spaces where possible; the last one tells of a cut."""
    lines: list[str] = []
    for word in printable(text).split(" "):
        pieces = chop_cells(word, width) if word else []
        for place, piece in enumerate(pieces):
            if lines and not place and cell_len(lines[-1]) + 1 + cell_len(piece) <= width:
                lines[-1] += f" {piece}"
            else:
                lines.append(piece)
    if len(lines) > most:
        lines = lines[:most]
        lines[-1] = shorten(lines[-1] + "…" * width, width).rstrip("…") + "…"
    return lines
