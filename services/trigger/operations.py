"""An operator's acts on their way to the owner of the trace."""

from __future__ import annotations

import grpc.aio

from engine.bus.triggers import Rerun, StartTrace
from engine.clock import Clock
from engine.core.failure import Failure
from engine.core.payload import Payload
from engine.core.refusal import Refused
from engine.core.reruns import outcomes_before
from engine.core.state import TraceState, load
from engine.core.steering import Verb
from engine.errors import MagicflowError, NotFound, Unavailable, WrongState
from engine.ids import mint
from engine.rpc.channels import CALL_TIMEOUT, Owners
from engine.rpc.interceptors import caller
from engine.rpc.status import from_call
from engine.snapshots.callees import Callees
from engine.snapshots.library import Library
from engine.wire.values import timestamp
from magicflow.v1 import trace_pb2
from magicflow.v1.partition_service_pb2 import ExportRequest, OperateRequest
from services.trigger.lookup import Lookup


class Operations:
    """Acts as the caller of the current request, who must hold the scope `operate` of the app."""

    def __init__(self, owners: Owners, lookup: Lookup, library: Library, clock: Clock) -> None:
        self._owners = owners
        self._lookup = lookup
        self._library = library
        self._clock = clock

    async def act(self, trace_id: bytes, request: OperateRequest) -> None:
        """Returns once the act is committed. Errors: those of `PartitionService.Operate`."""
        await self._check(trace_id)
        await self._operate(trace_id, request)

    async def abort(self, trace_id: bytes, request: OperateRequest) -> None:
        """As `act`; aborting an aborted trace is done, anything else that ended is refused."""
        await self._check(trace_id)
        try:
            await self._operate(trace_id, request)
        except (NotFound, WrongState) as refused:
            trace = await self._lookup.trace(trace_id)
            if trace.status == trace_pb2.TRACE_STATUS_ABORTED:
                return
            raise _ended(trace, refused) from refused

    async def retry(self, trace_id: bytes, request: OperateRequest) -> None:
        """Runs an ended trace again, with its state from the trace service where its owner has
        forgotten it."""
        await self._check(trace_id)
        try:
            await self._operate(trace_id, request)
        except NotFound as forgotten:
            if forgotten.reason != "TRACE_NOT_FOUND":
                raise
            request.state = await self._lookup.export(trace_id)
            await self._operate(trace_id, request)

    async def rerun(
        self, trace_id: bytes, node: str, value: Payload | None, snapshot_id: int, why: str
    ) -> StartTrace:
        """The trigger of the new trace. Errors: `NotFound`, `WrongState`, `Unavailable`."""
        await self._check(trace_id)
        former = await self._former(trace_id)
        graphs = Callees(self._library)
        await graphs.load(former.playbook_id, former.snapshot_id)
        snapshot_id = snapshot_id or former.snapshot_id
        graph = await self._library.graph(former.playbook_id, snapshot_id)
        try:
            outcomes = outcomes_before(graphs, former, graph, node)
        except Refused as refused:
            kind = NotFound if refused.reason == "NODE_NOT_FOUND" else WrongState
            raise kind(refused.message, reason=refused.reason, mend=refused.mend) from refused
        by_code = {graph.nodes[place].code: outcome for place, outcome in outcomes.items()}
        now = self._clock.now()
        return StartTrace(
            mint(now, snapshot_id),
            former.playbook_id,
            snapshot_id,
            former.input if node or value is None else value,
            now,
            caller().subject,
            priority=former.priority,
            rerun=Rerun(
                trace_id,
                node,
                why,
                value if node else None,
                {code: o for code, o in by_code.items() if isinstance(o, Payload)},
                {code: o for code, o in by_code.items() if isinstance(o, Failure)},
            ),
        )

    async def _check(self, trace_id: bytes) -> None:
        trace = await self._lookup.trace(trace_id)
        caller().require("operate", trace.app)

    async def _operate(self, trace_id: bytes, request: OperateRequest) -> None:
        request.trace_id = trace_id.hex()
        request.by = caller().subject
        request.at.CopyFrom(timestamp(self._clock.now()) or request.at)
        try:
            await self._owners.of_trace(trace_id).Operate(
                request, timeout=CALL_TIMEOUT, metadata=self._owners.credentials()
            )
        except grpc.aio.AioRpcError as error:
            refused = from_call(error)
            if isinstance(refused, NotFound) and request.verb != Verb.RETRY:
                refused = await self._not_live(trace_id, refused)
            raise refused from error

    async def _not_live(self, trace_id: bytes, refused: MagicflowError) -> MagicflowError:
        """A trace that its owner does not know has ended, or has not begun."""
        if refused.reason != "TRACE_NOT_FOUND":
            return refused
        trace = await self._lookup.trace(trace_id)
        return _ended(trace, refused)

    async def _former(self, trace_id: bytes) -> TraceState:
        try:
            response = await self._owners.of_trace(trace_id).Export(
                ExportRequest(trace_id=trace_id.hex()),
                timeout=CALL_TIMEOUT,
                metadata=self._owners.credentials(),
            )
        except grpc.aio.AioRpcError as error:
            refused = from_call(error)
            if not isinstance(refused, NotFound):
                raise refused from error
            return load(await self._lookup.export(trace_id))
        return load(response.state)


def _ended(trace: trace_pb2.Trace, refused: MagicflowError) -> MagicflowError:
    if not trace.HasField("ended_at"):
        return (
            Unavailable("the trace is on its way to its owner", retry_after=0.5)
            if isinstance(refused, NotFound)
            else refused
        )
    status = trace_pb2.TraceStatus.Name(trace.status).removeprefix("TRACE_STATUS_")
    return WrongState(
        f"the trace has ended: {status}", reason="TRACE_ENDED", metadata={"status": status}
    )
