"""Functions under test without a server."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from magicflow.context import Context, enter
from magicflow.functions import bind
from magicflow.payloads import from_payload, result_payload, to_json, to_payload
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
    """Runs a function as a worker would: input checked, output written as JSON.

    Errors: whatever the function raises; `TaskError` for an input that does not fit.
    """
    task = Task(
        id=TaskId(trace_id=bytes(16), node="test", attempt=attempt),
        function="test/function",
        input=to_payload(input),
        env=to_json(env or {}),
    )
    bound = bind("test/function", function)
    context = Context(task, _ignore)
    enter(context)
    arguments = bound.arguments(from_payload(task.input), context)
    value = bound.call(**arguments)
    if bound.is_async:
        value = asyncio.run(value)
    return Ran(from_payload(result_payload(value, limit)), context._env_changes())


def _ignore(task: Task, note: Payload | None) -> None:
    return None
