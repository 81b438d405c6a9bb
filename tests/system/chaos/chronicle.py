"""What the logs say: which frames count, and what they tell of every trace, event by event."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

import msgspec

from engine.core.events import (
    AttemptFailed,
    Event,
    HookOpened,
    NodeFailed,
    NodeSucceeded,
    OperatorActed,
    TaskScheduled,
    TraceEnded,
    TraceStarted,
)
from engine.core.failure import Failure
from engine.core.graph import Graph
from engine.core.journal import UNKNOWN, Entry, Frame, PartitionState, fold, follows
from engine.core.payload import to_value
from engine.core.places import path_of
from engine.core.playbook import Subplaybook
from engine.core.state import ROOT, TraceState, apply, begin, dump
from tests.simulation.stories import Story, Violation
from tests.system.chaos.tape import Recorded

Key = tuple[str, str, int]  # trace, node path, attempt
_encoder = msgspec.msgpack.Encoder()


class Shelf:
    """The snapshots that a fold needs."""

    def __init__(self, graphs: dict[int, Graph]) -> None:
        self._graphs = graphs

    def graph(self, snapshot_id: int) -> Graph:
        return self._graphs[snapshot_id]

    def callee(self, callee: Subplaybook) -> Graph | Failure | None:
        raise AssertionError("a fold decides nothing")

    def granted(self, app: str, target: str) -> bool:
        raise AssertionError("a fold decides nothing")


@dataclass(frozen=True, slots=True)
class Decision:
    """What the log has taken for an attempt; `code` is that of a failure."""

    value: Any
    code: str
    worker: str
    sequence: int


@dataclass(slots=True)
class Chronicle:
    """One partition's log, told. `broken` are sentences about what cannot be, each with its
    promise; `uncounted` are the results in frames that do not count."""

    partition: int
    started: dict[str, TraceStarted] = field(default_factory=dict)
    ended: dict[str, TraceEnded] = field(default_factory=dict)
    acts: dict[str, str] = field(default_factory=dict)  # why to verb
    scheduled: dict[Key, int] = field(default_factory=dict)  # to the sequence
    decided: dict[Key, Decision] = field(default_factory=dict)
    outputs: dict[str, dict[str, Any]] = field(default_factory=dict)  # by trace and node
    rows: dict[tuple[int, str], list[bytes]] = field(default_factory=dict)  # sequence, trace
    opened: dict[int, int] = field(default_factory=dict)  # epoch to sequence
    passed_over: list[int] = field(default_factory=list)  # sequences
    handovers: int = 0
    last: int = 0
    broken: list[tuple[str, str]] = field(default_factory=list)
    digests: list[bytes] = field(default_factory=list)  # after each frame


class _Teller:
    """Folds event by event, so that paths can be told before a trace is gone."""

    def __init__(self, chronicle: Chronicle, shelf: Shelf) -> None:
        self._told = chronicle
        self._shelf = shelf
        self._traces: dict[bytes, TraceState] = {}
        self._stories: dict[bytes, Story] = {}
        self._epoch, self._number, self._closed = 0, UNKNOWN, False

    def take(self, recorded: Recorded) -> None:
        frame, told = recorded.frame, self._told
        counts = follows(self._epoch, self._number, frame)
        if counts:
            self._check_writer(frame, recorded.sequence)
            for entry in frame.entries:
                rows = told.rows.setdefault((recorded.sequence, entry.trace_id.hex()), [])
                rows.append(_encoder.encode(entry.events))
                self._tell(entry, frame.at, recorded.sequence)
        else:
            told.passed_over.append(recorded.sequence)
            self._epoch = max(self._epoch, frame.epoch)
        told.last = recorded.sequence
        told.digests.append(_digest(self._traces, frame))

    def _check_writer(self, frame: Frame, sequence: int) -> None:
        what = f"partition {frame.partition}, epoch {frame.epoch}, frame {frame.number}"
        if frame.partition != self._told.partition:
            self._break("D", f"{what} stands in the log of partition {self._told.partition}")
        if frame.epoch == self._epoch and self._closed:
            self._break("D", f"{what} stands behind the epoch's handover")
        if frame.epoch != self._epoch:
            self._told.opened[frame.epoch] = sequence
            if frame.entries:
                self._break("D", f"{what} opens the epoch with events")
        self._epoch, self._number = frame.epoch, frame.number
        self._closed = bool(frame.handover)
        self._told.handovers += self._closed

    def _tell(self, entry: Entry, at: int, sequence: int) -> None:
        for event in entry.events:
            try:
                self._apply(entry.trace_id, event, at)
                self._note(entry.trace_id, event, sequence)
                self._stories[entry.trace_id].tell(event, at)
            except Violation as violation:
                self._break("B", f"at {sequence}: {violation}")
            if isinstance(event, TraceEnded):
                del self._traces[entry.trace_id]

    def _apply(self, trace: bytes, event: Event, at: int) -> None:
        if not isinstance(event, TraceStarted):
            if trace not in self._traces:
                raise Violation(f"{trace.hex()}: {type(event).__name__} without a live trace")
            apply(self._shelf, self._traces[trace], event, at)
            return
        if trace in self._stories:
            self._break("B", f"{trace.hex()} starts twice")
        self._traces[trace] = begin(self._shelf, trace, event, at)
        self._stories[trace] = Story(trace, self._shelf.graph(event.snapshot_id))

    def _note(self, trace: bytes, event: Event, sequence: int) -> None:
        told, name = self._told, trace.hex()
        match event:
            case TraceStarted():
                told.started[name] = event
            case TraceEnded():
                told.ended[name] = event
            case OperatorActed():
                told.acts[event.why] = event.verb
            case TaskScheduled():
                told.scheduled[name, self._path(trace, event), event.attempt] = sequence
            case NodeSucceeded():
                value = _value(event)
                path = self._path(trace, event)
                if event.scope == ROOT:
                    told.outputs.setdefault(name, {})[path] = value
                self._decide(name, path, event.attempt, value, "", event.worker, sequence)
            case HookOpened() | AttemptFailed() | NodeFailed():
                code = "" if isinstance(event, HookOpened) else event.failure.code
                path = self._path(trace, event)
                self._decide(name, path, event.attempt, None, code, event.worker, sequence)

    def _decide(
        self, trace: str, path: str, attempt: int, value: Any, code: str, worker: str, at: int
    ) -> None:
        key = trace, path, attempt
        if not attempt or key not in self._told.scheduled:
            return
        if key in self._told.decided and worker:
            self._break("B", f"{trace} {path} attempt {attempt} has a second result at {at}")
        self._told.decided.setdefault(key, Decision(value, code, worker, at))

    def _path(self, trace: bytes, event: Any) -> str:
        return path_of(self._shelf, self._traces[trace], event.scope, event.node)

    def _break(self, promise: str, what: str) -> None:
        self._told.broken.append((promise, what))


def tell(partition: int, frames: Iterable[Recorded], shelf: Shelf) -> Chronicle:
    """The log's frames, told in order. A frame that cannot be folded ends the telling."""
    chronicle = Chronicle(partition)
    teller = _Teller(chronicle, shelf)
    for recorded in frames:
        if recorded.sequence != chronicle.last + 1:
            what = f"the log goes from {chronicle.last} to {recorded.sequence}"
            chronicle.broken.append(("A", f"partition {partition}: {what}"))
        try:
            teller.take(recorded)
        except Exception as error:
            what = f"partition {partition} cannot be folded at {recorded.sequence}: {error!r}"
            chronicle.broken.append(("E", what))
            break
    return chronicle


def fold_again(frames: Iterable[Recorded], shelf: Shelf) -> list[bytes]:
    """The engine's own fold from the beginning: a digest after each frame."""
    state = PartitionState()
    digests = []
    for recorded in frames:
        frame = recorded.frame
        fold(state, recorded.sequence, frame, shelf)
        digests.append(_digest(state.traces, frame))
    return digests


def _digest(traces: dict[bytes, TraceState], frame: Frame) -> bytes:
    """Of the traces that the frame names, as they are after it."""
    digest = hashlib.sha256()
    for entry in frame.entries:
        trace = traces.get(entry.trace_id)
        digest.update(entry.trace_id)
        digest.update(dump(trace) if trace is not None else b"-")
    return digest.digest()


def _value(event: NodeSucceeded) -> Any:
    return to_value(event.output) if event.output.is_json else event.output.data
