"""A dispatch service that does what a test says: in this process, over a real socket.

    async with FakeServer() as server:
        async with serving(worker):
            stream = await server.stream()
            stream.send(tasks=[task("app/f", {"a": 1})])
            (result,) = await stream.results(1)

It says only what the test lets it say, besides the welcome, the echoes of heartbeats and, unless
`acknowledge` is switched off, the receipts of results.
"""

from __future__ import annotations

import asyncio
import contextlib
import datetime as dt
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from typing import Any, TypeVar

import grpc
import grpc.aio

from magicflow import Worker
from magicflow.payloads import to_json, to_payload
from magicflow.v1 import dispatch_service_pb2 as pb
from magicflow.v1.dispatch_service_pb2_grpc import (
    DispatchServiceServicer,
    add_DispatchServiceServicer_to_server,
)
from magicflow.v1.task_pb2 import RESULT_VERDICT_ACCEPTED, ResultReceipt, Task, TaskId, TaskResult
from magicflow.v1.worker_pb2 import Command, CommandReceipt, WorkerHello, WorkerWelcome

T = TypeVar("T")

PATIENCE = 10.0  # seconds until a test that waits has failed
QUIET = 0.05  # seconds in which something that must not come would have come


async def soon(what: Awaitable[T]) -> T:
    """What a test waits for, or its failure."""
    return await asyncio.wait_for(what, PATIENCE)


_numbers: Iterator[int] = iter(range(1, 1 << 62))


def task(
    function: str,
    value: Any = None,
    *,
    env: dict[str, Any] | None = None,
    allowed: float | None = None,
    before: tuple[str, ...] = (),
    after: tuple[str, ...] = (),
) -> Task:
    """A first attempt of a node of a trace of its own; `allowed` is its time in seconds."""
    now = dt.datetime(2024, 1, 1, tzinfo=dt.UTC)  # any clock: the worker's may differ
    made = Task(
        id=TaskId(trace_id=next(_numbers).to_bytes(16), node="n", attempt=1),
        function=function,
        input=to_payload(value),
        env=to_json(env) if env else b"",
        epoch=7,
        mac=b"mac",
        before=before,
        after=after,
    )
    made.dispatched_at.FromDatetime(now)
    if allowed is not None:
        made.deadline.FromDatetime(now + dt.timedelta(seconds=allowed))
    return made


class Stream:
    """One worker's stream, from the server's side."""

    def __init__(
        self, hello: WorkerHello, metadata: dict[str, str], acknowledge: bool, echo: bool
    ) -> None:
        self.hello = hello
        self.metadata = metadata
        self.acknowledge = acknowledge
        self.echo = echo
        self.frames: list[pb.WorkRequest] = []
        self.ended = asyncio.Event()
        self._news = asyncio.Condition()
        self._out: asyncio.Queue[pb.WorkResponse | None] = asyncio.Queue()

    def send(self, **fields: Any) -> None:
        self._out.put_nowait(pb.WorkResponse(**fields))

    def command(self, **what: Any) -> None:
        """A command; its id is `c`."""
        self.send(commands=[Command(id="c", **what)])

    def end(self) -> None:
        """Breaks the stream."""
        self._out.put_nowait(None)

    async def until(self, done: Callable[[Stream], bool]) -> None:
        """Waits until what came from the worker satisfies."""
        async with self._news:
            await soon(self._news.wait_for(lambda: done(self)))

    @property
    def came(self) -> list[TaskResult]:
        return [result for frame in self.frames for result in frame.results]

    @property
    def returned(self) -> list[TaskId]:
        return [task for frame in self.frames for task in frame.returned]

    @property
    def heartbeats(self) -> list[Any]:
        return [frame.heartbeat for frame in self.frames if frame.HasField("heartbeat")]

    async def results(self, count: int) -> list[TaskResult]:
        await self.until(lambda stream: len(stream.came) >= count)
        return self.came

    async def receipt(self) -> CommandReceipt:
        """Of the first command."""
        await self.until(lambda stream: any(frame.receipts for frame in stream.frames))
        return next(frame.receipts[0] for frame in self.frames if frame.receipts)

    async def heard(self, frame: pb.WorkRequest) -> None:
        if frame.results and self.acknowledge:
            self.send(receipts=accepted(frame.results))
        if self.echo and frame.HasField("heartbeat"):
            self.send(heartbeat=frame.heartbeat.number)
        async with self._news:
            self.frames.append(frame)
            self._news.notify_all()

    async def outgoing(self) -> AsyncIterator[pb.WorkResponse]:
        while (frame := await self._out.get()) is not None:
            yield frame


def accepted(results: Any) -> list[ResultReceipt]:
    return [ResultReceipt(id=r.id, verdict=RESULT_VERDICT_ACCEPTED) for r in results]


class FakeServer(DispatchServiceServicer):
    """Settings hold for streams that open later."""

    def __init__(self) -> None:
        self.welcome = WorkerWelcome(worker_id="w1", dispatcher="d1", max_payload_bytes=1 << 20)
        self.welcome.heartbeat_interval.FromSeconds(60)
        self.acknowledge = True
        self.echo = True
        self.silent = False  # not even a welcome
        self.refusal: tuple[grpc.StatusCode, str] | None = None
        self.address = ""
        self.streams: list[Stream] = []
        self._opened: asyncio.Queue[Stream] = asyncio.Queue()
        self._server = grpc.aio.server()

    async def __aenter__(self) -> FakeServer:
        add_DispatchServiceServicer_to_server(self, self._server)  # type: ignore[no-untyped-call]
        self.address = f"127.0.0.1:{self._server.add_insecure_port('127.0.0.1:0')}"
        await self._server.start()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._server.stop(None)

    def heartbeats_every(self, seconds: float) -> None:
        self.welcome.heartbeat_interval.FromMilliseconds(int(seconds * 1_000))

    async def stream(self) -> Stream:
        """The next stream that a worker opens."""
        return await soon(self._opened.get())

    async def Work(
        self,
        request_iterator: AsyncIterator[pb.WorkRequest],
        context: grpc.aio.ServicerContext[pb.WorkRequest, pb.WorkResponse],
    ) -> AsyncIterator[pb.WorkResponse]:
        first = await anext(aiter(request_iterator))
        metadata = {key: str(value) for key, value in context.invocation_metadata() or ()}
        stream = Stream(first.hello, metadata, self.acknowledge, self.echo)
        if not self.silent:
            stream.send(welcome=self.welcome)
        self.streams.append(stream)
        self._opened.put_nowait(stream)
        if self.refusal is not None:
            await context.abort(*self.refusal)
        reader = asyncio.create_task(self._read(stream, request_iterator))
        try:
            async for frame in stream.outgoing():
                yield frame
        finally:
            reader.cancel()
            stream.ended.set()

    async def _read(self, stream: Stream, requests: AsyncIterator[pb.WorkRequest]) -> None:
        with contextlib.suppress(grpc.aio.UsageError, asyncio.CancelledError):
            async for frame in requests:
                await stream.heard(frame)
        stream.end()  # the worker has closed its side


@contextlib.asynccontextmanager
async def serving(worker: Worker) -> AsyncIterator[asyncio.Task[None]]:
    """The worker at work, and stopped at the end."""
    life = asyncio.create_task(worker.serve())
    try:
        yield life
    finally:
        worker.stop()
        await soon(asyncio.wait({life}))
        if not life.cancelled() and life.exception() is not None:
            raise life.exception()  # type: ignore[misc]
