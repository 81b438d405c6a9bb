"""Starting many traces at once, and waiting for their ends. Real servers, a process per service."""

from __future__ import annotations

import asyncio
import threading
from collections import Counter
from collections.abc import AsyncIterator, Iterator

import grpc.aio
import pytest
from google.protobuf.duration_pb2 import Duration

import magicflow
from magicflow.payloads import to_payload
from magicflow.v1.trigger_service_pb2 import (
    TriggerBatchRequest,
    TriggerBatchResponse,
    TriggerRequest,
    TriggerVerdict,
)
from magicflow.v1.trigger_service_pb2_grpc import TriggerServiceStub
from services.trigger.servicer import MAX_BATCH
from tests.system.stack import Stack, until_offered, until_owned

pytestmark = [pytest.mark.timeout(240), pytest.mark.xdist_group("triggers")]

AT_ONCE = "{playbook: at_once, app: shop, nodes: {a: {nop: {}}}}"
STRICT = "{playbook: strict, app: shop, input: {type: integer}, nodes: {a: {nop: {}}}}"
BROKEN = """
playbook: broken
app: shop
nodes:
  left:   {task: breaks}
  right:  {task: hangs}
  third:  {task: hangs_too}
"""
RUNS = 300


@pytest.fixture(scope="module")
def running(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    with Stack(tmp_path_factory.mktemp("triggers")) as stack:
        stack.serve_all()
        asyncio.run(prepare(stack))
        yield stack


async def prepare(stack: Stack) -> None:
    async with stack.client() as client:
        await until_owned(client)
        await client.create_app("shop")
        for text in (AT_ONCE, STRICT, BROKEN):
            await client.publish(text, switch=True)


@pytest.fixture
async def client(running: Stack) -> AsyncIterator[magicflow.Client]:
    async with running.client() as client:
        yield client


async def batch(stack: Stack, *triggers: TriggerRequest) -> TriggerBatchResponse:
    address = stack.programs["trigger"].address
    async with grpc.aio.insecure_channel(address) as channel:
        request = TriggerBatchRequest(triggers=triggers)
        return await TriggerServiceStub(channel).TriggerBatch(request, timeout=30)


def start(playbook: str, value: object = 1, key: str = "") -> TriggerRequest:
    return TriggerRequest(
        playbook=playbook, input=to_payload(value), idempotency_key=key, snapshot_id=0
    )


def refused(verdict: TriggerVerdict) -> str:
    return verdict.refused.code if verdict.HasField("refused") else ""


async def test_each_trigger_of_a_batch_has_its_own_verdict(
    running: Stack, client: magicflow.Client
) -> None:
    wait = start("shop/at_once")
    wait.wait.CopyFrom(Duration(seconds=1))
    many = start("shop/at_once")
    many.priority = 10
    answer = await batch(
        running,
        start("shop/at_once", "first"),
        start("shop/nowhere"),
        start("shop/strict", "text"),
        start("nonsense"),
        wait,
        many,
        start("shop/strict", 7),
    )
    assert [refused(verdict) for verdict in answer.verdicts] == [
        "",
        "PLAYBOOK_NOT_FOUND",
        "INPUT_INVALID",
        "INVALID",
        "INVALID",
        "INVALID",
        "",
    ]
    assert not any(verdict.refused.retryable for verdict in answer.verdicts)
    for place, output in ((0, "first"), (6, 7)):
        handle = client.handle(answer.verdicts[place].started.trace_id)
        assert await handle.result(10) == {"a": output}


async def test_idempotency_keys_count_inside_a_batch_and_across_batches(running: Stack) -> None:
    first = await batch(
        running,
        start("shop/at_once", 1, "key"),
        start("shop/at_once", 1, "key"),
        start("shop/at_once", 1, "other"),
        start("shop/strict", 1, "key"),  # a key is one of its playbook
        start("shop/at_once", 1),
        start("shop/at_once", 1),
    )
    assert [refused(verdict) for verdict in first.verdicts] == [""] * 6
    ids = [verdict.started.trace_id for verdict in first.verdicts]
    assert (ids[0] == ids[1], len(set(ids))) == (True, 5)
    assert Counter(v.started.existing for v in first.verdicts) == {False: 5, True: 1}
    again = await batch(running, start("shop/at_once", 1, "key"), start("shop/at_once", 2, "key"))
    same, conflict = again.verdicts
    assert (same.started.trace_id, same.started.existing) == (ids[0], True)
    assert refused(conflict) == "IDEMPOTENCY_CONFLICT"


async def test_one_of_two_inputs_under_one_key_in_a_batch_is_refused(running: Stack) -> None:
    answer = await batch(
        running, start("shop/at_once", 1, "contested"), start("shop/at_once", 2, "contested")
    )
    assert sorted(map(refused, answer.verdicts)) == ["", "IDEMPOTENCY_CONFLICT"]


async def test_a_batch_that_is_too_large_is_refused_as_a_whole(
    running: Stack, client: magicflow.Client
) -> None:
    await client.publish(AT_ONCE.replace("at_once", "never"), switch=True)
    one = TriggerRequest(playbook="shop/never")
    with pytest.raises(grpc.aio.AioRpcError) as too_many:
        await batch(running, *[one] * (MAX_BATCH + 1))
    assert too_many.value.code() is grpc.StatusCode.INVALID_ARGUMENT
    assert f"{MAX_BATCH + 1} triggers" in (too_many.value.details() or "")
    assert (await batch(running)).verdicts == []
    assert await client.list_traces("shop/never") == []


async def test_the_sdk_gives_handles_and_errors_in_the_order_of_the_batch(
    client: magicflow.Client,
) -> None:
    items = [("shop/at_once", n) if n % 3 else ("shop/nowhere", n) for n in range(RUNS)]
    handles = await client.trigger_batch(items)
    for n, handle in enumerate(handles):
        if n % 3 == 0:
            assert isinstance(handle, magicflow.Invalid)
            assert handle.reason == "PLAYBOOK_NOT_FOUND"
        else:
            assert isinstance(handle, magicflow.TraceHandle)
            assert await handle.result(20) == {"a": n}


@pytest.mark.parametrize("keyed", [False, True])
async def test_no_synchronous_run_misses_its_end_however_many_there_are(
    client: magicflow.Client, keyed: bool
) -> None:
    """Their traces end before the trigger's own answer is there."""
    outputs = await asyncio.gather(
        *(
            client.run("shop/at_once", n, timeout=30, key=f"run-{n}" if keyed else "")
            for n in range(RUNS)
        )
    )
    assert outputs == [{"a": n} for n in range(RUNS)]


async def test_the_workers_of_other_branches_are_told_when_one_fails(
    running: Stack, client: magicflow.Client
) -> None:
    """Also a synchronous function, which only hears of it when it asks (G11)."""
    both = threading.Barrier(3, timeout=30)
    told: dict[str, threading.Event] = {"hangs": threading.Event(), "too": threading.Event()}
    worker = magicflow.Worker(
        addresses(running), token="", slots=4, worker_id="branches", drain_timeout=2
    )

    @worker.function("shop/breaks")
    def breaks() -> None:
        both.wait()
        raise magicflow.TaskError("BOOM")

    @worker.function("shop/hangs")
    async def hangs() -> None:
        await asyncio.to_thread(both.wait)
        try:
            await asyncio.sleep(60)
        except asyncio.CancelledError:
            told["hangs"].set()
            raise

    @worker.function("shop/hangs_too")
    def hangs_too(ctx: magicflow.Context) -> None:
        both.wait()
        if ctx.wait_cancelled(30):
            told["too"].set()

    serving = asyncio.create_task(worker.serve())
    try:
        await until_offered(client, "shop/breaks", "shop/hangs", "shop/hangs_too")
        handle = await client.trigger("shop/broken", {})
        with pytest.raises(magicflow.TraceFailed) as failed:
            await handle.result(20)
        assert failed.value.code == "BOOM"
        heard = [await asyncio.to_thread(event.wait, 10) for event in told.values()]
        assert heard == [True, True]
    finally:
        worker.stop()
        await serving


def addresses(stack: Stack) -> str:
    return stack.programs["dispatcher"].address
