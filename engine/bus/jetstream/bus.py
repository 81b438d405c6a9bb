"""The bus over NATS JetStream, with nats-py underneath."""

from __future__ import annotations

import asyncio
import contextlib
from collections import Counter
from collections.abc import Callable
from datetime import datetime
from typing import Any

import nats
import structlog
from nats.aio.client import Client
from nats.aio.msg import Msg
from nats.js.api import (
    AckPolicy,
    ConsumerConfig,
    DeliverPolicy,
    DiscardPolicy,
    RetentionPolicy,
    StorageType,
    StreamConfig,
)
from nats.js.errors import APIError, NotFoundError

from engine.bus import subjects
from engine.bus.jetstream.dead import JetStreamDeadLetters
from engine.bus.jetstream.logs import JetStreamLog
from engine.bus.jetstream.publishing import Publisher, unavailable
from engine.bus.jetstream.queues import JetStreamIntake
from engine.bus.port import FRAME_LIMIT, PRIORITIES, Handle, Hear
from engine.errors import Unavailable

CONNECT_PATIENCE = 10.0  # seconds
_ACK_WAIT = 30.0  # seconds
_TASK_BYTES = 1 << 30
_TRIGGER_BYTES = 4 << 30

_log = structlog.get_logger(__name__)


class JetStreamBus:
    """`replicas` is 1 on one server and 3 in a cluster; `partitions` is fixed at creation."""

    def __init__(self, client: Client, partitions: int, replicas: int) -> None:
        self._client = client
        self._js = client.jetstream(timeout=5.0)
        self._partitions = partitions
        self._replicas = replicas
        self._publisher = Publisher(client)
        self.dead = JetStreamDeadLetters(client, self._js, self._publisher)
        self._intakes: set[JetStreamIntake] = set()
        self._tasks_lost: dict[Callable[[], None], None] = {}
        self._tasks_created: datetime | None = None
        self._mending: asyncio.Task[None] | None = None
        self._trouble: list[tuple[str, str, str]] = []
        self.closing = False

    async def open(self) -> None:
        """Checks the server and makes the streams that are missing."""
        if self._client.max_payload < FRAME_LIMIT:
            raise Unavailable(
                f"nats-server allows messages of {self._client.max_payload} bytes; "
                f"magicflow needs max_payload: {FRAME_LIMIT} in its configuration",
                reason="BUS_UNAVAILABLE",
            )
        await self._publisher.open()
        for partition in range(self._partitions):
            await self._stream(subjects.log_stream(partition), [subjects.log_subject(partition)])
            await self._stream(
                subjects.checkpoint_stream(partition), [subjects.checkpoint_subject(partition)]
            )
        await self._stream(
            subjects.TRIGGER_STREAM,
            ["flow.trigger.>"],
            retention=RetentionPolicy.WORK_QUEUE,
            max_bytes=_TRIGGER_BYTES,
            discard=DiscardPolicy.NEW,
        )
        await self._stream(subjects.DEAD_STREAM, ["flow.dead.>"], max_msgs=100_000)
        await self._task_stream()

    async def _task_stream(self) -> None:
        # In memory: the partition logs can rebuild every task that has no result.
        await self._stream(
            subjects.TASK_STREAM,
            ["flow.task.>"],
            retention=RetentionPolicy.WORK_QUEUE,
            storage=StorageType.MEMORY,
            max_bytes=_TASK_BYTES,
            discard=DiscardPolicy.NEW,
        )
        self._tasks_created = (await self._js.stream_info(subjects.TASK_STREAM)).created

    async def _stream(
        self,
        name: str,
        names: list[str],
        *,
        retention: RetentionPolicy = RetentionPolicy.LIMITS,
        storage: StorageType = StorageType.FILE,
        max_bytes: int = -1,
        max_msgs: int = -1,
        discard: DiscardPolicy = DiscardPolicy.OLD,
    ) -> None:
        config = StreamConfig(
            name=name,
            subjects=names,
            retention=retention,
            storage=storage,
            max_bytes=max_bytes,
            max_msgs=max_msgs,
            discard=discard,
            num_replicas=self._replicas,
            duplicate_window=0.1,
            allow_direct=True,
        )
        try:
            await self._js.stream_info(name)
        except NotFoundError:
            try:
                await self._js.add_stream(config)
            except APIError as error:
                if error.err_code != 10058:  # another instance was first
                    raise unavailable(error) from error
        except Exception as error:
            raise unavailable(error) from error

    def reconnected(self) -> None:
        """Called by the connection: asks anew for what was asked for, and looks whether the
        task queue survived."""
        self._mending = asyncio.create_task(self._mend())

    async def _mend(self) -> None:
        for pause in (0.0, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0):
            await asyncio.sleep(pause)
            try:
                before = self._tasks_created
                await self._task_stream()
                lost = self._tasks_created != before
                for intake in list(self._intakes):
                    await intake.ensure()
                    await intake.again()
                if lost:
                    for call in list(self._tasks_lost):
                        call()
                return
            except Unavailable as error:
                _log.warning("bus not ready after a reconnect", error=str(error))

    def partition_log(self, partition: int) -> JetStreamLog:
        return JetStreamLog(
            self._js,
            self._publisher,
            subjects.log_stream(partition),
            subjects.log_subject(partition),
        )

    def checkpoint_log(self, partition: int) -> JetStreamLog:
        return JetStreamLog(
            self._js,
            self._publisher,
            subjects.checkpoint_stream(partition),
            subjects.checkpoint_subject(partition),
        )

    async def offer_trigger(
        self, partition: int, priority: int, frame: bytes
    ) -> asyncio.Future[int]:
        return await self._publisher.publish(subjects.trigger_subject(partition, priority), frame)

    async def offer_tasks(
        self, app: str, function: str, priority: int, frame: bytes
    ) -> asyncio.Future[int]:
        return await self._publisher.publish(subjects.task_subject(app, function, priority), frame)

    async def take_triggers(self, partition: int, handle: Handle) -> JetStreamIntake:
        name = f"partition-{partition}"
        # A new consumer: what the owner before took and did not acknowledge comes at once, not
        # when its time runs out. There is one owner, so nobody else is disturbed.
        with contextlib.suppress(NotFoundError):
            try:
                await self._js.delete_consumer(subjects.TRIGGER_STREAM, name)
            except NotFoundError:
                raise
            except Exception as error:
                raise unavailable(error) from error
        return await self._take(
            subjects.TRIGGER_STREAM, name, [f"flow.trigger.{partition}.*"], handle
        )

    async def take_tasks(
        self, app: str, function: str, handle: Handle, priorities: range = PRIORITIES
    ) -> JetStreamIntake:
        wanted = [subjects.task_subject(app, function, priority) for priority in priorities]
        name = f"{app}={function}={priorities.start}"
        return await self._take(subjects.TASK_STREAM, name, wanted, handle)

    async def _take(
        self, stream: str, name: str, wanted: list[str], handle: Handle
    ) -> JetStreamIntake:
        config = ConsumerConfig(
            durable_name=name,
            filter_subjects=wanted,
            ack_policy=AckPolicy.EXPLICIT,
            deliver_policy=DeliverPolicy.ALL,
            ack_wait=_ACK_WAIT,
            max_ack_pending=100_000,
            max_deliver=-1,
        )
        intake = JetStreamIntake(self._client, self._js, stream, config)
        await intake.open(handle)
        self._intakes.add(intake)
        return intake

    async def tell(self, subject: str, data: bytes) -> None:
        with contextlib.suppress(nats.errors.Error):
            await self._client.publish(subject, data)

    async def listen(self, subject: str, hear: Hear) -> _Listening:
        async def pass_on(message: Msg) -> None:
            await hear(message.subject, message.data)

        try:
            subscription = await self._client.subscribe(subject, cb=pass_on)
            await self._client.flush(timeout=5)
        except Exception as error:
            raise unavailable(error) from error
        return _Listening(subscription)

    async def task_backlog(self) -> dict[str, int]:
        try:
            info = await self._js.stream_info(subjects.TASK_STREAM, subjects_filter="flow.task.>")
        except Exception as error:
            raise unavailable(error) from error
        waiting: Counter[str] = Counter()
        for subject, count in (info.state.subjects or {}).items():
            waiting[subjects.function_of(subject)] += count
        return dict(waiting)

    def trouble(self) -> list[tuple[str, str, str]]:
        return list(self._trouble)

    async def tasks_identity(self) -> str:
        try:
            info = await self._js.stream_info(subjects.TASK_STREAM)
        except Exception as error:
            raise unavailable(error) from error
        return str(info.created)

    def on_tasks_lost(self, call: Callable[[], None]) -> Callable[[], None]:
        self._tasks_lost[call] = None
        return lambda: self._tasks_lost.pop(call, None)

    async def close(self) -> None:
        self.closing = True
        if self._mending is not None:
            self._mending.cancel()
        for intake in list(self._intakes):
            await intake.close()
        self._publisher.close()
        with contextlib.suppress(Exception):
            await asyncio.wait_for(self._client.close(), 5.0)


class _Listening:
    def __init__(self, subscription: Any) -> None:
        self._subscription = subscription

    async def close(self) -> None:
        with contextlib.suppress(Exception):
            await self._subscription.unsubscribe()


async def connect(
    servers: list[str], *, partitions: int, replicas: int = 1, name: str = "magicflow"
) -> JetStreamBus:
    """A bus on these servers. Errors: `Unavailable` with a sentence that says what to do."""
    bus: JetStreamBus | None = None

    async def reconnected() -> None:
        _log.info("bus reconnected")
        if bus is not None:
            bus.reconnected()

    async def disconnected() -> None:
        if bus is not None and not bus.closing:
            _log.warning("bus disconnected")

    async def failed(error: Exception) -> None:
        _log.warning("bus error", error=repr(error))

    try:
        client = await asyncio.wait_for(
            nats.connect(
                servers,
                name=name,
                connect_timeout=5,
                allow_reconnect=True,
                max_reconnect_attempts=-1,
                reconnect_time_wait=0.25,
                ping_interval=10,
                max_outstanding_pings=2,
                pending_size=64 * 1024 * 1024,
                reconnected_cb=reconnected,
                disconnected_cb=disconnected,
                error_cb=failed,
            ),
            CONNECT_PATIENCE,
        )
    except Exception as error:
        raise Unavailable(
            f"no nats-server answers at {', '.join(servers)}: {error!r}",
            reason="BUS_UNAVAILABLE",
            mend="start nats-server with JetStream, or let `magicflow dev` start its own",
        ) from error
    bus = JetStreamBus(client, partitions, replicas)
    try:
        await bus.open()
    except BaseException:
        await bus.close()
        raise
    return bus
