"""What the registry's calls store and show, over SQL and a space of their own."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any, cast

import pytest

from engine.clock import Clock
from engine.errors import AlreadyExists
from engine.rpc import interceptors
from engine.security.keys import FileKeys
from engine.security.tokens import EVERY_APP, SCOPES, Identity, Tokens
from engine.snapshots import keys
from engine.snapshots.memory import MemorySnapshots
from engine.snapshots.report import Report, encode_report
from engine.store.registry import RegistryStore
from engine.store.sql import Database
from magicflow.v1 import registry_service_pb2 as pb
from services.registry.publishing import Publishing
from services.registry.servicer import RegistryServicer
from services.registry.view import ClusterView

PATIENCE = 5.0  # seconds


class Registry:
    def __init__(self, database: Database, folder: Path) -> None:
        self.snapshots = MemorySnapshots()
        self.view = ClusterView(self.snapshots)
        self.calls = RegistryServicer(
            RegistryStore(database),
            self.snapshots,
            cast(Publishing, None),
            Tokens(FileKeys.open(folder, create=True), lambda _: False),
            self.view,
            1,
            Clock(),
        )

    async def create(self, **settings: Any) -> pb.CreateAppResponse:
        request = pb.CreateAppRequest(app=pb.App(name="shop", **settings))
        return await self.calls.CreateApp(request, None)

    async def update(self, **settings: Any) -> pb.App:
        request = pb.UpdateAppRequest(app=pb.App(name="shop", **settings))
        return (await self.calls.UpdateApp(request, None)).app

    async def reports(self, report: Report) -> pb.GetClusterResponse:
        """The cluster as it is shown after that."""
        data = encode_report(report)
        await self.snapshots.put(keys.REPORT, data)
        async with asyncio.timeout(PATIENCE):
            while self.view.report.entries.get(keys.REPORT) != data:
                await asyncio.sleep(0.001)
        return await self.calls.GetCluster(pb.GetClusterRequest(), None)


@pytest.fixture
async def registry(tmp_path: Path) -> AsyncIterator[Registry]:
    database = await Database.open(f"sqlite:///{tmp_path / 'flow.db'}")
    made = Registry(database, tmp_path / "keys")
    await made.view.open()
    yield made
    await made.view.close()
    await database.close()


@pytest.fixture(autouse=True)
def _caller() -> Any:
    identity = Identity(EVERY_APP, "ann", frozenset(SCOPES))
    token = interceptors._caller.set(identity)
    yield
    interceptors._caller.reset(token)


async def test_an_app_that_is_made_again_is_refused_and_nothing_is_written(
    registry: Registry,
) -> None:
    await registry.create(quota=5.0)
    before = await registry.snapshots.get(keys.app("shop"))
    for quota in (5.0, 7.0):
        with pytest.raises(AlreadyExists):
            await registry.create(quota=quota)
    assert await registry.snapshots.get(keys.app("shop")) == before


async def test_an_update_replaces_every_setting(registry: Registry) -> None:
    await registry.create(description="sells", quota=5.0, in_flight=8)
    changed = await registry.update(in_flight=9)
    assert (changed.description, changed.quota, changed.in_flight) == ("", 0.0, 9)
    assert not changed.enabled


async def test_a_report_without_a_time_says_none(registry: Registry) -> None:
    assert not (await registry.reports(Report("d1", 0))).HasField("reported_at")
    shown = await registry.reports(Report("d1", 1_700_000_000_123))
    assert shown.reported_at.ToMilliseconds() == 1_700_000_000_123
