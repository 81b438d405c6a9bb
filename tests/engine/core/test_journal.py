"""Logs and the fold of them."""

from __future__ import annotations

import msgspec
import pytest

from engine.core.events import NodeSucceeded, TaskScheduled, TraceEnded, TraceStarted
from engine.core.journal import (
    VERSION,
    Checkpoint,
    Entry,
    Frame,
    PartitionState,
    decode_checkpoint,
    decode_frame,
    encode_checkpoint,
    encode_frame,
    fold,
    raise_floor,
    snapshots_in,
)
from engine.core.payload import NULL
from engine.core.status import TraceStatus
from tests.engine.core.playing import START, TRACE, Shelf, Trace, graph_of

CHAIN = graph_of("nodes: {a: {task: f}, b: {task: f}}\nedges: [{from: a, to: b}]")


SHELF = Shelf(CHAIN)


def frame(number: int, *entries: Entry, epoch: int = 1, floor: int = 0) -> Frame:
    return Frame(VERSION, 3, epoch, number, START, floor, list(entries))


def begun(trigger: int = 0) -> Entry:
    start = TraceStarted(7, 42, "shop", "shop/story", NULL, START, "ann", trigger)
    return Entry(TRACE, [start, TaskScheduled(0, 1, NULL)])


END = Entry(TRACE, [TraceEnded(TraceStatus.ABORTED)])


def test_the_fold_of_the_frames_is_the_state_of_the_traces() -> None:
    trace = Trace(CHAIN)
    state = PartitionState()
    assert fold(state, 1, frame(0, Entry(TRACE, trace.events[:])), SHELF) == {TRACE}
    before = len(trace.events)
    trace.returns("a", 1)
    fold(state, 2, frame(1, Entry(TRACE, trace.events[before:])), SHELF)
    assert state.sequence == 2
    assert state.traces == {TRACE: trace.state}


def test_a_trace_that_has_ended_is_forgotten() -> None:
    state = PartitionState()
    fold(state, 1, frame(0, begun()), SHELF)
    assert fold(state, 2, frame(1, END), SHELF) == {TRACE}
    assert state.traces == {}


def test_a_trace_may_begin_and_end_in_one_frame() -> None:
    state = PartitionState()
    assert fold(state, 1, frame(0, begun(), END), SHELF) == {TRACE}
    assert state.traces == {}


def test_a_frame_of_a_deposed_owner_is_passed_over() -> None:
    """Of several frames in flight, a later one can land behind the new owner's opening."""
    state = PartitionState()
    fold(state, 1, frame(0, epoch=5), SHELF)
    assert fold(state, 2, frame(8, begun(), epoch=4, floor=99), SHELF) == set()
    assert (state.sequence, state.epoch, state.trigger_floor) == (2, 5, 0)
    assert state.traces == {}
    assert fold(state, 3, frame(1, begun(), epoch=5), SHELF) == {TRACE}


def test_a_trigger_that_has_started_a_trace_is_known_until_the_floor_has_passed_it() -> None:
    state = PartitionState()
    fold(state, 1, frame(0, begun(trigger=12)), SHELF)
    assert state.triggers == {12}
    fold(state, 2, frame(1, floor=11), SHELF)
    assert state.triggers == {12}
    fold(state, 3, frame(2, floor=12), SHELF)
    assert state.triggers == set()
    assert state.trigger_floor == 12


def test_the_trigger_floor_never_falls() -> None:
    state = PartitionState(trigger_floor=12, triggers={13})
    raise_floor(state, 4)
    assert (state.trigger_floor, state.triggers) == (12, {13})


def test_a_handover_holds_for_the_last_frame_only() -> None:
    state = PartitionState()
    last = frame(0)
    last.handover = "queue-1"
    fold(state, 1, last, SHELF)
    assert state.handover == "queue-1"
    fold(state, 2, frame(0, epoch=2), SHELF)
    assert state.handover == ""


def test_frames_name_the_snapshots_that_they_start() -> None:
    assert snapshots_in(frame(0, begun(), END)) == {(7, 42)}
    assert snapshots_in(frame(0, END)) == set()


def test_a_frame_comes_back_from_its_bytes() -> None:
    whole = frame(4, begun(trigger=2), Entry(TRACE, [NodeSucceeded(0, 1, NULL, (0,))]), floor=1)
    assert decode_frame(encode_frame(whole)) == whole


def test_the_bytes_of_a_frame_are_the_contract_with_every_log_ever_written() -> None:
    """Changing this line breaks the logs of running partitions."""
    ours = Frame(1, 3, 1, 0, 0, 1_000, [Entry(bytes(16), [TraceEnded(TraceStatus.FAILED)])])
    assert encode_frame(ours).hex() == (
        "980103010000cd03e89192c4100000000000000000000000000000000091940704c0c0a0"
    )


@pytest.mark.parametrize("data", [b"", b"\x00", b"\x93\x01\x02\x03", b"\xff" * 40, b"{}"])
def test_bytes_that_are_no_frame_are_refused(data: bytes) -> None:
    with pytest.raises(ValueError, match="not a log frame"):
        decode_frame(data)


def test_a_frame_of_a_later_version_is_refused() -> None:
    later = frame(0)
    later.version = VERSION + 1
    with pytest.raises(ValueError, match="has version 2; this code reads 1"):
        decode_frame(encode_frame(later))


def test_a_frame_of_a_later_code_may_have_more_fields() -> None:
    longer = [*msgspec.msgpack.decode(encode_frame(frame(0))), "new"]
    assert decode_frame(msgspec.msgpack.encode(longer)) == frame(0)


def test_a_checkpoint_comes_back_from_its_bytes() -> None:
    piece = Checkpoint(1, 9, 2, 4, [5, 6], True, 0, 1, [Trace(CHAIN).state], [b"gone"])
    assert decode_checkpoint(encode_checkpoint(piece)) == piece
    with pytest.raises(ValueError, match="not a checkpoint"):
        decode_checkpoint(b"\x01")
