"""Functions under test without a server."""

from __future__ import annotations

import asyncio
import contextvars
from collections.abc import Callable, Coroutine
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

from magicflow.context import Context, enter
from magicflow.functions import BoundFunction, bind
from magicflow.payloads import env_json, from_payload, result_payload, to_json, to_payload
from magicflow.v1.payload_pb2 import Payload
from magicflow.v1.task_pb2 import Task, TaskId


@dataclass(frozen=True, slots=True)
class Ran:
    """What came of it: the output after its way through JSON, and the env keys it set."""

    output: Any
    env: dict[str, Any]


def run_function(
    function: Callable[..., Any],
    input: Any = None,
    *,
    env: dict[str, Any] | None = None,
    attempt: int = 1,
    limit: int = 1 << 20,
) -> Ran:
    """Runs a function as a worker would: input checked, output written as JSON and checked.

    Errors: whatever the function raises; `TaskError` for an input or output that does not fit.
    """
    task = Task(
        id=TaskId(trace_id=bytes(16), node="test", attempt=attempt),
        function="test/function",
        input=to_payload(input),
        env=to_json(env or {}),
    )
    bound = bind("test/function", function)
    context = Context(task, _ignore)
    value = contextvars.copy_context().run(_called, bound, task, context)
    written = result_payload(value, limit)
    bound.check_result(value, written)
    output = from_payload(written)
    env_json(context._env_changes(), limit)
    return Ran(output, context._env_changes())


def _called(bound: BoundFunction, task: Task, context: Context) -> Any:
    enter(context)
    arguments = bound.arguments(from_payload(task.input), context)
    if not bound.is_async:
        return bound.call(**arguments)
    # On a thread of its own, as under a worker: the test itself may run on a loop.
    surroundings = contextvars.copy_context()
    with ThreadPoolExecutor(1) as thread:
        return thread.submit(surroundings.run, _run, bound.call(**arguments)).result()


def _run(work: Coroutine[Any, Any, Any]) -> Any:
    return asyncio.run(work)


def _ignore(task: Task, note: Payload | None) -> None:
    return None
