"""Starts traces, waits for them, reads and steers them, publishes playbooks."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterable
from datetime import datetime
from typing import Any

import grpc.aio

from magicflow.administration import Administration
from magicflow.calls import ATTEMPTS, duration
from magicflow.errors import (
    DeadlineExceeded,
    Exhausted,
    Invalid,
    MagicflowError,
    TraceFailed,
    Unavailable,
    from_rpc,
)
from magicflow.payloads import from_payload, to_payload
from magicflow.v1 import error_pb2, trace_pb2
from magicflow.v1 import trace_service_pb2 as traces
from magicflow.v1 import trigger_service_pb2 as triggers
from magicflow.v1.event_pb2 import Event
from magicflow.v1.trace_service_pb2_grpc import TraceServiceStub
from magicflow.v1.trigger_service_pb2_grpc import TriggerServiceStub

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


class Client(Administration):
    """One connection for many calls; safe to share between tasks of one event loop.

    `address` is host:port of any magicflow process, or `addresses` one per service; `timeout` is
    the deadline of a call in seconds. Calls that can be repeated without harm are, when the
    server is out of reach, and starts that it sheds are when it says so.
    """

    async def __aenter__(self) -> Client:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    @property
    def _trigger(self) -> Any:
        return TriggerServiceStub(self._channel("trigger"))

    @property
    def _traces(self) -> Any:
        return TraceServiceStub(self._channel("trace"))

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
            request.wait.CopyFrom(duration(wait))
        answer: triggers.TriggerResponse = await self._call(
            self._trigger.Trigger,
            request,
            timeout=self._timeout + wait,
            repeat=bool(request.idempotency_key),
        )
        return answer

    async def trigger_batch(
        self, items: Iterable[tuple[str, Any]]
    ) -> list[TraceHandle | MagicflowError]:
        """Starts many traces: (playbook, input) each. A refused one is an error in the list; those
        that the server sheds are sent again when it says so, while the call has time. If that
        sending fails, its error stands in the place of each of them."""
        requests = [
            triggers.TriggerRequest(playbook=playbook, input=_input(value))
            for playbook, value in items
        ]
        now = asyncio.get_running_loop().time
        deadline = now() + self._timeout
        verdicts: dict[int, TraceHandle | MagicflowError] = {}
        left = list(range(len(requests)))
        while left:
            batch = triggers.TriggerBatchRequest(triggers=[requests[place] for place in left])
            try:
                answer = await self._call(
                    self._trigger.TriggerBatch, batch, timeout=deadline - now(), repeat=False
                )
            except MagicflowError as error:
                if not verdicts:
                    raise
                # Traces of the rounds before run: without their handles nobody could find them.
                verdicts.update(dict.fromkeys(left, error))
                break
            for place, verdict in zip(left, answer.verdicts, strict=True):
                verdicts[place] = self._handle_of(verdict)
            shed = {place: v for place, v in verdicts.items() if isinstance(v, Exhausted)}
            left = sorted(shed)
            pause = max((v.retry_after or 0.0 for v in shed.values()), default=0.0)
            if now() + pause >= deadline:
                break
            await asyncio.sleep(pause)
        return [verdicts[place] for place in range(len(requests))]

    def _handle_of(self, verdict: triggers.TriggerVerdict) -> TraceHandle | MagicflowError:
        if verdict.HasField("started"):
            return TraceHandle(self, verdict.started.trace_id, verdict.started.snapshot_id)
        refused = verdict.refused
        if refused.HasField("retry_after"):
            return Exhausted(
                refused.message,
                reason=refused.code,
                retry_after=refused.retry_after.ToMilliseconds() / 1_000,
            )
        kind = Unavailable if refused.retryable else Invalid
        return kind(refused.message, reason=refused.code)

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
