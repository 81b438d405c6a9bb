"""How many traces an instance may start now, so that what runs already stays quick.

All partitions of an instance share one event loop. When it runs late, somebody's next step waits:
then fewer starts are let through, and more again when there is air. The loop's lateness is the
measure because it has everything in it: starts, results, projection, other processes.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable
from typing import Protocol

TICK = 0.01  # seconds
LATE = 0.001  # seconds by which a tick may come late
LEAST, FIRST, MOST = 1.0, 16.0, 400.0  # starts per tick
LESS, MORE = 0.7, 1.0  # a late tick multiplies the allowance, one in time adds to it


class Pace(Protocol):
    @property
    def left(self) -> int:
        """Starts that may be made before the next tick."""
        ...

    def took(self, starts: int) -> None: ...


class Unpaced:
    """As many as there are."""

    left = 1 << 30

    def took(self, starts: int) -> None:
        return None


class LoopPace:
    """By the lateness of the running loop: more than `late` seconds is too much. A larger bound
    works off bursts faster and makes what runs wait for longer."""

    def __init__(self, late: float = LATE) -> None:
        self._late = late
        self._allowance = FIRST
        self._taken = 0
        self._task: asyncio.Task[None] | None = None
        self._wakes: dict[Callable[[], None], None] = {}

    def open(self) -> None:
        self._task = asyncio.create_task(self._tick())

    async def close(self) -> None:
        if self._task is not None:
            self._task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._task

    @property
    def left(self) -> int:
        return max(0, int(self._allowance) - self._taken)

    def took(self, starts: int) -> None:
        self._taken += starts

    def on_tick(self, wake: Callable[[], None]) -> Callable[[], None]:
        """Until what is returned is called."""
        self._wakes[wake] = None
        return lambda: self._wakes.pop(wake, None)

    async def _tick(self) -> None:
        now = asyncio.get_running_loop().time
        while True:
            due = now() + TICK
            await asyncio.sleep(TICK)
            self.adjust(now() - due)
            for wake in self._in_turn():
                wake()

    def _in_turn(self) -> list[Callable[[], None]]:
        """Another one comes first at every tick."""
        wakes = list(self._wakes)
        if wakes:
            self._wakes[wakes[0]] = self._wakes.pop(wakes[0])
        return wakes

    def adjust(self, late: float) -> None:
        """A tick came `late` seconds after its time. An allowance that was not used up says nothing
        about how much there is room for."""
        if late > self._late:
            self._allowance = max(LEAST, self._allowance * LESS)
        elif self._taken >= int(self._allowance):
            self._allowance = min(MOST, self._allowance + MORE)
        # A frame may have taken more than was left: what is over is worked off.
        self._taken = max(0, self._taken - int(self._allowance))
