"""Who owns which partition while dispatchers come, go, and come again."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from typing import cast

import pytest

from engine.bus.memory import MemoryBus, MemorySpace
from engine.clock import Clock
from engine.snapshots import keys
from engine.snapshots.library import Library
from engine.snapshots.membership import Member, chosen
from engine.snapshots.memory import MemorySnapshots
from services.dispatcher.limits import NoLimits
from services.dispatcher.ownership import Ownership
from services.dispatcher.processor import Processor
from services.dispatcher.recovery import Recovered, Recovery
from services.dispatcher.standby import Standby

PARTITIONS = 12


class Cluster:
    def __init__(self) -> None:
        self.snapshots = MemorySnapshots()
        self.space = MemorySpace()
        self.instances: dict[str, Ownership] = {}

    async def join(self, name: str) -> Ownership:
        made = Ownership(
            Member("dispatcher", name, f"{name}:1"),
            PARTITIONS,
            self.snapshots,
            MemoryBus(self.space),
            cast(Library, None),
            Clock(),
            NoLimits(),
        )
        self.instances[name] = made
        await made.open()
        return made

    async def leave(self, name: str) -> None:
        await self.instances.pop(name).close()

    def owned(self) -> dict[str, set[int]]:
        return {name: set(made.processors) for name, made in self.instances.items()}

    def wanted(self) -> dict[str, set[int]]:
        names = list(self.instances)
        return {n: {p for p in range(PARTITIONS) if chosen(p, names) == n} for n in names}

    async def settles(self) -> None:
        await until(lambda: self.owned() == self.wanted())


async def until(true: Callable[[], bool]) -> None:
    async with asyncio.timeout(20):
        while not true():
            await asyncio.sleep(0.005)


@pytest.fixture
async def cluster() -> AsyncIterator[Cluster]:
    made = Cluster()
    yield made
    for name in list(made.instances):
        await made.leave(name)
    await made.snapshots.close()


async def test_one_dispatcher_owns_everything(cluster: Cluster) -> None:
    await cluster.join("a")
    await cluster.settles()
    assert cluster.owned() == {"a": set(range(PARTITIONS))}


async def test_partitions_follow_who_is_there_however_often_somebody_comes_and_goes(
    cluster: Cluster,
) -> None:
    """A partition that was handed on and came back is handed on again."""
    await cluster.join("a")
    await cluster.settles()
    for _ in range(3):
        await cluster.join("b")
        await cluster.settles()
        assert all(cluster.owned().values())
        await cluster.leave("b")
        await cluster.settles()


async def test_no_partition_has_two_owners_and_only_those_of_the_newcomer_move(
    cluster: Cluster,
) -> None:
    for name in ("a", "b", "c"):
        await cluster.join(name)
    await cluster.settles()
    before = {p: m.epoch for made in cluster.instances.values() for p, m in made.processors.items()}
    await cluster.join("d")
    await cluster.settles()
    epochs = {p: m.epoch for made in cluster.instances.values() for p, m in made.processors.items()}
    moved = {p for p in epochs if epochs[p] != before[p]}
    assert moved == cluster.owned()["d"]


async def test_partitions_are_let_go_one_after_the_other(
    cluster: Cluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = await cluster.join("a")
    await cluster.settles()
    stopping: set[int] = set()
    most = 0
    for partition, processor in first.processors.items():

        def stop(
            followed: bool,
            partition: int = partition,
            stop: Callable[[bool], None] = processor.stop,
        ) -> None:
            nonlocal most
            stopping.add(partition)
            most = max(most, len(stopping & set(first._running)))
            stop(followed)

        monkeypatch.setattr(processor, "stop", stop)
    await cluster.join("b")
    await cluster.settles()
    assert stopping == cluster.owned()["b"]
    assert most == 1


async def test_whoever_leaves_says_so_before_it_lets_go(cluster: Cluster) -> None:
    await cluster.join("a")
    second = await cluster.join("b")
    await cluster.settles()
    mine = set(second.processors)
    await cluster.leave("b")
    await cluster.settles()
    assert mine <= cluster.owned()["a"]


async def test_the_next_owner_has_read_the_log_before_it_owns(
    cluster: Cluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Between the two owners nothing is read but what came last."""
    owned: list[int] = []
    loaded: list[int] = []
    recover, begin = Processor.recover, Recovery._begin

    async def recovers(self: Processor) -> None:
        owned.append(self.partition)
        await recover(self)

    async def begins(self: Recovery) -> Recovered:
        assert self._partition not in owned
        loaded.append(self._partition)
        return await begin(self)

    await cluster.join("a")
    await cluster.settles()
    monkeypatch.setattr(Processor, "recover", recovers)
    monkeypatch.setattr(Recovery, "_begin", begins)
    await cluster.join("b")
    await cluster.settles()
    moved = cluster.owned()["b"]
    assert moved
    assert set(owned) == set(loaded) == moved
    owned.clear()
    loaded.clear()
    await cluster.leave("b")
    await cluster.settles()
    assert set(owned) == set(loaded) == moved


async def test_one_that_does_not_get_to_read_ahead_gets_it_all_the_same(
    cluster: Cluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def never(self: Standby, snapshots: object, name: str, lease: int) -> None:
        await asyncio.Event().wait()

    monkeypatch.setattr(Standby, "_keep", never)
    monkeypatch.setattr("services.dispatcher.ownership.FOLLOWING", 0.2)
    await cluster.join("a")
    await cluster.settles()
    await cluster.join("b")
    await cluster.settles()
    assert cluster.owned()["b"]


async def test_nothing_of_standbys_is_left_behind(cluster: Cluster) -> None:
    for name in ("a", "b", "c"):
        await cluster.join(name)
    await cluster.settles()
    await cluster.leave("b")
    await cluster.settles()
    await until(lambda: not any(made._standbys for made in cluster.instances.values()))
    async with asyncio.timeout(5):
        while (await cluster.snapshots.list(keys.STANDBYS))[0]:
            await asyncio.sleep(0.01)


async def test_a_standby_that_misses_a_cancellation_holds_up_nobody(
    cluster: Cluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As one does that waits for the bus with `asyncio.wait_for` of Python 3.11."""
    follow = Recovery.follow
    missed: list[int] = []

    async def deaf(self: Recovery) -> None:
        try:
            await follow(self)
        except asyncio.CancelledError:
            missed.append(self._partition)
        await follow(self)

    monkeypatch.setattr(Recovery, "follow", deaf)
    await cluster.join("a")
    await cluster.settles()
    await cluster.join("b")
    await cluster.settles()
    assert set(missed) == cluster.owned()["b"]


async def test_the_last_ones_do_not_wait_for_each_other(
    cluster: Cluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    """All of a cluster is stopped: nobody will read anything."""
    monkeypatch.setattr("services.dispatcher.ownership.FOLLOWING", 60.0)
    await cluster.join("a")
    await cluster.join("b")
    await cluster.settles()
    async with asyncio.timeout(10):
        await asyncio.gather(cluster.leave("a"), cluster.leave("b"))
