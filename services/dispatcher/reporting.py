"""Tells those who admit triggers how much waits in this instance's partitions."""

from __future__ import annotations

import asyncio
import contextlib

from engine.bus.load import Load, encode_loads
from engine.bus.port import Bus
from engine.bus.subjects import LOAD
from services.dispatcher.ownership import Ownership

EVERY = 0.25  # seconds, while anything waits
CALM = 8  # rounds between reports that say nothing new


class LoadReports:
    def __init__(self, bus: Bus, ownership: Ownership) -> None:
        self._bus = bus
        self._ownership = ownership
        self._task: asyncio.Task[None] | None = None

    def open(self) -> None:
        self._task = asyncio.create_task(self._report())

    async def close(self) -> None:
        if self._task is not None:
            self._task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._task

    async def _report(self) -> None:
        rounds = 0
        while True:
            loads = [processor.load() for processor in self._ownership.processors.values()]
            if loads and (rounds % CALM == 0 or any(map(_busy, loads))):
                await self._bus.tell(LOAD, encode_loads(loads))
            rounds += 1
            await asyncio.sleep(EVERY)


def _busy(load: Load) -> bool:
    return bool(load.waiting or load.queued)
