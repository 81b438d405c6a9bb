"""What an owner remembers of traces that have ended."""

from __future__ import annotations

import pytest

from engine.core.state import TraceState
from services.dispatcher import ended as ended_module
from services.dispatcher.ended import Ended
from tests.engine.core.playing import Trace


def over(number: int, output: str = "x") -> TraceState:
    trace = Trace("nodes: {a: {task: f}}", trace_id=bytes([number]) * 16)
    trace.returns("a", output)
    return trace.state


def test_an_end_is_known_before_and_after_its_commit() -> None:
    ended, trace = Ended(), over(1)
    assert ended.find(trace.trace_id) is None
    ended.decided(trace)
    assert ended.find(trace.trace_id) is trace
    ended.committed(trace, 10)
    assert ended.find(trace.trace_id) is trace


def test_a_trace_that_runs_again_is_forgotten_even_by_a_late_commit() -> None:
    ended, trace = Ended(), over(1)
    ended.decided(trace)
    ended.forget(trace.trace_id)
    ended.committed(trace, 10)
    assert ended.find(trace.trace_id) is None


def test_the_oldest_make_room_and_forgetting_makes_room_too(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(ended_module, "MAX_BYTES", 300)
    ended = Ended()
    for number in range(1, 20):  # each runs again: nothing may remain of its weight
        trace = over(number, "x" * 80)
        ended.decided(trace)
        ended.committed(trace, 10)
        ended.forget(trace.trace_id)
    kept = [over(number, "x" * 80) for number in range(30, 34)]
    for trace in kept:
        ended.decided(trace)
        ended.committed(trace, 10)
    assert [ended.find(trace.trace_id) is trace for trace in kept] == [False, True, True, True]
