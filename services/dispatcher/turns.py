"""What an owner takes in, what it gathers in one turn, and the frames that a turn becomes."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from engine.bus.port import MAX_FRAME, Delivery
from engine.bus.triggers import StartTrace
from engine.core.effects import Effect
from engine.core.events import Event, TraceRevived
from engine.core.failure import Failure
from engine.core.journal import Entry
from engine.core.machine import Command
from engine.core.payload import Payload
from engine.core.state import TraceState
from engine.core.steering import Act


@dataclass(frozen=True, slots=True)
class Result:
    """A worker's word on one attempt: `output` or `failure` is set. Neither is set when the
    worker disappeared over it, at `began_at`."""

    trace_id: bytes
    node: str
    attempt: int
    output: Payload | None
    failure: Failure | None
    env: bytes
    worker: str
    began_at: int

    @property
    def lost(self) -> bool:
        return self.output is None and self.failure is None


def loss(trace_id: bytes, node: str, attempt: int, worker: str, at: int) -> Result:
    """The word that nobody gave. `at` is milliseconds since 1970."""
    return Result(trace_id, node, attempt, None, None, b"", worker, at)


@dataclass(slots=True)
class Results:
    items: Sequence[Result]
    future: asyncio.Future[list[bool]]


@dataclass(slots=True)
class Operation:
    """`former` is the state of an ended trace that shall run again."""

    trace_id: bytes
    act: Act
    future: asyncio.Future[None]
    former: TraceState | None = None


@dataclass(slots=True)
class Note:
    """A command of the owner's own making, that nobody waits for."""

    trace_id: bytes
    command: Command


@dataclass(slots=True)
class Probe:
    """Asks the log whether this is the owner still."""

    future: asyncio.Future[None]


@dataclass(slots=True)
class KeyedStart:
    trigger: StartTrace
    future: asyncio.Future[tuple[bytes, bool]]


@dataclass(slots=True)
class Turn:
    """What one turn gathers. `effects` keep the order of their events; `broken` are deliveries
    with (frame, why) of each trigger in them that cannot start."""

    at: int
    entries: dict[bytes, Entry] = field(default_factory=dict)
    effects: list[tuple[bytes, TraceState, Effect]] = field(default_factory=list)
    answers: list[tuple[asyncio.Future[Any], Any]] = field(default_factory=list)
    deliveries: list[Delivery] = field(default_factory=list)
    broken: list[tuple[Delivery, list[tuple[bytes, str]]]] = field(default_factory=list)
    weight: int = 0
    certain: bool = False  # answers rest on this being the owner still: only the log can tell


@dataclass(slots=True)
class Flight:
    """A frame on its way to the disk, and what waits for it."""

    future: asyncio.Future[int] | None
    turn: Turn
    size: int
    number: int = -1
    sent_at: float = 0.0  # seconds of the loop's clock


def weight_of(event: Event) -> int:
    """About how many bytes the event has in a frame."""
    payload = getattr(event, "input", None) or getattr(event, "output", None)
    weight = 64 + (len(payload.data) if payload is not None else 0)
    return weight + len(event.state) if isinstance(event, TraceRevived) else weight


def pieces_of(entries: list[Entry]) -> list[tuple[list[Entry], bool]]:
    """The entries in frames of bounded size. An entry too large for one frame is cut between
    its events; `machine.resume` mends a trace whose later piece never came."""
    pieces: list[list[Entry]] = [[]]
    weight = 0
    for entry in entries:
        current: Entry | None = None
        for event in entry.events:
            heavy = weight_of(event)
            if weight and weight + heavy > 4 * MAX_FRAME:
                pieces.append([])
                weight, current = 0, None
            if current is None:
                current = Entry(entry.trace_id, [])
                pieces[-1].append(current)
            current.events.append(event)
            weight += heavy
    return [(piece, place == len(pieces) - 1) for place, piece in enumerate(pieces)]
