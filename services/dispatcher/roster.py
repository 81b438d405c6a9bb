"""What the rest of the cluster may know of this gateway's workers, kept in etcd under the
instance's lease: written when a worker comes, goes or drains, never per task."""

from __future__ import annotations

import asyncio
import contextlib

import structlog

from engine.errors import MagicflowError
from engine.snapshots import keys
from engine.snapshots.port import Lease, LeaseLost, Snapshots
from magicflow.v1.worker_pb2 import Worker

_log = structlog.get_logger(__name__)


class Roster:
    """Writes in the background, newest first per worker; a lost write is repeated."""

    def __init__(self, snapshots: Snapshots, instance: str) -> None:
        self._snapshots = snapshots
        self._instance = instance
        self._lease: Lease | None = None
        self._here: dict[str, Worker] = {}
        self._pending: dict[str, Worker | None] = {}
        self._news = asyncio.Event()
        self._writer: asyncio.Task[None] | None = None

    async def open(self) -> None:
        self._lease = await self._snapshots.grant(10)
        self._writer = asyncio.create_task(self._write())

    async def close(self) -> None:
        if self._writer is not None:
            self._writer.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._writer
        if self._lease is not None:
            with contextlib.suppress(MagicflowError):
                await self._lease.revoke()

    def joined(self, worker: Worker) -> None:
        worker.dispatcher = self._instance
        self._here[worker.worker_id] = worker
        self._pending[worker.worker_id] = worker
        self._news.set()

    def left(self, worker_id: str) -> None:
        self._here.pop(worker_id, None)
        self._pending[worker_id] = None
        self._news.set()

    async def _write(self) -> None:
        assert self._lease is not None
        while True:
            await self._news.wait()
            self._news.clear()
            if not self._lease.held():
                self._lease = await self._snapshots.grant(10)
                self._pending.update(self._here)
            while self._pending:
                worker_id, worker = self._pending.popitem()
                try:
                    await self._put(worker_id, worker)
                except (MagicflowError, LeaseLost) as error:
                    _log.warning("worker list not written yet", why=str(error))
                    self._pending.setdefault(worker_id, worker)
                    self._news.set()
                    await asyncio.sleep(0.5)
                    break

    async def _put(self, worker_id: str, worker: Worker | None) -> None:
        assert self._lease is not None
        key = keys.worker(worker_id)
        if worker is None:
            await self._snapshots.delete(key)
            return
        await self._snapshots.put(key, worker.SerializeToString(), self._lease.id)
        for function in worker.functions:
            # Schemas outlive the worker: they are checked when a playbook is published.
            name, data = keys.function(function.name), function.SerializeToString()
            known = await self._snapshots.get(name)
            if known is None or known.value != data:
                await self._snapshots.put(name, data)
