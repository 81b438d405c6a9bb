"""A partition's owner over the in-memory bus: commit before effects, takeover, checkpoints."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest

from engine.bus.memory import MemoryBus, MemorySpace
from engine.bus.port import Delivery
from engine.bus.triggers import StartTrace, encode_triggers
from engine.clock import Clock
from engine.core.payload import Payload, of_value
from engine.core.playbook import Edge, Node, Playbook, Task
from engine.ids import mint
from engine.snapshots import keys
from engine.snapshots.library import Library, pack
from engine.snapshots.memory import MemorySnapshots
from magicflow.v1.task_pb2 import TaskFrame
from services.dispatcher import processor as processor_module
from services.dispatcher.processor import Deposed, Processor, Result

CHAIN = Playbook(
    "p", "a", (Node("one", Task("a/f")), Node("two", Task("a/f"))), (Edge("one", "two"),)
)


class World:
    """One bus and one snapshot; owners come and go."""

    def __init__(self) -> None:
        self.space = MemorySpace()
        self.bus = MemoryBus(self.space)
        self.snapshots = MemorySnapshots()
        self.library = Library(self.snapshots)
        self.tasks: list[tuple[str, int]] = []
        self.dispatched = asyncio.Event()

    async def prepare(self) -> None:
        await self.snapshots.put(keys.snapshot(1, 1), pack(CHAIN))
        intake = await self.bus.take_tasks("a", "f", self._task)
        await intake.ask(1_000_000)

    async def _task(self, delivery: Delivery) -> None:
        frame = TaskFrame.FromString(delivery.data)
        self.tasks += [(task.id.node, task.id.attempt) for task in frame.tasks]
        await delivery.ack()
        self.dispatched.set()

    async def next_task(self) -> None:
        async with asyncio.timeout(5):
            await self.dispatched.wait()
        self.dispatched.clear()

    async def trigger(self) -> bytes:
        trace_id = mint(1_000, 1)
        frame = encode_triggers([StartTrace(trace_id, 1, 1, of_value({"n": 1}), 1_000, "me")])
        await (await self.bus.offer_trigger(0, 5, frame))
        return trace_id

    @asynccontextmanager
    async def owner(self, epoch: int) -> AsyncIterator[Processor]:
        """An owner that works until the end of the block, then ends cleanly."""
        processor = Processor(0, epoch, self.bus, self.library, Clock())
        await processor.recover()
        running = asyncio.create_task(processor.run())
        try:
            yield processor
        finally:
            processor.stop()
            await asyncio.wait_for(running, 5)

    @asynccontextmanager
    async def crashing_owner(self, epoch: int) -> AsyncIterator[Processor]:
        """An owner that vanishes at the end of the block, as a killed process does."""
        processor = Processor(0, epoch, self.bus, self.library, Clock())
        await processor.recover()
        running = asyncio.create_task(processor.run())
        try:
            yield processor
        finally:
            running.cancel()
            await asyncio.gather(running, return_exceptions=True)


@pytest.fixture
async def world() -> World:
    made = World()
    await made.prepare()
    return made


def result(trace_id: bytes, node: str, attempt: int = 1) -> Result:
    return Result(trace_id, node, attempt, of_value(1), None, b"", "w", 1)


async def test_a_result_is_answered_after_its_events_are_in_the_log(world: World) -> None:
    async with world.owner(1) as owner:
        trace_id = await world.trigger()
        await world.next_task()
        before = await world.bus.partition_log(0).last()
        assert await owner.deliver([result(trace_id, "one")]) == [True]
        assert await world.bus.partition_log(0).last() == before + 1


async def test_the_second_result_of_an_attempt_is_superseded(world: World) -> None:
    async with world.owner(1) as owner:
        trace_id = await world.trigger()
        await world.next_task()
        first, second = await asyncio.gather(
            owner.deliver([result(trace_id, "one")]), owner.deliver([result(trace_id, "one")])
        )
        assert (first, second) == ([True], [False])


async def test_a_new_owner_after_a_crash_dispatches_what_is_owed(world: World) -> None:
    async with world.crashing_owner(1) as owner:
        trace_id = await world.trigger()
        await world.next_task()
        await owner.deliver([result(trace_id, "one")])
        await world.next_task()
    world.tasks.clear()
    async with world.owner(2) as owner:
        await world.next_task()
        assert world.tasks == [("two", 1)]
        assert await owner.deliver([result(trace_id, "two")]) == [True]


async def test_the_test_above_notices_an_owner_that_forgets_what_is_owed(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A negative control."""
    async with world.crashing_owner(1):
        await world.trigger()
        await world.next_task()
    world.tasks.clear()
    monkeypatch.setattr(processor_module, "owed", lambda graph, state: iter(()))
    async with world.owner(2):
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.2):
                await world.dispatched.wait()


async def test_a_clean_handover_dispatches_nothing_again(world: World) -> None:
    async with world.owner(1):
        trace_id = await world.trigger()
        await world.next_task()
    world.tasks.clear()
    async with world.owner(2) as owner:
        assert await owner.deliver([result(trace_id, "one")]) == [True]
        await world.next_task()
        assert world.tasks == [("two", 1)]


async def test_a_handover_over_a_task_queue_that_was_lost_dispatches_again(world: World) -> None:
    async with world.owner(1):
        await world.trigger()
        await world.next_task()
    world.tasks.clear()
    world.space.lose_tasks()
    async with world.owner(2):
        await world.next_task()
        assert world.tasks == [("one", 1)]


async def test_a_task_queue_lost_under_an_owner_is_filled_again(world: World) -> None:
    async with world.owner(1):
        await world.trigger()
        await world.next_task()
        world.tasks.clear()
        world.space.lose_tasks()
        await world.next_task()
        assert world.tasks == [("one", 1)]


async def test_a_deposed_owner_commits_nothing_more(world: World) -> None:
    processor = Processor(0, 1, world.bus, world.library, Clock())
    await processor.recover()
    running = asyncio.create_task(processor.run())
    trace_id = await world.trigger()
    await world.next_task()
    successor = Processor(0, 2, world.bus, world.library, Clock())
    await successor.recover()
    after = await world.bus.partition_log(0).last()
    with pytest.raises(Exception, match="changing its owner"):
        await processor.deliver([result(trace_id, "one")])
    with pytest.raises(Deposed):
        await running
    assert await world.bus.partition_log(0).last() == after


async def test_an_owner_with_an_older_epoch_does_not_begin(world: World) -> None:
    async with world.owner(5):
        pass
    with pytest.raises(Deposed, match="has seen epoch 5"):
        await Processor(0, 4, world.bus, world.library, Clock()).recover()


async def test_a_trigger_that_is_delivered_twice_starts_one_trace(world: World) -> None:
    async with world.crashing_owner(1) as owner:
        trace_id = await world.trigger()
        await world.next_task()
        assert owner.find(trace_id) is not None
    # As if the acknowledgement had been lost: the queue has the same frame again.
    queue = world.space.queues["FLOW_TRIGGER"]
    assert not queue.items
    world.tasks.clear()
    async with world.owner(2) as owner:
        await world.next_task()
        frame = encode_triggers([StartTrace(trace_id, 1, 1, of_value({"n": 1}), 1_000, "me")])
        await (await world.bus.offer_trigger(0, 5, frame))
        assert await owner.deliver([result(trace_id, "one")]) == [True]
        assert await owner.deliver([result(trace_id, "two")]) == [True]
    assert world.tasks.count(("one", 1)) == 1


async def test_recovery_reads_the_checkpoint_and_only_the_frames_after_it(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(processor_module, "CHECKPOINT_FRAMES", 3)
    async with world.crashing_owner(1) as owner:
        traces = []
        for _ in range(12):
            traces.append(await world.trigger())
            await world.next_task()
        for trace_id in traces[:6]:
            await owner.deliver([result(trace_id, "one")])
            await owner.deliver([result(trace_id, "two")])
    assert await world.bus.checkpoint_log(0).last() > 0
    # Everything that the checkpoint covers may be gone from the log.
    folded = world.space.logs["FLOW_LOG_0"]
    await world.bus.partition_log(0).purge(folded.last - 4)
    world.tasks.clear()
    async with world.owner(2) as owner:
        await world.next_task()
        assert world.tasks == [("one", 1)] * 6
        assert all(owner.find(trace_id) is not None for trace_id in traces[6:])


async def test_a_payload_that_no_expression_can_read_travels_whole(world: World) -> None:
    async with world.owner(1) as owner:
        trace_id = await world.trigger()
        await world.next_task()
        binary = Payload(b"\x00\xff", "application/octet-stream")
        await owner.deliver([Result(trace_id, "one", 1, binary, None, b"", "w", 1)])
        found = owner.find(trace_id)
        assert found is not None
        assert found.nodes[1].input == binary
