"""When something is due: a heap that is rebuilt from state, never kept on the bus."""

from __future__ import annotations

import heapq
from collections.abc import Callable

from engine.core.effects import Wake

_Entry = tuple[int, int, bytes, Wake]


class Timers:
    """Due times are milliseconds since 1970. A timer that its trace no longer wants is harmless:
    the core ignores it."""

    def __init__(self) -> None:
        self._heap: list[_Entry] = []
        self._counter = 0

    def __len__(self) -> int:
        return len(self._heap)

    def add(self, trace_id: bytes, wake: Wake) -> None:
        self._counter += 1
        heapq.heappush(self._heap, (wake.at, self._counter, trace_id, wake))

    def next(self) -> int | None:
        """When the earliest is due."""
        return self._heap[0][0] if self._heap else None

    def due(self, now: int, limit: int) -> list[tuple[bytes, Wake]]:
        """Takes out at most `limit` timers that are due."""
        taken: list[tuple[bytes, Wake]] = []
        while self._heap and self._heap[0][0] <= now and len(taken) < limit:
            _, _, trace_id, wake = heapq.heappop(self._heap)
            taken.append((trace_id, wake))
        return taken

    def keep(self, wanted: Callable[[bytes, Wake], bool]) -> None:
        """Drops the timers that nobody wants any more."""
        self._heap = [entry for entry in self._heap if wanted(entry[2], entry[3])]
        heapq.heapify(self._heap)
