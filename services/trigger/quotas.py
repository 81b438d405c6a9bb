"""Starts out of an app's quota: asked for at the one owner that keeps the app's account.

While one call is under way, whoever wants to start waits for the next: a call per round trip and
app, not per trigger.
"""

from __future__ import annotations

import asyncio

import grpc.aio

from engine.errors import Exhausted, Unavailable
from engine.ids import account_of
from engine.rpc.channels import CALL_TIMEOUT, Owners
from engine.rpc.status import from_call
from engine.snapshots.apps import Apps
from magicflow.v1.partition_service_pb2 import LeaseStartsRequest
from services.trigger.futures import settle

_Waiting = list[asyncio.Future[None]]


class Quotas:
    def __init__(self, apps: Apps, owners: Owners, partitions: int) -> None:
        self._apps = apps
        self._owners = owners
        self._partitions = partitions
        self._waiting: dict[str, _Waiting] = {}
        self._asking: set[asyncio.Task[None]] = set()

    async def take(self, app: str) -> None:
        """One start. Errors: `Exhausted` with the reason QUOTA_EXCEEDED, `Unavailable`."""
        if self._apps.of(app).quota <= 0:
            return
        future: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        waiting = self._waiting.get(app)
        if waiting is not None:
            waiting.append(future)
        else:
            self._waiting[app] = [future]
            task = asyncio.create_task(self._ask(app))
            self._asking.add(task)
            task.add_done_callback(self._asking.discard)
        await future

    async def close(self) -> None:
        """Whoever still waits is refused."""
        asking = list(self._asking)
        for task in asking:
            task.cancel()
        await asyncio.gather(*asking, return_exceptions=True)
        for waiting in self._waiting.values():  # for a call that was never made
            settle(waiting, _stopping())
        self._waiting.clear()

    async def _ask(self, app: str) -> None:
        await asyncio.sleep(0)  # whoever comes in this round of the loop shares the call
        while self._waiting[app]:
            batch, self._waiting[app] = self._waiting[app], []
            try:
                granted, wait = await self._lease(app, len(batch))
                settle(batch[:granted], None)
                settle(batch[granted:], self._refusal(app, wait))
            except asyncio.CancelledError:
                settle(batch, _stopping())
                raise
            except Exception as error:  # of any kind: they would wait for ever
                settle(batch, error)
        del self._waiting[app]

    async def _lease(self, app: str, wanted: int) -> tuple[int, float]:
        partition = account_of(app, self._partitions)
        request = LeaseStartsRequest(partition=partition, app=app, wanted=wanted)
        try:
            answer = await self._owners.of_partition(partition).LeaseStarts(
                request, timeout=CALL_TIMEOUT, metadata=self._owners.credentials()
            )
        except grpc.aio.AioRpcError as error:
            raise from_call(error) from error
        return answer.granted, answer.retry_after.ToMilliseconds() / 1_000

    def _refusal(self, app: str, wait: float) -> Exhausted:
        quota = self._apps.of(app).quota
        return Exhausted(
            f"{app} may start {quota:g} traces a second",
            reason="QUOTA_EXCEEDED",
            mend="try again after the delay in the status details, as the SDKs do",
            metadata={"quota": f"{quota:g}"},
            retry_after=max(wait, 0.001),
        )


def _stopping() -> Unavailable:
    return Unavailable("this trigger service is shutting down; call again", retry_after=0.5)
