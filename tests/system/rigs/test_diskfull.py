"""A full disk: starts are refused with a reason, nothing acknowledged is lost, work goes on."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterator

import pytest

import magicflow
from tests.system.rigs.diskfull import LimitedNats, fill, make_room, reserve_less
from tests.system.rigs.disks import LoopDisk, Memory
from tests.system.rigs.wired import Journal, WiredStack, prepare, results, until, working

pytestmark = [pytest.mark.timeout(180)]
PAD = "x" * 20_000
BEFORE = 20  # traces that are under way when the disk fills up


@pytest.fixture(scope="module")
def disk(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LoopDisk]:
    directory = tmp_path_factory.mktemp("disk")
    with Memory(directory, 2 << 30), LoopDisk(directory / "nats") as disk:
        yield disk


@pytest.fixture(scope="module")
def stack(disk: LoopDisk, tmp_path_factory: pytest.TempPathFactory) -> Iterator[WiredStack]:
    stack = WiredStack(tmp_path_factory.mktemp("stack"))
    stack.nats = LimitedNats(disk.directory / "nats")
    with stack:
        asyncio.run(reserve_less(stack.nats.url))
        stack.serve_together()
        yield stack


async def refusals(
    client: magicflow.Client, wanted: int, accepted: list[magicflow.TraceHandle]
) -> list[magicflow.MagicflowError]:
    """Starts traces until so many starts were refused."""
    refused: list[magicflow.MagicflowError] = []
    while len(refused) < wanted:
        assert len(accepted) < 2_000, "nothing is refused"
        try:
            accepted.append(await start(client, len(accepted)))
        except magicflow.MagicflowError as error:
            refused.append(error)
    return refused


async def start(client: magicflow.Client, n: int) -> magicflow.TraceHandle:
    return await client.trigger("shop/chain", {"n": n, "pad": PAD})


async def test_starts_are_refused_at_the_servers_limit_and_all_goes_on_once_there_is_room(
    stack: WiredStack,
) -> None:
    journal = Journal()
    async with (
        stack.client() as client,
        working(stack.programs["dispatcher"].address, journal),
    ):
        await prepare(client)
        journal.gate.clear()
        handles = [await start(client, n) for n in range(BEFORE)]
        await until(lambda: journal.begun == BEFORE, "every trace is under way")
        await fill(stack.nats.url)
        began = time.monotonic()
        refused = await refusals(client, 3, handles)
        print(f"refused after {time.monotonic() - began:.2f} s: {refused[0]}")
        for error in refused:
            assert isinstance(error, magicflow.Unavailable)
            assert (error.reason, error.retry_after) == ("BUS_UNAVAILABLE", 1.0)
            assert "insufficient" in str(error)
        journal.gate.set()  # results come while nothing can be committed
        await until(lambda: len(journal.ended) == BEFORE, "the functions have returned")
        assert stack.all_run()
        await make_room(stack.nats.url)
        began = time.monotonic()
        handles.append(await start(client, len(handles)))
        assert await results(handles, 30) == list(range(len(handles)))
        print(f"all {len(handles)} traces ended {time.monotonic() - began:.2f} s later")
        assert stack.all_run()


async def test_a_disk_that_others_fill_loses_nothing_and_all_goes_on_with_the_next_server(
    stack: WiredStack, disk: LoopDisk
) -> None:
    journal = Journal()
    async with (
        stack.client() as client,
        working(stack.programs["dispatcher"].address, journal),
    ):
        await prepare(client)
        journal.gate.clear()
        handles = [await start(client, n) for n in range(BEFORE)]
        await until(lambda: journal.begun == BEFORE, "every trace is under way")
        disk.fill(leave=256 << 10)
        refused = await refusals(client, 2, handles)
        print(f"{len(handles)} accepted, then: {refused[0]}")
        for error in refused:
            assert isinstance(error, magicflow.Unavailable)
            assert (error.reason, error.retry_after) == ("BUS_UNAVAILABLE", 1.0)
        journal.gate.set()
        await until(lambda: len(journal.ended) >= BEFORE, "the functions have returned")
        assert stack.all_run()
        disk.make_room()
        # A stream that could not write takes nothing more in this life of the server.
        stack.nats.kill()
        await asyncio.to_thread(stack.nats.start)
        began = time.monotonic()
        assert await results(handles, 60) == list(range(len(handles)))
        print(f"all {len(handles)} traces ended {time.monotonic() - began:.2f} s later")
        assert await client.run("shop/chain", {"n": 7}, timeout=30) == 7
        assert stack.all_run()
