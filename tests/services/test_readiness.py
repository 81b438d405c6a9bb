"""What live workers offer, and whether it is what a playbook needs."""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncIterator, Callable, Iterator

import pytest

from engine.core.graph import Graph, GraphNode
from engine.document.examine import examine_text
from engine.errors import Unavailable
from engine.snapshots import keys
from engine.snapshots.capacity import Capacity
from engine.snapshots.library import Library, pack, version
from engine.snapshots.memory import MemorySnapshots
from magicflow.v1.worker_pb2 import Function, Worker
from services.trigger import readiness
from services.trigger.readiness import Readiness

PATIENCE = 5.0  # seconds

TASK = "playbook: {name}\napp: shop\nnodes: {{a: {{task: {function}}}}}\n"
CALL = "playbook: {name}\napp: shop\nnodes: {{a: {{playbook: {callee}}}}}\n"
MAP = "playbook: {name}\napp: shop\nnodes: {{a: {{map: {{over: $$$.l, task: {function}}}}}}}\n"


async def until(true: Callable[[], object]) -> None:
    async with asyncio.timeout(PATIENCE):
        while not true():
            await asyncio.sleep(0.001)


class Cluster:
    """Workers and live playbooks in a space, and who watches it."""

    def __init__(self) -> None:
        self.snapshots = MemorySnapshots()
        self.capacity = Capacity(self.snapshots)
        self.library = Library(self.snapshots)
        self.readiness = Readiness(self.capacity, self.library)
        self.workers: dict[str, Worker] = {}
        self._count = 0

    async def open(self) -> None:
        await self.capacity.open()
        await self.library.open()

    async def close(self) -> None:
        await self.capacity.close()
        await self.library.close()

    async def seen(self) -> None:
        """Returns when the watch has brought what was put last."""
        here = {keys.worker(n): w.SerializeToString() for n, w in self.workers.items()}
        await until(lambda: self.capacity._mirror.entries == here)

    async def put(self, name: str, *functions: str, slots: int = 1, draining: bool = False) -> None:
        worker = self.workers[name] = Worker(
            worker_id=name,
            app="shop",
            functions=[Function(name=function) for function in functions],
            slots=slots,
            draining=draining,
        )
        await self.snapshots.put(keys.worker(name), worker.SerializeToString())
        await self.seen()

    async def take(self, name: str) -> None:
        del self.workers[name]
        await self.snapshots.delete(keys.worker(name))
        await self.seen()

    async def publish(self, text: str) -> Graph:
        """Live at once, and seen by the library."""
        self._count += 1
        number, snapshot_id = self._count, 100 + self._count
        playbook = examine_text(text).playbook
        assert playbook is not None
        await self.snapshots.put(keys.snapshot(number, snapshot_id), pack(playbook))
        await self.snapshots.put(keys.active(number), version(snapshot_id))
        await until(lambda: keys.active(number) in self.library._active.entries)
        await self.snapshots.put(keys.name(playbook.full_name), str(number).encode())
        graph = await self.library.graph(number, snapshot_id)
        await until(lambda: self.library.active(playbook.full_name) == (number, snapshot_id))
        return graph


@pytest.fixture
async def cluster() -> AsyncIterator[Cluster]:
    made = Cluster()
    await made.open()
    yield made
    await made.close()


async def test_counts_of_workers_are_kept_as_they_come_change_drain_and_go(
    cluster: Cluster,
) -> None:
    dice = random.Random(7)
    for _ in range(300):
        name = f"w{dice.randrange(6)}"
        if name in cluster.workers and dice.random() < 0.3:
            await cluster.take(name)
        else:
            functions = [f"shop/f{dice.randrange(4)}" for _ in range(dice.randrange(4))]
            drains = dice.random() < 0.3
            await cluster.put(name, *functions, slots=dice.randrange(5), draining=drains)
        here = cluster.workers.values()
        awake = [worker for worker in here if not worker.draining]
        assert cluster.capacity.slots("shop") == sum(worker.slots for worker in awake)
        assert cluster.capacity.serving == {f.name for w in awake for f in w.functions}
        assert cluster.capacity.offered == {f.name for w in here for f in w.functions}


async def test_of_two_workers_of_a_function_one_may_go(cluster: Cluster) -> None:
    serving = cluster.capacity.serving
    await cluster.put("one", "shop/f")
    await cluster.put("two", "shop/f", "shop/f")
    await cluster.take("two")
    assert serving == {"shop/f"}
    await cluster.put("one", "shop/f", draining=True)
    assert not serving
    assert cluster.capacity.offered == {"shop/f"}


async def test_what_called_playbooks_need_counts_as_they_are_live_now(cluster: Cluster) -> None:
    await cluster.publish(TASK.format(name="inner", function="one"))
    outer = await cluster.publish(CALL.format(name="outer", callee="inner"))
    await cluster.put("w", "shop/one")
    await cluster.readiness.check(outer)
    await cluster.publish(TASK.format(name="inner", function="two"))
    with pytest.raises(Unavailable, match="no live worker offers shop/two") as refused:
        await cluster.readiness.check(outer)
    assert refused.value.reason == "NO_WORKER"


async def test_a_snapshot_is_looked_through_once_and_few_are_remembered(
    cluster: Cluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(readiness, "MAX_CACHED", 3)
    looked_at: list[int] = []
    all_nodes = readiness._all_nodes

    def counting(graph: Graph) -> Iterator[GraphNode]:
        looked_at.append(graph.snapshot_id)
        return all_nodes(graph)

    monkeypatch.setattr(readiness, "_all_nodes", counting)
    graphs = [await cluster.publish(MAP.format(name=f"p{n}", function="f")) for n in range(5)]
    await cluster.put("w", "shop/f")
    for graph in graphs:
        for _ in range(3):
            await cluster.readiness.check(graph)
    assert looked_at == [graph.snapshot_id for graph in graphs]
    assert len(cluster.readiness._known) == 3
