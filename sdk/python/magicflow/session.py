"""One stream to the server: hello, then frames both ways.

What has gathered while the previous frame was written goes into the next one; there is no timer
in that path.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable

import grpc.aio

from magicflow.connection import Target
from magicflow.errors import Unavailable, from_rpc
from magicflow.host_facts import host_facts
from magicflow.v1.dispatch_service_pb2 import WorkRequest, WorkResponse
from magicflow.v1.dispatch_service_pb2_grpc import DispatchServiceStub
from magicflow.v1.task_pb2 import TaskId, TaskResult
from magicflow.v1.worker_pb2 import (
    CommandReceipt,
    TaskProgress,
    WorkerHeartbeat,
    WorkerHello,
    WorkerWelcome,
)

FRAME_RESULTS = 256
FRAME_BYTES = 1 << 20
WELCOME = 15.0  # seconds from the hello to the welcome
INTERVAL = 5.0  # seconds between heartbeats where the welcome does not say
SILENCE = 3  # heartbeat intervals without a frame after which the stream is dead


class Outgoing:
    """What waits to be written. Only the session's loop touches it."""

    def __init__(self) -> None:
        self.results: list[TaskResult] = []
        self.progress: dict[tuple[bytes, str, int], TaskProgress] = {}  # the latest of each task
        self.returned: list[TaskId] = []
        self.receipts: list[CommandReceipt] = []
        self.heartbeat: WorkerHeartbeat | None = None
        self.slots = 0
        self.draining = False
        self.news = asyncio.Event()
        self._drain_said = False

    def empty(self) -> bool:
        """Whether everything has been written that matters when the stream ends."""
        return not (self.results or self.returned or self.receipts) and (
            self._drain_said or not self.draining
        )

    def cut(self) -> WorkRequest:
        """The next frame, within the limits of a frame."""
        size, count = 0, 0
        for result in self.results[:FRAME_RESULTS]:
            size += len(result.output.data) + len(result.failure.details.data) + 256
            size += len(result.env)
            if count and size > FRAME_BYTES:
                break
            count += 1
        frame = WorkRequest(
            results=self.results[:count],
            progress=self.progress.values(),
            returned=self.returned,
            receipts=self.receipts,
            heartbeat=self.heartbeat,
            slots=self.slots,
            draining=self.draining,
        )
        del self.results[:count]
        self.progress, self.returned, self.receipts = {}, [], []
        self._drain_said = self.draining
        self.heartbeat, self.slots = None, 0
        if not self.results:
            self.news.clear()
        return frame


class Session:
    """A stream from hello to its end. `heard` is called with every frame of the server."""

    def __init__(
        self,
        target: Target,
        hello: WorkerHello,
        outgoing: Outgoing,
        running: Callable[[], list[TaskId]],
        welcomed: Callable[[WorkerWelcome], None],
        heard: Callable[[WorkResponse], None],
    ) -> None:
        self._target = target
        self._hello = hello
        self._outgoing = outgoing
        self._running = running
        self._welcomed = welcomed
        self._heard = heard
        self._closing = asyncio.Event()
        self._welcome = asyncio.Event()
        self._last_heard = 0.0
        self._interval = INTERVAL
        self._number = 0  # of the last heartbeat
        self._echo = 0
        self._echoed = asyncio.Event()
        self._over = False

    def close(self) -> None:
        """Ends the stream from our side, once what waits is written."""
        self._closing.set()
        self._outgoing.news.set()

    async def answered(self) -> None:
        """Returns when the server has heard all that was said before this call, and we all that it
        wrote before; at once when the stream is not there or breaks."""
        if not self._welcome.is_set():
            return
        number = self._say_alive()
        while self._echo < number and not self._over:
            self._echoed.clear()
            await self._echoed.wait()

    def _say_alive(self) -> int:
        self._number += 1
        self._outgoing.heartbeat = WorkerHeartbeat(
            number=self._number, running=self._running(), host=host_facts()
        )
        self._outgoing.news.set()
        return self._number

    async def run(self) -> None:
        """Returns when the stream has ended from our side.

        Errors: the server's, as `MagicflowError`; `Unavailable` when the stream broke or went
        silent.
        """
        address = self._target.service("dispatcher")
        async with self._target.channel("dispatcher") as channel:
            stub = DispatchServiceStub(channel)
            call = stub.Work(self._frames(), metadata=self._target.metadata)
            self._last_heard = time.monotonic()
            watch = asyncio.create_task(self._beat(call))
            try:
                async for response in call:
                    self._take(response)
            except grpc.aio.AioRpcError as error:
                raise from_rpc(error, address) from error
            except asyncio.CancelledError:
                if not call.cancelled() or _being_cancelled():
                    raise
                raise Unavailable("the server is silent", reason="SERVER_SILENT") from None
            finally:
                watch.cancel()
                call.cancel()
                self._over = True
                self._echoed.set()
        if not self._closing.is_set():
            raise Unavailable("the server closed the stream", reason="STREAM_CLOSED")

    def _take(self, response: WorkResponse) -> None:
        self._last_heard = time.monotonic()
        if response.HasField("welcome"):
            interval = response.welcome.heartbeat_interval.ToMilliseconds() / 1_000
            self._interval = interval or INTERVAL
            self._welcome.set()
            self._welcomed(response.welcome)
        self._heard(response)
        if response.heartbeat:
            self._echo = response.heartbeat
            self._echoed.set()

    async def _frames(self) -> AsyncIterator[WorkRequest]:
        yield WorkRequest(hello=self._hello)
        out = self._outgoing
        while not (self._closing.is_set() and out.empty()):
            await out.news.wait()
            if not (self._closing.is_set() and out.empty()):
                yield out.cut()

    async def _beat(self, call: grpc.aio.StreamStreamCall[WorkRequest, WorkResponse]) -> None:
        """Signs of life on the stream itself; ends the call when the server gives none."""
        try:
            await asyncio.wait_for(self._welcome.wait(), WELCOME)
        except TimeoutError:
            call.cancel()
            return
        while True:
            await asyncio.sleep(self._interval)
            if time.monotonic() - self._last_heard > SILENCE * self._interval:
                call.cancel()
                return
            self._say_alive()


def _being_cancelled() -> bool:
    task = asyncio.current_task()
    return task is not None and task.cancelling() > 0
