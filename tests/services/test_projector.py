"""What the projection makes of the logs' frames."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from typing import cast

import msgspec

from engine.bus.memory import MemoryBus, MemorySpace
from engine.core.journal import VERSION, Frame, encode_frame
from engine.snapshots import keys
from engine.snapshots.membership import Member
from engine.snapshots.memory import MemorySnapshots
from engine.store.journals import Journals
from services.trace.projector import Projector


class Transactions:
    """How many frames each transaction had."""

    def __init__(self) -> None:
        self.sizes: list[int] = []

    async def positions(self) -> dict[int, int]:
        return {}

    async def project(self, frames: list[tuple[int, Frame]], _: Mapping[int, int]) -> None:
        self.sizes.append(len(frames))


async def test_frames_that_come_one_by_one_share_transactions() -> None:
    space, snapshots, written = MemorySpace(), MemorySnapshots(), Transactions()
    member = msgspec.json.encode(Member("trace", "t", "t:1"))
    await snapshots.put(f"{keys.INSTANCES}t", member)
    bus = MemoryBus(space)
    projector = Projector("t", 1, bus, snapshots, cast(Journals, written))
    await projector.open()
    log = bus.partition_log(0)
    for number in range(40):
        await (await log.append(encode_frame(Frame(VERSION, 0, 1, number, 1, 0, [])), number))
        await asyncio.sleep(0.005)
    async with asyncio.timeout(10):
        while sum(written.sizes) < 40:
            await asyncio.sleep(0.01)
    await projector.close()
    await snapshots.close()
    assert sum(written.sizes) == 40
    assert len(written.sizes) <= 20
