"""`TraceService`: what is known of traces, live ones from their owners, ended ones from SQL."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator
from typing import Any

import grpc.aio
import msgspec

from engine.bus.port import Bus
from engine.bus.subjects import PROJECTED
from engine.core.events import ScopeOpened, TraceEnded, TraceRevived, TraceStarted
from engine.core.state import TraceState, apply, begin, dump, load
from engine.errors import Invalid, NotFound, Unavailable, Unimplemented
from engine.ids import born_at, parse_trace_id, partition_of
from engine.rpc.channels import CALL_TIMEOUT, Owners
from engine.rpc.interceptors import caller
from engine.rpc.paging import page_size, page_start
from engine.rpc.status import from_call
from engine.security.tokens import EVERY_APP
from engine.snapshots.callees import Callees
from engine.snapshots.library import Library
from engine.store.journals import Chapter, Execution, Journals
from engine.wire.traces import EventWriter, trace_message
from engine.wire.values import timestamp
from magicflow.v1 import trace_pb2
from magicflow.v1 import trace_service_pb2 as pb
from magicflow.v1.error_pb2 import Failure
from magicflow.v1.partition_service_pb2 import InspectRequest
from magicflow.v1.trace_service_pb2_grpc import TraceServiceServicer

ENDED = (
    trace_pb2.TRACE_STATUS_SUCCEEDED,
    trace_pb2.TRACE_STATUS_FAILED,
    trace_pb2.TRACE_STATUS_ABORTED,
    trace_pb2.TRACE_STATUS_TIMED_OUT,
)
FRESH = 5.0  # seconds in which an unknown trace may still be on its way to its owner
LOOK_AGAIN = 0.05  # seconds
SAFETY = 5.0  # seconds after which a watcher looks although nothing was announced


class TraceServicer(TraceServiceServicer):
    def __init__(
        self, journals: Journals, library: Library, owners: Owners, bus: Bus, partitions: int
    ) -> None:
        self._partitions = partitions
        self._journals = journals
        self._library = library
        self._owners = owners
        self._bus = bus
        self._watchers: dict[bytes, set[asyncio.Event]] = {}

    async def open(self) -> None:
        await self._bus.listen(PROJECTED, self._projected)

    async def GetTrace(
        self,
        request: pb.GetTraceRequest,
        context: grpc.aio.ServicerContext[pb.GetTraceRequest, pb.GetTraceResponse],
    ) -> pb.GetTraceResponse:
        return pb.GetTraceResponse(trace=await self._get(_parse(request.trace_id)))

    async def WatchTrace(
        self,
        request: pb.WatchTraceRequest,
        context: grpc.aio.ServicerContext[pb.WatchTraceRequest, pb.WatchTraceResponse],
    ) -> AsyncIterator[pb.WatchTraceResponse]:
        trace_id = _parse(request.trace_id)
        changed = asyncio.Event()
        self._watchers.setdefault(trace_id, set()).add(changed)
        shown: bytes | None = None
        try:
            while True:
                changed.clear()
                trace = await self._get(trace_id)
                data = trace.SerializeToString(deterministic=True)
                if data != shown:
                    shown = data
                    yield pb.WatchTraceResponse(trace=trace)
                if trace.status in ENDED:
                    return
                with contextlib.suppress(TimeoutError):
                    await asyncio.wait_for(changed.wait(), SAFETY)
        finally:
            self._watchers[trace_id].discard(changed)
            if not self._watchers[trace_id]:
                del self._watchers[trace_id]

    async def ListEvents(
        self,
        request: pb.ListEventsRequest,
        context: grpc.aio.ServicerContext[pb.ListEventsRequest, pb.ListEventsResponse],
    ) -> pb.ListEventsResponse:
        trace_id = _parse(request.trace_id)
        size = page_size(request.page_size, 1_000, 10_000)
        start = page_start(request.page_token)
        chapters = await self._chapters(trace_id)
        graphs, state = await self._fold(trace_id, chapters)
        caller().require("trigger", state.app)
        writer = EventWriter(graphs, state)
        events = [
            writer.message(event, chapter.partition, chapter.sequence, place, chapter.at)
            for chapter in chapters
            for place, event in enumerate(chapter.events)
        ]
        page = events[start : start + size]
        more = str(start + size) if start + size < len(events) else ""
        return pb.ListEventsResponse(events=page, next_page_token=more)

    async def ListTraces(
        self,
        request: pb.ListTracesRequest,
        context: grpc.aio.ServicerContext[pb.ListTracesRequest, pb.ListTracesResponse],
    ) -> pb.ListTracesResponse:
        size = page_size(request.page_size, 50, 1_000)
        before = request.page_token
        if before and parse_trace_id(before) is None:
            raise Invalid("page_token is none that this service gave out")
        if request.playbook:
            caller().require("trigger", request.playbook.partition("/")[0])
        if request.snapshot_id:
            rows = await self._journals.list_snapshot(
                request.snapshot_id, request.status, before, size
            )
        elif request.playbook:
            playbook_id = self._library.playbook_id(request.playbook)
            rows = await self._journals.list_playbook(playbook_id, request.status, before, size)
        else:
            raise Invalid("name a snapshot or a playbook")
        for row in rows[:1]:
            caller().require("trigger", row.app)
        more = rows[-1].trace_id if len(rows) == size else ""
        return pb.ListTracesResponse(
            traces=[_row_message(row) for row in rows], next_page_token=more
        )

    async def ExportTrace(
        self,
        request: pb.ExportTraceRequest,
        context: grpc.aio.ServicerContext[pb.ExportTraceRequest, pb.ExportTraceResponse],
    ) -> pb.ExportTraceResponse:
        caller().require("admin", EVERY_APP)
        trace_id = _parse(request.trace_id)
        _, state = await self._fold(trace_id, await self._journals.chapters(trace_id))
        return pb.ExportTraceResponse(state=dump(state))

    async def SearchTraces(self, request: Any, context: Any) -> Any:
        raise Unimplemented("SearchTraces is not available in this version")

    async def GetStats(self, request: Any, context: Any) -> Any:
        raise Unimplemented("GetStats is not available in this version")

    async def _get(self, trace_id: bytes) -> trace_pb2.Trace:
        """The trace as it is now. One that was triggered a moment ago may still be on its way
        to its owner, so an unknown young one is looked for a little longer. That there is none is
        said by an owner that was asked and by SQL that has the whole log.

        Errors: `NotFound`; `Unavailable` while nobody can say so.
        """
        born = born_at(trace_id) / 1_000
        patience = time.monotonic() + max(0.0, min(FRESH, born + FRESH - time.time()))
        while True:
            trace, asked = await self._ask_owner(trace_id)
            trace = trace or await self._stored(trace_id)
            if trace is not None:
                caller().require("trigger", trace.app)
                return trace
            if time.monotonic() >= patience:
                break
            await asyncio.sleep(LOOK_AGAIN)
        if not (asked and await self._has_whole_log(trace_id)):
            raise Unavailable(
                f"nobody can say at this moment whether there is a trace {trace_id.hex()}",
                reason="PARTITION_UNOWNED",
                retry_after=0.5,
            )
        found = await self._stored(trace_id)  # it may have come with the rest of the log
        if found is None:
            raise NotFound(
                f"there is no trace {trace_id.hex()}",
                reason="TRACE_NOT_FOUND",
                mend="check the id; `magicflow trace list` shows the known ones",
            )
        caller().require("trigger", found.app)
        return found

    async def _has_whole_log(self, trace_id: bytes) -> bool:
        """Whether SQL has all that the log had when it was asked, after some patience."""
        partition = partition_of(trace_id, self._partitions)
        last = await self._bus.partition_log(partition).last()
        patience = time.monotonic() + FRESH
        while True:
            if (await self._journals.positions()).get(partition, 0) >= last:
                return True
            if time.monotonic() >= patience:
                return False
            await asyncio.sleep(LOOK_AGAIN)

    async def _chapters(self, trace_id: bytes) -> list[Chapter]:
        """What SQL knows of a trace; of one that has ended everything, so that whoever has just
        heard of the end is not shown less."""
        patience = time.monotonic() + FRESH
        trace = await self._live(trace_id)
        while True:
            chapters = await self._journals.chapters(trace_id)
            last = chapters[-1].events[-1] if chapters else None
            whole = isinstance(last, TraceEnded) or trace is None or trace.status not in ENDED
            if (chapters and whole) or trace is None or time.monotonic() >= patience:
                return chapters
            await asyncio.sleep(LOOK_AGAIN)

    async def _live(self, trace_id: bytes) -> trace_pb2.Trace | None:
        return (await self._ask_owner(trace_id))[0]

    async def _ask_owner(self, trace_id: bytes) -> tuple[trace_pb2.Trace | None, bool]:
        """The trace, if its owner has it, and whether the owner could be asked."""
        try:
            response = await self._owners.of_trace(trace_id).Inspect(
                InspectRequest(trace_id=trace_id.hex()),
                timeout=CALL_TIMEOUT,
                metadata=self._owners.credentials(),
            )
        except Unavailable:
            return None, False
        except grpc.aio.AioRpcError as error:
            if error.code() is grpc.StatusCode.NOT_FOUND:
                return None, True
            if isinstance(from_call(error), Unavailable):
                return None, False
            raise from_call(error) from error
        return response.trace, True

    async def _stored(self, trace_id: bytes) -> trace_pb2.Trace | None:
        chapters = await self._journals.chapters(trace_id)
        if not chapters:
            return None
        graphs, state = await self._fold(trace_id, chapters)
        return trace_message(graphs, state)

    async def _fold(self, trace_id: bytes, chapters: list[Chapter]) -> tuple[Callees, TraceState]:
        """The state after everything that SQL knows. Errors: `NotFound`."""
        if not chapters:
            raise NotFound(f"there is no trace {trace_id.hex()}", reason="TRACE_NOT_FOUND")
        graphs = Callees(self._library)
        state: TraceState | None = None
        for chapter in chapters:
            for event in chapter.events:
                if isinstance(event, TraceStarted):
                    await graphs.load(event.playbook_id, event.snapshot_id)
                    state = begin(graphs, trace_id, event, chapter.at)
                elif isinstance(event, TraceRevived):
                    state = load(event.state)
                else:
                    assert state is not None
                    if isinstance(event, ScopeOpened) and event.snapshot_id:
                        await graphs.load(event.playbook_id, event.snapshot_id)
                    apply(graphs, state, event, chapter.at)
        assert state is not None
        return graphs, state

    async def _projected(self, _subject: str, data: bytes) -> None:
        for trace_id in msgspec.msgpack.decode(data):
            for changed in self._watchers.get(trace_id, ()):
                changed.set()


def _parse(text: str) -> bytes:
    trace_id = parse_trace_id(text)
    if trace_id is None:
        raise Invalid(
            f"{text!r} is no trace id", mend="a trace id has 32 hex digits, as trigger prints it"
        )
    return trace_id


def _row_message(row: Execution) -> trace_pb2.Trace:
    return trace_pb2.Trace(
        trace_id=row.trace_id,
        app=row.app,
        playbook=row.playbook,
        playbook_id=row.playbook_id,
        snapshot_id=row.snapshot_id,
        status=trace_pb2.TraceStatus.ValueType(row.status),
        failure=Failure(code=row.failure_code) if row.failure_code else None,
        triggered_at=timestamp(row.triggered_at),
        started_at=timestamp(row.started_at),
        ended_at=timestamp(row.ended_at),
        triggered_by=row.triggered_by,
    )
