"""The next owner of a partition reads its log while the present one still works.

A planned handover then costs a claim and an opening frame, however much is alive. Once it has
caught up, the next owner says so under its lease; the present one waits for that before it lets go.
"""

from __future__ import annotations

import asyncio

import structlog

from engine.bus.port import Bus
from engine.errors import MagicflowError
from engine.snapshots import keys
from engine.snapshots.library import Library
from engine.snapshots.port import LeaseLost, Snapshots
from services.dispatcher.recovery import Recovery, without_collections

RETRY = 0.25  # seconds
AGAIN = 0.01  # seconds until a cancellation that was not heard is repeated
_log = structlog.get_logger(__name__)


class Standby:
    """One partition's, from `open` until `close`."""

    def __init__(self, partition: int, bus: Bus, library: Library) -> None:
        self._partition = partition
        self._bus = bus
        self._library = library
        self._recovery: Recovery | None = None
        self._task: asyncio.Task[None] | None = None

    def open(self, snapshots: Snapshots, name: str, lease: int) -> None:
        self._task = asyncio.create_task(self._keep(snapshots, name, lease))

    async def close(self) -> Recovery | None:
        """What has been read, for the owner that this instance becomes."""
        # One cancellation may be lost: `asyncio.wait_for` of Python 3.11 returns a result that
        # comes with it as if nothing had been.
        while self._task is not None and not self._task.done():
            self._task.cancel()
            await asyncio.wait([self._task], timeout=AGAIN)
        return self._recovery

    async def _keep(self, snapshots: Snapshots, name: str, lease: int) -> None:
        while True:
            recovery = Recovery(self._partition, self._bus, self._library)
            self._recovery = None
            try:
                with without_collections():
                    await recovery.catch_up()
                self._recovery = recovery
                await snapshots.put(keys.standby(self._partition), name.encode(), lease)
                await recovery.follow()
            except (MagicflowError, LeaseLost) as error:
                _log.debug("standby begins anew", partition=self._partition, why=str(error))
            except Exception:  # the present owner lets go without it after a while
                self._recovery = None  # a frame may be half folded
                _log.exception("standby begins anew", partition=self._partition)
            await asyncio.sleep(RETRY)
