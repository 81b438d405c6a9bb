"""What the registry shows of the running cluster, kept up to date by watches."""

from __future__ import annotations

from engine.snapshots import keys
from engine.snapshots.mirror import Mirror
from engine.snapshots.port import Snapshots


class ClusterView:
    def __init__(self, snapshots: Snapshots) -> None:
        self.functions = Mirror(snapshots, keys.FUNCTIONS)
        self.workers = Mirror(snapshots, keys.WORKERS)
        self.instances = Mirror(snapshots, keys.INSTANCES)
        self.partitions = Mirror(snapshots, keys.PARTITIONS)
        self.report = Mirror(snapshots, keys.REPORT)
        self._all = (self.functions, self.workers, self.instances, self.partitions, self.report)

    async def open(self) -> None:
        for mirror in self._all:
            await mirror.open()

    async def close(self) -> None:
        for mirror in self._all:
            await mirror.close()
