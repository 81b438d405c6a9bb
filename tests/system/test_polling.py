"""A worker without a stream: Poll, Complete and Heartbeat have the same semantics."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path

import grpc.aio
import pytest
from google.protobuf.duration_pb2 import Duration

import magicflow
from magicflow.v1 import dispatch_service_pb2 as pb
from magicflow.v1.dispatch_service_pb2_grpc import DispatchServiceStub
from magicflow.v1.task_pb2 import (
    RESULT_VERDICT_ACCEPTED,
    RESULT_VERDICT_SUPERSEDED,
    Task,
    TaskResult,
)
from magicflow.v1.worker_pb2 import Function, WorkerHello
from tests.servers import free_port
from tests.system.stack import Program, until_offered, until_owned

pytestmark = [pytest.mark.timeout(120), pytest.mark.xdist_group("polling")]

PAIR = """
playbook: pair
app: shop
nodes:
  left:  {task: echo}
  right: {task: echo}
"""


@pytest.fixture
async def address(tmp_path: Path) -> AsyncIterator[str]:
    program = Program(tmp_path, ["dev", "--data", str(tmp_path / "data")], free_port(), {})
    await asyncio.to_thread(program.start)
    yield program.address
    await asyncio.to_thread(program.stop)


async def test_a_polling_worker_takes_no_more_than_its_slots_and_gets_its_receipts(
    address: str,
) -> None:
    async with magicflow.Client(address) as client, grpc.aio.insecure_channel(address) as channel:
        await until_owned(client)
        await client.create_app("shop")
        dispatch = DispatchServiceStub(channel)
        hello = WorkerHello(functions=[Function(name="shop/echo")], slots=1)
        opened = await dispatch.Poll(pb.PollRequest(hello=hello), timeout=10)
        session = opened.welcome.session
        await until_offered(client, "shop/echo")
        await client.publish(PAIR, switch=True)
        handle = await client.trigger("shop/pair", {"n": 1})

        async def poll(wait: int) -> list[Task]:
            request = pb.PollRequest(session=session, max_tasks=1, wait=Duration(seconds=wait))
            return list((await dispatch.Poll(request, timeout=30)).tasks)

        first = await poll(20)
        assert len(first) == 1  # one slot, one task, although two are ready
        assert await poll(0) == []
        result = TaskResult(id=first[0].id, output=first[0].input)
        request = pb.CompleteRequest(session=session, results=[result])
        done = await dispatch.Complete(request, timeout=10)
        assert [receipt.verdict for receipt in done.receipts] == [RESULT_VERDICT_ACCEPTED]
        again = await dispatch.Complete(request, timeout=10)
        assert [receipt.verdict for receipt in again.receipts] == [RESULT_VERDICT_SUPERSEDED]
        second = await poll(20)
        result = TaskResult(id=second[0].id, output=second[0].input)
        await dispatch.Complete(pb.CompleteRequest(session=session, results=[result]), timeout=10)
        assert await handle.result(10) == {"left": {"n": 1}, "right": {"n": 1}}


async def test_a_session_that_was_never_opened_is_refused(address: str) -> None:
    async with grpc.aio.insecure_channel(address) as channel:
        with pytest.raises(grpc.aio.AioRpcError) as refused:
            await DispatchServiceStub(channel).Poll(pb.PollRequest(session="x"), timeout=10)
    assert refused.value.code() is grpc.StatusCode.NOT_FOUND
