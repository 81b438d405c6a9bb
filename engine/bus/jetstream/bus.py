"""The bus over NATS JetStream, with nats-py underneath."""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import nats
import structlog
from nats.aio.client import Client
from nats.aio.msg import Msg
from nats.js.api import DiscardPolicy, RetentionPolicy
from nats.js.errors import NotFoundError

from engine.bus import subjects
from engine.bus.balancing import Balance, Broker
from engine.bus.jetstream.brokers import BrokerSet, TaskIntake
from engine.bus.jetstream.dead import JetStreamDeadLetters
from engine.bus.jetstream.dialling import dial
from engine.bus.jetstream.durability import check_durable, check_version
from engine.bus.jetstream.logs import JetStreamLog
from engine.bus.jetstream.publishing import Publisher, unavailable
from engine.bus.jetstream.queues import JetStreamIntake, consumer
from engine.bus.jetstream.streams import make_stream
from engine.bus.jetstream.tasks import TaskQueue
from engine.bus.port import FRAME_LIMIT, PRIORITIES, Handle, Hear
from engine.errors import Unavailable

CONNECT_PATIENCE = 10.0  # seconds
MEND_PAUSES = (0.0, 0.2, 0.5, 1.0, 2.0, 5.0)  # seconds; the last repeats
_TRIGGER_BYTES = 4 << 30
_UNVERIFIED = "nobody knows whether nats-server flushes first: see MAGICFLOW_NATS_MONITOR"

_log = structlog.get_logger(__name__)


class JetStreamBus:
    """`replicas` is 1 on one server and 3 in a cluster; `partitions` is fixed at creation."""

    def __init__(
        self,
        client: Client,
        partitions: int,
        replicas: int,
        name: str,
        monitors: Sequence[str] = (),
    ) -> None:
        self._client = client
        self._js = client.jetstream(timeout=5.0)
        self._partitions = partitions
        self._replicas = replicas
        self._name = name
        self._monitors = list(monitors)
        self._unverified: list[str] = []  # monitoring endpoints that did not answer
        self._publisher = Publisher(client)
        self.dead = JetStreamDeadLetters(client, self._js, self._publisher)
        self._tasks = TaskQueue(client, self._js, self._publisher, replicas)
        self._brokers: dict[str, BrokerSet] = {}
        self._triggers: set[JetStreamIntake] = set()
        self._tasks_lost: dict[Callable[[str], None], None] = {}
        self._mending: asyncio.Task[None] | None = None
        self.closing = False

    async def open(self) -> None:
        """Checks the server and makes the streams that are missing."""
        check_version(str(self._client.connected_server_version))
        self._unverified = await check_durable(self._monitors) if self._monitors else [""]
        if not self._monitors:
            _log.warning("how the bus flushes is not known", mend="set MAGICFLOW_NATS_MONITOR")
        if self._client.max_payload < FRAME_LIMIT:
            raise Unavailable(
                f"nats-server allows messages of {self._client.max_payload} bytes; "
                f"magicflow needs max_payload: {FRAME_LIMIT} in its configuration",
                reason="BUS_UNAVAILABLE",
            )
        await self._publisher.open()
        for partition in range(self._partitions):
            await self._make(subjects.log_stream(partition), subjects.log_subject(partition))
            await self._make(
                subjects.checkpoint_stream(partition), subjects.checkpoint_subject(partition)
            )
        await self._make(
            subjects.TRIGGER_STREAM,
            "flow.trigger.>",
            retention=RetentionPolicy.WORK_QUEUE,
            max_bytes=_TRIGGER_BYTES,
            discard=DiscardPolicy.NEW,
        )
        await self._make(subjects.DEAD_STREAM, "flow.dead.>", max_msgs=100_000)
        await self._tasks.open()

    async def _make(self, stream: str, subject: str, **options: Any) -> None:
        await make_stream(self._js, stream, [subject], self._replicas, **options)

    def reconnected(self) -> None:
        """Called by the connection: asks anew for what was asked for, and looks whether the
        task queue survived."""
        if self._mending is not None:
            self._mending.cancel()
        self._mending = asyncio.create_task(self._mend())

    async def _mend(self) -> None:
        attempt = 0
        while True:
            await asyncio.sleep(MEND_PAUSES[min(attempt, len(MEND_PAUSES) - 1)])
            attempt += 1
            try:
                await self._tasks.mend(lambda: self._say_lost(""))
                for intake in list(self._triggers):
                    await intake.ensure()
                    await intake.again()
                return
            except Unavailable as error:
                _log.warning("bus not ready after a reconnect", error=str(error))

    # Logs and triggers.

    def partition_log(self, partition: int) -> JetStreamLog:
        return JetStreamLog(
            self._client,
            self._js,
            self._publisher,
            subjects.log_stream(partition),
            subjects.log_subject(partition),
        )

    def checkpoint_log(self, partition: int) -> JetStreamLog:
        return JetStreamLog(
            self._client,
            self._js,
            self._publisher,
            subjects.checkpoint_stream(partition),
            subjects.checkpoint_subject(partition),
        )

    async def offer_trigger(
        self, partition: int, priority: int, frame: bytes
    ) -> asyncio.Future[int]:
        return await self._publisher.publish(subjects.trigger_subject(partition, priority), frame)

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
        config = consumer(name, [f"flow.trigger.{partition}.*"])
        intake = JetStreamIntake(
            self._client, self._js, subjects.TRIGGER_STREAM, config, self._triggers
        )
        await intake.open(handle)
        return intake

    # Tasks, on the common queue or on the app's own brokers.

    async def use_brokers(
        self, app: str, brokers: tuple[Broker, ...], policy: Balance = "round_robin"
    ) -> None:
        """From now on the app's tasks travel over these; none: over the common queue."""
        await self._set(app).change(brokers, policy)

    def _set(self, app: str) -> BrokerSet:
        found = self._brokers.get(app)
        if found is None:
            found = self._brokers[app] = BrokerSet(app, self._name, self._say_lost)
        return found

    async def offer_tasks(
        self, app: str, function: str, priority: int, frame: bytes
    ) -> asyncio.Future[int]:
        brokers = self._brokers.get(app)
        if brokers is not None and brokers.links:
            return await brokers.offer(function, priority, frame)
        return await self._tasks.offer(app, function, priority, frame)

    async def take_tasks(
        self, app: str, function: str, handle: Handle, priorities: range = PRIORITIES
    ) -> TaskIntake:
        intake = TaskIntake(self._set(app), function, handle, priorities)
        await intake.open(self._tasks)
        return intake

    async def task_backlog(self) -> dict[str, int]:
        waiting = Counter(await self._tasks.backlog())
        for brokers in list(self._brokers.values()):
            waiting.update(await brokers.backlog())
        return dict(waiting)

    async def tasks_identity(self) -> str:
        return json.dumps(await self._lives(), sort_keys=True)

    async def tasks_lost_since(self, identity: str) -> set[str]:
        now = await self._lives()
        before: Mapping[str, str] = json.loads(identity)
        gone = {name for name, life in before.items() if not life or now.get(name) != life}
        return {name.partition("/")[0] for name in gone}

    async def _lives(self) -> dict[str, str]:
        """The present life of every queue: of the common one under an empty name, of brokers
        under `app/broker`."""
        lives = {"": await self._tasks.life()}
        for app, brokers in list(self._brokers.items()):
            lives |= {f"{app}/{name}": life for name, life in (await brokers.lives()).items()}
        return lives

    def on_tasks_lost(self, call: Callable[[str], None]) -> Callable[[], None]:
        self._tasks_lost[call] = None
        return lambda: self._tasks_lost.pop(call, None)

    def _say_lost(self, app: str) -> None:
        for call in list(self._tasks_lost):
            call(app)

    # Notes.

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

    def trouble(self) -> list[tuple[str, str, str]]:
        unknown = [("BUS_UNVERIFIED", monitor, _UNVERIFIED) for monitor in self._unverified]
        return unknown + [
            ("BROKER_DOWN", f"{app}/{name}", "the broker does not answer; its app uses the others")
            for app, brokers in self._brokers.items()
            for name in brokers.down()
        ]

    async def close(self) -> None:
        self.closing = True
        if self._mending is not None:
            self._mending.cancel()
        for brokers in list(self._brokers.values()):
            await brokers.close()
        for intake in list(self._triggers):
            await intake.close()
        await self._tasks.close()
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
    servers: list[str],
    *,
    partitions: int,
    replicas: int = 1,
    name: str = "magicflow",
    monitors: Sequence[str] = (),
) -> JetStreamBus:
    """A bus on these servers. `monitors` are their monitoring endpoints, which say whether they
    keep what they acknowledge. Errors: `Unavailable` with a sentence that says what to do."""
    bus: JetStreamBus | None = None

    def up() -> None:
        if bus is not None:
            bus.reconnected()

    def down() -> None:
        if bus is not None and not bus.closing:
            _log.warning("bus disconnected")

    client = await dial(servers, name, up, down, patience=CONNECT_PATIENCE)
    bus = JetStreamBus(client, partitions, replicas, name, monitors)
    try:
        await bus.open()
    except BaseException:
        await bus.close()
        raise
    return bus
