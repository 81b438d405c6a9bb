"""The wire does what it says: what tests rest on is tested first."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest

from tests.servers import free_port
from tests.system.rigs.proxy import Proxy


@asynccontextmanager
async def echo(proxy_of: int) -> AsyncIterator[None]:
    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while data := await reader.read(1_024):
            writer.write(data.upper())
        writer.close()

    server = await asyncio.start_server(answer, "127.0.0.1", proxy_of)
    try:
        yield
    finally:
        server.close()


async def silent(reader: asyncio.StreamReader, seconds: float = 0.2) -> bool:
    try:
        await asyncio.wait_for(reader.read(100), seconds)
    except TimeoutError:
        return True
    return False


async def test_what_is_held_arrives_late_and_whole() -> None:
    port = free_port()
    async with echo(port):
        with Proxy(port) as wire:
            reader, writer = await asyncio.open_connection("127.0.0.1", wire.port)
            writer.write(b"one ")
            assert await reader.readexactly(4) == b"ONE "
            wire.back.hold()
            writer.write(b"two ")
            assert await silent(reader)
            assert wire.there.passed == 8  # the other direction flows
            writer.write(b"three")
            wire.heal()
            assert await reader.readexactly(9) == b"TWO THREE"
            writer.close()


async def test_a_connection_that_lost_bytes_is_reset_when_the_wire_heals() -> None:
    port = free_port()
    async with echo(port):
        with Proxy(port) as wire:
            reader, writer = await asyncio.open_connection("127.0.0.1", wire.port)
            wire.there.swallow()
            writer.write(b"lost")
            assert await silent(reader)
            wire.heal()
            with pytest.raises(ConnectionResetError):
                await reader.readexactly(1)
            again, other = await asyncio.open_connection("127.0.0.1", wire.port)
            other.write(b"new")
            assert await again.readexactly(3) == b"NEW"
            other.close()


async def test_a_cut_resets_at_once_and_a_delay_delays() -> None:
    port = free_port()
    async with echo(port):
        with Proxy(port) as wire:
            reader, writer = await asyncio.open_connection("127.0.0.1", wire.port)
            wire.there.delay = 0.3
            began = time.monotonic()
            writer.write(b"slow")
            assert await reader.readexactly(4) == b"SLOW"
            assert time.monotonic() - began >= 0.3
            wire.cut()
            with pytest.raises(ConnectionResetError):
                await reader.readexactly(1)
