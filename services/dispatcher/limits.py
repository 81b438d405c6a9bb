"""How much of an app's work may be under way in one partition."""

from __future__ import annotations

from typing import Protocol

from engine.snapshots.apps import Apps
from engine.snapshots.capacity import Capacity

READY = 64  # tasks that may wait for a worker in a partition before starts of the app wait
UNSERVED = 1_000  # the same for an app without workers: nothing that runs is held up by it


class Limits(Protocol):
    def quota(self, app: str) -> float:
        """Starts per second in the whole cluster; 0 for no limit."""
        ...

    def live(self, app: str, partition: int) -> int:
        """Traces that may live in this partition; 0 for no limit."""
        ...

    def unbegun(self, app: str) -> int:
        """Tasks that may wait for workers in a partition before starts wait for them."""
        ...


class AppLimits:
    """Of settings and of what workers offer."""

    def __init__(self, apps: Apps, capacity: Capacity, partitions: int) -> None:
        self._apps = apps
        self._capacity = capacity
        self._partitions = partitions

    def quota(self, app: str) -> float:
        return self._apps.of(app).quota

    def live(self, app: str, partition: int) -> int:
        """Ids spread traces evenly over the partitions, so each gets an even share; together they
        are never more than the app may have."""
        whole = self._apps.of(app).in_flight
        return whole // self._partitions + (partition < whole % self._partitions)

    def unbegun(self, app: str) -> int:
        slots = self._capacity.slots(app)
        return max(READY, 2 * slots // self._partitions) if slots else UNSERVED


class NoLimits:
    """Everything may start at once."""

    def quota(self, app: str) -> float:
        return 0.0

    def live(self, app: str, partition: int) -> int:
        return 0

    def unbegun(self, app: str) -> int:
        return 1 << 30
