"""The power of the machine under nats-server fails while frames are appended.

The server's data lies on a loop-mounted image. The cut is a copy of the image, taken while the
server stands still for a moment in the middle of its work: only what the kernel wrote to
the image is in it. A second server starts on the copy; everything that the bus adapter saw
acknowledged before the cut must be there.
"""

from __future__ import annotations

import asyncio
import contextlib
import random
from collections import deque
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from pathlib import Path

from engine.bus.jetstream import JetStreamBus, connect
from engine.bus.port import Delivery
from engine.bus.subjects import log_subject
from tests.servers import NatsServer
from tests.system.rigs.disks import LoopDisk, Memory

IN_MEMORY = 1 << 30  # bytes for the images, in memory: the cut is about order, not about speed
IN_FLIGHT = 4
PATIENCE = 20.0  # seconds
ON_ITS_WAY = 0.05  # seconds that a message needs over the loopback, at most


class DefaultFlushing(NatsServer):
    """A nats-server that acknowledges before the disk has it: JetStream as it comes."""

    def __init__(self, directory: Path) -> None:
        super().__init__(directory)
        config = directory / "nats.conf"
        lines = config.read_text().splitlines()
        kept = [line for line in lines if "sync_interval" not in line]
        assert len(kept) == len(lines) - 1, "the configuration does not name sync_interval"
        config.write_text("\n".join(kept))


@dataclass(slots=True)
class Cut:
    """What came of one power cut. Counts are of frames."""

    seed: int
    acknowledged: int = 0
    triggers: int = 0
    present: int = 0
    missing: list[str] = field(default_factory=list)

    def __str__(self) -> str:
        lost = f"{len(self.missing)} MISSING" if self.missing else "nothing missing"
        return (
            f"seed {self.seed}: {self.acknowledged} frames and {self.triggers} triggers "
            f"acknowledged, {self.present} frames present, {lost}"
        )


class Appending:
    """A partition's owner and a trigger service at work. What is acknowledged is noted."""

    def __init__(self, bus: JetStreamBus, chance: random.Random) -> None:
        self._bus = bus
        self._chance = chance
        self.frames: list[bytes] = []  # acknowledged, in the order of the log
        self.triggers: list[bytes] = []

    async def until(self, count: int) -> None:
        while len(self.frames) < count:
            await asyncio.sleep(0.001)

    async def append(self) -> None:
        log = self._bus.partition_log(0)
        flying: deque[tuple[bytes, asyncio.Future[int]]] = deque()
        sent = 0
        while True:
            while len(flying) < IN_FLIGHT:
                frame = self._frame(sent)
                flying.append((frame, await log.append(frame, sent)))
                sent += 1
            frame, future = flying.popleft()
            await future
            self.frames.append(frame)

    async def trigger(self) -> None:
        while True:
            frame = self._frame(len(self.triggers))
            await (await self._bus.offer_trigger(0, 5, frame))
            self.triggers.append(frame)

    def _frame(self, number: int) -> bytes:
        size = self._chance.choice((40, 400, 4_000, 40_000))
        return b"%d:" % number + self._chance.randbytes(size)


async def cut(directory: Path, seed: int, server: type[NatsServer] = NatsServer) -> Cut:
    """One round on a disk of its own."""
    chance = random.Random(seed)
    result = Cut(seed)
    with Memory(directory, IN_MEMORY), LoopDisk(directory / "first") as disk:
        nats = server(disk.directory / "nats")
        try:
            async with _served(nats) as bus:
                work = Appending(bus, chance)
                tasks = [asyncio.create_task(w) for w in (work.append(), work.trigger())]
                await asyncio.wait_for(work.until(chance.randrange(20, 1_500)), PATIENCE)
                nats.pause()
                # Acknowledgements that the server had sent count; it sends no others now.
                await asyncio.sleep(ON_ITS_WAY)
                frames, triggers = list(work.frames), list(work.triggers)
                copy = disk.copy_as_the_power_fails(directory / "second")
                nats.resume()
                for task in tasks:
                    task.cancel()
                await asyncio.gather(*tasks, return_exceptions=True)
        finally:
            await asyncio.to_thread(nats.kill)
        result.acknowledged, result.triggers = len(frames), len(triggers)
        with copy:
            await _compare(result, NatsServer(copy.directory / "nats"), frames, triggers)
    return result


@contextlib.asynccontextmanager
async def _served(nats: NatsServer) -> AsyncIterator[JetStreamBus]:
    await asyncio.to_thread(nats.start)
    bus = await connect([nats.url], partitions=1)
    try:
        yield bus
    finally:
        await bus.close()


async def _compare(
    result: Cut, nats: NatsServer, frames: list[bytes], triggers: list[bytes]
) -> None:
    """The next owner's view: what a server on the copy has, and that it takes more."""
    try:
        async with _served(nats) as bus:
            log = bus.partition_log(0)
            last = await log.last()
            there = [frame async for _, frame in log.read(0, last)]
            result.present = len(there)
            for place, frame in enumerate(frames):
                if there[place : place + 1] != [frame]:
                    result.missing.append(f"{log_subject(0)} {place + 1}")
            kept = await _triggers(bus, len(triggers))
            lost = [frame for frame in triggers if frame not in kept]
            result.missing += [f"trigger {frame.split(b':')[0].decode()}" for frame in lost]
            assert await (await log.append(b"the next owner", last)) == last + 1
    finally:
        await asyncio.to_thread(nats.kill)


async def _triggers(bus: JetStreamBus, wanted: int) -> set[bytes]:
    """At most the wanted number of triggers, and those that are left after a second of silence."""
    found: set[bytes] = set()
    news = asyncio.Event()

    async def take(delivery: Delivery) -> None:
        found.add(delivery.data)
        news.set()

    intake = await bus.take_triggers(0, take)
    await intake.ask(wanted + IN_FLIGHT)
    while len(found) < wanted:
        news.clear()
        try:
            await asyncio.wait_for(news.wait(), 1.0)
        except TimeoutError:
            break
    await intake.close()
    return found
