"""Runs tasks: synchronous functions on threads, asynchronous ones on a loop of their own.

The stream to the server lives on another loop, so that a function that blocks neither stops
heartbeats nor the results of others.
"""

from __future__ import annotations

import asyncio
import logging
import threading
import time
import traceback
from collections import deque
from collections.abc import Callable, Coroutine
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from google.protobuf.timestamp_pb2 import Timestamp

from magicflow.context import Context, enter
from magicflow.errors import TaskError
from magicflow.functions import AnyFunction, BoundFunction
from magicflow.payloads import from_payload, result_payload, to_json, to_payload
from magicflow.v1.error_pb2 import Failure
from magicflow.v1.payload_pb2 import Payload
from magicflow.v1.task_pb2 import Task, TaskId, TaskResult

_log = logging.getLogger("magicflow.worker")
MAX_MESSAGE = 4_000  # characters
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
        self._threads = ThreadPoolExecutor(max_workers=slots, thread_name_prefix="magicflow-task")
        self._loop: asyncio.AbstractEventLoop | None = None
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

    def close(self) -> None:
        self._threads.shutdown(wait=False, cancel_futures=True)
        if self._loop is not None and self._loop_thread is not None:
            self._loop.call_soon_threadsafe(self._loop.stop)
            self._loop_thread.join(1.0)
            if not self._loop_thread.is_alive():  # a function may block it for ever
                self._loop.close()

    def submit(self, work: Callable[[], Any]) -> None:
        """Runs something beside the tasks, on a thread."""
        threading.Thread(target=work, daemon=True).start()

    def _async_loop(self) -> asyncio.AbstractEventLoop:
        if self._loop is None:
            self._loop = asyncio.new_event_loop()
            self._loop_thread = threading.Thread(
                target=self._loop.run_forever, name="magicflow-async", daemon=True
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
            self._commanded(task.before, context)
            value = function.call(**function.arguments(_input(task), context))
            self._commanded(task.after, context)
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
        try:
            self._commanded(task.before, context)
            timeout = _allowed(task)
            work: Coroutine[Any, Any, Any] = function.call(
                **function.arguments(_input(task), context)
            )
            value = await (work if timeout is None else asyncio.wait_for(work, timeout))
            self._commanded(task.after, context)
        except TimeoutError as error:
            self._fail(task, context, began, _timed_out(error, timeout))
        except BaseException as error:
            self._fail(task, context, began, error)
        else:
            self._succeed(task, context, began, value)

    def _commanded(self, names: Any, context: Context) -> None:
        for name in names:
            command = self._commands.get(name)
            if command is None:
                raise TaskError(
                    "COMMAND_UNKNOWN",
                    f"this worker has no command {name}",
                    retryable=False,
                )
            command(context)

    def _succeed(self, task: Task, context: Context, began: int, value: Any) -> None:
        if context.cancelled:
            self._done(task.id)
            return
        try:
            output = result_payload(value, self.max_payload)
            changes = context._env_changes()
            env = to_json(changes) if changes else b""
        except (TaskError, TypeError, ValueError) as error:
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
    """What a function raised, as the engine records it."""
    if isinstance(error, TaskError):
        failure = Failure(
            code=error.code, message=error.message[:MAX_MESSAGE], retryable=error.retryable
        )
        if error.details is not None:
            failure.details.CopyFrom(to_payload(error.details))
        if error.retry_after:
            failure.retry_after.FromMilliseconds(int(error.retry_after * 1_000))
        return failure
    message = f"{type(error).__name__}: {error}"[:MAX_MESSAGE]
    stack = traceback.format_exception(error)[-20:]
    return Failure(
        code="FUNCTION_ERROR",
        message=message,
        retryable=isinstance(error, Exception),
        details=to_payload({"stack": "".join(stack)[-8_000:]}),
    )


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


def _timed_out(error: TimeoutError, allowed: float | None) -> BaseException:
    if allowed is None:
        return error  # the function's own
    return TaskError("TIMEOUT", f"the attempt took longer than {allowed:g} s")


def _stamp(nanoseconds: int) -> Timestamp:
    return Timestamp(seconds=nanoseconds // 10**9, nanos=nanoseconds % 10**9)


def _cancel(loop: asyncio.AbstractEventLoop, task: asyncio.Task[Any]) -> None:
    loop.call_soon_threadsafe(task.cancel)
