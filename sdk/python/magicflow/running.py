"""Runs tasks: synchronous functions on threads, asynchronous ones on a loop of their own.

The stream to the server lives on another loop, so that a function that blocks neither stops
heartbeats nor the results of others.
"""

from __future__ import annotations

import asyncio
import contextlib
import inspect
import threading
import time
import traceback
from collections import deque
from collections.abc import Callable
from typing import Any

from google.protobuf.timestamp_pb2 import Timestamp

from magicflow.context import Context, enter
from magicflow.errors import TaskError
from magicflow.functions import AnyFunction, BoundFunction
from magicflow.payloads import env_json, from_payload, result_payload, to_payload
from magicflow.threads import Threads
from magicflow.v1.error_pb2 import Failure
from magicflow.v1.payload_pb2 import Payload
from magicflow.v1.task_pb2 import Task, TaskId, TaskResult

MAX_MESSAGE = 4 << 10  # bytes of UTF-8
MAX_DETAILS = 64 << 10  # bytes of JSON
MAX_STACK = 8_000  # characters
CLOSING = 1.0  # seconds that cancelled functions have to end
Done = Callable[[TaskResult | TaskId], None]


class Runner:
    """`done` is called once per task, from any thread, when its slot is free again: with its
    result, or with its id alone when it was cancelled and the result would not count."""

    def __init__(
        self,
        functions: dict[str, BoundFunction],
        commands: dict[str, AnyFunction],
        slots: int,
        done: Done,
        beat: Callable[[Task, Payload | None], None],
    ) -> None:
        self._functions = functions
        self._commands = commands
        self._done = done
        self._beat = beat
        self._threads = Threads(slots)
        self._loop: asyncio.AbstractEventLoop | None = None
        self._loop_lock = threading.Lock()
        self._loop_thread: threading.Thread | None = None
        self._arriving: deque[tuple[BoundFunction, Task, Context]] = deque()
        self._async_tasks: set[asyncio.Task[None]] = set()
        self.max_payload = 1 << 20  # bytes; from the welcome

    def run(self, task: Task) -> Context:
        """Begins a task; returns at once."""
        context = Context(task, self._beat)
        function = self._functions.get(task.function)
        if function is None:
            message = f"this worker does not offer {task.function}"
            self._done(_failed(task, Failure(code="FUNCTION_UNKNOWN", message=message)))
        elif function.is_async:
            # One wake-up of the other loop starts all tasks of a frame.
            loop = self._async_loop()
            self._arriving.append((function, task, context))
            if len(self._arriving) == 1:
                loop.call_soon_threadsafe(self._start_arriving)
        else:
            self._threads.submit(self._run_sync, function, task, context)
        return context

    def resize(self, slots: int) -> None:
        self._threads.resize(slots)

    def close(self) -> None:
        """Nothing begins any more, and asynchronous functions are cancelled. A synchronous one,
        or one that blocks the loop, ends when it ends."""
        self._threads.close()
        if self._loop is not None and self._loop_thread is not None:
            asyncio.run_coroutine_threadsafe(_cancel_all(self._loop), self._loop)
            self._loop_thread.join(CLOSING)

    def stacks(self) -> str:
        """Where the asynchronous functions stand."""
        tasks = asyncio.all_tasks(self._loop) if self._loop is not None else ()
        return "\n".join(f"task {task.get_name()}\n{_stack(task)}" for task in tasks)

    def wait(self, value: Any) -> Any:
        """The value, or what it comes to on the loop of the asynchronous functions."""
        if not inspect.isawaitable(value):
            return value
        return asyncio.run_coroutine_threadsafe(_settled(value), self._async_loop()).result()

    def submit(self, work: Callable[[], Any]) -> None:
        """Runs something beside the tasks, on a thread."""
        threading.Thread(target=work, daemon=True).start()

    def _async_loop(self) -> asyncio.AbstractEventLoop:
        with self._loop_lock:
            if self._loop is None:
                self._loop = asyncio.new_event_loop()
                self._loop_thread = threading.Thread(
                    target=_live, args=(self._loop,), name="magicflow-async", daemon=True
                )
                self._loop_thread.start()
            return self._loop

    def _start_arriving(self) -> None:
        assert self._loop is not None
        while self._arriving:
            function, task, context = self._arriving.popleft()
            running = self._loop.create_task(self._run_async(function, task, context))
            self._async_tasks.add(running)
            running.add_done_callback(self._async_tasks.discard)

    def _run_sync(self, function: BoundFunction, task: Task, context: Context) -> None:
        enter(context)
        if context.cancelled:
            self._done(task.id)
            return
        began = time.time_ns()
        try:
            for name in task.before:
                self.wait(self._command(name, context))
            value = function.call(**function.arguments(_input(task), context))
            for name in task.after:
                self.wait(self._command(name, context))
        except BaseException as error:
            self._fail(task, context, began, error)
        else:
            self._succeed(task, context, began, value)

    async def _run_async(self, function: BoundFunction, task: Task, context: Context) -> None:
        enter(context)
        if context.cancelled:
            self._done(task.id)
            return
        began = time.time_ns()
        current = asyncio.current_task()
        loop = asyncio.get_running_loop()
        if current is not None:
            context.on_cancel = lambda: _cancel(loop, current)
            if context.cancelled:  # in the meantime
                current.cancel()
        allowed = _allowed(task)
        limit = asyncio.timeout(allowed)
        try:
            async with limit:
                for name in task.before:
                    await _settled(self._command(name, context))
                value = await function.call(**function.arguments(_input(task), context))
                for name in task.after:
                    await _settled(self._command(name, context))
        except TimeoutError as error:
            # The function's own timeouts are errors like others.
            late = TaskError("TIMEOUT", f"the attempt took longer than {allowed or 0.0:g} s")
            self._fail(task, context, began, late if limit.expired() else error)
        except BaseException as error:
            self._fail(task, context, began, error)
        else:
            self._succeed(task, context, began, value)

    def _command(self, name: str, context: Context) -> Any:
        command = self._commands.get(name)
        if command is None:
            message = f"this worker has no command {name}"
            raise TaskError("COMMAND_UNKNOWN", message, retryable=False)
        return command(context)

    def _succeed(self, task: Task, context: Context, began: int, value: Any) -> None:
        if context.cancelled:
            self._done(task.id)
            return
        try:
            output = result_payload(value, self.max_payload)
            self._functions[task.function].check_result(value, output)
            env = env_json(context._env_changes(), self.max_payload)
        except Exception as error:
            self._fail(task, context, began, error)
            return
        self._done(
            TaskResult(
                id=task.id,
                output=output,
                env=env,
                epoch=task.epoch,
                mac=task.mac,
                began_at=_stamp(began),
                ended_at=_stamp(time.time_ns()),
            )
        )

    def _fail(self, task: Task, context: Context, began: int, error: BaseException) -> None:
        if context.cancelled:
            self._done(task.id)
            return
        result = _failed(task, failure_of(error))
        result.began_at.CopyFrom(_stamp(began))
        result.ended_at.CopyFrom(_stamp(time.time_ns()))
        self._done(result)


def failure_of(error: BaseException) -> Failure:
    """What a function raised, as the engine records it. Never raises, whatever it was given."""
    if isinstance(error, TaskError):
        failure = Failure(
            code=clean_text(error.code, 128),
            message=clean_text(error.message, MAX_MESSAGE),
            retryable=bool(error.retryable),
        )
        if error.details is not None:
            failure.details.CopyFrom(_details(error.details))
        if error.retry_after:
            failure.retry_after.FromMilliseconds(int(error.retry_after * 1_000))
        return failure
    stack = "".join(traceback.format_exception(error)[-20:])[-MAX_STACK:]
    return Failure(
        code="FUNCTION_ERROR",
        message=clean_text(f"{type(error).__name__}: {_said(error)}", MAX_MESSAGE),
        retryable=isinstance(error, Exception),
        details=_details({"stack": clean_text(stack, MAX_DETAILS // 2)}),
    )


def _said(error: BaseException) -> str:
    try:
        return str(error)
    except Exception:
        return "it cannot be written as text"


def clean_text(value: Any, limit: int) -> str:
    """At most so many bytes of UTF-8, without what UTF-8 cannot carry."""
    data = str(value).encode("utf-8", "backslashreplace")
    return data[:limit].decode("utf-8", "ignore")


def _details(value: Any) -> Payload:
    try:
        payload = to_payload(value)
    except (TypeError, ValueError, RecursionError) as error:
        return to_payload({"lost": clean_text(f"the details cannot be sent: {error}", MAX_MESSAGE)})
    if len(payload.data) > MAX_DETAILS:
        return to_payload({"lost": f"the details had {len(payload.data)} bytes"})
    return payload


def _failed(task: Task, failure: Failure) -> TaskResult:
    return TaskResult(id=task.id, failure=failure, epoch=task.epoch, mac=task.mac)


def _input(task: Task) -> Any:
    try:
        return from_payload(task.input)
    except ValueError as error:
        raise TaskError("INPUT_INVALID", f"not JSON: {error}", retryable=False) from error


def _allowed(task: Task) -> float | None:
    """Seconds that the attempt may take, by the server's own two stamps: the clocks of server
    and worker may differ."""
    if not task.HasField("deadline"):
        return None
    return max(0.0, (task.deadline.ToNanoseconds() - task.dispatched_at.ToNanoseconds()) / 1e9)


async def _settled(value: Any) -> Any:
    return await value if inspect.isawaitable(value) else value


def _stack(task: asyncio.Task[Any]) -> str:
    """Down to what is awaited; a task's own stack has its outermost function only."""
    frames = []
    waiting: Any = task.get_coro()
    while (frame := getattr(waiting, "cr_frame", None)) is not None:
        frames.append((frame, frame.f_lineno))
        waiting = waiting.cr_await
    return "".join(traceback.StackSummary.extract(iter(frames)).format())


def _live(loop: asyncio.AbstractEventLoop) -> None:
    try:
        loop.run_forever()
    finally:
        loop.close()


async def _cancel_all(loop: asyncio.AbstractEventLoop) -> None:
    """Cancels every other task of the loop, gives them a moment, and stops it."""
    others = asyncio.all_tasks() - {asyncio.current_task()}
    for task in others:
        task.cancel()
    if others:
        await asyncio.wait(others, timeout=CLOSING / 2)
    loop.stop()


def _stamp(nanoseconds: int) -> Timestamp:
    return Timestamp(seconds=nanoseconds // 10**9, nanos=nanoseconds % 10**9)


def _cancel(loop: asyncio.AbstractEventLoop, task: asyncio.Task[Any]) -> None:
    with contextlib.suppress(RuntimeError):  # the loop is closed: nothing runs there any more
        loop.call_soon_threadsafe(task.cancel)
