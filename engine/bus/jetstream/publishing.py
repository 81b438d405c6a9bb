"""Frames on their way to a stream: one inbox for all acknowledgements of a connection, an awaitable
per frame, never per item."""

from __future__ import annotations

import asyncio
from typing import Any

import msgspec
from nats.aio.client import Client
from nats.aio.msg import Msg

from engine.bus.port import Fenced
from engine.errors import Unavailable

_ASK_AGAIN = 5.0  # seconds without an acknowledgement until the log is asked what it holds
_WRONG_LAST_SEQUENCE = 10071


class _Ack(msgspec.Struct):
    seq: int = 0
    error: dict[str, Any] | None = None


_acks = msgspec.json.Decoder(_Ack)


class Publisher:
    """Publishes frames and matches acknowledgements by a token in the reply subject. What is not
    acknowledged within `_ASK_AGAIN` fails; one sweep a second looks, not a timer per frame."""

    def __init__(self, client: Client) -> None:
        self._client = client
        self._prefix = client.new_inbox()
        self._pending: dict[str, tuple[float, asyncio.Future[int]]] = {}
        self._counter = 0
        self._sweeper: asyncio.Task[None] | None = None

    async def open(self) -> None:
        """Errors: `Unavailable`."""
        try:
            await self._client.subscribe(f"{self._prefix}.*", cb=self._acknowledged)
        except Exception as error:
            raise unavailable(error) from error
        self._sweeper = asyncio.create_task(self._sweep())

    def give_up(self, why: str) -> None:
        """Nothing that is under way will be acknowledged."""
        pending, self._pending = self._pending, {}
        for _, future in pending.values():
            if not future.done():
                future.set_exception(Unavailable(why, reason="BUS_UNAVAILABLE"))

    def close(self) -> None:
        if self._sweeper is not None:
            self._sweeper.cancel()
        for _, future in self._pending.values():
            future.cancel()

    async def publish(
        self, subject: str, frame: bytes, headers: dict[str, str] | None = None
    ) -> asyncio.Future[int]:
        """The future gives the stream's sequence, or raises `Fenced` or `Unavailable`."""
        self._counter += 1
        token = str(self._counter)
        loop = asyncio.get_running_loop()
        future: asyncio.Future[int] = loop.create_future()
        self._pending[token] = (loop.time() + _ASK_AGAIN, future)
        try:
            await self._client.publish(
                subject, frame, reply=f"{self._prefix}.{token}", headers=headers
            )
        except Exception as error:
            del self._pending[token]
            raise unavailable(error) from error
        return future

    async def _acknowledged(self, message: Msg) -> None:
        _, future = self._pending.pop(message.subject.rpartition(".")[2], (0.0, None))
        if future is None or future.done():
            return
        if not message.data:  # 503: no stream listens on this subject
            future.set_exception(Unavailable("the stream is not there", reason="BUS_UNAVAILABLE"))
            return
        ack = _acks.decode(message.data)
        if ack.error is None:
            future.set_result(ack.seq)
        elif ack.error.get("err_code") == _WRONG_LAST_SEQUENCE:
            future.set_exception(Fenced(str(ack.error.get("description"))))
        else:
            description = str(ack.error.get("description"))
            future.set_exception(
                Unavailable(f"the bus refused a frame: {description}", reason="BUS_UNAVAILABLE")
            )

    async def _sweep(self) -> None:
        loop = asyncio.get_running_loop()
        while True:
            await asyncio.sleep(1.0)
            now = loop.time()
            for token, (deadline, future) in list(self._pending.items()):
                if now > deadline:
                    del self._pending[token]
                    if not future.done():
                        future.set_exception(
                            Unavailable("the bus did not answer", reason="BUS_UNAVAILABLE")
                        )


def unavailable(error: Exception) -> Unavailable:
    if isinstance(error, Unavailable):
        return error
    return Unavailable(f"the bus is out of reach: {error!r}", reason="BUS_UNAVAILABLE")
