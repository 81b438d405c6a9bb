"""Triggers on their way to their queue: those that arrive while an append is under way share the
next one."""

from __future__ import annotations

import asyncio
import contextlib

from engine.bus.port import MAX_FRAME, Bus
from engine.bus.triggers import StartTrace, encode_triggers
from engine.errors import Exhausted, Unavailable
from engine.ids import partition_of
from services.trigger.futures import settle

APPEND_PATIENCE = 10.0  # seconds
FRAME_TRIGGERS = 20  # an owner starts a frame as a whole: so long it does nothing else
MAX_BYTES = 64 << 20  # of inputs that wait in one instance


class Lanes:
    """Frames hold triggers of one app and priority, so that an owner can choose between them."""

    def __init__(self, bus: Bus, partitions: int) -> None:
        self._bus = bus
        self._partitions = partitions
        self._lanes: dict[tuple[int, str, int], Lane] = {}
        self._bytes = 0

    def check(self, trigger: StartTrace) -> None:
        """Errors: `Exhausted` when too much waits already."""
        if self._bytes + len(trigger.input.data) > MAX_BYTES and self._bytes:
            raise Exhausted(
                f"{self._bytes >> 20} MiB of inputs wait to be stored",
                reason="OVERLOADED",
                mend="try again after the delay in the status details, as the SDKs do",
                retry_after=1.0,
            )

    async def append(self, trigger: StartTrace, app: str, largest: int) -> None:
        """Returns when the trigger is on disk. `largest` is how many triggers a frame may have.

        Errors: `Exhausted` when too much waits already, `Unavailable`.
        """
        self.check(trigger)
        size = len(trigger.input.data)
        key = (partition_of(trigger.trace_id, self._partitions), app, trigger.priority)
        lane = self._lanes.get(key)
        if lane is None:
            lane = self._lanes[key] = Lane(self._bus, key[0], trigger.priority)
        lane.largest = min(FRAME_TRIGGERS, largest) if largest else FRAME_TRIGGERS
        self._bytes += size
        try:
            await lane.append(trigger)
        finally:
            self._bytes -= size
            if lane.idle and self._lanes.get(key) is lane:
                del self._lanes[key]

    async def close(self) -> None:
        for lane in list(self._lanes.values()):
            await lane.close()


class Lane:
    """Triggers of one app and priority for one partition; a frame carries what gathered while the
    one before was sent, but at most `largest` of them."""

    def __init__(self, bus: Bus, partition: int, priority: int) -> None:
        self._bus = bus
        self._partition = partition
        self._priority = priority
        self.largest = FRAME_TRIGGERS
        self._waiting: list[tuple[StartTrace, asyncio.Future[None]]] = []
        self._sender: asyncio.Task[None] | None = None

    async def append(self, trigger: StartTrace) -> None:
        future: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._waiting.append((trigger, future))
        if self._sender is None:
            self._sender = asyncio.create_task(self._send())
        await asyncio.shield(future)

    @property
    def idle(self) -> bool:
        return self._sender is None

    async def close(self) -> None:
        if self._sender is not None:
            with contextlib.suppress(asyncio.CancelledError):
                await self._sender

    async def _send(self) -> None:
        try:
            while self._waiting:
                await self._store(self._cut())
        finally:  # broken off, if anything still waits
            settle([future for _, future in self._waiting], _not_stored("the service stops"))
            self._waiting.clear()
            self._sender = None

    async def _store(self, batch: list[tuple[StartTrace, asyncio.Future[None]]]) -> None:
        futures = [future for _, future in batch]
        try:
            frame = encode_triggers([trigger for trigger, _ in batch])
            sent = await self._bus.offer_trigger(self._partition, self._priority, frame)
            await asyncio.wait_for(sent, APPEND_PATIENCE)
        except (Unavailable, TimeoutError) as error:
            settle(futures, _not_stored(str(error) or "the bus did not answer"))
        except asyncio.CancelledError:  # also by a bus that closes
            settle(futures, _not_stored("the service stops"))
            raise
        except Exception as error:  # of any kind: they would wait for ever
            settle(futures, error)
        else:
            settle(futures, None)

    def _cut(self) -> list[tuple[StartTrace, asyncio.Future[None]]]:
        size, count = 0, 0
        for trigger, _ in self._waiting[: self.largest]:
            size += len(trigger.input.data) + 128
            if count and size > MAX_FRAME:
                break
            count += 1
        batch, self._waiting = self._waiting[:count], self._waiting[count:]
        return batch


def _not_stored(why: str) -> Unavailable:
    return Unavailable(
        f"the trigger could not be stored: {why}",
        reason="BUS_UNAVAILABLE",
        mend="try again; whether it was stored is not known",
        retry_after=1.0,
    )
