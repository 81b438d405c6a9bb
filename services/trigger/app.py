"""Puts the trigger service together."""

from __future__ import annotations

from engine.bus.port import Bus
from engine.clock import Clock
from engine.rpc.channels import Channels, Owners
from engine.rpc.server import Registration
from engine.snapshots import keys
from engine.snapshots.library import Library
from engine.snapshots.mirror import Mirror
from engine.snapshots.port import Snapshots
from magicflow.v1.trigger_service_pb2_grpc import add_TriggerServiceServicer_to_server
from services.trigger.admission import Admission
from services.trigger.lookup import Lookup
from services.trigger.operations import Operations
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
        self._apps = Mirror(snapshots, keys.APPS)
        self._lookup = Lookup(snapshots, channels, owners)
        self._admission = Admission(bus, library, self._apps, owners, partitions, clock)
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
        await self._lookup.open()
        await self._waiting.open()

    async def close(self) -> None:
        await self._admission.close()
        await self._waiting.close()
        await self._lookup.close()
        await self._apps.close()
