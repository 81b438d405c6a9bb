"""Triggers on their way to their queue: whoever waits for one hears what became of it."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any, cast

import pytest

from engine.bus.memory import MemoryBus
from engine.bus.port import Bus
from engine.bus.triggers import StartTrace
from engine.clock import Clock
from engine.core.graph import Graph, compile_graph
from engine.core.payload import of_value
from engine.document.examine import examine_text
from engine.errors import Exhausted, Unavailable
from engine.ids import mint
from engine.rpc.channels import Owners
from engine.snapshots.apps import App, Apps
from engine.snapshots.library import Library
from services.trigger import lanes as lanes_module
from services.trigger.admission import Admission
from services.trigger.lanes import Lanes
from services.trigger.load import Backlog
from services.trigger.quotas import Quotas
from services.trigger.readiness import Readiness

PATIENCE = 5.0  # seconds


class Scripted(MemoryBus):
    """Takes triggers as the next of `outcomes` says: an error is raised, a future is handed out;
    without one they are stored."""

    def __init__(self) -> None:
        super().__init__()
        self.outcomes: list[Any] = []
        self.offered = 0

    async def offer_trigger(
        self, partition: int, priority: int, frame: bytes
    ) -> asyncio.Future[int]:
        self.offered += 1
        if self.outcomes:
            outcome = self.outcomes.pop(0)
            if isinstance(outcome, Exception):
                raise outcome
            return cast("asyncio.Future[int]", outcome)
        return await super().offer_trigger(partition, priority, frame)


def a_trigger(value: Any = None) -> StartTrace:
    return StartTrace(mint(1_000, 1), 1, 1, of_value(value), 1_000, "me")


def under_way() -> asyncio.Future[int]:
    return asyncio.get_running_loop().create_future()


async def until(true: Callable[[], object]) -> None:
    async with asyncio.timeout(PATIENCE):
        while not true():
            await asyncio.sleep(0)


async def append(lanes: Lanes, value: Any = None) -> None:
    async with asyncio.timeout(PATIENCE):
        await lanes.append(a_trigger(value), "shop", 0)


async def test_a_fault_while_a_frame_is_sent_fails_its_triggers_and_no_later_ones() -> None:
    bus = Scripted()
    lanes = Lanes(bus, 1)
    bus.outcomes = [ZeroDivisionError("a fault")]
    with pytest.raises(ZeroDivisionError):
        await append(lanes)
    await append(lanes)
    assert bus.offered == 2


async def test_a_bus_that_closes_fails_all_that_wait_and_no_later_ones() -> None:
    bus = Scripted()
    lanes = Lanes(bus, 1)
    sent = under_way()
    bus.outcomes = [sent]
    first = asyncio.create_task(append(lanes))
    await until(lambda: bus.offered)
    second = asyncio.create_task(append(lanes))  # gathers for the next frame
    await asyncio.sleep(0)
    sent.cancel()
    for waiting in (first, second):
        with pytest.raises(Unavailable, match="the service stops"):
            await waiting
    await append(lanes)


class Owner:
    def __init__(self) -> None:
        self.asked = 0

    def of_partition(self, partition: int) -> Owner:
        return self

    def credentials(self) -> None:
        return None

    async def LeaseStarts(self, request: Any, timeout: float, metadata: Any) -> Any:
        from magicflow.v1.partition_service_pb2 import LeaseStartsResponse

        self.asked += request.wanted
        return LeaseStartsResponse(granted=request.wanted)


class Limited:
    def of(self, app: str) -> App:
        return App(quota=10.0)


class OneGraph:
    def __init__(self) -> None:
        drawn = examine_text("playbook: p\napp: shop\nnodes: {a: {task: f}}\n").playbook
        assert drawn is not None
        self._graph = compile_graph(drawn, 1, 1)

    async def graph(self, playbook_id: int, snapshot_id: int) -> Graph:
        return self._graph


async def test_what_finds_no_room_costs_nothing_of_the_quota(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(lanes_module, "MAX_BYTES", 10)
    bus, owner, apps = Scripted(), Owner(), cast(Apps, Limited())
    owners, library = cast(Owners, owner), cast(Library, OneGraph())
    admission = Admission(
        library,
        apps,
        Lanes(cast(Bus, bus), 1),
        Backlog(bus),
        Quotas(apps, owners, 1),
        cast(Readiness, None),
        owners,
        1,
        cast(Clock, None),
    )
    sent = under_way()
    bus.outcomes = [sent]
    first = asyncio.create_task(admission.append(a_trigger("as much as")))
    await until(lambda: bus.offered)
    with pytest.raises(Exhausted, match="wait to be stored"):
        await admission.append(a_trigger("may wait"))
    assert owner.asked == 1
    sent.set_result(1)
    await first
