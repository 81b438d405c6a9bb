"""Waiting for the end of a trace without missing it.

This process listens to the ends of all traces. A waiter puts itself on the list before it looks
whether the trace has ended already, so a fast end cannot slip between. A note may be lost with the
connection: a waiter looks again from time to time.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Iterator

import msgspec

from engine.bus.port import Bus, Listening
from engine.bus.subjects import EVERY_DONE
from engine.errors import DeadlineExceeded, NotFound, Unavailable
from engine.wire.traces import outcome_of
from magicflow.v1.trigger_service_pb2 import Outcome
from services.trigger.lookup import Lookup

LOOK_AGAIN = 5.0  # seconds
_decoder = msgspec.msgpack.Decoder(list[tuple[bytes, bytes]])


class Waiting:
    def __init__(self, bus: Bus, lookup: Lookup) -> None:
        self._bus = bus
        self._lookup = lookup
        self._waiters: dict[bytes, set[asyncio.Future[Outcome]]] = {}
        self._listening: Listening | None = None

    async def open(self) -> None:
        self._listening = await self._bus.listen(EVERY_DONE, self._ended)

    async def close(self) -> None:
        if self._listening is not None:
            await self._listening.close()

    @contextlib.contextmanager
    def listen(self, trace_id: bytes) -> Iterator[asyncio.Future[Outcome]]:
        """A future of the outcome; open it before the trace can end."""
        future: asyncio.Future[Outcome] = asyncio.get_running_loop().create_future()
        waiters = self._waiters.setdefault(trace_id, set())
        waiters.add(future)
        try:
            yield future
        finally:
            waiters.discard(future)
            if not waiters:
                self._waiters.pop(trace_id, None)

    async def outcome(
        self, trace_id: bytes, future: asyncio.Future[Outcome], timeout: float, look_first: bool
    ) -> Outcome:
        """The outcome. Errors: `DeadlineExceeded` after `timeout` seconds."""
        loop = asyncio.get_running_loop()
        deadline = loop.time() + timeout
        look = look_first
        while True:
            if look:
                found = await self._look(trace_id)
                if found is not None:
                    return found
            left = deadline - loop.time()
            if left <= 0:
                raise DeadlineExceeded(
                    f"trace {trace_id.hex()} has not ended within {timeout:g} s; it goes on",
                    mend="wait longer, or watch it: `magicflow trace watch`",
                    metadata={"trace_id": trace_id.hex()},
                )
            with contextlib.suppress(TimeoutError):
                return await asyncio.wait_for(asyncio.shield(future), min(left, LOOK_AGAIN))
            look = True

    async def _look(self, trace_id: bytes) -> Outcome | None:
        try:
            trace = await self._lookup.trace(trace_id)
        except (NotFound, Unavailable):
            return None  # on its way to its owner, or nobody can say at this moment
        return outcome_of(trace) if trace.HasField("ended_at") else None

    async def _ended(self, _subject: str, data: bytes) -> None:
        for trace_id, outcome in _decoder.decode(data):
            for future in self._waiters.get(trace_id, ()):
                if not future.done():
                    future.set_result(Outcome.FromString(outcome))
