"""When the dispatchers' leases ended, as etcd tells everybody who watches."""

from __future__ import annotations

import asyncio
import time

from engine.snapshots import keys
from engine.snapshots.etcd.adapter import EtcdSnapshots
from engine.snapshots.mirror import Mirror


class Leases:
    """Watches as long as it is open. `ends` are (instance, seconds since 1970), in order."""

    def __init__(self, endpoint: str) -> None:
        self._snapshots = EtcdSnapshots(endpoint)
        self._members = Mirror(self._snapshots, keys.DISPATCHERS)
        self._watcher: asyncio.Task[None] | None = None
        self.ends: list[tuple[str, float]] = []

    async def open(self) -> None:
        await self._members.open()
        self._watcher = asyncio.create_task(self._watch())

    async def close(self) -> None:
        if self._watcher is not None:
            self._watcher.cancel()
            await asyncio.gather(self._watcher, return_exceptions=True)
        await self._members.close()
        await self._snapshots.close()

    def end_after(self, instance: str, wall: float) -> float | None:
        """When the lease of an instance ended that lived at this moment."""
        return next((at for name, at in self.ends if name == instance and at >= wall), None)

    async def _watch(self) -> None:
        here = set(self._members.entries)
        while True:
            await self._members.news()
            now, before, here = time.time(), here, set(self._members.entries)
            gone = before - here
            self.ends += [(key.removeprefix(keys.DISPATCHERS), now) for key in sorted(gone)]
