"""A client before services that do what the test says."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from typing import Any

import grpc
import grpc.aio
import pytest

from engine import errors as engine_errors
from engine.rpc.status import to_status
from magicflow import (
    Client,
    DeadlineExceeded,
    Exhausted,
    Invalid,
    NotFound,
    SyncClient,
    TraceFailed,
    TraceHandle,
    Unavailable,
)
from magicflow import calls as calls_module
from magicflow import client as client_module
from magicflow.payloads import from_payload, to_payload
from magicflow.v1 import trace_pb2, trace_service_pb2
from magicflow.v1 import trigger_service_pb2 as pb
from magicflow.v1.error_pb2 import Failure
from magicflow.v1.trace_service_pb2_grpc import (
    TraceServiceServicer,
    add_TraceServiceServicer_to_server,
)
from magicflow.v1.trigger_service_pb2_grpc import (
    TriggerServiceServicer,
    add_TriggerServiceServicer_to_server,
)

Context = grpc.aio.ServicerContext[Any, Any]
ID = "ab" * 16
FUTURE = 30.0


def ended(value: Any = None) -> pb.Outcome:
    return pb.Outcome(status=trace_pb2.TRACE_STATUS_SUCCEEDED, output=to_payload(value))


FAILED = pb.Outcome(
    status=trace_pb2.TRACE_STATUS_FAILED,
    failure=Failure(code="SOLD_OUT", message="no a1", node="pay"),
)


class Calls(TriggerServiceServicer, TraceServiceServicer):
    """Answers each call with the next of `answers`: a message, an error, or a function that
    waits; the last one stays. Remembers what came."""

    def __init__(self) -> None:
        self.answers: list[Any] = []
        self.requests: list[Any] = []
        self.names: list[str] = []
        self.left: list[float | None] = []
        self.metadata: dict[str, str] = {}

    async def _answer(self, name: str, request: Any, context: Context) -> Any:
        self.names.append(name)
        self.requests.append(request)
        self.left.append(context.time_remaining())
        self.metadata = {k: str(v) for k, v in context.invocation_metadata() or ()}
        answer = self.answers.pop(0) if len(self.answers) > 1 else self.answers[0]
        if isinstance(answer, engine_errors.MagicflowError):
            status = to_status(answer)
            code = next(c for c in grpc.StatusCode if c.value[0] == status.code)
            details = (("grpc-status-details-bin", status.SerializeToString()),)
            await context.abort(code, answer.message, details)
        return await answer() if callable(answer) else answer

    async def Trigger(self, request: Any, context: Context) -> Any:
        return await self._answer("Trigger", request, context)

    async def TriggerBatch(self, request: Any, context: Context) -> Any:
        return await self._answer("TriggerBatch", request, context)

    async def Await(self, request: Any, context: Context) -> Any:
        return await self._answer("Await", request, context)

    async def Abort(self, request: Any, context: Context) -> Any:
        return await self._answer("Abort", request, context)

    async def Signal(self, request: Any, context: Context) -> Any:
        return await self._answer("Signal", request, context)

    async def GetTrace(self, request: Any, context: Context) -> Any:
        return await self._answer("GetTrace", request, context)

    async def ListTraces(self, request: Any, context: Context) -> Any:
        return await self._answer("ListTraces", request, context)

    async def WatchTrace(self, request: Any, context: Context) -> AsyncIterator[Any]:
        for trace in await self._answer("WatchTrace", request, context):
            if isinstance(trace, Exception):
                await context.abort(grpc.StatusCode.UNAVAILABLE, str(trace))
            yield trace_service_pb2.WatchTraceResponse(trace=trace)


async def started(calls: Calls) -> tuple[grpc.aio.Server, str]:
    server = grpc.aio.server()
    add_TriggerServiceServicer_to_server(calls, server)  # type: ignore[no-untyped-call]
    add_TraceServiceServicer_to_server(calls, server)  # type: ignore[no-untyped-call]
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    return server, f"127.0.0.1:{port}"


@pytest.fixture
async def calls() -> Calls:
    return Calls()


@pytest.fixture
async def magic(calls: Calls, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Client]:
    monkeypatch.setattr(calls_module.random, "uniform", lambda low, high: 0.01)  # short pauses
    server, address = await started(calls)
    async with Client(address, token="secret", timeout=FUTURE) as made:
        yield made
    await server.stop(None)


OUT = engine_errors.Unavailable("the bus is out of reach", reason="BUS_UNAVAILABLE")
STARTED = pb.TriggerResponse(trace_id=ID, snapshot_id=3)


# Starting.


async def test_a_trigger_carries_playbook_input_and_token(calls: Calls, magic: Client) -> None:
    calls.answers = [STARTED]
    handle = await magic.trigger("shop/order", {"sku": "ż"}, snapshot=3)
    (request,) = calls.requests
    assert (request.playbook, request.snapshot_id) == ("shop/order", 3)
    assert from_payload(request.input) == {"sku": "ż"}
    assert calls.metadata["authorization"] == "Bearer secret"
    assert (handle.trace_id, handle.snapshot_id) == (ID, 3)


async def test_a_trigger_is_never_repeated(calls: Calls, magic: Client) -> None:
    calls.answers = [OUT]
    with pytest.raises(Unavailable, match="the bus is out of reach"):
        await magic.trigger("shop/order")
    assert calls.names == ["Trigger"]


async def test_an_input_without_a_json_form_is_refused_before_the_call(
    calls: Calls, magic: Client
) -> None:
    with pytest.raises(Invalid, match="object has no JSON form") as caught:
        await magic.trigger("shop/order", object())
    assert (caught.value.reason, calls.names) == ("INPUT_INVALID", [])


async def test_a_run_waits_in_the_call_and_returns_the_output(calls: Calls, magic: Client) -> None:
    calls.answers = [pb.TriggerResponse(trace_id=ID, outcome=ended({"total": 5}))]
    assert await magic.run("shop/order", timeout=7) == {"total": 5}
    assert calls.requests[0].wait.seconds == 7
    assert FUTURE + 1 < calls.left[0] <= FUTURE + 8


async def test_a_run_that_goes_on_names_its_trace(calls: Calls, magic: Client) -> None:
    calls.answers = [STARTED]
    with pytest.raises(DeadlineExceeded, match="it goes on") as caught:
        await magic.run("shop/order", timeout=1)
    assert caught.value.metadata == {"trace_id": ID}


async def test_a_run_that_fails_says_where_and_why(calls: Calls, magic: Client) -> None:
    calls.answers = [pb.TriggerResponse(trace_id=ID, outcome=FAILED)]
    with pytest.raises(TraceFailed) as caught:
        await magic.run("shop/order")
    assert (caught.value.code, caught.value.node, caught.value.status) == (
        "SOLD_OUT",
        "pay",
        "FAILED",
    )


BATCH = pb.TriggerBatchResponse(
    verdicts=[
        pb.TriggerVerdict(started=STARTED),
        pb.TriggerVerdict(refused=Failure(code="INPUT_INVALID", message="bad")),
        pb.TriggerVerdict(refused=Failure(code="OVERLOADED", message="later", retryable=True)),
    ]
)


async def test_a_batch_has_a_verdict_for_each(calls: Calls, magic: Client) -> None:
    calls.answers = [BATCH]
    handle, invalid, later = await magic.trigger_batch([("shop/order", n) for n in range(3)])
    assert handle.trace_id == ID
    assert (type(invalid), invalid.reason) == (Invalid, "INPUT_INVALID")
    assert (type(later), later.reason) == (Unavailable, "OVERLOADED")


def a_batch(shed: int) -> pb.TriggerBatchResponse:
    """One trace has started; as many as that come too early."""
    later = pb.TriggerVerdict(refused=Failure(code="OVERLOADED", message="later", retryable=True))
    later.refused.retry_after.FromMilliseconds(1)
    return pb.TriggerBatchResponse(verdicts=[pb.TriggerVerdict(started=STARTED), *[later] * shed])


async def test_what_a_batch_has_started_is_known_though_a_later_sending_fails(
    calls: Calls, magic: Client
) -> None:
    calls.answers = [a_batch(shed=2), OUT]
    first, *rest = await magic.trigger_batch([("shop/order", n) for n in range(3)])
    assert (calls.names, len(calls.requests[1].triggers)) == (["TriggerBatch"] * 2, 2)
    assert isinstance(first, TraceHandle)
    assert [(type(error), error.reason) for error in rest] == [(Unavailable, "BUS_UNAVAILABLE")] * 2


async def test_a_batch_that_fails_before_anything_has_started_raises(
    calls: Calls, magic: Client
) -> None:
    calls.answers = [OUT]
    with pytest.raises(Unavailable, match="the bus is out of reach"):
        await magic.trigger_batch([("shop/order", 1)])


# Deadlines and repetition.


@pytest.mark.parametrize(
    ("call", "answer"),
    [
        (lambda c: c.trigger("shop/order"), STARTED),
        (lambda c: c.get(ID), trace_service_pb2.GetTraceResponse()),
        (lambda c: c.abort(ID), pb.AbortResponse()),
        (lambda c: c.signal(ID, "ask"), pb.SignalResponse()),
        (lambda c: c.await_outcome(ID), pb.AwaitResponse(outcome=ended())),
        (lambda c: c.list_traces(), trace_service_pb2.ListTracesResponse()),
    ],
    ids=["trigger", "get", "abort", "signal", "await", "list"],
)
async def test_every_call_has_a_deadline(
    calls: Calls, magic: Client, call: Callable[[Client], Awaitable[Any]], answer: Any
) -> None:
    calls.answers = [answer]
    await call(magic)
    assert calls.left[0] is not None
    assert 0 < calls.left[0] <= FUTURE + 1


async def test_a_call_that_can_be_repeated_is_when_the_server_is_out_of_reach(
    calls: Calls, magic: Client
) -> None:
    trace = trace_pb2.Trace(trace_id=ID)
    calls.answers = [OUT, OUT, trace_service_pb2.GetTraceResponse(trace=trace)]
    assert (await magic.get(ID)).trace_id == ID
    assert calls.names == ["GetTrace"] * 3


async def test_repetition_ends_with_the_last_error(calls: Calls, magic: Client) -> None:
    calls.answers = [OUT]
    with pytest.raises(Unavailable, match="the bus is out of reach"):
        await magic.get(ID)
    assert calls.names == ["GetTrace"] * calls_module.ATTEMPTS


async def test_what_would_come_after_the_deadline_is_not_waited_for(
    calls: Calls, magic: Client
) -> None:
    calls.answers = [engine_errors.Unavailable("not today", retry_after=24 * 3_600)]
    with pytest.raises(Unavailable, match="not today"):
        await magic.get(ID)
    assert len(calls.names) == 1


async def test_an_answer_that_is_no_is_not_asked_for_again(calls: Calls, magic: Client) -> None:
    calls.answers = [engine_errors.NotFound("no trace", reason="TRACE_NOT_FOUND")]
    with pytest.raises(NotFound) as caught:
        await magic.get(ID)
    assert (caught.value.reason, len(calls.names)) == ("TRACE_NOT_FOUND", 1)


async def test_a_server_that_does_not_answer_costs_the_timeout_and_no_more(
    calls: Calls, magic: Client
) -> None:
    calls.answers = [asyncio.Event().wait]
    impatient = Client(magic._target.address, timeout=0.05)
    with pytest.raises(DeadlineExceeded):
        await impatient.get(ID)
    await impatient.close()


async def test_nobody_at_the_address_is_said_with_the_address(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(calls_module, "ATTEMPTS", 1)
    async with Client("127.0.0.1:1", token="") as nobody:
        with pytest.raises(Unavailable, match="no magicflow server answers at 127"):
            await nobody.get(ID)


# Waiting.


async def test_waiting_goes_on_over_many_rounds(
    calls: Calls, magic: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(client_module, "AWAIT_ROUND", 0.05)
    never = asyncio.Event().wait
    calls.answers = [never, never, pb.AwaitResponse(outcome=ended(5))]
    assert await magic.handle(ID).result() == 5
    assert calls.names == ["Await"] * 3


async def test_waiting_ends_at_its_timeout_with_the_trace_named(
    calls: Calls, magic: Client
) -> None:
    calls.answers = [asyncio.Event().wait]
    with pytest.raises(DeadlineExceeded, match=r"not ended within 0.05 s") as caught:
        await magic.handle(ID).outcome(0.05)
    assert caught.value.metadata == {"trace_id": ID}


async def test_waiting_for_a_failed_trace_raises_it(calls: Calls, magic: Client) -> None:
    calls.answers = [pb.AwaitResponse(outcome=FAILED)]
    with pytest.raises(TraceFailed, match="SOLD_OUT"):
        await magic.handle(ID).result()


# Watching and listing.


def at(version: int) -> trace_pb2.Trace:
    return trace_pb2.Trace(trace_id=ID, snapshot_id=version)


async def test_watching_begins_again_after_a_break(calls: Calls, magic: Client) -> None:
    calls.answers = [[at(1), RuntimeError("gone")], [at(2)]]
    assert [trace.snapshot_id async for trace in magic.watch(ID)] == [1, 2]


async def test_watching_what_does_not_exist_is_said(calls: Calls, magic: Client) -> None:
    calls.answers = [engine_errors.NotFound("no trace", reason="TRACE_NOT_FOUND")]
    with pytest.raises(NotFound):
        await anext(magic.watch(ID))


async def test_a_list_is_read_page_by_page_up_to_its_limit(calls: Calls, magic: Client) -> None:
    page = trace_service_pb2.ListTracesResponse(traces=[at(1), at(2)], next_page_token="more")
    last = trace_service_pb2.ListTracesResponse(traces=[at(3)], next_page_token="more")
    calls.answers = [page, last]
    found = await magic.list_traces("shop/order", status="failed", limit=3)
    assert [trace.snapshot_id for trace in found] == [1, 2, 3]
    assert [r.page_size for r in calls.requests] == [3, 1]
    assert [r.page_token for r in calls.requests] == ["", "more"]
    assert calls.requests[0].status == trace_pb2.TRACE_STATUS_FAILED


async def test_a_status_that_is_none_is_refused(magic: Client) -> None:
    with pytest.raises(Invalid, match="'odd' is no status"):
        await magic.list_traces(status="odd")


async def test_a_signal_carries_payload_and_decision(calls: Calls, magic: Client) -> None:
    calls.answers = [pb.SignalResponse()]
    await magic.handle(ID).signal("ask", {"by": "ann"}, approve=False, why="too dear")
    (request,) = calls.requests
    assert (request.node, request.why) == ("ask", "too dear")
    assert from_payload(request.payload) == {"by": "ann"}
    assert request.decision == pb.DECISION_REJECT


# Without a loop.


@pytest.fixture
def blocking() -> Iterator[tuple[Calls, SyncClient]]:
    """The services on a loop of another thread."""
    loop = asyncio.new_event_loop()
    thread = threading.Thread(target=loop.run_forever, daemon=True)
    thread.start()
    calls = Calls()
    server, address = asyncio.run_coroutine_threadsafe(started(calls), loop).result(10)
    with SyncClient(address, token="secret") as made:
        yield calls, made
    asyncio.run_coroutine_threadsafe(server.stop(None), loop).result(10)
    loop.call_soon_threadsafe(loop.stop)
    thread.join(10)
    loop.close()


Blocking = tuple[Calls, SyncClient]


def test_the_blocking_client_runs_a_playbook(blocking: Blocking) -> None:
    calls, magic = blocking
    calls.answers = [pb.TriggerResponse(trace_id=ID, outcome=ended([1]))]
    assert magic.run("shop/order") == [1]


def test_the_blocking_client_has_blocking_handles(blocking: Blocking) -> None:
    calls, magic = blocking
    calls.answers = [STARTED, pb.AwaitResponse(outcome=ended(5))]
    handle = magic.trigger("shop/order")
    assert (repr(handle), handle.result()) == (f"SyncTraceHandle({ID})", 5)


def test_handles_of_a_blocking_batch_block_too(blocking: Blocking) -> None:
    calls, magic = blocking
    calls.answers = [BATCH, pb.AwaitResponse(outcome=ended(5))]
    handle, invalid, _ = magic.trigger_batch([("shop/order", n) for n in range(3)])
    assert handle.result() == 5
    assert isinstance(invalid, Invalid)


def test_a_blocking_handle_signals(blocking: Blocking) -> None:
    calls, magic = blocking
    calls.answers = [pb.SignalResponse()]
    magic.handle(ID).signal("ask", 7)
    assert from_payload(calls.requests[0].payload) == 7


def test_a_blocking_handle_watches(blocking: Blocking) -> None:
    calls, magic = blocking
    calls.answers = [[at(1), at(2)]]
    assert [trace.snapshot_id for trace in magic.handle(ID).watch()] == [1, 2]


def test_errors_come_out_of_the_blocking_client(blocking: Blocking) -> None:
    calls, magic = blocking
    calls.answers = [engine_errors.NotFound("no trace", reason="TRACE_NOT_FOUND")]
    with pytest.raises(NotFound, match="no trace"):
        magic.get(ID)


def test_the_blocking_client_has_no_verb_of_its_own(blocking: Blocking) -> None:
    _, magic = blocking
    with pytest.raises(AttributeError, match="SyncClient has no nonsense"):
        magic.nonsense()


def test_a_blocking_client_is_closed_as_often_as_one_likes() -> None:
    magic = SyncClient("127.0.0.1:1", token="")
    magic.close()
    magic.close()


# Starts that are shed.


async def test_a_start_that_is_shed_is_made_again_after_the_delay_and_not_before(
    calls: Calls, magic: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(calls_module.random, "uniform", lambda low, high: low)
    shed = engine_errors.Exhausted("no more now", reason="QUOTA_EXCEEDED", retry_after=0.2)
    calls.answers = [shed] * 6 + [pb.TriggerResponse(trace_id="a" * 32)]
    loop = asyncio.get_running_loop()
    began = loop.time()
    assert (await magic.trigger("app/p")).trace_id == "a" * 32
    assert calls.names == ["Trigger"] * 7
    assert loop.time() - began >= 6 * 0.19


async def test_a_start_that_is_shed_until_the_deadline_says_why_and_when_to_come_back(
    calls: Calls, magic: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(calls_module.random, "uniform", lambda low, high: low)
    calls.answers = [engine_errors.Exhausted("no more", reason="OVERLOADED", retry_after=60.0)]
    with pytest.raises(Exhausted) as refused:
        await magic.trigger("app/p")
    assert (refused.value.reason, refused.value.retry_after) == ("OVERLOADED", 60.0)
    assert calls.names == ["Trigger"]
