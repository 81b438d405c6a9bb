"""What is refused, or said, of a nats-server that may not keep what it acknowledges."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from engine.bus.jetstream import connect
from engine.bus.jetstream.durability import check_durable, check_version
from engine.errors import Unavailable
from tests.servers import NatsServer


class Forgetful(NatsServer):
    """As nats-server flushes unless it is told otherwise."""

    def __init__(self, directory: Path) -> None:
        super().__init__(directory)
        config = directory / "nats.conf"
        config.write_text(config.read_text().replace("  sync_interval: always\n", ""))


async def test_a_server_that_acknowledges_before_the_disk_has_it_is_refused(
    tmp_path: Path,
) -> None:
    with (
        Forgetful(tmp_path) as server,
        pytest.raises(Unavailable, match="acknowledges before the disk") as refused,
    ):
        await connect([server.url], partitions=1, monitors=[server.monitor])
    assert "sync_interval: always" in refused.value.mend


async def test_a_server_that_flushes_first_is_taken_without_a_word(tmp_path: Path) -> None:
    with NatsServer(tmp_path) as server:
        bus = await connect([server.url], partitions=1, monitors=[server.monitor])
        assert bus.trouble() == []
        await bus.close()


async def test_that_nobody_could_ask_is_said_as_long_as_it_is_so(tmp_path: Path) -> None:
    with NatsServer(tmp_path) as server:
        no_http = server.url.replace("nats://", "http://")
        for monitors in ([], ["http://127.0.0.1:9"], [no_http]):
            bus = await connect([server.url], partitions=1, monitors=monitors)
            [(code, _, message)] = bus.trouble()
            assert code == "BUS_UNVERIFIED"
            assert "MAGICFLOW_NATS_MONITOR" in message
            await bus.close()


@pytest.mark.parametrize(
    "monitor", ["127.0.0.1:8222", "http://host:port", "http://[::1", "http://a b:1", "http://ż:80"]
)
async def test_what_can_be_no_monitoring_endpoint_is_refused_with_a_mend(monitor: str) -> None:
    with pytest.raises(Unavailable, match="is no monitoring endpoint") as refused:
        await check_durable([monitor])
    assert "MAGICFLOW_NATS_MONITOR" in refused.value.mend


async def test_an_endpoint_that_hangs_up_does_not_answer() -> None:
    async def hang_up(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.close()

    server = await asyncio.start_server(hang_up, "127.0.0.1", 0)
    monitor = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
    async with server:
        assert await check_durable([monitor]) == [monitor]


def test_a_server_that_is_too_old_is_refused() -> None:
    check_version("2.14.0")
    check_version("3.0.1-beta")
    for version in ("2.13.9", "2.9.10", ""):
        with pytest.raises(Unavailable, match=r"needs 2\.14"):
            check_version(version)
