"""What live workers offer, in the whole cluster."""

from __future__ import annotations

from collections import Counter
from collections.abc import Set

from engine.snapshots import keys
from engine.snapshots.mirror import Mirror
from engine.snapshots.port import Change, Snapshots
from magicflow.v1.worker_pb2 import Worker


class Capacity:
    """Counts of workers and slots, by function and app, kept up to date by a watch: who asks, for
    every trigger perhaps, does not go through all the workers."""

    def __init__(self, snapshots: Snapshots) -> None:
        self._mirror = Mirror(snapshots, keys.WORKERS, self._changed)
        self._workers: dict[str, Worker] = {}
        self._by_app: Counter[str] = Counter()
        self._offering: Counter[str] = Counter()  # workers by function
        self._serving: Counter[str] = Counter()  # of these those that take tasks

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
        return frozenset(self._offering)

    @property
    def serving(self) -> Set[str]:
        """Functions that some worker takes tasks of, at any time that one looks."""
        return self._serving.keys()

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
        if before is not None:
            self._count(before, -1)
        if change.value is not None:
            worker = self._workers[change.key] = Worker.FromString(change.value)
            self._count(worker, 1)

    def _count(self, worker: Worker, sign: int) -> None:
        names = {function.name for function in worker.functions}
        _add(self._offering, names, sign)
        if not worker.draining:
            self._by_app[worker.app] += sign * worker.slots
            _add(self._serving, names, sign)


def _add(counts: Counter[str], names: set[str], sign: int) -> None:
    for name in names:
        counts[name] += sign
        if not counts[name]:
            del counts[name]
