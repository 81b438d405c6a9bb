"""A partition's log: frames of events, and the fold of them.

The byte form is MessagePack of arrays (decision 0001). Fields are only ever appended.
"""

from __future__ import annotations

import msgspec

from engine.core.events import Event, ScopeOpened, TraceEnded, TraceRevived, TraceStarted
from engine.core.keys import Keys
from engine.core.state import Graphs, TraceState, apply, begin, load

VERSION = 1
UNKNOWN = -2  # the number of a frame, in what was written before numbers were kept


class Entry(msgspec.Struct, array_like=True):
    """What one turn did to one trace."""

    trace_id: bytes
    events: list[Event]


class Frame(msgspec.Struct, array_like=True):
    """One append. `number` counts the frames of this epoch from 0; frame 0 opens the epoch.
    `at` is the owner's clock, milliseconds since 1970. Triggers up to `trigger_floor` are
    acknowledged for good and will never come again."""

    version: int
    partition: int
    epoch: int
    number: int
    at: int
    trigger_floor: int
    entries: list[Entry]
    handover: str = ""  # in a clean owner's last frame: the task queue that holds its dispatches


_encoder = msgspec.msgpack.Encoder()
_frame_decoder = msgspec.msgpack.Decoder(Frame)


def encode_frame(frame: Frame) -> bytes:
    return _encoder.encode(frame)


def decode_frame(data: bytes) -> Frame:
    """Errors: `ValueError` when the bytes are no frame of a version that this code knows."""
    try:
        frame = _frame_decoder.decode(data)
    except msgspec.MsgspecError as error:
        raise ValueError(f"not a log frame: {error}") from error
    if frame.version != VERSION:
        raise ValueError(f"the log frame has version {frame.version}; this code reads {VERSION}")
    return frame


class PartitionState(msgspec.Struct, array_like=True):
    """The fold of a log up to and including `sequence`. `number` is that of the last frame of
    `epoch` that was folded. `triggers` holds the sequences of triggers above `trigger_floor`
    that have started a trace."""

    sequence: int = 0
    epoch: int = 0
    trigger_floor: int = 0
    triggers: set[int] = set()
    handover: str = ""
    traces: dict[bytes, TraceState] = {}
    keys: Keys = msgspec.field(default_factory=Keys)
    number: int = UNKNOWN
    at: int = 0  # the latest time that a frame has told, milliseconds since 1970


def fold(state: PartitionState, sequence: int, frame: Frame, graphs: Graphs) -> set[bytes]:
    """Applies a frame; returns the traces that it touched.

    A frame that does not follow is passed over, see `follows`.
    """
    state.sequence = sequence
    if not follows(state.epoch, state.number, frame):
        state.epoch = max(state.epoch, frame.epoch)
        return set()
    state.epoch = frame.epoch
    state.number = frame.number
    state.at = max(state.at, frame.at)
    state.handover = frame.handover
    raise_floor(state, frame.trigger_floor)
    touched: set[bytes] = set()
    for entry in frame.entries:
        touched.add(entry.trace_id)
        _fold_entry(state, entry, frame.at, graphs)
    return touched


def follows(epoch: int, number: int, frame: Frame) -> bool:
    """Whether a frame counts after the frame `number` of `epoch`.

    Of several frames that an owner had in flight the first can have been refused, and a later one
    have met the sequence that it expected because somebody else's frame stood there: a new
    owner's opening, or a last frame of a deposed one. Its owner took it for refused. So a lower
    epoch never counts, and within one epoch nothing counts behind a hole.
    """
    if frame.epoch == epoch:
        return number in (UNKNOWN, frame.number - 1)
    return frame.epoch > epoch and frame.number == 0


def raise_floor(state: PartitionState, floor: int) -> None:
    if floor > state.trigger_floor:
        state.trigger_floor = floor
        state.triggers = {sequence for sequence in state.triggers if sequence > floor}


def _fold_entry(state: PartitionState, entry: Entry, at: int, graphs: Graphs) -> None:
    for event in entry.events:
        if isinstance(event, TraceStarted):
            state.traces[entry.trace_id] = begin(graphs, entry.trace_id, event, at)
            note_start(state, entry.trace_id, event, at)
        elif isinstance(event, TraceRevived):
            state.traces[entry.trace_id] = load(event.state)
        else:
            apply(graphs, state.traces[entry.trace_id], event, at)
            if isinstance(event, TraceEnded):
                del state.traces[entry.trace_id]


def note_start(state: PartitionState, trace_id: bytes, event: TraceStarted, at: int) -> None:
    """What the partition remembers of a start beside the trace itself."""
    if event.trigger:
        state.triggers.add(event.trigger)
    if event.key:
        state.keys.add(event.key, trace_id, event.request, at)


def snapshots_in(frame: Frame) -> set[tuple[int, int]]:
    """(playbook, snapshot) of everything that the frame's events need to be folded."""
    found: set[tuple[int, int]] = set()
    for entry in frame.entries:
        for event in entry.events:
            if isinstance(event, TraceStarted | ScopeOpened):
                found.add((event.playbook_id, event.snapshot_id))
            elif isinstance(event, TraceRevived):
                found |= snapshots_of(load(event.state))
    return {names for names in found if names[1]}  # maps and repeats run no snapshot of their own


def snapshots_of(state: TraceState) -> set[tuple[int, int]]:
    """(playbook, snapshot) of every scope of a trace."""
    return {(scope.playbook_id, scope.snapshot_id) for scope in state.scopes if scope.snapshot_id}


class Checkpoint(msgspec.Struct, array_like=True):
    """A piece of a partition's state as of `sequence`: the traces that changed since the
    checkpoint before, and those that ended. A full one stands alone. Parts of one checkpoint
    share `sequence` and count from 0; it holds once part `parts - 1` is there."""

    version: int
    sequence: int
    epoch: int
    trigger_floor: int
    triggers: list[int]
    full: bool
    part: int
    parts: int
    traces: list[TraceState]
    gone: list[bytes]
    keys: list[tuple[bytes, bytes, bytes, int]] = []  # of a full one all, else the new ones
    number: int = UNKNOWN
    at: int = 0


_checkpoint_decoder = msgspec.msgpack.Decoder(Checkpoint)


def encode_checkpoint(checkpoint: Checkpoint) -> bytes:
    return _encoder.encode(checkpoint)


def decode_checkpoint(data: bytes) -> Checkpoint:
    """Errors: `ValueError`."""
    try:
        return _checkpoint_decoder.decode(data)
    except msgspec.MsgspecError as error:
        raise ValueError(f"not a checkpoint: {error}") from error


def size_of(trace: TraceState) -> int:
    """Bytes of the trace in a checkpoint."""
    return len(_encoder.encode(trace))
