"""Puts the trace service together."""

from __future__ import annotations

from engine.bus.port import Bus
from engine.rpc.channels import Owners
from engine.rpc.server import Registration
from engine.snapshots.library import Library
from engine.snapshots.port import Snapshots
from engine.store.journals import Journals
from engine.store.sql import Database
from magicflow.v1.trace_service_pb2_grpc import add_TraceServiceServicer_to_server
from services.trace.projector import Projector
from services.trace.servicer import TraceServicer


class Trace:
    """The projection and its queries, of one instance."""

    def __init__(
        self,
        me: str,
        partitions: int,
        snapshots: Snapshots,
        bus: Bus,
        library: Library,
        owners: Owners,
        database: Database,
    ) -> None:
        journals = Journals(database)
        self._projector = Projector(me, partitions, bus, snapshots, journals)
        self._servicer = TraceServicer(journals, library, owners, bus, partitions)
        self.services = [
            Registration(
                "magicflow.v1.TraceService", add_TraceServiceServicer_to_server, self._servicer
            )
        ]

    async def open(self) -> None:
        await self._servicer.open()
        await self._projector.open()

    async def close(self) -> None:
        await self._projector.close()
