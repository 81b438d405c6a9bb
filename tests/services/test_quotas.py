"""An app's account of starts: what it has, what it may ask for, and who asks."""

from __future__ import annotations

import asyncio
from typing import Any, cast

import pytest

from engine.errors import Exhausted, Unavailable
from engine.rpc.channels import Owners
from engine.snapshots.apps import App, Apps
from services.dispatcher.quota import BURST
from services.dispatcher.quota import Quotas as Accounts
from services.trigger.quotas import Quotas

PATIENCE = 5.0  # seconds


def test_over_time_an_app_gets_its_quota_and_no_more_whatever_it_asks_for() -> None:
    for rate in (0.5, 7.0, 1_000.0):
        accounts = Accounts()
        granted = sum(accounts.lease("a", rate, 50_000, now)[0] for now in range(0, 60_000, 7))
        assert abs(granted - rate * 60) <= max(2.0, rate * BURST)


def test_whoever_saves_up_has_a_moments_worth_at_most() -> None:
    accounts = Accounts()
    accounts.lease("a", 100.0, 1, 0)
    granted, _ = accounts.lease("a", 100.0, 10_000, 3_600_000)
    assert granted == 100 * BURST


def test_a_new_account_is_empty_and_says_when_to_come_back() -> None:
    accounts = Accounts()
    granted, wait = accounts.lease("a", 4.0, 3, 0)
    assert granted == 0
    assert wait == pytest.approx(0.25)
    assert accounts.lease("a", 4.0, 3, 250)[0] == 1


def test_apps_do_not_share_an_account() -> None:
    accounts = Accounts()
    for app in ("a", "b"):
        accounts.lease(app, 10.0, 1, 0)
    assert [accounts.lease(app, 10.0, 5, 100)[0] for app in ("a", "b")] == [1, 1]


def test_no_quota_is_no_limit() -> None:
    assert Accounts().lease("a", 0.0, 10_000, 0) == (10_000, 0.0)


class Owner:
    """Grants what it is told to, one call at a time."""

    def __init__(self, *grants: int) -> None:
        self._grants = list(grants)
        self.asked: list[int] = []
        self.fails = False
        self.fault: Exception | None = None
        self.holds = asyncio.Event()
        self.holds.set()

    def of_partition(self, partition: int) -> Owner:
        if self.fails:
            raise Unavailable("nobody owns it", retry_after=0.5)
        return self

    def credentials(self) -> None:
        return None

    async def LeaseStarts(self, request: Any, timeout: float, metadata: Any) -> Any:
        from magicflow.v1.partition_service_pb2 import LeaseStartsResponse

        self.asked.append(request.wanted)
        await asyncio.sleep(0)
        if self.fault is not None:
            raise self.fault
        await self.holds.wait()
        answer = LeaseStartsResponse(granted=min(request.wanted, self._grants.pop(0)))
        answer.retry_after.FromMilliseconds(40)
        return answer


class Known:
    def of(self, app: str) -> App:
        return App(quota=10.0) if app == "limited" else App()


def quotas(owner: Owner) -> Quotas:
    return Quotas(cast(Apps, Known()), cast(Owners, owner), 8)


async def test_many_starts_share_one_call_and_the_rest_is_refused_with_a_delay() -> None:
    owner = Owner(3)
    takers = quotas(owner)
    outcomes = await asyncio.gather(
        *(takers.take("limited") for _ in range(10)), return_exceptions=True
    )
    assert owner.asked == [10]
    refused = [error for error in outcomes if isinstance(error, Exhausted)]
    assert len(refused) == 7
    assert {(error.reason, error.retry_after) for error in refused} == {("QUOTA_EXCEEDED", 0.04)}


async def test_an_app_without_a_quota_asks_nobody() -> None:
    owner = Owner()
    await quotas(owner).take("free")
    assert owner.asked == []


async def test_while_nobody_keeps_the_account_nothing_starts() -> None:
    owner = Owner()
    owner.fails = True
    with pytest.raises(Unavailable):
        await quotas(owner).take("limited")


async def test_a_fault_in_a_call_reaches_all_who_wait_for_it_and_nobody_later() -> None:
    owner = Owner(1)
    takers = quotas(owner)
    owner.fault = ZeroDivisionError("a fault")
    async with asyncio.timeout(PATIENCE):
        both = [takers.take("limited") for _ in range(2)]
        outcomes = await asyncio.gather(*both, return_exceptions=True)
        assert [type(outcome) for outcome in outcomes] == [ZeroDivisionError] * 2
        owner.fault = None
        await takers.take("limited")


async def test_whoever_waits_when_the_service_stops_is_refused() -> None:
    owner = Owner(1, 1)
    owner.holds.clear()
    takers = quotas(owner)
    asking = asyncio.create_task(takers.take("limited"))
    async with asyncio.timeout(PATIENCE):
        while not owner.asked:
            await asyncio.sleep(0)
        waiting = asyncio.create_task(takers.take("limited"))  # for the next call
        await asyncio.sleep(0)
        await takers.close()
        for task in (asking, waiting):
            with pytest.raises(Unavailable, match="shutting down"):
                await task


async def test_whoever_came_last_when_the_service_stops_is_refused() -> None:
    takers = quotas(Owner(1))
    asking = asyncio.create_task(takers.take("limited"))
    await asyncio.sleep(0)  # its call has not begun
    await takers.close()
    async with asyncio.timeout(PATIENCE):
        with pytest.raises(Unavailable, match="shutting down"):
            await asking
