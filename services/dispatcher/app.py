"""Puts a dispatcher together."""

from __future__ import annotations

import msgspec

from engine.bus.port import Bus, Listening
from engine.bus.subjects import EVERY_BEGAN
from engine.clock import Clock
from engine.ids import partition_of
from engine.rpc.channels import Owners
from engine.rpc.server import Registration
from engine.snapshots.apps import Apps
from engine.snapshots.capacity import Capacity
from engine.snapshots.library import Library
from engine.snapshots.membership import Member
from engine.snapshots.port import Snapshots
from magicflow.v1.dispatch_service_pb2_grpc import add_DispatchServiceServicer_to_server
from magicflow.v1.partition_service_pb2_grpc import add_PartitionServiceServicer_to_server
from services.dispatcher.brokering import Brokering
from services.dispatcher.gateway import Gateway
from services.dispatcher.leader import Leader
from services.dispatcher.letters import Letters
from services.dispatcher.limits import AppLimits
from services.dispatcher.owners import OwnerFinder
from services.dispatcher.ownership import Ownership
from services.dispatcher.reporting import LoadReports
from services.dispatcher.roster import Roster
from services.dispatcher.servicer import DispatchServicer, PartitionServicer

NAMES = ("magicflow.v1.DispatchService", "magicflow.v1.PartitionService")


class Dispatcher:
    """Partitions and workers of one instance. The server must listen before `open`: other
    instances route to it as soon as it has joined."""

    def __init__(
        self,
        me: Member,
        partitions: int,
        snapshots: Snapshots,
        bus: Bus,
        library: Library,
        owners: Owners,
        *,
        lease: float,
        drain: float,
        lateness: float,
    ) -> None:
        self._bus = bus
        self._partitions = partitions
        self._drain = drain
        clock = Clock()
        self._apps = Apps(snapshots)
        self._capacity = Capacity(snapshots)
        self._brokering = Brokering(self._apps, bus)
        limits = AppLimits(self._apps, self._capacity, partitions)
        self._ownership = Ownership(
            me, partitions, snapshots, bus, library, clock, limits, lease, lateness
        )
        self._reports = LoadReports(bus, self._ownership)
        self._leader = Leader(me, partitions, snapshots, bus, self._capacity, clock, lease)
        self._roster = Roster(snapshots, me.name)
        finder = OwnerFinder(self._ownership, owners)
        self._gateway = Gateway(bus, clock, partitions, finder, finder.recheck, self._roster)
        self._began: Listening | None = None
        self.services = [
            Registration(
                NAMES[0],
                add_DispatchServiceServicer_to_server,
                DispatchServicer(self._gateway, Letters(bus.dead), me.name),
            ),
            Registration(
                NAMES[1],
                add_PartitionServiceServicer_to_server,
                PartitionServicer(self._ownership, partitions, self._capacity),
            ),
        ]

    async def open(self) -> None:
        await self._apps.open()
        await self._capacity.open()
        await self._brokering.open()
        await self._roster.open()
        await self._gateway.open()
        self._began = await self._bus.listen(EVERY_BEGAN, self._hear_began)
        await self._ownership.open()
        self._reports.open()
        await self._leader.open()

    async def close(self) -> None:
        """Workers first, then partitions, the lease last."""
        await self._gateway.close(self._drain)
        await self._leader.close()
        await self._reports.close()
        await self._ownership.close()
        if self._began is not None:
            await self._began.close()
        await self._roster.close()
        await self._brokering.close()
        await self._capacity.close()
        await self._apps.close()

    async def _hear_began(self, _subject: str, data: bytes) -> None:
        for note in msgspec.msgpack.decode(data):
            processor = self._ownership.processors.get(partition_of(note[0], self._partitions))
            if processor is not None:
                processor.began(*note)
