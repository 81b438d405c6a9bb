"""A partition's owner over the in-memory bus: commit before effects, takeover, checkpoints."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import msgspec
import pytest

from engine.bus.memory import MemoryBus, MemoryDeadLetters, MemoryLog, MemorySpace
from engine.bus.port import Delivery
from engine.bus.triggers import Rerun, StartTrace, encode_triggers
from engine.clock import Clock
from engine.core import keys as keys_module
from engine.core import machine
from engine.core.events import OperatorActed
from engine.core.failure import Failure
from engine.core.journal import decode_frame
from engine.core.payload import Payload, of_value
from engine.core.playbook import Edge, Node, Playbook, Task
from engine.core.state import dump
from engine.core.steering import Act, Verb
from engine.errors import AlreadyExists, Exhausted, MagicflowError, NotFound, Unavailable
from engine.ids import mint
from engine.snapshots import keys
from engine.snapshots.library import Library, pack
from engine.snapshots.memory import MemorySnapshots
from magicflow.v1.task_pb2 import TaskFrame
from services.dispatcher import processor as processor_module
from services.dispatcher.limits import Limits, NoLimits
from services.dispatcher.processor import Deposed, Processor
from services.dispatcher.turns import Result

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
    async def owner(self, epoch: int, limits: Limits | None = None) -> AsyncIterator[Processor]:
        """An owner that works until the end of the block, then ends cleanly."""
        processor = Processor(0, epoch, self.bus, self.library, Clock(), limits)
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


# Keys, reruns, retries.

KEY, REQUEST = b"k" * 16, b"r" * 16


def keyed(request: bytes = REQUEST) -> StartTrace:
    trace_id = mint(1_000, 1, KEY)
    return StartTrace(trace_id, 1, 1, of_value(1), 1_000, "me", key=KEY, request=request)


@pytest.mark.parametrize("frames", [1, 2_000], ids=["from a checkpoint", "from the log"])
async def test_a_key_is_known_to_the_next_owner(
    world: World, frames: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(processor_module, "CHECKPOINT_FRAMES", frames)
    first = keyed()
    async with world.crashing_owner(1) as owner:
        assert await owner.start(first) == (first.trace_id, False)
        assert await owner.start(keyed()) == (first.trace_id, True)
    async with world.owner(2) as owner:
        assert await owner.start(keyed()) == (first.trace_id, True)
        with pytest.raises(AlreadyExists) as taken:
            await owner.start(keyed(b"other"))
        assert taken.value.metadata["trace_id"] == first.trace_id.hex()
    async with world.owner(3) as owner:
        assert await owner.start(keyed()) == (first.trace_id, True)


async def test_keys_beyond_the_bound_are_put_off_and_none_is_forgotten(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(keys_module, "MAX_KEYS", 1)
    async with world.owner(1) as owner:
        first = keyed()
        await owner.start(first)
        other = msgspec.structs.replace(keyed(), key=b"o" * 16)
        with pytest.raises(Exhausted):
            await owner.start(other)
        assert await owner.start(keyed()) == (first.trace_id, True)


async def test_a_rerun_records_who_wanted_it_and_takes_outcomes_over(world: World) -> None:
    rerun = Rerun(b"f" * 16, "two", "because", of_value("new"), {"one": of_value("old")}, {})
    trigger = StartTrace(mint(1_000, 1), 1, 1, of_value(1), 1_000, "ann", rerun=rerun)
    async with world.owner(1) as owner:
        await (await world.bus.offer_trigger(0, 5, encode_triggers([trigger])))
        await world.next_task()
        assert world.tasks == [("two", 1)]
        trace = owner.find(trigger.trace_id)
        assert trace is not None
        assert (trace.rerun_of, trace.nodes[0].output) == (b"f" * 16, of_value("old"))
        assert trace.nodes[1].input == of_value("new")
    log = world.bus.partition_log(0)
    frames = [decode_frame(data) async for _, data in log.read(0, await log.last())]
    acts = [
        event
        for frame in frames
        for entry in frame.entries
        for event in entry.events
        if isinstance(event, OperatorActed)
    ]
    assert acts == [OperatorActed(Verb.RERUN, "ann", "because", 1)]


async def test_an_ended_trace_runs_again_at_an_owner_that_never_knew_it(world: World) -> None:
    act = Act(Verb.RETRY, "ann")
    async with world.owner(1) as owner:
        trace_id = await world.trigger()
        await world.next_task()
        lost = Result(trace_id, "one", 1, None, Failure("BOOM"), b"", "w", 1)
        assert await owner.deliver([lost]) == [True]
        ended = owner.find(trace_id)
        assert ended is not None
        former = dump(ended)
    async with world.owner(2) as owner:
        with pytest.raises(NotFound):
            await owner.operate(trace_id, act)
        await owner.operate(trace_id, act, former)
        await world.next_task()
        assert world.tasks[-1] == ("one", 2)
    async with world.owner(3) as owner:  # the log alone knows that it runs
        again = owner.find(trace_id)
        assert again is not None
        assert again.nodes[0].attempt == 2


async def test_what_is_refused_is_certain_only_to_the_owner(world: World) -> None:
    """A deposed owner must not say that a result is superseded, or that nothing is owed."""
    async with world.crashing_owner(1) as deposed:
        trace_id = await world.trigger()
        await world.next_task()
        async with world.owner(2):
            stale = Result(trace_id, "one", 9, of_value(1), None, b"", "w", 1)
            with pytest.raises(Unavailable):
                await asyncio.wait_for(deposed.deliver([stale]), 5)
            with pytest.raises(Unavailable):
                await asyncio.wait_for(deposed.owed([(trace_id, "one", 9)]), 5)


async def test_an_owner_whose_cancellation_is_lost_lets_go_all_the_same(world: World) -> None:
    processor = Processor(0, 1, world.bus, world.library, Clock())
    await processor.recover()
    running = asyncio.create_task(processor.run())
    await asyncio.sleep(0)
    processor.abandon()
    with pytest.raises(Deposed):
        await asyncio.wait_for(running, 5)


# Faults of our own.


async def test_a_trace_over_which_a_rule_breaks_ends_and_the_others_go_on(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    broken = machine.Turn.succeeded

    def succeeded(turn: machine.Turn, command: machine.Succeeded) -> None:
        if command.output == of_value("poison"):
            raise ZeroDivisionError("a rule broke")
        broken(turn, command)

    monkeypatch.setattr(machine.Turn, "succeeded", succeeded)
    async with world.owner(1) as owner:
        bad, good = await world.trigger(), await world.trigger()
        await world.next_task()
        poison = Result(bad, "one", 1, of_value("poison"), None, b"", "w", 1)
        assert await owner.deliver([poison]) == [False]
        assert await owner.deliver([result(good, "one")]) == [True]
        ended = owner.find(bad)
        assert ended is not None and ended.failure is not None
        assert ended.failure.code == "INTERNAL_ERROR"
        assert "ZeroDivisionError" in ended.failure.message
        assert "a rule broke" not in ended.failure.message  # the text is for the log
    # The next owner folds it without the fault.
    async with world.owner(2) as owner:
        assert owner.find(bad) is None
        assert await owner.deliver([result(good, "two")]) == [True]


async def test_a_trigger_over_which_a_rule_breaks_is_put_aside_and_the_others_start(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    start = machine.start

    def starting(graphs: Any, trace_id: bytes, *rest: Any) -> Any:
        if trace_id == bad:
            raise ZeroDivisionError("a rule broke")
        return start(graphs, trace_id, *rest)

    monkeypatch.setattr(machine, "start", starting)
    bad, good = mint(1_000, 1), mint(1_000, 1)
    triggers = [StartTrace(t, 1, 1, of_value(1), 1_000, "me") for t in (bad, good)]
    await world.bus.offer_trigger(0, 5, encode_triggers(triggers))
    async with world.owner(1) as owner:
        await world.next_task()
        assert owner.find(good) is not None
        assert owner.find(bad) is None
    [letter] = await world.bus.dead.letters(0, 10)
    assert (letter.code, letter.origin) == ("TRIGGER_FAILED", "flow.trigger.0.5")
    assert "ZeroDivisionError" in letter.message
    assert "a rule broke" not in letter.message
    assert not world.space.queues["FLOW_TRIGGER"].items
    monkeypatch.setattr(machine, "start", start)
    await world.bus.dead.replay(letter.id)  # once the fault is mended
    async with world.owner(2) as owner:
        await world.next_task()
        assert owner.find(bad) is not None


async def test_a_trigger_that_cannot_be_put_aside_yet_stays_in_its_queue(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    start, bury = machine.start, MemoryDeadLetters.bury
    down = True

    def starting(graphs: Any, trace_id: bytes, *rest: Any) -> Any:
        if trace_id == bad:
            raise ZeroDivisionError("a rule broke")
        return start(graphs, trace_id, *rest)

    async def burying(letters: MemoryDeadLetters, *rest: Any) -> None:
        if down:
            raise Unavailable("no disk")
        await bury(letters, *rest)

    monkeypatch.setattr(machine, "start", starting)
    monkeypatch.setattr(MemoryDeadLetters, "bury", burying)
    good, bad = mint(1_000, 1), mint(1_000, 1)  # the last one has the frame's number otherwise
    triggers = [StartTrace(t, 1, 1, of_value(1), 1_000, "me") for t in (good, bad)]
    await world.bus.offer_trigger(0, 5, encode_triggers(triggers))
    async with world.crashing_owner(1) as owner:
        await world.next_task()
        assert await owner.deliver([result(good, "one")]) == [True]
        assert await owner.deliver([result(good, "two")]) == [True]
        assert len(world.space.queues["FLOW_TRIGGER"].items) == 1
    down = False
    async with asyncio.timeout(5), world.owner(2):
        while not await world.bus.dead.letters(0, 10):
            await asyncio.sleep(0.01)
    assert not world.space.queues["FLOW_TRIGGER"].items


async def test_a_frame_of_triggers_that_comes_again_starts_nothing_that_has_ended(
    world: World,
) -> None:
    trace_id = mint(1_000, 1)
    frame = encode_triggers([StartTrace(trace_id, 1, 1, of_value(1), 1_000, "me")])
    async with world.owner(1) as owner:
        await world.bus.offer_trigger(0, 5, frame)
        await world.next_task()
        both = [result(trace_id, "one"), result(trace_id, "two")]
        assert await owner.deliver(both) == [True, True]
        world.tasks.clear()
        await world.bus.offer_trigger(0, 5, frame)
        await world.trigger()
        world.dispatched.clear()
        await world.next_task()
        assert world.tasks == [("one", 1)]  # of the other trigger


@pytest.mark.parametrize("verb", [Verb.ABORT, Verb.RETRY], ids=str)
async def test_an_act_over_which_a_rule_breaks_fails_for_its_caller_alone(
    world: World, monkeypatch: pytest.MonkeyPatch, verb: Verb
) -> None:
    async with world.owner(1) as owner:
        bad, good = await world.trigger(), await world.trigger()
        await world.next_task()
        if verb is Verb.RETRY:
            await owner.operate(bad, Act(Verb.FAIL, "me", node="one"))
        with monkeypatch.context() as patched:
            patched.setattr(machine.Turn, "run", _break)
            with pytest.raises(MagicflowError, match="a fault in magicflow") as caught:
                await owner.operate(bad, Act(verb, "me"))
        assert caught.value.reason == "INTERNAL"
        assert await owner.deliver([result(good, "one")]) == [True]


async def test_a_keyed_start_over_which_a_rule_breaks_fails_for_its_caller_alone(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with world.owner(1) as owner:
        with monkeypatch.context() as patched:
            patched.setattr(machine.Turn, "run", _break)
            with pytest.raises(MagicflowError, match="a fault in magicflow"):
                await owner.start(keyed())
        _, known = await owner.start(keyed())  # the fault is mended
        assert not known


def _break(_turn: machine.Turn) -> None:
    raise ZeroDivisionError("a rule broke")


async def test_whoever_waits_for_a_turn_that_the_log_does_not_take_hears_of_it(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def full(*_: Any) -> None:
        raise Unavailable("no room to send")

    async with asyncio.timeout(5), world.crashing_owner(1) as owner:
        trace_id = await world.trigger()
        await world.next_task()
        monkeypatch.setattr(MemoryLog, "append", full)
        with pytest.raises(Unavailable, match="changing its owner"):
            await owner.deliver([result(trace_id, "one")])


# What an app may have.


class OneAtATime(NoLimits):
    def live(self, app: str, partition: int) -> int:
        return 1


class Busy(NoLimits):
    def unbegun(self, app: str) -> int:
        return 2


async def test_traces_beyond_those_that_an_app_may_have_wait_for_an_end(world: World) -> None:
    async with world.owner(1, OneAtATime()) as owner:
        first, second = await world.trigger(), await world.trigger()
        await world.next_task()
        assert (owner.find(first) is None, owner.find(second) is None) == (False, True)
        assert owner.load().waiting == {"a": 1}
        await owner.deliver([result(first, "one")])
        await owner.deliver([result(first, "two")])
        while owner.find(second) is None:
            await asyncio.sleep(0)
        assert owner.load().waiting == {}


async def test_starts_wait_while_as_many_tasks_wait_for_workers(world: World) -> None:
    async with world.owner(1, Busy()) as owner:
        traces = [await world.trigger() for _ in range(3)]
        await world.next_task()
        while owner.load().waiting != {"a": 1}:
            await asyncio.sleep(0)
        assert owner.find(traces[2]) is None
        owner.began(traces[0], "one", 1, "w", 1, False)
        while owner.find(traces[2]) is None:
            await asyncio.sleep(0)


async def test_a_start_under_a_key_is_refused_when_the_app_has_all_that_it_may_have(
    world: World,
) -> None:
    async with world.owner(1, OneAtATime()) as owner:
        await world.trigger()
        await world.next_task()
        trigger = StartTrace(mint(1_000, 1), 1, 1, of_value(1), 1_000, "me", key=b"k", request=b"r")
        with pytest.raises(Exhausted) as refused:
            await owner.start(trigger)
        assert (refused.value.reason, refused.value.retry_after) == ("OVERLOADED", 1.0)


# Time.


class Stepped(Clock):
    """A clock that was set by an hour."""

    def __init__(self, by: int) -> None:
        super().__init__()
        self._by = by

    def now(self) -> int:
        return super().now() + self._by


@pytest.mark.parametrize("step", [3_600_000, -3_600_000])
async def test_a_new_owner_goes_on_in_the_time_of_its_log_whatever_its_clock_says(
    world: World, step: int
) -> None:
    async with world.crashing_owner(1):
        await world.trigger()
        await world.next_task()
    now = Clock().now()
    owner = Processor(0, 2, world.bus, world.library, Stepped(step))
    await owner.recover()
    assert abs(owner._now() - now) < 5_000


async def test_a_clock_that_is_a_little_behind_the_log_waits_for_it(world: World) -> None:
    async with world.crashing_owner(1) as former:
        await world.trigger()
        await world.next_task()
        last = former._state.at
    owner = Processor(0, 2, world.bus, world.library, Stepped(-20_000))
    await owner.recover()
    assert last <= owner._now() < last + 10_000
