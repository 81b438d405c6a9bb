"""What the rest of the cluster may know of this gateway's workers: written when a worker comes,
goes or drains, never per task."""

from __future__ import annotations

import asyncio

import structlog

from engine.errors import MagicflowError
from engine.snapshots import keys
from engine.snapshots.port import Snapshots
from engine.snapshots.presence import Presence
from magicflow.v1.worker_pb2 import Function, Worker

_log = structlog.get_logger(__name__)


class Roster:
    """Workers while they are connected; the schemas of their functions for good, because
    playbooks are checked against them."""

    def __init__(self, snapshots: Snapshots, instance: str) -> None:
        self._snapshots = snapshots
        self._instance = instance
        self._presence = Presence(snapshots)
        self._known: dict[str, bytes] = {}
        self._writing: set[asyncio.Task[None]] = set()

    async def open(self) -> None:
        await self._presence.open()

    async def close(self) -> None:
        for task in self._writing:
            task.cancel()
        await self._presence.close()

    def joined(self, worker: Worker) -> None:
        worker.dispatcher = self._instance
        self._presence.show(keys.worker(worker.worker_id), worker.SerializeToString())
        fresh = [f for f in worker.functions if self._known.get(f.name) != f.SerializeToString()]
        if fresh:
            task = asyncio.create_task(self._remember(fresh))
            self._writing.add(task)
            task.add_done_callback(self._writing.discard)

    def left(self, worker_id: str) -> None:
        self._presence.hide(keys.worker(worker_id))

    async def _remember(self, functions: list[Function]) -> None:
        for function in functions:
            data = function.SerializeToString()
            try:
                await self._snapshots.put(keys.function(function.name), data)
                self._known[function.name] = data
            except MagicflowError as error:
                _log.warning("schema not written", function=function.name, why=str(error))
