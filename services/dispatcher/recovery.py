"""A partition's state as its log and checkpoints have it."""

from __future__ import annotations

import gc
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

from engine.bus.port import Log
from engine.core.journal import (
    PartitionState,
    decode_frame,
    fold,
    snapshots_in,
    snapshots_of,
)
from engine.errors import Unavailable
from engine.snapshots.callees import Callees
from services.dispatcher.checkpoints import Checkpoints


@dataclass(slots=True)
class Recovered:
    """`touched` are the traces of frames behind the checkpoint, `torn` those of the last frame:
    only their turn can have been cut in two by a crash."""

    state: PartitionState
    touched: set[bytes] = field(default_factory=set)
    torn: set[bytes] = field(default_factory=set)


async def recover(partition: int, log: Log, checkpoints: Checkpoints, graphs: Callees) -> Recovered:
    """The newest checkpoint and what the log has behind it.

    Errors: `Unavailable` when the log ends before the checkpoint: acknowledged frames are
    missing, so nobody may go on.
    """
    while True:
        found = Recovered(await checkpoints.load())
        await _load(found.state, graphs)
        last = await log.last()
        if last < found.state.sequence:
            raise Unavailable(
                f"the log of partition {partition} ends at {last}, its checkpoint is of "
                f"{found.state.sequence}: acknowledged frames are missing",
                mend="restore the stream from a replica or a backup",
            )
        if await _read(log, last, found, graphs):
            return found


async def _load(state: PartitionState, graphs: Callees) -> None:
    wanted = {names for trace in state.traces.values() for names in snapshots_of(trace)}
    for playbook_id, snapshot_id in sorted(wanted):
        await graphs.load(playbook_id, snapshot_id)


async def _read(log: Log, last: int, found: Recovered, graphs: Callees) -> bool:
    """False when the log begins too late: its owner has purged it since the checkpoint that was
    read, so there is a newer one."""
    state = found.state
    expected = state.sequence + 1
    async for sequence, data in log.read(state.sequence, last):
        if sequence != expected:
            return False
        expected += 1
        frame = decode_frame(data)
        for playbook_id, snapshot_id in snapshots_in(frame):
            await graphs.load(playbook_id, snapshot_id)
        touched = fold(state, sequence, frame, graphs)
        found.touched |= touched
        found.torn = touched or found.torn
    if expected <= last:
        return False
    state.sequence = last
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
