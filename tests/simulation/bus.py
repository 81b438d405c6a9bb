"""The bus as a network with a server at its other end, and what can go wrong between.

The server stores logs and queues faultlessly, as a flushed JetStream does. Everything else is
delayed, and by the seed lost: requests, their answers, acknowledgements, notes. What one
connection sends arrives in order; what the server sends arrives in order per subscription, so
that subjects overtake each other. Appends go through the real `JetStreamLog`, which has to find
out what became of a frame that nobody acknowledged.
"""

from __future__ import annotations

import asyncio
import random
from collections import defaultdict, deque
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any, Protocol

from nats.js.errors import NotFoundError

from engine.bus import subjects
from engine.bus.jetstream import JetStreamLog
from engine.bus.port import PRIORITIES, Fenced, Handle, Hear
from engine.errors import Unavailable
from tests.simulation.loop import Process, VirtualLoop

ACK_WAIT = 30.0  # seconds until the server gives a frame to somebody else
NO_ANSWER = 5.0  # seconds until a publisher gives up waiting
SURE = -1.0  # what the adapter says again after a reconnect: it may be late, it is never lost


@dataclass(slots=True)
class Faults:
    """Probabilities; all zero is a perfect network with delays. Delays are seconds."""

    lose_request: float = 0.0
    lose_answer: float = 0.0
    lose_ack: float = 0.0
    lose_tell: float = 0.0
    again: float = 0.0  # a delivery that comes twice
    slow: float = 0.0  # a message that takes much longer
    slowest: float = 8.0
    quick: float = 0.004

    def calm(self) -> None:
        self.lose_request = self.lose_answer = self.lose_ack = self.lose_tell = 0.0
        self.again = self.slow = 0.0


class Watcher(Protocol):
    """Sees what the server sees, at once and without fail."""

    def appended(self, stream: str, sequence: int, frame: bytes, by: str) -> None: ...

    def offered(self, queue: str, subject: str, frame: bytes) -> None: ...

    def removed(self, queue: str, sequence: int, frame: bytes) -> None: ...

    def told(self, subject: str, data: bytes) -> None: ...

    def happened(self, *what: Any) -> None: ...

    def fault(self, *what: Any, lasts: float = 0.0) -> None: ...


@dataclass(slots=True)
class ServerLog:
    first: int = 1
    frames: deque[bytes] = field(default_factory=deque)
    stored_at: float = 0.0

    @property
    def last(self) -> int:
        return self.first + len(self.frames) - 1

    def at(self, sequence: int) -> bytes | None:
        place = sequence - self.first
        return self.frames[place] if 0 <= place < len(self.frames) else None


@dataclass(slots=True)
class Item:
    sequence: int
    subject: str
    data: bytes


@dataclass(slots=True)
class Queue:
    items: dict[int, Item] = field(default_factory=dict)
    sequence: int = 0


class Consumer:
    """A durable consumer of a queue: what it has given out and until when."""

    def __init__(self, server: Server, queue: str, pattern: str) -> None:
        self._server = server
        self.queue = queue
        self.pattern = pattern
        self.pending: dict[int, float] = {}
        self.deliveries: dict[int, int] = defaultdict(int)
        self.not_before: dict[int, float] = {}
        self.subscriptions: list[Subscription] = []
        self._turn = 0

    def serve(self) -> None:
        """Gives waiting frames to subscriptions that asked."""
        items = self._server.queues[self.queue].items
        now = self._server.loop.time()
        for item in list(items.values()):
            if item.sequence in self.pending or self.not_before.get(item.sequence, 0.0) > now:
                continue
            if not _matches(item.subject, self.pattern):
                continue
            taker = self._taker()
            if taker is None:
                return
            self._give(item, taker)

    def _taker(self) -> Subscription | None:
        for step in range(len(self.subscriptions)):
            place = (self._turn + step) % len(self.subscriptions)
            if self.subscriptions[place].wanted > 0:
                self._turn = place + 1
                return self.subscriptions[place]
        return None

    def _give(self, item: Item, taker: Subscription) -> None:
        taker.wanted -= 1
        self.deliveries[item.sequence] += 1
        self.working(item.sequence, fresh=True)
        count = self.deliveries[item.sequence]
        if count > 1:
            self._server.watcher.happened("redelivered", item.subject, item.sequence)
        taker.connection.deliver(taker, self, item, count)

    def working(self, sequence: int, fresh: bool = False) -> None:
        if not fresh and sequence not in self.pending:
            return
        loop = self._server.loop
        until = loop.time() + ACK_WAIT
        self.pending[sequence] = until
        loop.call_at(until, self._expired, sequence, context=self._server.context)

    def _expired(self, sequence: int) -> None:
        if self.pending.get(sequence, 1e12) <= self._server.loop.time():
            del self.pending[sequence]
            self.serve()

    def ack(self, sequence: int) -> None:
        self.pending.pop(sequence, None)
        self._server.remove(self.queue, sequence)

    def give_back(self, sequence: int, delay: float) -> None:
        if self.pending.pop(sequence, None) is None:
            return
        loop = self._server.loop
        if delay:
            self.not_before[sequence] = loop.time() + delay
            loop.call_later(delay + 0.001, self.serve, context=self._server.context)
        else:
            self.serve()

    def floor(self) -> int:
        queue = self._server.queues[self.queue]
        left = [i.sequence for i in queue.items.values() if _matches(i.subject, self.pattern)]
        return min(left) - 1 if left else queue.sequence


class Server:
    """The one that all connections reach."""

    def __init__(self, loop: VirtualLoop, faults: Faults, watcher: Watcher) -> None:
        self.loop = loop
        self.faults = faults
        self.watcher = watcher
        self.random = random.Random(loop.random.random())
        self.context = loop.nowhere
        self.logs: dict[str, ServerLog] = defaultdict(ServerLog)
        self.queues: dict[str, Queue] = defaultdict(Queue)
        self.consumers: dict[tuple[str, str], Consumer] = {}
        self.listeners: list[Listener] = []
        self.connections: list[Connection] = []
        self.former: list[Connection] = []
        self.lives = 1

    def append(self, stream: str, frame: bytes, expected: int, by: str) -> int:
        log = self.logs[stream]
        if expected != log.last:
            raise Fenced(f"{stream} ends at {log.last}, not at {expected}")
        log.frames.append(frame)
        log.stored_at = self.loop.time()
        self.watcher.appended(stream, log.last, frame, by)
        return log.last

    def offer(self, name: str, subject: str, frame: bytes) -> int:
        queue = self.queues[name]
        queue.sequence += 1
        queue.items[queue.sequence] = Item(queue.sequence, subject, frame)
        self.watcher.offered(name, subject, frame)
        for consumer in list(self.consumers.values()):
            if consumer.queue == name and _matches(subject, consumer.pattern):
                consumer.serve()
        return queue.sequence

    def remove(self, name: str, sequence: int) -> None:
        item = self.queues[name].items.pop(sequence, None)
        if item is not None:
            self.watcher.removed(name, sequence, item.data)

    def consumer(self, queue: str, pattern: str, anew: bool) -> Consumer:
        found = self.consumers.get((queue, pattern))
        if found is None or anew:
            fresh = Consumer(self, queue, pattern)
            if found is not None:  # who still asks under the name is served by the new one
                fresh.subscriptions = found.subscriptions
                for subscription in fresh.subscriptions:
                    subscription.consumer = fresh
            self.consumers[queue, pattern] = fresh
            found = fresh
        return found

    def tell(self, subject: str, data: bytes) -> None:
        self.watcher.told(subject, data)
        for listener in list(self.listeners):
            if _matches(subject, listener.pattern):
                listener.connection.hear(listener, subject, data)

    def close(self) -> None:
        """For good: whoever calls is told to end."""
        for connection in (*self.connections, *self.former):
            connection.closed = True

    def lose_tasks(self) -> None:
        """As a server that restarts with its task queue in memory."""
        self.lives += 1
        self.queues[subjects.TASK_STREAM] = Queue()
        for consumer in self.consumers.values():
            if consumer.queue == subjects.TASK_STREAM:
                consumer.pending.clear()
                consumer.deliveries.clear()
        for connection in self.connections:
            connection.tasks_lost()

    def lose_suffix(self, stream: str, count: int) -> None:
        """What no flushed log does: frames that were acknowledged are gone."""
        log = self.logs[stream]
        for _ in range(min(count, len(log.frames))):
            log.frames.pop()


class Connection:
    """One process's bus. It carries nothing any more once the process was killed."""

    def __init__(self, server: Server, process: Process) -> None:
        self._server = server
        self._process = process
        self._loop = server.loop
        self._faults = server.faults
        self._random = server.random
        self._arrivals: dict[Any, float] = {}
        self._lost_calls: dict[Callable[[str], None], None] = {}
        self._cut_at = float("inf")
        self._down_until = 0.0
        self.name = process.name
        self.closed = False
        server.connections.append(self)

    # The way there and back.

    def cut(self) -> None:
        """The process was killed: a part of what is under way may still arrive."""
        self._cut_at = self._loop.time() + self._random.random() * 3 * self._faults.quick
        for consumer in self._server.consumers.values():
            consumer.subscriptions = [s for s in consumer.subscriptions if s.connection is not self]
        self._server.listeners = [s for s in self._server.listeners if s.connection is not self]
        self._server.connections.remove(self)
        self._server.former.append(self)

    def break_(self, seconds: float) -> None:
        """Nothing gets through for a while; what was sent meanwhile goes later or is lost."""
        self._down_until = self._loop.time() + seconds

    def _delay(self) -> float:
        if self._faults.slow and self._random.random() < self._faults.slow:
            delay = self._random.random() * self._faults.slowest
            self._server.watcher.fault("slow", lasts=delay)
            return delay
        return self._random.random() * self._faults.quick

    def _arrival(self, channel: Any) -> float:
        when = max(self._loop.time() + self._delay(), self._arrivals.get(channel, 0.0) + 1e-6)
        self._arrivals[channel] = when
        return when

    def up(self, loss: float, call: Callable[..., Any], *arguments: Any) -> None:
        """To the server, in the order of the calls."""
        if self.closed:
            raise asyncio.CancelledError
        if loss > 0 and self._random.random() < loss:
            self._server.watcher.fault("lost to the server", lasts=NO_ANSWER + 1)
            return
        if self._loop.time() < self._down_until:
            if loss != SURE and self._random.random() < 0.5:
                return
            self._arrivals["up"] = max(self._arrivals.get("up", 0.0), self._down_until)
        when = self._arrival("up")
        self._loop.call_at(when, self._there, call, arguments, context=self._server.context)

    def _there(self, call: Callable[..., Any], arguments: Any) -> None:
        if self._loop.time() < self._cut_at and not self.closed:
            call(*arguments)

    def down(self, channel: Any, loss: float, call: Callable[..., Any], *arguments: Any) -> None:
        """To the process, in the order of the calls per channel."""
        if loss > 0 and self._random.random() < loss:
            self._server.watcher.fault("lost from the server", lasts=NO_ANSWER + 1)
            return
        when = self._arrival(channel)
        context = self._server.context
        self._loop.call_at(when, self._back, loss == SURE, call, arguments, context=context)

    def _back(self, sure: bool, call: Callable[..., Any], arguments: Any) -> None:
        if self._process.dead:
            return
        if self._loop.time() >= self._down_until:
            self._process.call(call, *arguments)
        elif sure:
            until, context = self._down_until, self._server.context
            self._loop.call_at(until, self._back, True, call, arguments, context=context)

    def _request(self, work: Callable[[], Any]) -> asyncio.Future[Any]:
        """Asks the server for something; `Unavailable` when no answer comes."""
        if self.closed:
            raise asyncio.CancelledError
        future: asyncio.Future[Any] = self._loop.create_future()
        alarm = self._loop.call_later(NO_ANSWER + self._random.random(), _no_answer, future)
        future.add_done_callback(lambda _: alarm.cancel())

        def there() -> None:
            try:
                answer, error = work(), None
            except (Fenced, NotFoundError, Unavailable) as raised:
                answer, error = None, raised
            self.down("answers", self._faults.lose_answer, _answer, future, answer, error)

        self.up(self._faults.lose_request, there)
        return future

    # What a publisher and a JetStream context are to `JetStreamLog`.

    async def publish(
        self, subject: str, frame: bytes, headers: dict[str, str] | None = None
    ) -> asyncio.Future[int]:
        assert headers is not None
        expected = int(headers["Nats-Expected-Last-Sequence"])
        future = self._request(lambda: self._server.append(subject, frame, expected, self.name))
        future.add_done_callback(self._note_fate)
        return future

    def _note_fate(self, sent: asyncio.Future[Any]) -> None:
        if not sent.cancelled() and isinstance(sent.exception(), Unavailable):
            self._server.watcher.happened("frame with an unknown fate", self.name)

    async def stream_info(self, stream: str) -> Any:
        def look() -> Any:
            log = self._server.logs[stream]
            state = SimpleNamespace(
                last_seq=log.last, first_seq=log.first, messages=len(log.frames)
            )
            return SimpleNamespace(state=state)

        return await self._request(look)

    async def get_msg(self, stream: str, sequence: int) -> Any:
        def look() -> Any:
            frame = self._server.logs[stream].at(sequence)
            if frame is None:
                raise NotFoundError
            return SimpleNamespace(data=frame)

        return await self._request(look)

    async def purge_stream(self, stream: str, seq: int) -> None:
        def purge() -> None:
            log = self._server.logs[stream]
            while log.frames and log.first < seq:
                log.frames.popleft()
                log.first += 1

        await self._request(purge)

    async def age(self, stream: str) -> int:
        def read() -> int:
            log = self._server.logs[stream]
            return round((self._server.loop.time() - log.stored_at) * 1_000) if log.last else 0

        age: int = await self._request(read)
        return age

    async def frames(self, stream: str, after: int, through: int) -> list[tuple[int, bytes]]:
        def read() -> list[tuple[int, bytes]]:
            log = self._server.logs[stream]
            low, high = max(after + 1, log.first), min(through, log.last)
            return [(s, log.frames[s - log.first]) for s in range(low, high + 1)]

        found: list[tuple[int, bytes]] = await self._request(read)
        return found

    # The bus port.

    def partition_log(self, partition: int) -> SimulatedLog:
        return SimulatedLog(self, subjects.log_stream(partition))

    def checkpoint_log(self, partition: int) -> SimulatedLog:
        return SimulatedLog(self, subjects.checkpoint_stream(partition))

    async def offer_trigger(
        self, partition: int, priority: int, frame: bytes
    ) -> asyncio.Future[int]:
        subject = subjects.trigger_subject(partition, priority)
        return self._offer(subjects.TRIGGER_STREAM, subject, frame)

    async def offer_tasks(
        self, app: str, function: str, priority: int, frame: bytes
    ) -> asyncio.Future[int]:
        subject = subjects.task_subject(app, function, priority)
        return self._offer(subjects.TASK_STREAM, subject, frame)

    def _offer(self, queue: str, subject: str, frame: bytes) -> asyncio.Future[int]:
        return self._request(lambda: self._server.offer(queue, subject, frame))

    async def take_triggers(self, partition: int, handle: Handle) -> Subscription:
        pattern = f"flow.trigger.{partition}.*"
        return await self._take(subjects.TRIGGER_STREAM, pattern, handle, anew=True)

    async def take_tasks(
        self, app: str, function: str, handle: Handle, priorities: range = PRIORITIES
    ) -> Subscription:
        wanted = [subjects.task_subject(app, function, priority) for priority in priorities]
        return await self._take(subjects.TASK_STREAM, " ".join(wanted), handle, anew=False)

    async def _take(self, queue: str, pattern: str, handle: Handle, anew: bool) -> Subscription:
        def take() -> Subscription:
            consumer = self._server.consumer(queue, pattern, anew)
            subscription = Subscription(self, consumer, handle)
            consumer.subscriptions.append(subscription)
            return subscription

        subscription: Subscription = await self._request(take)
        return subscription

    def deliver(self, to: Subscription, consumer: Consumer, item: Item, count: int) -> None:
        delivery = SimulatedDelivery(self, consumer, item, count)
        self.down(to, 0.0, to.arrived, delivery)
        if self._faults.again and self._random.random() < self._faults.again:
            self._server.watcher.fault("delivered twice")
            self.down(to, 0.0, to.arrived, SimulatedDelivery(self, consumer, item, count + 1))

    async def tell(self, subject: str, data: bytes) -> None:
        self.up(self._faults.lose_tell, self._server.tell, subject, data)

    async def listen(self, subject: str, hear: Hear) -> Listener:
        def add() -> Listener:
            listener = Listener(self, subject, hear)
            self._server.listeners.append(listener)
            return listener

        listener: Listener = await self._request(add)
        return listener

    def hear(self, listener: Listener, subject: str, data: bytes) -> None:
        self.down(listener, self._faults.lose_tell, listener.arrived, subject, data)

    @property
    def dead(self) -> Any:
        return Burials(self._server.watcher)

    async def tasks_identity(self) -> str:
        return str(await self._request(lambda: self._server.lives))

    async def tasks_lost_since(self, identity: str) -> set[str]:
        return set() if identity == await self.tasks_identity() else {""}

    def on_tasks_lost(self, call: Callable[[str], None]) -> Callable[[], None]:
        self._lost_calls[call] = None
        return lambda: self._lost_calls.pop(call, None)

    def tasks_lost(self) -> None:
        self.down("lost", SURE, self._call_lost)

    def _call_lost(self) -> None:
        for call in list(self._lost_calls):
            call("")

    async def close(self) -> None:
        return None

    # For the objects below.

    @property
    def server(self) -> Server:
        return self._server

    @property
    def faults(self) -> Faults:
        return self._faults

    def spawn(self, work: Any) -> None:
        self._process.spawn(work)


class SimulatedLog(JetStreamLog):
    """The real log adapter on a simulated server; only reading is simpler."""

    def __init__(self, connection: Connection, stream: str) -> None:
        super().__init__(connection, connection, connection, stream, stream)  # type: ignore[arg-type]
        self._connection = connection

    async def since_last(self) -> int:
        return await self._connection.age(self._stream)

    async def read(self, after: int, through: int) -> AsyncIterator[tuple[int, bytes]]:
        frames = await self._connection.frames(self._stream, after, through)
        for sequence, frame in frames:
            yield sequence, frame

    async def follow(self, after: int) -> AsyncIterator[tuple[int, bytes]]:
        while True:
            async for sequence, frame in self.read(after, 1 << 62):
                after = sequence
                yield sequence, frame
            await asyncio.sleep(0.02)


class Burials:
    """Dead letters are told to whoever watches, and kept by nobody."""

    def __init__(self, watcher: Any) -> None:
        self._watcher = watcher

    async def bury(self, origin: str, frame: bytes, code: str, message: str) -> None:
        self._watcher.happened("buried", origin, code, message)


class SimulatedDelivery:
    def __init__(self, connection: Connection, consumer: Consumer, item: Item, count: int) -> None:
        self._connection = connection
        self._consumer = consumer
        self._item = item
        self.data = item.data
        self.subject = item.subject
        self.sequence = item.sequence
        self.behind = 0
        self.redelivered = count > 1

    def _say(self, word: Callable[[Consumer], None]) -> None:
        """Words are addressed to the consumer's name, not to one of its lives; but not to
        another frame that has the sequence since the queue was lost."""
        key, server = (self._consumer.queue, self._consumer.pattern), self._connection.server

        def there() -> None:
            if server.queues[key[0]].items.get(self.sequence) is self._item:
                word(server.consumers[key])

        self._connection.up(self._connection.faults.lose_ack, there)

    async def ack(self) -> None:
        self._say(lambda name: name.ack(self.sequence))

    async def give_back(self, delay: float = 0.0) -> None:
        self._say(lambda name: name.give_back(self.sequence, delay))

    async def working(self) -> None:
        self._say(lambda name: name.working(self.sequence))


class Subscription:
    """An intake: what arrives is handled one after the other, as nats-py does."""

    def __init__(self, connection: Connection, consumer: Consumer, handle: Handle) -> None:
        self.connection = connection
        self.consumer = consumer
        self.wanted = 0
        self._handle = handle
        self._arrived: deque[SimulatedDelivery] = deque()
        self._busy = False
        self._closed = False

    def arrived(self, delivery: SimulatedDelivery) -> None:
        if self._closed:
            return
        self._arrived.append(delivery)
        if not self._busy:
            self._busy = True
            self.connection.spawn(self._work())

    async def _work(self) -> None:
        while self._arrived and not self._closed:
            await self._handle(self._arrived.popleft())
        self._busy = False

    async def ask(self, frames: int) -> None:
        self.connection.up(SURE, self._ask, frames)

    def _ask(self, frames: int) -> None:
        self.wanted = frames
        self.consumer.serve()

    async def floor(self) -> int:
        floor: int = await self.connection._request(self.consumer.floor)
        return floor

    async def close(self) -> None:
        self._closed = True
        self.connection.up(SURE, self._leave)

    def _leave(self) -> None:
        if self in self.consumer.subscriptions:
            self.consumer.subscriptions.remove(self)


class Listener:
    def __init__(self, connection: Connection, pattern: str, hear: Hear) -> None:
        self.connection = connection
        self.pattern = pattern
        self._hear = hear
        self._closed = False

    def arrived(self, subject: str, data: bytes) -> None:
        if not self._closed:
            self.connection.spawn(self._hear(subject, data))

    async def close(self) -> None:
        self._closed = True
        self.connection.up(SURE, self._leave)

    def _leave(self) -> None:
        if self in self.connection.server.listeners:
            self.connection.server.listeners.remove(self)


def _no_answer(future: asyncio.Future[Any]) -> None:
    if not future.done():
        future.set_exception(Unavailable("the bus did not answer", reason="BUS_UNAVAILABLE"))


def _answer(future: asyncio.Future[Any], answer: Any, error: Exception | None) -> None:
    if future.done():
        return
    if error is None:
        future.set_result(answer)
    else:
        future.set_exception(error)


def _matches(subject: str, patterns: str) -> bool:
    """One of them; `*` stands for one part."""
    return any(_matches_one(subject, pattern) for pattern in patterns.split(" "))


def _matches_one(subject: str, pattern: str) -> bool:
    if "*" not in pattern:
        return subject == pattern
    parts, wanted = subject.split("."), pattern.split(".")
    return len(parts) == len(wanted) and all(
        want in ("*", part) for part, want in zip(parts, wanted, strict=True)
    )
