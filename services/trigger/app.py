"""Puts the trigger service together."""

from __future__ import annotations

from engine.bus.port import Bus
from engine.clock import Clock
from engine.rpc.channels import Channels, Owners
from engine.rpc.server import Registration
from engine.snapshots.apps import Apps
from engine.snapshots.capacity import Capacity
from engine.snapshots.library import Library
from engine.snapshots.port import Snapshots
from magicflow.v1.trigger_service_pb2_grpc import add_TriggerServiceServicer_to_server
from services.trigger.admission import Admission
from services.trigger.lanes import Lanes
from services.trigger.load import Backlog
from services.trigger.lookup import Lookup
from services.trigger.operations import Operations
from services.trigger.quotas import Quotas
from services.trigger.readiness import Readiness
from services.trigger.servicer import TriggerServicer
from services.trigger.waiting import Waiting


class Trigger:
    """Admission and waits, of one instance."""

    def __init__(
        self,
        partitions: int,
        snapshots: Snapshots,
        bus: Bus,
        library: Library,
        owners: Owners,
        channels: Channels,
    ) -> None:
        clock = Clock()
        self._apps = Apps(snapshots)
        self._capacity = Capacity(snapshots)
        self._backlog = Backlog(bus)
        self._lookup = Lookup(snapshots, channels, owners)
        self._admission = Admission(
            library,
            self._apps,
            Lanes(bus, partitions),
            self._backlog,
            Quotas(self._apps, owners, partitions),
            Readiness(self._capacity, library),
            owners,
            partitions,
            clock,
        )
        self._waiting = Waiting(bus, self._lookup)
        operations = Operations(owners, self._lookup, library, clock)
        servicer = TriggerServicer(self._admission, self._waiting, self._lookup, operations, clock)
        self.services = [
            Registration(
                "magicflow.v1.TriggerService", add_TriggerServiceServicer_to_server, servicer
            )
        ]

    async def open(self) -> None:
        await self._apps.open()
        await self._capacity.open()
        await self._backlog.open()
        await self._lookup.open()
        await self._waiting.open()

    async def close(self) -> None:
        await self._admission.close()
        await self._waiting.close()
        await self._lookup.close()
        await self._backlog.close()
        await self._capacity.close()
        await self._apps.close()
