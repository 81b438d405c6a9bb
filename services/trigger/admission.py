"""Whether a trigger may start a trace, and its durable way to the partition's owner.

Triggers that arrive while an append is under way share the next one: one frame per partition.
"""

from __future__ import annotations

import asyncio
import contextlib

import grpc.aio
import msgspec

from engine.bus.port import MAX_FRAME, Bus
from engine.bus.triggers import StartTrace, encode_triggers
from engine.clock import Clock
from engine.core.graph import Graph
from engine.core.keys import key_digest, request_digest
from engine.core.payload import NotJson, Payload
from engine.core.playbook import DEFAULT_PRIORITY, UNSET
from engine.core.validation import complaints
from engine.errors import Denied, FieldViolation, Invalid, Unavailable
from engine.ids import mint, partition_of
from engine.rpc.channels import CALL_TIMEOUT, Owners
from engine.rpc.status import from_call
from engine.snapshots import keys
from engine.snapshots.library import Library
from engine.snapshots.mirror import Mirror
from magicflow.v1.partition_service_pb2 import StartRequest, StartResponse

APPEND_PATIENCE = 10.0  # seconds
FRAME_TRIGGERS = 100
MAX_DELAY = 366 * 86_400_000  # milliseconds


class AppRecord(msgspec.Struct):
    """What `/flow/app/<name>` says."""

    enabled: bool = True


class Admission:
    """Checks triggers and appends them."""

    def __init__(
        self,
        bus: Bus,
        library: Library,
        apps: Mirror,
        owners: Owners,
        partitions: int,
        clock: Clock,
    ) -> None:
        self._bus = bus
        self._library = library
        self._apps = apps
        self._owners = owners
        self._partitions = partitions
        self._clock = clock
        self._lanes = [_Lane(bus, partition) for partition in range(partitions)]

    async def prepare(
        self,
        playbook: str,
        snapshot_id: int,
        value: Payload,
        by: str,
        *,
        start_at: int = 0,
        priority: int = DEFAULT_PRIORITY,
        key: str = "",
    ) -> StartTrace:
        """A checked trigger with its new trace id. `start_at` is milliseconds since 1970.

        Errors: `NotFound`, `WrongState`, `Denied` for an app that is off, `Invalid` for an input
        that does not fit, `Unavailable`.
        """
        self._check_app(playbook.partition("/")[0])
        digest = key_digest(playbook, key) if key else b""
        request = request_digest(snapshot_id, value) if key else b""
        if snapshot_id:
            playbook_id = self._library.playbook_id(playbook)
        else:
            playbook_id, snapshot_id = self._library.active(playbook)
        graph = await self._library.graph(playbook_id, snapshot_id)
        _check_input(graph, value)
        now = self._clock.now()
        if start_at > now + MAX_DELAY:
            raise Invalid("start_at lies more than a year ahead")
        return StartTrace(
            mint(now, snapshot_id, digest),
            playbook_id,
            snapshot_id,
            value,
            now,
            by,
            start_at if start_at > now else 0,
            priority,
            digest,
            request,
        )

    async def admit(self, trigger: StartTrace) -> None:
        """Checks and appends a trigger that was made elsewhere. Errors: as `prepare`, `append`."""
        graph = await self._library.graph(trigger.playbook_id, trigger.snapshot_id)
        self._check_app(graph.drawn.app)
        _check_input(graph, trigger.input)
        await self.append(trigger)

    async def start_keyed(self, trigger: StartTrace) -> StartResponse:
        """Has the partition's owner start the trace, or find the one of the same key. Returns
        when that is on disk. Errors: `AlreadyExists`, `Exhausted`, `Unavailable`."""
        partition = partition_of(trigger.trace_id, self._partitions)
        request = StartRequest(partition=partition, trigger=encode_triggers([trigger]))
        try:
            return await self._owners.of_partition(partition).Start(
                request, timeout=CALL_TIMEOUT, metadata=self._owners.credentials()
            )
        except grpc.aio.AioRpcError as error:
            raise from_call(error) from error

    async def append(self, trigger: StartTrace) -> None:
        """Returns when the trigger is on disk. Errors: `Unavailable`."""
        partition = partition_of(trigger.trace_id, self._partitions)
        await self._lanes[partition].append(trigger)

    async def close(self) -> None:
        for lane in self._lanes:
            await lane.close()

    def _check_app(self, name: str) -> None:
        record = self._apps.entries.get(keys.app(name))
        if record is not None and not msgspec.json.decode(record, type=AppRecord).enabled:
            raise Denied(f"the app {name} is switched off", reason="APP_DISABLED")


def _check_input(graph: Graph, value: Payload) -> None:
    schema = graph.drawn.input_schema
    if schema is UNSET:
        return
    try:
        found = complaints(schema, value, "input")
    except NotJson as error:
        raise Invalid(f"input: {error}", reason="INPUT_INVALID") from error
    if found:
        path, message = found[0]
        more = f" (and {len(found) - 1} more)" if len(found) > 1 else ""
        raise Invalid(
            f"the input does not fit the schema of {graph.full_name}@{graph.snapshot_id}: "
            f"{path}: {message}{more}",
            reason="INPUT_INVALID",
            violations=[FieldViolation(place, "INPUT_INVALID", why) for place, why in found],
        )


class _Lane:
    """Triggers of one partition; a frame carries what gathered while the one before was sent."""

    def __init__(self, bus: Bus, partition: int) -> None:
        self._bus = bus
        self._partition = partition
        self._waiting: list[tuple[StartTrace, asyncio.Future[None]]] = []
        self._sender: asyncio.Task[None] | None = None

    async def append(self, trigger: StartTrace) -> None:
        future: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._waiting.append((trigger, future))
        if self._sender is None:
            self._sender = asyncio.create_task(self._send())
        await asyncio.shield(future)

    async def close(self) -> None:
        if self._sender is not None:
            with contextlib.suppress(asyncio.CancelledError):
                await self._sender

    async def _send(self) -> None:
        while self._waiting:
            batch = self._cut()
            try:
                frame = encode_triggers([trigger for trigger, _ in batch])
                sent = await self._bus.offer_trigger(self._partition, DEFAULT_PRIORITY, frame)
                await asyncio.wait_for(sent, APPEND_PATIENCE)
            except (Unavailable, TimeoutError) as error:
                refusal = Unavailable(
                    f"the trigger could not be stored: {error or 'the bus did not answer'}",
                    reason="BUS_UNAVAILABLE",
                    mend="try again; whether it was stored is not known",
                    retry_after=1.0,
                )
                _settle(batch, refusal)
            else:
                _settle(batch, None)
        self._sender = None

    def _cut(self) -> list[tuple[StartTrace, asyncio.Future[None]]]:
        size, count = 0, 0
        for trigger, _ in self._waiting[:FRAME_TRIGGERS]:
            size += len(trigger.input.data) + 128
            if count and size > MAX_FRAME:
                break
            count += 1
        batch, self._waiting = self._waiting[:count], self._waiting[count:]
        return batch


def _settle(batch: list[tuple[StartTrace, asyncio.Future[None]]], error: Exception | None) -> None:
    for _, future in batch:
        if future.done():
            continue
        if error is None:
            future.set_result(None)
        else:
            future.set_exception(error)
