"""Starts are shed before one app's backlog holds up the others; results never are."""

from __future__ import annotations

import pytest

from engine.bus.load import Load, encode_loads
from engine.bus.memory import MemoryBus
from engine.bus.subjects import LOAD
from engine.errors import Exhausted
from services.trigger.load import SLOW_COMMIT, UNPROJECTED, Backlog


async def backlog_with(load: Load | None, **bounds: int) -> Backlog:
    bus = MemoryBus()
    backlog = Backlog(bus, **{"app_waiting": 10, "waiting": 15, **bounds})
    await backlog.open()
    if load is not None:
        await bus.tell(LOAD, encode_loads([load]))
    return backlog


def a_load(
    waiting: dict[str, int], commit: float = 1.0, unprojected: int = 0, partition: int = 0
) -> Load:
    return Load(partition, waiting, 0, commit, unprojected)


async def refusal(load: Load, app: str = "a", partition: int = 0) -> Exhausted | None:
    try:
        (await backlog_with(load)).check(partition, app)
    except Exhausted as error:
        assert error.reason == "OVERLOADED"
        assert error.retry_after
        return error
    return None


async def test_an_app_with_too_much_waiting_is_refused_and_others_are_not() -> None:
    load = a_load({"a": 10})
    assert await refusal(load, "a") is not None
    assert await refusal(load, "b") is None
    assert await refusal(load, "a", partition=1) is None


async def test_all_together_there_is_a_bound_as_well() -> None:
    assert await refusal(a_load({"a": 8, "b": 7}), "c") is not None


async def test_a_log_that_is_slow_takes_no_starts_while_some_wait() -> None:
    assert await refusal(a_load({"b": 1}, commit=SLOW_COMMIT + 1)) is not None
    assert await refusal(a_load({}, commit=SLOW_COMMIT + 1)) is None


async def test_sql_that_is_far_behind_slows_admission() -> None:
    assert await refusal(a_load({}, unprojected=UNPROJECTED + 1)) is not None


async def test_what_was_added_since_the_last_report_counts_until_the_next() -> None:
    bus = MemoryBus()
    backlog = Backlog(bus, 10, 15)
    await backlog.open()
    for _ in range(10):
        backlog.check(0, "a")
        backlog.add(0, "a", 1)
    with pytest.raises(Exhausted):
        backlog.check(0, "a")
    await bus.tell(LOAD, encode_loads([a_load({"a": 3})]))
    backlog.check(0, "a")


async def test_a_report_that_cannot_be_read_changes_nothing() -> None:
    bus = MemoryBus()
    backlog = Backlog(bus, 10, 15)
    await backlog.open()
    await bus.tell(LOAD, b"\xc1")
    backlog.check(0, "a")
