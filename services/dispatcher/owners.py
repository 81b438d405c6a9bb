"""Owners as the lanes see them: the processor here, or an instance over there."""

from __future__ import annotations

import grpc.aio

from engine.core.payload import Payload
from engine.errors import Unavailable
from engine.rpc.channels import CALL_TIMEOUT, Owners
from engine.rpc.status import from_call
from engine.wire.values import failure_message, payload_message, timestamp
from magicflow.v1.partition_service_pb2 import DeliverRequest, OwedRequest
from magicflow.v1.task_pb2 import RESULT_VERDICT_ACCEPTED, Task, TaskId, TaskResult
from services.dispatcher.lanes import Began, Owner
from services.dispatcher.ownership import Ownership
from services.dispatcher.processor import Processor
from services.dispatcher.turns import Result


class LocalOwner:
    def __init__(self, processor: Processor) -> None:
        self._processor = processor

    async def deliver(self, results: list[Result]) -> list[bool]:
        return await self._processor.deliver(results)

    def began(self, notes: list[Began]) -> bool:
        for note in notes:
            self._processor.began(*note)
        return True


class RemoteOwner:
    def __init__(self, owners: Owners, partition: int) -> None:
        self._owners = owners
        self._partition = partition

    async def deliver(self, results: list[Result]) -> list[bool]:
        request = DeliverRequest(
            partition=self._partition,
            results=[_message(result) for result in results],
            workers=[result.worker for result in results],
            lost=[place for place, result in enumerate(results) if result.lost],
        )
        try:
            response = await self._owners.of_partition(self._partition).Deliver(
                request, timeout=CALL_TIMEOUT, metadata=self._owners.credentials()
            )
        except grpc.aio.AioRpcError as error:
            raise from_call(error) from error
        return [receipt.verdict == RESULT_VERDICT_ACCEPTED for receipt in response.receipts]

    def began(self, notes: list[Began]) -> bool:
        return False


class OwnerFinder:
    """Owners by partition, this instance's own first."""

    def __init__(self, ownership: Ownership, owners: Owners) -> None:
        self._ownership = ownership
        self._owners = owners

    def __call__(self, partition: int) -> Owner | None:
        processor = self._ownership.processors.get(partition)
        if processor is not None:
            return LocalOwner(processor)
        return RemoteOwner(self._owners, partition)

    async def recheck(self, partition: int, tasks: list[Task]) -> list[bool]:
        """Which tasks still want a result. While nobody can say, all of them do."""
        processor = self._ownership.processors.get(partition)
        if processor is not None:
            try:
                return await processor.owed(
                    [(t.id.trace_id, t.id.node, t.id.attempt) for t in tasks]
                )
            except Unavailable:
                return [True] * len(tasks)
        request = OwedRequest(partition=partition, tasks=[task.id for task in tasks])
        try:
            response = await self._owners.of_partition(partition).Owed(
                request, timeout=CALL_TIMEOUT, metadata=self._owners.credentials()
            )
        except (grpc.aio.AioRpcError, Unavailable):
            return [True] * len(tasks)
        return list(response.owed)


def _message(result: Result) -> TaskResult:
    identity = TaskId(trace_id=result.trace_id, node=result.node, attempt=result.attempt)
    output: Payload | None = result.output
    return TaskResult(
        id=identity,
        output=payload_message(output),
        failure=failure_message(result.failure),
        env=result.env,
        began_at=timestamp(result.began_at),
    )
