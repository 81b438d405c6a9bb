"""Which of the accepted triggers start next.

Finishing old work goes before starting new: an app's triggers wait here, and before that in their
queue on the bus, while its tasks already wait for workers or as many of its traces live as it may
have. Between apps the turns are shared out evenly, so that the burst of one does not hold up the
others; within an app the order is that of priority and waiting (`engine.core.ordering`).
"""

from __future__ import annotations

import heapq
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

from engine.bus.port import Delivery
from engine.bus.triggers import StartTrace
from engine.core.ordering import rank

ROOM = 40_000  # triggers that one owner holds in memory
ROOM_BYTES = 64 << 20
FRAMES_ASKED = 64
FEW = 4  # waiting triggers of an app that are no burst


@dataclass(slots=True)
class Starts:
    """One frame of the queue: triggers of one app and priority."""

    delivery: Delivery
    triggers: list[StartTrace]
    app: str

    @property
    def bytes(self) -> int:
        return len(self.delivery.data)


@dataclass(slots=True)
class _Line:
    """One app's frames, and how much of the common turns it has had."""

    turns: float
    frames: list[tuple[int, int, Starts]] = field(default_factory=list)
    waiting: int = 0


class Starting:
    """What waits, in memory. Never more than it has room for: the rest stays on the bus."""

    def __init__(self) -> None:
        self._lines: dict[str, _Line] = {}
        self._counter = 0
        self._now_at = 0.0  # the turns of the line that was served last
        self._bytes = 0
        self.waiting = 0

    def __bool__(self) -> bool:
        return bool(self._lines)

    def add(self, starts: Starts) -> None:
        first = starts.triggers[0]
        line = self._lines.get(starts.app)
        if line is None:
            # Whoever comes new has not saved up turns while it had nothing to do.
            line = self._lines[starts.app] = _Line(self._now_at)
        self._counter += 1
        key = rank(first.priority, first.triggered_at)
        heapq.heappush(line.frames, (key, self._counter, starts))
        line.waiting += len(starts.triggers)
        self.waiting += len(starts.triggers)
        self._bytes += starts.bytes

    def take(self, limit: int, may: Callable[[str, int], bool]) -> Iterator[Starts]:
        """The next frames, together about `limit` triggers; and those of apps that have only a
        `FEW` waiting, which are no burst, whatever the limit. `may` says whether an app may start
        so many more now."""
        held: set[str] = set()
        while True:
            app = self._next(held, limit)
            if not app:
                return
            starts = self._lines[app].frames[0][2]
            if not may(app, len(starts.triggers)):
                held.add(app)
                continue
            self._remove(app)
            limit -= len(starts.triggers)
            yield starts

    def _next(self, held: set[str], limit: int) -> str:
        """The app that has had the fewest turns; empty when none may start."""
        candidates = (
            name
            for name, line in self._lines.items()
            if name not in held and (limit > 0 or line.waiting <= FEW)
        )
        return min(candidates, key=lambda name: self._lines[name].turns, default="")

    def _remove(self, app: str) -> None:
        line = self._lines[app]
        _, _, starts = heapq.heappop(line.frames)
        count = len(starts.triggers)
        self._now_at = max(self._now_at, line.turns)
        line.turns += count
        line.waiting -= count
        self.waiting -= count
        self._bytes -= starts.bytes
        if not line.frames:
            del self._lines[app]

    def ready(self, limit: int, may: Callable[[str, int], bool]) -> bool:
        """Whether `take` would find anything."""
        return any(
            (limit > 0 or line.waiting <= FEW) and may(app, len(line.frames[0][2].triggers))
            for app, line in self._lines.items()
        )

    @property
    def asked(self) -> int:
        """How many more frames the queue may deliver now."""
        return 0 if self.waiting >= ROOM or self._bytes >= ROOM_BYTES else FRAMES_ASKED

    def by_app(self) -> dict[str, int]:
        """Triggers that wait, by app."""
        return {name: line.waiting for name, line in self._lines.items()}

    def deliveries(self) -> Iterator[Delivery]:
        """Everything that is held: the bus wants to hear that somebody has it."""
        for line in self._lines.values():
            for _, _, starts in line.frames:
                yield starts.delivery
