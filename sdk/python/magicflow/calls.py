"""Calls of the services: channels, deadlines, and when a call is made again."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Awaitable, Callable, Mapping
from typing import Any, TypeVar

import grpc.aio
from google.protobuf.duration_pb2 import Duration

from magicflow.connection import Target, Tls
from magicflow.errors import Exhausted, Invalid, Unavailable, from_rpc

Answer = TypeVar("Answer")

TIMEOUT = 10.0  # seconds
ATTEMPTS = 4  # of calls that may be repeated without harm


class Calls:
    """Makes calls. A call that was refused for overload (`Exhausted`) has done nothing: it is made
    again after the delay that the server asks for, as often as the deadline allows."""

    def __init__(
        self,
        address: str | None = None,
        *,
        token: str | None = None,
        tls: Tls | None = None,
        timeout: float = TIMEOUT,
        addresses: Mapping[str, str] | None = None,
    ) -> None:
        self._target = Target.of(address, token, tls, addresses)
        self._timeout = timeout
        self._channels: dict[str, grpc.aio.Channel] = {}

    async def close(self) -> None:
        for channel in self._channels.values():
            await channel.close()
        self._channels.clear()

    def _channel(self, service: str) -> grpc.aio.Channel:
        address = self._target.service(service)
        if address not in self._channels:
            self._channels[address] = self._target.channel(service)
        return self._channels[address]

    async def _call(
        self,
        method: Callable[..., Awaitable[Answer]],
        request: Any,
        *,
        timeout: float | None = None,
        repeat: bool = True,
    ) -> Answer:
        """All attempts together have `timeout` seconds."""
        now = asyncio.get_running_loop().time
        deadline = now() + (timeout or self._timeout)
        backoff, broken = 0.1, 0
        while True:
            try:
                return await method(
                    request, timeout=deadline - now(), metadata=self._target.metadata
                )
            except grpc.aio.AioRpcError as error:
                failed = from_rpc(error, self._target.address)
                if isinstance(failed, Exhausted) and failed.retry_after:
                    # Never earlier than asked, and not all at once.
                    pause = failed.retry_after * random.uniform(1.0, 1.5)
                elif isinstance(failed, Unavailable) and repeat and broken + 1 < ATTEMPTS:
                    broken += 1
                    pause = (failed.retry_after or backoff) * random.uniform(0.5, 1.0)
                    backoff *= 2
                else:
                    raise failed from error
                if now() + pause >= deadline:
                    raise failed from error
            await asyncio.sleep(pause)


def duration(seconds: float) -> Duration:
    """Errors: `Invalid` for one that no message can hold."""
    length = Duration()
    try:
        length.FromMilliseconds(int(seconds * 1_000))
    except (OverflowError, ValueError) as error:
        raise Invalid(f"{seconds} s is no length of time", reason="INVALID") from error
    return length
