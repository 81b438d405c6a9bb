"""Slow consumers: those who stop reading cost memory up to a bound, and nobody else his speed."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Iterator

import pytest

import magicflow
from services.dispatcher.sessions import SILENCE
from tests.system.rigs.slow import (
    MIB,
    PAYLOAD,
    WorkerProcess,
    deaf_watchers,
    load,
    watched,
)
from tests.system.rigs.wired import CHAIN, FUNCTION, WiredStack, prepare, until
from tests.system.stack import until_offered

pytestmark = [pytest.mark.timeout(240)]
SLOTS = 16
TRACES = 300
# Bytes that a stopped consumer may cost a service: what was sent to it and waits in buffers, and
# what the allocator keeps of a load. The load's payloads are many times as large.
BOUND = 48 * MIB
WATCHED = """
playbook: watched
app: shop
nodes:
  first: {task: work, input: {n: $$$.n}}
  loop:
    map: {over: $$$.items, task: work, concurrency: 4}
    input: {n: $index, pad: $$$.pad}
edges: [{from: first, to: loop}]
"""


@pytest.fixture(scope="module")
def stack(tmp_path_factory: pytest.TempPathFactory) -> Iterator[WiredStack]:
    with WiredStack(tmp_path_factory.mktemp("stack")) as stack:
        stack.serve_together()
        yield stack


@pytest.fixture
async def client(stack: WiredStack) -> AsyncIterator[magicflow.Client]:
    """With a live worker, and the services warm: what a load leaves behind is there already."""
    address = stack.programs["dispatcher"].address
    live = WorkerProcess(stack.folder("live"), address, "live", SLOTS)
    async with stack.client() as client:
        await asyncio.to_thread(live.start)
        try:
            await prepare(client)
            yield client
        finally:
            await asyncio.to_thread(live.stop)


@contextlib.asynccontextmanager
async def second_worker(
    stack: WiredStack, client: magicflow.Client
) -> AsyncIterator[WorkerProcess]:
    address = stack.programs["dispatcher"].address
    worker = WorkerProcess(stack.folder("stopped"), address, "stopped", SLOTS)
    await asyncio.to_thread(worker.start)
    try:
        async with asyncio.timeout(30):
            while len({w.worker_id for w in await client.workers()}) < 2:
                await asyncio.sleep(0.05)
        yield worker
    finally:
        await asyncio.to_thread(worker.stop)


def told(bytes_: dict[str, int]) -> str:
    return ", ".join(f"{name} +{size / MIB:.0f} MiB" for name, size in bytes_.items())


async def test_a_worker_that_stops_reading_costs_bounded_memory_and_its_tasks_go_to_others(
    stack: WiredStack, client: magicflow.Client
) -> None:
    dispatcher = stack.programs["dispatcher"].pid
    usual = await load(client, TRACES)
    async with second_worker(stack, client) as worker, watched(dispatcher=dispatcher) as peak:
        worker.pause()
        try:
            seen = await load(client, TRACES)
        finally:
            worker.resume()
    print(f"without: {usual}\nstopped: {seen}; {told(peak.growth)}")
    assert peak.growth["dispatcher"] < BOUND
    # What it had goes to the live one when its silence is noticed; all others pass by.
    assert seen.latest < 2 * SILENCE
    assert seen.median < 5 * usual.median + 0.2


async def test_executions_go_on_while_the_trace_service_stands_still(
    stack: WiredStack, client: magicflow.Client
) -> None:
    """Callers that wait with their trigger get their results. (Whoever asks for one later needs
    the trace service.)"""
    await client.publish(CHAIN.replace("playbook: chain", "playbook: kept"), switch=True)
    usual = await load(client, TRACES, "shop/kept")
    trace = stack.programs["trace"]
    pids = {name: stack.programs[name].pid for name in ("dispatcher", "trigger")}
    async with watched(**pids) as peak:
        trace.pause()
        try:
            seen = await load(client, TRACES, "shop/kept")
        finally:
            trace.resume()
    print(f"without: {usual}\nstopped: {seen}; {told(peak.growth)}")
    assert max(peak.growth.values()) < BOUND
    assert seen.took < 3 * usual.took + 2
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(30):  # the projection catches up
            while len(await rows(client)) < 2 * TRACES:
                await asyncio.sleep(0.1)
    kept = await rows(client)
    assert len(kept) == len(set(kept)) == 2 * TRACES


async def rows(client: magicflow.Client) -> list[str]:
    found = await client.list_traces("shop/kept", status="succeeded", limit=10_000)
    return [row.trace_id for row in found]


async def test_watchers_that_do_not_read_cost_bounded_memory(
    stack: WiredStack, client: magicflow.Client
) -> None:
    await client.publish(WATCHED, switch=True)
    pad = "x" * PAYLOAD
    value = {"n": 1, "pad": pad, "items": list(range(20))}
    await (await client.trigger("shop/watched", value)).result(60)
    trace = stack.programs["trace"]
    handle = await client.trigger("shop/watched", value)
    pids = {name: stack.programs[name].pid for name in ("trace", "dispatcher")}
    async with watched(**pids) as peak, deaf_watchers(trace.address, handle.trace_id, 10):
        await handle.outcome(60)
        usual = await load(client, 50)
    print(f"10 watchers: {usual}; {told(peak.growth)}")
    assert max(peak.growth.values()) < 2 * BOUND


async def test_negative_control_the_memory_of_a_load_is_seen(
    stack: WiredStack, client: magicflow.Client
) -> None:
    """Payloads that are under way are in the dispatcher's memory: the measure is one."""
    await until_offered(client, FUNCTION)
    worker_less = "shop/nobody"
    await client.publish(
        "playbook: nobody\napp: shop\nnodes: {only: {task: nobody, input: $$$}}", switch=True
    )
    async with watched(dispatcher=stack.programs["dispatcher"].pid) as peak:
        for n in range(800):
            await client.trigger(worker_less, {"n": n, "pad": f"{n}" + "x" * PAYLOAD})
        with contextlib.suppress(AssertionError):
            await until(lambda: peak.growth["dispatcher"] > BOUND, "memory grows", 10)
    print(told(peak.growth))
    assert peak.growth["dispatcher"] > BOUND
