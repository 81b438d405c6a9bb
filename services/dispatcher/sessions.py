"""One worker's session: its credit, what it has, and what waits to be written to it."""

from __future__ import annotations

import asyncio
import secrets
import time
from collections.abc import Iterable
from dataclasses import dataclass, field

from magicflow.v1.dispatch_service_pb2 import WorkResponse
from magicflow.v1.task_pb2 import ResultReceipt, Task
from magicflow.v1.worker_pb2 import Command, CommandReceipt, WorkerHello

FRAME_TASKS = 256
FRAME_BYTES = 1_048_576
HEARTBEAT = 5.0  # seconds
SILENCE = 3 * HEARTBEAT  # seconds after which a session is dead

TaskKey = tuple[bytes, str, int]


@dataclass(slots=True, eq=False)
class Session:
    """A connected worker. Credit is its slots less what it has; it never has more.

    `assigned` says when each of its tasks was written to it (monotonic seconds; 0 before)."""

    worker_id: str
    app: str
    hello: WorkerHello
    slots: int
    connected_at: int
    assigned: dict[TaskKey, float] = field(default_factory=dict)
    paused: set[str] = field(default_factory=set)
    draining: bool = False
    heard: float = field(default_factory=time.monotonic)
    token: str = field(default_factory=lambda: secrets.token_urlsafe(24))
    commands_waiting: dict[str, asyncio.Future[CommandReceipt]] = field(default_factory=dict)
    _tasks: list[Task] = field(default_factory=list)
    _receipts: list[ResultReceipt] = field(default_factory=list)
    _commands: list[Command] = field(default_factory=list)
    _echo: int = 0
    _news: asyncio.Event = field(default_factory=asyncio.Event)
    awaited: dict[TaskKey, asyncio.Future[ResultReceipt]] = field(default_factory=dict)
    closed: bool = False
    _missing: set[TaskKey] = field(default_factory=set)

    @property
    def credit(self) -> int:
        return 0 if self.draining or self.closed else self.slots - len(self.assigned)

    @property
    def functions(self) -> list[str]:
        return [function.name for function in self.hello.functions]

    def alive(self) -> bool:
        """Liveness is judged on the stream itself."""
        return time.monotonic() - self.heard < SILENCE

    def assign(self, key: TaskKey, task: Task) -> None:
        self.assigned[key] = 0.0
        self._tasks.append(task)
        self._news.set()

    def has(self, keys: Iterable[TaskKey]) -> None:
        """It came with these tasks."""
        now = time.monotonic()
        self.assigned.update((key, now) for key in keys)

    def deaf(self, running: set[TaskKey]) -> bool:
        """Whether it sends signs of life and does not hear what it is sent: tasks that were
        written to it long ago are missing among those that it says it has, twice in a row."""
        long_ago = time.monotonic() - SILENCE
        missing = {
            key for key, at in self.assigned.items() if 0 < at < long_ago and key not in running
        }
        before, self._missing = self._missing, missing
        return bool(before & missing)

    def receipt(self, receipt: ResultReceipt) -> None:
        key = (receipt.id.trace_id, receipt.id.node, receipt.id.attempt)
        waiting = self.awaited.pop(key, None)
        if waiting is not None:  # the Complete call of a polled session
            if not waiting.done():
                waiting.set_result(receipt)
            return
        self._receipts.append(receipt)
        self._news.set()

    def take_commands(self) -> list[Command]:
        taken, self._commands = self._commands, []
        return taken

    def command(self, command: Command) -> None:
        self._commands.append(command)
        self._news.set()

    def echo(self, number: int) -> None:
        self._echo = number
        self._news.set()

    def close(self) -> None:
        self.closed = True
        self._news.set()

    async def next_frame(
        self, timeout: float | None = None, most: int = FRAME_TASKS
    ) -> WorkResponse | None:
        """Everything that has gathered, but at most so many tasks, as soon as there is something;
        None once closed, or when the time (seconds) is up."""
        if timeout is None:
            await self._news.wait()
        else:
            try:
                await asyncio.wait_for(self._news.wait(), timeout)
            except TimeoutError:
                return None
        if self.closed:
            return None
        tasks = self._cut_tasks(min(most, FRAME_TASKS))
        receipts, self._receipts = self._receipts[:1_000], self._receipts[1_000:]
        commands, self._commands = self._commands, []
        echo, self._echo = self._echo, 0
        if not (self._tasks or self._receipts):
            self._news.clear()
        return WorkResponse(tasks=tasks, receipts=receipts, commands=commands, heartbeat=echo)

    def _cut_tasks(self, most: int) -> list[Task]:
        size, count = 0, 0
        for task in self._tasks[:most]:
            size += len(task.input.data) + 256
            if count and size > FRAME_BYTES:
                break
            count += 1
        cut, self._tasks = self._tasks[:count], self._tasks[count:]
        self.has(_key(task) for task in cut)
        return cut

    def withdraw_all(self) -> list[TaskKey]:
        """Takes back whatever was not written yet."""
        keys = [_key(task) for task in self._tasks]
        self._tasks = []
        for key in keys:
            self.assigned.pop(key, None)
        return keys

    def withdraw(self, key: TaskKey) -> bool:
        """Takes back a task that was not written yet; False when the worker has it."""
        for place, task in enumerate(self._tasks):
            if _key(task) == key:
                del self._tasks[place]
                self.assigned.pop(key, None)
                return True
        return False


def _key(task: Task) -> TaskKey:
    return task.id.trace_id, task.id.node, task.id.attempt
