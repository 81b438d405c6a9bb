"""Workers that are half gone: one of the two directions of their stream does not arrive."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator

import grpc.aio

from magicflow.v1.dispatch_service_pb2 import WorkRequest, WorkResponse
from magicflow.v1.dispatch_service_pb2_grpc import DispatchServiceStub
from magicflow.v1.worker_pb2 import Function, WorkerHeartbeat, WorkerHello
from services.dispatcher.sessions import HEARTBEAT, SILENCE

# A task was written long ago (`SILENCE`), and two heartbeats in a row do not name it.
DEAF_AFTER = SILENCE + 2 * HEARTBEAT  # seconds
MUTE_AFTER = SILENCE


class Zombie:
    """A worker whose heart beats whatever it hears, written by hand: that of the SDK would notice
    the silence itself. It never does a task."""

    def __init__(self, address: str, name: str, function: str) -> None:
        self._address = address
        self._hello = WorkerHello(
            worker_id=name, functions=[Function(name=function)], slots=4, sdk="by hand"
        )
        self.welcomed = asyncio.Event()
        self.heard: list[WorkResponse] = []
        self.ended = asyncio.Event()

    async def run(self) -> None:
        """Until its stream is ended from the other side."""
        try:
            async with grpc.aio.insecure_channel(self._address) as channel:
                call = DispatchServiceStub(channel).Work(self._frames())
                with contextlib.suppress(grpc.aio.AioRpcError):
                    async for frame in call:
                        self.heard.append(frame)
                        self.welcomed.set()
        finally:
            self.ended.set()

    async def _frames(self) -> AsyncIterator[WorkRequest]:
        yield WorkRequest(hello=self._hello)
        number = 0
        while True:
            await asyncio.sleep(HEARTBEAT)
            number += 1
            yield WorkRequest(heartbeat=WorkerHeartbeat(number=number))

    @property
    def tasks(self) -> int:
        return sum(len(frame.tasks) for frame in self.heard)


@contextlib.asynccontextmanager
async def undead(address: str, name: str, function: str) -> AsyncIterator[Zombie]:
    """A connected one."""
    zombie = Zombie(address, name, function)
    running = asyncio.create_task(zombie.run())
    try:
        await asyncio.wait_for(zombie.welcomed.wait(), 10)
        yield zombie
    finally:
        running.cancel()
        await asyncio.gather(running, return_exceptions=True)
