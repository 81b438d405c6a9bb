"""An app's own NATS clusters for its tasks: balanced, failed over, reconnected.

Tasks alone travel over them; the logs stay where they are. What a broker holds when it goes away
is owed by the partition logs: its loss is told to the owners, who dispatch the app's open tasks
again over those that are left.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections import Counter
from collections.abc import Callable

import structlog
from nats.aio.client import Client

from engine.bus.balancing import Balance, Balancer, Broker
from engine.bus.jetstream.dialling import dial
from engine.bus.jetstream.publishing import Publisher
from engine.bus.jetstream.queues import JetStreamDelivery, JetStreamIntake
from engine.bus.jetstream.tasks import TaskQueue
from engine.bus.port import Delivery, Handle
from engine.errors import Unavailable

DIAL = 5.0  # seconds of one attempt to connect
PING = 2  # seconds between pings; two without an answer, and the broker is down
PAUSES = (0.2, 0.5, 1.0, 2.0)  # seconds between attempts; the last repeats
_log = structlog.get_logger(__name__)


class Link:
    """One broker. `lost` is called when it goes away, with whatever it holds."""

    def __init__(self, broker: Broker, name: str, lost: Callable[[], None]) -> None:
        self.broker = broker
        self._name = name
        self._lost = lost
        self._client: Client | None = None
        self._publisher: Publisher | None = None
        self._work: asyncio.Task[None] | None = None
        self._intakes: dict[TaskIntake, JetStreamIntake] = {}
        self._wanted: set[TaskIntake] = set()
        self.queue: TaskQueue | None = None
        self.up = False
        self._doubtful = 0  # frames up to this one may have been sent again over another broker
        self.tried = asyncio.Event()  # it is up, or was found to be down

    def open(self) -> None:
        """Connects in the background."""
        self._work = asyncio.create_task(self._connect())

    async def close(self) -> None:
        if self._work is not None:
            self._work.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._work
        self.up = False
        if self.queue is not None:
            await self.queue.close()
        if self._publisher is not None:
            self._publisher.close()
        if self._client is not None:
            with contextlib.suppress(Exception):
                await asyncio.wait_for(self._client.close(), DIAL)

    async def ask(self, intake: TaskIntake, frames: int) -> None:
        made = self._intakes.get(intake)
        if self.up and made is not None:
            await made.ask(frames)

    def serve(self, intake: TaskIntake) -> None:
        """From now on, and after every reconnect."""
        self._wanted.add(intake)
        if self.up:
            self._restart()

    async def leave(self, intake: TaskIntake) -> None:
        self._wanted.discard(intake)
        made = self._intakes.pop(intake, None)
        if made is not None:
            await made.close()

    def _restart(self) -> None:
        if self._client is None:
            return  # `_connect` comes to it by itself
        if self._work is not None:
            self._work.cancel()
        self._work = asyncio.create_task(self._mend())

    async def _connect(self) -> None:
        attempt = 0
        while True:
            try:
                self._client = await dial(
                    list(self.broker.servers),
                    self._name,
                    self._restart,
                    self._went_down,
                    patience=DIAL,
                    ping=PING,
                )
                break
            except Unavailable as error:
                self.tried.set()
                _log.warning("broker is down", broker=self._name, why=str(error))
            await asyncio.sleep(PAUSES[min(attempt, len(PAUSES) - 1)])
            attempt += 1
        await self._mend()

    async def _mend(self) -> None:
        """Until the queue is there and everybody who takes from it is served."""
        attempt = 0
        while True:
            try:
                queue = await self._open_queue()
                await queue.mend(lambda: None)  # that it went away has been told
                self._doubtful = await queue.newest()
                for intake in self._wanted - set(self._intakes):
                    await self._take(queue, intake)
                break
            except Unavailable as error:
                _log.warning("broker is not ready", broker=self._name, why=str(error))
            await asyncio.sleep(PAUSES[min(attempt, len(PAUSES) - 1)])
            attempt += 1
        self.up = True
        self.tried.set()
        for intake in list(self._wanted):
            await intake.again()

    async def _open_queue(self) -> TaskQueue:
        assert self._client is not None
        if self.queue is None:
            publisher = Publisher(self._client)
            await publisher.open()
            self._publisher = publisher
            js = self._client.jetstream(timeout=DIAL)
            self.queue = TaskQueue(self._client, js, publisher, 1)
        return self.queue

    async def _take(self, queue: TaskQueue, intake: TaskIntake) -> None:
        handle = self._handing_on(intake)
        made = await queue.take(intake.app, intake.function, handle, intake.priorities)
        if intake in self._wanted:
            self._intakes[intake] = made
        else:  # it has left meanwhile
            await made.close()

    def _handing_on(self, intake: TaskIntake) -> Handle:
        async def hand_on(delivery: Delivery) -> None:
            if delivery.sequence <= self._doubtful and isinstance(delivery, JetStreamDelivery):
                delivery.redelivered = True
            await intake.delivered(delivery)

        return hand_on

    def _went_down(self) -> None:
        if not self.up:
            return
        _log.warning("broker went away", broker=self._name)
        self.up = False
        if self._publisher is not None:
            self._publisher.give_up("the broker went away")
        self._lost()


class TaskIntake:
    """What a function takes: from all brokers of its app, and from the common queue, where its
    tasks are while the app has none."""

    def __init__(self, owner: BrokerSet, function: str, handle: Handle, priorities: range) -> None:
        self._owner = owner
        self._handle = handle
        self._common: JetStreamIntake | None = None
        self._wanted = 0
        self.app = owner.app
        self.function = function
        self.priorities = priorities

    async def open(self, common: TaskQueue) -> None:
        self._common = await common.take(self.app, self.function, self.delivered, self.priorities)
        self._owner.add(self)

    async def delivered(self, delivery: Delivery) -> None:
        self._wanted = max(0, self._wanted - 1)
        await self._handle(delivery)

    async def ask(self, frames: int) -> None:
        """Shared out between the brokers; each gets at least one where anything is wanted."""
        self._wanted = frames
        await self.again()

    async def again(self) -> None:
        assert self._common is not None
        links = [link for link in self._owner.links.values() if link.up]
        await self._common.ask(min(1, self._wanted) if links else self._wanted)
        share = max(1, self._wanted // len(links)) if links and self._wanted else 0
        for link in links:
            await link.ask(self, share)

    async def floor(self) -> int:
        assert self._common is not None
        return await self._common.floor()

    async def close(self) -> None:
        self._wanted = 0
        if self._common is not None:
            await self._common.close()
        await self._owner.remove(self)


class BrokerSet:
    """Of one app; it may be empty. `lost` is called when open tasks of the app may have to be sent
    again."""

    def __init__(self, app: str, name: str, lost: Callable[[str], None]) -> None:
        self.app = app
        self._name = name
        self._lost = lost
        self._balancer = Balancer((), "round_robin")
        self.links: dict[str, Link] = {}
        self.intakes: set[TaskIntake] = set()

    async def change(self, brokers: tuple[Broker, ...], policy: Balance) -> None:
        """The set as it shall be; returns once every broker is up or was found to be down. What a
        broker that leaves the set holds counts as lost."""
        self._balancer = Balancer(brokers, policy)
        wanted = {broker.name: broker for broker in brokers}
        left = [name for name, link in self.links.items() if wanted.get(name) != link.broker]
        for name in left:
            await self.links.pop(name).close()
        for name, broker in wanted.items():
            if name not in self.links:
                link = Link(broker, f"{self._name} {self.app}/{name}", self._say_lost)
                self.links[name] = link
                for intake in self.intakes:
                    link.serve(intake)
                link.open()
        if left:
            self._say_lost()
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(DIAL):
                for link in list(self.links.values()):
                    await link.tried.wait()

    def _say_lost(self) -> None:
        self._lost(self.app)

    async def offer(self, function: str, priority: int, frame: bytes) -> asyncio.Future[int]:
        """To one broker; the sender offers again what that one does not acknowledge. Under
        consistent hashing all frames of a function keep to one. Errors: `Unavailable` while none
        of them is up."""
        healthy = {name for name, link in self.links.items() if link.up}
        for name in self._balancer.order(function, healthy):
            link = self.links.get(name)
            queue = link.queue if link is not None else None
            if queue is not None:
                with contextlib.suppress(Unavailable):
                    return await queue.offer(self.app, function, priority, frame)
        raise Unavailable(f"no broker of {self.app} is up", reason="BUS_UNAVAILABLE")

    def add(self, intake: TaskIntake) -> None:
        self.intakes.add(intake)
        for link in self.links.values():
            link.serve(intake)

    async def remove(self, intake: TaskIntake) -> None:
        self.intakes.discard(intake)
        for link in list(self.links.values()):
            await link.leave(intake)

    async def lives(self) -> dict[str, str]:
        """The present life of each broker's queue; of one that is down an empty text."""
        found = {}
        for name, link in list(self.links.items()):
            found[name] = ""
            if link.up and link.queue is not None:
                with contextlib.suppress(Unavailable):
                    found[name] = await link.queue.life()
        return found

    async def backlog(self) -> Counter[str]:
        waiting: Counter[str] = Counter()
        for link in list(self.links.values()):
            if link.up and link.queue is not None:
                with contextlib.suppress(Unavailable):
                    waiting.update(await link.queue.backlog())
        return waiting

    def down(self) -> list[str]:
        return [name for name, link in self.links.items() if not link.up]

    async def close(self) -> None:
        for link in list(self.links.values()):
            await link.close()
