"""The bus in memory, for tests: one `MemorySpace` stands for the server, each `MemoryBus` for a
connection to it."""

from __future__ import annotations

import asyncio
import time
from collections import Counter, defaultdict, deque
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, field

from engine.bus import subjects
from engine.bus.balancing import Balance, Broker
from engine.bus.port import PRIORITIES, DeadLetter, Fenced, Handle, Hear, no_letter


@dataclass(slots=True)
class _Frames:
    """A log: `first` is the sequence of `frames[0]`."""

    first: int = 1
    frames: deque[bytes] = field(default_factory=deque)
    grown: asyncio.Event = field(default_factory=asyncio.Event)
    stored_at: float = 0.0  # of the last frame, by the monotonic clock

    @property
    def last(self) -> int:
        return self.first + len(self.frames) - 1


@dataclass(slots=True)
class _Item:
    sequence: int
    subject: str
    data: bytes
    deliveries: int = 0
    holder: MemoryIntake | None = None


@dataclass(slots=True)
class _Work:
    """A queue of frames that waits for whoever asks."""

    items: dict[int, _Item] = field(default_factory=dict)
    sequence: int = 0


class MemorySpace:
    """What all connections share."""

    def __init__(self) -> None:
        self.logs: dict[str, _Frames] = defaultdict(_Frames)
        self.queues: dict[str, _Work] = defaultdict(_Work)
        self.intakes: list[MemoryIntake] = []
        self.listeners: list[MemoryListening] = []
        self.letters: dict[int, DeadLetter] = {}
        self.buried = 0
        self.lost_calls: dict[Callable[[str], None], None] = {}
        self.lives = 1

    def lose_tasks(self) -> None:
        """As a server that restarts with its task queue in memory."""
        self.lives += 1
        self.queues[subjects.TASK_STREAM] = _Work()
        for call in list(self.lost_calls):
            call("")

    async def offer(self, queue: str, subject: str, frame: bytes) -> int:
        work = self.queues[queue]
        work.sequence += 1
        work.items[work.sequence] = _Item(work.sequence, subject, frame)
        sequence = work.sequence
        await self.serve(queue)
        return sequence

    async def serve(self, queue: str) -> None:
        """Gives waiting frames to intakes that asked."""
        work = self.queues[queue]
        for item in list(work.items.values()):
            if item.holder is not None:
                continue
            for intake in self.intakes:
                if intake.queue == queue and intake.wanted and intake.matches(item.subject):
                    intake.wanted -= 1
                    item.holder = intake
                    item.deliveries += 1
                    await intake.handle(MemoryDelivery(self, queue, item))
                    break


class MemoryLog:
    def __init__(self, space: MemorySpace, name: str) -> None:
        self._log = space.logs[name]
        self._fenced_at = -1  # what the newest append expected, if it was fenced

    async def last(self) -> int:
        return self._log.last

    async def since_last(self) -> int:
        stored = self._log.stored_at
        return round((time.monotonic() - stored) * 1_000) if stored else 0

    async def append(self, frame: bytes, expected: int) -> asyncio.Future[int]:
        future: asyncio.Future[int] = asyncio.get_running_loop().create_future()
        follows_a_fenced_one = expected == self._fenced_at + 1 and self._fenced_at >= 0
        fits = expected == self._log.last
        self._fenced_at = -1 if fits and not follows_a_fenced_one else expected
        if self._fenced_at >= 0:
            future.set_exception(Fenced(f"the last sequence is {self._log.last}, not {expected}"))
        else:
            future.set_result(expected + 1)
        if fits:  # as on a server, which knows nothing of the append before
            self._log.frames.append(frame)
            self._log.stored_at = time.monotonic()
            self._log.grown.set()
            self._log.grown = asyncio.Event()
        return future

    async def read(self, after: int, through: int) -> AsyncIterator[tuple[int, bytes]]:
        log = self._log
        for sequence in range(max(after + 1, log.first), min(through, log.last) + 1):
            yield sequence, log.frames[sequence - log.first]

    async def follow(self, after: int) -> AsyncIterator[tuple[int, bytes]]:
        while True:
            grown = self._log.grown
            async for sequence, frame in self.read(after, self._log.last):
                after = sequence
                yield sequence, frame
            if after >= self._log.last:
                await grown.wait()

    async def purge(self, through: int) -> None:
        while self._log.frames and self._log.first <= through:
            self._log.frames.popleft()
            self._log.first += 1


class MemoryDelivery:
    def __init__(self, space: MemorySpace, queue: str, item: _Item) -> None:
        self._space = space
        self._queue = queue
        self._item = item
        self.data = item.data
        self.subject = item.subject
        self.sequence = item.sequence
        self.behind = sum(i.holder is None for i in space.queues[queue].items.values())
        self.redelivered = item.deliveries > 1

    async def ack(self) -> None:
        self._space.queues[self._queue].items.pop(self.sequence, None)

    async def give_back(self, delay: float = 0.0) -> None:
        self._item.holder = None
        if delay:
            loop = asyncio.get_running_loop()
            loop.call_later(delay, lambda: loop.create_task(self._space.serve(self._queue)))
        else:
            await self._space.serve(self._queue)

    async def working(self) -> None:
        return None


class MemoryIntake:
    def __init__(self, space: MemorySpace, queue: str, patterns: list[str], handle: Handle) -> None:
        self._space = space
        self._patterns = patterns
        self.queue = queue
        self.handle = handle
        self.wanted = 0
        space.intakes.append(self)

    def matches(self, subject: str) -> bool:
        return any(_matches(subject, pattern) for pattern in self._patterns)

    async def ask(self, frames: int) -> None:
        self.wanted = frames
        await self._space.serve(self.queue)

    async def floor(self) -> int:
        work = self._space.queues[self.queue]
        open_ones = [i.sequence for i in work.items.values() if self.matches(i.subject)]
        return min(open_ones) - 1 if open_ones else work.sequence

    async def close(self) -> None:
        self.wanted = 0
        if self in self._space.intakes:
            self._space.intakes.remove(self)
        for item in self._space.queues[self.queue].items.values():
            if item.holder is self:
                item.holder = None
        await self._space.serve(self.queue)


class MemoryListening:
    def __init__(self, space: MemorySpace, pattern: str, hear: Hear) -> None:
        self._space = space
        self.pattern = pattern
        self.hear = hear
        space.listeners.append(self)

    async def close(self) -> None:
        if self in self._space.listeners:
            self._space.listeners.remove(self)


class MemoryDeadLetters:
    def __init__(self, space: MemorySpace) -> None:
        self._space = space

    async def bury(self, origin: str, frame: bytes, code: str, message: str) -> None:
        self._space.buried += 1
        number, at = self._space.buried, int(time.time() * 1_000)
        self._space.letters[number] = DeadLetter(number, origin, code, message, frame, at)

    async def letters(self, before: int, limit: int) -> list[DeadLetter]:
        numbers = [n for n in sorted(self._space.letters, reverse=True) if not before or n < before]
        return [self._space.letters[number] for number in numbers[:limit]]

    async def letter(self, number: int) -> DeadLetter:
        if number not in self._space.letters:
            raise no_letter(number)
        return self._space.letters[number]

    async def replay(self, number: int) -> None:
        letter = await self.letter(number)
        await self._space.offer(subjects.stream_of(letter.origin), letter.origin, letter.frame)
        await self.drop(number)

    async def drop(self, number: int) -> None:
        await self.letter(number)
        del self._space.letters[number]


class MemoryBus:
    def __init__(self, space: MemorySpace | None = None) -> None:
        self.space = space or MemorySpace()

    def partition_log(self, partition: int) -> MemoryLog:
        return MemoryLog(self.space, subjects.log_stream(partition))

    def checkpoint_log(self, partition: int) -> MemoryLog:
        return MemoryLog(self.space, subjects.checkpoint_stream(partition))

    async def offer_trigger(
        self, partition: int, priority: int, frame: bytes
    ) -> asyncio.Future[int]:
        subject = subjects.trigger_subject(partition, priority)
        return await self._offer(subjects.TRIGGER_STREAM, subject, frame)

    async def use_brokers(
        self, app: str, brokers: tuple[Broker, ...], policy: Balance = "round_robin"
    ) -> None:
        """There is one space, whatever it is called."""

    async def offer_tasks(
        self, app: str, function: str, priority: int, frame: bytes
    ) -> asyncio.Future[int]:
        subject = subjects.task_subject(app, function, priority)
        return await self._offer(subjects.TASK_STREAM, subject, frame)

    async def _offer(self, queue: str, subject: str, frame: bytes) -> asyncio.Future[int]:
        future: asyncio.Future[int] = asyncio.get_running_loop().create_future()
        future.set_result(await self.space.offer(queue, subject, frame))
        return future

    async def take_triggers(self, partition: int, handle: Handle) -> MemoryIntake:
        pattern = f"flow.trigger.{partition}.*"
        return MemoryIntake(self.space, subjects.TRIGGER_STREAM, [pattern], handle)

    async def take_tasks(
        self, app: str, function: str, handle: Handle, priorities: range = PRIORITIES
    ) -> MemoryIntake:
        patterns = [subjects.task_subject(app, function, priority) for priority in priorities]
        return MemoryIntake(self.space, subjects.TASK_STREAM, patterns, handle)

    async def tell(self, subject: str, data: bytes) -> None:
        for listener in list(self.space.listeners):
            if _matches(subject, listener.pattern):
                await listener.hear(subject, data)

    async def listen(self, subject: str, hear: Hear) -> MemoryListening:
        return MemoryListening(self.space, subject, hear)

    @property
    def dead(self) -> MemoryDeadLetters:
        return MemoryDeadLetters(self.space)

    async def task_backlog(self) -> dict[str, int]:
        items = self.space.queues[subjects.TASK_STREAM].items.values()
        return dict(Counter(subjects.function_of(item.subject) for item in items))

    def trouble(self) -> list[tuple[str, str, str]]:
        return []

    async def tasks_identity(self) -> str:
        return str(self.space.lives)

    async def tasks_lost_since(self, identity: str) -> set[str]:
        return set() if identity == await self.tasks_identity() else {""}

    def on_tasks_lost(self, call: Callable[[str], None]) -> Callable[[], None]:
        self.space.lost_calls[call] = None
        return lambda: self.space.lost_calls.pop(call, None)

    async def close(self) -> None:
        return None


def _matches(subject: str, pattern: str) -> bool:
    """`*` stands for one part."""
    parts, wanted = subject.split("."), pattern.split(".")
    return len(parts) == len(wanted) and all(
        want in ("*", part) for part, want in zip(parts, wanted, strict=True)
    )
