"""Starts traces, waits for them, reads and steers them, publishes playbooks."""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Mapping
from datetime import datetime
from typing import Any, TypeVar

import grpc.aio
from google.protobuf.duration_pb2 import Duration

from magicflow.connection import Target, Tls
from magicflow.errors import DeadlineExceeded, Invalid, TraceFailed, Unavailable, from_rpc
from magicflow.payloads import from_payload, to_payload
from magicflow.playbook import Playbook
from magicflow.v1 import error_pb2, playbook_pb2, trace_pb2
from magicflow.v1 import registry_service_pb2 as registry
from magicflow.v1 import trace_service_pb2 as traces
from magicflow.v1 import trigger_service_pb2 as triggers
from magicflow.v1.event_pb2 import Event
from magicflow.v1.registry_service_pb2_grpc import RegistryServiceStub
from magicflow.v1.trace_service_pb2_grpc import TraceServiceStub
from magicflow.v1.trigger_service_pb2_grpc import TriggerServiceStub
from magicflow.v1.worker_pb2 import Function, Worker

Answer = TypeVar("Answer")

TIMEOUT = 10.0  # seconds
ATTEMPTS = 4  # of calls that may be repeated without harm
AWAIT_ROUND = 30.0  # seconds of one Await call


def status_name(status: int) -> str:
    """`SUCCEEDED`, `FAILED`, …"""
    return trace_pb2.TraceStatus.Name(status).removeprefix("TRACE_STATUS_")  # type: ignore[arg-type]


class TraceHandle:
    """A started trace."""

    def __init__(self, client: Client, trace_id: str, snapshot_id: int = 0) -> None:
        self._client = client
        self.trace_id = trace_id
        self.snapshot_id = snapshot_id

    def __repr__(self) -> str:
        return f"TraceHandle({self.trace_id})"

    async def outcome(self, timeout: float | None = None) -> triggers.Outcome:
        """How it ended. Waits for ever, or up to `timeout` seconds.

        Errors: `DeadlineExceeded`, `NotFound`.
        """
        return await self._client.await_outcome(self.trace_id, timeout)

    async def result(self, timeout: float | None = None) -> Any:
        """Its output. Errors: `TraceFailed` when it ended otherwise than well; as `outcome`."""
        return value_of(self.trace_id, await self.outcome(timeout))

    async def get(self) -> trace_pb2.Trace:
        """The trace with its nodes, now."""
        return await self._client.get(self.trace_id)

    def watch(self) -> AsyncIterator[trace_pb2.Trace]:
        """The trace now and after every change, until it has ended."""
        return self._client.watch(self.trace_id)

    async def abort(self, why: str = "") -> None:
        """Ends it now. Errors: `WrongState` when it has ended otherwise already."""
        await self._client.abort(self.trace_id, why)

    async def signal(
        self, node: str, payload: Any = None, *, approve: bool = True, why: str = ""
    ) -> None:
        """Gives a waiting hook its payload and decision."""
        await self._client.signal(self.trace_id, node, payload, approve=approve, why=why)


def value_of(trace_id: str, outcome: triggers.Outcome) -> Any:
    """The output of a succeeded trace. Errors: `TraceFailed`."""
    if outcome.status != trace_pb2.TRACE_STATUS_SUCCEEDED:
        raise TraceFailed(trace_id, status_name(outcome.status), outcome.failure)
    return from_payload(outcome.output)


class Client:
    """One connection for many calls; safe to share between tasks of one event loop.

    `address` is host:port of any magicflow process, or `addresses` one per service; `timeout` is
    the deadline of a call in seconds. Calls that can be repeated without harm are, when the
    server is out of reach.
    """

    def __init__(
        self,
        address: str | None = None,
        *,
        token: str | None = None,
        tls: Tls | None = None,
        timeout: float = TIMEOUT,
        addresses: Mapping[str, str] | None = None,
    ) -> None:
        self._target = Target.of(address, token, tls, addresses)
        self._timeout = timeout
        self._channels: dict[str, grpc.aio.Channel] = {}

    async def __aenter__(self) -> Client:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    async def close(self) -> None:
        for channel in self._channels.values():
            await channel.close()
        self._channels.clear()

    def _channel(self, service: str) -> grpc.aio.Channel:
        address = self._target.service(service)
        if address not in self._channels:
            self._channels[address] = self._target.channel(service)
        return self._channels[address]

    @property
    def _trigger(self) -> Any:
        return TriggerServiceStub(self._channel("trigger"))

    @property
    def _traces(self) -> Any:
        return TraceServiceStub(self._channel("trace"))

    @property
    def _registry(self) -> Any:
        return RegistryServiceStub(self._channel("registry"))

    async def _call(
        self,
        method: Callable[..., Awaitable[Answer]],
        request: Any,
        *,
        timeout: float | None = None,
        repeat: bool = True,
    ) -> Answer:
        """All attempts together have `timeout` seconds."""
        now = asyncio.get_running_loop().time
        deadline = now() + (timeout or self._timeout)
        backoff = 0.1
        for attempt in range(1, ATTEMPTS + 1):
            try:
                return await method(
                    request, timeout=deadline - now(), metadata=self._target.metadata
                )
            except grpc.aio.AioRpcError as error:
                failed = from_rpc(error, self._target.address)
                pause = (failed.retry_after or backoff) * random.uniform(0.5, 1.0)
                again = repeat and isinstance(failed, Unavailable) and attempt < ATTEMPTS
                if not again or now() + pause >= deadline:
                    raise failed from error
            await asyncio.sleep(pause)
            backoff *= 2
        raise AssertionError("unreachable")

    # Traces.

    async def trigger(
        self,
        playbook: str,
        input: Any = None,
        *,
        snapshot: int = 0,
        key: str = "",
        start_at: datetime | None = None,
        priority: int | None = None,
    ) -> TraceHandle:
        """Starts a trace of `app/playbook`, on its active snapshot unless another is named.
        Returns when the trigger is on disk.

        The same idempotency `key` with the same input yields the same trace, so a call with one
        is repeated when the server is out of reach; without one every call starts a trace.
        `start_at` (without a time zone: local time) delays the start; `priority`, 0 (last) to 9,
        is that of its tasks that have none of their own.

        Errors: `Invalid` for an input that does not fit, `NotFound`, `WrongState` when no
        snapshot is active, `AlreadyExists` when the key was used for something else, `Denied`,
        `Exhausted`, `Unavailable`.
        """
        request = _trigger_request(playbook, input, snapshot, key, start_at, priority)
        answer = await self._start(request, 0.0)
        return TraceHandle(self, answer.trace_id, answer.snapshot_id)

    async def run(
        self,
        playbook: str,
        input: Any = None,
        *,
        snapshot: int = 0,
        timeout: float = 60.0,
        key: str = "",
        priority: int | None = None,
    ) -> Any:
        """Starts a trace, waits for its end, returns its output.

        Errors: as `trigger`; `TraceFailed`; `DeadlineExceeded` after `timeout` seconds (the trace
        goes on; its id is in the error's metadata).
        """
        request = _trigger_request(playbook, input, snapshot, key, None, priority)
        answer = await self._start(request, timeout)
        if not answer.HasField("outcome"):
            raise DeadlineExceeded(
                f"trace {answer.trace_id} has not ended within {timeout:g} s; it goes on",
                reason="DEADLINE_EXCEEDED",
                metadata={"trace_id": answer.trace_id},
            )
        return value_of(answer.trace_id, answer.outcome)

    async def _start(
        self, request: triggers.TriggerRequest, wait: float
    ) -> triggers.TriggerResponse:
        if wait:
            request.wait.CopyFrom(_duration(wait))
        answer: triggers.TriggerResponse = await self._call(
            self._trigger.Trigger,
            request,
            timeout=self._timeout + wait,
            repeat=bool(request.idempotency_key),
        )
        return answer

    async def trigger_batch(
        self, items: Iterable[tuple[str, Any]]
    ) -> list[TraceHandle | Invalid | Unavailable]:
        """Starts many traces: (playbook, input) each. A refused one is an error in the list."""
        request = triggers.TriggerBatchRequest(
            triggers=[
                triggers.TriggerRequest(playbook=playbook, input=_input(value))
                for playbook, value in items
            ]
        )
        answer = await self._call(self._trigger.TriggerBatch, request, repeat=False)
        handles: list[TraceHandle | Invalid | Unavailable] = []
        for verdict in answer.verdicts:
            if verdict.HasField("started"):
                started = verdict.started
                handles.append(TraceHandle(self, started.trace_id, started.snapshot_id))
            else:
                kind = Unavailable if verdict.refused.retryable else Invalid
                handles.append(kind(verdict.refused.message, reason=verdict.refused.code))
        return handles

    def handle(self, trace_id: str) -> TraceHandle:
        """A handle of a trace that was started elsewhere."""
        return TraceHandle(self, trace_id)

    async def await_outcome(self, trace_id: str, timeout: float | None = None) -> triggers.Outcome:
        """Errors: `DeadlineExceeded` after `timeout` seconds, `NotFound`."""
        loop = asyncio.get_running_loop()
        deadline = None if timeout is None else loop.time() + timeout
        while True:
            left = AWAIT_ROUND if deadline is None else min(AWAIT_ROUND, deadline - loop.time())
            if left <= 0:
                raise DeadlineExceeded(
                    f"trace {trace_id} has not ended within {timeout:g} s; it goes on",
                    reason="DEADLINE_EXCEEDED",
                    metadata={"trace_id": trace_id},
                )
            try:
                answer = await self._call(
                    self._trigger.Await, triggers.AwaitRequest(trace_id=trace_id), timeout=left
                )
            except DeadlineExceeded:
                continue
            outcome: triggers.Outcome = answer.outcome
            return outcome

    async def get(self, trace_id: str) -> trace_pb2.Trace:
        """Errors: `NotFound`."""
        answer = await self._call(self._traces.GetTrace, traces.GetTraceRequest(trace_id=trace_id))
        trace: trace_pb2.Trace = answer.trace
        return trace

    async def watch(self, trace_id: str) -> AsyncIterator[trace_pb2.Trace]:
        """The trace now and after every change, until it has ended. Begins again by itself when
        the stream breaks. Errors: `NotFound`."""
        broken = 0
        while True:
            call = self._traces.WatchTrace(
                traces.WatchTraceRequest(trace_id=trace_id), metadata=self._target.metadata
            )
            try:
                async for response in call:
                    broken = 0
                    yield response.trace
                return
            except grpc.aio.AioRpcError as error:
                failed = from_rpc(error, self._target.address)
                broken += 1
                if not isinstance(failed, Unavailable) or broken == ATTEMPTS:
                    raise failed from error
            finally:
                call.cancel()  # whoever watched may have seen enough
            await asyncio.sleep(0.2 * broken)

    async def events(self, trace_id: str) -> list[Event]:
        """Every event of a trace, in order, as far as it is in the store."""
        found: list[Event] = []
        token = ""
        while True:
            answer = await self._call(
                self._traces.ListEvents,
                traces.ListEventsRequest(trace_id=trace_id, page_token=token),
            )
            found.extend(answer.events)
            token = answer.next_page_token
            if not token:
                return found

    async def list_traces(
        self,
        playbook: str = "",
        *,
        snapshot: int = 0,
        status: str = "",
        limit: int = 50,
    ) -> list[trace_pb2.Trace]:
        """Traces of a playbook or a snapshot, newest first, without their nodes."""
        number = _status_number(status) if status else 0
        found: list[trace_pb2.Trace] = []
        token = ""
        while len(found) < limit:
            answer = await self._call(
                self._traces.ListTraces,
                traces.ListTracesRequest(
                    playbook=playbook,
                    snapshot_id=snapshot,
                    status=number,  # type: ignore[arg-type]
                    page_size=min(1_000, limit - len(found)),
                    page_token=token,
                ),
            )
            found.extend(answer.traces)
            token = answer.next_page_token
            if not token:
                break
        return found

    async def abort(self, trace_id: str, why: str = "", *, compensate: bool = False) -> None:
        """Ends a trace now, or with `compensate` once the compensations of what has completed
        have run; harmless to repeat. Errors: `NotFound`, `WrongState`."""
        request = triggers.AbortRequest(trace_id=trace_id, why=why, compensate=compensate)
        await self._call(self._trigger.Abort, request)

    async def signal(
        self, trace_id: str, node: str, payload: Any = None, *, approve: bool = True, why: str = ""
    ) -> None:
        """Gives a waiting hook its decision and, unless it is None, a payload. Once only.
        Errors: `NotFound`, `WrongState`."""
        decision = triggers.DECISION_APPROVE if approve else triggers.DECISION_REJECT
        request = triggers.SignalRequest(
            trace_id=trace_id,
            node=node,
            payload=None if payload is None else to_payload(payload),
            decision=decision,
            why=why,
        )
        await self._call(self._trigger.Signal, request, repeat=False)

    async def pause(self, trace_id: str, why: str = "") -> None:
        """Starts nothing more; results that come are kept. Errors: `NotFound`, `WrongState`."""
        request = triggers.PauseRequest(trace_id=trace_id, why=why)
        await self._call(self._trigger.Pause, request, repeat=False)

    async def resume(self, trace_id: str, why: str = "") -> None:
        """Lets a paused trace go on. Errors: `NotFound`, `WrongState`."""
        request = triggers.ResumeRequest(trace_id=trace_id, why=why)
        await self._call(self._trigger.Resume, request, repeat=False)

    async def retry(self, trace_id: str, nodes: Iterable[str] = (), why: str = "") -> None:
        """Runs the failed nodes of an ended trace again. Errors: `NotFound`, `WrongState`."""
        request = triggers.RetryRequest(trace_id=trace_id, nodes=list(nodes), why=why)
        await self._call(self._trigger.Retry, request, repeat=False)

    async def rerun(
        self,
        trace_id: str,
        node: str = "",
        *,
        input: Any = None,
        snapshot: int = 0,
        why: str = "",
    ) -> TraceHandle:
        """A new trace that begins at a node of another (empty: at its start) and takes over the
        outcome of everything before. `input`, unless it is None, replaces the node's. Errors:
        `NotFound`, `Invalid`."""
        request = triggers.RerunRequest(
            trace_id=trace_id,
            node=node,
            input=None if input is None else to_payload(input),
            snapshot_id=snapshot,
            why=why,
        )
        answer = await self._call(self._trigger.Rerun, request, repeat=False)
        return TraceHandle(self, answer.trace_id)

    async def complete_node(
        self, trace_id: str, node: str, output: Any = None, why: str = ""
    ) -> None:
        """Gives a node its output by hand. Errors: `NotFound`, `WrongState`."""
        request = triggers.CompleteNodeRequest(
            trace_id=trace_id, node=node, output=_input(output), why=why
        )
        await self._call(self._trigger.CompleteNode, request, repeat=False)

    async def fail_node(
        self, trace_id: str, node: str, code: str = "", message: str = "", why: str = ""
    ) -> None:
        """Fails a node by hand. Errors: `NotFound`, `WrongState`."""
        failure = error_pb2.Failure(code=code, message=message)
        request = triggers.FailNodeRequest(trace_id=trace_id, node=node, failure=failure, why=why)
        await self._call(self._trigger.FailNode, request, repeat=False)

    async def skip_node(self, trace_id: str, node: str, why: str = "") -> None:
        """Skips a node: its edges are dead. Errors: `NotFound`, `WrongState`."""
        request = triggers.SkipNodeRequest(trace_id=trace_id, node=node, why=why)
        await self._call(self._trigger.SkipNode, request, repeat=False)

    # The registry.

    async def create_app(self, name: str, description: str = "") -> str:
        """Makes an app; returns its first token. Errors: `AlreadyExists`, `Denied`."""
        request = registry.CreateAppRequest(app=registry.App(name=name, description=description))
        answer = await self._call(self._registry.CreateApp, request, repeat=False)
        return str(answer.token)

    async def apps(self) -> list[registry.App]:
        answer = await self._call(self._registry.ListApps, registry.ListAppsRequest())
        return list(answer.apps)

    async def create_token(
        self, app: str, subject: str, scopes: Iterable[str], lifetime: float = 0.0
    ) -> tuple[str, registry.Token]:
        """A token's text, shown once, and what is remembered of it. Scopes are `trigger`, `work`,
        `operate`, `admin`; `lifetime` in seconds, 0 for 90 days."""
        try:
            numbers = [registry.Scope.Value(f"SCOPE_{scope.upper()}") for scope in scopes]
        except ValueError as error:
            raise Invalid(str(error), reason="INVALID") from error
        request = registry.CreateTokenRequest(
            app=app,
            subject=subject,
            scopes=numbers,
            lifetime=_duration(lifetime) if lifetime else None,
        )
        answer = await self._call(self._registry.CreateToken, request, repeat=False)
        return answer.text, answer.token

    async def revoke_token(self, token_id: str) -> None:
        await self._call(self._registry.RevokeToken, registry.RevokeTokenRequest(id=token_id))

    async def tokens(self, app: str) -> list[registry.Token]:
        answer = await self._call(self._registry.ListTokens, registry.ListTokensRequest(app=app))
        return list(answer.tokens)

    async def grant(self, target: str, grantee: str) -> None:
        """Lets another app use `app/name` or `app/*`; harmless to repeat."""
        await self._call(
            self._registry.CreateGrant, registry.CreateGrantRequest(grant=_grant(target, grantee))
        )

    async def revoke_grant(self, target: str, grantee: str) -> None:
        await self._call(
            self._registry.RevokeGrant, registry.RevokeGrantRequest(grant=_grant(target, grantee))
        )

    async def grants(self, app: str) -> list[registry.Grant]:
        answer = await self._call(self._registry.ListGrants, registry.ListGrantsRequest(app=app))
        return list(answer.grants)

    async def validate(
        self, playbook: str | Playbook, *, strict: bool = False
    ) -> list[playbook_pb2.Finding]:
        """Checks a document (YAML or JSON text) or a `Playbook`; stores nothing."""
        request = registry.ValidatePlaybookRequest(document=_document(playbook), strict=strict)
        answer = await self._call(self._registry.ValidatePlaybook, request)
        return list(answer.findings)

    async def publish(
        self, playbook: str | Playbook, *, switch: bool = False, strict: bool = False
    ) -> registry.PublishSnapshotResponse:
        """Freezes a playbook into a snapshot; the same content again is the same snapshot. With
        `switch` it becomes the active version.

        Errors: `Invalid` with every finding in `violations`, `NotFound` for an unknown app.
        """
        request = registry.PublishSnapshotRequest(
            document=_document(playbook), switch=switch, strict=strict
        )
        answer: registry.PublishSnapshotResponse = await self._call(
            self._registry.PublishSnapshot, request
        )
        return answer

    async def switch(self, playbook: str, snapshot: int, *, expected: int = 0) -> int:
        """Makes a snapshot active; returns the one before, 0 for none. With `expected` only if
        that one is active now. Errors: `NotFound`, `Conflict`."""
        request = registry.SwitchSnapshotRequest(
            playbook=playbook, snapshot_id=snapshot, expected_snapshot_id=expected
        )
        answer = await self._call(self._registry.SwitchSnapshot, request, repeat=False)
        return int(answer.previous_snapshot_id)

    async def playbook(self, name: str) -> registry.PlaybookRecord:
        answer = await self._call(
            self._registry.GetPlaybook, registry.GetPlaybookRequest(playbook=name)
        )
        record: registry.PlaybookRecord = answer.playbook
        return record

    async def playbooks(self, app: str = "") -> list[registry.PlaybookRecord]:
        answer = await self._call(
            self._registry.ListPlaybooks, registry.ListPlaybooksRequest(app=app)
        )
        return list(answer.playbooks)

    async def snapshot(self, snapshot_id: int) -> playbook_pb2.Snapshot:
        answer = await self._call(
            self._registry.GetSnapshot, registry.GetSnapshotRequest(id=snapshot_id)
        )
        snapshot: playbook_pb2.Snapshot = answer.snapshot
        return snapshot

    async def snapshots(self, playbook: str, limit: int = 100) -> list[playbook_pb2.Snapshot]:
        request = registry.ListSnapshotsRequest(playbook=playbook, page_size=min(limit, 1_000))
        answer = await self._call(self._registry.ListSnapshots, request)
        return list(answer.snapshots)

    async def diff(self, older: int, newer: int) -> list[registry.Difference]:
        request = registry.DiffSnapshotsRequest(from_snapshot_id=older, to_snapshot_id=newer)
        answer = await self._call(self._registry.DiffSnapshots, request)
        return list(answer.differences)

    async def functions(self, app: str = "") -> list[Function]:
        answer = await self._call(
            self._registry.ListFunctions, registry.ListFunctionsRequest(app=app)
        )
        return list(answer.functions)

    async def workers(self, app: str = "") -> list[Worker]:
        answer = await self._call(self._registry.ListWorkers, registry.ListWorkersRequest(app=app))
        return list(answer.workers)

    async def cluster(self) -> registry.GetClusterResponse:
        answer: registry.GetClusterResponse = await self._call(
            self._registry.GetCluster, registry.GetClusterRequest()
        )
        return answer


def _input(value: Any) -> Any:
    try:
        return to_payload(value)
    except (TypeError, ValueError, RecursionError) as error:
        raise Invalid(f"the input cannot be sent: {error}", reason="INPUT_INVALID") from error


def _trigger_request(
    playbook: str,
    value: Any,
    snapshot: int,
    key: str,
    start_at: datetime | None,
    priority: int | None,
) -> triggers.TriggerRequest:
    request = triggers.TriggerRequest(
        playbook=playbook,
        snapshot_id=snapshot,
        input=_input(value),
        idempotency_key=key,
        priority=priority,
    )
    if start_at is not None:
        request.start_at.FromMilliseconds(int(start_at.timestamp() * 1_000))
    return request


def _status_number(name: str) -> int:
    try:
        return trace_pb2.TraceStatus.Value(f"TRACE_STATUS_{name.upper()}")
    except ValueError as error:
        raise Invalid(f"{name!r} is no status of a trace", reason="INVALID") from error


def _document(playbook: str | Playbook) -> str:
    return playbook if isinstance(playbook, str) else playbook.to_json()


def _grant(target: str, grantee: str) -> registry.Grant:
    return registry.Grant(owner=target.partition("/")[0], grantee=grantee, target=target)


def _duration(seconds: float) -> Duration:
    length = Duration()
    length.FromMilliseconds(int(seconds * 1_000))
    return length
