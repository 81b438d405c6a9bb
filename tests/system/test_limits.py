"""What an app may do: quotas for the whole cluster, traces in flight, workers that must be there;
and who tells an operator. Real servers, two trigger instances, two dispatchers."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

import pytest

import magicflow
from magicflow.v1.trigger_service_pb2 import TriggerBatchRequest, TriggerRequest
from magicflow.v1.trigger_service_pb2_grpc import TriggerServiceStub
from tests.system.stack import Stack, until_offered, until_owned

pytestmark = [pytest.mark.timeout(120)]

NOP = "playbook: nop\napp: {app}\nnodes: {{a: {{nop: {{}}}}}}\n"
HOOK = "playbook: wait\napp: shop\nnodes: {a: {hook: {}}}\n"
TASK = "playbook: work\napp: shop\nnodes: {a: {task: f}}\n"
QUOTA = 200.0  # starts per second


@asynccontextmanager
async def worker_at(address: str) -> AsyncIterator[magicflow.Worker]:
    worker = magicflow.Worker(address, token="", slots=20, drain_timeout=5)

    @worker.function("shop/f")
    async def f() -> int:
        return 1

    serving = asyncio.create_task(worker.serve())
    try:
        yield worker
    finally:
        worker.stop()
        await asyncio.wait_for(serving, 20)


async def until(true: Callable[[], Any], patience: float = 30.0) -> Any:
    deadline = time.monotonic() + patience
    while True:
        found = await true()
        if found:
            return found
        assert time.monotonic() < deadline, "it did not come about"
        await asyncio.sleep(0.05)


async def flood(clients: list[magicflow.Client], until_: float) -> int:
    """More starts than the quota allows, again at once when they are shed: how many were taken."""
    accepted = 0

    async def ask(client: magicflow.Client) -> None:
        nonlocal accepted
        stub = TriggerServiceStub(client._channel("trigger"))
        batch = TriggerBatchRequest(triggers=[TriggerRequest(playbook="shop/nop")] * 40)
        while time.monotonic() < until_:
            answer = await stub.TriggerBatch(batch, timeout=10)
            accepted += sum(verdict.HasField("started") for verdict in answer.verdicts)

    await asyncio.gather(*(ask(client) for client in clients for _ in range(2)))
    return accepted


async def test_a_quota_holds_for_the_whole_cluster_whoever_is_asked(stack: Stack) -> None:
    stack.serve_all()
    second = await asyncio.to_thread(stack.serve, "trigger", "trigger-2")
    async with stack.client() as client, stack.client(trigger=second.address) as other:
        await until_owned(client)
        await client.create_app("shop")
        await client.publish(NOP.format(app="shop"), switch=True)
        changed = await client.change_app("shop", quota=QUOTA)
        assert changed.quota == QUOTA
        # Both are warm, and know of the quota, once one of them has refused something.
        await flood([client, other], time.monotonic() + 1.0)
        for clients in ([client, other], [other]):  # evenly, and all through one
            began = time.monotonic()
            accepted = await flood(clients, began + 4.0)
            took = time.monotonic() - began
            assert abs(accepted / took - QUOTA) <= 0.05 * QUOTA, accepted / took


async def test_a_client_obeys_the_delay_and_gets_all_its_starts_through(stack: Stack) -> None:
    stack.serve_all()
    async with stack.client() as client:
        await until_owned(client)
        await client.create_app("shop")
        await client.publish(NOP.format(app="shop"), switch=True)
        await client.change_app("shop", quota=50.0)
        handles = await asyncio.gather(*(client.trigger("shop/nop") for _ in range(100)))
        assert len({handle.trace_id for handle in handles}) == 100
        batch = await client.trigger_batch(("shop/nop", None) for _ in range(100))
        assert all(isinstance(handle, magicflow.TraceHandle) for handle in batch)
        # Without time to wait the caller hears why, and when to come back.
        await flood([client], time.monotonic() + 0.3)
        stub = TriggerServiceStub(client._channel("trigger"))
        with pytest.raises(Exception, match="50 traces a second"):
            for _ in range(100):
                await stub.Trigger(TriggerRequest(playbook="shop/nop"), timeout=5)


async def test_no_more_traces_live_than_an_app_may_have_and_the_rest_follows(
    stack: Stack,
) -> None:
    stack.serve_all()
    async with stack.client() as client:
        await until_owned(client)
        await client.create_app("shop")
        await client.create_app("other")
        await client.publish(HOOK, switch=True)
        await client.publish(NOP.format(app="other"), switch=True)
        await client.change_app("shop", in_flight=8)
        handles = [await client.trigger("shop/wait") for _ in range(24)]

        async def live() -> set[str]:
            rows = await client.list_traces("shop/wait", status="running", limit=100)
            return {row.trace_id for row in rows}

        first = await until(lambda: _at_least(live, 6))
        # Another app's traces go on beside those that wait.
        assert await client.run("other/nop", 7, timeout=10) == {"a": 7}
        assert len(await live()) <= 8
        left = {handle.trace_id: handle for handle in handles}
        most = len(first)
        while left:
            running = await until(lambda: _at_least(live, 1))
            most = max(most, len(running))
            for trace_id in running & set(left):
                await client.signal(trace_id, "a", 1)
                await left.pop(trace_id).result(20)
        assert most <= 8


async def _at_least(read: Callable[[], Any], count: int) -> set[str]:
    found: set[str] = await read()
    return found if len(found) >= count else set()


async def test_an_app_may_refuse_what_no_worker_would_take(stack: Stack) -> None:
    stack.serve_all()
    address = stack.programs["dispatcher"].address
    async with stack.client() as client:
        await until_owned(client)
        await client.create_app("shop")
        await client.publish(TASK, switch=True)
        await client.change_app("shop", require_workers=True)

        async def refused() -> magicflow.MagicflowError | None:
            try:
                await client.trigger("shop/work")
            except magicflow.Unavailable as error:
                return error
            return None

        error = await until(refused)
        assert error.reason == "NO_WORKER"
        assert "shop/f" in str(error)
        async with worker_at(address):
            await until_offered(client, "shop/f")

            async def runs() -> bool:
                with contextlib.suppress(magicflow.Unavailable):
                    return await client.run("shop/work", timeout=20) == {"a": 1}
                return False

            await until(runs)
        assert (await until(refused)).reason == "NO_WORKER"


async def test_the_leader_says_what_is_wrong_and_another_one_follows_it(stack: Stack) -> None:
    stack.serve_all()
    second = await asyncio.to_thread(stack.serve, "dispatcher", "dispatcher-2")
    async with stack.client() as client:
        await until_owned(client, {"dispatcher", "dispatcher-2"})
        await client.create_app("shop")
        await client.publish(TASK, switch=True)
        await client.trigger("shop/work")

        async def alarms() -> dict[tuple[str, str], Any]:
            found = (await client.cluster()).alarms
            return {(alarm.code, alarm.subject): alarm for alarm in found}

        async def alarm(code: str, subject: str) -> Any:
            return (await alarms()).get((code, subject))

        raised = await until(lambda: alarm("NO_WORKER", "shop/f"))
        assert raised.HasField("since")
        cluster = await client.cluster()
        assert cluster.leader in ("dispatcher", "dispatcher-2")
        [function] = [f for f in cluster.functions if f.name == "shop/f"]
        assert (function.workers, function.waiting) == (0, 1)
        stack.programs[cluster.leader].kill()

        async def followed() -> bool:
            now = await client.cluster()
            return bool(now.leader) and now.leader != cluster.leader

        await until(followed)
        assert await until(lambda: alarm("NO_WORKER", "shop/f"))
        left = second if cluster.leader == "dispatcher" else stack.programs["dispatcher"]
        async with worker_at(left.address):

            async def cleared() -> bool:
                return ("NO_WORKER", "shop/f") not in await alarms()

            await until(cleared)
        stack.programs["trigger"].stop()
        assert await until(lambda: alarm("SERVICE_MISSING", "trigger"))
