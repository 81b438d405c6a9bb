"""An app's own brokers on real servers: its tasks alone travel over them, and one that goes away
takes nothing with it."""

from __future__ import annotations

import asyncio
import json
from collections import Counter
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from engine.bus.balancing import Broker
from engine.bus.jetstream import JetStreamBus, connect
from engine.bus.port import Delivery
from engine.errors import Unavailable
from tests.servers import NatsServer

PATIENCE = 20.0  # seconds


@pytest.fixture(scope="module")
def common(tmp_path_factory: pytest.TempPathFactory) -> Iterator[NatsServer]:
    with NatsServer(tmp_path_factory.mktemp("common")) as server:
        yield server


@pytest.fixture
def brokers(tmp_path: Path) -> Iterator[dict[str, NatsServer]]:
    servers = {name: NatsServer(tmp_path / name) for name in ("one", "two")}
    for server in servers.values():
        server.start()
    yield servers
    for server in servers.values():
        server.stop()


@pytest.fixture
async def bus(common: NatsServer) -> AsyncIterator[JetStreamBus]:
    made = await connect([common.url], partitions=1, monitors=[common.monitor])
    yield made
    await made.close()


def named(servers: dict[str, NatsServer]) -> tuple[Broker, ...]:
    return tuple(Broker(name, (server.url,)) for name, server in servers.items())


async def until(true: Callable[[], object]) -> None:
    async with asyncio.timeout(PATIENCE):
        while not true():
            await asyncio.sleep(0.01)


class Taker:
    """Takes everything that comes and says what it was."""

    def __init__(self) -> None:
        self.deliveries: list[Delivery] = []
        self.seen: Counter[bytes] = Counter()

    async def take(self, delivery: Delivery) -> None:
        self.deliveries.append(delivery)
        self.seen[delivery.data] += 1
        await delivery.ack()


async def offer(bus: JetStreamBus, function: str, *frames: bytes, app: str = "shop") -> None:
    for frame in frames:
        await (await bus.offer_tasks(app, function, 5, frame))


async def held_by(server: NatsServer) -> int:
    """Frames of tasks on one server."""
    probe = await connect([server.url], partitions=1)
    try:
        return sum((await probe.task_backlog()).values())
    finally:
        await probe.close()


async def test_tasks_of_the_app_are_spread_over_its_brokers_and_others_are_not(
    bus: JetStreamBus, common: NatsServer, brokers: dict[str, NatsServer]
) -> None:
    await bus.use_brokers("shop", named(brokers))
    await offer(bus, "spread", *(b"%d" % n for n in range(10)))
    await offer(bus, "spread", b"other", app="bank")
    assert [await held_by(server) for server in brokers.values()] == [5, 5]
    taker, other = Taker(), Taker()
    intake = await bus.take_tasks("shop", "spread", taker.take)
    await intake.ask(20)
    await (await bus.take_tasks("bank", "spread", other.take)).ask(20)
    await until(lambda: len(taker.seen) == 10 and other.seen)
    assert set(other.seen) == {b"other"}
    assert await bus.task_backlog() == {}


async def test_a_broker_that_goes_away_is_told_as_a_loss_and_the_other_takes_over(
    bus: JetStreamBus, brokers: dict[str, NatsServer]
) -> None:
    lost: list[str] = []
    bus.on_tasks_lost(lost.append)
    await bus.use_brokers("shop", named(brokers))
    taker = Taker()
    intake = await bus.take_tasks("shop", "over", taker.take)
    await offer(bus, "over", *(b"%d" % n for n in range(6)))
    await asyncio.to_thread(brokers["one"].kill)
    await until(lambda: lost)
    assert set(lost) == {"shop"}
    assert [subject for _, subject, _ in bus.trouble()] == ["shop/one"]
    await offer(bus, "over", *(b"again %d" % n for n in range(6)))
    await intake.ask(20)
    await until(lambda: sum(frame.startswith(b"again") for frame in taker.seen) == 6)


async def test_a_broker_that_is_back_is_used_again_without_a_restart(
    bus: JetStreamBus, brokers: dict[str, NatsServer]
) -> None:
    await bus.use_brokers("shop", named(brokers))
    taker = Taker()
    intake = await bus.take_tasks("shop", "back", taker.take)
    await asyncio.to_thread(brokers["one"].kill)
    await until(bus.trouble)
    await asyncio.to_thread(brokers["one"].start)
    await until(lambda: not bus.trouble())
    await offer(bus, "back", *(b"%d" % n for n in range(8)))
    assert await held_by(brokers["one"]) == 4
    await intake.ask(20)
    await until(lambda: len(taker.seen) == 8)
    # All of it was sent after the break, so nobody has sent it again over the other one.
    assert not any(delivery.redelivered for delivery in taker.deliveries)


async def test_what_a_broker_held_while_it_was_away_may_have_been_sent_again(
    bus: JetStreamBus, brokers: dict[str, NatsServer]
) -> None:
    await bus.use_brokers("shop", named({"one": brokers["one"]}))
    taker = Taker()
    intake = await bus.take_tasks("shop", "held", taker.take)
    await offer(bus, "held", b"1", b"2")
    brokers["one"].pause()  # its memory stays
    await until(bus.trouble)
    brokers["one"].resume()
    await until(lambda: not bus.trouble())
    await offer(bus, "held", b"3")
    await intake.ask(5)
    await until(lambda: len(taker.seen) == 3)
    # Of these its owner is asked, of later ones not.
    doubtful = {delivery.data: delivery.redelivered for delivery in taker.deliveries}
    assert doubtful == {b"1": True, b"2": True, b"3": False}


async def test_frames_that_were_under_way_to_a_broker_that_died_are_refused_at_once(
    bus: JetStreamBus, brokers: dict[str, NatsServer]
) -> None:
    await bus.use_brokers("shop", named({"one": brokers["one"]}))
    brokers["one"].pause()
    sent = await bus.offer_tasks("shop", "died", 5, b"frame")
    await asyncio.to_thread(brokers["one"].kill)
    with pytest.raises(Unavailable):
        await asyncio.wait_for(sent, PATIENCE)
    await until(bus.trouble)
    with pytest.raises(Unavailable, match="no broker of shop is up"):
        await bus.offer_tasks("shop", "died", 5, b"frame")


async def test_an_app_that_gives_up_its_brokers_uses_the_common_queue_again(
    bus: JetStreamBus, brokers: dict[str, NatsServer]
) -> None:
    lost: list[str] = []
    bus.on_tasks_lost(lost.append)
    taker = Taker()
    intake = await bus.take_tasks("shop", "home", taker.take)
    await intake.ask(20)
    await bus.use_brokers("shop", named(brokers))
    await offer(bus, "home", b"away")
    await until(lambda: taker.seen[b"away"])
    await bus.use_brokers("shop", ())
    assert set(lost) == {"shop"}
    await offer(bus, "home", b"home")
    await intake.ask(20)
    await until(lambda: taker.seen[b"home"])


async def test_a_handover_knows_which_apps_have_lost_their_queues(
    bus: JetStreamBus, brokers: dict[str, NatsServer]
) -> None:
    await bus.use_brokers("shop", named(brokers))
    before = await bus.tasks_identity()
    assert await bus.tasks_lost_since(before) == set()
    await asyncio.to_thread(brokers["two"].kill)
    await until(bus.trouble)
    assert await bus.tasks_lost_since(before) == {"shop"}
    await asyncio.to_thread(brokers["two"].start)
    await until(lambda: not bus.trouble())
    assert await bus.tasks_lost_since(before) == {"shop"}  # its memory is a new one
    assert await bus.tasks_lost_since(await bus.tasks_identity()) == set()


async def test_a_broker_that_is_not_there_from_the_beginning_is_waited_for_and_comes_late(
    bus: JetStreamBus, brokers: dict[str, NatsServer]
) -> None:
    await asyncio.to_thread(brokers["two"].stop)
    await bus.use_brokers("shop", named(brokers))
    await offer(bus, "late", b"1", b"2")
    assert await held_by(brokers["one"]) == 2
    await asyncio.to_thread(brokers["two"].start)
    await until(lambda: not bus.trouble())
    await offer(bus, "late", b"3", b"4")
    assert await held_by(brokers["two"]) == 1


@pytest.mark.parametrize("question", ["tasks_identity", "task_backlog"])
async def test_brokers_may_change_while_all_of_them_are_asked(
    bus: JetStreamBus,
    brokers: dict[str, NatsServer],
    question: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    await bus.use_brokers("shop", named(brokers))
    queue = bus._brokers["shop"].links["one"].queue
    verb = {"tasks_identity": "life", "task_backlog": "backlog"}[question]
    answer = getattr(queue, verb)

    async def change_and_answer() -> Any:
        two = named({"two": brokers["two"]})
        await bus.use_brokers("shop", (*two, Broker("three", (brokers["one"].url,))))
        await bus.use_brokers("bank", two)
        return await answer()

    monkeypatch.setattr(queue, verb, change_and_answer)
    assert await getattr(bus, question)() is not None
    assert set(bus._brokers["shop"].links) == {"two", "three"}
    if question == "tasks_identity":
        lives = json.loads(await bus.tasks_identity())
        assert set(lives) == {"", "shop/two", "shop/three", "bank/two"}
        assert all(lives.values())
