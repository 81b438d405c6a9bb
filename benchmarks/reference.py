"""The reference: what the same machine can do without any feature.

A pipe of the same parts as magicflow's durable path and nothing else: counters instead of graphs,
one log stream on the same nats-server with the same adapter, one raw-bytes gRPC stream to the
worker. Every step is on disk before the next one goes out. Run as a program, it serves the
stream; `drive` is its worker.
"""

from __future__ import annotations

import asyncio
import struct
import sys
import time
from collections.abc import AsyncIterator

import grpc.aio

from engine.bus.jetstream import connect

_ITEM = struct.Struct("!I")
PAYLOAD = b"x" * 256
METHOD = "/reference.Pipe/Work"


def pack(traces: list[int]) -> bytes:
    return b"".join(_ITEM.pack(trace) + PAYLOAD for trace in traces)


def unpack(data: bytes) -> list[int]:
    size = _ITEM.size + len(PAYLOAD)
    return [_ITEM.unpack_from(data, at)[0] for at in range(0, len(data), size)]


class Pipe:
    """Runs `traces` chains of `length` steps, at most `window` at once; or with a fan, all
    steps of a chain at once."""

    def __init__(self, log: object, traces: int, length: int, window: int, fan: bool) -> None:
        self._log = log
        self._left = dict.fromkeys(range(traces), length)
        self._unstarted = list(range(traces))
        self._fan = length if fan else 1
        self._window = window
        self._arrived: list[int] = []
        self._news = asyncio.Event()

    async def serve(self, requests: AsyncIterator[bytes]) -> AsyncIterator[bytes]:
        reader = asyncio.create_task(self._read(requests))
        tail = await self._log.last()  # type: ignore[attr-defined]
        ready = self._start(self._window)
        while True:
            future = await self._log.append(pack(ready), tail)  # type: ignore[attr-defined]
            tail = await future
            yield pack(ready)
            await self._news.wait()
            self._news.clear()
            results, self._arrived = self._arrived, []
            ready = self._advance(results)
            while not ready and self._left:
                await self._news.wait()
                self._news.clear()
                results, self._arrived = self._arrived, []
                ready = self._advance(results)
            if not self._left:
                await (await self._log.append(b"end", tail))  # type: ignore[attr-defined]
                reader.cancel()
                return

    async def _read(self, requests: AsyncIterator[bytes]) -> None:
        async for data in requests:
            self._arrived.extend(unpack(data))
            self._news.set()

    def _start(self, count: int) -> list[int]:
        started, self._unstarted = self._unstarted[:count], self._unstarted[count:]
        return [trace for trace in started for _ in range(self._fan)]

    def _advance(self, results: list[int]) -> list[int]:
        ready, ended = [], 0
        for trace in results:
            self._left[trace] -= 1
            if not self._left[trace]:
                del self._left[trace]
                ended += 1
            elif self._fan == 1:
                ready.append(trace)
        return ready + self._start(ended)


async def serve(nats: str, port: int, traces: int, length: int, window: int, fan: bool) -> None:
    bus = await connect([nats], partitions=1)
    server = grpc.aio.server()

    async def work(requests: AsyncIterator[bytes], _context: object) -> AsyncIterator[bytes]:
        pipe = Pipe(bus.partition_log(0), traces, length, window, fan)
        async for frame in pipe.serve(requests):
            yield frame

    handler = grpc.stream_stream_rpc_method_handler(work)
    service, name = METHOD[1:].split("/")
    server.add_generic_rpc_handlers(
        (grpc.method_handlers_generic_handler(service, {name: handler}),)
    )
    server.add_insecure_port(f"127.0.0.1:{port}")
    await server.start()
    await server.wait_for_termination()


async def drive(port: int) -> tuple[int, float]:
    """Echoes every task; (steps, seconds)."""
    async with grpc.aio.insecure_channel(f"127.0.0.1:{port}") as channel:
        call = channel.stream_stream(METHOD)()
        steps, began = 0, time.perf_counter()
        while (frame := await call.read()) is not grpc.aio.EOF:
            steps += len(frame) // (_ITEM.size + len(PAYLOAD))
            await call.write(frame)
        return steps, time.perf_counter() - began


if __name__ == "__main__":
    import uvloop

    uvloop.install()
    _, nats_url, port_text, *numbers = sys.argv
    traces_, length_, window_, fan_ = map(int, numbers)
    asyncio.run(serve(nats_url, int(port_text), traces_, length_, window_, bool(fan_)))
