"""A nats-server whose disk is full, in both of its ways.

JetStream reserves a share of the disk (`max_file_store`) and refuses what goes beyond, until there
is room again. When others fill the disk below it, writes fail: that stream then takes nothing more
until nats-server is started again, whatever room there is (nats-server 2.15), and answers nothing.
"""

from __future__ import annotations

from pathlib import Path

import nats
from nats.js.api import DiscardPolicy, RetentionPolicy, StreamConfig
from nats.js.errors import APIError

from engine.bus.subjects import TRIGGER_STREAM
from tests.servers import NatsServer

LIMIT = 64 << 20  # bytes for all streams
TRIGGERS = 16 << 20  # bytes of them
BALLAST = "BALLAST"


class LimitedNats(NatsServer):
    """A nats-server that takes `LIMIT` bytes."""

    def __init__(self, directory: Path) -> None:
        super().__init__(directory)
        config = directory / "nats.conf"
        text = config.read_text()
        limited = text.replace("jetstream {", f"jetstream {{\n  max_file_store: {LIMIT}", 1)
        assert limited != text, "the configuration has no jetstream block"
        config.write_text(limited)


async def reserve_less(url: str) -> None:
    """Makes the stream of triggers before the services do, which would set 4 GiB aside."""
    connection = await nats.connect(url)
    try:
        await connection.jetstream().add_stream(
            StreamConfig(
                name=TRIGGER_STREAM,
                subjects=["flow.trigger.>"],
                retention=RetentionPolicy.WORK_QUEUE,
                max_bytes=TRIGGERS,
                discard=DiscardPolicy.NEW,
                duplicate_window=0.1,
                allow_direct=True,
            )
        )
    finally:
        await connection.close()


async def fill(url: str) -> None:
    """Another stream takes all that the server may hold."""
    connection = await nats.connect(url)
    try:
        stream = connection.jetstream()
        await stream.add_stream(name=BALLAST, subjects=["ballast"])
        size = 1 << 20
        while size:
            try:
                await stream.publish("ballast", bytes(size))
            except APIError:
                size //= 8
    finally:
        await connection.close()


async def make_room(url: str) -> None:
    connection = await nats.connect(url)
    try:
        await connection.jetstream().delete_stream(BALLAST)
    finally:
        await connection.close()
