"""One partition's owner: takes what came in, lets the core decide, commits, lets effects out.

Commands gather while the previous frames are on their way to the disk; each turn takes all of
them and appends one frame. Nothing is visible outside before its frame is committed. The state
runs ahead of the log by the frames in flight; if one of them fails the whole state is thrown
away and the next owner folds it from the log.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections import deque
from collections.abc import Callable, Coroutine, Sequence
from typing import Any

import structlog

from engine.bus.load import Load
from engine.bus.port import MAX_FRAME, Bus, Delivery, Fenced, Intake
from engine.bus.triggers import StartTrace, decode_triggers, encode_triggers
from engine.clock import Clock
from engine.core import machine, steering
from engine.core.effects import (
    Cancel,
    Dispatch,
    Lookup,
    Notify,
    Quarantine,
    Wake,
    effects_of,
    owed,
)
from engine.core.events import (
    AttemptFailed,
    Event,
    NodeFailed,
    NodeSkipped,
    NodeSucceeded,
    TaskScheduled,
    TraceEnded,
    TraceStarted,
)
from engine.core.failure import Failure
from engine.core.journal import (
    VERSION,
    Entry,
    Frame,
    PartitionState,
    encode_frame,
    fold,
    note_start,
    raise_floor,
    snapshots_of,
)
from engine.core.keys import KeyTaken
from engine.core.machine import (
    Began,
    Call,
    Command,
    Failed,
    Lost,
    Resumed,
    Succeeded,
    TimerFired,
)
from engine.core.places import find as find_place
from engine.core.places import path_of
from engine.core.playbook import Subplaybook
from engine.core.state import TraceState, drawn, load
from engine.core.steering import Act, Refused, Verb
from engine.errors import (
    AlreadyExists,
    Exhausted,
    Invalid,
    MagicflowError,
    NotFound,
    Unavailable,
    WrongState,
)
from engine.snapshots.callees import Callees
from engine.snapshots.library import Library
from engine.wire.traces import outcome_message, task_message
from magicflow.v1.task_pb2 import Task, TaskId
from services.dispatcher.census import Census
from services.dispatcher.ended import Ended
from services.dispatcher.limits import Limits, NoLimits
from services.dispatcher.outbox import Outbox
from services.dispatcher.pace import Pace, Unpaced
from services.dispatcher.quota import Quotas
from services.dispatcher.recovery import Recovery, without_collections
from services.dispatcher.starting import Starting, Starts
from services.dispatcher.timers import Timers
from services.dispatcher.turns import (
    Flight,
    KeyedStart,
    Note,
    Operation,
    Probe,
    Result,
    Results,
    Turn,
    pieces_of,
    weight_of,
)

IN_FLIGHT = 2  # frames; more would only make them smaller
TURN_ITEMS = 2_000  # results or operations in one turn
TURN_STARTS = 400  # traces started in one turn
LOOK_AGAIN = 1.0  # seconds until starts that are held back are looked at again
MAX_DRIFT = 60_000  # milliseconds between two clocks that agree well enough
HOLD_EVERY = 10.0  # seconds; the bus waits thirty before it gives a frame to somebody else
CHECKPOINT_FRAMES = 2_000
CHECKPOINT_BYTES = 16 << 20
OWED_AT_ONCE = 100  # traces that a new owner looks at before it lets out what they are owed
HANDOVER_PATIENCE = 5.0  # seconds until the bus must have every task frame
_log = structlog.get_logger(__name__)


class Deposed(Exception):
    """This instance owns the partition no longer."""


class Processor:
    """The owner of `partition` under `epoch`, from `recover` until `run` returns."""

    def __init__(
        self,
        partition: int,
        epoch: int,
        bus: Bus,
        library: Library,
        clock: Clock,
        limits: Limits | None = None,
        pace: Pace | None = None,
        recovery: Recovery | None = None,
    ) -> None:
        """`recovery` is given where the log has been read in advance."""
        self.partition = partition
        self._limits = limits or NoLimits()
        self._pace = pace or Unpaced()
        self.epoch = epoch
        self._bus = bus
        self._clock = clock
        self._recovery = recovery or Recovery(partition, bus, library)
        self._log = self._recovery.log
        self._checkpoints = self._recovery.checkpoints
        self._graphs = self._recovery.graphs
        self._outbox = Outbox(bus, partition, epoch)
        self._state = PartitionState()
        self._timers = Timers()
        self._tail = 0
        self._number = 0
        self._arrived: deque[Results | Operation | Note | KeyedStart | Probe] = deque()
        self._aside: set[asyncio.Task[None]] = set()
        self._starting = Starting()
        self._census = Census()
        self._quotas = Quotas()
        self._ahead = 0  # milliseconds by which the log's time is ahead of our clock
        self._queued = 0  # frames of triggers that wait on the bus
        self._commit_ms = 0.0
        self._held_at = 0.0
        self._intake: Intake | None = None
        self._flights: deque[Flight] = deque()
        self._wake = asyncio.Event()
        self._landed = asyncio.Event()
        self._stopping = False
        self._followed = False
        self._ended: BaseException | None = None
        self._changed: set[bytes] = set()
        self._gone: set[bytes] = set()
        self._frames_since = 0
        self._bytes_since = 0
        self._floor = 0
        self._torn: set[bytes] = set()  # traces whose last turn a crash may have cut in two
        self._redispatch: set[str] = set()  # apps whose tasks may be lost; empty name: all
        self._dispatched_to = ""  # the task queue that has everything that was let out
        self._stop_hearing: Callable[[], None] = lambda: None
        self._running: dict[bytes, dict[tuple[int, int, int], tuple[str, int]]] = {}
        self._recent = Ended()
        self.projected = 0  # what the projection has taken; set by the owner of this object

    # Before and after.

    async def recover(self) -> None:
        """Folds the log, opens the epoch, and lets out what is owed.

        Errors: `Deposed` when somebody with a higher epoch was here; `Unavailable`.
        """
        self._stop_hearing = self._bus.on_tasks_lost(self._tasks_lost)
        try:
            with without_collections():
                await self._recover()
        except BaseException:
            self._stop_hearing()
            raise

    async def _recover(self) -> None:
        while True:
            await self._read_state()
            if self.epoch <= self._state.epoch:
                raise Deposed(
                    f"partition {self.partition} has seen epoch {self._state.epoch}, "
                    f"this owner has {self.epoch}"
                )
            opening = Frame(VERSION, self.partition, self.epoch, 0, self._now(), 0, [])
            try:
                await (await self._log.append(encode_frame(opening), self._tail))
            except Fenced:
                continue  # the former owner was faster: read what it wrote
            break
        handover = self._state.handover
        self._dispatched_to = await self._bus.tasks_identity()
        fold(self._state, self._tail + 1, opening, self._graphs)
        self._tail += 1
        self._number = 1
        lost = await self._bus.tasks_lost_since(handover) if handover else {""}
        await self._let_out_owed(lost)

    def _now(self) -> int:
        """Milliseconds since 1970, as the log counts them."""
        return self._clock.now() + self._ahead

    async def _go_on_in_time(self, last: int) -> None:
        """What was to happen so long after the last frame happens so long after it, by the clock of
        the log's server, whatever our own says: that may have been set by an hour since, or never
        have agreed with the former owner's. Small differences follow our own clock, but never
        back behind the last frame."""
        now = self._clock.now()
        if not last:
            return
        continued = last + await self._log.since_last()
        if abs(continued - now) > MAX_DRIFT:
            seconds = (now - continued) / 1_000
            _log.warning("our clock has stepped", partition=self.partition, seconds=seconds)
            self._ahead = continued - now
        else:
            self._ahead = max(0, last - now)

    async def _read_state(self) -> None:
        found = await self._recovery.catch_up()
        self._state, self._torn = found.state, found.torn
        self._tail = found.state.sequence
        await self._go_on_in_time(found.state.at)
        self._changed.clear()
        self._gone.clear()
        self._note_change(found.touched)
        self._frames_since, self._bytes_since = found.frames, found.bytes

    async def _let_out_owed(self, lost: set[str]) -> None:
        """Timers always; dispatches of apps whose tasks are lost, or of all: those of others are on
        the bus, where a clean owner before has left them. Some hundreds of traces at a time, so
        that the first tasks go out before the last traces have been looked at."""
        traces = list(self._state.traces.values())
        for start in range(0, len(traces), OWED_AT_ONCE):
            turn = Turn(self._now())
            for trace in traces[start : start + OWED_AT_ONCE]:
                self._owe_again(turn, trace, lost)
            await self._queue(turn)
            await asyncio.sleep(0)  # other partitions open their epochs meanwhile
        self._torn = set()

    def _owe_again(self, turn: Turn, trace: TraceState, lost: set[str]) -> None:
        trace_id = trace.trace_id
        self._census.started(trace_id, trace.app)
        for effect in owed(self._graphs, trace):
            if isinstance(effect, Dispatch):
                self._census.dispatched(trace_id, (effect.scope, effect.node))
                if not lost or not self._is_lost(trace, effect, lost):
                    continue
            turn.effects.append((trace_id, trace, effect))
        if trace_id in self._torn:
            try:
                self._record(turn, trace, machine.resume(self._graphs, trace, turn.at))
            except machine.Undecided as broken:
                self._give_up(turn, trace, broken)

    def _is_lost(self, trace: TraceState, task: Dispatch, lost: set[str]) -> bool:
        function = drawn(self._graphs, trace, task.scope, task.node).function
        return "" in lost or function.partition("/")[0] in lost

    async def run(self) -> None:
        """Works until `stop` or until the partition is lost.

        Errors: `Deposed`, `Unavailable`; then nothing more leaves this object.
        """
        committer = asyncio.create_task(self._commit())
        try:
            self._intake = await self._bus.take_triggers(self.partition, self._delivered)
            await self._intake.ask(self._starting.asked)
            while not (self._stopping and not self._arrived and not self._flights):
                if self._ended is not None:
                    raise self._ended
                await self._step()
            await self._hand_over()
        finally:
            self._ended = self._ended or Deposed("the partition was given up")
            committer.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await committer
            self._stop_hearing()
            if self._intake is not None:
                await self._intake.close()
            for work in self._aside:
                work.cancel()
            self._refuse_all()
            await self._outbox.close()

    def stop(self, followed: bool = False) -> None:
        """Takes nothing more, commits what is there, leaves a clean end for the next owner. One who
        has `followed` the log needs no checkpoint for it."""
        self._stopping = True
        self._followed = followed
        self._wake.set()

    def abandon(self) -> None:
        """Lets go at once: somebody else may own the partition. Whoever calls this cancels the
        task of `run` as well, and a cancellation alone may be lost: `asyncio.wait_for` of Python
        3.11 returns a result that comes with it as if nothing had been."""
        self._end(Deposed("the partition is another's"))

    async def _hand_over(self) -> None:
        if not self._followed:
            await self._save_checkpoint()
        sent = await self._outbox.sent(HANDOVER_PATIENCE)
        identity = self._dispatched_to if sent and not self._redispatch else ""
        frame = Frame(
            VERSION,
            self.partition,
            self.epoch,
            self._number,
            self._now(),
            self._floor,
            [],
            identity,
        )
        with contextlib.suppress(Fenced, Unavailable):
            await (await self._log.append(encode_frame(frame), self._tail))

    # What comes in.

    def deliver(self, results: Sequence[Result]) -> asyncio.Future[list[bool]]:
        """The future says for each result whether it was accepted, once that is committed.
        Errors in the future: `Unavailable` when the partition was lost first."""
        future: asyncio.Future[list[bool]] = asyncio.get_running_loop().create_future()
        self._push(Results(results, future), future)
        return future

    async def operate(self, trace_id: bytes, act: Act, former: bytes = b"") -> None:
        """Returns once the act is committed. `former` is the state of an ended trace to retry,
        for when this owner has forgotten it.

        Errors: `NotFound` for a trace that does not live here, `WrongState` and others that say
        why the act is refused, `Unavailable`.
        """
        ended: TraceState | None = None
        if act.verb is Verb.RETRY and trace_id not in self._state.traces:
            ended = self._recent.find(trace_id) or (load(former) if former else None)
            if ended is not None:
                if ended.trace_id != trace_id:
                    raise Invalid("the state is another trace's")
                await self._load(ended)
        future: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._push(Operation(trace_id, act, future, ended), future)
        await future

    async def start(self, trigger: StartTrace) -> tuple[bytes, bool]:
        """Starts a trace under an idempotency key: (its trace, whether the key had started it
        before). Returns once that is committed.

        Errors: `Conflict` when the key was used for something else, `Overloaded`, `NotFound`,
        `Unavailable`.
        """
        await self._graphs.load(trigger.playbook_id, trigger.snapshot_id)
        future: asyncio.Future[tuple[bytes, bool]] = asyncio.get_running_loop().create_future()
        self._push(KeyedStart(trigger, future), future)
        return await future

    def _push(
        self, item: Results | Operation | KeyedStart | Probe, future: asyncio.Future[Any]
    ) -> None:
        if self._ended is not None:
            future.set_exception(_lost(self.partition))
            return
        self._arrived.append(item)
        self._wake.set()

    def _note(self, trace_id: bytes, command: Command) -> None:
        if self._ended is None:
            self._arrived.append(Note(trace_id, command))
            self._wake.set()

    async def owed(self, tasks: Sequence[tuple[bytes, str, int]]) -> list[bool]:
        """Which of (trace, node, attempt) still want a result. Errors: `Unavailable`."""
        wanted = [self._is_owed(*task) for task in tasks]
        if not all(wanted):  # a deposed owner may not say so
            future: asyncio.Future[None] = asyncio.get_running_loop().create_future()
            self._push(Probe(future), future)
            await future
        return wanted

    def _is_owed(self, trace_id: bytes, node: str, attempt: int) -> bool:
        trace = self._state.traces.get(trace_id)
        if trace is None:
            return False
        place = find_place(self._graphs, trace, node)
        return place is not None and machine.is_current(trace, *place, attempt)

    def began(
        self, trace_id: bytes, node: str, attempt: int, worker: str, at: int, again: bool
    ) -> None:
        """A gateway saw a worker begin, or (`again`) come back with what it had begun. Kept in
        memory for whoever looks; it decides something only where the node has a queue_timeout
        or the worker was taken for lost."""
        trace = self._state.traces.get(trace_id)
        place = find_place(self._graphs, trace, node) if trace is not None else None
        if trace is None or place is None or not machine.is_current(trace, *place, attempt):
            return
        self._running.setdefault(trace_id, {})[*place, attempt] = (worker, at)
        self._census.begun(trace_id, place)
        if self._starting:
            self._wake.set()
        if again:
            self._note(trace_id, Resumed(*place, attempt, worker))
        if drawn(self._graphs, trace, *place).drawn.queue_timeout:
            self._note(trace_id, Began(*place, attempt, worker))

    def running(self, trace_id: bytes) -> dict[tuple[int, int, int], tuple[str, int]]:
        """Which attempts of a live trace have begun: (scope, node, attempt) to (worker, time)."""
        return self._running.get(trace_id, {})

    @property
    def graphs(self) -> Callees:
        return self._graphs

    async def committed(self) -> None:
        """Returns once everything that was decided before the call is on disk. Errors:
        `Unavailable` when the partition was lost first."""
        if self._ended is not None:
            raise _lost(self.partition)
        if not self._flights:
            return
        future: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        turn = Turn(self._now(), answers=[(future, None)])
        self._flights.append(Flight(None, turn, 0))
        await future

    def find(self, trace_id: bytes) -> TraceState | None:
        """A live trace, or one that ended a short while ago. It may be ahead of the log: whoever
        tells others of it waits for `committed` after looking."""
        return self._state.traces.get(trace_id) or self._recent.find(trace_id)

    async def _delivered(self, delivery: Delivery) -> None:
        try:
            triggers = decode_triggers(delivery.data)
            for trigger in triggers:
                await self._graphs.load(trigger.playbook_id, trigger.snapshot_id)
        except Unavailable:
            await delivery.give_back(1.0)
            return
        except (ValueError, MagicflowError) as error:
            _log.error("trigger cannot be processed", partition=self.partition, why=str(error))
            with contextlib.suppress(Unavailable):
                await self._bus.dead.bury(
                    delivery.subject, delivery.data, "TRIGGER_UNUSABLE", str(error)
                )
                await delivery.ack()
            return
        self._queued = delivery.behind
        app = self._graphs.graph(triggers[0].snapshot_id).drawn.app
        self._starting.add(Starts(delivery, triggers, app))
        self._wake.set()

    def load(self) -> Load:
        """How much is waiting here, for those who admit triggers."""
        behind = max(0, self._state.sequence - self.projected) if self.projected else 0
        waiting = self._starting.by_app()
        return Load(self.partition, waiting, self._queued, self._commit_ms, behind)

    def lease(self, app: str, wanted: int) -> tuple[int, float]:
        """Starts that the app may make now, of its quota for the whole cluster: (how many, seconds
        until the next). This partition keeps the app's account."""
        return self._quotas.lease(app, self._limits.quota(app), wanted, self._now())

    def wake(self) -> None:
        """Starts that were held back may go now."""
        if self._starting:
            self._wake.set()

    def _may_start(self, app: str, count: int) -> bool:
        limit = self._limits.live(app, self.partition)
        if limit and self._census.live[app] + count > limit:
            return False
        return self._census.unbegun[app] < self._limits.unbegun(app)

    async def _hold(self) -> None:
        """Tells the bus that the triggers that wait here are not forgotten."""
        now = asyncio.get_running_loop().time()
        if now - self._held_at >= HOLD_EVERY:
            self._held_at = now
            for delivery in list(self._starting.deliveries()):
                await delivery.working()

    async def _load(self, trace: TraceState) -> None:
        for playbook_id, snapshot_id in snapshots_of(trace):
            await self._graphs.load(playbook_id, snapshot_id)

    def _tasks_lost(self, app: str) -> None:
        self._redispatch.add(app)
        self._wake.set()

    # A turn.

    async def _step(self) -> None:
        if len(self._flights) >= IN_FLIGHT:
            self._landed.clear()
            await self._landed.wait()
            return
        now = self._now()
        due = self._timers.next()
        ready = not self._stopping and self._starting.ready(self._pace.left, self._may_start)
        busy = self._arrived or ready
        if not busy and not self._redispatch and (due is None or due > now):
            await self._idle(now, due)
            return
        # One more round of the loop: whatever arrives in it shares the frame.
        await asyncio.sleep(0)
        if self._redispatch:
            lost, self._redispatch = self._redispatch, set()
            self._dispatched_to = await self._bus.tasks_identity()
            await self._let_out_owed(lost)
            return
        turn = Turn(now)
        try:
            self._take_timers(turn)
            self._take_arrived(turn)
            if not self._stopping:
                self._take_starts(turn)
            await self._queue(turn)
        except BaseException:
            self._refuse(turn)
            raise
        if self._intake is not None and not self._stopping:
            await self._intake.ask(self._starting.asked)
            await self._hold()
        if self._checkpoint_due():
            await self._save_checkpoint()

    async def _idle(self, now: int, due: int | None) -> None:
        if self._stopping and self._flights:
            self._landed.clear()
            await self._landed.wait()
            return
        if self._stopping:
            return
        self._wake.clear()
        timeout = None if due is None else max(0.0, (due - now) / 1_000)
        if self._starting:
            timeout = LOOK_AGAIN if timeout is None else min(timeout, LOOK_AGAIN)
            await self._hold()
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(timeout):
                await self._wake.wait()

    def _take_timers(self, turn: Turn) -> None:
        for trace_id, wake in self._timers.due(turn.at, TURN_ITEMS):
            trace = self._state.traces.get(trace_id)
            if trace is not None:
                command = TimerFired(wake.kind, wake.scope, wake.node, wake.attempt)
                self._decide(turn, trace, command)

    def _take_arrived(self, turn: Turn) -> None:
        count = 0
        while self._arrived and count < TURN_ITEMS and turn.weight < MAX_FRAME:
            item = self._arrived.popleft()
            if isinstance(item, Results):
                count += len(item.items)
                accepted = [self._take_result(turn, result) for result in item.items]
                turn.certain |= not all(accepted)
                turn.answers.append((item.future, accepted))
                continue
            count += 1
            if isinstance(item, Operation):
                self._take_operation(turn, item)
            elif isinstance(item, KeyedStart):
                self._take_keyed(turn, item)
            elif isinstance(item, Probe):
                turn.certain = True
                turn.answers.append((item.future, None))
            else:
                trace = self._state.traces.get(item.trace_id)
                if trace is not None:
                    self._decide(turn, trace, item.command)

    def _take_result(self, turn: Turn, result: Result) -> bool:
        trace = self._state.traces.get(result.trace_id)
        if trace is None:
            return False
        place = find_place(self._graphs, trace, result.node)
        if place is None or not machine.is_current(trace, *place, result.attempt):
            return False
        command: Command
        if result.failure is not None:
            command = Failed(*place, result.attempt, result.failure, result.worker)
        elif result.output is None:
            command = Lost(*place, result.attempt, result.worker, result.began_at)
        else:
            command = Succeeded(
                *place,
                result.attempt,
                result.output,
                result.env,
                result.worker,
                result.began_at,
            )
        return self._decide(turn, trace, command)

    def _take_operation(self, turn: Turn, item: Operation) -> None:
        trace = self._state.traces.get(item.trace_id)
        try:
            if trace is not None:
                events = steering.steer(self._graphs, trace, item.act, turn.at)
                self._record(turn, trace, events)
            elif item.former is not None:
                self._revive(turn, item, item.former)
            else:
                raise NotFound("no such live trace", reason="TRACE_NOT_FOUND")
        except Refused as refused:
            turn.certain = True
            turn.answers.append((item.future, _refusal(refused)))
        except NotFound as error:
            turn.certain = True
            turn.answers.append((item.future, error))
        except machine.Undecided as broken:
            turn.certain = True
            turn.answers.append((item.future, _fault(broken)))
            if trace is not None:
                self._give_up(turn, trace, broken)
        else:
            turn.answers.append((item.future, None))

    def _revive(self, turn: Turn, item: Operation, former: TraceState) -> None:
        trace, events = steering.retry(self._graphs, former, item.act, turn.at)
        size = weight_of(events[0])
        if size > 4 * MAX_FRAME:
            message = f"the trace's state has {size} bytes; {4 * MAX_FRAME} can be revived"
            raise Refused("TRACE_STATE", message, "rerun it from a node instead")
        self._recent.forget(item.trace_id)
        self._state.traces[item.trace_id] = trace
        self._census.started(item.trace_id, trace.app)
        self._record(turn, trace, events)

    def _take_keyed(self, turn: Turn, item: KeyedStart) -> None:
        trigger, keys = item.trigger, self._state.keys
        answer: Any
        try:
            known = keys.find(trigger.key, trigger.request, turn.at)
            if known is not None:
                answer = (known, True)
            elif not self._may_start(self._graphs.graph(trigger.snapshot_id).drawn.app, 1):
                raise Exhausted(
                    "as many of the app's traces are under way as it may have",
                    reason="OVERLOADED",
                    retry_after=1.0,
                )
            elif keys.full(turn.at):
                raise Exhausted(
                    "too many idempotency keys are remembered",
                    reason="OVERLOADED",
                    retry_after=60.0,
                )
            else:
                self._start(turn, trigger, 0)
                answer = (trigger.trace_id, False)
        except KeyTaken as taken:
            answer = AlreadyExists(
                f"this idempotency key is taken: {taken}",
                reason="IDEMPOTENCY_CONFLICT",
                mend="use a key of its own for each request",
                metadata={"trace_id": taken.trace_id.hex()},
            )
        except Exhausted as error:
            answer = error
        except machine.Undecided as broken:
            answer = _fault(broken)
        turn.certain = True
        turn.answers.append((item.future, answer))

    def _take_starts(self, turn: Turn) -> None:
        limit = min(TURN_STARTS, self._pace.left)
        for starts in self._starting.take(limit, self._may_start):
            self._pace.took(len(starts.triggers))
            sequence = starts.delivery.sequence
            if sequence <= self._state.trigger_floor or sequence in self._state.triggers:
                turn.deliveries.append(starts.delivery)
                continue
            letters: list[tuple[bytes, str]] = []
            for place, trigger in enumerate(starts.triggers):
                # Only the last one carries the sequence: a frame that was cut in two by a crash
                # is then taken up again. So is one with a start that broke, until that lies with
                # the dead letters.
                last = place == len(starts.triggers) - 1 and not letters
                try:
                    self._start(turn, trigger, sequence if last else 0)
                except Exception as error:
                    cause = error.__cause__ or error
                    _log.error("a start breaks", trace=trigger.trace_id.hex(), exc_info=cause)
                    # Its text is for the log: whoever may read the letter gets the kind alone.
                    why = f"{type(cause).__name__}; the dispatcher's log has the details"
                    letters.append((encode_triggers([trigger]), why))
            if letters:
                turn.broken.append((starts.delivery, letters))
            else:
                turn.deliveries.append(starts.delivery)
            if turn.weight >= MAX_FRAME:
                return

    async def _put_starts_aside(
        self, delivery: Delivery, letters: Sequence[tuple[bytes, str]]
    ) -> None:
        """Triggers over which our own rules break go to the dead letters, alone; the frame that
        they came with leaves its queue only after that."""
        try:
            for frame, why in letters:
                await self._bus.dead.bury(delivery.subject, frame, "TRIGGER_FAILED", why)
        except Unavailable:
            await delivery.give_back(1.0)
        else:
            await delivery.ack()

    def _start(self, turn: Turn, trigger: StartTrace, sequence: int) -> None:
        if self.find(trigger.trace_id) is not None:  # its frame came before
            return
        graph = self._graphs.graph(trigger.snapshot_id)
        started = TraceStarted(
            trigger.playbook_id,
            trigger.snapshot_id,
            graph.drawn.app,
            graph.drawn.name,
            trigger.input,
            trigger.triggered_at,
            trigger.by,
            sequence,
            trigger.start_at,
            trigger.priority,
            trigger.key,
            trigger.request,
            trigger.rerun.of if trigger.rerun is not None else b"",
        )
        rerun = trigger.rerun
        if rerun is None:
            trace, events = machine.start(self._graphs, trigger.trace_id, started, turn.at)
        else:
            act = Act(Verb.RERUN, trigger.by, rerun.why, rerun.node, rerun.input)
            outcomes = {graph.by_code[code]: o for code, o in rerun.outcomes().items()}
            trace, events = steering.rerun(
                self._graphs, trigger.trace_id, started, act, outcomes, turn.at
            )
        self._state.traces[trigger.trace_id] = trace
        self._census.started(trigger.trace_id, trace.app)
        note_start(self._state, trigger.trace_id, started, turn.at)
        self._record(turn, trace, events)

    def _decide(self, turn: Turn, trace: TraceState, command: Command) -> bool:
        try:
            events = machine.decide(self._graphs, trace, command, turn.at)
        except machine.Undecided as broken:
            self._give_up(turn, trace, broken)
            return False
        self._record(turn, trace, events)
        return bool(events)

    def _give_up(self, turn: Turn, trace: TraceState, broken: machine.Undecided) -> None:
        """One trace over which our own rules break ends, and holds up nobody else."""
        cause = broken.__cause__ or broken
        _log.error("a trace is given up", trace=trace.trace_id.hex(), exc_info=cause)
        self._record(turn, trace, broken.events)
        if not trace.status.ended:
            self._record(turn, trace, machine.give_up(self._graphs, trace, cause, turn.at))

    def _record(self, turn: Turn, trace: TraceState, events: list[Event]) -> None:
        if not events:
            return
        trace_id = trace.trace_id
        entry = turn.entries.get(trace_id)
        if entry is None:
            turn.entries[trace_id] = Entry(trace_id, events)
        else:
            entry.events.extend(events)
        for event in events:
            turn.weight += weight_of(event)
            self._count(trace_id, event)
            for effect in effects_of(self._graphs, trace, event):
                turn.effects.append((trace_id, trace, effect))
        if isinstance(events[-1], TraceEnded):
            del self._state.traces[trace_id]
            self._recent.decided(trace)
            self._running.pop(trace_id, None)
            self._census.ended(trace_id)

    def _count(self, trace_id: bytes, event: Event) -> None:
        if isinstance(event, TaskScheduled):
            self._census.dispatched(trace_id, (event.scope, event.node))
        elif isinstance(event, NodeSucceeded | AttemptFailed | NodeFailed | NodeSkipped):
            self._census.begun(trace_id, (event.scope, event.node))

    # The commit.

    async def _queue(self, turn: Turn) -> None:
        if turn.entries or turn.certain:
            await self._append(turn)
        elif self._flights:
            # What the turn lets out may rest on a frame in flight: it goes out after it.
            self._flights.append(Flight(None, turn, 0))
        else:
            await self._release(turn)

    async def _append(self, turn: Turn) -> None:
        for piece, final in pieces_of(list(turn.entries.values())):
            frame = Frame(
                VERSION,
                self.partition,
                self.epoch,
                self._number,
                turn.at,
                self._floor,
                piece,
            )
            data = encode_frame(frame)
            future = await self._log.append(data, self._tail)
            # What a cut turn owes waits for its last piece.
            released = turn if final else Turn(turn.at)
            sent_at = asyncio.get_running_loop().time()
            self._flights.append(Flight(future, released, len(data), self._number, sent_at))
            self._tail += 1
            self._number += 1
        raise_floor(self._state, self._floor)
        self._note_change(set(turn.entries))
        self._landed.set()

    async def _commit(self) -> None:
        """Waits for each frame in order and releases what hangs on it."""
        try:
            while True:
                while not self._flights:
                    self._landed.clear()
                    await self._landed.wait()
                flight = self._flights[0]
                if flight.future is not None:
                    self._state.sequence = await flight.future
                    self._note_commit(flight.sent_at)
                    self._state.number = flight.number
                    self._state.at = max(self._state.at, flight.turn.at)
                    self._frames_since += 1
                    self._bytes_since += flight.size
                await self._release(flight.turn)
                self._flights.popleft()
                self._landed.set()
                self._wake.set()
        except Fenced as error:
            self._end(Deposed(f"partition {self.partition}: {error}"))
        except Unavailable as error:
            self._end(error)

    def _note_commit(self, sent_at: float) -> None:
        took = (asyncio.get_running_loop().time() - sent_at) * 1_000
        self._commit_ms += 0.2 * (took - self._commit_ms)

    def _end(self, error: BaseException) -> None:
        self._ended = error
        self._wake.set()
        self._landed.set()

    async def _release(self, turn: Turn) -> None:
        tasks: list[Task] = []
        cancels: list[TaskId] = []
        outcomes: list[tuple[bytes, bytes]] = []
        poisoned: list[tuple[Task, str]] = []
        for trace_id, trace, effect in turn.effects:
            if isinstance(effect, Dispatch):
                if machine.is_current(trace, effect.scope, effect.node, effect.attempt):
                    task = task_message(self._graphs, trace, effect.scope, effect.node, self.epoch)
                    tasks.append(task)
            elif isinstance(effect, Wake):
                self._timers.add(trace_id, effect)
            elif isinstance(effect, Cancel):
                path = path_of(self._graphs, trace, effect.scope, effect.node)
                cancels.append(TaskId(trace_id=trace_id, node=path, attempt=effect.attempt))
            elif isinstance(effect, Lookup):
                self._look_up(trace_id, trace, effect)
            elif isinstance(effect, Quarantine):
                poisoned.append(self._poisoned(trace, effect))
            elif isinstance(effect, Notify):
                outcomes.append((trace_id, self._outcome(trace)))
        if tasks:
            await self._outbox.dispatch(tasks)
        if cancels:
            await self._outbox.cancel(cancels)
        if outcomes:
            await self._outbox.notify(outcomes)
        if poisoned:
            self._beside(self._outbox.bury(poisoned))
        for delivery in turn.deliveries:
            await delivery.ack()
        for delivery, letters in turn.broken:
            self._beside(self._put_starts_aside(delivery, letters))
        for future, answer in turn.answers:
            if future.done():
                continue
            if isinstance(answer, Exception):
                future.set_exception(answer)
            else:
                future.set_result(answer)

    def _poisoned(self, trace: TraceState, effect: Quarantine) -> tuple[Task, str]:
        """The task and what it did. The trace says itself that the node has failed, and why: a
        copy for the dead letters that gets lost on its way is lost for the list only."""
        task = task_message(self._graphs, trace, effect.scope, effect.node, self.epoch)
        failure = trace.scopes[effect.scope].nodes[effect.node].failure
        return task, failure.message if failure is not None else ""

    def _look_up(self, trace_id: bytes, trace: TraceState, effect: Lookup) -> None:
        kind = drawn(self._graphs, trace, effect.scope, effect.node).drawn.kind
        assert isinstance(kind, Subplaybook)
        self._beside(self._find_callee(trace_id, effect, kind))

    def _beside(self, work: Coroutine[Any, Any, None]) -> None:
        """What no turn waits for; it ends with this owner."""
        task = asyncio.create_task(work)
        self._aside.add(task)
        task.add_done_callback(self._aside.discard)

    async def _find_callee(self, trace_id: bytes, effect: Lookup, callee: Subplaybook) -> None:
        pause = 0.1
        while True:
            try:
                failure = await self._graphs.look_up(callee)
            except Unavailable as error:
                _log.warning("callee cannot be looked up", callee=callee.playbook, why=str(error))
                await asyncio.sleep(pause)
                pause = min(2 * pause, 5.0)
            except MagicflowError as error:
                failure = Failure(error.reason, error.message)
                break
            else:
                break
        self._note(trace_id, Call(effect.scope, effect.node, failure))

    def _outcome(self, trace: TraceState) -> bytes:
        outcome = outcome_message(trace).SerializeToString()
        self._recent.committed(trace, len(outcome))
        return outcome

    def _refuse_all(self) -> None:
        """The partition is lost: whoever waits asks its next owner."""
        for flight in self._flights:
            self._refuse(flight.turn)
        for item in self._arrived:
            if not isinstance(item, Note) and not item.future.done():
                item.future.set_exception(_lost(self.partition))
        self._flights.clear()
        self._arrived.clear()

    def _refuse(self, turn: Turn) -> None:
        for future, _ in turn.answers:
            if not future.done():
                future.set_exception(_lost(self.partition))

    # Checkpoints.

    def _note_change(self, touched: set[bytes]) -> None:
        for trace_id in touched:
            if trace_id in self._state.traces:
                self._changed.add(trace_id)
            else:
                self._changed.discard(trace_id)
                self._gone.add(trace_id)

    def _checkpoint_due(self) -> bool:
        return self._frames_since >= CHECKPOINT_FRAMES or self._bytes_since >= CHECKPOINT_BYTES

    async def _save_checkpoint(self) -> None:
        """Waits until no frame is in flight, so that what is saved is committed."""
        while self._flights and self._ended is None:
            self._landed.clear()
            await self._landed.wait()
        if self._ended is not None:
            return
        self._frames_since = self._bytes_since = 0
        try:
            if self._intake is not None:
                self._floor = await self._intake.floor()
            await self._checkpoints.save(self._state, self._changed, self._gone)
            self._changed.clear()
            self._gone.clear()
            if len(self._timers) > 10_000:
                self._timers.keep(self._wants)
            if len(self._checkpoints.kept) == 2 and self.projected:
                await self._log.purge(min(self._checkpoints.kept[0], self.projected))
        except Fenced as error:
            self._end(Deposed(f"partition {self.partition}: {error}"))
        except Unavailable as error:
            _log.warning("no checkpoint", partition=self.partition, why=str(error))

    def _wants(self, trace_id: bytes, wake: Wake) -> bool:
        trace = self._state.traces.get(trace_id)
        if trace is None:
            return False
        return wake.node < 0 or not trace.scopes[wake.scope].nodes[wake.node].status.settled


_REFUSALS: dict[str, type[MagicflowError]] = {
    "NODE_NOT_FOUND": NotFound,
    "PAYLOAD_TOO_LARGE": Invalid,
}


def _refusal(refused: Refused) -> MagicflowError:
    kind = _REFUSALS.get(refused.reason, WrongState)
    return kind(refused.message, reason=refused.reason, mend=refused.mend)


def _fault(broken: machine.Undecided) -> MagicflowError:
    cause = broken.__cause__ or broken
    _log.error("a rule breaks", exc_info=cause)
    return MagicflowError(
        f"a fault in magicflow itself: {type(cause).__name__}; the dispatcher's log has the details"
    )


def _lost(partition: int) -> Unavailable:
    return Unavailable(
        f"partition {partition} is changing its owner",
        reason="PARTITION_UNOWNED",
        retry_after=0.2,
    )
