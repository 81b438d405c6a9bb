"""What every adapter of the bus port promises; each test runs on all of them."""

from __future__ import annotations

import asyncio
import itertools
import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import aclosing
from pathlib import Path
from typing import Any

import pytest

from engine.bus.jetstream import JetStreamBus, connect
from engine.bus.jetstream.queues import JetStreamIntake
from engine.bus.memory import MemoryBus, MemorySpace
from engine.bus.port import Bus, Delivery, Fenced, Log
from engine.core.journal import (
    VERSION,
    Frame,
    PartitionState,
    decode_frame,
    encode_frame,
    fold,
)
from engine.errors import NotFound, Unavailable
from tests.servers import NatsServer

PATIENCE = 15.0  # seconds until a test that waits has failed
PARTITIONS = 20  # each is two streams on disk; every test of a log has its own


class Bench:
    """One adapter, and names of its own for every test: the server outlives them."""

    numbers = itertools.count()

    def __init__(self) -> None:
        self.number = next(self.numbers)
        self.partition = 0
        self._buses: list[Any] = []

    async def _open(self) -> Any:
        raise NotImplementedError

    async def bus(self) -> Bus:
        """Another connection to the same server."""
        bus = await self._open()
        self._buses.append(bus)
        return bus

    @property
    def function(self) -> str:
        return f"f{self.number}"

    async def lose_tasks(self) -> None:
        raise NotImplementedError

    async def close(self) -> None:
        for bus in self._buses:
            await bus.close()


class MemoryBench(Bench):
    def __init__(self) -> None:
        super().__init__()
        self.space = MemorySpace()

    async def _open(self) -> MemoryBus:
        return MemoryBus(self.space)

    async def lose_tasks(self) -> None:
        self.space.lose_tasks()


class JetStreamBench(Bench):
    def __init__(self, server: NatsServer) -> None:
        super().__init__()
        self.server = server

    async def _open(self) -> JetStreamBus:
        return await connect([self.server.url], partitions=PARTITIONS)

    async def restart(self) -> None:
        await asyncio.to_thread(self.server.kill)
        await asyncio.to_thread(self.server.start)

    lose_tasks = restart


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[NatsServer]:
    with NatsServer(tmp_path_factory.mktemp("nats")) as server:
        yield server


@pytest.fixture(params=["memory", "jetstream"])
async def bench(request: pytest.FixtureRequest) -> AsyncIterator[Bench]:
    if request.param == "memory":
        bench: Bench = MemoryBench()
    else:
        bench = JetStreamBench(request.getfixturevalue("server"))
    yield bench
    await bench.close()


@pytest.fixture
async def jetstream(server: NatsServer) -> AsyncIterator[JetStreamBench]:
    bench = JetStreamBench(server)
    yield bench
    await bench.close()


async def until(condition: Callable[[], object]) -> None:
    async with asyncio.timeout(PATIENCE):
        while not condition():
            await asyncio.sleep(0.01)


async def fill(log: Log, *frames: bytes) -> int:
    """Appends one after the other; returns the last sequence."""
    last = await log.last()
    for frame in frames:
        last = await (await log.append(frame, last))
    return last


async def whole(log: Log, after: int = 0, through: int = 1 << 40) -> list[tuple[int, bytes]]:
    return [item async for item in log.read(after, through)]


# Logs.


log_numbers = itertools.count()


@pytest.fixture
async def log(bench: Bench) -> Log:
    """A log that no other test has."""
    if isinstance(bench, JetStreamBench):
        bench.partition = next(log_numbers)
    bus = await bench.bus()
    log = bus.partition_log(bench.partition)
    assert await log.last() == 0, "another test had this partition"
    return log


async def test_a_new_log_is_empty_and_counts_from_one(log: Log) -> None:
    assert await log.last() == 0
    assert await whole(log) == []
    assert await (await log.append(b"a", 0)) == 1
    assert await (await log.append(b"b", 1)) == 2
    assert await log.last() == 2
    assert await whole(log) == [(1, b"a"), (2, b"b")]


async def test_checkpoints_and_frames_of_a_partition_are_apart(bench: Bench, log: Log) -> None:
    bus = await bench.bus()
    await fill(log, b"frame")
    await fill(bus.checkpoint_log(bench.partition), b"checkpoint")
    assert await whole(log) == [(1, b"frame")]
    assert await whole(bus.checkpoint_log(bench.partition)) == [(1, b"checkpoint")]


async def test_appends_in_flight_together_land_in_their_order(log: Log) -> None:
    futures = [await log.append(b"%d" % n, n) for n in range(100)]
    assert await asyncio.gather(*futures) == list(range(1, 101))
    assert await whole(log) == [(n + 1, b"%d" % n) for n in range(100)]


@pytest.mark.parametrize("expected", [0, 1, 3, 99])
async def test_an_append_that_expects_another_sequence_is_fenced(log: Log, expected: int) -> None:
    await fill(log, b"a", b"b")
    with pytest.raises(Fenced):
        await (await log.append(b"mine", expected))
    assert await whole(log) == [(1, b"a"), (2, b"b")]


def frame(epoch: int, number: int) -> bytes:
    return encode_frame(Frame(VERSION, 0, epoch, number, 0, 0, []))


async def test_what_a_deposed_owner_had_in_flight_changes_nothing(bench: Bench, log: Log) -> None:
    """Its first frame is refused; the second can meet the sequence that it expected, which is the
    new owner's opening. It is then in the log, and every reader passes it over."""
    await fill(log, frame(1, 0))
    await fill((await bench.bus()).partition_log(bench.partition), frame(2, 0))
    futures = [await log.append(frame(1, 1 + n), 1 + n) for n in range(3)]
    with pytest.raises(Fenced):
        await futures[0]
    await asyncio.wait(futures)
    assert all(isinstance(future.exception(), Fenced) for future in futures)
    state, epochs = PartitionState(), []
    for sequence, data in await whole(log):
        fold(state, sequence, decode_frame(data), lambda snapshot_id: pytest.fail("no snapshot"))
        epochs.append(state.epoch)
    assert epochs[:2] == [1, 2]
    assert set(epochs[1:]) == {2}
    assert state.sequence == await log.last()


async def test_of_two_writers_one_goes_on(bench: Bench, log: Log) -> None:
    other = (await bench.bus()).partition_log(bench.partition)
    outcomes = await asyncio.gather(
        await log.append(b"mine", 0), await other.append(b"theirs", 0), return_exceptions=True
    )
    assert sorted(isinstance(outcome, Fenced) for outcome in outcomes) == [False, True]
    assert len(await whole(log)) == 1


async def test_a_log_is_read_between_two_sequences(log: Log) -> None:
    await fill(log, b"1", b"2", b"3", b"4")
    assert await whole(log, 1, 3) == [(2, b"2"), (3, b"3")]
    assert await whole(log, 4, 4) == []
    assert await whole(log, 3, 99) == [(4, b"4")]
    assert await whole(log, 9, 99) == []


async def test_a_purged_log_keeps_its_count(log: Log) -> None:
    await fill(log, b"1", b"2", b"3")
    await log.purge(2)
    assert await whole(log) == [(3, b"3")]
    assert await whole(log, 0, 1) == []
    await log.purge(3)
    assert await whole(log) == []
    assert await log.last() == 3
    assert await (await log.append(b"4", 3)) == 4


async def test_purging_what_is_gone_does_nothing(log: Log) -> None:
    await fill(log, b"1", b"2", b"3")
    await log.purge(2)
    await log.purge(1)
    await log.purge(0)
    assert await whole(log) == [(3, b"3")]


async def test_a_follower_sees_what_was_there_and_what_comes(bench: Bench, log: Log) -> None:
    await fill(log, b"1", b"2")
    following = (await bench.bus()).partition_log(bench.partition).follow(1)
    async with asyncio.timeout(PATIENCE), aclosing(following) as frames:  # type: ignore[type-var]
        assert await anext(frames) == (2, b"2")
        await fill(log, b"3")
        assert await anext(frames) == (3, b"3")


async def test_a_frame_may_have_four_megabytes(log: Log) -> None:
    frame = bytes(4 * 1_048_576)
    await fill(log, frame)
    assert await whole(log) == [(1, frame)]


# Queues.


class Hand:
    """Takes deliveries and keeps them."""

    def __init__(self) -> None:
        self.held: list[Delivery] = []

    async def __call__(self, delivery: Delivery) -> None:
        self.held.append(delivery)

    @property
    def data(self) -> list[bytes]:
        return [delivery.data for delivery in self.held]


async def offer(bench: Bench, bus: Bus, *frames: bytes) -> list[int]:
    return [await (await bus.offer_tasks("shop", bench.function, 5, frame)) for frame in frames]


async def test_a_frame_goes_to_whoever_asks_for_it(bench: Bench) -> None:
    bus, hand = await bench.bus(), Hand()
    (sequence,) = await offer(bench, bus, b"one")
    intake = await (await bench.bus()).take_tasks("shop", bench.function, hand)
    await intake.ask(1)
    await until(lambda: hand.held)
    (delivery,) = hand.held
    assert (delivery.data, delivery.sequence, delivery.redelivered) == (b"one", sequence, False)
    await delivery.ack()


async def test_nobody_gets_more_than_was_asked_for(bench: Bench) -> None:
    bus, hand = await bench.bus(), Hand()
    await offer(bench, bus, *(b"%d" % n for n in range(6)))
    intake = await bus.take_tasks("shop", bench.function, hand)
    await intake.ask(2)
    await until(lambda: len(hand.held) == 2)
    other = Hand()
    rest = await (await bench.bus()).take_tasks("shop", bench.function, other)
    await rest.ask(4)
    await until(lambda: len(other.held) == 4)
    assert len(hand.held) == 2
    assert sorted(hand.data + other.data) == [b"%d" % n for n in range(6)]


async def test_an_ask_replaces_the_one_before(bench: Bench) -> None:
    bus, hand = await bench.bus(), Hand()
    intake = await bus.take_tasks("shop", bench.function, hand)
    await intake.ask(1)
    await intake.ask(3)
    await offer(bench, bus, b"1", b"2", b"3", b"4")
    await until(lambda: len(hand.held) == 3)
    other = Hand()
    rest = await (await bench.bus()).take_tasks("shop", bench.function, other)
    await rest.ask(1)
    await until(lambda: len(other.held) == 1)
    assert len(hand.held) == 3


async def test_frames_that_come_later_meet_the_ask_that_waits(bench: Bench) -> None:
    bus, hand = await bench.bus(), Hand()
    intake = await bus.take_tasks("shop", bench.function, hand)
    await intake.ask(3)
    await offer(bench, bus, b"1", b"2", b"3")
    await until(lambda: len(hand.held) == 3)
    assert hand.data == [b"1", b"2", b"3"]


async def test_what_was_given_back_comes_again_and_says_so(bench: Bench) -> None:
    bus, hand = await bench.bus(), Hand()
    await offer(bench, bus, b"one")
    intake = await bus.take_tasks("shop", bench.function, hand)
    await intake.ask(1)
    await until(lambda: hand.held)
    await hand.held[0].give_back()
    await intake.ask(1)
    await until(lambda: len(hand.held) == 2)
    first, second = hand.held
    assert second.data == b"one"
    assert second.sequence == first.sequence
    assert (first.redelivered, second.redelivered) == (False, True)


async def test_what_was_given_back_with_a_delay_comes_after_it(bench: Bench) -> None:
    bus, hand = await bench.bus(), Hand()
    await offer(bench, bus, b"one")
    intake = await bus.take_tasks("shop", bench.function, hand)
    await intake.ask(1)
    await until(lambda: hand.held)
    loop = asyncio.get_running_loop()
    before = loop.time()
    await intake.ask(1)
    await hand.held[0].give_back(0.3)
    await until(lambda: len(hand.held) == 2)
    assert loop.time() - before > 0.25


async def test_what_was_acknowledged_never_comes_again(bench: Bench) -> None:
    bus, hand = await bench.bus(), Hand()
    await offer(bench, bus, b"one", b"two")
    intake = await bus.take_tasks("shop", bench.function, hand)
    await intake.ask(2)
    await until(lambda: len(hand.held) == 2)
    await hand.held[0].ack()
    await hand.held[0].give_back()
    await hand.held[1].give_back()
    other = Hand()
    rest = await (await bench.bus()).take_tasks("shop", bench.function, other)
    await rest.ask(2)
    await until(lambda: other.held)
    await offer(bench, bus, b"three")
    await until(lambda: len(other.held) == 2)
    assert other.data == [b"two", b"three"]


async def test_functions_do_not_see_each_others_frames(bench: Bench) -> None:
    bus, hand = await bench.bus(), Hand()
    await (await bus.offer_tasks("shop", f"{bench.function}x", 5, b"another function"))
    await (await bus.offer_tasks("mall", bench.function, 5, b"another app"))
    intake = await bus.take_tasks("shop", bench.function, hand)
    await intake.ask(5)
    await (await bus.offer_tasks("shop", bench.function, 9, b"ours"))
    await until(lambda: hand.held)
    assert hand.data == [b"ours"]


async def test_the_floor_is_below_the_first_open_trigger(bench: Bench) -> None:
    bus, hand = await bench.bus(), Hand()
    offered = [await (await bus.offer_trigger(bench.partition, 5, b"%d" % n)) for n in range(4)]
    intake = await bus.take_triggers(bench.partition, hand)
    await intake.ask(4)
    await until(lambda: len(hand.held) == 4)
    assert await intake.floor() < offered[0]
    await hand.held[1].ack()
    assert await intake.floor() < offered[0]
    await hand.held[0].ack()
    async with asyncio.timeout(PATIENCE):
        while (floor := await intake.floor()) < offered[1]:
            await asyncio.sleep(0.01)
    assert offered[1] <= floor < offered[2]
    for delivery in hand.held[2:]:
        await delivery.ack()
    async with asyncio.timeout(PATIENCE):
        while await intake.floor() < offered[3]:
            await asyncio.sleep(0.01)


async def test_triggers_of_a_partition_go_to_its_taker_only(bench: Bench) -> None:
    bus, hand, other = await bench.bus(), Hand(), Hand()
    neighbour = (bench.partition + 1) % PARTITIONS
    await (await bus.take_triggers(bench.partition, hand)).ask(9)
    await (await bus.take_triggers(neighbour, other)).ask(9)
    await (await bus.offer_trigger(bench.partition, 5, b"ours"))
    await (await bus.offer_trigger(neighbour, 0, b"theirs"))
    await until(lambda: hand.held and other.held)
    assert (hand.data, other.data) == ([b"ours"], [b"theirs"])
    for delivery in hand.held + other.held:
        await delivery.ack()


async def test_a_closed_intake_gets_nothing_more(bench: Bench) -> None:
    bus, hand, other = await bench.bus(), Hand(), Hand()
    intake = await bus.take_tasks("shop", bench.function, hand)
    await intake.ask(5)
    await intake.close()
    await offer(bench, bus, b"one")
    rest = await (await bench.bus()).take_tasks("shop", bench.function, other)
    await rest.ask(1)
    await until(lambda: other.held)
    assert hand.held == []


async def test_a_task_queue_that_lost_all_has_another_identity(bench: Bench) -> None:
    bus, calls = await bench.bus(), []
    bus.on_tasks_lost(lambda app: calls.append(f"lost{app}"))
    before = await bus.tasks_identity()
    assert await (await bench.bus()).tasks_identity() == before
    await offer(bench, bus, b"forgotten")
    await bench.lose_tasks()
    await until(lambda: calls)
    assert calls == ["lost"]
    assert await bus.tasks_identity() != before


async def test_an_ask_outlives_the_loss_of_the_task_queue(bench: Bench) -> None:
    bus, hand, calls = await bench.bus(), Hand(), []
    bus.on_tasks_lost(lambda app: calls.append(f"lost{app}"))
    intake = await bus.take_tasks("shop", bench.function, hand)
    await intake.ask(2)
    await bench.lose_tasks()
    await until(lambda: calls)
    await offer(bench, bus, b"one", b"two")
    await until(lambda: len(hand.held) == 2)
    assert hand.data == [b"one", b"two"]


# Notes and the dead.


async def test_a_note_reaches_whoever_listens(bench: Bench) -> None:
    bus, heard = await bench.bus(), []

    async def hear(subject: str, data: bytes) -> None:
        heard.append((subject, data))

    subject = f"flow.test.{bench.number}"
    listening = await (await bench.bus()).listen("flow.test.*", hear)
    await bus.tell("flow.other.1", b"not for us")
    await bus.tell(subject, b"for us")
    await until(lambda: heard)
    await listening.close()
    await bus.tell(subject, b"too late")
    again = await bus.listen(subject, hear)
    await bus.tell(subject, b"last")
    await until(lambda: len(heard) > 1)
    await again.close()
    assert heard == [(subject, b"for us"), (subject, b"last")]


async def test_a_star_stands_for_one_part_of_a_subject(bench: Bench) -> None:
    bus, heard = await bench.bus(), []

    async def hear(subject: str, data: bytes) -> None:
        heard.append(data)

    await bus.listen(f"flow.star{bench.number}.*", hear)
    await bus.tell(f"flow.star{bench.number}.a.b", b"two parts")
    await bus.tell(f"flow.star{bench.number}.a", b"one part")
    await until(lambda: heard)
    assert heard == [b"one part"]


async def test_a_log_says_how_long_ago_its_last_frame_was_stored(bench: Bench) -> None:
    log = (await bench.bus()).partition_log(PARTITIONS - 1)
    if await log.last() == 0:
        assert await log.since_last() == 0
    await (await log.append(b"frame", await log.last()))
    first = await log.since_last()
    await asyncio.sleep(0.05)  # time itself is under test
    assert 0 <= first < await log.since_last() < 10_000


# Dead letters.


async def buried(bus: Bus, origin: str, *frames: bytes) -> list[int]:
    """The numbers of the letters, in the order of the frames."""
    before = {letter.id for letter in await bus.dead.letters(0, 1_000)}
    for frame in frames:
        await bus.dead.bury(origin, frame, "CORRUPT", "not a frame\nof ours")
    found = [letter for letter in await bus.dead.letters(0, 1_000) if letter.id not in before]
    assert len(found) == len(frames)
    return sorted(letter.id for letter in found)


async def test_a_dead_letter_keeps_its_frame_its_origin_and_the_reason(bench: Bench) -> None:
    bus, before = await bench.bus(), int(time.time() * 1_000)
    (number,) = await buried(bus, f"flow.task.a.{bench.function}.5", b"\x00frame")
    found = await bus.dead.letter(number)
    assert (found.origin, found.frame, found.code) == (
        f"flow.task.a.{bench.function}.5",
        b"\x00frame",
        "CORRUPT",
    )
    assert found.message.replace("\n", " ") == "not a frame of ours"
    assert before - 1_000 <= found.at <= time.time() * 1_000 + 1_000


async def test_dead_letters_come_newest_first_page_by_page_without_the_dropped_ones(
    bench: Bench,
) -> None:
    bus = await bench.bus()
    numbers = await buried(bus, "flow.task.a.f.5", b"1", b"2", b"3", b"4")
    await bus.dead.drop(numbers[1])
    first = await bus.dead.letters(0, 2)
    second = await bus.dead.letters(first[-1].id, 1)
    assert [letter.frame for letter in (*first, *second)] == [b"4", b"3", b"1"]


async def test_a_dead_letter_that_is_not_there_is_not_found(bench: Bench) -> None:
    bus = await bench.bus()
    (number,) = await buried(bus, "flow.task.a.f.5", b"1")
    await bus.dead.drop(number)
    for again in (bus.dead.drop, bus.dead.letter, bus.dead.replay):
        with pytest.raises(NotFound, match=str(number)):
            await again(number)


async def test_a_replayed_letter_comes_out_of_its_queue_again(bench: Bench) -> None:
    bus, deliveries = await bench.bus(), []

    async def handle(delivery: Delivery) -> None:
        deliveries.append(delivery)
        await delivery.ack()

    intake = await bus.take_tasks("a", bench.function, handle)
    await intake.ask(5)
    (number,) = await buried(bus, f"flow.task.a.{bench.function}.7", b"again")
    await bus.dead.replay(number)
    await until(lambda: deliveries)
    assert [(d.data, d.subject) for d in deliveries] == [
        (b"again", f"flow.task.a.{bench.function}.7")
    ]
    with pytest.raises(NotFound):
        await bus.dead.letter(number)
    await intake.close()


# JetStream alone: what a server that dies must not do, and one without our streams.


async def test_no_frame_is_lost_or_doubled_when_the_server_dies_in_mid_append(
    jetstream: JetStreamBench,
) -> None:
    bus = await jetstream.bus()
    log = bus.partition_log(jetstream.partition)
    last = await log.last()
    futures: list[asyncio.Future[int]] = []
    expected = [(last + n + 1, b"frame %d" % n) for n in range(300)]

    async def append_all() -> None:
        for sequence, frame in expected:
            futures.append(await log.append(frame, sequence - 1))
            if len(futures) % 10 == 0:
                await asyncio.wait([futures[-10]])

    appending = asyncio.create_task(append_all())
    await until(lambda: len(futures) > 100)
    await jetstream.restart()
    async with asyncio.timeout(45):
        await appending
        assert await asyncio.gather(*futures) == [sequence for sequence, _ in expected]
    assert await whole(log, last) == expected


async def test_a_frame_whose_acknowledgement_was_lost_is_found_and_not_doubled(
    jetstream: JetStreamBench,
) -> None:
    bus: Any = await jetstream.bus()
    log = bus.partition_log(jetstream.partition)
    last = await log.last()
    acknowledged = bus._publisher._acknowledged

    async def deaf(message: Any) -> None:
        """The first acknowledgement never comes; the connection is said to be gone instead."""
        bus._publisher._acknowledged = acknowledged
        _, future = bus._publisher._pending.pop(message.subject.rpartition(".")[2])
        future.set_exception(Unavailable("the bus did not answer"))

    for subscription in bus._client._subs.values():
        if subscription._cb == acknowledged:
            subscription._cb = lambda message: bus._publisher._acknowledged(message)
    bus._publisher._acknowledged = deaf
    assert await (await log.append(b"once", last)) == last + 1
    assert await (await log.append(b"twice", last + 1)) == last + 2
    assert await whole(log, last) == [(last + 1, b"once"), (last + 2, b"twice")]


async def test_an_intake_that_was_closed_is_not_made_again_with_the_others(
    jetstream: JetStreamBench,
) -> None:
    bus: Any = await jetstream.bus()
    mended: list[str] = []
    bus.on_tasks_lost(mended.append)
    closed = await bus.take_tasks("shop", "closed", Hand())
    await bus.take_tasks("shop", "open", Hand())
    await closed.close()
    await jetstream.restart()
    await until(lambda: mended)
    names: set[str] = set()
    async with asyncio.timeout(PATIENCE):  # the loss is told before intakes are made again
        while not any("=open=" in name for name in names) or not bus._mending.done():
            await asyncio.sleep(0.01)
            names = {c.name for c in await bus._client.jetstream().consumers_info("FLOW_TASK")}
    assert not any("=closed=" in name for name in names)


async def test_a_loss_is_told_though_the_first_mending_after_it_fails(
    jetstream: JetStreamBench, monkeypatch: pytest.MonkeyPatch
) -> None:
    bus, hand, calls = await jetstream.bus(), Hand(), []
    bus.on_tasks_lost(calls.append)
    ensure, failed = JetStreamIntake.ensure, []

    async def failing_once(intake: JetStreamIntake) -> None:
        if not failed:
            failed.append(intake)
            raise Unavailable("not yet")
        await ensure(intake)

    intake = await bus.take_tasks("shop", jetstream.function, hand)
    await intake.ask(1)
    monkeypatch.setattr(JetStreamIntake, "ensure", failing_once)
    await jetstream.restart()
    await until(lambda: calls)
    await offer(jetstream, bus, b"one")
    await until(lambda: hand.held)  # mended after all
    assert failed
    assert calls == [""]


async def test_dead_letters_without_their_stream_are_unavailable(tmp_path: Path) -> None:
    with NatsServer(tmp_path) as server:
        bus = await connect([server.url], partitions=1)
        await bus.dead.bury("flow.task.a.f.5", b"1", "CORRUPT", "no frame")
        assert len(await bus.dead.letters(0, 10)) == 1
        await bus._js.delete_stream("FLOW_DEAD")
        with pytest.raises(Unavailable, match="FLOW_DEAD"):
            await bus.dead.letters(0, 10)
        await bus.close()


async def test_how_long_ago_a_log_was_written_that_is_not_there_is_unavailable(
    jetstream: JetStreamBench,
) -> None:
    unknown = (await jetstream.bus()).partition_log(PARTITIONS)
    with pytest.raises(Unavailable, match="stream not found"):
        await unknown.since_last()


async def test_a_server_out_of_reach_is_unavailable(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("engine.bus.jetstream.bus.CONNECT_PATIENCE", 0.5)
    with pytest.raises(Unavailable, match="no nats-server answers"):
        await connect(["nats://127.0.0.1:1"], partitions=1)
