"""Promise E across versions: every log that a released version wrote folds to the same bytes.

What "the same bytes" means once fields have come is said in `projection`. When a test here fails,
the change is wrong, not the log: see CONTRIBUTING, "A rule of execution". Only
`test_every_event_occurs` and the test of the fields ask for a new recording.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any, get_args
from unittest import mock

import msgspec
import pytest

from engine.core import journal, state
from engine.core.events import Event, OperatorActed, TraceRevived, TraceStarted
from engine.core.failure import Failure
from engine.core.journal import Frame, decode_frame, follows
from engine.core.payload import Payload
from tests.golden.log import Differs, GoldenLog, read, replay
from tests.golden.projection import project

HERE = Path(__file__).parent
FILES = sorted(HERE.glob("v*/*.golden"))
NAMES = [f"{file.parent.name}/{file.stem}" for file in FILES]
KINDS: tuple[type[msgspec.Struct], ...] = get_args(Event)
AGAIN = "record a golden log that has it: python -m tests.golden.record"


@cache
def logs() -> list[GoldenLog]:
    return [log for file in FILES for log in read(file)]


@cache
def frames() -> list[Frame]:
    return [decode_frame(data) for log in logs() for data in log.frames]


def structures(value: Any) -> Iterator[msgspec.Struct]:
    """The value and everything in it."""
    if isinstance(value, msgspec.Struct):
        yield value
        for name in value.__struct_fields__:
            yield from structures(getattr(value, name))
    elif isinstance(value, list | tuple):
        for item in value:
            yield from structures(item)


@pytest.mark.parametrize("file", FILES, ids=NAMES)
async def test_todays_code_folds_every_golden_log_to_the_same_bytes(file: Path) -> None:
    for log in read(file):
        await replay(log)


def test_every_event_occurs() -> None:
    seen = {type(event) for frame in frames() for entry in frame.entries for event in entry.events}
    assert sorted(kind.__name__ for kind in set(KINDS) - seen) == [], AGAIN


def test_every_field_of_every_event_occurs_with_a_value_of_its_own() -> None:
    """A field that only ever has its default could change its meaning unnoticed."""
    kinds = (*KINDS, Failure, Payload)
    missing = {
        (kind.__name__, field.name): field.default
        for kind in kinds
        for field in msgspec.structs.fields(kind)
        if field.default is not msgspec.NODEFAULT
    }
    for frame in frames():
        for found in structures(frame.entries):
            for name in found.__struct_fields__:
                key = (type(found).__name__, name)
                if key in missing and getattr(found, name) != missing[key]:
                    del missing[key]
    assert sorted(missing) == [], AGAIN


def test_what_befalls_partitions_occurs() -> None:
    """Without these the set proves little: epochs, handovers, frames that are passed over."""
    epochs = handovers = passed = floors = 0
    for log in logs():
        epoch, number = 0, -1
        for data in log.frames:
            frame = decode_frame(data)
            if not follows(epoch, number, frame):
                passed += 1
                continue
            epochs += frame.epoch != epoch
            handovers += bool(frame.handover)
            floors += frame.trigger_floor > 0
            epoch, number = frame.epoch, frame.number
    assert min(epochs // 50, handovers // 10, passed, floors) > 0
    assert sum(bool(log.checkpoints) for log in logs()) > 5
    starts = [event for event in events() if isinstance(event, TraceStarted)]
    assert any(event.key for event in starts)


def events() -> Iterator[Event]:
    return (event for frame in frames() for entry in frame.entries for event in entry.events)


# Negative controls: what the golden logs would notice.


async def first_difference() -> str:
    """Empty when today's code, as it is patched now, folds all logs as they were recorded. A fold
    that breaks down counts as well."""
    for log in logs():
        try:
            await replay(log)
        except Exception as error:
            return f"{type(error).__name__}: {error}"
    return ""


@pytest.mark.parametrize("kind", sorted(state._APPLY, key=lambda kind: kind.__name__))
async def test_an_event_that_the_fold_forgets_is_noticed(kind: type) -> None:
    forgotten = {kind: lambda graphs, trace, event, at: None}
    with mock.patch.dict(state._APPLY, forgotten):
        found = await first_difference()
    # An operator's act is recorded for people: the state does not know of it.
    assert bool(found) == (kind is not OperatorActed), AGAIN


async def test_a_trace_that_is_revived_from_other_bytes_is_noticed() -> None:
    original = state.load

    def altered(data: bytes) -> state.TraceState:
        trace = original(data)
        trace.timeout_from = 0
        return trace

    with mock.patch.object(journal, "load", altered):
        assert await first_difference()
    assert any(isinstance(event, TraceRevived) for event in events())


async def test_a_fold_that_takes_every_frame_is_noticed() -> None:
    with mock.patch.object(journal, "follows", lambda epoch, number, frame: True):
        assert await first_difference()


async def test_a_fold_that_forgets_the_floor_is_noticed() -> None:
    with mock.patch.object(journal, "raise_floor", lambda state, floor: None):
        assert "the state has other bytes" in await first_difference()


async def test_every_frame_counts() -> None:
    """Altered by a millisecond, each of a log's frames that does something is noticed."""
    log = max(logs(), key=lambda log: len({decode_frame(data).epoch for data in log.frames}))
    noticed = 0
    for place, data in enumerate(log.frames):
        frame = decode_frame(data)
        if not any(not isinstance(e, OperatorActed) for t in frame.entries for e in t.events):
            continue
        altered = project(msgspec.structs.replace(frame, at=frame.at + 1), log.shape)
        frames_ = [*log.frames[:place], altered, *log.frames[place + 1 :]]
        with pytest.raises(Differs, match=f"frame {place + 1} of"):
            await replay(msgspec.structs.replace(log, frames=frames_))
        noticed += 1
    assert noticed > 5


async def test_an_altered_checkpoint_is_noticed() -> None:
    log = next(log for log in logs() if log.checkpoints)
    sequence, pieces = log.checkpoints[0]
    piece = journal.decode_checkpoint(pieces[-1])
    piece.trigger_floor += 1
    altered = [(sequence, [*pieces[:-1], project(piece, log.shape)]), *log.checkpoints[1:]]
    with pytest.raises(Differs, match="the checkpoint says"):
        await replay(msgspec.structs.replace(log, checkpoints=altered))


def test_a_field_that_came_later_is_cut_off_and_one_that_moved_is_not() -> None:
    class Recorded(msgspec.Struct, array_like=True):
        old: int = 1
        other: int = 2

    class Later(msgspec.Struct, array_like=True):
        old: int = 1
        other: int = 2
        new: int = 3

    class Moved(msgspec.Struct, array_like=True):
        other: int = 2
        old: int = 1

    stored = project(Recorded(), {"Recorded": 2})
    assert project(Later(), {"Later": 2}) == stored
    assert project(Later(), {"Later": 3}) != stored
    assert project(Moved(), {"Moved": 2}) != stored
