"""Pages of lists, as requests ask for them."""

from __future__ import annotations

import re

from engine.errors import Invalid


def page_size(asked: int, standard: int, largest: int) -> int:
    """Errors: `Invalid` beyond the limit."""
    if asked > largest:
        raise Invalid(f"page_size is {asked}; {largest} are allowed")
    return asked or standard


def page_start(token: str) -> int:
    """The number that a token of ours is; 0 without one. Errors: `Invalid`."""
    if not token:
        return 0
    if not re.fullmatch(r"[0-9]{1,18}", token):
        raise Invalid("page_token is none that this service gave out")
    return int(token)
