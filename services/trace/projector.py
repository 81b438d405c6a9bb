"""Follows the partition logs and writes them to SQL.

One transaction takes whatever has gathered from all partitions while the one before was under
way. Partitions are shared between the replicas by rendezvous hashing; the guarded position makes
an overlap harmless.
"""

from __future__ import annotations

import asyncio
import contextlib

import msgspec
import structlog

from engine.bus.port import Bus
from engine.bus.subjects import PROJECTED
from engine.core.journal import Frame, decode_frame
from engine.errors import Conflict, Unavailable
from engine.snapshots import keys
from engine.snapshots.membership import chosen, decode_member
from engine.snapshots.mirror import Mirror
from engine.snapshots.port import Snapshots
from engine.store.journals import Journals

MAX_FRAMES = 512
MAX_BYTES = 16 << 20
# Seconds between two transactions while there is little to write: one for each frame takes half a
# core at 200 steps a second, which traces that run could have.
GATHERING = 0.05
REPORT_EVERY = 2.0  # seconds between notes of the position for the owners
_log = structlog.get_logger(__name__)


class Projector:
    """`me` is the instance's name among those of the trace service."""

    def __init__(
        self, me: str, partitions: int, bus: Bus, snapshots: Snapshots, journals: Journals
    ) -> None:
        self._me = me
        self._partitions = partitions
        self._bus = bus
        self._snapshots = snapshots
        self._journals = journals
        self._members = Mirror(snapshots, keys.INSTANCES)
        self._gathered: list[tuple[int, int, Frame]] = []  # sequence, bytes, frame
        self._bytes = 0
        self._news = asyncio.Event()
        self._room = asyncio.Event()
        self._followers: dict[int, asyncio.Task[None]] = {}
        self._positions: dict[int, int] = {}
        self._reported: dict[int, int] = {}
        self._tasks: list[asyncio.Task[None]] = []

    async def open(self) -> None:
        await self._members.open()
        self._tasks = [
            asyncio.create_task(self._share()),
            asyncio.create_task(self._write()),
            asyncio.create_task(self._report()),
        ]

    async def close(self) -> None:
        for task in (*self._tasks, *self._followers.values()):
            task.cancel()
        await asyncio.gather(*self._tasks, *self._followers.values(), return_exceptions=True)
        await self._members.close()

    async def _share(self) -> None:
        """Keeps one follower per partition that is ours."""
        while True:
            members = [decode_member(value) for value in self._members.entries.values()]
            names = [member.name for member in members if member.service == "trace"]
            ours = {p for p in range(self._partitions) if chosen(p, names) == self._me}
            for partition in set(self._followers) - ours:
                await self._stop(partition)
            missing = ours - set(self._followers)
            if missing:
                await self._begin(missing)
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(1.0 if missing else 30.0):
                    await self._members.news()

    async def _begin(self, partitions: set[int]) -> None:
        try:
            positions = await self._journals.positions()
        except Unavailable as error:
            _log.warning("projection waits for the database", why=str(error))
            return
        for partition in partitions:
            self._positions[partition] = positions.get(partition, 0)
            self._followers[partition] = asyncio.create_task(self._follow(partition))

    async def _stop(self, partition: int) -> None:
        task = self._followers.pop(partition)
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
        kept = [item for item in self._gathered if item[2].partition != partition]
        self._gathered = kept
        self._bytes = sum(size for _, size, _ in kept)

    async def _follow(self, partition: int) -> None:
        after = self._positions[partition]
        while True:
            try:
                async for sequence, data in self._bus.partition_log(partition).follow(after):
                    while self._bytes > MAX_BYTES:
                        self._room.clear()
                        await self._room.wait()
                    self._gathered.append((sequence, len(data), decode_frame(data)))
                    self._bytes += len(data)
                    self._news.set()
                    after = sequence
            except Unavailable as error:
                _log.warning("projection waits for the bus", partition=partition, why=str(error))
            except Exception:  # a frame of a newer version, for one: SQL must not have a hole
                _log.exception("projection cannot go on", partition=partition, after=after)
                await asyncio.sleep(5.0)
            await asyncio.sleep(0.5)

    async def _write(self) -> None:
        pause = 0.1
        while True:
            await self._news.wait()
            self._news.clear()
            while self._gathered:
                batch = self._gathered[:MAX_FRAMES]
                try:
                    await self._project(batch)
                except Conflict as error:
                    _log.warning("projection begins anew", why=str(error))
                    for partition in list(self._followers):
                        await self._stop(partition)
                    await self._begin(set(range(self._partitions)) & set(self._positions))
                    break
                except Unavailable as error:
                    _log.warning("projection waits for the database", why=str(error))
                    await asyncio.sleep(pause)
                    pause = min(2 * pause, 5.0)
                except Exception:  # nobody waits for this task: it must not end unseen
                    _log.exception("projection failed; it tries again")
                    await asyncio.sleep(pause)
                    pause = min(2 * pause, 5.0)
                else:
                    pause = 0.1
                    if len(self._gathered) < MAX_FRAMES:
                        await asyncio.sleep(GATHERING)

    async def _project(self, batch: list[tuple[int, int, Frame]]) -> None:
        frames = [(sequence, frame) for sequence, _, frame in batch]
        await self._journals.project(frames, self._positions)
        for sequence, size, frame in batch:
            self._positions[frame.partition] = sequence
            self._bytes -= size
        del self._gathered[: len(batch)]
        self._room.set()
        touched = {entry.trace_id for _, frame in frames for entry in frame.entries}
        await self._bus.tell(PROJECTED, msgspec.msgpack.encode(list(touched)))

    async def _report(self) -> None:
        """Tells the owners how far SQL has come, so that they can forget older frames."""
        while True:
            await asyncio.sleep(REPORT_EVERY)
            for partition in list(self._followers):
                position = self._positions.get(partition, 0)
                if position != self._reported.get(partition, 0):
                    with contextlib.suppress(Unavailable):
                        await self._snapshots.put(
                            keys.projection(partition), str(position).encode()
                        )
                        self._reported[partition] = position
