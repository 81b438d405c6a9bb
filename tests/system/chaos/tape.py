"""Reads along: every frame of every partition log from the first one on, before anybody can purge
it, and the latest task frames. Uses the server's plain interface and nothing of the product."""

from __future__ import annotations

import asyncio
import contextlib
from collections import deque
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

import nats
import nats.errors
from nats.aio.client import Client
from nats.aio.msg import Msg
from nats.js.errors import Error as JetStreamError
from nats.js.errors import NotFoundError

from engine.bus import subjects
from engine.core.journal import Frame, decode_frame

LOOK_EVERY = 0.2  # seconds
KEPT_TASKS = 2_000  # frames
_OUT_OF_REACH = (nats.errors.Error, JetStreamError, OSError, asyncio.TimeoutError)


@dataclass(frozen=True, slots=True)
class Recorded:
    """A frame as the server stored it; `at` is the server's clock, seconds since 1970."""

    sequence: int
    at: float
    data: bytes

    @property
    def frame(self) -> Frame:
        return decode_frame(self.data)


@dataclass(slots=True)
class Reel:
    """The frames of one partition. `missed` are sequences that were purged before they were
    read: then this harness cannot judge."""

    frames: list[Recorded] = field(default_factory=list)
    missed: list[int] = field(default_factory=list)

    @property
    def last(self) -> int:
        return self.frames[-1].sequence if self.frames else 0


class Tape:
    """Follows as long as it is open, also while the server comes and goes."""

    def __init__(self, url: str, partitions: int) -> None:
        self._url = url
        self._client = Client()
        self._js: Any = None
        self._readers: list[asyncio.Task[None]] = []
        self._locks = [asyncio.Lock() for _ in range(partitions)]
        self.reels = [Reel() for _ in range(partitions)]
        self.tasks: deque[tuple[str, bytes]] = deque(maxlen=KEPT_TASKS)  # subject, frame

    async def open(self) -> None:
        await self._client.connect(
            [self._url],
            name="tape",
            max_reconnect_attempts=-1,
            reconnect_time_wait=0.1,
            error_cb=_ignore,
        )
        self._js = self._client.jetstream(timeout=2.0)
        await self._client.subscribe("flow.task.>", cb=self._heard_tasks)
        self._readers = [
            asyncio.create_task(self._follow(partition)) for partition in range(len(self.reels))
        ]

    async def close(self) -> None:
        for reader in self._readers:
            reader.cancel()
        await asyncio.gather(*self._readers, return_exceptions=True)
        with contextlib.suppress(*_OUT_OF_REACH):
            await asyncio.wait_for(self._client.close(), 5.0)

    async def publish(self, subject: str, data: bytes) -> None:
        await self._client.publish(subject, data)

    async def catch_up(self) -> None:
        """Returns when every frame that the server has now is on the tape. Errors: the server's."""
        await asyncio.gather(*(self._read(partition) for partition in range(len(self.reels))))

    async def altered(self) -> list[str]:
        """Reads all that the server still has once more: what differs from the tape."""
        found = await asyncio.gather(*(self._compare(p) for p in range(len(self.reels))))
        return [text for texts in found for text in texts]

    async def _follow(self, partition: int) -> None:
        while True:
            with contextlib.suppress(*_OUT_OF_REACH):
                await self._read(partition)
            await asyncio.sleep(LOOK_EVERY)

    async def _read(self, partition: int) -> None:
        reel, stream = self.reels[partition], subjects.log_stream(partition)
        async with self._locks[partition]:
            last = (await self._js.stream_info(stream)).state.last_seq
            for sequence in range(reel.last + 1, last + 1):
                try:
                    message = await self._js.get_msg(stream, sequence)
                except NotFoundError:
                    reel.missed.append(sequence)
                    continue
                reel.frames.append(Recorded(sequence, _seconds(message.time), message.data))

    async def _compare(self, partition: int) -> list[str]:
        stream, reel = subjects.log_stream(partition), self.reels[partition]
        state = (await self._js.stream_info(stream)).state
        if state.last_seq < reel.last:
            return [f"{stream} ends at {state.last_seq}; {reel.last} was there"]
        found = []
        for recorded in reel.frames:
            if recorded.sequence < state.first_seq:
                continue
            message = await self._js.get_msg(stream, recorded.sequence)
            if message.data != recorded.data:
                found.append(f"{stream} has another frame at {recorded.sequence} than before")
        return found

    async def _heard_tasks(self, message: Msg) -> None:
        self.tasks.append((message.subject, message.data))


def _seconds(at: datetime | None) -> float:
    return at.timestamp() if at is not None else 0.0


async def _ignore(error: Exception) -> None:
    """The server's coming and going is what these tests are about."""
