"""Partition logs: one stream each, fenced by `Nats-Expected-Last-Sequence` (the expectation per
subject would refuse all but the first append in flight)."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator

from nats.aio.client import Client
from nats.js import JetStreamContext
from nats.js.api import ConsumerConfig, DeliverPolicy
from nats.js.errors import NotFoundError

from engine.bus.jetstream.publishing import Publisher, unavailable
from engine.bus.jetstream.streams import state_of
from engine.bus.port import Fenced
from engine.errors import Unavailable

ONE_BY_ONE = 16  # frames that are read without a consumer
APPEND_PATIENCE = 30.0  # seconds until an append of unknown fate is given up


class JetStreamLog:
    """One log stream. Appends of unknown fate are looked up in the stream and sent again."""

    def __init__(
        self,
        client: Client,
        js: JetStreamContext,
        publisher: Publisher,
        stream: str,
        subject: str,
    ) -> None:
        self._client = client
        self._js = js
        self._publisher = publisher
        self._stream = stream
        self._subject = subject
        self._newest: tuple[int, asyncio.Future[int]] | None = None  # (expected, outcome)

    async def last(self) -> int:
        try:
            info = await self._js.stream_info(self._stream)
        except Exception as error:
            raise unavailable(error) from error
        return info.state.last_seq

    async def since_last(self) -> int:
        state, now = await state_of(self._client, self._stream)
        if now is None or state.last_ts is None or not state.last_seq:
            return 0
        return max(0, round((now - state.last_ts).total_seconds() * 1_000))

    async def append(self, frame: bytes, expected: int) -> asyncio.Future[int]:
        outcome: asyncio.Future[int] = asyncio.get_running_loop().create_future()
        newest, self._newest = self._newest, (expected, outcome)
        before = None
        if newest is not None and newest[0] == expected - 1 and not _well(newest[1]):
            before = newest[1]
        try:
            sent = await self._publish(frame, expected)
        except BaseException:
            outcome.cancel()
            raise
        sent.add_done_callback(lambda done: self._landed(done, outcome, frame, expected, before))
        return outcome

    async def _publish(self, frame: bytes, expected: int) -> asyncio.Future[int]:
        headers = {"Nats-Expected-Last-Sequence": str(expected)}
        return await self._publisher.publish(self._subject, frame, headers)

    def _landed(
        self,
        sent: asyncio.Future[int],
        outcome: asyncio.Future[int],
        frame: bytes,
        expected: int,
        before: asyncio.Future[int] | None,
    ) -> None:
        if outcome.done() or sent.cancelled():
            outcome.cancel()
        elif sent.exception() is None and (before is None or _well(before)):
            outcome.set_result(sent.result())
        else:
            fenced = isinstance(sent.exception(), Fenced)
            task = asyncio.ensure_future(self._learn(frame, expected, fenced, before))
            task.add_done_callback(lambda done: _pass_on(done, outcome))

    async def _learn(
        self, frame: bytes, expected: int, fenced: bool, before: asyncio.Future[int] | None
    ) -> int:
        """What became of a frame whose append failed or was not answered: the log itself is
        asked, and the frame sent again where it is not there. The append before it comes first:
        when that one was lost on its way, this one was refused for no other reason."""
        if before is not None:
            await asyncio.wait([before])
            if not _well(before):
                lost = before.cancelled() or not isinstance(before.exception(), Fenced)
                if lost:
                    raise Unavailable("the append before failed", reason="BUS_UNAVAILABLE")
                raise Fenced(f"{self._stream}: the append before was fenced")
            fenced = False
        loop = asyncio.get_running_loop()
        give_up = loop.time() + APPEND_PATIENCE
        while loop.time() < give_up:
            with contextlib.suppress(Unavailable):
                # The first of two sendings may have been the one that was stored.
                stored = await self._stored(expected + 1)
                if stored == frame:
                    return expected + 1
                if stored is not None or fenced:
                    raise Fenced(f"{self._stream} does not end at {expected}")
                try:
                    return await (await self._publish(frame, expected))
                except Fenced:
                    fenced = True
        raise Unavailable("the log did not answer", reason="BUS_UNAVAILABLE")

    async def _stored(self, sequence: int) -> bytes | None:
        try:
            message = await self._js.get_msg(self._stream, sequence)
        except NotFoundError:
            return None
        except Exception as error:
            await asyncio.sleep(0.2)
            raise unavailable(error) from error
        return message.data

    async def read(self, after: int, through: int) -> AsyncIterator[tuple[int, bytes]]:
        if after >= through:
            return
        try:
            state = (await self._js.stream_info(self._stream)).state
        except Exception as error:
            raise unavailable(error) from error
        through = min(through, state.last_seq)
        first = max(after + 1, state.first_seq)
        if first > through or not state.messages:
            return
        if through - first < ONE_BY_ONE:  # sooner there than a consumer is made
            for sequence in range(first, through + 1):
                stored = await self._stored(sequence)
                if stored is not None:
                    yield sequence, stored
            return
        async for sequence, frame in self.follow(after):
            yield sequence, frame
            if sequence >= through:
                return

    async def follow(self, after: int) -> AsyncIterator[tuple[int, bytes]]:
        try:
            subscription = await self._js.subscribe(
                self._subject,
                stream=self._stream,
                ordered_consumer=True,
                config=ConsumerConfig(
                    deliver_policy=DeliverPolicy.BY_START_SEQUENCE, opt_start_seq=after + 1
                ),
            )
        except Exception as error:
            raise unavailable(error) from error
        try:
            async for message in subscription.messages:
                yield message.metadata.sequence.stream, message.data
        finally:
            with contextlib.suppress(Exception):
                await subscription.unsubscribe()

    async def purge(self, through: int) -> None:
        try:
            await self._js.purge_stream(self._stream, seq=through + 1)
        except Exception as error:
            raise unavailable(error) from error


def _well(outcome: asyncio.Future[int]) -> bool:
    return outcome.done() and not outcome.cancelled() and outcome.exception() is None


def _pass_on(done: asyncio.Future[int], outcome: asyncio.Future[int]) -> None:
    error = None if done.cancelled() else done.exception()
    if outcome.done():
        return
    if done.cancelled():
        outcome.cancel()
    elif error is not None:
        outcome.set_exception(error)
    else:
        outcome.set_result(done.result())
