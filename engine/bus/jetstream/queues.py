"""Queues of frames: pull consumers that take only what they asked for."""

from __future__ import annotations

import asyncio
import contextlib
import json
from typing import Any

import nats
from nats.aio.client import Client
from nats.aio.msg import Msg
from nats.js import JetStreamContext
from nats.js.api import AckPolicy, ConsumerConfig, DeliverPolicy

from engine.bus.jetstream.publishing import unavailable
from engine.bus.port import Handle

_PULL_EXPIRES = 30.0  # seconds
_ACK_WAIT = 30.0  # seconds


def consumer(name: str, subjects: list[str]) -> ConsumerConfig:
    """Takes what is on these subjects, in order, and acknowledges each frame by itself."""
    return ConsumerConfig(
        durable_name=name,
        filter_subjects=subjects,
        ack_policy=AckPolicy.EXPLICIT,
        deliver_policy=DeliverPolicy.ALL,
        ack_wait=_ACK_WAIT,
        max_ack_pending=100_000,
        max_deliver=-1,
    )


class JetStreamDelivery:
    __slots__ = ("_message", "behind", "redelivered", "sequence", "subject")

    def __init__(self, message: Msg) -> None:
        self._message = message
        self.subject: str = message.subject
        metadata = message.metadata
        self.sequence: int = metadata.sequence.stream
        self.behind: int = metadata.num_pending
        self.redelivered: bool = metadata.num_delivered > 1

    @property
    def data(self) -> bytes:
        return self._message.data

    async def ack(self) -> None:
        await self._say(b"+ACK")

    async def give_back(self, delay: float = 0.0) -> None:
        body = json.dumps({"delay": int(delay * 1e9)}).encode() if delay else b""
        await self._say(b"-NAK " + body if body else b"-NAK")

    async def working(self) -> None:
        await self._say(b"+WPI")

    async def _say(self, word: bytes) -> None:
        # An acknowledgement that gets lost leads to a redelivery, which is recognised.
        with contextlib.suppress(nats.errors.Error):
            await self._message._client.publish(self._message.reply, word)


class JetStreamIntake:
    """A pull consumer with at most one request under way, made anew when it is used up. While it
    is open it is one of `among`, which are mended after a reconnect."""

    def __init__(
        self,
        client: Client,
        js: JetStreamContext,
        stream: str,
        config: ConsumerConfig,
        among: set[JetStreamIntake],
    ) -> None:
        self._among = among
        self._client = client
        self._js = js
        self._stream = stream
        self._config = config
        self._inbox = client.new_inbox()
        self._wanted = 0
        self._requested = 0
        self._deadline = 0.0
        self._subscription: Any = None
        self._keeper: asyncio.Task[None] | None = None
        self._handle: Handle | None = None
        self._closed = False

    async def open(self, handle: Handle) -> None:
        self._handle = handle
        await self.ensure()
        self._subscription = await self._client.subscribe(self._inbox, cb=self._arrived)
        self._keeper = asyncio.create_task(self._keep())
        self._among.add(self)

    async def ensure(self) -> None:
        """Makes the consumer, if it is not there."""
        try:
            await self._js.add_consumer(self._stream, self._config)
        except Exception as error:
            raise unavailable(error) from error

    async def ask(self, frames: int) -> None:
        self._wanted = frames
        await self._request()

    async def floor(self) -> int:
        try:
            info = await self._js.consumer_info(self._stream, self._config.durable_name or "")
        except Exception as error:
            raise unavailable(error) from error
        return info.ack_floor.stream_seq if info.ack_floor else 0

    async def close(self) -> None:
        self._closed = True
        self._among.discard(self)
        self._wanted = 0
        if self._keeper is not None:
            self._keeper.cancel()
        if self._subscription is not None:
            with contextlib.suppress(Exception):
                await self._subscription.unsubscribe()

    async def _request(self) -> None:
        if self._closed or self._requested or self._wanted <= 0:
            return
        self._requested = self._wanted
        self._deadline = asyncio.get_running_loop().time() + _PULL_EXPIRES + 2
        request = {"batch": self._requested, "expires": int(_PULL_EXPIRES * 1e9)}
        subject = f"$JS.API.CONSUMER.MSG.NEXT.{self._stream}.{self._config.durable_name}"
        try:
            await self._client.publish(subject, json.dumps(request).encode(), reply=self._inbox)
        except nats.errors.Error:
            self._requested = 0  # asked again by `_keep` once the connection is back

    async def _arrived(self, message: Msg) -> None:
        status = message.headers.get("Status") if message.headers else None
        if status is not None and not message.reply:
            # The request is over: expired, or the consumer or the server went away.
            self._requested = 0
            if status in ("404", "503"):
                await asyncio.sleep(0.2)
        else:
            self._requested -= 1
            self._wanted = max(0, self._wanted - 1)
            assert self._handle is not None
            await self._handle(JetStreamDelivery(message))
        await self._request()

    async def _keep(self) -> None:
        """Asks again when a request was lost together with the connection."""
        while True:
            await asyncio.sleep(1.0)
            late = asyncio.get_running_loop().time() > self._deadline
            if self._requested and late:
                self._requested = 0
            await self._request()

    async def again(self) -> None:
        """After a reconnect: what was asked for is asked anew."""
        self._requested = 0
        await self._request()
