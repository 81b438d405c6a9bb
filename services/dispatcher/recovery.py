"""A partition's state as its log and checkpoints have it."""

from __future__ import annotations

import gc
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

from engine.bus.port import Bus
from engine.core.journal import (
    PartitionState,
    decode_frame,
    fold,
    snapshots_in,
    snapshots_of,
)
from engine.errors import Unavailable
from engine.snapshots.callees import Callees
from engine.snapshots.library import Library
from services.dispatcher.checkpoints import Checkpoints


@dataclass(slots=True)
class Recovered:
    """`touched` are the traces of frames behind the checkpoint, `torn` those of the last frame:
    only their turn can have been cut in two by a crash. `frames` and `bytes` are what the log has
    behind the checkpoint."""

    state: PartitionState
    touched: set[bytes] = field(default_factory=set)
    torn: set[bytes] = field(default_factory=set)
    frames: int = 0
    bytes: int = 0


class Recovery:
    """Reads a partition. What has been read once is kept: to catch up again costs what has come
    since."""

    def __init__(self, partition: int, bus: Bus, library: Library) -> None:
        self._partition = partition
        self.log = bus.partition_log(partition)
        self.checkpoints = Checkpoints(bus.checkpoint_log(partition))
        self.graphs = Callees(library)
        self._found: Recovered | None = None

    async def catch_up(self) -> Recovered:
        """The newest checkpoint and what the log has behind it.

        Errors: `Unavailable` when the log ends before the checkpoint: acknowledged frames are
        missing, so nobody may go on.
        """
        while True:
            found = self._found
            if found is None:
                found = self._found = await self._begin()
            last = await self.log.last()
            if last < found.state.sequence:
                raise Unavailable(
                    f"the log of partition {self._partition} ends at {last}, what was read of it "
                    f"ends at {found.state.sequence}: acknowledged frames are missing",
                    mend="restore the stream from a replica or a backup",
                )
            if await self._read(last, found):
                return found
            self._found = None

    async def follow(self) -> None:
        """Takes in what comes to the log, until it is cancelled or the log is purged beyond what
        has been read. Errors: `Unavailable`."""
        found = await self.catch_up()
        async for sequence, data in self.log.follow(found.state.sequence):
            if not await self._take(found, sequence, data):
                self._found = None
                return

    async def _begin(self) -> Recovered:
        found = Recovered(await self.checkpoints.load())
        wanted = {names for trace in found.state.traces.values() for names in snapshots_of(trace)}
        for playbook_id, snapshot_id in sorted(wanted):
            await self.graphs.load(playbook_id, snapshot_id)
        return found

    async def _read(self, last: int, found: Recovered) -> bool:
        """False when the log begins too late: its owner has purged it since the checkpoint that
        was read, so there is a newer one."""
        async for sequence, data in self.log.read(found.state.sequence, last):
            if not await self._take(found, sequence, data):
                return False
        return found.state.sequence >= last

    async def _take(self, found: Recovered, sequence: int, data: bytes) -> bool:
        """False when frames before this one are missing."""
        if sequence != found.state.sequence + 1:
            return False
        frame = decode_frame(data)
        for playbook_id, snapshot_id in snapshots_in(frame):
            await self.graphs.load(playbook_id, snapshot_id)
        touched = fold(found.state, sequence, frame, self.graphs)
        found.touched |= touched
        found.torn = touched or found.torn
        found.frames += 1
        found.bytes += len(data)
        return True


@contextmanager
def without_collections() -> Iterator[None]:
    """Thousands of traces are made, none of them garbage: to look for it would double the time."""
    was_on = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_on:
            gc.enable()
