"""A wire between two processes: a TCP proxy whose two directions can be slow, still or lossy.

    with Proxy(nats.port) as wire:
        serve(settings={"MAGICFLOW_NATS": f"nats://{wire.address}"})
        wire.back.hold()     # the server's bytes do not arrive, the client's do
        wire.heal()

What a network does to packets, seen from the two ends of a connection: a direction that *holds*
delivers late what was sent meanwhile, as TCP does when it sends again after the network has healed;
one that *swallows* never delivers it, and a connection that lost bytes is reset when the wire
heals, as nothing that came after them could be understood. The proxy runs in a thread of its own,
so that a test may block.
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
import struct
import threading
from collections.abc import Callable
from dataclasses import dataclass
from typing import Self

from tests.servers import free_port

CHUNK = 65_536  # bytes
ON_THE_WIRE = 64  # chunks that a direction takes in before it lets the sender wait
_RESET = struct.pack("ii", 1, 0)  # SO_LINGER: close sends RST


@dataclass(slots=True)
class Direction:
    """What happens to the bytes of one direction. `delay` is seconds. Set from any thread."""

    delay: float = 0.0
    swallows: bool = False
    holds: bool = False
    passed: int = 0  # bytes
    swallowed: int = 0

    def hold(self) -> None:
        self.holds = True

    def swallow(self) -> None:
        self.swallows = True

    def heal(self) -> None:
        self.holds = self.swallows = False
        self.delay = 0.0


class _Connection:
    def __init__(self, client: asyncio.StreamWriter, server: asyncio.StreamWriter) -> None:
        self.ends = (client, server)
        self.lost_bytes = False

    def reset(self) -> None:
        for end in self.ends:
            sock = end.get_extra_info("socket")
            with contextlib.suppress(OSError):
                sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET)
            end.transport.abort()


class Proxy:
    """Listens on a port of its own and connects to `port` of the loopback. `there` is the direction
    from who connects to who listens, `back` the other."""

    def __init__(self, port: int, *, listen: str = "127.0.0.1") -> None:
        self._target = ("127.0.0.1", port)
        self._listen = listen
        self.port = free_port()
        self.there = Direction()
        self.back = Direction()
        self._connections: set[_Connection] = set()
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._stop = asyncio.Event()
        self._listens = threading.Event()
        self._changed = asyncio.Event()

    @property
    def address(self) -> str:
        return f"{self._listen}:{self.port}"

    def __enter__(self) -> Self:
        self._thread.start()
        assert self._listens.wait(10), "the proxy does not listen"
        return self

    def __exit__(self, *_: object) -> None:
        self._loop.call_soon_threadsafe(self._stop.set)
        self._thread.join(10)
        self._loop.close()

    def cut(self) -> None:
        """Resets every connection; new ones are taken."""
        self._soon(self._reset_all)

    def part(self) -> None:
        """Holds both directions: the two ends are apart."""
        self.there.hold()
        self.back.hold()

    def heal(self) -> None:
        """Everything flows again. A connection that lost bytes is reset."""
        self.there.heal()
        self.back.heal()
        self._soon(self._healed)

    # In the proxy's own thread.

    def _soon(self, work: Callable[[], None]) -> None:
        done = threading.Event()

        def call() -> None:
            work()
            done.set()

        self._loop.call_soon_threadsafe(call)
        assert done.wait(10), "the proxy does not answer"

    def _reset_all(self) -> None:
        for connection in list(self._connections):
            connection.reset()

    def _healed(self) -> None:
        for connection in list(self._connections):
            if connection.lost_bytes:
                connection.reset()

    def _run(self) -> None:
        asyncio.set_event_loop(self._loop)
        self._loop.run_until_complete(self._serve())

    async def _serve(self) -> None:
        server = await asyncio.start_server(self._connect, self._listen, self.port)
        self._listens.set()
        await self._stop.wait()
        server.close()
        self._reset_all()
        others = asyncio.all_tasks() - {asyncio.current_task()}
        if others:  # they end by themselves, as their connections have
            await asyncio.wait(others, timeout=5)

    async def _connect(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            there, back = await asyncio.open_connection(*self._target)
        except OSError:
            writer.transport.abort()
            return
        connection = _Connection(writer, back)
        self._connections.add(connection)
        try:
            async with asyncio.TaskGroup() as both:
                both.create_task(self._pump(reader, back, self.there, connection))
                both.create_task(self._pump(there, writer, self.back, connection))
        except* OSError:
            pass  # one of the ends is gone, and so is the other
        finally:
            self._connections.discard(connection)
            connection.reset()

    async def _pump(
        self,
        source: asyncio.StreamReader,
        sink: asyncio.StreamWriter,
        direction: Direction,
        connection: _Connection,
    ) -> None:
        """Ends with an error when the source has ended: a connection has both directions or
        none, which is enough for gRPC and NATS."""
        wire: asyncio.Queue[tuple[bytes, float]] = asyncio.Queue(ON_THE_WIRE)
        sending = asyncio.create_task(self._send(wire, sink, direction, connection))
        try:
            while data := await source.read(CHUNK):
                await wire.put((data, self._loop.time()))
            await wire.put((b"", self._loop.time()))
            await sending
        finally:
            sending.cancel()
        raise ConnectionResetError

    async def _send(
        self,
        wire: asyncio.Queue[tuple[bytes, float]],
        sink: asyncio.StreamWriter,
        direction: Direction,
        connection: _Connection,
    ) -> None:
        while True:
            data, at = await wire.get()
            while direction.holds:
                await asyncio.sleep(0.005)
            if direction.swallows:
                direction.swallowed += len(data)
                connection.lost_bytes = True
                continue
            await asyncio.sleep(max(0.0, at + direction.delay - self._loop.time()))
            if not data:
                return
            with contextlib.suppress(OSError):
                sink.write(data)
                await sink.drain()
                direction.passed += len(data)
