"""A trace as its owner or the trace service knows it, asked over the mesh."""

from __future__ import annotations

from typing import TYPE_CHECKING

import grpc.aio

from engine.errors import Unavailable
from engine.rpc.channels import CALL_TIMEOUT, Channels, Owners
from engine.rpc.status import from_call
from engine.snapshots import keys
from engine.snapshots.membership import decode_member
from engine.snapshots.mirror import Mirror
from engine.snapshots.port import Snapshots
from magicflow.v1.partition_service_pb2 import InspectRequest
from magicflow.v1.trace_pb2 import Trace
from magicflow.v1.trace_service_pb2 import ExportTraceRequest, GetTraceRequest
from magicflow.v1.trace_service_pb2_grpc import TraceServiceStub

if TYPE_CHECKING:
    from magicflow.v1.trace_service_pb2_grpc import TraceServiceAsyncStub


class Lookup:
    """Asks the live instances of the trace service in turn."""

    def __init__(self, snapshots: Snapshots, channels: Channels, owners: Owners) -> None:
        self._instances = Mirror(snapshots, keys.INSTANCES)
        self._channels = channels
        self._owners = owners
        self._turn = 0

    async def open(self) -> None:
        await self._instances.open()

    async def close(self) -> None:
        await self._instances.close()

    async def trace(self, trace_id: bytes) -> Trace:
        """As its owner has it, or, where that one does not know it, as the trace service does: a
        trace that lives can be waited for and steered while no trace service is there.

        Errors: those of `TraceService.GetTrace`.
        """
        return await self._live(trace_id) or await self._stored(trace_id)

    async def _live(self, trace_id: bytes) -> Trace | None:
        try:
            response = await self._owners.of_trace(trace_id).Inspect(
                InspectRequest(trace_id=trace_id.hex()),
                timeout=CALL_TIMEOUT,
                metadata=self._owners.credentials(),
            )
        except (Unavailable, grpc.aio.AioRpcError):
            return None  # the trace service asks as well, and says what is wrong
        return response.trace

    async def _stored(self, trace_id: bytes) -> Trace:
        try:
            response = await self._stub().GetTrace(
                GetTraceRequest(trace_id=trace_id.hex()),
                timeout=CALL_TIMEOUT,
                metadata=self._owners.credentials(),
            )
        except grpc.aio.AioRpcError as error:
            raise from_call(error) from error
        return response.trace

    async def export(self, trace_id: bytes) -> bytes:
        """The state of a stored trace. Errors: those of `TraceService.ExportTrace`."""
        try:
            response = await self._stub().ExportTrace(
                ExportTraceRequest(trace_id=trace_id.hex()),
                timeout=CALL_TIMEOUT,
                metadata=self._owners.credentials(),
            )
        except grpc.aio.AioRpcError as error:
            raise from_call(error) from error
        return response.state

    def _stub(self) -> TraceServiceAsyncStub:
        members = [decode_member(value) for value in self._instances.entries.values()]
        addresses = sorted(m.address for m in members if m.service == "trace")
        if not addresses:
            raise Unavailable("no instance of the trace service is live", retry_after=1.0)
        self._turn += 1
        stub: TraceServiceAsyncStub = TraceServiceStub(
            self._channels.to(addresses[self._turn % len(addresses)])
        )
        return stub
