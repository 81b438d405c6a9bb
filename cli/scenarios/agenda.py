"""Virtual time: what is to be done when. Nothing passes but what is asked for."""

from __future__ import annotations

import heapq
from collections.abc import Callable
from itertools import count


class Agenda:
    """Times are milliseconds. What is due at the same time is done in the order in which it was
    noted."""

    def __init__(self, now: int) -> None:
        self.now = now
        self._entries: list[tuple[int, int, Callable[[], None]]] = []
        self._numbers = count()

    def note(self, at: int, do: Callable[[], None]) -> None:
        """What lies in the past is done at the next occasion."""
        heapq.heappush(self._entries, (max(at, self.now), next(self._numbers), do))

    def settle(self) -> None:
        """Does what is due now, and what follows from it now."""
        while self._entries and self._entries[0][0] <= self.now:
            heapq.heappop(self._entries)[2]()

    def next(self, until: int) -> bool:
        """Moves on to the next entry and settles. False, and no time has passed, when there is
        none up to `until`."""
        if not self._entries or self._entries[0][0] > until:
            return False
        self.now = max(self.now, self._entries[0][0])
        self.settle()
        return True

    def advance(self, until: int) -> None:
        """Moves on to `until`, settling everything on the way."""
        while self.next(until):
            pass
        self.now = max(self.now, until)
