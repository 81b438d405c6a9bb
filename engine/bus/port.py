"""The bus: partition logs, queues of frames, and notes that may be lost.

Adapters: `engine.bus.memory` (tests) and `engine.bus.jetstream`; both pass
`tests/contracts/test_bus.py`.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass
from typing import Protocol

from engine.bus.balancing import Balance, Broker
from engine.errors import NotFound

MAX_FRAME = 524_288  # bytes we aim for; one item may be larger, up to the server's max_payload
PRIORITIES = range(10)
FRAME_LIMIT = 8_388_608  # bytes: the server's max_payload must be at least this


class Fenced(Exception):
    """Somebody else appended to the log: whoever sees this no longer owns it."""


class Log(Protocol):
    """An append-only sequence of frames with one writer at a time.

    Sequences begin at 1 and have no holes. Whoever appends says which sequence is the last; if
    it is not, the append fails as `Fenced` and nothing is stored. Appends may be in flight
    together, each expecting the one before it. If one fails, the writer takes all later ones for
    failed: one of them may stand in the log, behind the frame of whoever came between, and the
    readers pass it over by its epoch (`journal.fold`).
    """

    async def last(self) -> int:
        """The sequence of the last frame; 0 when there was never one."""
        ...

    async def since_last(self) -> int:
        """Milliseconds since the last frame was stored, by the one clock of whoever stores them; 0
        when there was never one."""
        ...

    async def append(self, frame: bytes, expected: int) -> asyncio.Future[int]:
        """Puts the frame on its way, in the order of the calls. The future gives its sequence
        once it is on disk, or raises `Fenced`, or `engine.errors.Unavailable` when for half a
        minute nothing could be learned of it."""
        ...

    def read(self, after: int, through: int) -> AsyncIterator[tuple[int, bytes]]:
        """The frames with `after` < sequence <= `through`, in order. Begins at the first that
        is left when older ones were purged."""
        ...

    def follow(self, after: int) -> AsyncIterator[tuple[int, bytes]]:
        """The frames after `after`, in order, for as long as the caller iterates."""
        ...

    async def purge(self, through: int) -> None:
        """Forgets all frames up to and including this sequence."""
        ...


@dataclass(frozen=True, slots=True)
class DeadLetter:
    """A frame that nobody could process. `origin` is the subject that it came from, `at` when it
    was put aside, in milliseconds since 1970."""

    id: int
    origin: str
    code: str
    message: str
    frame: bytes
    at: int


def no_letter(number: int) -> NotFound:
    return NotFound(
        f"there is no dead letter {number}", mend="`magicflow dead list` shows what is there"
    )


class DeadLetters(Protocol):
    """Frames that were put aside with their reason; the oldest make room when there are too many.

    Errors: `engine.errors.NotFound` for a letter that is not there, `Unavailable`.
    """

    async def bury(self, origin: str, frame: bytes, code: str, message: str) -> None:
        """Puts a frame aside; returns when that is on disk."""
        ...

    async def letters(self, before: int, limit: int) -> list[DeadLetter]:
        """The newest ones with a number below `before` (0: the very newest), newest first."""
        ...

    async def letter(self, number: int) -> DeadLetter: ...

    async def replay(self, number: int) -> None:
        """Puts the frame back where it came from, then forgets the letter."""
        ...

    async def drop(self, number: int) -> None: ...


class Delivery(Protocol):
    """One frame out of a queue, ours until it is acknowledged, given back, or time runs out."""

    @property
    def data(self) -> bytes: ...

    @property
    def subject(self) -> str: ...

    @property
    def sequence(self) -> int:
        """Its number in the queue, the same at every delivery."""
        ...

    @property
    def redelivered(self) -> bool:
        """True when it was delivered to somebody before."""
        ...

    @property
    def behind(self) -> int:
        """How many frames waited behind it for its consumer when it was delivered."""
        ...

    async def ack(self) -> None:
        """It is done with and leaves the queue."""
        ...

    async def give_back(self, delay: float = 0.0) -> None:
        """Somebody else shall have it, `delay` seconds from now."""
        ...

    async def working(self) -> None:
        """Still at it: the time begins anew."""
        ...


class Intake(Protocol):
    """A consumer that takes only what it asks for."""

    async def ask(self, frames: int) -> None:
        """Replaces what is asked for: up to `frames` more deliveries to `handle`. What was asked
        for before and is on its way may still come."""
        ...

    async def floor(self) -> int:
        """Every frame of this consumer up to this sequence is acknowledged for good."""
        ...

    async def close(self) -> None:
        """Asks for no more. What was not acknowledged goes to others."""
        ...


Handle = Callable[[Delivery], Awaitable[None]]
Hear = Callable[[str, bytes], Awaitable[None]]


class Listening(Protocol):
    async def close(self) -> None: ...


class Bus(Protocol):
    """All of it. Errors: `engine.errors.Unavailable` when the server is out of reach."""

    def partition_log(self, partition: int) -> Log: ...

    def checkpoint_log(self, partition: int) -> Log: ...

    async def offer_trigger(
        self, partition: int, priority: int, frame: bytes
    ) -> asyncio.Future[int]:
        """Puts a frame of triggers on its way; the future completes when it is on disk."""
        ...

    async def use_brokers(
        self, app: str, brokers: tuple[Broker, ...], policy: Balance = "round_robin"
    ) -> None:
        """From now on the app's tasks travel over these NATS clusters; none: over the common queue.
        What a broker holds that is not used any more counts as lost."""
        ...

    async def offer_tasks(
        self, app: str, function: str, priority: int, frame: bytes
    ) -> asyncio.Future[int]:
        """Puts a frame of tasks on its way; the future completes when the queue has it."""
        ...

    async def take_triggers(self, partition: int, handle: Handle) -> Intake:
        """For the partition's owner: what an owner before it took and did not acknowledge comes
        again at once."""
        ...

    async def take_tasks(
        self, app: str, function: str, handle: Handle, priorities: range = PRIORITIES
    ) -> Intake:
        """Tasks of these priorities, in the order in which they were offered. Takers of one
        function must agree on how they share the priorities out."""
        ...

    async def tell(self, subject: str, data: bytes) -> None:
        """A note for whoever listens now; it may be lost."""
        ...

    async def listen(self, subject: str, hear: Hear) -> Listening:
        """Notes on a subject (`*` stands for one part). When the call returns, nothing that is
        told afterwards is missed while the connection lasts."""
        ...

    @property
    def dead(self) -> DeadLetters: ...

    async def task_backlog(self) -> dict[str, int]:
        """Frames of tasks that are not done, by function."""
        ...

    def trouble(self) -> list[tuple[str, str, str]]:
        """What an operator should know of the servers: (code, subject, message)."""
        ...

    async def tasks_identity(self) -> str:
        """Names the task queues in their present lives, for `tasks_lost_since`."""
        ...

    async def tasks_lost_since(self, identity: str) -> set[str]:
        """The apps whose tasks may have been lost since `tasks_identity` gave this text; an empty
        name stands for all."""
        ...

    def on_tasks_lost(self, call: Callable[[str], None]) -> Callable[[], None]:
        """Calls back when tasks of an app may have been lost (queues live in memory only), or with
        an empty name of all apps, until what is returned is called."""
        ...

    async def close(self) -> None: ...
