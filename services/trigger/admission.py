"""Whether a trigger may start a trace, and its durable way to the partition's owner."""

from __future__ import annotations

import grpc.aio

from engine.bus.triggers import StartTrace, encode_triggers
from engine.clock import Clock
from engine.core.graph import Graph
from engine.core.keys import key_digest, request_digest
from engine.core.payload import NotJson, Payload
from engine.core.playbook import DEFAULT_PRIORITY, UNSET
from engine.core.validation import complaints
from engine.errors import Denied, FieldViolation, Invalid
from engine.ids import mint, partition_of
from engine.rpc.channels import CALL_TIMEOUT, Owners
from engine.rpc.status import from_call
from engine.snapshots.apps import Apps
from engine.snapshots.library import Library
from magicflow.v1.partition_service_pb2 import StartRequest, StartResponse
from services.trigger.lanes import Lanes
from services.trigger.load import Backlog
from services.trigger.quotas import Quotas
from services.trigger.readiness import Readiness

MAX_DELAY = 366 * 86_400_000  # milliseconds


class Admission:
    """Checks triggers and appends them."""

    def __init__(
        self,
        library: Library,
        apps: Apps,
        lanes: Lanes,
        backlog: Backlog,
        quotas: Quotas,
        readiness: Readiness,
        owners: Owners,
        partitions: int,
        clock: Clock,
    ) -> None:
        self._library = library
        self._apps = apps
        self._lanes = lanes
        self._backlog = backlog
        self._quotas = quotas
        self._readiness = readiness
        self._owners = owners
        self._partitions = partitions
        self._clock = clock

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
        await self._check_workers(graph)
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
        await self._check_workers(graph)
        await self.append(trigger)

    async def start_keyed(self, trigger: StartTrace) -> StartResponse:
        """Has the partition's owner start the trace, or find the one of the same key. Returns
        when that is on disk. Errors: `AlreadyExists`, `Exhausted`, `Unavailable`."""
        partition, _ = await self._make_room(trigger)
        request = StartRequest(partition=partition, trigger=encode_triggers([trigger]))
        try:
            return await self._owners.of_partition(partition).Start(
                request, timeout=CALL_TIMEOUT, metadata=self._owners.credentials()
            )
        except grpc.aio.AioRpcError as error:
            raise from_call(error) from error

    async def append(self, trigger: StartTrace) -> None:
        """Returns when the trigger is on disk. Errors: `Exhausted`, `Unavailable`."""
        self._lanes.check(trigger)  # before the app's quota is charged for it
        partition, app = await self._make_room(trigger)
        self._backlog.add(partition, app, 1)
        # Where few of an app's traces may live, small frames fill their places better.
        share = self._apps.of(app).in_flight // self._partitions
        await self._lanes.append(trigger, app, max(1, share // 16) if share else 0)

    async def _make_room(self, trigger: StartTrace) -> tuple[int, str]:
        """(partition, app) of a trigger that the app's quota and the cluster can take. Errors:
        `Exhausted`, `Unavailable`."""
        graph = await self._library.graph(trigger.playbook_id, trigger.snapshot_id)
        partition, app = partition_of(trigger.trace_id, self._partitions), graph.drawn.app
        self._backlog.check(partition, app)
        await self._quotas.take(app)
        return partition, app

    async def close(self) -> None:
        await self._quotas.close()
        await self._lanes.close()

    def _check_app(self, name: str) -> None:
        if not self._apps.of(name).enabled:
            raise Denied(f"the app {name} is switched off", reason="APP_DISABLED")

    async def _check_workers(self, graph: Graph) -> None:
        if self._apps.of(graph.drawn.app).require_workers:
            await self._readiness.check(graph)


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
