"""In which order things wait: by priority, and the longer the higher.

Every priority counts for as much as `AGEING` of waiting: what waits grows older at the same pace
as everything else, so an order once made stays right, and nothing waits for ever behind a stream
of higher priority.
"""

from __future__ import annotations

AGEING = 10_000  # milliseconds


def rank(priority: int, since: int) -> int:
    """Where something stands that has this priority, 0 (last) to 9 (first), and waits since then
    (milliseconds since 1970). The lowest goes first."""
    return since - priority * AGEING
