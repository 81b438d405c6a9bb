"""The worker of a story that is told in the core: it does what the behaviours say, at once where
they say nothing of time, and as many tasks at a time as there are."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

from cli.scenarios.agenda import Agenda
from engine.core.failure import Code, Failure
from engine.core.machine import Began, Command, Failed, Lost, Succeeded
from engine.core.payload import Payload, of_value, to_value
from magicflow.conformance import Call, Crashes, Fails, Plan, Returns, plan

WORKER = "hands"
RESTART = 500  # milliseconds from a crash until the worker is there again


@dataclass(frozen=True, slots=True)
class Job:
    """An attempt of the trace's node at (scope, node). `env` is what the function sees, a JSON
    object or empty. `heartbeat` is the silence allowed, in milliseconds; 0: any."""

    trace_id: bytes
    scope: int
    node: int
    attempt: int
    path: str
    function: str
    input: Payload
    env: bytes
    heartbeat: int
    before: tuple[str, ...]
    after: tuple[str, ...]


class Hands:
    """`wanted` says whether an attempt still wants a result, `tell` takes the worker's word.

    Results of cancelled attempts come all the same, as they may come from any worker: it is the
    core that must not listen.
    """

    def __init__(
        self,
        agenda: Agenda,
        functions: Mapping[str, Mapping[str, Any]],
        commands: Mapping[str, Mapping[str, Any]],
        wanted: Callable[[Job], bool],
        tell: Callable[[Job, Command], None],
    ) -> None:
        self._agenda = agenda
        self.functions = functions
        self._commands = commands
        self._wanted = wanted
        self._tell = tell
        self._counts: Counter[str] = Counter()
        self._at_work: list[Job] = []
        self._lives = 0  # how often the process has crashed
        self._ready_at = 0
        self.calls: list[Call] = []

    def give(self, job: Job) -> None:
        """The worker will take the job as soon as it can, if it offers the function."""
        if job.function not in self.functions:
            return
        self._agenda.note(self._ready_at, lambda: self._take(job))

    def _take(self, job: Job) -> None:
        if self._agenda.now < self._ready_at:
            self.give(job)
            return
        if not self._wanted(job):
            return
        self._at_work.append(job)
        self._tell(job, Began(job.scope, job.node, job.attempt, WORKER))
        env, failed = self._obey(job.before)
        if failed is not None:
            now = self._agenda.now
            self._note(now, self._lives, lambda: self._end(job, Plan((), 0, failed), now, {}))
            return
        call = Call(job.function, job.trace_id.hex(), job.path, job.attempt)
        self.calls.append(call)
        self._counts[job.function] += 1
        self._begin(job, plan(self.functions[job.function], self._counts[job.function]), env)

    def _obey(self, commands: tuple[str, ...]) -> tuple[dict[str, Any], Fails | None]:
        """The env that they set, and the failure of the first that fails."""
        env: dict[str, Any] = {}
        for name in commands:
            if name not in self._commands:
                return env, Fails("COMMAND_UNKNOWN", f"this worker has no command {name}")
            outcome = plan(self._commands[name], 1).outcome
            if isinstance(outcome, Fails):
                return env, outcome
            assert isinstance(outcome, Returns)
            env.update(outcome.env)
        return env, None

    def _begin(self, job: Job, the_plan: Plan, env: dict[str, Any]) -> None:
        """`env` was set by the commands before it."""
        now, life = self._agenda.now, self._lives
        *_, end = signs = [now, *_signs_of_life(now, the_plan)]
        if job.heartbeat:
            for before, after in pairwise(signs):
                if after - before > job.heartbeat:
                    self._note(before + job.heartbeat, life, lambda: self._silent(job))
                    break
        self._note(end, life, lambda: self._end(job, the_plan, now, env))

    def _note(self, at: int, life: int, do: Callable[[], None]) -> None:
        """What is done by the process that runs now, or not at all."""
        self._agenda.note(at, lambda: do() if life == self._lives else None)

    def _silent(self, job: Job) -> None:
        """The gateway says so, in the worker's place."""
        message = f"no heartbeat for {job.heartbeat / 1_000:g} s"
        failure = Failure(Code.HEARTBEAT_TIMEOUT, message, retryable=True)
        self._tell(job, Failed(job.scope, job.node, job.attempt, failure))

    def _end(self, job: Job, the_plan: Plan, began_at: int, env: dict[str, Any]) -> None:
        outcome = the_plan.outcome
        if isinstance(outcome, Crashes):
            self._crash()
            return
        self._at_work.remove(job)
        if isinstance(outcome, Fails):
            self._fail(job, outcome)
            return
        of_after, failed = self._obey(job.after)
        if failed is not None:
            self._fail(job, failed)
        else:
            output = _output(job, outcome, env)
            self._tell(job, _success(job, output, {**env, **outcome.env, **of_after}, began_at))

    def _fail(self, job: Job, fails: Fails) -> None:
        self._tell(job, Failed(job.scope, job.node, job.attempt, _failure(fails), WORKER))

    def _crash(self) -> None:
        """Every task that the process had is lost, and comes to the next one unless the core
        thinks better of it."""
        self._lives += 1
        self._ready_at = self._agenda.now + RESTART
        lost, self._at_work = self._at_work, []
        for job in lost:
            self._tell(job, Lost(job.scope, job.node, job.attempt, WORKER, self._agenda.now))


def _signs_of_life(now: int, the_plan: Plan) -> Iterator[int]:
    for wait in the_plan.beats:
        now += wait
        yield now
    yield now + the_plan.takes


def _output(job: Job, returns: Returns, env: dict[str, Any]) -> Payload:
    """`env` was set by the commands before it."""
    if returns.tells_env:
        seen = to_value(Payload(job.env)) or {}
        return of_value({**seen, **env})
    return job.input if returns.echo else of_value(returns.value)


def _success(job: Job, output: Payload, env: dict[str, Any], began_at: int) -> Succeeded:
    changes = of_value(env).data if env else b""
    return Succeeded(job.scope, job.node, job.attempt, output, changes, WORKER, began_at)


def _failure(fails: Fails) -> Failure:
    details = None if fails.details is None else of_value(fails.details)
    return Failure(
        fails.code,
        fails.message,
        fails.retryable,
        details=details,
        retry_after=fails.retry_after,
    )
