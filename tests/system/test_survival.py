"""Traces survive what happens to processes. Real servers, real processes, real signals."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import grpc.aio
import pytest

import magicflow
from magicflow.v1.partition_service_pb2 import OwedRequest
from magicflow.v1.partition_service_pb2_grpc import PartitionServiceStub
from tests.system.stack import Stack, until_offered, until_owned

pytestmark = [pytest.mark.timeout(180)]

DIAMOND = """
playbook: sum
app: shop
nodes:
  start: {task: inc, input: {n: $$$.n}}
  left:  {task: inc, input: {n: $.start}}
  right: {task: inc, input: {n: "${ $.start * 10 }"}}
  total: {task: add, input: {a: $.left, b: $.right}}
edges:
  - {from: start, to: left}
  - {from: start, to: right}
  - {from: left, to: total}
  - {from: right, to: total}
output: $.total
"""
TRACES = 200


def expected(n: int) -> int:
    return (n + 1 + 1) + ((n + 1) * 10 + 1)


class Journal:
    """What the worker did, by (trace, node)."""

    def __init__(self) -> None:
        self.calls: Counter[tuple[str, str]] = Counter()
        self.half = asyncio.Event()

    def note(self, ctx: magicflow.Context) -> None:
        self.calls[ctx.trace_id, ctx.node] += 1
        if sum(self.calls.values()) >= TRACES:  # a quarter of all steps
            self.half.set()


@asynccontextmanager
async def worker_at(address: str, journal: Journal) -> AsyncIterator[magicflow.Worker]:
    worker = magicflow.Worker(address, token="", slots=20, drain_timeout=5)

    @worker.function("shop/inc")
    async def inc(n: int, ctx: magicflow.Context) -> int:
        journal.note(ctx)
        return n + 1

    @worker.function("shop/add")
    async def add(a: int, b: int, ctx: magicflow.Context) -> int:
        journal.note(ctx)
        return a + b

    serving = asyncio.create_task(worker.serve())
    try:
        yield worker
    finally:
        worker.stop()
        await asyncio.wait_for(serving, 20)


async def prepare(stack: Stack, client: magicflow.Client) -> None:
    await until_owned(client)
    await client.create_app("shop")
    await until_offered(client, "shop/inc", "shop/add")
    await client.publish(DIAMOND, switch=True)


async def test_each_service_is_a_process_of_its_own_over_nats_etcd_and_postgresql(
    stack: Stack,
) -> None:
    stack.serve_all()
    async with (
        stack.client() as client,
        worker_at(stack.programs["dispatcher"].address, Journal()),
    ):
        await prepare(stack, client)
        assert await client.run("shop/sum", {"n": 4}) == expected(4)
        handle = await client.trigger("shop/sum", {"n": 1})
        assert await handle.result(20) == expected(1)
        statuses = {node.path: node.status for node in (await handle.get()).nodes}
        assert set(statuses) == {"start", "left", "right", "total"}


async def run_through(stack: Stack, client: magicflow.Client, journal: Journal, harm) -> None:  # type: ignore[no-untyped-def]
    """Starts all traces, does harm once a quarter of the steps have run, and checks every
    result and the projection."""
    handles = await asyncio.gather(*(client.trigger("shop/sum", {"n": n}) for n in range(TRACES)))
    await asyncio.wait_for(journal.half.wait(), 30)
    await harm()
    results = await asyncio.gather(*(handle.result(90) for handle in handles))
    assert results == [expected(n) for n in range(TRACES)]
    assert set(journal.calls) == {
        (h.trace_id, node) for h in handles for node in ("start", "left", "right", "total")
    }
    await until_projected(client, {handle.trace_id for handle in handles})


async def until_projected(client: magicflow.Client, traces: set[str]) -> None:
    """SQL has every trace once, and none that was not started."""
    async with asyncio.timeout(30):
        while True:
            rows = await client.list_traces("shop/sum", status="succeeded", limit=1_000)
            ids = [row.trace_id for row in rows]
            if len(ids) >= len(traces):
                break
            await asyncio.sleep(0.1)
    assert len(ids) == len(set(ids))
    assert set(ids) == traces


async def test_all_traces_end_right_when_the_only_dispatcher_is_killed_and_started_again(
    stack: Stack,
) -> None:
    stack.serve_all()
    dispatcher = stack.programs["dispatcher"]
    journal = Journal()
    async with stack.client() as client, worker_at(dispatcher.address, journal):
        await prepare(stack, client)

        async def harm() -> None:
            dispatcher.kill()
            await asyncio.to_thread(dispatcher.start)

        await run_through(stack, client, journal, harm)


async def test_another_dispatcher_takes_over_when_one_is_killed(stack: Stack) -> None:
    stack.serve_all()
    second = await asyncio.to_thread(stack.serve, "dispatcher", "dispatcher-2")
    journal = Journal()
    async with stack.client() as client, worker_at(second.address, journal):
        await until_owned(client, {"dispatcher", "dispatcher-2"})
        await prepare(stack, client)

        async def harm() -> None:
            stack.programs["dispatcher"].kill()
            await until_owned(client, {"dispatcher-2"})

        await run_through(stack, client, journal, harm)


async def test_nothing_runs_twice_when_a_dispatcher_is_restarted_cleanly(stack: Stack) -> None:
    stack.serve_all()
    dispatcher = stack.programs["dispatcher"]
    journal = Journal()
    async with stack.client() as client, worker_at(dispatcher.address, journal):
        await prepare(stack, client)

        async def harm() -> None:
            await asyncio.to_thread(dispatcher.stop)
            await asyncio.to_thread(dispatcher.start)

        await run_through(stack, client, journal, harm)
        assert set(journal.calls.values()) == {1}


async def test_all_traces_end_right_when_nats_server_is_killed_and_started_again(
    stack: Stack,
) -> None:
    stack.serve_all()
    journal = Journal()
    async with stack.client() as client, worker_at(stack.programs["dispatcher"].address, journal):
        await prepare(stack, client)

        async def harm() -> None:
            stack.nats.kill()
            await asyncio.to_thread(stack.nats.start)

        await run_through(stack, client, journal, harm)


async def test_all_traces_end_right_when_the_trace_service_is_killed_and_started_again(
    stack: Stack,
) -> None:
    stack.serve_all()
    journal = Journal()
    async with stack.client() as client, worker_at(stack.programs["dispatcher"].address, journal):
        await prepare(stack, client)

        async def harm() -> None:
            stack.programs["trace"].kill()
            await asyncio.to_thread(stack.programs["trace"].start)

        await run_through(stack, client, journal, harm)


async def test_traces_go_on_when_etcd_is_killed_and_started_again(stack: Stack) -> None:
    stack.serve_all()
    journal = Journal()
    async with stack.client() as client, worker_at(stack.programs["dispatcher"].address, journal):
        await prepare(stack, client)

        async def harm() -> None:
            stack.etcd.kill()
            await asyncio.to_thread(stack.etcd.start)

        await run_through(stack, client, journal, harm)


async def test_everything_comes_back_after_etcd_was_away_for_longer_than_every_lease(
    stack: Stack,
) -> None:
    stack.serve_all()
    journal = Journal()
    async with stack.client() as client, worker_at(stack.programs["dispatcher"].address, journal):
        await prepare(stack, client)
        stack.etcd.kill()
        # The owners stop by themselves when they cannot renew; nobody owns anything then.
        async with asyncio.timeout(30):
            while (await _owners(stack)) != set():
                await asyncio.sleep(0.2)
        await asyncio.to_thread(stack.etcd.start)
        await until_owned(client)
        await until_offered(client, "shop/inc", "shop/add")
        assert await client.run("shop/sum", {"n": 2}, timeout=30) == expected(2)


async def _owners(stack: Stack) -> set[str]:
    """Partitions that answer for their owner, asked at the dispatcher itself."""
    async with grpc.aio.insecure_channel(stack.programs["dispatcher"].address) as channel:
        stub = PartitionServiceStub(channel)
        answering = set()
        for partition in range(4):
            try:
                await stub.Owed(OwedRequest(partition=partition), timeout=5)
                answering.add(str(partition))
            except grpc.aio.AioRpcError as error:
                assert error.code() is grpc.StatusCode.UNAVAILABLE, error
        return answering
