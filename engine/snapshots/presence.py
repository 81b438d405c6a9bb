"""Keys that say who is here: kept under a lease, and written again when the lease was lost.

For what others may know of this process (its services, its workers). What must be exclusive is
not kept here but claimed (`services.dispatcher.ownership`).
"""

from __future__ import annotations

import asyncio
import contextlib

import structlog

from engine.errors import MagicflowError
from engine.snapshots.port import Lease, LeaseLost, Snapshots

PAUSE = 0.5  # seconds between attempts while the space is out of reach
_log = structlog.get_logger(__name__)


class Presence:
    """Writes in the background, the newest value per key; a write that fails is repeated."""

    def __init__(self, snapshots: Snapshots, ttl: float = 10.0) -> None:
        self._snapshots = snapshots
        self._ttl = ttl
        self._lease: Lease | None = None
        self._here: dict[str, bytes] = {}
        self._pending: dict[str, bytes | None] = {}
        self._news = asyncio.Event()
        self._written = asyncio.Event()
        self._keeper: asyncio.Task[None] | None = None

    async def open(self) -> None:
        """Errors: `Unavailable`."""
        self._lease = await self._snapshots.grant(self._ttl)
        self._keeper = asyncio.create_task(self._keep())

    async def close(self) -> None:
        """Takes everything back."""
        if self._keeper is not None:
            self._keeper.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._keeper
        if self._lease is not None:
            with contextlib.suppress(MagicflowError):
                await self._lease.revoke()

    def show(self, key: str, value: bytes) -> None:
        self._here[key] = value
        self._change(key, value)

    def hide(self, key: str) -> None:
        self._here.pop(key, None)
        self._change(key, None)

    async def settled(self) -> None:
        """Returns when everything that was shown or hidden so far is written."""
        while self._pending:
            self._written.clear()
            await self._written.wait()

    def _change(self, key: str, value: bytes | None) -> None:
        self._pending[key] = value
        self._news.set()

    async def _keep(self) -> None:
        while True:
            try:
                await self._write()
                await self._wait()
            except (MagicflowError, LeaseLost) as error:
                _log.warning("presence not written yet", why=str(error))
                await asyncio.sleep(PAUSE)

    async def _write(self) -> None:
        assert self._lease is not None
        if not self._lease.held():
            self._lease = await self._snapshots.grant(self._ttl)
            self._pending = {**self._here, **self._pending}
        while self._pending:
            key, value = next(iter(self._pending.items()))
            if value is None:
                await self._snapshots.delete(key)
            else:
                await self._snapshots.put(key, value, self._lease.id)
            if self._pending.get(key) is value:
                del self._pending[key]
        self._written.set()

    async def _wait(self) -> None:
        assert self._lease is not None
        waits = [
            asyncio.ensure_future(self._news.wait()),
            asyncio.ensure_future(self._lease.lost()),
        ]
        try:
            await asyncio.wait(waits, return_when=asyncio.FIRST_COMPLETED)
            self._news.clear()
        finally:
            for wait in waits:
                wait.cancel()
