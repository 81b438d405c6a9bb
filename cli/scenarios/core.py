"""Tells a story in the core alone, under virtual time: no server, no network, no waiting."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

import msgspec

from cli.scenarios.agenda import Agenda
from cli.scenarios.documents import grants_for
from cli.scenarios.hands import Hands, Job
from cli.scenarios.shelf import Shelf
from cli.scenarios.story import ABSENT, Act, Grant, Story, Trigger, Wait
from cli.scenarios.way import (
    PATIENCE,
    InVain,
    Published,
    Refused,
    Violation,
    check_hope,
    is_there,
    what_is,
)
from engine.core import machine, steering
from engine.core.effects import Dispatch, Effect, Lookup, Wake, effects_of
from engine.core.events import Event as CoreEvent
from engine.core.events import TraceStarted
from engine.core.failure import Failure
from engine.core.graph import Graph
from engine.core.keys import Keys, KeyTaken, key_digest, request_digest
from engine.core.machine import Began, Command, TimerFired
from engine.core.machine import Call as Called
from engine.core.payload import Payload, of_value
from engine.core.places import path_of
from engine.core.playbook import DEFAULT_PRIORITY, UNSET, Subplaybook
from engine.core.reruns import outcomes_before
from engine.core.state import TraceState, drawn
from engine.core.status import TraceStatus
from engine.core.steering import Verb
from engine.core.validation import complaint
from engine.errors import AlreadyExists, Invalid, MagicflowError
from engine.ids import make
from engine.rpc.status import CODES, describe
from engine.wire.traces import EventWriter, task_env, trace_message
from magicflow.conformance import Call
from magicflow.v1.event_pb2 import Event
from magicflow.v1.trace_pb2 import Trace

START = 1_750_000_000_000  # milliseconds since 1970: when every story begins
BY = "story"
_REFUSALS = {"NODE_NOT_FOUND": "NOT_FOUND", "PAYLOAD_TOO_LARGE": "INVALID_ARGUMENT"}


@dataclass(slots=True)
class _Told:
    """One trace. `running` says which attempts have begun: (scope, node, attempt) to (worker,
    milliseconds)."""

    state: TraceState
    log: list[tuple[CoreEvent, int, int, int]] = field(default_factory=list)
    running: dict[tuple[int, int, int], tuple[str, int]] = field(default_factory=dict)


class CoreWay:
    """Implements `cli.scenarios.way.Way`."""

    patience = 0.0

    async def begin(self, story: Story) -> str:
        self._agenda = Agenda(START)
        self._shelf = Shelf()
        self._hands = Hands(self._agenda, story.offered, story.commands, self._wanted, self._hear)
        self._traces: dict[bytes, _Told] = {}
        self._keys = Keys()
        self._frames = 0
        needed = [grant for document in story.documents for grant in grants_for(document)]
        for grant in needed if story.grants is None else story.grants:
            self._shelf.grant(grant)
        return ""

    async def finish(self) -> None:
        """Nothing outlives the object."""

    # Playbooks.

    async def publish(self, text: str) -> Published:
        with _refusals():
            return await self._shelf.publish(text)

    async def switch(self, playbook: str, snapshot_id: int) -> None:
        with _refusals():
            self._shelf.switch(playbook, snapshot_id)

    async def grant(self, grant: Grant) -> None:
        self._shelf.grant(grant)

    # Traces.

    async def trigger(self, trigger: Trigger, snapshot_id: int) -> str:
        with _refusals():
            graph = self._shelf.find(trigger.playbook, snapshot_id)
            value = of_value(trigger.input)
            _check_input(graph, value)
            key = key_digest(trigger.playbook, trigger.key) if trigger.key else b""
            request = request_digest(snapshot_id, value)
            known = self._known(key, request) if key else None
        if known is not None:
            return known.hex()
        start_at = self._agenda.now + trigger.start_in if trigger.start_in else 0
        priority = DEFAULT_PRIORITY if trigger.priority is None else trigger.priority
        started = _started(graph, value, self._agenda.now, start_at=start_at, priority=priority)
        trace_id = self._start(started)
        if key:
            self._keys.add(key, trace_id, request, self._agenda.now)
        return trace_id.hex()

    def _known(self, key: bytes, request: bytes) -> bytes | None:
        try:
            return self._keys.find(key, request, self._agenda.now)
        except KeyTaken as taken:
            raise AlreadyExists(str(taken), reason="IDEMPOTENCY_CONFLICT") from taken

    def _start(self, started: TraceStarted) -> bytes:
        trace_id = self._mint(started.snapshot_id)
        return self._begun(*machine.start(self._shelf, trace_id, started, self._agenda.now))

    def _mint(self, snapshot_id: int) -> bytes:
        number = len(self._traces)
        return make(self._agenda.now, number, snapshot_id % 10, number)

    def _begun(self, state: TraceState, events: list[CoreEvent]) -> bytes:
        self._traces[state.trace_id] = _Told(state)
        self._record(state, events)
        self._agenda.settle()
        return state.trace_id

    async def act(self, trace_id: str, act: Act, snapshot_id: int) -> str:
        told = self._traces[bytes.fromhex(trace_id)]
        new = ""
        with _refusals():
            if act.verb == Verb.RERUN:
                new = self._rerun(told.state, act, snapshot_id).hex()
            elif act.verb == Verb.RETRY:
                self._retry(told, act)
            elif not _aborts_again(told.state, act):
                events = steering.steer(self._shelf, told.state, _steered(act), self._agenda.now)
                self._record(told.state, events)
        self._agenda.settle()
        return new

    def _retry(self, told: _Told, act: Act) -> None:
        state, events = steering.retry(self._shelf, told.state, _steered(act), self._agenda.now)
        told.state = state
        told.running.clear()
        self._record(state, events)

    def _rerun(self, former: TraceState, act: Act, snapshot_id: int) -> bytes:
        playbook = f"{former.app}/{former.playbook}"
        graph = self._shelf.find(playbook, snapshot_id or former.snapshot_id)
        patch = None if act.value is ABSENT else of_value(act.value)
        value = former.input if act.node or patch is None else patch
        outcomes = outcomes_before(self._shelf, former, graph, act.node)
        _check_input(graph, value)
        started = _started(graph, value, self._agenda.now, priority=former.priority)
        started = msgspec.structs.replace(started, rerun_of=former.trace_id)
        again = steering.Act(Verb.RERUN, BY, act.why, act.node, patch)
        trace_id = self._mint(graph.snapshot_id)
        now = self._agenda.now
        return self._begun(*steering.rerun(self._shelf, trace_id, started, again, outcomes, now))

    # Time.

    async def wait(self, trace_id: str, wait: Wait) -> None:
        """No longer than on real servers, so that a story that needs more says `advance`."""
        until = self._agenda.now + int(PATIENCE * 1_000)
        while not self._is_there(trace_id, wait):
            check_hope(self._message(trace_id), wait)
            if not self._agenda.next(until):
                raise InVain(what_is(self._message(trace_id), wait))

    def _is_there(self, trace_id: str, wait: Wait) -> bool:
        if wait.node:
            return is_there(self._message(trace_id), wait)
        status = self._traces[bytes.fromhex(trace_id)].state.status
        return status.name == wait.status if wait.status else status.ended

    async def advance(self, by: int) -> None:
        self._agenda.advance(self._agenda.now + by)

    # What came of it.

    async def trace(self, trace_id: str) -> Trace:
        return self._message(trace_id)

    def _message(self, trace_id: str) -> Trace:
        told = self._traces[bytes.fromhex(trace_id)]
        offered = frozenset(self._hands.functions)
        return trace_message(self._shelf, told.state, offered, told.running)

    async def events(self, trace_id: str) -> Sequence[Event]:
        told = self._traces[bytes.fromhex(trace_id)]
        writer = EventWriter(self._shelf, told.state)
        return [
            writer.message(event, 0, sequence, index, at) for event, sequence, index, at in told.log
        ]

    async def calls(self) -> Sequence[Call]:
        return self._hands.calls

    # What the owner of a partition does.

    def _record(self, state: TraceState, events: Sequence[CoreEvent]) -> None:
        self._frames += 1
        log, now = self._traces[state.trace_id].log, self._agenda.now
        log.extend((event, self._frames, index, now) for index, event in enumerate(events))
        for event in events:
            for effect in effects_of(self._shelf, state, event):
                self._let_out(state, effect)

    def _let_out(self, state: TraceState, effect: Effect) -> None:
        match effect:
            case Dispatch():
                self._dispatch(state, effect)
            case Wake():
                timer = TimerFired(effect.kind, effect.scope, effect.node, effect.attempt)
                self._agenda.note(effect.at, lambda: self._command(state.trace_id, timer))
            case Lookup():
                self._agenda.note(0, lambda: self._look_up(state, effect))

    def _dispatch(self, state: TraceState, task: Dispatch) -> None:
        place = (task.scope, task.node)
        if not machine.is_current(state, *place, task.attempt):
            return
        node, now = drawn(self._shelf, state, *place), state.scopes[task.scope].nodes[task.node]
        assert now.input is not None
        path = path_of(self._shelf, state, *place)
        self._hands.give(
            Job(
                state.trace_id,
                *place,
                task.attempt,
                path,
                node.function,
                now.input,
                task_env(state, node),
                node.drawn.heartbeat,
                node.drawn.before,
                node.drawn.after,
            )
        )

    def _look_up(self, state: TraceState, lookup: Lookup) -> None:
        kind = drawn(self._shelf, state, lookup.scope, lookup.node).drawn.kind
        assert isinstance(kind, Subplaybook)
        failure = self._shelf.look_up(kind)
        self._command(state.trace_id, Called(lookup.scope, lookup.node, failure))

    def _wanted(self, job: Job) -> bool:
        state = self._traces[job.trace_id].state
        return machine.is_current(state, job.scope, job.node, job.attempt)

    def _hear(self, job: Job, command: Command) -> None:
        if isinstance(command, Began):
            place = (job.scope, job.node, job.attempt)
            self._traces[job.trace_id].running[place] = (command.worker, self._agenda.now)
        self._command(job.trace_id, command)

    def _command(self, trace_id: bytes, command: Command) -> None:
        state = self._traces[trace_id].state
        events = machine.decide(self._shelf, state, command, self._agenda.now)
        self._record(state, events)


def _started(
    graph: Graph, value: Payload, now: int, *, start_at: int = 0, priority: int = DEFAULT_PRIORITY
) -> TraceStarted:
    return TraceStarted(
        graph.playbook_id,
        graph.snapshot_id,
        graph.drawn.app,
        graph.drawn.name,
        value,
        now,
        BY,
        start_at=start_at,
        priority=priority,
    )


def _steered(act: Act) -> steering.Act:
    """Of a failure by hand `value` is the details."""
    value = None if act.value is ABSENT else of_value(act.value)
    failure = Failure(act.code, act.message, details=value) if act.verb == Verb.FAIL else None
    return steering.Act(
        Verb(act.verb),
        BY,
        act.why,
        act.node,
        value,
        failure,
        act.approve,
        act.compensate,
        act.nodes,
    )


def _aborts_again(state: TraceState, act: Act) -> bool:
    return act.verb == Verb.ABORT and state.status is TraceStatus.ABORTED


def _check_input(graph: Graph, value: Payload) -> None:
    if graph.drawn.input_schema is UNSET:
        return
    wrong = complaint(graph.drawn.input_schema, value)
    if wrong:
        message = f"the input does not fit the schema of {graph.full_name}: {wrong}"
        raise Invalid(message, reason="INPUT_INVALID")


@contextlib.contextmanager
def _refusals() -> Iterator[None]:
    """Errors as a caller of the services sees them."""
    try:
        yield
    except steering.Refused as error:
        code = _REFUSALS.get(error.reason, "FAILED_PRECONDITION")
        raise Refused(code, error.reason, error.message) from error
    except MagicflowError as error:
        violations = tuple(Violation(v.code, v.field, describe(v)) for v in error.violations)
        raise Refused(CODES[type(error)].name, error.reason, error.message, violations) from error
