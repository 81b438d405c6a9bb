"""A worker without a stream: Poll, Complete and Heartbeat have the same semantics."""

from __future__ import annotations

import asyncio
import sys
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
from tests.servers import ROOT, free_port
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


UPPER = """
playbook: upper
app: shop
nodes:
  a: {task: upper, retry: {attempts: 1}}
  b: {task: upper, input: {text: $.a}}
edges:
  - {from: a, to: b}
"""


async def test_the_worker_of_the_docs_works_and_ends_without_losing_anything(address: str) -> None:
    """`examples/polling_worker.py`, which has nothing but generated stubs."""
    file = ROOT / "examples" / "polling_worker.py"
    async with magicflow.Client(address) as client:
        await until_owned(client)
        await client.create_app("shop")
        command = [sys.executable, str(file), address]
        worker = await asyncio.create_subprocess_exec(*command, stderr=asyncio.subprocess.PIPE)
        try:
            await until_offered(client, "shop/upper")
            await client.publish(UPPER, switch=True)
            handle = await client.trigger("shop/upper", {"text": "grün"})
            assert await handle.result(20) == {"b": "GRÜN"}
            failed = await client.trigger("shop/upper", {"number": 1})
            with pytest.raises(magicflow.TraceFailed, match="text"):
                await failed.result(20)
            last = await client.trigger("shop/upper", {"text": "x"})
            assert await last.result(20) == {"b": "X"}
        finally:
            worker.terminate()
            _, complaints = await asyncio.wait_for(worker.communicate(), 20)
        assert (worker.returncode, complaints) == (0, b"")


async def test_a_session_that_was_never_opened_is_refused(address: str) -> None:
    async with grpc.aio.insecure_channel(address) as channel:
        with pytest.raises(grpc.aio.AioRpcError) as refused:
            await DispatchServiceStub(channel).Poll(pb.PollRequest(session="x"), timeout=10)
    assert refused.value.code() is grpc.StatusCode.NOT_FOUND
