"""The dispatcher's two faces: `DispatchService` for workers, `PartitionService` for the mesh."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import grpc.aio

from engine.bus.triggers import decode_triggers
from engine.core.state import TraceState, dump
from engine.core.steering import Act, Verb
from engine.errors import Invalid, NotFound, Unavailable, WrongState
from engine.ids import parse_trace_id, partition_of
from engine.rpc.interceptors import caller
from engine.security.tokens import EVERY_APP, Identity
from engine.snapshots.capacity import Capacity
from engine.wire.traces import trace_message
from engine.wire.values import MAX_PAYLOAD, duration, failure, milliseconds, payload
from magicflow.v1 import dispatch_service_pb2 as pb
from magicflow.v1 import partition_service_pb2 as inner
from magicflow.v1.dispatch_service_pb2_grpc import DispatchServiceServicer
from magicflow.v1.partition_service_pb2_grpc import PartitionServiceServicer
from magicflow.v1.task_pb2 import (
    RESULT_VERDICT_ACCEPTED,
    RESULT_VERDICT_SUPERSEDED,
    ResultReceipt,
)
from magicflow.v1.worker_pb2 import WorkerHello, WorkerWelcome
from services.dispatcher.gateway import Gateway, result_of
from services.dispatcher.letters import Letters
from services.dispatcher.ownership import Ownership
from services.dispatcher.processor import Processor
from services.dispatcher.sessions import FRAME_TASKS, HEARTBEAT, Session
from services.dispatcher.turns import loss

MAX_POLL = 60.0  # seconds


class DispatchServicer(DispatchServiceServicer):
    """Sessions of workers, streamed or polled."""

    def __init__(self, gateway: Gateway, letters: Letters, instance: str) -> None:
        self._gateway = gateway
        self._letters = letters
        self._instance = instance

    async def Work(
        self,
        request_iterator: AsyncIterator[pb.WorkRequest],
        context: grpc.aio.ServicerContext[pb.WorkRequest, pb.WorkResponse],
    ) -> AsyncIterator[pb.WorkResponse]:
        first = await anext(aiter(request_iterator), None)
        if first is None or not first.HasField("hello"):
            raise Invalid("the first message of a worker is its hello", reason="WORKER_PROTOCOL")
        session = await self._join(first.hello)
        reader = asyncio.create_task(self._read(session, request_iterator))
        try:
            yield pb.WorkResponse(welcome=self._welcome(session))
            while (frame := await session.next_frame()) is not None:
                yield frame
                if frame.tasks:
                    self._gateway.began(session, frame.tasks)
            if reader.done() and not reader.cancelled() and reader.exception() is not None:
                raise reader.exception()  # type: ignore[misc]
            if self._gateway.draining:
                raise Unavailable("this dispatcher is shutting down; connect again")
        finally:
            reader.cancel()
            await self._gateway.leave(session)

    async def _read(self, session: Session, requests: AsyncIterator[pb.WorkRequest]) -> None:
        try:
            async for request in requests:
                if request.HasField("hello"):
                    raise Invalid("a second hello on one stream", reason="WORKER_PROTOCOL")
                self._heard(session, request)
        finally:
            session.close()

    def _heard(self, session: Session, request: pb.WorkRequest) -> None:
        gateway = self._gateway
        gateway.heard(session)
        if request.draining and not session.draining:
            gateway.drain(session)
        if request.slots:
            gateway.resize(session, request.slots)
        if request.results:
            gateway.results(session, request.results)
        if request.returned:
            gateway.returned(session, request.returned)
        if request.receipts:
            gateway.receipts(session, request.receipts)
        if request.progress:
            gateway.progress(session, request.progress)
        if request.HasField("heartbeat"):
            session.echo(request.heartbeat.number)
            gateway.compare(session, request.heartbeat.running)

    async def Poll(
        self,
        request: pb.PollRequest,
        context: grpc.aio.ServicerContext[pb.PollRequest, pb.PollResponse],
    ) -> pb.PollResponse:
        if request.HasField("hello"):
            session = await self._join(request.hello)
            return pb.PollResponse(welcome=self._welcome(session))
        session = self._session(request.session)
        self._gateway.heard(session)
        wait = min(request.wait.ToMilliseconds() / 1_000, MAX_POLL)
        frame = await session.next_frame(wait, request.max_tasks or FRAME_TASKS)
        if frame is None:
            return pb.PollResponse()
        if frame.tasks:
            self._gateway.began(session, frame.tasks)
        return pb.PollResponse(tasks=frame.tasks, commands=frame.commands)

    async def Complete(
        self,
        request: pb.CompleteRequest,
        context: grpc.aio.ServicerContext[pb.CompleteRequest, pb.CompleteResponse],
    ) -> pb.CompleteResponse:
        session = self._session(request.session)
        self._gateway.heard(session)
        if request.returned:
            self._gateway.returned(session, request.returned)
        loop = asyncio.get_running_loop()
        receipts = [loop.create_future() for _ in request.results]
        for result, receipt in zip(request.results, receipts, strict=True):
            session.awaited[_id_key(result.id)] = receipt
        self._gateway.results(session, request.results)
        return pb.CompleteResponse(receipts=await asyncio.gather(*receipts))

    async def Heartbeat(
        self,
        request: pb.HeartbeatRequest,
        context: grpc.aio.ServicerContext[pb.HeartbeatRequest, pb.HeartbeatResponse],
    ) -> pb.HeartbeatResponse:
        session = self._session(request.session)
        self._gateway.heard(session)
        self._gateway.receipts(session, request.receipts)
        self._gateway.progress(session, request.progress)
        if request.HasField("heartbeat"):
            self._gateway.compare(session, request.heartbeat.running)
        return pb.HeartbeatResponse(commands=session.take_commands())

    async def SendCommand(
        self,
        request: pb.SendCommandRequest,
        context: grpc.aio.ServicerContext[pb.SendCommandRequest, pb.SendCommandResponse],
    ) -> pb.SendCommandResponse:
        session = self._gateway.sessions.get(request.worker_id)
        if session is None:
            raise NotFound(
                f"no worker {request.worker_id} is connected to this dispatcher",
                reason="WORKER_NOT_FOUND",
            )
        caller().require("operate", session.app)
        if request.command.WhichOneof("what") is None:
            raise Invalid("the command says nothing", reason="INVALID")
        timeout = context.time_remaining() or 10.0
        receipt = await self._gateway.command(request.worker_id, request.command, timeout)
        return pb.SendCommandResponse(receipt=receipt)

    async def ListDeadLetters(
        self, request: pb.ListDeadLettersRequest, context: Any
    ) -> pb.ListDeadLettersResponse:
        return await self._letters.page(request)

    async def GetDeadLetter(
        self, request: pb.GetDeadLetterRequest, context: Any
    ) -> pb.GetDeadLetterResponse:
        return pb.GetDeadLetterResponse(dead_letter=await self._letters.one(request.id))

    async def ReplayDeadLetter(
        self, request: pb.ReplayDeadLetterRequest, context: Any
    ) -> pb.ReplayDeadLetterResponse:
        await self._letters.replay(request.id)
        return pb.ReplayDeadLetterResponse()

    async def DropDeadLetter(
        self, request: pb.DropDeadLetterRequest, context: Any
    ) -> pb.DropDeadLetterResponse:
        await self._letters.drop(request.id)
        return pb.DropDeadLetterResponse()

    async def _join(self, hello: WorkerHello) -> Session:
        identity = caller()
        app = _worker_app(identity, hello)
        identity.require("work", app)
        return await self._gateway.join(app, hello, foreign=identity.app == EVERY_APP)

    def _session(self, token: str) -> Session:
        session = self._gateway.by_token(token)
        if session is None or session.closed:
            raise NotFound(
                "this session is over or was never opened",
                reason="WORKER_NOT_FOUND",
                mend="open one with a hello",
            )
        return session

    def _welcome(self, session: Session) -> WorkerWelcome:
        return WorkerWelcome(
            worker_id=session.worker_id,
            dispatcher=self._instance,
            heartbeat_interval=duration(int(HEARTBEAT * 1_000)),
            max_payload_bytes=MAX_PAYLOAD,
            session=session.token,
        )


def _worker_app(identity: Identity, hello: WorkerHello) -> str:
    """The app that the worker speaks for: its token's, or that of its first function."""
    if identity.app != EVERY_APP:
        return identity.app
    return hello.functions[0].name.partition("/")[0] if hello.functions else EVERY_APP


def _id_key(message: Any) -> tuple[bytes, str, int]:
    return message.trace_id, message.node, message.attempt


class PartitionServicer(PartitionServiceServicer):
    """What other instances ask of the partitions owned here."""

    def __init__(self, ownership: Ownership, partitions: int, capacity: Capacity) -> None:
        self._ownership = ownership
        self._partitions = partitions
        self._capacity = capacity

    async def Deliver(
        self,
        request: inner.DeliverRequest,
        context: grpc.aio.ServicerContext[inner.DeliverRequest, inner.DeliverResponse],
    ) -> inner.DeliverResponse:
        _service_only()
        processor = self._processor(request.partition)
        if len(request.workers) != len(request.results):
            raise Invalid("workers and results differ in number")
        lost = set(request.lost)
        results = [
            loss(*_id_key(message.id), worker, milliseconds(message.began_at))
            if place in lost
            else result_of(message, worker)
            for place, (message, worker) in enumerate(
                zip(request.results, request.workers, strict=True)
            )
        ]
        accepted = await processor.deliver(results)
        return inner.DeliverResponse(
            receipts=[
                ResultReceipt(
                    id=message.id,
                    verdict=RESULT_VERDICT_ACCEPTED if taken else RESULT_VERDICT_SUPERSEDED,
                )
                for message, taken in zip(request.results, accepted, strict=True)
            ]
        )

    async def Owed(
        self,
        request: inner.OwedRequest,
        context: grpc.aio.ServicerContext[inner.OwedRequest, inner.OwedResponse],
    ) -> inner.OwedResponse:
        _service_only()
        processor = self._processor(request.partition)
        owed = await processor.owed([_id_key(task) for task in request.tasks])
        return inner.OwedResponse(owed=owed)

    async def Inspect(
        self,
        request: inner.InspectRequest,
        context: grpc.aio.ServicerContext[inner.InspectRequest, inner.InspectResponse],
    ) -> inner.InspectResponse:
        trace_id, processor, trace = self._find(request.trace_id)
        caller().require("trigger", trace.app)
        running = processor.running(trace_id)
        message = trace_message(processor.graphs, trace, self._capacity.offered, running)
        await processor.committed()
        return inner.InspectResponse(trace=message)

    async def Export(
        self,
        request: inner.ExportRequest,
        context: grpc.aio.ServicerContext[inner.ExportRequest, inner.ExportResponse],
    ) -> inner.ExportResponse:
        _service_only()
        _, processor, trace = self._find(request.trace_id)
        state = dump(trace)
        await processor.committed()
        return inner.ExportResponse(state=state)

    async def Start(
        self,
        request: inner.StartRequest,
        context: grpc.aio.ServicerContext[inner.StartRequest, inner.StartResponse],
    ) -> inner.StartResponse:
        _service_only()
        processor = self._processor(request.partition)
        try:
            [trigger] = decode_triggers(request.trigger)
        except ValueError as error:
            raise Invalid(f"trigger: {error}") from error
        trace_id, existing = await processor.start(trigger)
        snapshot_id = trigger.snapshot_id
        if existing:
            known = processor.find(trace_id)
            snapshot_id = known.snapshot_id if known is not None else 0
        return inner.StartResponse(trace_id=trace_id, existing=existing, snapshot_id=snapshot_id)

    async def LeaseStarts(
        self,
        request: inner.LeaseStartsRequest,
        context: grpc.aio.ServicerContext[inner.LeaseStartsRequest, inner.LeaseStartsResponse],
    ) -> inner.LeaseStartsResponse:
        _service_only()
        granted, wait = self._processor(request.partition).lease(request.app, request.wanted)
        return inner.LeaseStartsResponse(
            granted=granted, retry_after=duration(max(1, round(wait * 1_000)) if wait else 0)
        )

    async def Operate(
        self,
        request: inner.OperateRequest,
        context: grpc.aio.ServicerContext[inner.OperateRequest, inner.OperateResponse],
    ) -> inner.OperateResponse:
        _service_only()
        act = _act(request)
        if act.verb is Verb.RETRY:
            trace_id = _parse(request.trace_id)
            processor = self._processor(partition_of(trace_id, self._partitions))
            await processor.operate(trace_id, act, request.state)
            return inner.OperateResponse()
        trace_id, processor, trace = self._find(request.trace_id)
        if trace.status.ended:
            raise WrongState(
                f"the trace has ended: {trace.status.name}",
                reason="TRACE_ENDED",
                metadata={"status": trace.status.name},
            )
        await processor.operate(trace_id, act)
        return inner.OperateResponse()

    def _processor(self, partition: int) -> Processor:
        processor = self._ownership.processors.get(partition)
        if processor is None:
            raise Unavailable(
                f"partition {partition} is not owned here",
                reason="PARTITION_UNOWNED",
                retry_after=0.2,
            )
        return processor

    def _find(self, text: str) -> tuple[bytes, Processor, TraceState]:
        trace_id = _parse(text)
        processor = self._processor(partition_of(trace_id, self._partitions))
        found = processor.find(trace_id)
        if found is None:
            raise NotFound(f"no live trace {text}", reason="TRACE_NOT_FOUND")
        return trace_id, processor, found


def _act(request: inner.OperateRequest) -> Act:
    try:
        verb = Verb(request.verb)
    except ValueError as error:
        raise Invalid(f"{request.verb!r} is no verb") from error
    return Act(
        verb,
        request.by,
        request.why,
        request.node,
        payload(request.payload) if request.HasField("payload") else None,
        failure(request.failure) if request.HasField("failure") else None,
        not request.reject,
        request.compensate,
        tuple(request.nodes),
    )


def _parse(text: str) -> bytes:
    trace_id = parse_trace_id(text)
    if trace_id is None:
        raise Invalid(f"{text!r} is no trace id: it has 32 hex digits")
    return trace_id


def _service_only() -> None:
    caller().require("admin", EVERY_APP)
