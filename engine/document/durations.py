"""Durations as documents write them: `200ms`, `5s`, `1h30m`."""

from __future__ import annotations

import re

_UNITS = {"d": 86_400_000, "h": 3_600_000, "m": 60_000, "s": 1_000, "ms": 1}
_PART = re.compile(r"(\d+(?:\.\d+)?)(ms|s|m|h|d)")
MAX_DURATION = 10 * 365 * 86_400_000  # ten years, in milliseconds


def parse_duration(text: str) -> int:
    """Milliseconds. Errors: `ValueError` with a sentence that says how to write it."""
    at, total = 0, 0.0
    for part in _PART.finditer(text):
        if part.start() != at:
            break
        total += float(part.group(1)) * _UNITS[part.group(2)]
        at = part.end()
    if not text or at != len(text):
        raise ValueError(f"{text!r} is no duration; write for example 200ms, 5s or 1h30m")
    if total > MAX_DURATION:
        raise ValueError(f"{text!r} is longer than ten years")
    return round(total)


def format_duration(milliseconds: int) -> str:
    """The shortest way to write it; `parse_duration` reads it back exactly."""
    parts = []
    for unit, size in _UNITS.items():
        count, milliseconds = divmod(milliseconds, size)
        if count:
            parts.append(f"{count}{unit}")
    return "".join(parts) or "0s"
