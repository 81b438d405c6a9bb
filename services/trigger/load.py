"""Whether the cluster can take one more start, by what the owners of partitions report.

Results are never refused; starts are, before the backlog of one app holds up the others, or all of
them together hold more than owners can keep in memory. Reports come a few times a second; what
this instance has added since the last one counts on top.
"""

from __future__ import annotations

import math
from collections import Counter

import msgspec
import structlog

from engine.bus.load import Load, decode_loads
from engine.bus.port import Bus, Listening
from engine.bus.subjects import LOAD
from engine.errors import Exhausted

APP_WAITING = 20_000  # triggers of one app that may wait in a partition
WAITING = 40_000  # triggers of all apps
SLOW_COMMIT = 2_000.0  # milliseconds
UNPROJECTED = 200_000  # frames
_log = structlog.get_logger(__name__)


class Backlog:
    """`app_waiting` and `waiting` are the bounds of one partition."""

    def __init__(self, bus: Bus, app_waiting: int = APP_WAITING, waiting: int = WAITING) -> None:
        self._bus = bus
        self._app_waiting = app_waiting
        self._waiting = waiting
        self._loads: dict[int, Load] = {}
        self._added: dict[int, Counter[str]] = {}
        self._listening: Listening | None = None

    async def open(self) -> None:
        """Errors: `Unavailable`."""
        self._listening = await self._bus.listen(LOAD, self._hear)

    async def close(self) -> None:
        if self._listening is not None:
            await self._listening.close()

    def check(self, partition: int, app: str) -> None:
        """Errors: `Exhausted` with the reason OVERLOADED."""
        load = self._loads.get(partition)
        added = self._added.setdefault(partition, Counter())
        waiting = load.waiting if load is not None else {}
        mine = waiting.get(app, 0) + added[app]
        if mine >= self._app_waiting:
            raise _overloaded(f"{mine} triggers of {app} wait for their start", _pause(mine))
        everything = sum(waiting.values()) + added.total()
        if everything >= self._waiting:
            raise _overloaded(f"{everything} triggers wait for their start", _pause(everything))
        if load is not None and load.commit > SLOW_COMMIT and everything:
            raise _overloaded(f"the log takes {load.commit / 1_000:.1f} s for a frame", 1.0)
        if load is not None and load.unprojected > UNPROJECTED:
            raise _overloaded(f"SQL is {load.unprojected} frames behind the log", 5.0)

    def add(self, partition: int, app: str, count: int) -> None:
        """Triggers were put on their way."""
        self._added.setdefault(partition, Counter())[app] += count

    async def _hear(self, _subject: str, data: bytes) -> None:
        try:
            loads = decode_loads(data)
        except msgspec.MsgspecError as error:
            _log.warning("a report of load cannot be read", why=str(error))
            return
        for load in loads:
            self._loads[load.partition] = load
            self._added[load.partition] = Counter()


def _pause(waiting: int) -> float:
    """Seconds after which some of so many will have started: a thousand or two start in one."""
    return min(10.0, max(0.2, math.log10(max(waiting, 10)) / 4))


def _overloaded(message: str, retry_after: float) -> Exhausted:
    return Exhausted(
        message,
        reason="OVERLOADED",
        mend="try again after the delay in the status details, as the SDKs do",
        retry_after=retry_after,
    )
