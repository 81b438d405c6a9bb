"""Simulated workers: they do what an SDK does, and now and then what a worker can do wrong."""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass
from typing import Any, cast

from engine.errors import MagicflowError
from engine.rpc import interceptors
from engine.security.tokens import EVERY_APP, Identity
from magicflow.v1.dispatch_service_pb2 import WorkRequest, WorkResponse
from magicflow.v1.error_pb2 import Failure
from magicflow.v1.payload_pb2 import Payload
from magicflow.v1.task_pb2 import Task, TaskId, TaskResult
from magicflow.v1.worker_pb2 import Function, WorkerHeartbeat, WorkerHello
from services.dispatcher.sessions import HEARTBEAT
from tests.simulation.dispatchers import Dispatcher
from tests.simulation.loop import VirtualLoop
from tests.simulation.oracle import Key, Oracle, Run
from tests.simulation.playbooks import BAD, BOOM, FUNCTIONS

_IDENTITY = Identity(EVERY_APP, "simulation", frozenset({"work", "admin"}))


@dataclass(slots=True)
class Habits:
    """Probabilities, and the longest a function takes (seconds)."""

    fail: float = 0.05
    fail_for_now: float = 0.12
    say_twice: float = 0.1
    give_back: float = 0.05
    slow: float = 0.1
    longest: float = 20.0
    obey: float = 0.7  # stops when it is told to

    def calm(self) -> None:
        self.fail = self.fail_for_now = self.give_back = self.slow = 0.0
        self.longest = 1.0


class Stream:
    """A worker's stream to a dispatcher. Frames arrive in order, in both directions."""

    def __init__(
        self,
        loop: VirtualLoop,
        dispatcher: Dispatcher,
        heard: Callable[[Stream, WorkResponse | None], None],
        quick: float,
    ) -> None:
        self.dispatcher = dispatcher
        self.over = False
        self._loop = loop
        self._heard = heard
        self._quick = quick
        self._last = [0.0, 0.0]
        self._requests: asyncio.Queue[WorkRequest | None] = asyncio.Queue()
        self._serving: asyncio.Task[None] | None = None
        if dispatcher.alive:
            self._serving = dispatcher.process.spawn(self._serve())

    def send(self, request: WorkRequest) -> None:
        self._at(0, self._there, request)

    def end(self) -> None:
        """The worker says that it sends no more."""
        self._at(0, self._there, None)

    def break_(self, server_notices: float, worker_notices: float) -> None:
        """The connection is gone; each side learns of it in its time (seconds)."""
        self.over = True
        self._loop.outside(server_notices, self._cancel)
        self._loop.outside(worker_notices, self._heard, self, None)

    def _at(self, way: int, call: Callable[..., None], *arguments: Any) -> None:
        when = max(self._loop.time() + self._loop.random.random() * self._quick, self._last[way])
        self._last[way] = when + 1e-6
        self._loop.outside(when - self._loop.time(), call, *arguments)

    def _there(self, request: WorkRequest | None) -> None:
        if not self.over:
            self.dispatcher.process.call(self._requests.put_nowait, request)

    def _cancel(self) -> None:
        if self._serving is not None:
            self.dispatcher.process.call(self._serving.cancel)

    async def _serve(self) -> None:
        interceptors._caller.set(_IDENTITY)
        try:
            responses = self.dispatcher.servicer.Work(self._incoming(), cast(Any, None))
            async for response in responses:
                self._at(1, self._back, response)
        except MagicflowError:
            pass
        finally:
            self._at(1, self._back, None)

    async def _incoming(self) -> AsyncIterator[WorkRequest]:
        while (request := await self._requests.get()) is not None:
            yield request

    def _back(self, response: WorkResponse | None) -> None:
        if not self.over:
            self.over = response is None
            self._heard(self, response)


class Worker:
    """One worker process at a time under one name. It belongs to no simulated process: its code
    is not under test."""

    def __init__(
        self,
        name: str,
        slots: int,
        loop: VirtualLoop,
        oracle: Oracle,
        habits: Habits,
        choose: Callable[[], Dispatcher | None],
        quick: float,
    ) -> None:
        self.name = name
        self._slots = slots
        self._loop = loop
        self._oracle = oracle
        self._habits = habits
        self._choose = choose
        self._quick = quick
        self._random = random.Random(loop.random.random())
        self._life = 0
        self._beat = 0
        self.stream: Stream | None = None
        self.running: dict[Key, tuple[Run, Task, asyncio.TimerHandle]] = {}
        self.unacknowledged: dict[Key, TaskResult] = {}
        self.draining = False
        self.alive = False

    # Life.

    def start(self) -> None:
        self._life += 1
        self.alive, self.draining = True, False
        self._connect(self._life)
        self._loop.outside(HEARTBEAT, self._heartbeat, self._life)

    def vanish(self, silently: bool) -> None:
        """The process dies: what it ran and had not delivered is lost. Silently: nobody is told,
        as when the host loses its power."""
        self.alive = False
        self._life += 1
        for _, _, timer in self.running.values():
            timer.cancel()
        self.running.clear()
        self.unacknowledged.clear()
        if self.stream is not None:
            notices = 600.0 if silently else self._random.random()
            self.stream.break_(notices, 0.0)
            self.stream = None

    def lose_stream(self) -> None:
        if self.stream is not None:
            stream, self.stream = self.stream, None
            stream.break_(self._random.random() * 3, 0.0)
            self._again()

    def drain(self) -> None:
        """A clean end: takes nothing more, finishes, then leaves; `start` begins anew."""
        self.draining = True
        self._send(WorkRequest(draining=True))
        self._leave_when_done()

    def _leave_when_done(self) -> None:
        if self.draining and not self.running and not self.unacknowledged:
            self.alive = False
            self._life += 1
            if self.stream is not None:
                self.stream.end()
                self.stream = None

    def hurry(self) -> None:
        """What still runs ends soon."""
        for key, (run, task, timer) in list(self.running.items()):
            timer.cancel()
            soon = self._loop.outside(self._random.random(), self._finish, run.number)
            self.running[key] = (run, task, soon)

    @property
    def idle(self) -> bool:
        return not self.running and not self.unacknowledged

    # The stream.

    def _connect(self, life: int) -> None:
        if life != self._life or self.stream is not None:
            return
        dispatcher = self._choose()
        if dispatcher is None or not dispatcher.alive:
            self._again()
            return
        self.stream = Stream(self._loop, dispatcher, self._heard, self._quick)
        hello = WorkerHello(
            worker_id=self.name,
            functions=[Function(name=name) for name in FUNCTIONS],
            slots=self._slots,
            resumed=[_id(key) for key in (*self.running, *self.unacknowledged)],
        )
        self._send(WorkRequest(hello=hello))
        if self.draining:
            self._send(WorkRequest(draining=True))

    def _again(self) -> None:
        self._loop.outside(0.05 + self._random.random(), self._connect, self._life)

    def _send(self, request: WorkRequest) -> None:
        if self.stream is not None:
            self.stream.send(request)

    def _heartbeat(self, life: int) -> None:
        if life != self._life:
            return
        self._beat += 1
        running = [_id(key) for key in self.running]
        self._send(WorkRequest(heartbeat=WorkerHeartbeat(number=self._beat, running=running)))
        self._loop.outside(HEARTBEAT, self._heartbeat, life)

    def _heard(self, stream: Stream, response: WorkResponse | None) -> None:
        if stream is not self.stream:
            return
        if response is None:
            self.stream = None
            self._again()
            return
        if response.HasField("welcome") and self.unacknowledged:
            self._oracle.seen["results sent again"] += 1
            self._send(WorkRequest(results=self.unacknowledged.values()))
        for receipt in response.receipts:
            key = _key(receipt.id)
            self._oracle.receipt(self.name, receipt)
            self.unacknowledged.pop(key, None)
        for task in response.tasks:
            self._take(task)
        for command in response.commands:
            if command.WhichOneof("what") == "cancel":
                self._cancel(command.cancel)
        self._leave_when_done()

    # Tasks.

    def _take(self, task: Task) -> None:
        key = _key(task.id)
        if key in self.unacknowledged:
            self._send(WorkRequest(results=[self.unacknowledged[key]]))
            return
        if key in self.running:
            return
        if self._random.random() < self._habits.give_back:
            self._oracle.happened("given back", self.name, *_short(key))
            self._send(WorkRequest(returned=[task.id]))
            return
        number = len(self._oracle.runs) + 1
        dispatched = task.dispatched_at.ToMilliseconds() / 1_000 - self._loop.wall()
        run = Run(number, key, self.name, self._loop.time(), self._loop.time() + dispatched)
        self._oracle.began(run)
        timer = self._loop.outside(self._length(), self._finish, number)
        self.running[key] = (run, task, timer)

    def _length(self) -> float:
        if self._random.random() < self._habits.slow:
            return self._random.random() * self._habits.longest
        return self._random.random() * 0.3

    def _cancel(self, task: TaskId) -> None:
        key = _key(task)
        if key not in self.running:
            self._send(WorkRequest(returned=[task]))
        elif self._random.random() < self._habits.obey:
            self.running.pop(key)[2].cancel()
            self._oracle.happened("cancelled", self.name, *_short(key))
            self._send(WorkRequest(returned=[task]))

    def _finish(self, number: int) -> None:
        run = self._oracle.runs[number]
        _, task, _ = self.running.pop(run.key)
        result = TaskResult(id=task.id, epoch=task.epoch)
        dice = self._random.random()
        if dice < self._habits.fail:
            result.failure.CopyFrom(Failure(code=BOOM, message=f"run {number}"))
        elif dice < self._habits.fail + self._habits.fail_for_now:
            failure = Failure(code=BAD, message=f"run {number}", retryable=True)
            result.failure.CopyFrom(failure)
        else:
            value = self._random.randrange(3)
            data = f'{{"run":{number},"v":{value}}}'.encode()
            result.output.CopyFrom(Payload(data=data, content_type="application/json"))
        self.unacknowledged[run.key] = result
        self._oracle.happened("result", number, self.name)
        self._send(WorkRequest(results=[result]))
        if self._random.random() < self._habits.say_twice:
            self._loop.outside(self._random.random() * 0.02, self._say_again, result)

    def _say_again(self, result: TaskResult) -> None:
        self._send(WorkRequest(results=[result]))


def _id(key: Key) -> TaskId:
    return TaskId(trace_id=key[0], node=key[1], attempt=key[2])


def _key(task: TaskId) -> Key:
    return task.trace_id, task.node, task.attempt


def _short(key: Key) -> tuple[str, str, int]:
    return key[0].hex()[-8:], key[1], key[2]
