"""Where workers meet the engine: sessions, feeds and the way of results.

A task that a worker holds is ours on the bus for as long as the worker's stream proves alive;
when the stream ends, its tasks go to other workers at once. A result is acknowledged to its
worker only after its owner has committed it.
"""

from __future__ import annotations

import asyncio
import contextlib
import secrets
import time
from collections import defaultdict
from collections.abc import Callable, Coroutine, Iterable
from typing import Any

import msgspec
import structlog

from engine.bus import subjects
from engine.bus.port import Bus, Listening
from engine.clock import Clock
from engine.core.failure import Code, Failure
from engine.errors import Invalid, MagicflowError, NotFound, Unavailable
from engine.ids import partition_of
from engine.wire.values import failure as failure_of
from engine.wire.values import json_complaint, milliseconds, payload, timestamp
from magicflow.v1.task_pb2 import (
    RESULT_VERDICT_ACCEPTED,
    RESULT_VERDICT_REFUSED,
    RESULT_VERDICT_SUPERSEDED,
    ResultReceipt,
    Task,
    TaskFrame,
    TaskId,
    TaskResult,
)
from magicflow.v1.worker_pb2 import Command, CommandReceipt, TaskProgress, Worker, WorkerHello
from services.dispatcher.feeds import Feed, HeldTask, Holding, Recheck, key_of
from services.dispatcher.lanes import Began, FindOwner, Lane
from services.dispatcher.roster import Roster
from services.dispatcher.sessions import Session, TaskKey
from services.dispatcher.turns import Result, loss

MAX_SLOTS = 10_000
WATCH_EVERY = 0.25  # seconds between looks at silent workers and tasks
_log = structlog.get_logger(__name__)


class Gateway:
    """All worker sessions of one dispatcher instance."""

    def __init__(
        self,
        bus: Bus,
        clock: Clock,
        partitions: int,
        find_owner: FindOwner,
        recheck: Recheck,
        roster: Roster,
    ) -> None:
        self._bus = bus
        self._clock = clock
        self._partitions = partitions
        self._recheck = recheck
        self._find_owner = find_owner
        self._roster = roster
        self._holding = Holding()
        self._feeds: dict[str, Feed] = {}
        self._opening: dict[str, asyncio.Lock] = defaultdict(asyncio.Lock)
        self._lanes = {
            number: Lane(number, find_owner, self._committed) for number in range(partitions)
        }
        self._listening: Listening | None = None
        self._to_pump: set[Feed] = set()
        self._background: set[asyncio.Task[None]] = set()
        self._watchdog: asyncio.Task[None] | None = None
        self._command_number = 0
        self._stop_hearing: Callable[[], None] = lambda: None
        self.draining = False
        self.sessions: dict[str, Session] = {}

    async def open(self) -> None:
        self._listening = await self._bus.listen(subjects.CANCEL, self._cancelled)
        self._watchdog = asyncio.create_task(self._watch())
        self._stop_hearing = self._bus.on_tasks_lost(self._tasks_lost)

    def _tasks_lost(self, app: str) -> None:
        for function, feed in self._feeds.items():
            if not app or function.startswith(f"{app}/"):
                feed.forget_queue()

    async def close(self, grace: float) -> None:
        """Grants nothing more, waits up to `grace` seconds for what runs, gives back the rest."""
        self.draining = True
        for session in self.sessions.values():
            session.draining = True
        deadline = time.monotonic() + grace
        while any(s.assigned for s in self.sessions.values()) and time.monotonic() < deadline:
            await asyncio.sleep(0.05)
        for lane in self._lanes.values():
            await lane.close(2.0)
        for session in list(self.sessions.values()):
            self._detach(session, lost=False)
        if self._background:
            await asyncio.wait(list(self._background), timeout=5.0)
        for feed in self._feeds.values():
            with contextlib.suppress(Unavailable, TimeoutError):
                await feed.close()
        self._stop_hearing()
        if self._listening is not None:
            await self._listening.close()
        if self._watchdog is not None:
            self._watchdog.cancel()
        for task in list(self._background):
            task.cancel()

    # Sessions.

    async def join(self, app: str, hello: WorkerHello, foreign: bool) -> Session:
        """A session for a worker of `app`; with `foreign` it may offer functions of other apps.

        Errors: `Invalid` for a hello that breaks the rules, `Unavailable`.
        """
        if self.draining:
            raise Unavailable("this dispatcher is shutting down; connect again", retry_after=0.5)
        _check_hello(app, hello, foreign)
        worker_id = hello.worker_id or f"{app}-{secrets.token_hex(6)}"
        # All that can fail or be interrupted comes first; the rest is one step.
        feeds = [await self._feed(function.name) for function in hello.functions]
        if self.draining:
            raise Unavailable("this dispatcher is shutting down; connect again", retry_after=0.5)
        former = self.sessions.get(worker_id)
        if former is not None and former.app != app:
            raise Invalid(
                f"the worker_id {worker_id} is taken by another app's worker",
                reason="WORKER_PROTOCOL",
                mend="name workers after their app, or let the server choose",
            )
        resumed = [_key(task) for task in hello.resumed]
        if former is not None:
            self._detach(former, lost=True, kept=resumed)
        session = Session(worker_id, app, hello, hello.slots, self._clock.now())
        session.has(resumed)
        self._adopt(session, resumed)
        self.sessions[worker_id] = session
        for feed in feeds:
            feed.sessions.append(session)
        self._roster.joined(self.describe(session))
        _log.info("worker joined", worker=worker_id, functions=session.functions)
        self._note_begun(session, resumed, again=True)
        self._refill(session)
        return session

    def _adopt(self, session: Session, resumed: Iterable[TaskKey]) -> None:
        """Tasks that a reconnecting worker still works on stay with it, where they are here and
        nobody else has them."""
        for key in resumed:
            held = self._holding.tasks.get(key)
            if held is None or held.session is not None or held.leaving:
                continue
            if held.task.function in session.functions:
                with contextlib.suppress(ValueError):
                    held.feed.waiting.remove(held)
                held.session = session

    async def leave(self, session: Session) -> None:
        """The worker is gone: what it had goes to others."""
        self._detach(session, lost=True)

    def _detach(self, session: Session, *, lost: bool, kept: Iterable[TaskKey] = ()) -> None:
        """In one step, so that nobody finds half a session. What the worker had goes to others,
        but for `kept`: through the owners, who count, when the worker got `lost` over it, or
        straight away when it had not got it yet or it is us who let go."""
        if self.sessions.get(session.worker_id) is not session:
            return
        del self.sessions[session.worker_id]
        session.close()
        feeds = [feed for name in session.functions if (feed := self._feeds.get(name))]
        for feed in feeds:
            if session in feed.sessions:
                feed.sessions.remove(session)
        passed_on: list[HeldTask] = []
        gone: list[HeldTask] = []
        for key, written in session.assigned.items():
            held = self._holding.tasks.get(key)
            if held is None or held.session is not session:
                continue
            held.session = None
            if key not in kept:
                (gone if lost and written else passed_on).append(held)
        self._report_lost(gone, session.worker_id)
        self._spawn(self._pass_on(passed_on, feeds))
        self._roster.left(session.worker_id)
        for future in session.commands_waiting.values():
            if not future.done():
                future.set_exception(NotFound("the worker is gone", reason="WORKER_NOT_FOUND"))
        _log.info("worker left", worker=session.worker_id, lost=len(gone), back=len(passed_on))

    def _report_lost(self, gone: list[HeldTask], worker_id: str) -> None:
        at = self._clock.now()
        by_partition: dict[int, list[Result]] = defaultdict(list)
        for held in gone:
            self._holding.lose(held, at)
            partition = partition_of(held.task.id.trace_id, self._partitions)
            by_partition[partition].append(loss(*key_of(held.task), worker_id, at))
        for partition, losses in by_partition.items():
            self._lanes[partition].push(losses)

    async def _pass_on(self, lost: list[HeldTask], feeds: list[Feed]) -> None:
        for held in lost:
            await self._reclaim(held)
        for feed in feeds:
            with contextlib.suppress(Unavailable):
                await feed.pump()

    async def _reclaim(self, held: HeldTask) -> None:
        try:
            await held.feed.reclaim(held)
        except (Unavailable, TimeoutError):
            # The bus gives the frame to somebody else when our time on it runs out.
            held.feed.line_up(held)

    async def _feed(self, function: str) -> Feed:
        async with self._opening[function]:
            feed = self._feeds.get(function)
            if feed is None:
                feed = Feed(function, self._bus, self._holding, self._recheck)
                await feed.open()
                self._feeds[function] = feed
            return feed

    async def _watch(self) -> None:
        while True:
            await asyncio.sleep(WATCH_EVERY)
            if self._holding.beating:
                self._report_silent()
            for session in list(self.sessions.values()):
                if not session.alive():
                    _log.warning("worker is silent", worker=session.worker_id)
                    await self.leave(session)

    # What workers say.

    def heard(self, session: Session) -> None:
        session.heard = time.monotonic()

    def compare(self, session: Session, running: Iterable[TaskId]) -> None:
        """With a heartbeat comes what the worker has. One that never gets what it is sent is as
        good as gone, however often its heart beats."""
        if session.deaf({_key(task) for task in running}):
            _log.warning("worker does not get its tasks", worker=session.worker_id)
            self._detach(session, lost=True)

    def results(self, session: Session, results: Iterable[TaskResult]) -> None:
        """Frees the slots and sends the results on; receipts follow after the commit."""
        by_partition: dict[int, list[Result]] = defaultdict(list)
        for message in results:
            key = _key(message.id)
            session.assigned.pop(key, None)
            if len(message.id.trace_id) != 16:
                session.receipt(
                    ResultReceipt(
                        id=message.id,
                        verdict=RESULT_VERDICT_REFUSED,
                        message="the trace id has not 16 bytes",
                    )
                )
                continue
            self._holding.answers.setdefault(key, []).append((session, message.id))
            partition = partition_of(message.id.trace_id, self._partitions)
            by_partition[partition].append(result_of(message, session.worker_id))
        for partition, batch in by_partition.items():
            self._lanes[partition].push(batch)
        self._refill(session)

    def returned(self, session: Session, tasks: Iterable[TaskId]) -> None:
        """The worker gives tasks back unfinished."""
        for task in tasks:
            key = _key(task)
            session.assigned.pop(key, None)
            held = self._holding.tasks.get(key)
            if held is not None and held.session is session:
                self._spawn(self._reclaim(held))
        self._refill(session)

    def progress(self, session: Session, items: Iterable[TaskProgress]) -> None:
        """Signs of life of single tasks, for those whose node has a heartbeat."""
        now = time.monotonic()
        for item in items:
            held = self._holding.beating.get(_key(item.id))
            if held is not None and held.session is session:
                held.heard = now

    def receipts(self, session: Session, receipts: Iterable[CommandReceipt]) -> None:
        for receipt in receipts:
            future = session.commands_waiting.pop(receipt.id, None)
            if future is not None and not future.done():
                future.set_result(receipt)

    def by_token(self, token: str) -> Session | None:
        """The polled session that a welcome named."""
        return next((s for s in self.sessions.values() if s.token == token), None)

    def resize(self, session: Session, slots: int) -> None:
        session.slots = min(slots, MAX_SLOTS)
        self._refill(session)

    def drain(self, session: Session) -> None:
        """The worker takes nothing more: what has not been written to it goes to others."""
        session.draining = True
        back = [
            held
            for key in session.withdraw_all()
            if (held := self._holding.tasks.get(key)) is not None and held.session is session
        ]
        for held in back:
            held.session = None
        self._spawn(self._pass_on(back, [held.feed for held in back]))
        self._roster.joined(self.describe(session))

    def began(self, session: Session, tasks: Iterable[Task]) -> None:
        """The worker has these tasks now: a note for whoever looks at the traces."""
        for task in tasks:
            if task.HasField("heartbeat"):
                self._listen_for(task)
        self._note_begun(session, [key_of(task) for task in tasks], again=False)

    def _note_begun(self, session: Session, keys: Iterable[TaskKey], again: bool) -> None:
        at = self._clock.now()
        by_partition: dict[int, list[Began]] = defaultdict(list)
        for key in keys:
            if len(key[0]) == 16:
                note = (*key, session.worker_id, at, again)
                by_partition[partition_of(key[0], self._partitions)].append(note)
        for partition, notes in by_partition.items():
            owner = self._find_owner(partition)
            if owner is None or not owner.began(notes):
                data = msgspec.msgpack.encode(notes)
                self._spawn(self._bus.tell(subjects.began_subject(partition), data))

    def _listen_for(self, task: Task) -> None:
        held = self._holding.tasks.get(key_of(task))
        if held is not None and not held.done:
            held.heard = time.monotonic()
            self._holding.beating[key_of(task)] = held

    def _report_silent(self) -> None:
        """An attempt that is silent for too long is lost: its owner hears so as of a failure,
        and cancels what may still run."""
        for held in self._holding.silent(time.monotonic()):
            task = held.task
            seconds = task.heartbeat.ToMilliseconds() / 1_000
            message = f"no heartbeat for {seconds:g} s"
            failure = Failure(Code.HEARTBEAT_TIMEOUT, message, retryable=True)
            partition = partition_of(task.id.trace_id, self._partitions)
            result = Result(
                task.id.trace_id, task.id.node, task.id.attempt, None, failure, b"", "", 0
            )
            self._holding.answers.setdefault(key_of(task), []).append(None)
            self._lanes[partition].push([result])

    async def command(self, worker_id: str, command: Command, timeout: float) -> CommandReceipt:
        """Sends a command and waits for its receipt. Errors: `NotFound`, `TimeoutError`."""
        session = self.sessions.get(worker_id)
        if session is None:
            raise NotFound(f"no worker {worker_id} is connected here", reason="WORKER_NOT_FOUND")
        self._command_number += 1
        command.id = f"{self._command_number}"
        future: asyncio.Future[CommandReceipt] = asyncio.get_running_loop().create_future()
        session.commands_waiting[command.id] = future
        session.command(command)
        self._apply_command(session, command)
        return await asyncio.wait_for(future, timeout)

    def _apply_command(self, session: Session, command: Command) -> None:
        """What a command means for the gateway's own picture of the worker."""
        match command.WhichOneof("what"):
            case "drain":
                session.draining = True
            case "resume":
                session.draining = False
            case "set_slots":
                session.slots = min(command.set_slots, MAX_SLOTS)
            case "pause_function":
                session.paused.add(command.pause_function)
            case "resume_function":
                session.paused.discard(command.resume_function)
        self._refill(session)

    def describe(self, session: Session) -> Worker:
        hello = session.hello
        return Worker(
            worker_id=session.worker_id,
            app=session.app,
            functions=hello.functions,
            slots=session.slots,
            running=len(session.assigned),
            version=hello.version,
            labels=hello.labels,
            host=hello.host,
            sdk=hello.sdk,
            connected_at=timestamp(session.connected_at),
            seen_at=timestamp(self._clock.now()),
            draining=session.draining,
        )

    # What the engine says.

    def _committed(self, results: list[tuple[Result, bool]]) -> None:
        finished: list[HeldTask] = []
        for result, accepted in results:
            key = (result.trace_id, result.node, result.attempt)
            if result.lost:
                given_up = self._holding.lost.pop((key, result.began_at), None)
                finished += [given_up] if given_up is not None else []
                continue
            verdict = RESULT_VERDICT_ACCEPTED if accepted else RESULT_VERDICT_SUPERSEDED
            answered = self._holding.answered(key)
            if answered is not None:
                session, task = answered
                session.receipt(ResultReceipt(id=task, verdict=verdict))
            held = self._holding.tasks.get(key)
            if held is not None:
                if held.session is not None and key in held.session.assigned:
                    self._recall(held.session, held.task)
                finished.append(held)
        if finished:
            self._spawn(self._holding.finish(finished))

    async def _cancelled(self, _subject: str, data: bytes) -> None:
        for task in TaskFrame.FromString(data).tasks:
            held = self._holding.tasks.get(key_of(task))
            if held is None:
                continue
            if held.session is not None:
                self._recall(held.session, held.task)
            await self._holding.finish([held])

    def _recall(self, session: Session, task: Task) -> None:
        """The task needs no result any more. What the worker has keeps its slot until the worker
        answers: with the task itself or with a result that is superseded."""
        if not session.withdraw(key_of(task)):
            session.command(Command(id="cancel", cancel=task.id))
        self._refill(session)

    def _refill(self, session: Session) -> None:
        """Lets the session's feeds fill its free slots, once for all that happens in this round
        of the loop."""
        waiting = bool(self._to_pump)
        self._to_pump.update(feed for f in session.functions if (feed := self._feeds.get(f)))
        if self._to_pump and not waiting:
            self._spawn(self._pump())

    async def _pump(self) -> None:
        feeds, self._to_pump = self._to_pump, set()
        for feed in feeds:
            await feed.pump()

    def _spawn(self, work: Coroutine[Any, Any, None]) -> None:
        task = asyncio.create_task(work)
        self._background.add(task)
        task.add_done_callback(self._spawned)

    def _spawned(self, task: asyncio.Task[None]) -> None:
        self._background.discard(task)
        if not task.cancelled() and task.exception() is not None:
            error = task.exception()
            if not isinstance(error, MagicflowError):
                _log.error("gateway work failed", why=repr(error))


def _key(task: TaskId) -> TaskKey:
    return task.trace_id, task.node, task.attempt


def result_of(message: TaskResult, worker: str) -> Result:
    output, failure = None, None
    if message.WhichOneof("outcome") == "failure":
        failure = failure_of(message.failure)
    else:
        output = payload(message.output)
        complaint = json_complaint(output.data) if output.is_json else ""
        if complaint:
            text = f"the function's output is not valid JSON: {complaint}"
            output, failure = None, Failure("OUTPUT_INVALID", text)
    return Result(
        trace_id=message.id.trace_id,
        node=message.id.node,
        attempt=message.id.attempt,
        output=output,
        failure=failure,
        env=message.env,
        worker=worker,
        began_at=milliseconds(message.began_at),
    )


def _check_hello(app: str, hello: WorkerHello, foreign: bool) -> None:
    if not hello.functions:
        raise Invalid("a worker offers at least one function", reason="FUNCTION_INVALID")
    if not 1 <= hello.slots <= MAX_SLOTS:
        raise Invalid(
            f"slots is {hello.slots}; it must be from 1 to {MAX_SLOTS}", reason="WORKER_PROTOCOL"
        )
    if len(hello.worker_id) > 128:
        raise Invalid("worker_id has more than 128 characters", reason="WORKER_PROTOCOL")
    for function in hello.functions:
        owner, _, name = function.name.partition("/")
        if not name or not _is_name(owner) or not _is_name(name):
            raise Invalid(
                f"{function.name!r} is no function name",
                reason="FUNCTION_INVALID",
                mend="write app/name in small letters, digits, _ and -",
            )
        if owner != app and not foreign:
            raise Invalid(
                f"the token is for app {app}; it cannot offer {function.name}",
                reason="FUNCTION_INVALID",
                mend=f"use a token of app {owner}, or name the function {app}/{name}",
            )


def _is_name(text: str) -> bool:
    return (
        1 <= len(text) <= 64
        and "a" <= text[0] <= "z"
        and all(c in "abcdefghijklmnopqrstuvwxyz0123456789_-" for c in text)
    )
