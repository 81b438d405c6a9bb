"""A worker whose functions behave as a file says. `magicflow scenario run --stack` tells its
stories with it, or with a worker in another language that keeps the same contract (`--worker
COMMAND`).

The worker is started with MAGICFLOW_ADDRESS, MAGICFLOW_TOKEN (may be empty) and
MAGICFLOW_BEHAVIOUR, the path of a JSON file::

    {"functions": {"app/name": BEHAVIOUR, …}, "commands": {NAME: COMMAND, …}}

It offers exactly these functions, has exactly these commands (none where the key is missing), runs
at least 256 tasks at once, and ends at SIGTERM. The functions may belong to several apps. What it
prints goes to a log.

A BEHAVIOUR is an object with exactly one of

``"echo": true``
    returns its input
``"returns": VALUE``
    returns the value, any JSON
``"returns_env": true``
    returns the env that it sees, an object: the trace's, with the node's own on top
``"fails": FAILURE``
    fails: ``{"code": TEXT, "message": TEXT, "retryable": BOOL, "details": JSON,
    "retry_after": DURATION}``; without a message the code is the message, without `retryable`
    it is false, the others may be missing
``"script": [BEHAVIOUR, …]``
    the first call does the first, the second the second, …; the last one repeats. Each echoes,
    returns or fails
``"crashes": N, "then": BEHAVIOUR``
    each of the first N calls ends the process on the spot: no result, no draining. Later calls do
    what `then` says, whose own count begins with call N + 1. The process is started again by
    whoever started it
``"absent": true``
    is never in the file: no worker offers the function

and, beside any of these but `script`,

``"heartbeats": [DURATION, …]``
    before anything else: for each in turn waits that long, then sends a heartbeat of the task
``"takes": DURATION``
    waits that long after the heartbeats, before it returns, fails or crashes
``"env": {KEY: VALUE, …}``
    sets these keys of the trace's env; only beside one that returns

A COMMAND, which runs before or after a function where a playbook says so, is an object with exactly
one of ``"returns": VALUE``, of which nobody sees the value, and ``"fails": FAILURE``; beside
`returns` it may have `env`. Commands run in the order in which the task names them. The first that
fails, or that the worker does not have (failure `COMMAND_UNKNOWN`, not retryable), fails the
attempt: what would follow does not run.

A DURATION is text: numbers with a unit of `ms`, `s`, `m`, `h` or `d`, as in `200ms` and `1m30s`.

Before anything else in a function, and so after the commands before it, the worker appends one line
to the file beside the behaviour file that has `.calls` after its name, in one write to a file
opened for appending::

    app/name<TAB>trace id<TAB>node path<TAB>attempt<LF>

The number of a call is the number of lines of its function, this one included, so that it counts
on over crashes. Only the worker writes the file; it may be missing at first.
"""

from __future__ import annotations

import asyncio
import json
import os
import re
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from magicflow.context import Context
from magicflow.errors import TaskError
from magicflow.worker import Worker

SLOTS = 512
CRASHED = 70  # the exit status
_UNITS = {"ms": 1, "s": 1_000, "m": 60_000, "h": 3_600_000, "d": 86_400_000}
_PART = re.compile(r"(\d+(?:\.\d+)?)(ms|s|m|h|d)")


@dataclass(frozen=True, slots=True)
class Returns:
    """`value` is what it returns, unless it echoes its input or tells the env that it sees."""

    value: Any = None
    echo: bool = False
    env: Mapping[str, Any] = field(default_factory=dict)
    tells_env: bool = False


@dataclass(frozen=True, slots=True)
class Fails:
    """`retry_after` is in milliseconds; None means no details."""

    code: str
    message: str
    retryable: bool = False
    details: Any = None
    retry_after: int = 0


@dataclass(frozen=True, slots=True)
class Crashes:
    """The process ends."""


@dataclass(frozen=True, slots=True)
class Plan:
    """One call: each of `beats` is a wait that ends with a heartbeat; then it waits for `takes`,
    and then comes the outcome. Milliseconds."""

    beats: tuple[int, ...]
    takes: int
    outcome: Returns | Fails | Crashes


def plan(behaviour: Mapping[str, Any], number: int) -> Plan:
    """What the call does that is the `number`th (from 1) of its function. `behaviour` keeps the
    contract above; `ValueError` or `KeyError` otherwise."""
    if "script" in behaviour:
        script = behaviour["script"]
        return plan(script[min(number, len(script)) - 1], 1)
    if "crashes" in behaviour and number > behaviour["crashes"]:
        return plan(behaviour["then"], number - behaviour["crashes"])
    beats = tuple(milliseconds(text) for text in behaviour.get("heartbeats", ()))
    return Plan(beats, milliseconds(behaviour.get("takes", "0s")), _outcome(behaviour))


def _outcome(behaviour: Mapping[str, Any]) -> Returns | Fails | Crashes:
    if "crashes" in behaviour:
        return Crashes()
    if "fails" in behaviour:
        failure = behaviour["fails"]
        return Fails(
            failure["code"],
            failure.get("message") or failure["code"],
            failure.get("retryable", False),
            failure.get("details"),
            milliseconds(failure.get("retry_after", "0s")),
        )
    env = behaviour.get("env", {})
    if behaviour.get("echo"):
        return Returns(echo=True, env=env)
    if behaviour.get("returns_env"):
        return Returns(tells_env=True, env=env)
    return Returns(behaviour["returns"], env=env)


def milliseconds(text: str) -> int:
    """The length of a duration. Errors: `ValueError`."""
    parts = _PART.findall(text)
    if not parts or "".join(number + unit for number, unit in parts) != text:
        raise ValueError(f"{text!r} is no duration; write for example 200ms, 5s or 1m30s")
    return round(sum(float(number) * _UNITS[unit] for number, unit in parts))


@dataclass(frozen=True, slots=True)
class Call:
    """A task that reached the worker. `trace_id` is 32 hex digits."""

    function: str
    trace_id: str
    node: str
    attempt: int


def calls_file(behaviour: Path) -> Path:
    """Where the worker with this behaviour file writes its calls."""
    return behaviour.with_name(behaviour.name + ".calls")


def read_calls(path: Path) -> list[Call]:
    """In the order of their arrival; none where there is no file."""
    if not path.exists():
        return []
    lines = [line.split("\t") for line in path.read_text("utf-8").splitlines()]
    return [Call(function, trace, node, int(attempt)) for function, trace, node, attempt in lines]


class CallLog:
    """The calls of one story, kept in a file. Used from one thread."""

    def __init__(self, path: Path) -> None:
        self._counts = Counter(call.function for call in read_calls(path))
        self._file = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)

    def add(self, context: Context) -> int:
        """Records the call; returns its number."""
        function = context.function
        line = f"{function}\t{context.trace_id}\t{context.node}\t{context.attempt}\n"
        os.write(self._file, line.encode())
        self._counts[function] += 1
        return self._counts[function]


async def perform(the_plan: Plan, value: Any, context: Context) -> Any:
    """Does what was planned with an input. Errors: `TaskError` for a plan that fails."""
    for wait in the_plan.beats:
        await asyncio.sleep(wait / 1_000)
        context.heartbeat()
    await asyncio.sleep(the_plan.takes / 1_000)
    outcome = the_plan.outcome
    if isinstance(outcome, Crashes):
        os._exit(CRASHED)
    seen = dict(context.env)
    come_out(outcome, context)
    assert isinstance(outcome, Returns)
    if outcome.tells_env:
        return seen
    return value if outcome.echo else outcome.value


def come_out(outcome: Returns | Fails, context: Context) -> None:
    """Errors: `TaskError`."""
    if isinstance(outcome, Fails):
        raise TaskError(
            outcome.code,
            outcome.message,
            retryable=outcome.retryable,
            details=outcome.details,
            retry_after=outcome.retry_after / 1_000,
        )
    for key, item in outcome.env.items():
        context.env.set(key, item)


def worker_of(path: Path) -> Worker:
    """A worker that offers what the behaviour file says."""
    content = json.loads(path.read_text("utf-8"))
    log = CallLog(calls_file(path))
    worker = Worker(slots=SLOTS)
    for name, behaviour in content["functions"].items():
        _offer(worker, name, behaviour, log)
    for name, behaviour in content.get("commands", {}).items():
        _have(worker, name, behaviour)
    return worker


def _offer(worker: Worker, name: str, behaviour: Mapping[str, Any], log: CallLog) -> None:
    @worker.function(name)
    async def behave(input: Any, ctx: Context) -> Any:
        return await perform(plan(behaviour, log.add(ctx)), input, ctx)


def _have(worker: Worker, name: str, behaviour: Mapping[str, Any]) -> None:
    @worker.command(name)
    def obey(context: Context) -> None:
        outcome = plan(behaviour, 1).outcome
        assert not isinstance(outcome, Crashes)
        come_out(outcome, context)


if __name__ == "__main__":
    worker_of(Path(os.environ["MAGICFLOW_BEHAVIOUR"])).run()
