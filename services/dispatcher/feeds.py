"""The tasks of one function on their way from the bus to the workers of this gateway."""

from __future__ import annotations

import asyncio
import contextlib
from collections import OrderedDict, deque
from collections.abc import Awaitable, Callable, Iterable
from dataclasses import dataclass, field

import structlog

from engine.bus.port import Bus, Delivery, Intake
from engine.core.ordering import rank
from engine.errors import Unavailable
from magicflow.v1.task_pb2 import Task, TaskFrame, TaskId
from services.dispatcher.sessions import Session

WORKING_EVERY = 10.0  # seconds; the bus waits thirty before it gives a frame to somebody else
MAX_FRAMES_ASKED = 64
BANDS = (range(7, 10), range(4, 7), range(4))  # priorities that are fetched together
MAX_SERVED = 50_000  # traces of which the gateway remembers the last worker
_log = structlog.get_logger(__name__)

TaskKey = tuple[bytes, str, int]  # trace, node, attempt


def key_of(task: Task) -> TaskKey:
    return task.id.trace_id, task.id.node, task.id.attempt


@dataclass(slots=True, eq=False)
class HeldFrame:
    """A frame of the bus that is ours until every task in it is done with. `void`: the queue
    that it came from is lost, and a word about it could hit another frame of the new one."""

    delivery: Delivery
    open: int
    void: bool = False

    async def release(self) -> bool:
        """One of its tasks needs it no longer; with the last one it leaves the bus, and True is
        returned."""
        self.open -= 1
        if self.open:
            return False
        if not self.void:
            await self.delivery.ack()
        return True


@dataclass(slots=True, eq=False)
class HeldTask:
    """A task between the bus and its result. `session` is the worker that has it."""

    task: Task
    frame: HeldFrame
    feed: Feed
    session: Session | None = None
    done: bool = False
    heard: float = 0.0  # the last sign of life of a task with a heartbeat, monotonic
    leaving: bool = False  # on its way back to the bus
    rank: int = field(init=False)

    def __post_init__(self) -> None:
        self.rank = rank(self.task.priority, self.task.dispatched_at.ToMilliseconds())


class Holding:
    """Every task that this gateway holds, so that a second copy is recognised."""

    def __init__(self) -> None:
        self.tasks: dict[TaskKey, HeldTask] = {}
        # Results on their way to their owners, and whom to tell. At a takeover the new owner
        # dispatches such a task again before it has the result: nobody needs to run it.
        # None stands for a result that the gateway itself has sent.
        self.answers: dict[TaskKey, list[tuple[Session, TaskId] | None]] = {}
        # Tasks at work whose node has a heartbeat.
        self.beating: dict[TaskKey, HeldTask] = {}
        # Tasks whose worker disappeared, at that time, until their owner has committed it. It
        # dispatches them again; the frame is ours until then.
        self.lost: dict[tuple[TaskKey, int], HeldTask] = {}
        self._served: OrderedDict[bytes, str] = OrderedDict()

    async def finish(self, tasks: Iterable[HeldTask]) -> None:
        """The tasks need nothing more; a frame leaves the bus with its last task."""
        for held in tasks:
            if held.done:
                continue
            held.done = True
            if self.tasks.get(key_of(held.task)) is held:
                del self.tasks[key_of(held.task)]
            self.beating.pop(key_of(held.task), None)
            if await held.frame.release():
                held.feed.frames.discard(held.frame)

    def lose(self, held: HeldTask, at: int) -> None:
        """Its worker is gone: the task is not ours any more, but for its frame."""
        key = key_of(held.task)
        if self.tasks.get(key) is held:
            del self.tasks[key]
        self.beating.pop(key, None)
        self.lost[key, at] = held

    def answered(self, key: TaskKey) -> tuple[Session, TaskId] | None:
        """Whom to tell of the first of the task's results that has not been settled yet: they
        are settled in the order in which they came."""
        waiting = self.answers.get(key)
        if not waiting:
            return None
        first = waiting.pop(0)
        if not waiting:
            del self.answers[key]
        return first

    def note_served(self, trace_id: bytes, worker_id: str) -> None:
        """The worker has had a task of the trace."""
        self._served[trace_id] = worker_id
        self._served.move_to_end(trace_id)
        if len(self._served) > MAX_SERVED:
            self._served.popitem(last=False)

    def served_by(self, trace_id: bytes) -> str:
        """The worker that had a task of the trace last; empty when nobody remembers."""
        return self._served.get(trace_id, "")

    def silent(self, now: float) -> list[HeldTask]:
        """Tasks that were silent for longer than their heartbeat; each is named once."""
        late = [
            held
            for held in self.beating.values()
            if now - held.heard > held.task.heartbeat.ToMilliseconds() / 1_000
        ]
        for held in late:
            del self.beating[key_of(held.task)]
        return late


Recheck = Callable[[int, list[Task]], Awaitable[list[bool]]]


@dataclass(slots=True, eq=False)
class Feed:
    """One function. Takes from the bus no more than its workers have free slots."""

    function: str
    bus: Bus
    holding: Holding
    recheck: Recheck
    sessions: list[Session] = field(default_factory=list)
    waiting: deque[HeldTask] = field(default_factory=deque)
    frames: set[HeldFrame] = field(default_factory=set)
    _intakes: list[Intake] = field(default_factory=list)
    _starved: set[int] = field(default_factory=set)
    _keeper: asyncio.Task[None] | None = None
    _per_frame: float = 1.0
    _next: int = 0

    async def open(self) -> None:
        app, _, name = self.function.partition("/")
        try:
            for band in BANDS:
                intake = await self.bus.take_tasks(app, name, self._delivered, band)
                self._intakes.append(intake)
        except BaseException:
            for intake in self._intakes:
                await intake.close()
            raise
        self._keeper = asyncio.create_task(self._keep())

    async def close(self) -> None:
        """Gives back what no worker has taken up."""
        if self._keeper is not None:
            self._keeper.cancel()
        for intake in self._intakes:
            await intake.close()
        await self.give_back(list(self.waiting))
        self.waiting.clear()

    async def _delivered(self, delivery: Delivery) -> None:
        try:
            frame = TaskFrame.FromString(delivery.data)
        except Exception as error:
            _log.error("task frame cannot be read", function=self.function, why=str(error))
            with contextlib.suppress(Unavailable):
                await self.bus.dead.bury(
                    delivery.subject, delivery.data, "TASK_UNREADABLE", str(error)
                )
                await delivery.ack()
            return
        if not self.sessions:  # it was on its way when the last worker left
            await delivery.give_back(1.0)
            return
        tasks = list(frame.tasks)
        if delivery.redelivered:
            wanted = await self.recheck(frame.partition, tasks)
            tasks = [task for task, owed in zip(tasks, wanted, strict=True) if owed]
        self._per_frame = 0.8 * self._per_frame + 0.2 * max(1, len(frame.tasks))
        if not tasks:
            await delivery.ack()
        else:
            await self._take(tasks, HeldFrame(delivery, len(tasks)))
        await self.pump()

    async def _take(self, tasks: list[Task], frame: HeldFrame) -> None:
        """A task that is held already is held by the newer frame from now on: the older one may
        be of a queue that was lost since."""
        self.frames.add(frame)
        former: list[HeldFrame] = []
        for task in tasks:
            held = self.holding.tasks.get(key_of(task))
            if held is None:
                held = HeldTask(task, frame, self)
                self.holding.tasks[key_of(task)] = held
                self.line_up(held)
            else:
                former.append(held.frame)
                held.frame = frame
        for old in former:
            if await old.release():
                self.frames.discard(old)

    def forget_queue(self) -> None:
        """The queue was lost: its frames mean nothing any more. Their tasks come again."""
        for frame in self.frames:
            frame.void = True

    def line_up(self, held: HeldTask) -> None:
        """Behind those that have more priority or have been waiting for longer
        (`engine.core.ordering`): `waiting` is in that order."""
        place = len(self.waiting)
        while place and self.waiting[place - 1].rank > held.rank:
            place -= 1
        self.waiting.insert(place, held)

    async def pump(self) -> None:
        """Gives waiting tasks to workers with free slots, then asks the bus for what is left."""
        while self.waiting:
            session = self._free()
            if session is None:
                break
            held = self.waiting.popleft()
            if not held.done and key_of(held.task) not in self.holding.answers:
                session = self._preferred(held.task) or session
                held.session = session
                session.assign(key_of(held.task), held.task)
                self.holding.note_served(held.task.id.trace_id, session.worker_id)
        if self.waiting and not self.sessions:
            await self._give_all_back()
        for place, intake in enumerate(self._intakes):
            frames = self._demand(BANDS[place].start)
            if frames:
                self._starved.discard(place)
            await intake.ask(frames)

    async def _give_all_back(self) -> None:
        """No worker is left here: others may have some."""
        waiting = [held for held in self.waiting if not held.done]
        self.waiting.clear()
        try:
            await self.give_back(waiting)
        except (Unavailable, TimeoutError):
            for held in waiting:
                if not held.done:
                    self.line_up(held)

    def _free(self) -> Session | None:
        """The next worker in turn that has a free slot and takes this function."""
        for step in range(len(self.sessions)):
            session = self.sessions[(self._next + step) % len(self.sessions)]
            if session.credit > 0 and self.function not in session.paused:
                self._next = (self._next + step + 1) % len(self.sessions)
                return session
        return None

    def _preferred(self, task: Task) -> Session | None:
        """The worker that served the trace before, if the task asks for it and it is free."""
        if not task.affinity:
            return None
        name = self.holding.served_by(task.id.trace_id)
        for session in self.sessions:
            if session.worker_id == name and session.credit > 0:
                return None if self.function in session.paused else session
        return None

    def _demand(self, priority: int) -> int:
        """Frames of this priority or more that could be worked on at once. What waits here with
        less does not count: most of it would be overtaken."""
        free = sum(
            max(0, session.credit)
            for session in self.sessions
            if self.function not in session.paused
        )
        wanted = free - sum(held.task.priority >= priority for held in self.waiting)
        if wanted <= 0:
            return 0
        return min(MAX_FRAMES_ASKED, max(1, int(wanted / self._per_frame)))

    async def reclaim(self, held: HeldTask) -> None:
        """The worker is gone or gave the task back: somebody else shall have it."""
        held.session = None
        if self.sessions:
            self.line_up(held)
        else:
            await self.give_back([held])

    async def give_back(self, tasks: list[HeldTask]) -> None:
        """Puts tasks on the bus for other gateways. The new frame is there before the old one
        is acknowledged, so that nothing is lost between."""
        open_tasks = [held for held in tasks if not held.done and not held.leaving]
        if not open_tasks:
            return
        for held in open_tasks:
            held.leaving = True
        app, _, name = self.function.partition("/")
        by_partition: dict[tuple[int, int], list[HeldTask]] = {}
        for held in open_tasks:
            by_partition.setdefault((held.task.priority, held.task.epoch), []).append(held)
        for (priority, epoch), group in by_partition.items():
            frame = TaskFrame(
                partition=_partition(group[0]),
                epoch=epoch,
                function=self.function,
                tasks=[held.task for held in group],
            )
            # The new frame may come back to this gateway before it is acknowledged: what is
            # given back is not held any more.
            for held in group:
                self.holding.tasks.pop(key_of(held.task), None)
            try:
                sent = await self.bus.offer_tasks(app, name, priority, frame.SerializeToString())
                await asyncio.wait_for(sent, 5.0)
            except (Unavailable, TimeoutError):
                for held in open_tasks:
                    held.leaving = False
                # Where a copy has come in the meantime, that one is held from now on.
                await self.holding.finish(
                    [h for h in group if self.holding.tasks.setdefault(key_of(h.task), h) is not h]
                )
                raise
            await self.holding.finish(group)

    async def _keep(self) -> None:
        """Tells the bus about frames that take long, and sees to it that nobody starves."""
        while True:
            await asyncio.sleep(WORKING_EVERY)
            for frame in list(self.frames):
                if not frame.void:
                    await frame.delivery.working()
            with contextlib.suppress(Unavailable):
                await self.pump()
                await self.feed_the_starved()

    async def feed_the_starved(self) -> None:
        """A band that could not be asked for since the last call, because of those above it, gets a
        frame all the same: here it grows older with the others."""
        starved, self._starved = self._starved, set(range(len(BANDS)))
        if self.sessions:
            for place in sorted(starved):
                await self._intakes[place].ask(1)


def _partition(held: HeldTask) -> int:
    return TaskFrame.FromString(held.frame.delivery.data).partition
