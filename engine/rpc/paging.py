"""Pages of lists, as requests ask for them."""

from __future__ import annotations

from engine.errors import Invalid


def page_size(asked: int, standard: int, largest: int) -> int:
    """Errors: `Invalid` beyond the limit."""
    if asked > largest:
        raise Invalid(f"page_size is {asked}; {largest} are allowed")
    return asked or standard
