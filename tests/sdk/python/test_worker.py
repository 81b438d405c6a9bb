"""A worker before a server that does what the test says."""

from __future__ import annotations

import asyncio
import logging
import threading
from collections.abc import AsyncIterator, Callable
from typing import Any

import grpc
import pytest

import magicflow
from magicflow import Context, TaskError, Worker, session
from magicflow.payloads import from_payload
from magicflow.v1.payload_pb2 import Payload
from magicflow.v1.task_pb2 import TaskResult
from magicflow.v1.worker_pb2 import CustomCommand

from .fake_server import PATIENCE, QUIET, FakeServer, accepted, serving, soon, task


@pytest.fixture
async def server() -> AsyncIterator[FakeServer]:
    async with FakeServer() as server:
        yield server


def worker_of(server: FakeServer, *functions: Callable[..., Any], **options: Any) -> Worker:
    """Offers each function as `app/<its name>`."""
    worker = Worker(server.address, token="secret", **options)
    for function in functions:
        worker.function(f"app/{function.__name__}")(function)
    return worker


def echo(input: Any) -> Any:
    return input


async def later(input: Any) -> Any:
    return input


class Gate:
    """A function that says how many are in it, and stays until it is let go."""

    def __init__(self) -> None:
        self.open = threading.Event()
        self.inside = 0
        self.most = 0
        self.cancelled = threading.Event()
        self._changed = threading.Condition()

    def stay(self, ctx: Context) -> str:
        with self._changed:
            self.inside += 1
            self.most = max(self.most, self.inside)
            self._changed.notify_all()
        while not self.open.wait(0.002):
            if ctx.cancelled:
                self.cancelled.set()
                break
        with self._changed:
            self.inside -= 1
        return "out"

    async def entered(self, count: int) -> None:
        def wait() -> bool:
            with self._changed:
                return self._changed.wait_for(lambda: self.inside >= count, PATIENCE)

        assert await asyncio.to_thread(wait), f"{self.inside} of {count} have begun"


@pytest.fixture
def gate() -> AsyncIterator[Gate]:
    gate = Gate()
    yield gate
    gate.open.set()


async def answer(server: FakeServer, worker: Worker, *tasks: Any) -> TaskResult:
    """The first result of one or more tasks."""
    async with serving(worker):
        stream = await server.stream()
        stream.send(tasks=tasks)
        return (await stream.results(len(tasks)))[0]


# Hello.


async def test_the_hello_says_what_the_worker_is(server: FakeServer) -> None:
    worker = worker_of(server, echo, slots=3, worker_id="me", version="7", labels={"zone": "a"})
    worker.command("warm")(lambda ctx: None)
    async with serving(worker):
        hello = (await server.stream()).hello
    assert [f.name for f in hello.functions] == ["app/echo"]
    assert (hello.slots, hello.worker_id, hello.version) == (3, "me", "7")
    assert (dict(hello.labels), list(hello.commands)) == ({"zone": "a"}, ["warm"])
    assert hello.sdk.startswith("python/")


async def test_the_token_travels_with_the_stream(server: FakeServer) -> None:
    async with serving(worker_of(server, echo)):
        stream = await server.stream()
    assert stream.metadata["authorization"] == "Bearer secret"


async def test_the_id_from_the_welcome_is_kept_across_streams(server: FakeServer) -> None:
    async with serving(worker_of(server, echo)):
        (await server.stream()).end()
        assert (await server.stream()).hello.worker_id == "w1"


# Results.


@pytest.mark.parametrize("function", [echo, later])
async def test_a_result_carries_the_output_and_the_marks_of_its_task(
    server: FakeServer, function: Callable[..., Any]
) -> None:
    given = task(f"app/{function.__name__}", {"ż": [1, None]})
    result = await answer(server, worker_of(server, function), given)
    assert from_payload(result.output) == {"ż": [1, None]}
    assert (result.id, result.epoch, result.mac) == (given.id, 7, b"mac")
    assert result.began_at.ToNanoseconds() <= result.ended_at.ToNanoseconds()


@pytest.mark.parametrize("function", [echo, later])
async def test_results_of_many_tasks_come_in_few_frames(
    server: FakeServer, function: Callable[..., Any]
) -> None:
    async with serving(worker_of(server, function, slots=64)):
        stream = await server.stream()
        for _ in range(20):
            stream.send(tasks=[task(f"app/{function.__name__}", n) for n in range(64)])
        results = await stream.results(20 * 64)
    assert len({r.id.trace_id for r in results}) == 20 * 64
    assert len([f for f in stream.frames if f.results]) < 20 * 64 / 3


async def test_large_results_are_spread_over_frames(server: FakeServer) -> None:
    async with serving(worker_of(server, echo)):
        stream = await server.stream()
        stream.send(tasks=[task("app/echo", "x" * 900_000) for _ in range(6)])
        await stream.results(6)
    assert max(frame.ByteSize() for frame in stream.frames) < 2 << 20


async def test_env_that_was_set_travels_with_the_result(server: FakeServer) -> None:
    def f(ctx: Context) -> Any:
        ctx.env.set("b", ctx.env["a"] + 1)

    result = await answer(server, worker_of(server, f), task("app/f", env={"a": 1}))
    assert result.env == b'{"b":2}'


async def test_untouched_env_does_not_travel(server: FakeServer) -> None:
    result = await answer(server, worker_of(server, echo), task("app/echo", env={"a": 1}))
    assert result.env == b""


async def test_a_task_that_comes_twice_runs_once(server: FakeServer, gate: Gate) -> None:
    given = task("app/stay")
    async with serving(worker_of(server, gate.stay)):
        stream = await server.stream()
        stream.send(tasks=[given, given])
        stream.send(tasks=[given, task("app/stay")])
        await gate.entered(2)
        gate.open.set()
        await stream.results(2)
    assert gate.most == 2


# Slots.


async def test_no_more_synchronous_functions_run_than_slots_even_if_the_server_sends_more(
    server: FakeServer, gate: Gate
) -> None:
    async with serving(worker_of(server, gate.stay, slots=2)):
        stream = await server.stream()
        stream.send(tasks=[task("app/stay") for _ in range(10)])
        await gate.entered(2)
        gate.open.set()
        await stream.results(10)
    assert gate.most == 2


async def test_more_slots_by_command_let_more_run(server: FakeServer, gate: Gate) -> None:
    async with serving(worker_of(server, gate.stay, slots=1)):
        stream = await server.stream()
        stream.send(tasks=[task("app/stay") for _ in range(3)])
        await gate.entered(1)
        stream.command(set_slots=3)
        await gate.entered(3)
        gate.open.set()
        await stream.results(3)


async def test_slots_by_command_are_those_of_the_next_hello(server: FakeServer) -> None:
    async with serving(worker_of(server, echo, slots=1)):
        stream = await server.stream()
        stream.command(set_slots=3)
        assert (await stream.receipt()).message == "3 slots"
        stream.end()
        assert (await server.stream()).hello.slots == 3


async def test_slots_out_of_range_are_refused(server: FakeServer) -> None:
    async with serving(worker_of(server, echo)):
        stream = await server.stream()
        stream.command(set_slots=10_001)
        receipt = await stream.receipt()
    assert (receipt.done, receipt.message) == (
        False,
        "slots is 10001; it must be from 1 to 10,000",
    )


# Failures.


def failing(error: BaseException) -> Callable[..., Any]:
    def f() -> None:
        raise error

    return f


async def test_an_exception_is_a_function_error_with_its_stack(server: FakeServer) -> None:
    result = await answer(server, worker_of(server, failing(KeyError("sku"))), task("app/f", {}))
    assert (result.failure.code, result.failure.retryable) == ("FUNCTION_ERROR", True)
    assert result.failure.message == "KeyError: 'sku'"
    assert "raise error" in from_payload(result.failure.details)["stack"]


async def test_a_result_that_is_not_what_the_function_promises_is_a_failure(
    server: FakeServer,
) -> None:
    def f() -> str:
        return None  # type: ignore[return-value]

    async def g() -> list[int]:
        return ["one"]  # type: ignore[list-item]

    for function, seen in ((f, "Expected `str`, got `null`"), (g, "got `str` - at `$[0]`")):
        name = f"app/{function.__name__}"
        result = await answer(server, worker_of(server, function), task(name, {}))
        assert (result.failure.code, result.failure.retryable) == ("OUTPUT_INVALID", False)
        assert result.failure.message.startswith(f"the result of {name} does not fit")
        assert seen in result.failure.message


async def test_a_task_error_carries_code_details_and_delay(server: FakeServer) -> None:
    error = TaskError("SOLD_OUT", "no a1", retryable=False, details={"sku": "a1"}, retry_after=2.5)
    failure = (await answer(server, worker_of(server, failing(error)), task("app/f"))).failure
    assert (failure.code, failure.message, failure.retryable) == ("SOLD_OUT", "no a1", False)
    assert from_payload(failure.details) == {"sku": "a1"}
    assert failure.retry_after.ToMilliseconds() == 2_500


class Unwritable(Exception):
    def __str__(self) -> str:
        raise ValueError


@pytest.mark.parametrize(
    "error",
    [
        TaskError("ODD", "x", details=object()),
        TaskError("ODD", "\ud800"),
        TaskError("ODD", "ż" * 100_000, details="x" * 100_000),
        TaskError(7, "x"),  # type: ignore[arg-type]
        ValueError("\ud800"),
        Unwritable(),
        SystemExit(3),
    ],
    ids=["details", "text", "long", "code", "surrogate", "unwritable", "exit"],
)
async def test_whatever_is_raised_becomes_a_failure_of_bearable_size(
    server: FakeServer, error: BaseException
) -> None:
    failure = (await answer(server, worker_of(server, failing(error)), task("app/f"))).failure
    assert failure.code in ("ODD", "7", "FUNCTION_ERROR")
    assert len(failure.message.encode()) <= 4_096
    assert len(failure.details.data) <= 64 << 10


async def test_an_input_that_does_not_fit_is_terminal_and_named(server: FakeServer) -> None:
    def f(qty: int) -> None: ...

    failure = (await answer(server, worker_of(server, f), task("app/f", {"qty": "x"}))).failure
    assert (failure.code, failure.retryable) == ("INPUT_INVALID", False)
    assert "`$.qty`" in failure.message


async def test_an_input_that_is_not_json_is_terminal_and_named(server: FakeServer) -> None:
    broken = task("app/echo")
    broken.input.CopyFrom(Payload(data=b"{"))
    failure = (await answer(server, worker_of(server, echo), broken)).failure
    assert (failure.code, failure.retryable) == ("INPUT_INVALID", False)


@pytest.mark.parametrize("function", [echo, later])
async def test_an_output_beyond_the_limit_of_the_welcome_is_terminal_and_named(
    server: FakeServer, function: Callable[..., Any]
) -> None:
    server.welcome.max_payload_bytes = 100
    given = task(f"app/{function.__name__}", "x" * 99)
    failure = (await answer(server, worker_of(server, function), given)).failure
    assert (failure.code, failure.retryable) == ("PAYLOAD_TOO_LARGE", False)


async def test_env_beyond_the_limit_is_terminal_and_named(server: FakeServer) -> None:
    server.welcome.max_payload_bytes = 100
    worker = worker_of(server, later)

    @worker.function("app/f")
    def f(ctx: Context) -> None:
        ctx.env["a"] = "x" * 100

    failure = (await answer(server, worker, task("app/f"))).failure
    assert (failure.code, failure.retryable) == ("PAYLOAD_TOO_LARGE", False)


async def test_a_function_that_is_not_offered_is_a_failure(server: FakeServer) -> None:
    failure = (await answer(server, worker_of(server, echo), task("app/other"))).failure
    assert failure.code == "FUNCTION_UNKNOWN"


async def test_an_async_function_that_outlives_its_deadline_is_a_timeout(
    server: FakeServer,
) -> None:
    async def f() -> None:
        await asyncio.Event().wait()

    failure = (await answer(server, worker_of(server, f), task("app/f", allowed=0.01))).failure
    assert (failure.code, failure.retryable) == ("TIMEOUT", True)
    assert failure.message == "the attempt took longer than 0.01 s"


async def test_a_timeout_of_the_functions_own_is_an_error_like_others(
    server: FakeServer,
) -> None:
    async def f() -> None:
        raise TimeoutError("the shop")

    failure = (await answer(server, worker_of(server, f), task("app/f", allowed=60))).failure
    assert (failure.code, failure.message) == ("FUNCTION_ERROR", "TimeoutError: the shop")


# Commands around the function.


def following(worker: Worker, seen: list[str]) -> None:
    worker.command("warm")(lambda ctx: seen.append("warm"))
    worker.command("tidy")(lambda ctx: seen.append("tidy"))

    @worker.command("slowly")
    async def slowly(ctx: Context) -> None:
        seen.append(f"slowly {ctx.node}")


@pytest.mark.parametrize("is_async", [False, True])
async def test_commands_run_before_and_after_the_function(
    server: FakeServer, is_async: bool
) -> None:
    seen: list[str] = []

    def plain() -> None:
        seen.append("f")

    async def asynchronous() -> None:
        seen.append("f")

    worker = worker_of(server)
    worker.function("app/f")(asynchronous if is_async else plain)
    following(worker, seen)
    result = await answer(server, worker, task("app/f", before=("warm", "slowly"), after=("tidy",)))
    assert result.WhichOneof("outcome") == "output"
    assert seen == ["warm", "slowly n", "f", "tidy"]


@pytest.mark.parametrize("function", [echo, later])
async def test_a_command_that_nobody_knows_is_terminal_and_named(
    server: FakeServer, function: Callable[..., Any]
) -> None:
    given = task(f"app/{function.__name__}", before=("nope",))
    failure = (await answer(server, worker_of(server, function), given)).failure
    assert (failure.code, failure.retryable) == ("COMMAND_UNKNOWN", False)
    assert "nope" in failure.message


async def test_a_command_that_times_out_fails_the_task(server: FakeServer) -> None:
    worker = worker_of(server, later)

    @worker.command("warm")
    def warm(ctx: Context) -> None:
        raise TimeoutError("cold")

    failure = (await answer(server, worker, task("app/later", before=("warm",)))).failure
    assert failure.message == "TimeoutError: cold"


# Broken streams.


async def test_a_result_is_sent_again_after_a_break_until_its_receipt(
    server: FakeServer,
) -> None:
    server.acknowledge = False
    given = task("app/echo", 5)
    async with serving(worker_of(server, echo)):
        first = await server.stream()
        first.send(tasks=[given])
        (result,) = await first.results(1)
        first.end()
        second = await server.stream()
        assert (await second.results(1))[0] == result
        second.send(receipts=accepted([result]))
        server.acknowledge = True
        second.send(tasks=[task("app/echo", 6)])
        await second.results(2)
        second.end()
        third = await server.stream()
        assert [r.id for r in (await third.results(1))] == [second.came[1].id]
        third.send(receipts=accepted(third.came))


async def test_a_task_that_comes_again_before_its_receipt_is_answered_with_its_result(
    server: FakeServer,
) -> None:
    """The server counts a slot for it: silence would take the slot for ever."""
    server.acknowledge = False
    given = task("app/echo", 5)
    async with serving(worker_of(server, echo)):
        stream = await server.stream()
        stream.send(tasks=[given])
        (result,) = await stream.results(1)
        stream.send(tasks=[given])
        assert (await stream.results(2))[1] == result
        stream.send(receipts=accepted([result]))


async def test_a_cancellation_of_a_task_that_is_not_here_frees_its_slot(
    server: FakeServer,
) -> None:
    async with serving(worker_of(server, echo)):
        stream = await server.stream()
        unknown = task("app/echo")
        stream.command(cancel=unknown.id)
        await stream.until(lambda s: unknown.id in s.returned)


async def test_the_next_hello_lists_what_runs_and_what_is_unacknowledged(
    server: FakeServer, gate: Gate
) -> None:
    server.acknowledge = False
    running, finished = task("app/stay"), task("app/echo")
    async with serving(worker_of(server, gate.stay, echo)):
        first = await server.stream()
        first.send(tasks=[running, finished])
        await first.results(1)
        await gate.entered(1)
        server.acknowledge = True
        first.end()
        second = await server.stream()
        assert list(second.hello.resumed) == [running.id, finished.id]
        gate.open.set()
        await second.results(2)


async def test_a_silent_server_is_left_for_another_stream(server: FakeServer) -> None:
    server.echo = False
    server.heartbeats_every(0.01)
    async with serving(worker_of(server, echo)):
        first = await server.stream()
        server.echo = True
        server.heartbeats_every(60)
        second = await server.stream()
        assert first.heartbeats
        await soon(first.ended.wait())
        second.send(tasks=[task("app/echo")])
        await second.results(1)


async def test_a_server_that_never_says_welcome_is_left_for_another_stream(
    server: FakeServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(session, "WELCOME", 0.05)
    server.silent = True
    worker = worker_of(server, echo)
    async with serving(worker):
        await server.stream()
        assert not worker.connected.is_set()
        server.silent = False
        await server.stream()


@pytest.mark.parametrize(
    ("code", "kind"),
    [
        (grpc.StatusCode.UNAUTHENTICATED, magicflow.Unauthenticated),
        (grpc.StatusCode.PERMISSION_DENIED, magicflow.Denied),
        (grpc.StatusCode.INVALID_ARGUMENT, magicflow.Invalid),
    ],
)
async def test_a_server_that_does_not_want_the_worker_ends_it_with_its_words(
    server: FakeServer, code: grpc.StatusCode, kind: type[Exception]
) -> None:
    server.refusal = (code, "the token is no good")
    with pytest.raises(kind, match="the token is no good"):
        await soon(worker_of(server, echo).serve())


async def test_a_server_out_of_order_is_asked_again(server: FakeServer) -> None:
    server.refusal = (grpc.StatusCode.INTERNAL, "id 7")
    async with serving(worker_of(server, echo)):
        await server.stream()
        server.refusal = None
        stream = await server.stream()
        stream.send(tasks=[task("app/echo")])
        await stream.results(1)


# Heartbeats.


async def test_heartbeats_go_on_while_an_async_function_blocks_its_loop(
    server: FakeServer, gate: Gate
) -> None:
    async def block(ctx: Context) -> str:
        return gate.stay(ctx)

    server.heartbeats_every(0.01)
    given = task("app/block")
    async with serving(worker_of(server, block)):
        stream = await server.stream()
        stream.send(tasks=[given])
        await gate.entered(1)
        await stream.until(lambda s: len([h for h in s.heartbeats if given.id in h.running]) >= 5)
        gate.open.set()
        await stream.results(1)
    numbers = [heartbeat.number for heartbeat in stream.heartbeats]
    assert numbers == list(range(1, len(numbers) + 1))


async def test_a_sign_of_life_of_a_task_travels_with_its_note(
    server: FakeServer, gate: Gate
) -> None:
    def f(ctx: Context) -> None:
        ctx.heartbeat({"done": 0.5})
        ctx.heartbeat()
        gate.stay(ctx)

    async with serving(worker_of(server, f)):
        stream = await server.stream()
        stream.send(tasks=[task("app/f")])
        await stream.until(lambda s: any(frame.progress for frame in s.frames))
        gate.open.set()
        await stream.results(1)
    notes = [p.note for frame in stream.frames for p in frame.progress if p.HasField("note")]
    assert from_payload(notes[0]) == {"done": 0.5}


async def test_many_signs_of_life_become_few(server: FakeServer) -> None:
    def f(ctx: Context) -> None:
        for n in range(5_000):
            ctx.heartbeat(n)

    async with serving(worker_of(server, f)):
        stream = await server.stream()
        stream.send(tasks=[task("app/f")])
        await stream.results(1)
    assert sum(len(frame.progress) for frame in stream.frames) < 2_500


# Cancellation.


async def test_a_cancelled_async_function_frees_its_slot_and_sends_no_result(
    server: FakeServer,
) -> None:
    entered, left = asyncio.Event(), threading.Event()
    loop = asyncio.get_running_loop()

    async def f() -> None:
        loop.call_soon_threadsafe(entered.set)
        try:
            await asyncio.Event().wait()
        finally:
            left.set()

    given = task("app/f")
    async with serving(worker_of(server, f)):
        stream = await server.stream()
        stream.send(tasks=[given])
        await soon(entered.wait())
        stream.command(cancel=given.id)
        await stream.until(lambda s: s.returned == [given.id])
    assert left.is_set()
    assert stream.came == []


async def test_a_cancelled_synchronous_function_is_told_and_its_result_is_dropped(
    server: FakeServer, gate: Gate
) -> None:
    given = task("app/stay")
    async with serving(worker_of(server, gate.stay)):
        stream = await server.stream()
        stream.send(tasks=[given])
        await gate.entered(1)
        stream.command(cancel=given.id)
        await stream.until(lambda s: s.returned == [given.id])
    assert gate.cancelled.is_set()
    assert stream.came == []


async def test_a_task_that_is_cancelled_before_it_begins_never_runs(
    server: FakeServer, gate: Gate
) -> None:
    ran = threading.Event()
    worker = worker_of(server, gate.stay, slots=1)
    worker.function("app/f")(ran.set)
    waiting = task("app/f")
    async with serving(worker):
        stream = await server.stream()
        stream.send(tasks=[task("app/stay"), waiting])
        await gate.entered(1)
        stream.command(cancel=waiting.id)
        stream.command(dump_stacks=True)  # its receipt says that the cancellation was heard
        await stream.receipt()
        gate.open.set()
        await stream.until(lambda s: s.returned == [waiting.id])
    assert not ran.is_set()


async def test_a_cancellation_of_a_task_that_is_not_here_is_harmless(server: FakeServer) -> None:
    async with serving(worker_of(server, echo)):
        stream = await server.stream()
        stream.command(cancel=task("app/echo").id)
        stream.send(tasks=[task("app/echo")])
        await stream.results(1)


# Other commands.


async def custom(server: FakeServer, worker: Worker, name: str, argument: bytes) -> Any:
    async with serving(worker):
        stream = await server.stream()
        stream.command(custom=CustomCommand(name=name, argument=Payload(data=argument)))
        return await stream.receipt()


async def test_the_receipt_of_a_custom_command_has_its_answer(server: FakeServer) -> None:
    worker = worker_of(server, echo)
    worker.command("add")(lambda numbers: {"sum": sum(numbers)})
    receipt = await custom(server, worker, "add", b"[1,2]")
    assert (receipt.id, receipt.done, receipt.message) == ("c", True, '{"sum":3}')


async def test_an_async_custom_command_is_awaited(server: FakeServer) -> None:
    worker = worker_of(server, echo)
    worker.command("later")(later)
    assert (await custom(server, worker, "later", b"5")).message == "5"


async def test_the_receipt_of_a_failed_custom_command_says_why(server: FakeServer) -> None:
    worker = worker_of(server, echo)
    worker.command("add")(sum)
    receipt = await custom(server, worker, "add", b"7")
    assert (receipt.done, receipt.message) == (
        False,
        "TypeError: 'int' object is not iterable",
    )


async def test_the_receipt_of_an_unknown_custom_command_names_it(server: FakeServer) -> None:
    receipt = await custom(server, worker_of(server, echo), "nope", b"")
    assert (receipt.done, receipt.message) == (False, "no command nope")


async def test_an_answer_that_text_cannot_carry_is_still_a_receipt(server: FakeServer) -> None:
    def odd(_: Any) -> Any:
        raise ValueError("\ud800")

    worker = worker_of(server, echo)
    worker.command("odd")(odd)
    receipt = await custom(server, worker, "odd", b"")
    assert (receipt.done, receipt.message) == (False, "ValueError: \\ud800")


async def test_dumped_stacks_show_threads_and_async_functions(
    server: FakeServer, gate: Gate
) -> None:
    async def waiting_for_the_post() -> None:
        await asyncio.Event().wait()

    worker = worker_of(server, gate.stay, waiting_for_the_post, drain_timeout=0.01)
    async with serving(worker):
        stream = await server.stream()
        stream.send(tasks=[task("app/waiting_for_the_post"), task("app/stay")])
        await gate.entered(1)
        stream.command(dump_stacks=True)
        message = (await stream.receipt()).message
    assert "in stay" in message
    assert "in waiting_for_the_post" in message


async def test_the_log_level_is_set(server: FakeServer) -> None:
    log = logging.getLogger("magicflow")
    before = log.level
    try:
        async with serving(worker_of(server, echo)):
            stream = await server.stream()
            stream.command(log_level="debug")
            assert (await stream.receipt()).done
        assert log.level == logging.DEBUG
    finally:
        log.setLevel(before)


async def test_a_log_level_that_is_none_is_refused(server: FakeServer) -> None:
    async with serving(worker_of(server, echo)):
        stream = await server.stream()
        stream.command(log_level="loud")
        receipt = await stream.receipt()
    assert (receipt.done, receipt.message) == (False, "no level loud")


# Draining.


async def stopped(worker: Worker, life: asyncio.Task[None]) -> None:
    worker.stop()
    await soon(asyncio.shield(life))


async def test_stop_says_draining_even_when_nothing_runs(server: FakeServer) -> None:
    worker = worker_of(server, echo)
    async with serving(worker) as life:
        stream = await server.stream()
        await asyncio.to_thread(worker.connected.wait, PATIENCE)
        await stopped(worker, life)
        await soon(stream.ended.wait())
    assert all(frame.draining for frame in stream.frames)
    assert stream.frames


async def test_a_task_that_was_on_its_way_when_the_drain_began_is_given_back_unstarted(
    server: FakeServer, gate: Gate
) -> None:
    server.echo = False
    worker = worker_of(server, gate.stay)
    async with serving(worker) as life:
        stream = await server.stream()
        await asyncio.to_thread(worker.connected.wait, PATIENCE)
        worker.stop()
        # The server has heard of it, and has written a task just before.
        await stream.until(lambda s: any(frame.draining for frame in s.frames))
        late = task("app/stay")
        stream.send(tasks=[late])
        await stream.until(lambda s: bool(s.returned))
        await stream.until(lambda s: bool(s.heartbeats))
        assert not life.done()  # more could come until the server has answered
        stream.send(heartbeat=stream.heartbeats[-1].number)
        await soon(life)
    assert stream.returned == [late.id]
    assert stream.came == []


async def test_stop_finishes_what_runs_and_waits_for_the_receipts(
    server: FakeServer, gate: Gate
) -> None:
    server.acknowledge = False
    worker = worker_of(server, gate.stay)
    async with serving(worker) as life:
        stream = await server.stream()
        stream.send(tasks=[task("app/stay"), task("app/stay")])
        await gate.entered(2)
        worker.stop()
        await stream.until(lambda s: any(frame.draining for frame in s.frames))
        gate.open.set()
        results = await stream.results(2)
        done, _ = await asyncio.wait({life}, timeout=QUIET)
        assert not done
        stream.send(receipts=accepted(results))
        await soon(asyncio.shield(life))
    assert stream.returned == []


async def test_a_break_while_draining_is_survived(server: FakeServer, gate: Gate) -> None:
    worker = worker_of(server, gate.stay)
    async with serving(worker) as life:
        first = await server.stream()
        first.send(tasks=[task("app/stay")])
        await gate.entered(1)
        worker.stop()
        first.end()
        second = await server.stream()
        gate.open.set()
        await second.results(1)
        await soon(asyncio.shield(life))
    assert all(frame.draining for frame in second.frames)


@pytest.mark.parametrize("is_async", [False, True])
async def test_what_does_not_finish_in_time_is_told_and_given_back(
    server: FakeServer, gate: Gate, is_async: bool
) -> None:
    began = threading.Event()

    async def wait() -> None:
        began.set()
        await asyncio.Event().wait()

    def stay(ctx: Context) -> None:
        began.set()
        gate.stay(ctx)

    worker = worker_of(server, drain_timeout=0.02)
    worker.function("app/f")(wait if is_async else stay)
    given = task("app/f")
    async with serving(worker) as life:
        stream = await server.stream()
        stream.send(tasks=[given])
        assert await asyncio.to_thread(began.wait, PATIENCE)
        await stopped(worker, life)
        await soon(stream.ended.wait())
    assert stream.returned == [given.id]
    assert stream.came == []


async def test_a_function_that_hangs_keeps_no_worker_from_leaving(
    server: FakeServer,
) -> None:
    begun, release = threading.Event(), threading.Event()

    def hang() -> None:
        begun.set()
        release.wait()

    worker = worker_of(server, hang, drain_timeout=0.02)
    async with serving(worker) as life:
        stream = await server.stream()
        stream.send(tasks=[task("app/hang")])
        assert await asyncio.to_thread(begun.wait, PATIENCE)
        await stopped(worker, life)
    hanging = [t for t in threading.enumerate() if t.name == "magicflow-task" and t.is_alive()]
    release.set()
    assert hanging
    assert all(thread.daemon for thread in hanging)


async def test_a_heartbeat_after_the_end_is_harmless(server: FakeServer) -> None:
    kept: list[Context] = []
    worker = worker_of(server)
    worker.function("app/f")(lambda ctx: kept.append(ctx))
    await answer(server, worker, task("app/f"))
    await asyncio.to_thread(asyncio.run, asyncio.sleep(0))
    kept[0].heartbeat("late")


async def test_a_drain_command_is_receipted_and_ends_the_worker(server: FakeServer) -> None:
    async with serving(worker_of(server, echo)) as life:
        stream = await server.stream()
        stream.command(drain=True)
        await soon(asyncio.shield(life))
        await soon(stream.ended.wait())
    assert (await stream.receipt()).message == "draining"


async def test_stop_reaches_a_worker_that_finds_no_server() -> None:
    worker = Worker("127.0.0.1:1", token="")
    worker.function("app/echo")(echo)
    async with serving(worker) as life:
        await asyncio.sleep(0)
        await stopped(worker, life)


async def test_a_worker_that_was_stopped_before_it_served_ends_at_once(
    server: FakeServer,
) -> None:
    worker = worker_of(server, echo)
    worker.stop()
    await soon(worker.serve())


# Wrong use.


async def test_a_worker_without_functions_does_not_serve() -> None:
    with pytest.raises(magicflow.Invalid, match="offers no function"):
        await Worker().serve()


@pytest.mark.parametrize("name", ["price", "a/b/c", ""])
def test_a_function_name_is_app_and_name(name: str) -> None:
    with pytest.raises(magicflow.Invalid, match="write app/name"):
        Worker().function(name)


def test_a_name_is_offered_once() -> None:
    worker = Worker()
    worker.function("app/echo")(echo)
    with pytest.raises(magicflow.Invalid, match="app/echo is offered twice"):
        worker.function("app/echo")(later)


@pytest.mark.parametrize("slots", [0, -1, 10_001])
def test_slots_have_a_range(slots: int) -> None:
    with pytest.raises(magicflow.Invalid, match=r"must be from 1 to 10,000"):
        Worker(slots=slots)


def test_an_offered_function_stays_an_ordinary_one() -> None:
    assert Worker().function("app/echo")(echo) is echo
