"""Which triggers start next: fair between apps, by priority and age within one."""

from __future__ import annotations

import functools
from collections import Counter

from engine.bus.memory import MemoryDelivery, MemorySpace, _Item
from engine.bus.triggers import StartTrace
from engine.core.ordering import AGEING, rank
from engine.core.payload import NULL
from services.dispatcher.census import Census
from services.dispatcher.pace import LoopPace
from services.dispatcher.starting import ROOM, Starting, Starts


def frame(app: str, count: int = 1, priority: int = 5, at: int = 0) -> Starts:
    trigger = StartTrace(bytes(16), 1, 1, NULL, at, "ann", priority=priority)
    delivery = MemoryDelivery(MemorySpace(), "q", _Item(1, "s", b"x" * count))
    return Starts(delivery, [trigger] * count, app)


def always(app: str, count: int) -> bool:
    return True


def test_apps_take_turns_however_much_one_of_them_has() -> None:
    starting = Starting()
    for _ in range(1_000):
        starting.add(frame("noisy", 10))
    for _ in range(3):
        starting.add(frame("quiet", 10))
    first = Counter(starts.app for starts in starting.take(60, always))
    assert first == {"noisy": 3, "quiet": 3}


def test_an_app_that_comes_late_has_saved_up_no_turns() -> None:
    starting = Starting()
    for _ in range(100):
        starting.add(frame("early", 10))
    list(starting.take(500, always))
    for _ in range(100):
        starting.add(frame("late", 10))
    first = Counter(starts.app for starts in starting.take(100, always))
    assert abs(first["early"] - first["late"]) <= 1


def test_within_an_app_the_higher_priority_goes_first_and_then_the_older() -> None:
    starting = Starting()
    frames = [frame("a", priority=p, at=at) for p, at in ((1, 0), (5, 2), (5, 1), (9, 3))]
    for each in frames:
        starting.add(each)
    order = [(s.triggers[0].priority, s.triggers[0].triggered_at) for s in starting.take(9, always)]
    assert order == [(9, 3), (5, 1), (5, 2), (1, 0)]


def test_what_waits_long_enough_goes_before_what_is_more_important() -> None:
    starting = Starting()
    starting.add(frame("a", priority=9, at=9 * AGEING + 1))
    starting.add(frame("a", priority=0, at=0))
    assert [s.triggers[0].priority for s in starting.take(9, always)] == [0, 9]
    assert rank(0, 0) < rank(9, 9 * AGEING + 1)


def test_an_app_that_may_not_start_holds_up_nobody() -> None:
    starting = Starting()
    starting.add(frame("held"))
    starting.add(frame("free"))

    def may(app: str, count: int) -> bool:
        return app == "free"

    assert [s.app for s in starting.take(9, may)] == ["free"]
    assert not starting.ready(1, may)
    assert starting.ready(1, always)
    assert starting.by_app() == {"held": 1}


def test_when_there_is_no_room_nothing_more_is_asked_for() -> None:
    starting = Starting()
    assert starting.asked
    starting.add(frame("a", ROOM))
    assert not starting.asked
    list(starting.take(1, always))
    assert starting.asked


def test_bytes_count_as_well_as_triggers() -> None:
    starting = Starting()
    trigger = StartTrace(bytes(16), 1, 1, NULL, 0, "ann")
    data = b"x" * (65 << 20)
    starting.add(Starts(MemoryDelivery(MemorySpace(), "q", _Item(1, "s", data)), [trigger], "a"))
    assert not starting.asked


def test_the_census_counts_traces_and_tasks_that_wait_and_forgets_what_has_ended() -> None:
    census, one, two = Census(), b"1" * 16, b"2" * 16
    for trace in (one, two):
        census.started(trace, "a")
        census.dispatched(trace, (0, 0))
    census.dispatched(one, (0, 1))
    assert (census.live["a"], census.unbegun["a"]) == (2, 3)
    census.begun(one, (0, 0))
    census.begun(one, (0, 0))  # told twice
    assert census.unbegun["a"] == 2
    census.ended(one)
    census.begun(one, (0, 1))  # a note that comes late
    assert (census.live["a"], census.unbegun["a"]) == (1, 1)
    census.ended(two)
    assert (census.live["a"], census.unbegun["a"]) == (0, 0)


def test_without_a_limit_left_only_apps_that_have_a_few_may_start() -> None:
    starting = Starting()
    for _ in range(50):
        starting.add(frame("burst", 10))
    assert not starting.ready(0, always)
    starting.add(frame("quiet"))
    assert starting.ready(0, always)
    assert [s.app for s in starting.take(0, always)] == ["quiet"]


def test_a_late_loop_lets_fewer_start_and_one_in_time_more() -> None:
    pace = LoopPace()
    first = pace.left
    pace.adjust(1.0)
    assert 0 < pace.left < first
    for _ in range(50):
        pace.took(pace.left)
        pace.adjust(0.0)
    assert pace.left > first


def test_an_allowance_that_nobody_uses_does_not_grow() -> None:
    pace = LoopPace()
    first = pace.left
    for _ in range(50):
        pace.adjust(0.0)
    assert pace.left == first


def test_what_was_taken_beyond_the_allowance_is_worked_off() -> None:
    pace = LoopPace()
    allowance = pace.left
    pace.took(3 * allowance)
    pace.adjust(0.0)
    assert pace.left == 0
    for _ in range(3):
        pace.adjust(0.0)
    assert pace.left > 0


def test_partitions_take_turns_at_being_the_first() -> None:
    pace, woken = LoopPace(), []
    for number in range(3):
        pace.on_tick(functools.partial(woken.append, number))
    for _ in range(3):
        for wake in pace._in_turn():
            wake()
    assert woken == [0, 1, 2, 1, 2, 0, 2, 0, 1]
