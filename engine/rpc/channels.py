"""Channels to other instances, and calls routed by trace id to the owner of its partition."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

import grpc.aio

from engine.errors import Unavailable
from engine.ids import partition_of
from engine.rpc.server import MESSAGE_LIMIT
from engine.snapshots import keys
from engine.snapshots.membership import decode_claim
from engine.snapshots.mirror import Mirror
from engine.snapshots.port import Snapshots
from magicflow.v1.partition_service_pb2_grpc import PartitionServiceStub

if TYPE_CHECKING:
    from magicflow.v1.partition_service_pb2_grpc import PartitionServiceAsyncStub

CALL_TIMEOUT = 10.0  # seconds


class Channels:
    """One channel per address, made at the first call."""

    def __init__(self) -> None:
        self._channels: dict[str, grpc.aio.Channel] = {}

    def to(self, address: str) -> grpc.aio.Channel:
        channel = self._channels.get(address)
        if channel is None:
            channel = grpc.aio.insecure_channel(
                address,
                options=[
                    ("grpc.max_receive_message_length", MESSAGE_LIMIT),
                    ("grpc.max_send_message_length", MESSAGE_LIMIT),
                    ("grpc.initial_reconnect_backoff_ms", 100),
                    ("grpc.max_reconnect_backoff_ms", 1_000),
                ],
            )
            self._channels[address] = channel
        return channel

    async def close(self) -> None:
        for channel in self._channels.values():
            await channel.close()


class Owners:
    """Finds the dispatcher that owns a partition. `credentials` gives the metadata that proves
    this service to another one."""

    def __init__(
        self,
        snapshots: Snapshots,
        partitions: int,
        channels: Channels,
        credentials: Callable[[], tuple[tuple[str, str], ...]],
    ) -> None:
        self._mirror = Mirror(snapshots, keys.PARTITIONS)
        self._partitions = partitions
        self._channels = channels
        self.credentials = credentials

    async def open(self) -> None:
        await self._mirror.open()

    async def close(self) -> None:
        await self._mirror.close()

    def of_trace(self, trace_id: bytes) -> PartitionServiceAsyncStub:
        """Errors: `Unavailable` while nobody owns the trace's partition."""
        return self.of_partition(partition_of(trace_id, self._partitions))

    def of_partition(self, partition: int) -> PartitionServiceAsyncStub:
        value = self._mirror.entries.get(keys.partition(partition))
        if value is None:
            raise Unavailable(
                f"no dispatcher owns partition {partition} at this moment",
                reason="PARTITION_UNOWNED",
                mend="try again; if it lasts, see `magicflow doctor`",
                retry_after=0.5,
            )
        stub: PartitionServiceAsyncStub = PartitionServiceStub(
            self._channels.to(decode_claim(value).address)
        )
        return stub
