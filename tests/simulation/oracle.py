"""Who watches: three journals and the promises that bind them together.

The caller's journal says what was acknowledged to callers, the workers' journal every execution
and every receipt, and the fold of the logs what is true. The oracle reads each frame in the
moment in which the server stores it, so a broken promise is noticed in the step that breaks it.
"""

from __future__ import annotations

import hashlib
from collections import Counter, defaultdict
from dataclasses import dataclass, field
from typing import Any

from engine.bus import subjects
from engine.bus.triggers import decode_triggers
from engine.core.events import TaskScheduled
from engine.core.journal import Frame, decode_frame
from engine.core.status import TraceStatus
from engine.ids import partition_of
from magicflow.v1.task_pb2 import (
    RESULT_VERDICT_ACCEPTED,
    RESULT_VERDICT_REFUSED,
    ResultReceipt,
    TaskFrame,
    TaskId,
)
from tests.simulation.folds import Fold, started_in
from tests.simulation.loop import VirtualLoop
from tests.simulation.playbooks import graph
from tests.simulation.stories import Story, Violation

Key = tuple[bytes, str, int]  # trace, node, attempt


@dataclass(slots=True)
class Partition:
    """What the log of a partition says, read independently of its owners."""

    fold: Fold
    frames: list[tuple[int, bytes]] = field(default_factory=list)
    epoch: int = -1
    number: int = -1
    writers: dict[int, str] = field(default_factory=dict)
    closed: bool = False


@dataclass(slots=True)
class Run:
    """One execution by a worker."""

    number: int
    key: Key
    worker: str
    began_at: float
    dispatched_at: float


class Oracle:
    """Promises A to E, each checked where it could break. Errors: `Violation`."""

    def __init__(self, loop: VirtualLoop, partitions: int) -> None:
        self._loop = loop
        self.partitions = [Partition(Fold()) for _ in range(partitions)]
        self.stories: dict[bytes, Story] = {}
        self.acknowledged: dict[bytes, str] = {}  # traces, to what was acknowledged last
        self.runs: dict[int, Run] = {}
        self.by_key: dict[Key, list[Run]] = defaultdict(list)
        self.accepted: dict[Key, str] = {}
        self.faults: list[float] = []
        self.seen: Counter[str] = Counter()
        self.broken: list[Violation] = []
        self.trace: list[tuple[Any, ...]] = []
        self.closed = False  # nothing counts any more: what is left is being buried
        self._digest = hashlib.sha256()

    # What happened.

    def happened(self, *what: Any) -> None:
        """A line of the event trace, which is the same for the same seed."""
        if self.closed:
            return
        line = (round(self._loop.time(), 6), *what)
        self.trace.append(line)
        self._digest.update(repr(line).encode())
        self.seen[str(what[0])] += 1

    def fault(self, *what: Any, lasts: float = 0.0) -> None:
        """Something that may lead to a second execution of what was under way before its end."""
        self.happened(*what)
        self.faults.append(self._loop.time() + lasts)

    @property
    def digest(self) -> str:
        return self._digest.hexdigest()

    def demand(self, holds: bool, promise: str, what: str) -> None:
        if not holds:
            self._break(Violation(f"{promise}: {what}"))

    def _break(self, violation: Violation) -> None:
        self.happened("VIOLATION", str(violation))
        self.broken.append(violation)

    # The server's side.

    def appended(self, stream: str, sequence: int, frame: bytes, by: str) -> None:
        number = _partition_of_log(stream)
        if number < 0:
            self.happened("checkpoint", stream, sequence, by)
            return
        part = self.partitions[number]
        last = part.frames[-1][0] if part.frames else 0
        self.demand(sequence == last + 1, "A", f"{stream} has lost what it had acknowledged")
        part.frames.append((sequence, frame))
        decoded = decode_frame(frame)
        self.happened("frame", number, sequence, decoded.epoch, decoded.number, by, len(frame))
        counts = _follows(part, decoded)
        before = {} if counts else part.fold.dump()
        if counts:
            self._check_writer(part, decoded, by)
        try:
            part.fold.take(sequence, decoded)
            if counts:
                self._tell(part, decoded)
        except Violation as violation:
            self._break(violation)
        except Exception as error:
            self._break(Violation(f"E: the log cannot be folded: {error!r}"))
        if not counts:
            self.seen["frame passed over"] += 1
            what = f"frame {decoded.number} of epoch {decoded.epoch} at {sequence}"
            same = before == part.fold.dump()
            self.demand(same, "D", f"{stream}: {what} was folded, and follows no other")
            part.epoch = max(part.epoch, decoded.epoch)

    def _check_writer(self, part: Partition, frame: Frame, by: str) -> None:
        """Promise D: one writer per epoch."""
        writer = part.writers.setdefault(frame.epoch, by)
        what = f"partition {frame.partition}, epoch {frame.epoch}, frame {frame.number}"
        self.demand(writer == by, "D", f"{what} by {by}; the epoch is {writer}'s")
        if frame.epoch == part.epoch:
            self.demand(not part.closed, "D", f"{what} behind the epoch's handover")
        else:
            self.demand(not frame.entries, "D", f"{what} opens the epoch with events")
            self.seen["epoch opened"] += 1
        part.epoch, part.number, part.closed = frame.epoch, frame.number, bool(frame.handover)
        self.seen["handover frame"] += bool(frame.handover)

    def _tell(self, part: Partition, frame: Frame) -> None:
        for entry in frame.entries:
            for event in entry.events:
                snapshot = started_in(event)
                if snapshot is not None and entry.trace_id not in self.stories:
                    self.stories[entry.trace_id] = Story(entry.trace_id, graph(snapshot))
                story = self.stories[entry.trace_id]
                story.tell(event, frame.at)
                self.seen[type(event).__name__] += 1
                if isinstance(event, TaskScheduled):
                    place = event.scope, event.node
                    path = part.fold.path(entry.trace_id, place)
                    story.paths[path, event.attempt] = place

    def offered(self, queue: str, subject: str, frame: bytes) -> None:
        if queue != subjects.TASK_STREAM:
            return
        for task in TaskFrame.FromString(frame).tasks:
            key = _key(task.id)
            self.happened("dispatch", *_short(key))
            story = self.stories.get(key[0])
            known = story is not None and story.find(*key[1:]) is not None
            self.demand(known, "A", f"{_text(key)} was dispatched before its commit")

    def removed(self, queue: str, sequence: int, frame: bytes) -> None:
        """What has left a queue must be in a log, or be worth nothing any more."""
        if queue == subjects.TRIGGER_STREAM:
            for trigger in decode_triggers(frame):
                there = trigger.trace_id in self.stories
                self.demand(there, "A", f"the start of {trigger.trace_id.hex()} has left the queue")

    def told(self, subject: str, data: bytes) -> None:
        self.happened("told", subject, len(data))

    # The callers' side.

    def start_acknowledged(self, trace_id: bytes) -> None:
        self.acknowledged[trace_id] = "start"
        self.happened("start acknowledged", trace_id.hex()[-8:])

    def act_acknowledged(self, trace_id: bytes, verb: str, by: str) -> None:
        story = self.stories.get(trace_id)
        done = story is not None and by in story.acts
        self.demand(done, "A", f"{verb} of {trace_id.hex()} by {by} is not in the log")
        self.happened(f"{verb} acknowledged", trace_id.hex()[-8:])

    # The workers' side.

    def began(self, run: Run) -> None:
        """Promise C: a second time only after something went wrong."""
        self.runs[run.number] = run
        self.happened("run", run.number, run.worker, *_short(run.key))
        before = self.by_key[run.key]
        if before:
            self.seen["task ran again"] += 1
            since = min(run.dispatched_at, *(other.dispatched_at for other in before))
            touched = any(at >= since - 1.0 for at in self.faults)
            others = [(o.number, o.worker, o.began_at) for o in before]
            self.demand(touched, "C", f"{_text(run.key)} ran again on {run.worker}; {others}")
        before.append(run)

    def receipt(self, worker: str, receipt: ResultReceipt) -> None:
        """Promises A and B: a receipt says what the log says."""
        key = _key(receipt.id)
        runs = [run.number for run in self.by_key[key] if run.worker == worker]
        self.happened("receipt", worker, receipt.verdict, runs, *_short(key))
        self.demand(receipt.verdict != RESULT_VERDICT_REFUSED, "B", f"{_text(key)} was refused")
        story = self.stories.get(key[0])
        place = None if story is None else story.find(*key[1:])
        if story is None or place is None:
            self.demand(False, "A", f"{_text(key)} was acknowledged and stands in no log")
            return
        if receipt.verdict != RESULT_VERDICT_ACCEPTED:
            self.seen["superseded"] += 1
            part = self.partitions[partition_of(key[0], len(self.partitions))]
            lost = part.fold.wants(key[0], place, key[2])
            self.demand(not lost, "A", f"{runs} of {_text(key)} was declined and is wanted")
            return
        told = story.nodes[place]
        decided = told.runs.get(key[2], -1)
        by = told.workers.get(key[2], "")
        mine = decided in runs or (decided == 0 and by == worker)
        what = f"{runs} of {_text(key)} by {worker} was accepted"
        self.demand(mine, "B", f"{what}; the log has {decided} by {by}")
        first = self.accepted.setdefault(key, worker)
        self.demand(first == worker, "B", f"{what}, and so was {first}'s")

    # At the end.

    def check_end(self) -> None:
        """Liveness, once everything was healed and given time; and E once more from scratch."""
        for trace_id in self.acknowledged:
            story = self.stories.get(trace_id)
            self.demand(story is not None, "A", f"{trace_id.hex()} was acknowledged and is lost")
            if story is not None and not story.ended:
                open_ones = story.unsettled()
                self.demand(False, "liveness", f"{trace_id.hex()} does not end: {open_ones}")
        for part in self.partitions:
            again = Fold()
            for sequence, data in part.frames:
                again.take(sequence, decode_frame(data))
            self.demand(again.dump() == part.fold.dump(), "E", "two folds of a log differ")

    def all_ended(self) -> bool:
        return all(
            trace_id in self.stories and self.stories[trace_id].ended
            for trace_id in self.acknowledged
        )

    def statuses(self) -> Counter[TraceStatus | None]:
        return Counter(story.status for story in self.stories.values())


def _follows(part: Partition, frame: Frame) -> bool:
    """Whether the frame counts: it opens a higher epoch, or is the next one of this epoch. Any
    other was refused to its owner, as far as that one knows."""
    if frame.epoch == part.epoch:
        return frame.number == part.number + 1
    return frame.epoch > part.epoch and frame.number == 0


def _partition_of_log(stream: str) -> int:
    prefix = subjects.log_stream(0)[:-1]
    return int(stream.removeprefix(prefix)) if stream.startswith(prefix) else -1


def _key(task: TaskId) -> Key:
    return task.trace_id, task.node, task.attempt


def _short(key: Key) -> tuple[str, str, int]:
    return key[0].hex()[-8:], key[1], key[2]


def _text(key: Key) -> str:
    return f"{key[0].hex()} {key[1]} attempt {key[2]}"
