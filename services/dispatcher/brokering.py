"""Keeps the bus in step with the brokers that apps have."""

from __future__ import annotations

import asyncio
import contextlib

from engine.bus.balancing import Balance, Broker
from engine.bus.port import Bus
from engine.snapshots.apps import Apps

_Set = tuple[tuple[Broker, ...], Balance]
_NONE: _Set = ((), "round_robin")


class Brokering:
    def __init__(self, apps: Apps, bus: Bus) -> None:
        self._apps = apps
        self._bus = bus
        self._used: dict[str, _Set] = {}
        self._task: asyncio.Task[None] | None = None

    async def open(self) -> None:
        """Returns once the brokers that apps have now are in use."""
        await self._change()
        self._task = asyncio.create_task(self._follow())

    async def close(self) -> None:
        if self._task is not None:
            self._task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._task

    async def _follow(self) -> None:
        while True:
            news = asyncio.ensure_future(self._apps.news())
            try:
                await self._change()
                await news
            finally:
                news.cancel()

    async def _change(self) -> None:
        wanted = {name: (app.brokers, app.balancing) for name, app in self._apps.all.items()}
        for name in {*wanted, *self._used}:
            now, before = wanted.get(name, _NONE), self._used.get(name, _NONE)
            if now == before or not (now[0] or before[0]):
                continue
            self._used[name] = now
            await self._bus.use_brokers(name, *now)
