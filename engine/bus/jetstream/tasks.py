"""The queue of tasks on one NATS server or cluster.

In memory: the partition logs can rebuild every task that has no result.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Callable

from nats.aio.client import Client
from nats.js import JetStreamContext
from nats.js.api import DiscardPolicy, RetentionPolicy, StorageType

from engine.bus import subjects
from engine.bus.jetstream.publishing import Publisher, unavailable
from engine.bus.jetstream.queues import JetStreamIntake, consumer
from engine.bus.jetstream.streams import make_stream, state_of
from engine.bus.port import Handle

_BYTES = 1 << 30


class TaskQueue:
    """Errors everywhere: `Unavailable`."""

    def __init__(
        self, client: Client, js: JetStreamContext, publisher: Publisher, replicas: int
    ) -> None:
        self._client = client
        self._js = js
        self._publisher = publisher
        self._replicas = replicas
        self._intakes: set[JetStreamIntake] = set()
        self._life = ""

    async def open(self) -> None:
        """Makes the queue, if it is not there."""
        await make_stream(
            self._js,
            subjects.TASK_STREAM,
            ["flow.task.>"],
            self._replicas,
            retention=RetentionPolicy.WORK_QUEUE,
            storage=StorageType.MEMORY,
            max_bytes=_BYTES,
            discard=DiscardPolicy.NEW,
        )
        self._life = await self.life()

    async def life(self) -> str:
        """Names the queue in its present life: another text means that it lost all."""
        try:
            info = await self._js.stream_info(subjects.TASK_STREAM)
        except Exception as error:
            raise unavailable(error) from error
        return str(info.created)

    async def newest(self) -> int:
        """The number of the newest frame."""
        return (await state_of(self._client, subjects.TASK_STREAM))[0].last_seq

    async def mend(self, lost: Callable[[], None]) -> None:
        """After the connection was away: asks anew for what was asked for. Calls `lost` when the
        queue has lost what it held; at once, for the rest may fail and be tried again."""
        before = self._life
        await self.open()
        if self._life != before:
            lost()
        for intake in list(self._intakes):
            await intake.ensure()
            await intake.again()

    async def offer(
        self, app: str, function: str, priority: int, frame: bytes
    ) -> asyncio.Future[int]:
        """As `Bus.offer_tasks`."""
        return await self._publisher.publish(subjects.task_subject(app, function, priority), frame)

    async def take(
        self, app: str, function: str, handle: Handle, priorities: range
    ) -> JetStreamIntake:
        wanted = [subjects.task_subject(app, function, priority) for priority in priorities]
        config = consumer(f"{app}={function}={priorities.start}", wanted)
        intake = JetStreamIntake(
            self._client, self._js, subjects.TASK_STREAM, config, self._intakes
        )
        await intake.open(handle)
        return intake

    async def backlog(self) -> dict[str, int]:
        """Frames that are not done, by function."""
        try:
            info = await self._js.stream_info(subjects.TASK_STREAM, subjects_filter="flow.task.>")
        except Exception as error:
            raise unavailable(error) from error
        waiting: Counter[str] = Counter()
        for subject, count in (info.state.subjects or {}).items():
            waiting[subjects.function_of(subject)] += count
        return dict(waiting)

    async def close(self) -> None:
        for intake in list(self._intakes):
            await intake.close()
