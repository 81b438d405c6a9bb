"""Times that a graph computes: text by RFC 3339, or seconds since 1970."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

from engine.core.payload import json_text

LATEST = 253_402_300_800_000  # the year 10000, in milliseconds


class NotAMoment(ValueError):
    """The value is no time; the message says what was seen and what to write."""


def milliseconds_of(value: Any) -> int:
    """Milliseconds since 1970. Text without an offset is UTC.

    Errors: `NotAMoment`.
    """
    if isinstance(value, str):
        moment = _of_text(value)
    elif isinstance(value, int | float) and not isinstance(value, bool):
        moment = int(min(max(value, -1), LATEST) * 1_000)
    else:
        raise _not_a_moment(value)
    if not 0 <= moment < LATEST:
        raise _not_a_moment(value)
    return moment


def _of_text(text: str) -> int:
    try:
        moment = datetime.fromisoformat(text)
    except ValueError as error:
        raise _not_a_moment(text) from error
    if moment.tzinfo is None:
        moment = moment.replace(tzinfo=UTC)
    return int(moment.timestamp() * 1_000)


def _not_a_moment(value: Any) -> NotAMoment:
    seen = json_text(value)[:80]
    return NotAMoment(
        f"{seen} is no time: write 2026-01-31T18:00:00Z, or seconds since 1970 as a number"
    )


def text_of(milliseconds: int) -> str:
    """The time as text by RFC 3339, in UTC."""
    moment = datetime.fromtimestamp(milliseconds / 1_000, UTC)
    return moment.isoformat(timespec="milliseconds").replace("+00:00", "Z")
