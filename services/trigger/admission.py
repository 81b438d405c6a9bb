"""Whether a trigger may start a trace, and its durable way to the partition's owner.

Triggers that arrive while an append is under way share the next one: one frame per partition.
"""

from __future__ import annotations

import asyncio
import contextlib
from typing import Any

import jsonschema_rs
import msgspec

from engine.bus.port import MAX_FRAME, Bus
from engine.bus.triggers import StartTrace, encode_triggers
from engine.clock import Clock
from engine.core.graph import Graph
from engine.core.payload import NotJson, Payload, to_value
from engine.core.playbook import DEFAULT_PRIORITY, UNSET
from engine.errors import Denied, FieldViolation, Invalid, Unavailable
from engine.ids import mint, partition_of
from engine.snapshots import keys
from engine.snapshots.library import Library
from engine.snapshots.mirror import Mirror

APPEND_PATIENCE = 10.0  # seconds
FRAME_TRIGGERS = 100
_MAX_VIOLATIONS = 20


class AppRecord(msgspec.Struct):
    """What `/flow/app/<name>` says."""

    enabled: bool = True


class Admission:
    """Checks triggers and appends them."""

    def __init__(
        self, bus: Bus, library: Library, apps: Mirror, partitions: int, clock: Clock
    ) -> None:
        self._bus = bus
        self._library = library
        self._apps = apps
        self._partitions = partitions
        self._clock = clock
        self._validators: dict[int, Any] = {}
        self._lanes = [_Lane(bus, partition) for partition in range(partitions)]

    async def prepare(self, playbook: str, snapshot_id: int, value: Payload, by: str) -> StartTrace:
        """A checked trigger with its new trace id.

        Errors: `NotFound`, `WrongState`, `Denied` for an app that is off, `Invalid` for an input
        that does not fit, `Unavailable`.
        """
        self._check_app(playbook.partition("/")[0])
        if snapshot_id:
            playbook_id = self._library.playbook_id(playbook)
        else:
            playbook_id, snapshot_id = self._library.active(playbook)
        graph = await self._library.graph(playbook_id, snapshot_id)
        self._check_input(graph, value)
        now = self._clock.now()
        return StartTrace(mint(now, snapshot_id), playbook_id, snapshot_id, value, now, by)

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

    def _check_input(self, graph: Graph, value: Payload) -> None:
        schema = graph.drawn.input_schema
        if schema is UNSET:
            return
        validator = self._validators.get(graph.snapshot_id)
        if validator is None:
            validator = jsonschema_rs.validator_for(schema)
            if len(self._validators) > 1_000:
                self._validators.clear()
            self._validators[graph.snapshot_id] = validator
        try:
            data = to_value(value)
        except NotJson as error:
            raise Invalid(f"input: {error}", reason="INPUT_INVALID") from error
        violations = []
        for found in validator.iter_errors(data):
            path = "input" + "".join(
                f"[{part}]" if isinstance(part, int) else f".{part}" for part in found.instance_path
            )
            violations.append(FieldViolation(path, "INPUT_INVALID", str(found.message)))
            if len(violations) == _MAX_VIOLATIONS:
                break
        if violations:
            first = violations[0]
            more = f" (and {len(violations) - 1} more)" if len(violations) > 1 else ""
            raise Invalid(
                f"the input does not fit the schema of {graph.full_name}@{graph.snapshot_id}: "
                f"{first.field}: {first.message}{more}",
                reason="INPUT_INVALID",
                violations=violations,
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
