"""`TriggerService`: starts, waits, operator's acts."""

from __future__ import annotations

import asyncio
from typing import Any

import grpc.aio

from engine.clock import Clock
from engine.core.failure import Failure
from engine.errors import (
    DeadlineExceeded,
    Invalid,
    MagicflowError,
    NotFound,
    Unavailable,
    Unimplemented,
    WrongState,
)
from engine.ids import born_at, parse_trace_id
from engine.rpc.channels import CALL_TIMEOUT, Owners
from engine.rpc.interceptors import caller
from engine.rpc.status import from_call
from engine.wire import checked_payload, failure_message, timestamp
from magicflow.v1 import trace_pb2
from magicflow.v1 import trigger_service_pb2 as pb
from magicflow.v1.partition_service_pb2 import OperateRequest
from magicflow.v1.trigger_service_pb2_grpc import TriggerServiceServicer
from services.trigger.admission import Admission
from services.trigger.lookup import Lookup
from services.trigger.waiting import Waiting

MAX_BATCH = 10_000
MAX_WAIT = 86_400.0  # seconds
YOUNG = 600_000  # milliseconds in which an accepted trigger may not have begun yet


class TriggerServicer(TriggerServiceServicer):
    def __init__(
        self,
        admission: Admission,
        waiting: Waiting,
        owners: Owners,
        lookup: Lookup,
        clock: Clock,
    ) -> None:
        self._admission = admission
        self._waiting = waiting
        self._owners = owners
        self._lookup = lookup
        self._clock = clock

    async def Trigger(
        self,
        request: pb.TriggerRequest,
        context: grpc.aio.ServicerContext[pb.TriggerRequest, pb.TriggerResponse],
    ) -> pb.TriggerResponse:
        _check(request)
        wait = request.wait.ToMilliseconds() / 1_000
        value = checked_payload(request.input, "input")
        trigger = await self._admission.prepare(
            request.playbook, request.snapshot_id, value, caller().subject
        )
        answer = pb.TriggerResponse(
            trace_id=trigger.trace_id.hex(), snapshot_id=trigger.snapshot_id
        )
        if not wait:
            await self._admission.append(trigger)
            return answer
        with self._waiting.listen(trigger.trace_id) as future:
            await self._admission.append(trigger)
            remaining = context.time_remaining()
            patience = min(wait, MAX_WAIT, remaining - 0.1 if remaining else MAX_WAIT)
            try:
                outcome = await self._waiting.outcome(
                    trigger.trace_id, future, patience, look_first=False
                )
            except DeadlineExceeded:
                return answer  # started, and not ended yet
            answer.outcome.CopyFrom(outcome)
        return answer

    async def TriggerBatch(
        self,
        request: pb.TriggerBatchRequest,
        context: grpc.aio.ServicerContext[pb.TriggerBatchRequest, pb.TriggerBatchResponse],
    ) -> pb.TriggerBatchResponse:
        if len(request.triggers) > MAX_BATCH:
            raise Invalid(f"{len(request.triggers)} triggers; {MAX_BATCH} are allowed in a batch")
        verdicts = await asyncio.gather(*(self._one(trigger) for trigger in request.triggers))
        return pb.TriggerBatchResponse(verdicts=verdicts)

    async def _one(self, request: pb.TriggerRequest) -> pb.TriggerVerdict:
        try:
            _check(request)
            if request.HasField("wait"):
                raise Invalid("a trigger of a batch cannot wait")
            value = checked_payload(request.input, "input")
            trigger = await self._admission.prepare(
                request.playbook, request.snapshot_id, value, caller().subject
            )
            await self._admission.append(trigger)
        except MagicflowError as error:
            refused = Failure(error.reason, error.message, isinstance(error, Unavailable))
            return pb.TriggerVerdict(refused=failure_message(refused))
        return pb.TriggerVerdict(
            started=pb.TriggerResponse(
                trace_id=trigger.trace_id.hex(), snapshot_id=trigger.snapshot_id
            )
        )

    async def Await(
        self,
        request: pb.AwaitRequest,
        context: grpc.aio.ServicerContext[pb.AwaitRequest, pb.AwaitResponse],
    ) -> pb.AwaitResponse:
        trace_id = _parse(request.trace_id)
        remaining = context.time_remaining()
        patience = max(0.0, remaining - 0.1) if remaining else MAX_WAIT
        with self._waiting.listen(trace_id) as future:
            known = await self._known(trace_id)
            outcome = await self._waiting.outcome(trace_id, future, patience, look_first=True)
            if not known:
                await self._known(trace_id)
        return pb.AwaitResponse(trace_id=request.trace_id, outcome=outcome)

    async def _known(self, trace_id: bytes) -> bool:
        """Whether anybody knows the trace, and then whether the caller may. An accepted trigger
        may wait for its owner for a while: a young id that nobody knows is not refused yet."""
        try:
            trace = await self._lookup.trace(trace_id)
        except NotFound:
            if self._clock.now() - born_at(trace_id) > YOUNG:
                raise
            return False
        caller().require("trigger", trace.app)
        return True

    async def Abort(
        self,
        request: pb.AbortRequest,
        context: grpc.aio.ServicerContext[pb.AbortRequest, pb.AbortResponse],
    ) -> pb.AbortResponse:
        if request.compensate:
            raise Unimplemented("compensation is not available in this version")
        if len(request.why) > 1_024:
            raise Invalid("why has more than 1,024 characters")
        trace_id = _parse(request.trace_id)
        trace = await self._lookup.trace(trace_id)
        caller().require("operate", trace.app)
        try:
            await self._owners.of_trace(trace_id).Operate(
                OperateRequest(
                    trace_id=request.trace_id,
                    verb="abort",
                    by=caller().subject,
                    why=request.why,
                    at=timestamp(self._clock.now()),
                ),
                timeout=CALL_TIMEOUT,
                metadata=self._owners.credentials(),
            )
        except grpc.aio.AioRpcError as error:
            refused = from_call(error)
            if not isinstance(refused, NotFound | WrongState):
                raise refused from error
            await self._aborted_already(trace_id, refused)
        return pb.AbortResponse()

    async def _aborted_already(self, trace_id: bytes, refused: MagicflowError) -> None:
        """Aborting an aborted trace is done; anything else that ended is refused."""
        trace = await self._lookup.trace(trace_id)
        if trace.status == trace_pb2.TRACE_STATUS_ABORTED:
            return
        if trace.HasField("ended_at"):
            status = trace_pb2.TraceStatus.Name(trace.status).removeprefix("TRACE_STATUS_")
            raise WrongState(
                f"the trace has ended: {status}", reason="TRACE_ENDED", metadata={"status": status}
            )
        raise refused

    async def Signal(self, request: Any, context: Any) -> Any:
        raise _later("Signal")

    async def Pause(self, request: Any, context: Any) -> Any:
        raise _later("Pause")

    async def Resume(self, request: Any, context: Any) -> Any:
        raise _later("Resume")

    async def Retry(self, request: Any, context: Any) -> Any:
        raise _later("Retry")

    async def Rerun(self, request: Any, context: Any) -> Any:
        raise _later("Rerun")

    async def CompleteNode(self, request: Any, context: Any) -> Any:
        raise _later("CompleteNode")

    async def FailNode(self, request: Any, context: Any) -> Any:
        raise _later("FailNode")

    async def SkipNode(self, request: Any, context: Any) -> Any:
        raise _later("SkipNode")


def _later(name: str) -> Unimplemented:
    return Unimplemented(f"{name} is not available in this version")


def _check(request: pb.TriggerRequest) -> None:
    app, _, name = request.playbook.partition("/")
    if not app or not name:
        raise Invalid(
            f"{request.playbook!r} is no playbook name",
            mend="write app/name",
        )
    caller().require("trigger", app)
    for field, given in (
        ("idempotency_key", bool(request.idempotency_key)),
        ("start_at", request.HasField("start_at")),
        ("priority", request.HasField("priority")),
        ("labels", bool(request.labels)),
    ):
        if given:
            raise Unimplemented(
                f"{field} is not available in this version", metadata={"field": field}
            )


def _parse(text: str) -> bytes:
    trace_id = parse_trace_id(text)
    if trace_id is None:
        raise Invalid(
            f"{text!r} is no trace id", mend="a trace id has 32 hex digits, as trigger prints it"
        )
    return trace_id
