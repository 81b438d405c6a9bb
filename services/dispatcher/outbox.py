"""What leaves a partition after a commit: task frames, cancellations, notifications."""

from __future__ import annotations

import asyncio
import contextlib
from collections import defaultdict
from collections.abc import Sequence
from typing import Any

import msgspec
import structlog

from engine.bus import subjects
from engine.bus.port import MAX_FRAME, Bus
from engine.core.failure import Code
from engine.errors import Unavailable
from magicflow.v1.task_pb2 import Task, TaskFrame, TaskId

TASKS_PER_FRAME = 64
_log = structlog.get_logger(__name__)


class Outbox:
    """Sends until the bus has it. Nothing here is the only copy: whatever is unsent when the
    owner ends is owed by the state and sent by the next owner."""

    def __init__(self, bus: Bus, partition: int, epoch: int) -> None:
        self._bus = bus
        self._partition = partition
        self._epoch = epoch
        self._sending: set[asyncio.Task[None]] = set()
        self._offered: set[asyncio.Future[int]] = set()

    async def dispatch(self, tasks: list[Task]) -> None:
        """Frames the tasks by function and priority and puts them on their way."""
        groups: dict[tuple[str, int], list[Task]] = defaultdict(list)
        for task in tasks:
            groups[task.function, task.priority].append(task)
        for (function, priority), group in groups.items():
            for batch in _batches(group):
                await self._send(function, priority, batch)

    async def _send(self, function: str, priority: int, tasks: list[Task]) -> None:
        frame = TaskFrame(
            partition=self._partition, epoch=self._epoch, function=function, tasks=tasks
        ).SerializeToString()
        try:
            sent = await self._offer(function, priority, frame)
        except Unavailable:
            self._repeat(function, priority, frame)
        else:
            self._offered.add(sent)
            sent.add_done_callback(lambda done: self._answered(done, function, priority, frame))

    async def _offer(self, function: str, priority: int, frame: bytes) -> asyncio.Future[int]:
        app, _, name = function.partition("/")
        return await self._bus.offer_tasks(app, name, priority, frame)

    def _answered(
        self, sent: asyncio.Future[int], function: str, priority: int, frame: bytes
    ) -> None:
        self._offered.discard(sent)
        if not sent.cancelled() and sent.exception() is not None:
            self._repeat(function, priority, frame)

    def _repeat(self, function: str, priority: int, frame: bytes) -> None:
        task = asyncio.ensure_future(self._insist(function, priority, frame))
        self._sending.add(task)
        task.add_done_callback(self._sending.discard)

    async def _insist(self, function: str, priority: int, frame: bytes) -> None:
        pause = 0.1
        while True:
            await asyncio.sleep(pause)
            pause = min(2 * pause, 5.0)
            try:
                await (await self._offer(function, priority, frame))
            except Unavailable as error:
                _log.warning("task frame not accepted yet", function=function, why=str(error))
            else:
                return

    async def sent(self, patience: float) -> bool:
        """Whether the bus has all task frames, after waiting up to `patience` seconds."""
        deadline = asyncio.get_running_loop().time() + patience
        while self._offered or self._sending:
            open_: set[asyncio.Future[Any]] = {*self._offered, *self._sending}
            left = deadline - asyncio.get_running_loop().time()
            if left <= 0:
                return False
            await asyncio.wait(open_, timeout=left, return_when=asyncio.FIRST_COMPLETED)
        return True

    async def bury(self, poisoned: Sequence[tuple[Task, str]]) -> None:
        """Puts tasks aside, each with the reason, for whoever finds out why their workers end;
        once, and they may be lost."""
        for task, why in poisoned:
            frame = TaskFrame(
                partition=self._partition, epoch=self._epoch, function=task.function, tasks=[task]
            )
            app, _, name = task.function.partition("/")
            origin = subjects.task_subject(app, name, task.priority)
            with contextlib.suppress(Unavailable):
                await self._bus.dead.bury(origin, frame.SerializeToString(), Code.WORKER_LOST, why)

    async def cancel(self, tasks: list[TaskId]) -> None:
        """Tells every gateway; the one that holds a task tells its worker."""
        frame = TaskFrame(partition=self._partition, epoch=self._epoch)
        frame.tasks.extend(Task(id=task) for task in tasks)
        await self._bus.tell(subjects.CANCEL, frame.SerializeToString())

    async def notify(self, outcomes: list[tuple[bytes, bytes]]) -> None:
        """Tells whoever waits: (trace, outcome message)."""
        data = msgspec.msgpack.encode(outcomes)
        await self._bus.tell(subjects.done_subject(self._partition), data)

    async def close(self) -> None:
        """Waits a moment for what is under way."""
        if self._sending:
            await asyncio.wait(self._sending, timeout=2.0)
        for task in self._sending:
            task.cancel()


def _batches(tasks: list[Task]) -> list[list[Task]]:
    batches: list[list[Task]] = [[]]
    size = 0
    for task in tasks:
        weight = task.ByteSize()
        if batches[-1] and (len(batches[-1]) == TASKS_PER_FRAME or size + weight > MAX_FRAME):
            batches.append([])
            size = 0
        batches[-1].append(task)
        size += weight
    return batches
