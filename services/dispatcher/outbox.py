"""What leaves a partition after a commit: task frames, cancellations, notifications."""

from __future__ import annotations

import asyncio
import contextlib
from collections import defaultdict

import structlog

from engine.bus import subjects
from engine.bus.port import MAX_FRAME, Bus
from engine.errors import Unavailable
from magicflow.v1.task_pb2 import Task, TaskFrame, TaskId

TASKS_PER_FRAME = 64
PATIENCE = 5.0  # seconds until an unacknowledged frame is sent again
_log = structlog.get_logger(__name__)


class Outbox:
    """Sends until the bus has it. Nothing here is the only copy: whatever is unsent when the
    owner ends is owed by the state and sent by the next owner."""

    def __init__(self, bus: Bus, partition: int, epoch: int) -> None:
        self._bus = bus
        self._partition = partition
        self._epoch = epoch
        self._sending: set[asyncio.Task[None]] = set()

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
        app, _, name = function.partition("/")
        sent: asyncio.Future[int] | None = None
        with contextlib.suppress(Unavailable):
            sent = await self._bus.offer_tasks(app, name, priority, frame)
        watcher = asyncio.create_task(self._confirm(sent, app, name, priority, frame))
        self._sending.add(watcher)
        watcher.add_done_callback(self._sending.discard)

    async def _confirm(
        self,
        sent: asyncio.Future[int] | None,
        app: str,
        name: str,
        priority: int,
        frame: bytes,
    ) -> None:
        pause = 0.1
        while True:
            try:
                if sent is not None:
                    await asyncio.wait_for(sent, PATIENCE)
                    return
            except (TimeoutError, Unavailable) as error:
                _log.warning("task frame not accepted yet", function=f"{app}/{name}", why=str(error))
            await asyncio.sleep(pause)
            pause = min(2 * pause, 5.0)
            sent = None
            with contextlib.suppress(Unavailable):
                sent = await self._bus.offer_tasks(app, name, priority, frame)

    async def cancel(self, tasks: list[TaskId]) -> None:
        """Tells every gateway; the one that holds a task tells its worker."""
        frame = TaskFrame(partition=self._partition, epoch=self._epoch)
        frame.tasks.extend(Task(id=task) for task in tasks)
        await self._bus.tell(subjects.CANCEL, frame.SerializeToString())

    async def notify(self, trace_id: bytes, outcome: bytes) -> None:
        await self._bus.tell(subjects.done_subject(trace_id.hex()), outcome)

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
