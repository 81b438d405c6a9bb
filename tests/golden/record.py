"""Records golden logs with today's code: `python -m tests.golden.record v2`.

Done by hand when a version is released, and when an event or a field has come that no golden log
has (`test_golden_logs` says so). Logs of a released version are never recorded again; a set is
replaced only with `--anew`, while nobody has that version.
"""

from __future__ import annotations

import asyncio
import sys
from pathlib import Path

from engine.bus.memory import MemoryBus, MemorySpace
from engine.core.journal import encode_frame
from engine.snapshots.library import pack
from services.dispatcher.checkpoints import Checkpoints
from tests.golden.log import GoldenLog, Shelf, folded, replay, write
from tests.golden.projection import shape_now
from tests.golden.tales import Tale, called, owners, stories, world

HERE = Path(__file__).parent
# Chosen for what happens in them: epochs, frames that are passed over, handovers.
WORLDS = (8, 36, 41, 48, 49, 66, 106, 116, 439, 657, 721)
CHECKPOINT_FRAMES = 5  # the distance of the checkpoints of a log


async def golden(tale: Tale) -> GoldenLog:
    """What today's code makes of it."""
    snapshots = [(g.playbook_id, g.snapshot_id, pack(g.drawn)) for g in tale.graphs]
    log = GoldenLog(
        tale.name,
        shape_now(),
        snapshots,
        [encode_frame(frame) for frame in tale.frames],
        [],
        [],
        b"",
    )
    space = MemorySpace()
    saving = Checkpoints(MemoryBus(space).checkpoint_log(0))
    changed: set[bytes] = set()
    gone: set[bytes] = set()
    for sequence, state, whole, digest in folded(log.frames, Shelf(snapshots), log.shape):
        log.digests.append(digest)
        log.final = whole
        touched = {entry.trace_id for entry in tale.frames[sequence - 1].entries}
        changed |= touched & state.traces.keys()
        gone |= touched - state.traces.keys()
        if sequence % CHECKPOINT_FRAMES == 0:
            await saving.save(state, changed, gone)
            frames = space.logs["FLOW_CHECKPOINT_0"].frames
            log.checkpoints.append((sequence, list(frames)))
            changed.clear()
            gone.clear()
    return log


def record(version: str) -> None:
    folder = HERE / version
    folder.mkdir(exist_ok=True)
    tales = {
        "owners": [owners(), called()],
        "worlds": [tale for seed in WORLDS for tale in world(seed)],
        "stories": asyncio.run(stories()),
    }
    for name, told in tales.items():
        logs = asyncio.run(checked(told))
        frames = sum(len(log.frames) for log in logs)
        file = folder / f"{name}.golden"
        write(file, logs)
        print(f"{file.name}: {len(logs)} logs, {frames} frames, {file.stat().st_size} bytes")


async def checked(tales: list[Tale]) -> list[GoldenLog]:
    logs = [await golden(tale) for tale in tales]
    for log in logs:
        await replay(log)
    return logs


if __name__ == "__main__":
    version, *options = sys.argv[1:]
    if (HERE / version).exists() and options != ["--anew"]:
        sys.exit(f"{version} is recorded; what a release was made of is never recorded again")
    record(version)
