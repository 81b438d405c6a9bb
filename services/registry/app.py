"""Puts the registry together."""

from __future__ import annotations

from engine.clock import Clock
from engine.core.playbook import LIMITS, Limits
from engine.rpc.server import Registration
from engine.security.tokens import Tokens
from engine.snapshots.port import Snapshots
from engine.store.registry import RegistryStore
from engine.store.sql import Database
from magicflow.v1.registry_service_pb2_grpc import add_RegistryServiceServicer_to_server
from services.registry.publishing import Publishing
from services.registry.servicer import RegistryServicer
from services.registry.view import ClusterView


class Registry:
    """Records and publishing, of one instance."""

    def __init__(
        self,
        partitions: int,
        snapshots: Snapshots,
        tokens: Tokens,
        database: Database,
        limits: Limits = LIMITS,
    ) -> None:
        clock = Clock()
        store = RegistryStore(database)
        self._view = ClusterView(snapshots)
        publishing = Publishing(store, snapshots, self._view.functions, clock, limits)
        servicer = RegistryServicer(
            store, snapshots, publishing, tokens, self._view, partitions, clock
        )
        self.services = [
            Registration(
                "magicflow.v1.RegistryService", add_RegistryServiceServicer_to_server, servicer
            )
        ]

    async def open(self) -> None:
        await self._view.open()

    async def close(self) -> None:
        await self._view.close()
