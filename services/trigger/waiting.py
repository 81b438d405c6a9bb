"""Waiting for the end of a trace without missing it.

A waiter listens for the trace's end before it looks whether the trace has ended already, so a
fast end cannot slip between. The note may be lost with the connection: a waiter looks again from
time to time.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator

from engine.bus.port import Bus
from engine.bus.subjects import done_subject
from engine.errors import DeadlineExceeded, NotFound, Unavailable
from engine.wire import outcome_of
from magicflow.v1.trigger_service_pb2 import Outcome
from services.trigger.lookup import Lookup

LOOK_AGAIN = 5.0  # seconds


class Waiting:
    def __init__(self, bus: Bus, lookup: Lookup) -> None:
        self._bus = bus
        self._lookup = lookup

    @contextlib.asynccontextmanager
    async def listen(self, trace_id: bytes) -> AsyncIterator[asyncio.Future[Outcome]]:
        """A future of the outcome; open it before the trace can end."""
        future: asyncio.Future[Outcome] = asyncio.get_running_loop().create_future()

        async def hear(_subject: str, data: bytes) -> None:
            if not future.done():
                future.set_result(Outcome.FromString(data))

        listening = await self._bus.listen(done_subject(trace_id.hex()), hear)
        try:
            yield future
        finally:
            await listening.close()

    async def outcome(
        self, trace_id: bytes, future: asyncio.Future[Outcome], timeout: float, look_first: bool
    ) -> Outcome:
        """The outcome. Errors: `DeadlineExceeded` after `timeout` seconds, `NotFound`."""
        loop = asyncio.get_running_loop()
        deadline = loop.time() + timeout
        look = look_first
        while True:
            if look:
                found = await self._ended(trace_id)
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

    async def _ended(self, trace_id: bytes) -> Outcome | None:
        try:
            trace = await self._lookup.trace(trace_id)
        except (NotFound, Unavailable):
            return None  # on its way to its owner, or nobody can say at this moment
        return outcome_of(trace) if trace.HasField("ended_at") else None
