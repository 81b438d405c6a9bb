"""Waiting for the end of a trace: whenever it comes, the waiter hears of it."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import cast

import msgspec
import pytest

from engine.bus.memory import MemoryBus, MemorySpace
from engine.bus.subjects import done_subject
from engine.errors import DeadlineExceeded, NotFound, Unavailable
from magicflow.payloads import to_payload
from magicflow.v1 import trace_pb2
from magicflow.v1.trace_pb2 import Trace
from magicflow.v1.trigger_service_pb2 import Outcome
from services.trigger import waiting as waiting_module
from services.trigger.lookup import Lookup
from services.trigger.waiting import Waiting

IDS = [number.to_bytes(16, "big") for number in range(1_000)]
SUCCEEDED = trace_pb2.TRACE_STATUS_SUCCEEDED


class Book:
    """Stands in for the trace services of a cluster: what they know of traces."""

    def __init__(self) -> None:
        self.ended: set[bytes] = set()
        self.looks = 0
        self.answers = True

    async def trace(self, trace_id: bytes) -> Trace:
        self.looks += 1
        await asyncio.sleep(0)
        if not self.answers:
            raise Unavailable("no instance of the trace service is live")
        if trace_id not in self.ended:
            raise NotFound("nobody knows it yet", reason="TRACE_NOT_FOUND")
        trace = Trace(trace_id=trace_id.hex(), status=SUCCEEDED, output=to_payload("looked up"))
        trace.ended_at.FromMilliseconds(1)
        return trace


class Room:
    def __init__(self) -> None:
        self.bus = MemoryBus(MemorySpace())
        self.book = Book()
        self.waiting = Waiting(self.bus, cast(Lookup, self.book))

    async def end(self, *ids: bytes, told: bool = True) -> None:
        """The traces end; `told` is false where the note of it is lost."""
        self.book.ended |= set(ids)
        if told:
            outcome = Outcome(status=SUCCEEDED, output=to_payload("told")).SerializeToString()
            data = msgspec.msgpack.encode([(trace_id, outcome) for trace_id in ids])
            await self.bus.tell(done_subject(0), data)


def said(outcome: Outcome) -> bytes:
    return outcome.output.data


@pytest.fixture
async def room() -> AsyncIterator[Room]:
    room = Room()
    await room.waiting.open()
    yield room
    await room.waiting.close()


async def test_an_end_before_anybody_waits_is_found_by_looking(room: Room) -> None:
    await room.end(IDS[0])
    with room.waiting.listen(IDS[0]) as future:
        outcome = await room.waiting.outcome(IDS[0], future, 5.0, look_first=True)
    assert said(outcome) == b'"looked up"'


async def test_an_end_between_the_list_and_the_wait_is_told(room: Room) -> None:
    with room.waiting.listen(IDS[0]) as future:
        await room.end(IDS[0])
        outcome = await room.waiting.outcome(IDS[0], future, 5.0, look_first=False)
    assert (said(outcome), room.book.looks) == (b'"told"', 0)


async def test_an_end_while_somebody_looks_is_told(room: Room) -> None:
    with room.waiting.listen(IDS[0]) as future:
        wait = asyncio.create_task(room.waiting.outcome(IDS[0], future, 5.0, look_first=True))
        while not room.book.looks:
            await asyncio.sleep(0)
        await room.end(IDS[0])
        await wait


async def test_an_end_whose_note_is_lost_is_found_by_looking_again(
    room: Room, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(waiting_module, "LOOK_AGAIN", 0.01)
    with room.waiting.listen(IDS[0]) as future:
        wait = asyncio.create_task(room.waiting.outcome(IDS[0], future, 5.0, look_first=False))
        while room.book.looks < 2:  # not there yet
            await asyncio.sleep(0)
        room.book.answers = False
        looks = room.book.looks
        while room.book.looks < looks + 2:  # nobody can say
            await asyncio.sleep(0)
        room.book.answers = True
        await room.end(IDS[0], told=False)
        assert said(await wait) == b'"looked up"'


async def test_every_waiter_of_a_trace_is_told_and_none_of_another(room: Room) -> None:
    listen = room.waiting.listen
    with listen(IDS[0]) as one, listen(IDS[0]) as two, listen(IDS[1]) as other:
        await room.end(IDS[0])
        for future in (one, two):
            await room.waiting.outcome(IDS[0], future, 5.0, look_first=False)
        assert not other.done()


async def test_a_wait_that_is_too_long_says_that_the_trace_goes_on(room: Room) -> None:
    late = pytest.raises(DeadlineExceeded, match="it goes on")
    with room.waiting.listen(IDS[0]) as future, late as refused:
        await room.waiting.outcome(IDS[0], future, 0.0, look_first=True)
    assert refused.value.metadata == {"trace_id": IDS[0].hex()}
    assert room.waiting._waiters == {}  # nothing is kept of those who have gone


async def test_a_thousand_ends_race_with_a_thousand_waits_and_none_is_missed(room: Room) -> None:
    """No note is repeated and nobody looks twice: a missed end would be a wait of 5 s."""

    async def run(number: int) -> Outcome:
        trace_id = IDS[number]
        if number % 3 == 0:  # ends before it is waited for, as under an idempotency key
            await room.end(trace_id)
        with room.waiting.listen(trace_id) as future:
            if number % 3 == 1:
                ending = asyncio.create_task(room.end(trace_id))
            elif number % 3 == 2:
                await room.end(trace_id)
            first = number % 3 == 0
            outcome = await room.waiting.outcome(trace_id, future, 4.0, look_first=first)
            if number % 3 == 1:
                await ending
            return outcome

    outcomes = await asyncio.gather(*(run(number) for number in range(len(IDS))))
    assert {outcome.status for outcome in outcomes} == {SUCCEEDED}
    assert room.book.looks <= len(IDS)
