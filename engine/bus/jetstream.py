"""The bus over NATS JetStream, with nats-py underneath.

One stream per partition log, fenced by `Nats-Expected-Last-Sequence` (the expectation per subject
would refuse all but the first append in flight). One inbox for all acknowledgements of this
connection: an awaitable per frame, never per item.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections.abc import AsyncIterator, Callable
from datetime import UTC, datetime
from typing import Any

import msgspec
import nats
import structlog
from nats.aio.client import Client
from nats.aio.msg import Msg
from nats.js import JetStreamContext
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
from engine.bus.port import FRAME_LIMIT, PRIORITIES, Fenced, Handle, Hear
from engine.errors import Unavailable

CONNECT_PATIENCE = 10.0  # seconds
APPEND_PATIENCE = 30.0  # seconds until an append of unknown fate is given up
_ASK_AGAIN = 5.0  # seconds without an acknowledgement until the log is asked what it holds
_WRONG_LAST_SEQUENCE = 10071
_ACK_WAIT = 30.0  # seconds
_PULL_EXPIRES = 30.0  # seconds
_TASK_BYTES = 1 << 30
_TRIGGER_BYTES = 4 << 30

_log = structlog.get_logger(__name__)


class _Ack(msgspec.Struct):
    seq: int = 0
    error: dict[str, Any] | None = None


_acks = msgspec.json.Decoder(_Ack)


class _Publisher:
    """Publishes frames and matches acknowledgements by a token in the reply subject. What is not
    acknowledged within `_ASK_AGAIN` fails; one sweep a second looks, not a timer per frame."""

    def __init__(self, client: Client) -> None:
        self._client = client
        self._prefix = client.new_inbox()
        self._pending: dict[str, tuple[float, asyncio.Future[int]]] = {}
        self._counter = 0
        self._sweeper: asyncio.Task[None] | None = None

    async def open(self) -> None:
        await self._client.subscribe(f"{self._prefix}.*", cb=self._acknowledged)
        self._sweeper = asyncio.create_task(self._sweep())

    def close(self) -> None:
        if self._sweeper is not None:
            self._sweeper.cancel()
        for _, future in self._pending.values():
            future.cancel()

    async def publish(
        self, subject: str, frame: bytes, headers: dict[str, str] | None = None
    ) -> asyncio.Future[int]:
        """The future gives the stream's sequence, or raises `Fenced` or `Unavailable`."""
        self._counter += 1
        token = str(self._counter)
        loop = asyncio.get_running_loop()
        future: asyncio.Future[int] = loop.create_future()
        self._pending[token] = (loop.time() + _ASK_AGAIN, future)
        try:
            await self._client.publish(
                subject, frame, reply=f"{self._prefix}.{token}", headers=headers
            )
        except Exception as error:
            del self._pending[token]
            raise _unavailable(error) from error
        return future

    async def _acknowledged(self, message: Msg) -> None:
        _, future = self._pending.pop(message.subject.rpartition(".")[2], (0.0, None))
        if future is None or future.done():
            return
        if not message.data:  # 503: no stream listens on this subject
            future.set_exception(Unavailable("the stream is not there", reason="BUS_UNAVAILABLE"))
            return
        ack = _acks.decode(message.data)
        if ack.error is None:
            future.set_result(ack.seq)
        elif ack.error.get("err_code") == _WRONG_LAST_SEQUENCE:
            future.set_exception(Fenced(str(ack.error.get("description"))))
        else:
            description = str(ack.error.get("description"))
            future.set_exception(
                Unavailable(f"the bus refused a frame: {description}", reason="BUS_UNAVAILABLE")
            )

    async def _sweep(self) -> None:
        loop = asyncio.get_running_loop()
        while True:
            await asyncio.sleep(1.0)
            now = loop.time()
            for token, (deadline, future) in list(self._pending.items()):
                if now > deadline:
                    del self._pending[token]
                    if not future.done():
                        future.set_exception(
                            Unavailable("the bus did not answer", reason="BUS_UNAVAILABLE")
                        )


class JetStreamLog:
    """One log stream. Appends of unknown fate are looked up in the stream and sent again."""

    def __init__(self, js: JetStreamContext, publisher: _Publisher, stream: str, subject: str):
        self._js = js
        self._publisher = publisher
        self._stream = stream
        self._subject = subject
        self._newest: tuple[int, asyncio.Future[int]] | None = None  # (expected, outcome)

    async def last(self) -> int:
        try:
            info = await self._js.stream_info(self._stream)
        except Exception as error:
            raise _unavailable(error) from error
        return info.state.last_seq

    async def append(self, frame: bytes, expected: int) -> asyncio.Future[int]:
        outcome: asyncio.Future[int] = asyncio.get_running_loop().create_future()
        newest, self._newest = self._newest, (expected, outcome)
        before = None
        if newest is not None and newest[0] == expected - 1 and not _well(newest[1]):
            before = newest[1]
        try:
            sent = await self._publish(frame, expected)
        except BaseException:
            outcome.cancel()
            raise
        sent.add_done_callback(lambda done: self._landed(done, outcome, frame, expected, before))
        return outcome

    async def _publish(self, frame: bytes, expected: int) -> asyncio.Future[int]:
        headers = {"Nats-Expected-Last-Sequence": str(expected)}
        return await self._publisher.publish(self._subject, frame, headers)

    def _landed(
        self,
        sent: asyncio.Future[int],
        outcome: asyncio.Future[int],
        frame: bytes,
        expected: int,
        before: asyncio.Future[int] | None,
    ) -> None:
        if outcome.done() or sent.cancelled():
            outcome.cancel()
        elif sent.exception() is None and (before is None or _well(before)):
            outcome.set_result(sent.result())
        else:
            fenced = isinstance(sent.exception(), Fenced)
            task = asyncio.ensure_future(self._learn(frame, expected, fenced, before))
            task.add_done_callback(lambda done: _pass_on(done, outcome))

    async def _learn(
        self, frame: bytes, expected: int, fenced: bool, before: asyncio.Future[int] | None
    ) -> int:
        """What became of a frame whose append failed or was not answered: the log itself is
        asked, and the frame sent again where it is not there. The append before it comes first:
        when that one was lost on its way, this one was refused for no other reason."""
        if before is not None:
            await asyncio.wait([before])
            if not _well(before):
                lost = before.cancelled() or not isinstance(before.exception(), Fenced)
                if lost:
                    raise Unavailable("the append before failed", reason="BUS_UNAVAILABLE")
                raise Fenced(f"{self._stream}: the append before was fenced")
            fenced = False
        loop = asyncio.get_running_loop()
        give_up = loop.time() + APPEND_PATIENCE
        while loop.time() < give_up:
            with contextlib.suppress(Unavailable):
                # The first of two sendings may have been the one that was stored.
                stored = await self._stored(expected + 1)
                if stored == frame:
                    return expected + 1
                if stored is not None or fenced:
                    raise Fenced(f"{self._stream} does not end at {expected}")
                try:
                    return await (await self._publish(frame, expected))
                except Fenced:
                    fenced = True
        raise Unavailable("the log did not answer", reason="BUS_UNAVAILABLE")

    async def _stored(self, sequence: int) -> bytes | None:
        try:
            message = await self._js.get_msg(self._stream, sequence)
        except NotFoundError:
            return None
        except Exception as error:
            await asyncio.sleep(0.2)
            raise _unavailable(error) from error
        return message.data

    async def read(self, after: int, through: int) -> AsyncIterator[tuple[int, bytes]]:
        if after >= through:
            return
        try:
            state = (await self._js.stream_info(self._stream)).state
        except Exception as error:
            raise _unavailable(error) from error
        through = min(through, state.last_seq)
        if max(after + 1, state.first_seq) > through or not state.messages:
            return
        async for sequence, frame in self.follow(after):
            yield sequence, frame
            if sequence >= through:
                return

    async def follow(self, after: int) -> AsyncIterator[tuple[int, bytes]]:
        try:
            subscription = await self._js.subscribe(
                self._subject,
                stream=self._stream,
                ordered_consumer=True,
                config=ConsumerConfig(
                    deliver_policy=DeliverPolicy.BY_START_SEQUENCE, opt_start_seq=after + 1
                ),
            )
        except Exception as error:
            raise _unavailable(error) from error
        try:
            async for message in subscription.messages:
                yield message.metadata.sequence.stream, message.data
        finally:
            with contextlib.suppress(Exception):
                await subscription.unsubscribe()

    async def purge(self, through: int) -> None:
        try:
            await self._js.purge_stream(self._stream, seq=through + 1)
        except Exception as error:
            raise _unavailable(error) from error


class _Delivery:
    __slots__ = ("_message", "redelivered", "sequence")

    def __init__(self, message: Msg) -> None:
        self._message = message
        metadata = message.metadata
        self.sequence: int = metadata.sequence.stream
        self.redelivered: bool = metadata.num_delivered > 1

    @property
    def data(self) -> bytes:
        return self._message.data

    async def ack(self) -> None:
        await self._say(b"+ACK")

    async def give_back(self, delay: float = 0.0) -> None:
        body = json.dumps({"delay": int(delay * 1e9)}).encode() if delay else b""
        await self._say(b"-NAK " + body if body else b"-NAK")

    async def working(self) -> None:
        await self._say(b"+WPI")

    async def _say(self, word: bytes) -> None:
        # An acknowledgement that gets lost leads to a redelivery, which is recognised.
        with contextlib.suppress(nats.errors.Error):
            await self._message._client.publish(self._message.reply, word)


class _Intake:
    """A pull consumer with at most one request under way, made anew when it is used up."""

    def __init__(
        self, client: Client, js: JetStreamContext, stream: str, config: ConsumerConfig
    ) -> None:
        self._client = client
        self._js = js
        self._stream = stream
        self._config = config
        self._inbox = client.new_inbox()
        self._wanted = 0
        self._requested = 0
        self._deadline = 0.0
        self._subscription: Any = None
        self._keeper: asyncio.Task[None] | None = None
        self._handle: Handle | None = None
        self._closed = False

    async def open(self, handle: Handle) -> None:
        self._handle = handle
        await self.ensure()
        self._subscription = await self._client.subscribe(self._inbox, cb=self._arrived)
        self._keeper = asyncio.create_task(self._keep())

    async def ensure(self) -> None:
        """Makes the consumer, if it is not there."""
        try:
            await self._js.add_consumer(self._stream, self._config)
        except Exception as error:
            raise _unavailable(error) from error

    async def ask(self, frames: int) -> None:
        self._wanted = frames
        await self._request()

    async def floor(self) -> int:
        try:
            info = await self._js.consumer_info(self._stream, self._config.durable_name or "")
        except Exception as error:
            raise _unavailable(error) from error
        return info.ack_floor.stream_seq if info.ack_floor else 0

    async def close(self) -> None:
        self._closed = True
        self._wanted = 0
        if self._keeper is not None:
            self._keeper.cancel()
        if self._subscription is not None:
            with contextlib.suppress(Exception):
                await self._subscription.unsubscribe()

    async def _request(self) -> None:
        if self._closed or self._requested or self._wanted <= 0:
            return
        self._requested = self._wanted
        self._deadline = asyncio.get_running_loop().time() + _PULL_EXPIRES + 2
        request = {"batch": self._requested, "expires": int(_PULL_EXPIRES * 1e9)}
        subject = f"$JS.API.CONSUMER.MSG.NEXT.{self._stream}.{self._config.durable_name}"
        try:
            await self._client.publish(subject, json.dumps(request).encode(), reply=self._inbox)
        except nats.errors.Error:
            self._requested = 0  # asked again by `_keep` once the connection is back

    async def _arrived(self, message: Msg) -> None:
        status = message.headers.get("Status") if message.headers else None
        if status is not None and not message.reply:
            # The request is over: expired, or the consumer or the server went away.
            self._requested = 0
            if status in ("404", "503"):
                await asyncio.sleep(0.2)
        else:
            self._requested -= 1
            self._wanted = max(0, self._wanted - 1)
            assert self._handle is not None
            await self._handle(_Delivery(message))
        await self._request()

    async def _keep(self) -> None:
        """Asks again when a request was lost together with the connection."""
        while True:
            await asyncio.sleep(1.0)
            late = asyncio.get_running_loop().time() > self._deadline
            if self._requested and late:
                self._requested = 0
            await self._request()

    async def again(self) -> None:
        """After a reconnect: what was asked for is asked anew."""
        self._requested = 0
        await self._request()


class JetStreamBus:
    """`replicas` is 1 on one server and 3 in a cluster; `partitions` is fixed at creation."""

    def __init__(self, client: Client, partitions: int, replicas: int) -> None:
        self._client = client
        self._js = client.jetstream(timeout=5.0)
        self._partitions = partitions
        self._replicas = replicas
        self._publisher = _Publisher(client)
        self._intakes: set[_Intake] = set()
        self._tasks_lost: dict[Callable[[], None], None] = {}
        self._tasks_created: datetime | None = None
        self._mending: asyncio.Task[None] | None = None
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
                    raise _unavailable(error) from error
        except Exception as error:
            raise _unavailable(error) from error

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

    async def take_triggers(self, partition: int, handle: Handle) -> _Intake:
        name = f"partition-{partition}"
        # A new consumer: what the owner before took and did not acknowledge comes at once, not
        # when its time runs out. There is one owner, so nobody else is disturbed.
        with contextlib.suppress(NotFoundError):
            try:
                await self._js.delete_consumer(subjects.TRIGGER_STREAM, name)
            except NotFoundError:
                raise
            except Exception as error:
                raise _unavailable(error) from error
        return await self._take(
            subjects.TRIGGER_STREAM, name, [f"flow.trigger.{partition}.*"], handle
        )

    async def take_tasks(
        self, app: str, function: str, handle: Handle, priorities: range = PRIORITIES
    ) -> _Intake:
        wanted = [subjects.task_subject(app, function, priority) for priority in priorities]
        name = f"{app}={function}={priorities.start}"
        return await self._take(subjects.TASK_STREAM, name, wanted, handle)

    async def _take(self, stream: str, name: str, wanted: list[str], handle: Handle) -> _Intake:
        config = ConsumerConfig(
            durable_name=name,
            filter_subjects=wanted,
            ack_policy=AckPolicy.EXPLICIT,
            deliver_policy=DeliverPolicy.ALL,
            ack_wait=_ACK_WAIT,
            max_ack_pending=100_000,
            max_deliver=-1,
        )
        intake = _Intake(self._client, self._js, stream, config)
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
            raise _unavailable(error) from error
        return _Listening(subscription)

    async def bury(self, subject: str, frame: bytes, code: str, message: str) -> None:
        headers = {
            "Flow-Code": code,
            "Flow-Message": message.replace("\n", " ")[:1_000],
            "Flow-At": datetime.now(UTC).isoformat(),
        }
        buried = await self._publisher.publish(f"flow.dead.{subject}", frame, headers)
        await asyncio.wait_for(buried, 5.0)

    async def tasks_identity(self) -> str:
        try:
            info = await self._js.stream_info(subjects.TASK_STREAM)
        except Exception as error:
            raise _unavailable(error) from error
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


def _well(outcome: asyncio.Future[int]) -> bool:
    return outcome.done() and not outcome.cancelled() and outcome.exception() is None


def _pass_on(done: asyncio.Future[int], outcome: asyncio.Future[int]) -> None:
    error = None if done.cancelled() else done.exception()
    if outcome.done():
        return
    if done.cancelled():
        outcome.cancel()
    elif error is not None:
        outcome.set_exception(error)
    else:
        outcome.set_result(done.result())


def _unavailable(error: Exception) -> Unavailable:
    if isinstance(error, Unavailable):
        return error
    return Unavailable(f"the bus is out of reach: {error!r}", reason="BUS_UNAVAILABLE")
