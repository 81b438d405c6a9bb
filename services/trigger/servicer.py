"""`TriggerService`: starts, waits, operator's acts."""

from __future__ import annotations

import asyncio

import grpc.aio

from engine.bus.triggers import StartTrace
from engine.clock import Clock
from engine.core.failure import Code, Failure
from engine.core.playbook import DEFAULT_PRIORITY
from engine.core.steering import Verb
from engine.errors import (
    DeadlineExceeded,
    Exhausted,
    Invalid,
    MagicflowError,
    NotFound,
    Unavailable,
    Unimplemented,
)
from engine.ids import born_at, parse_trace_id
from engine.rpc.interceptors import caller
from engine.wire.values import (
    checked_payload,
    failure_message,
    milliseconds,
    payload_message,
)
from magicflow.v1 import trigger_service_pb2 as pb
from magicflow.v1.partition_service_pb2 import OperateRequest
from magicflow.v1.trigger_service_pb2_grpc import TriggerServiceServicer
from services.trigger.admission import Admission
from services.trigger.lookup import Lookup
from services.trigger.operations import Operations
from services.trigger.waiting import Waiting

MAX_BATCH = 10_000
MAX_WAIT = 86_400.0  # seconds
MAX_KEY = 256  # characters
MAX_NODE_PATH = 2_000  # characters
YOUNG = 600_000  # milliseconds in which an accepted trigger may not have begun yet


class TriggerServicer(TriggerServiceServicer):
    def __init__(
        self,
        admission: Admission,
        waiting: Waiting,
        lookup: Lookup,
        operations: Operations,
        clock: Clock,
    ) -> None:
        self._admission = admission
        self._waiting = waiting
        self._lookup = lookup
        self._operations = operations
        self._clock = clock

    async def Trigger(
        self,
        request: pb.TriggerRequest,
        context: grpc.aio.ServicerContext[pb.TriggerRequest, pb.TriggerResponse],
    ) -> pb.TriggerResponse:
        _check(request)
        wait = request.wait.ToMilliseconds() / 1_000
        trigger = await self._prepare(request)
        if not wait:
            return await self._begin(trigger)
        if trigger.key:
            answer = await self._begin(trigger)
            trace_id = bytes.fromhex(answer.trace_id)
            with self._waiting.listen(trace_id) as future:
                return await self._wait(answer, future, wait, context, look_first=True)
        with self._waiting.listen(trigger.trace_id) as future:
            answer = await self._begin(trigger)
            return await self._wait(answer, future, wait, context, look_first=False)

    async def _prepare(self, request: pb.TriggerRequest) -> StartTrace:
        value = checked_payload(request.input, "input")
        return await self._admission.prepare(
            request.playbook,
            request.snapshot_id,
            value,
            caller().subject,
            start_at=milliseconds(request.start_at) if request.HasField("start_at") else 0,
            priority=request.priority if request.HasField("priority") else DEFAULT_PRIORITY,
            key=request.idempotency_key,
        )

    async def _begin(self, trigger: StartTrace) -> pb.TriggerResponse:
        """Makes the trigger durable."""
        if not trigger.key:
            await self._admission.append(trigger)
            return pb.TriggerResponse(
                trace_id=trigger.trace_id.hex(), snapshot_id=trigger.snapshot_id
            )
        started = await self._admission.start_keyed(trigger)
        snapshot_id = started.snapshot_id
        if not snapshot_id:  # its owner has forgotten the details
            snapshot_id = (await self._lookup.trace(started.trace_id)).snapshot_id
        return pb.TriggerResponse(
            trace_id=started.trace_id.hex(), snapshot_id=snapshot_id, existing=started.existing
        )

    async def _wait(
        self,
        answer: pb.TriggerResponse,
        future: asyncio.Future[pb.Outcome],
        wait: float,
        context: grpc.aio.ServicerContext[pb.TriggerRequest, pb.TriggerResponse],
        look_first: bool,
    ) -> pb.TriggerResponse:
        """The answer with the outcome, if the trace ends in time."""
        remaining = context.time_remaining()
        patience = min(wait, MAX_WAIT, remaining - 0.1 if remaining else MAX_WAIT)
        trace_id = bytes.fromhex(answer.trace_id)
        try:
            outcome = await self._waiting.outcome(trace_id, future, patience, look_first)
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
            started = await self._begin(await self._prepare(request))
        except MagicflowError as error:
            later = isinstance(error, Unavailable | Exhausted)
            wait = round(1_000 * (error.retry_after or 0)) if isinstance(error, Exhausted) else 0
            refused = Failure(error.reason, error.message, later, retry_after=wait)
            return pb.TriggerVerdict(refused=failure_message(refused))
        return pb.TriggerVerdict(started=started)

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
        act = _act(Verb.ABORT, request.why, compensate=request.compensate)
        await self._operations.abort(_parse(request.trace_id), act)
        return pb.AbortResponse()

    async def Signal(
        self,
        request: pb.SignalRequest,
        context: grpc.aio.ServicerContext[pb.SignalRequest, pb.SignalResponse],
    ) -> pb.SignalResponse:
        reject = request.decision == pb.DECISION_REJECT
        act = _act(Verb.SIGNAL, request.why, request.node, reject=reject)
        if request.HasField("payload"):
            value = checked_payload(request.payload, "payload")
            act.payload.CopyFrom(payload_message(value) or act.payload)
        await self._operations.act(_parse(request.trace_id), act)
        return pb.SignalResponse()

    async def Pause(
        self,
        request: pb.PauseRequest,
        context: grpc.aio.ServicerContext[pb.PauseRequest, pb.PauseResponse],
    ) -> pb.PauseResponse:
        await self._operations.act(_parse(request.trace_id), _act(Verb.PAUSE, request.why))
        return pb.PauseResponse()

    async def Resume(
        self,
        request: pb.ResumeRequest,
        context: grpc.aio.ServicerContext[pb.ResumeRequest, pb.ResumeResponse],
    ) -> pb.ResumeResponse:
        await self._operations.act(_parse(request.trace_id), _act(Verb.RESUME, request.why))
        return pb.ResumeResponse()

    async def Retry(
        self,
        request: pb.RetryRequest,
        context: grpc.aio.ServicerContext[pb.RetryRequest, pb.RetryResponse],
    ) -> pb.RetryResponse:
        act = _act(Verb.RETRY, request.why)
        act.nodes.extend(request.nodes)
        await self._operations.retry(_parse(request.trace_id), act)
        return pb.RetryResponse()

    async def Rerun(
        self,
        request: pb.RerunRequest,
        context: grpc.aio.ServicerContext[pb.RerunRequest, pb.RerunResponse],
    ) -> pb.RerunResponse:
        _check_why(request.why)
        value = checked_payload(request.input, "input") if request.HasField("input") else None
        trigger = await self._operations.rerun(
            _parse(request.trace_id), request.node, value, request.snapshot_id, request.why
        )
        await self._admission.admit(trigger)
        return pb.RerunResponse(trace_id=trigger.trace_id.hex())

    async def CompleteNode(
        self,
        request: pb.CompleteNodeRequest,
        context: grpc.aio.ServicerContext[pb.CompleteNodeRequest, pb.CompleteNodeResponse],
    ) -> pb.CompleteNodeResponse:
        act = _act(Verb.COMPLETE, request.why, request.node)
        value = checked_payload(request.output, "output")
        act.payload.CopyFrom(payload_message(value) or act.payload)
        await self._operations.act(_parse(request.trace_id), act)
        return pb.CompleteNodeResponse()

    async def FailNode(
        self,
        request: pb.FailNodeRequest,
        context: grpc.aio.ServicerContext[pb.FailNodeRequest, pb.FailNodeResponse],
    ) -> pb.FailNodeResponse:
        act = _act(Verb.FAIL, request.why, request.node)
        act.failure.CopyFrom(request.failure)
        act.failure.code = act.failure.code or Code.FAILED_BY_OPERATOR
        await self._operations.act(_parse(request.trace_id), act)
        return pb.FailNodeResponse()

    async def SkipNode(
        self,
        request: pb.SkipNodeRequest,
        context: grpc.aio.ServicerContext[pb.SkipNodeRequest, pb.SkipNodeResponse],
    ) -> pb.SkipNodeResponse:
        act = _act(Verb.SKIP, request.why, request.node)
        await self._operations.act(_parse(request.trace_id), act)
        return pb.SkipNodeResponse()


def _act(
    verb: Verb, why: str, node: str = "", *, reject: bool = False, compensate: bool = False
) -> OperateRequest:
    _check_why(why)
    if len(node) > MAX_NODE_PATH:
        raise Invalid(f"node has more than {MAX_NODE_PATH} characters")
    return OperateRequest(verb=verb, why=why, node=node, reject=reject, compensate=compensate)


def _check_why(why: str) -> None:
    if len(why) > 1_024:
        raise Invalid("why has more than 1,024 characters")


def _check(request: pb.TriggerRequest) -> None:
    app, _, name = request.playbook.partition("/")
    if not app or not name:
        raise Invalid(
            f"{request.playbook!r} is no playbook name",
            mend="write app/name",
        )
    caller().require("trigger", app)
    if request.labels:
        raise Unimplemented(
            "labels are not available in this version", metadata={"field": "labels"}
        )
    if len(request.idempotency_key) > MAX_KEY:
        raise Invalid(f"idempotency_key has more than {MAX_KEY} characters")
    if request.priority > 9:
        raise Invalid(f"priority is {request.priority}; it must be from 0 to 9")


def _parse(text: str) -> bytes:
    trace_id = parse_trace_id(text)
    if trace_id is None:
        raise Invalid(
            f"{text!r} is no trace id", mend="a trace id has 32 hex digits, as trigger prints it"
        )
    return trace_id
