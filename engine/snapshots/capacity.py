"""What live workers offer, in the whole cluster."""

from __future__ import annotations

from collections import Counter

from engine.snapshots import keys
from engine.snapshots.mirror import Mirror
from engine.snapshots.port import Change, Snapshots
from magicflow.v1.worker_pb2 import Worker


class Capacity:
    """Counts of workers and slots, by function and app, kept up to date by a watch."""

    def __init__(self, snapshots: Snapshots) -> None:
        self._mirror = Mirror(snapshots, keys.WORKERS, self._changed)
        self._workers: dict[str, Worker] = {}
        self._by_app: Counter[str] = Counter()

    async def open(self) -> None:
        """Errors: `Unavailable`."""
        await self._mirror.open()

    async def close(self) -> None:
        await self._mirror.close()

    def slots(self, app: str) -> int:
        """Slots of the app's live workers that take tasks."""
        return self._by_app[app]

    @property
    def offered(self) -> frozenset[str]:
        return frozenset(f.name for w in self._workers.values() for f in w.functions)

    @property
    def serving(self) -> frozenset[str]:
        """Functions that some worker takes tasks of."""
        return frozenset(
            f.name for w in self._workers.values() if not w.draining for f in w.functions
        )

    def of_functions(self) -> dict[str, tuple[int, int]]:
        """(workers, slots) by function, of those that take tasks."""
        found: dict[str, tuple[int, int]] = {}
        for worker in self._workers.values():
            for function in worker.functions:
                workers, slots = found.get(function.name, (0, 0))
                if not worker.draining:
                    workers, slots = workers + 1, slots + worker.slots
                found[function.name] = (workers, slots)
        return found

    def _changed(self, change: Change) -> None:
        before = self._workers.pop(change.key, None)
        if before is not None and not before.draining:
            self._by_app[before.app] -= before.slots
        if change.value is not None:
            worker = self._workers[change.key] = Worker.FromString(change.value)
            if not worker.draining:
                self._by_app[worker.app] += worker.slots
