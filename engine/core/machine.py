"""Every rule of execution: `decide(graphs, state, command, now) -> events`.

Pure: the clock, ids and chance come in as arguments, and what must happen outside goes out as
events, whose effects are released after the commit. `decide` applies each event to the state as
it makes it, so the next rule sees its consequence; replaying the same events with `state.apply`
gives the same bytes. What an operator may do to a trace is in `steering`.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from msgspec.structs import replace

from engine.core.data import Data, View
from engine.core.deadlines import (
    attempt_due,
    attempt_limit,
    queue_due,
    total_due,
    trace_due,
    waits_for_worker,
)
from engine.core.effects import TimerKind, wants_callee
from engine.core.events import (
    AttemptBegan,
    AttemptFailed,
    AttemptLost,
    AttemptResumed,
    CallStarted,
    Event,
    HookOpened,
    NodeFailed,
    NodeSkipped,
    NodeSucceeded,
    OperatorActed,
    RoundStarted,
    ScopeKind,
    ScopeOpened,
    SleepStarted,
    TaskScheduled,
    TraceEnded,
    TraceFailing,
    TraceReleased,
    TraceStarted,
)
from engine.core.expressions import ExpressionFailed
from engine.core.failure import Code, Failure
from engine.core.graph import Graph, GraphEdge, GraphNode
from engine.core.moments import NotAMoment, milliseconds_of
from engine.core.payload import NULL, NotJson, Payload, json_text, of_value, to_value
from engine.core.places import depth_of, is_reached, path_of
from engine.core.playbook import UNSET, Hook, Join, Map, Repeat, Sleep, Subplaybook
from engine.core.references import MISSING, Reference
from engine.core.refusal import Refused
from engine.core.reruns import Outcome as Outcome
from engine.core.reruns import Taken
from engine.core.retry import is_poison, wait_before_next
from engine.core.state import (
    MAX_ENV,
    ROOT,
    Graphs,
    NodeState,
    ScopeState,
    TraceState,
    apply,
    begin,
    drawn,
    fits_state,
)
from engine.core.status import NodeStatus, TraceStatus
from engine.core.templates import MappingFailed
from engine.core.validation import complaint

MAX_PAYLOAD = 1_048_576  # bytes of one input or output
MAX_ITEMS = 10_000  # of one map
MAX_DEPTH = 16  # playbooks that call each other
MAX_TRACE_NODES = 50_000  # nodes and items of one trace


@dataclass(frozen=True, slots=True)
class Succeeded:
    """A worker returned. `env` is a JSON object or empty."""

    scope: int
    node: int
    attempt: int
    output: Payload
    env: bytes = b""
    worker: str = ""
    began_at: int = 0


@dataclass(frozen=True, slots=True)
class Failed:
    """A worker reported a failure, or the attempt was lost."""

    scope: int
    node: int
    attempt: int
    failure: Failure
    worker: str = ""


@dataclass(frozen=True, slots=True)
class Began:
    """A worker has begun."""

    scope: int
    node: int
    attempt: int
    worker: str


@dataclass(frozen=True, slots=True)
class Lost:
    """The worker that had the attempt disappeared, at `at` by its gateway's clock."""

    scope: int
    node: int
    attempt: int
    worker: str
    at: int


@dataclass(frozen=True, slots=True)
class Resumed:
    """The worker came back and has the attempt still."""

    scope: int
    node: int
    attempt: int
    worker: str


@dataclass(frozen=True, slots=True)
class TimerFired:
    """A timer that an event asked for is due."""

    kind: TimerKind
    scope: int
    node: int
    attempt: int


@dataclass(frozen=True, slots=True)
class Call:
    """What the node is to call can be looked up now; `failure` says that it cannot ever."""

    scope: int
    node: int
    failure: Failure | None = None


Command = Succeeded | Failed | Began | Lost | Resumed | TimerFired | Call


class Undecided(Exception):
    """A rule broke, over a command or another's act. `events` were decided before, and stand."""

    def __init__(self, events: list[Event]) -> None:
        super().__init__("a rule of execution broke")
        self.events = events


def start(
    graphs: Graphs,
    trace_id: bytes,
    event: TraceStarted,
    now: int,
    taken: Mapping[int, Taken] | None = None,
    record: OperatorActed | None = None,
) -> tuple[TraceState, list[Event]]:
    """The first events of a trace; the state is as after them. Of a rerun, `record` says who
    wanted it, and nodes in `taken` do not run: what became of them is taken over.

    Errors: `Undecided`; then there is no trace.
    """
    if event.setters is None:
        event = replace(event, setters={})
    state = begin(graphs, trace_id, event, now)
    with Turn(graphs, state, now, taken) as turn:
        turn.events.append(event)
        if record is not None:
            turn.emit(record)
        if state.live:
            turn.begin_scope(ROOT)
        turn.run()
    return state, turn.events


def decide(graphs: Graphs, state: TraceState, command: Command, now: int) -> list[Event]:
    """The events that the command causes. Empty: it has no effect any more, because the trace
    has ended, the attempt is not the current one, or the timer is out of date.

    Errors: `Undecided` when a rule breaks, which is a fault of ours: give the trace up.
    """
    if state.status.ended:
        return []
    with Turn(graphs, state, now) as turn:
        _take(turn, command)
        turn.run()
    return turn.events


def _take(turn: Turn, command: Command) -> None:
    if type(command) is Succeeded:
        turn.succeeded(command)
    elif type(command) is Failed:
        turn.failed(command)
    elif type(command) is TimerFired:
        turn.timer(command)
    elif type(command) is Began:
        turn.began(command)
    elif type(command) is Lost:
        turn.lost(command)
    elif type(command) is Resumed:
        turn.resumed(command)
    elif type(command) is Call:
        turn.call(command)


def give_up(graphs: Graphs, state: TraceState, error: BaseException, now: int) -> list[Event]:
    """The end of a trace for which the rules themselves broke: so it stands alone with that. Of
    the error only the kind is said: its text is for our log, not for whoever may see the trace."""
    turn = Turn(graphs, state, now)
    kind = type(error).__name__
    message = f"a fault in magicflow itself: {kind}; the dispatcher's log has the details"
    turn.emit(TraceEnded(TraceStatus.FAILED, None, Failure(Code.INTERNAL_ERROR, message)))
    return turn.events


def resume(graphs: Graphs, state: TraceState, now: int) -> list[Event]:
    """What was left undecided when a crash cut a turn's events in two. Empty for a trace whose
    turns are whole. Errors: `Undecided`."""
    if not state.live:
        return []
    with Turn(graphs, state, now) as turn:
        turn.look_everywhere()
        turn.run()
    return turn.events


def is_current(state: TraceState, scope: int, node: int, attempt: int) -> bool:
    """Whether this attempt still wants a result."""
    if state.status.ended or not 0 <= scope < len(state.scopes):
        return False
    here = state.scopes[scope]
    if here.closed or not 0 <= node < len(here.nodes):
        return False
    current = here.nodes[node]
    return (
        current.status is NodeStatus.QUEUED and current.attempt == attempt and not current.retry_at
    )


def _decidable(node: GraphNode, state: NodeState) -> bool:
    return state.unresolved == 0 or (bool(state.taken) and node.join is Join.ANY)


class Turn:
    """One command's way through the trace. `ready` holds nodes whose incoming edges allow a
    decision, `look` scopes in which a node has settled; `run` works both off, so that depth never
    becomes recursion. A trace that is paused keeps what has settled and decides nothing more:
    `look_everywhere` finds it again. What breaks `with` a turn is raised as `Undecided`, but for
    refusals: nothing was decided before one."""

    __slots__ = ("data", "events", "graphs", "look", "now", "ready", "state", "taken")

    def __init__(
        self,
        graphs: Graphs,
        state: TraceState,
        now: int,
        taken: Mapping[int, Taken] | None = None,
    ) -> None:
        self.graphs = graphs
        self.state = state
        self.now = now
        self.data = Data(graphs, state)
        self.taken = taken
        self.events: list[Event] = []
        self.ready: deque[tuple[int, int]] = deque()
        self.look: deque[int] = deque()

    def __enter__(self) -> Turn:
        return self

    def __exit__(self, _kind: object, error: BaseException | None, _traceback: object) -> None:
        if isinstance(error, Exception) and not isinstance(error, Refused):
            raise Undecided(self.events) from error

    # What comes in.

    def succeeded(self, command: Succeeded) -> None:
        scope, index = command.scope, command.node
        if not is_current(self.state, scope, index, command.attempt):
            return
        refusal = self._refusal(command)
        if refusal is not None:
            self.attempt_over(scope, index, refusal, command.worker)
            return
        node = self.drawn(scope, index)
        if node.drawn.hook_after:
            self.emit(
                HookOpened(
                    index,
                    None,
                    0,
                    command.attempt,
                    command.output,
                    command.env,
                    command.worker,
                    command.began_at,
                    scope,
                )
            )
            return
        self.succeed(
            scope,
            index,
            command.attempt,
            command.output,
            command.env,
            command.worker,
            command.began_at,
        )

    def failed(self, command: Failed) -> None:
        if is_current(self.state, command.scope, command.node, command.attempt):
            self.attempt_over(command.scope, command.node, command.failure, command.worker)

    def began(self, command: Began) -> None:
        scope, index = command.scope, command.node
        if not is_current(self.state, scope, index, command.attempt):
            return
        limited = bool(self.drawn(scope, index).drawn.queue_timeout)
        if limited and waits_for_worker(self._node(scope, index)):
            self.emit(AttemptBegan(index, command.attempt, command.worker, scope))

    def lost(self, command: Lost) -> None:
        """Not a failure: the same attempt goes to another worker, until it looks as if the task
        itself ended its workers."""
        scope, index = command.scope, command.node
        if not is_current(self.state, scope, index, command.attempt):
            return
        known, this = self._node(scope, index).lost, (command.worker, command.at)
        if this in known:
            return  # told twice
        losses = [*known, this]
        if is_poison(len(losses)):
            names = ", ".join(worker for worker, _ in losses)
            message = f"{len(losses)} workers disappeared over it: {names}"
            self.attempt_over(scope, index, Failure(Code.WORKER_LOST, message), "")
        else:
            self.emit(AttemptLost(index, command.attempt, command.worker, scope, command.at))

    def resumed(self, command: Resumed) -> None:
        scope, index = command.scope, command.node
        if not is_current(self.state, scope, index, command.attempt):
            return
        if any(worker == command.worker for worker, _ in self._node(scope, index).lost):
            self.emit(AttemptResumed(index, command.attempt, command.worker, scope))

    def call(self, command: Call) -> None:
        if not wants_callee(self.graphs, self.state, command.scope, command.node):
            return
        if command.failure is not None:
            self.attempt_over(command.scope, command.node, command.failure, "")
        else:
            self._open_playbook(command.scope, command.node)

    def timer(self, command: TimerFired) -> None:
        """Whatever a pause holds up is armed anew when the trace goes on."""
        if self.state.paused_at:
            return
        if command.kind is TimerKind.TRACE:
            self._trace_timer()
        elif command.kind is TimerKind.START:
            if 0 < self.state.start_at <= self.now:
                self.emit(TraceReleased())
                self.look_everywhere()
        elif not self.state.scopes[command.scope].closed:
            self._node_timer(command)

    def _trace_timer(self) -> None:
        if self.state.ending is None and 0 < trace_due(self.graphs, self.state) <= self.now:
            seconds = self.graphs.graph(self.state.snapshot_id).drawn.timeout / 1_000
            message = f"the trace ran longer than its timeout of {seconds:g} s"
            self.end(TraceStatus.TIMED_OUT, Failure(Code.TRACE_TIMEOUT, message))

    def _node_timer(self, command: TimerFired) -> None:
        scope, index = command.scope, command.node
        node, state = self.drawn(scope, index), self._node(scope, index)
        if command.kind is TimerKind.DUE:
            if 0 < state.due_at <= self.now:
                self._due(scope, index, node, state)
            return
        working = state.status in (NodeStatus.QUEUED, NodeStatus.RUNNING)
        if not working:
            return
        if command.kind is TimerKind.TOTAL:
            if 0 < total_due(node, state) <= self.now:
                seconds = node.drawn.total_timeout / 1_000
                message = f"all attempts together took longer than total_timeout ({seconds:g} s)"
                self.fail(scope, index, state.attempt, Failure(Code.TOTAL_TIMEOUT, message))
        elif command.attempt != state.attempt:
            return
        elif command.kind is TimerKind.RETRY:
            if 0 < state.retry_at <= self.now:
                self._again(scope, index, node, state)
        elif state.retry_at:
            return
        elif command.kind is TimerKind.ATTEMPT:
            self._attempt_timer(scope, index, node, state)
        elif command.kind is TimerKind.QUEUE:
            self._queue_timer(scope, index, node, state)

    def _attempt_timer(self, scope: int, index: int, node: GraphNode, state: NodeState) -> None:
        if 0 < attempt_due(self.graphs, self.state, node, state) <= self.now:
            seconds = attempt_limit(self.graphs, self.state, node, state) / 1_000
            message = f"no result within the timeout of {seconds:g} s"
            self.attempt_over(scope, index, Failure(Code.TIMEOUT, message, True), "")

    def _queue_timer(self, scope: int, index: int, node: GraphNode, state: NodeState) -> None:
        if waits_for_worker(state) and 0 < queue_due(node, state) <= self.now:
            seconds = node.drawn.queue_timeout / 1_000
            message = f"no worker began within the queue_timeout of {seconds:g} s"
            self.attempt_over(scope, index, Failure(Code.QUEUE_TIMEOUT, message, True), "")

    def _due(self, scope: int, index: int, node: GraphNode, state: NodeState) -> None:
        if state.status is NodeStatus.SLEEPING:
            self.succeed(scope, index, 0, state.input or NULL)
        elif state.status is NodeStatus.PAUSED and isinstance(node.drawn.kind, Hook):
            seconds = node.drawn.kind.timeout / 1_000
            message = f"no signal within the hook's timeout of {seconds:g} s"
            self.fail(scope, index, 0, Failure(Code.HOOK_TIMEOUT, message))

    def _again(self, scope: int, index: int, node: GraphNode, state: NodeState) -> None:
        """The wait before the next attempt is over."""
        if node.function:
            self.emit(TaskScheduled(index, state.attempt + 1, None, scope))
        else:
            self.emit(CallStarted(index, state.attempt + 1, None, scope))
            self._open(scope, index, node)

    # The graph's rules.

    def run(self) -> None:
        """Decides every node that can be decided, then what follows for scopes and the trace."""
        while (self.ready or self.look) and self.state.live:
            if self.ready:
                self._decide(*self.ready.popleft())
            else:
                self._look(self.look.popleft())

    def look_everywhere(self) -> None:
        """Finds whatever could be decided, wherever it is."""
        for number in range(len(self.state.scopes) - 1, -1, -1):
            scope = self.state.scopes[number]
            if scope.closed:
                continue
            for index, state in enumerate(scope.nodes):
                if state.status is NodeStatus.RUNNING and self._unopened(number, index, state):
                    self._open(number, index, self.drawn(number, index))
                elif state.status is not NodeStatus.PENDING or scope.failing >= 0:
                    continue
                elif scope.kind is ScopeKind.PLAYBOOK and _decidable(
                    self.drawn(number, index), state
                ):
                    self.ready.append((number, index))
            self.look.append(number)

    def _unopened(self, scope: int, index: int, state: NodeState) -> bool:
        if state.scope >= 0 and not self.state.scopes[state.scope].closed:
            return False
        return not wants_callee(self.graphs, self.state, scope, index)

    def begin_scope(self, scope: int) -> None:
        here = self.state.scopes[scope]
        for index in self.graphs.graph(here.snapshot_id).starts:
            self.ready.append((scope, index))

    def _decide(self, scope: int, index: int) -> None:
        here = self.state.scopes[scope]
        state = here.nodes[index]
        if here.closed or here.failing >= 0 or state.status is not NodeStatus.PENDING:
            return  # overtaken: by a failure, by hand, by an earlier edge of a join of any
        node = self.drawn(scope, index)
        if not (state.taken or node.starts):
            self.skip(scope, index)
        elif self.taken is not None and scope == ROOT and index in self.taken:
            self._take_over(index, self.taken[index])
        else:
            self._enter(scope, index, node, state)

    def _take_over(self, index: int, taken: Taken) -> None:
        """The env that the node has set is there since the start of the trace."""
        if taken.failure is not None:
            self.fail(ROOT, index, taken.failure.attempt, taken.failure)
        elif taken.output is not None:
            self.succeed(ROOT, index, 0, taken.output, chosen=taken.chosen)
        else:
            self.skip(ROOT, index)

    def _enter(self, scope: int, index: int, node: GraphNode, state: NodeState) -> None:
        try:
            self._check_grant(scope, index, node)
            self._begin(scope, index, node, state)
        except (MappingFailed, NotJson) as error:
            self.fail(scope, index, 0, Failure(Code.INPUT_MAPPING, str(error)))
        except _Refused as refused:
            self.fail(scope, index, 0, refused.failure)

    def _begin(self, scope: int, index: int, node: GraphNode, state: NodeState) -> None:
        kind = node.drawn.kind
        if isinstance(kind, Map):
            value = self._list(scope, index)
        else:
            value = _bounded(self.data.input(scope, index), "input")
        if node.function:
            self.emit(TaskScheduled(index, state.first, value, scope))
        elif isinstance(kind, Subplaybook | Map | Repeat):
            self.emit(CallStarted(index, state.first, value, scope))
            self._open(scope, index, node)
        elif isinstance(kind, Hook):
            due = self.now + kind.timeout if kind.timeout else 0
            self.emit(HookOpened(index, value, due, scope=scope))
        elif isinstance(kind, Sleep):
            self._sleep(scope, index, kind, value)
        else:
            self.succeed(scope, index, 0, value)

    def _list(self, scope: int, index: int) -> Payload:
        value = self.data.subject(scope, index, "map.over")
        if not isinstance(value, list):
            message = f"map.over must be a list; it is {_short(value)}"
            raise _Refused(Failure(Code.MAP_NOT_A_LIST, message))
        if len(value) > MAX_ITEMS:
            message = f"map.over has {len(value)} items; {MAX_ITEMS} are allowed"
            raise _Refused(Failure(Code.MAP_TOO_LARGE, message))
        return _bounded(of_value(value), "list")

    def _sleep(self, scope: int, index: int, kind: Sleep, value: Payload) -> None:
        due = self.now + kind.duration
        if kind.until is not None:
            try:
                due = milliseconds_of(self.data.subject(scope, index, "until"))
            except NotAMoment as error:
                raise _Refused(Failure(Code.SLEEP_INVALID, str(error))) from error
        if due <= self.now:
            self.succeed(scope, index, 0, value)
        else:
            self.emit(SleepStarted(index, value, due, scope))

    def _check_grant(self, scope: int, index: int, node: GraphNode) -> None:
        """Of functions here; of playbooks when they are called."""
        if not node.foreign:
            return
        app = self._app(scope, index)
        if not self.graphs.granted(app, node.function):
            raise _Refused(_denied(app, node.function))

    def _app(self, scope: int, index: int) -> str:
        """The app whose playbook draws the node."""
        here = self.state.scopes[scope]
        if here.kind is ScopeKind.COMPENSATION:
            here = self.state.scopes[here.undo[index][0]]
        while here.kind is not ScopeKind.PLAYBOOK:
            here = self.state.scopes[here.parent]
        return self.graphs.graph(here.snapshot_id).drawn.app

    # Calls.

    def _open(self, scope: int, index: int, node: GraphNode) -> None:
        """Opens the scope of a node that is under way, as far as that can be done now."""
        kind = node.drawn.kind
        if isinstance(kind, Subplaybook):
            self._open_playbook(scope, index)
            return
        if not self._has_room(len(self.data.items(scope, index)) if isinstance(kind, Map) else 1):
            self.fail(scope, index, self._node(scope, index).attempt, _too_large())
            return
        what = ScopeKind.MAP if isinstance(kind, Map) else ScopeKind.REPEAT
        self.emit(ScopeOpened(index, what, scope))
        self.look.append(len(self.state.scopes) - 1)

    def _open_playbook(self, scope: int, index: int) -> None:
        kind = self.drawn(scope, index).drawn.kind
        assert isinstance(kind, Subplaybook)
        found = self.graphs.callee(kind)
        if found is None:
            return  # the call's `Lookup` leads back here
        refusal = found if isinstance(found, Failure) else self._call_refusal(scope, index, found)
        if refusal is not None:
            self.attempt_over(scope, index, refusal, "")
            return
        assert isinstance(found, Graph)
        self.emit(
            ScopeOpened(index, ScopeKind.PLAYBOOK, scope, found.playbook_id, found.snapshot_id)
        )
        opened = len(self.state.scopes) - 1
        self.begin_scope(opened)
        self.look.append(opened)

    def _call_refusal(self, scope: int, index: int, callee: Graph) -> Failure | None:
        app = self._app(scope, index)
        if callee.drawn.app != app and not self.graphs.granted(app, callee.full_name):
            return _denied(app, callee.full_name)
        if depth_of(self.state, scope) >= MAX_DEPTH:
            message = f"{callee.full_name} would be called {MAX_DEPTH + 1} deep"
            return Failure(Code.DEPTH_EXCEEDED, f"{message}; {MAX_DEPTH} are allowed")
        if not self._has_room(len(callee.nodes)):
            return _too_large()
        if len(of_value({**callee.drawn.env, **self.state.env}).data) > MAX_ENV:
            message = f"with the env of {callee.full_name} the trace's would be too large"
            return Failure(Code.ENV_INVALID, f"{message}; {MAX_ENV} bytes are allowed")
        if callee.drawn.input_schema is UNSET:
            return None
        wrong = complaint(callee.drawn.input_schema, self._node(scope, index).input or NULL)
        message = f"the input does not fit the schema of {callee.full_name}: {wrong}"
        return Failure(Code.INPUT_INVALID, message) if wrong else None

    def _has_room(self, more: int) -> bool:
        return sum(len(scope.nodes) for scope in self.state.scopes) + more <= MAX_TRACE_NODES

    def _look(self, scope: int) -> None:
        """What follows for a scope whose nodes have settled, and for the node that it belongs
        to."""
        here = self.state.scopes[scope]
        if here.closed:
            return
        if here.kind is ScopeKind.PLAYBOOK:
            self._look_at_playbook(scope, here)
        elif here.kind is ScopeKind.MAP:
            self._look_at_map(scope, here)
        elif here.kind is ScopeKind.REPEAT:
            self._look_at_repeat(scope, here)
        else:
            self._look_at_compensation(scope, here)

    def _look_at_playbook(self, scope: int, here: ScopeState) -> None:
        if here.failing >= 0:
            failure = here.nodes[here.failing].failure
            assert failure is not None
            if scope == ROOT:
                self.end(TraceStatus.FAILED, failure)
            else:
                self.attempt_over(here.parent, here.node, failure, "")
        elif not here.open:
            self._finish(scope, here)

    def _finish(self, scope: int, here: ScopeState) -> None:
        """All nodes have settled."""
        graph = self.graphs.graph(here.snapshot_id)
        failure: Failure | None = None
        output = NULL
        try:
            output = _bounded(self.data.output(scope), "output")
        except (MappingFailed, NotJson) as error:
            failure = Failure(Code.OUTPUT_MAPPING, str(error))
        except _Refused as refused:
            failure = refused.failure
        if failure is None and graph.drawn.output_schema is not UNSET:
            wrong = complaint(graph.drawn.output_schema, output)
            if wrong:
                message = f"the output does not fit the schema of {graph.full_name}: {wrong}"
                failure = Failure(Code.OUTPUT_INVALID, message)
        if scope == ROOT and failure is None:
            self.emit(TraceEnded(TraceStatus.SUCCEEDED, output))
        elif scope == ROOT:
            assert failure is not None
            self.end(TraceStatus.FAILED, failure)
        elif failure is None:
            attempt = self._node(here.parent, here.node).attempt
            self.succeed(here.parent, here.node, attempt, output)
        else:
            self.attempt_over(here.parent, here.node, failure, "")

    def _look_at_map(self, scope: int, here: ScopeState) -> None:
        kind = self.drawn(here.parent, here.node).drawn.kind
        assert isinstance(kind, Map)
        tolerated = max(
            kind.tolerate_count, int(len(here.nodes) * kind.tolerate_percent / 100 + 1e-9)
        )
        item = here.begun
        while (
            here.failed <= tolerated
            and item < len(here.nodes)
            and (not kind.concurrency or here.running < kind.concurrency)
        ):
            self._decide_item(scope, item)
            item += 1
        attempt = self._node(here.parent, here.node).attempt
        if here.failed > tolerated:
            failure = here.nodes[here.failing].failure
            assert failure is not None
            self.fail(here.parent, here.node, attempt, failure)
        elif not here.open:
            try:
                output = _bounded(self.data.list_output(scope), "output")
            except NotJson as error:
                failure = Failure(Code.OUTPUT_MAPPING, str(error))
                self.fail(here.parent, here.node, attempt, failure)
            except _Refused as refused:
                self.fail(here.parent, here.node, attempt, refused.failure)
            else:
                self.succeed(here.parent, here.node, attempt, output)

    def _decide_item(self, scope: int, item: int) -> None:
        state = self._node(scope, item)
        if state.status is NodeStatus.PENDING:
            self._enter(scope, item, self.drawn(scope, item), state)

    def _look_at_repeat(self, scope: int, here: ScopeState) -> None:
        place, repeat = (here.parent, here.node), self.drawn(here.parent, here.node)
        if not here.nodes:
            self.emit(RoundStarted(scope))
        number = len(here.nodes) - 1
        state = here.nodes[number]
        if here.failing >= 0:
            failure = here.nodes[here.failing].failure
            assert failure is not None
            self.attempt_over(*place, failure, "")
        elif state.status is NodeStatus.PENDING:
            self._enter(scope, number, self.drawn(scope, number), state)
        elif state.status.settled:
            self._round_over(scope, number, repeat, state.output or NULL)

    def _round_over(self, scope: int, number: int, repeat: GraphNode, output: Payload) -> None:
        here = self.state.scopes[scope]
        kind = repeat.drawn.kind
        assert isinstance(kind, Repeat)
        assert repeat.until is not None
        attempt = self._node(here.parent, here.node).attempt
        view = View(self.data, here.parent, here.node, output, place=number)
        try:
            enough = repeat.until.holds(view)
        except (ExpressionFailed, NotJson) as error:
            failure = Failure(Code.EXPRESSION_ERROR, str(error))
            self.fail(here.parent, here.node, attempt, failure)
            return
        if enough:
            self.succeed(here.parent, here.node, attempt, output)
        elif number + 1 < kind.max:
            self.emit(RoundStarted(scope))
            self.look.append(scope)
        else:
            message = f"`{kind.until}` was not true after {kind.max} rounds"
            self.attempt_over(here.parent, here.node, Failure(Code.REPEAT_EXHAUSTED, message), "")

    def _look_at_compensation(self, scope: int, here: ScopeState) -> None:
        """One after the other; one that fails does not stop the others."""
        for index, state in enumerate(here.nodes):
            if state.status is NodeStatus.PENDING:
                self._enter(scope, index, self.drawn(scope, index), state)
                return
            if not state.status.settled:
                return
        assert self.state.ending is not None
        self.emit(TraceEnded(self.state.ending, None, self.state.failure))

    # How nodes settle.

    def succeed(
        self,
        scope: int,
        index: int,
        attempt: int,
        output: Payload,
        env: bytes = b"",
        worker: str = "",
        began_at: int = 0,
        chosen: int = -1,
    ) -> None:
        """The node has this output; its edges are resolved. `chosen` is the choice edge to take,
        where that is known."""
        node = self.drawn(scope, index)
        taken: tuple[int, ...] = tuple([edge.index for edge in node.parallel])
        if chosen >= 0:
            taken = tuple(sorted((*taken, chosen)))
        elif node.choices:
            edge = self._choose(scope, index, node, attempt, output, env, worker)
            if edge is None:
                return
            taken = tuple(sorted((*taken, edge.index)))
        elif node.otherwise is not None:
            taken = tuple(sorted((*taken, node.otherwise.index)))
        self.emit(NodeSucceeded(index, attempt, output, taken, env, worker, began_at, scope))
        self._follow(scope, node)

    def _choose(
        self,
        scope: int,
        index: int,
        node: GraphNode,
        attempt: int,
        output: Payload,
        env: bytes,
        worker: str,
    ) -> GraphEdge | None:
        """The choice edge to take; None when the node has failed over it."""
        view = self.data.view(scope, index, output, env)
        try:
            for edge in node.choices:
                assert edge.condition is not None
                if edge.condition.holds(view):
                    return edge
        except (ExpressionFailed, NotJson) as error:
            failure = Failure(Code.EXPRESSION_ERROR, str(error))
            self.fail(scope, index, attempt, failure, worker)
            return None
        if node.otherwise is not None:
            return node.otherwise
        failure = Failure(Code.NO_BRANCH_MATCHED, _no_branch(node, view))
        self.fail(scope, index, attempt, failure, worker, handled=False)
        return None

    def attempt_over(self, scope: int, index: int, failure: Failure, worker: str) -> None:
        """The current attempt has failed: another follows, or the node has failed."""
        node, state = self.drawn(scope, index), self._node(scope, index)
        path = path_of(self.graphs, self.state, scope, index)
        seed = self.state.trace_id + path.encode()
        made = state.attempt - state.first + 1
        wait = wait_before_next(node.drawn.retry, made, failure, seed)
        if wait is None:
            self.fail(scope, index, state.attempt, failure, worker)
            return
        there = failure if failure.node else failure.at(path, state.attempt)
        since = self.state.paused_at or self.now  # resuming adds the whole pause
        self.emit(AttemptFailed(index, state.attempt, there, since + wait, worker, scope))
        self.look.append(scope)

    def fail(
        self,
        scope: int,
        index: int,
        attempt: int,
        failure: Failure,
        worker: str = "",
        handled: bool = True,
    ) -> None:
        """The node has failed for good. A failure that comes from inside keeps its place."""
        node = self.drawn(scope, index)
        there = failure
        if not failure.node:
            there = failure.at(path_of(self.graphs, self.state, scope, index), attempt)
        handler = next((e for e in node.errors if handled and e.matches(failure.code)), None)
        place = -1 if handler is None else handler.index
        self.emit(NodeFailed(index, attempt, there, place, worker, scope))
        self._follow(scope, node)

    def skip(self, scope: int, index: int) -> None:
        """The node does not run, and its edges are dead."""
        self.emit(NodeSkipped(index, scope))
        self._follow(scope, self.drawn(scope, index))

    def _follow(self, scope: int, node: GraphNode) -> None:
        self.look.append(scope)
        if not node.outgoing:
            return
        here = self.state.scopes[scope]
        nodes = self.graphs.graph(here.snapshot_id).nodes
        for edge in node.outgoing:
            if _decidable(nodes[edge.target], here.nodes[edge.target]):
                self.ready.append((scope, edge.target))

    def end(self, status: TraceStatus, failure: Failure, compensate: bool = True) -> None:
        """The trace ends without success: at once, or once its compensations have run."""
        undo: tuple[tuple[int, int], ...] = ()
        if compensate and self.state.ending is None:
            done = reversed(self.state.completed)
            undo = tuple(place for place in done if is_reached(self.state, place[0]))
        if undo:
            self.emit(TraceFailing(status, failure, undo))
            self.look.append(len(self.state.scopes) - 1)
        else:
            self.emit(TraceEnded(status, None, failure))

    def emit(self, event: Event) -> None:
        apply(self.graphs, self.state, event, self.now)
        self.events.append(event)

    def drawn(self, scope: int, index: int) -> GraphNode:
        here = self.state.scopes[scope]
        if here.kind is ScopeKind.PLAYBOOK:
            return self.graphs.graph(here.snapshot_id).nodes[index]
        return drawn(self.graphs, self.state, scope, index)

    def _node(self, scope: int, index: int) -> NodeState:
        return self.state.scopes[scope].nodes[index]

    def _refusal(self, command: Succeeded) -> Failure | None:
        """Why the result cannot be accepted, if it cannot."""
        size = len(command.output.data)
        if size > MAX_PAYLOAD:
            message = f"the output has {size} bytes; {MAX_PAYLOAD} are allowed"
            return Failure(Code.PAYLOAD_TOO_LARGE, message)
        if not command.env:
            return None
        try:
            changes = to_value(Payload(command.env))
        except NotJson as error:
            return Failure(Code.ENV_INVALID, str(error))
        if not isinstance(changes, dict):
            return Failure(Code.ENV_INVALID, "the env of a result must be a JSON object")
        if not fits_state(changes):
            return Failure(Code.ENV_INVALID, "an integer in the env needs more than 64 bits")
        merged = len(of_value({**self.state.env, **changes}).data)
        if merged > MAX_ENV:
            message = f"the env would have {merged} bytes; {MAX_ENV} are allowed"
            return Failure(Code.ENV_INVALID, message)
        return None


class _Refused(Exception):
    """A node cannot be entered."""

    def __init__(self, failure: Failure) -> None:
        super().__init__(failure.message)
        self.failure = failure


def _bounded(payload: Payload, what: str) -> Payload:
    if len(payload.data) > MAX_PAYLOAD:
        message = f"the {what} has {len(payload.data)} bytes; {MAX_PAYLOAD} are allowed"
        raise _Refused(Failure(Code.PAYLOAD_TOO_LARGE, message))
    return payload


def _denied(app: str, target: str) -> Failure:
    message = f"{app} has no grant for {target}"
    return Failure(Code.PERMISSION_DENIED, message)


def _too_large() -> Failure:
    message = f"the trace would have more than {MAX_TRACE_NODES} nodes and items"
    return Failure(Code.TRACE_TOO_LARGE, message)


def _short(value: Any) -> str:
    text = json_text(value)
    return text if len(text) <= 80 else text[:77] + "…"


def _no_branch(node: GraphNode, view: View) -> str:
    lines = []
    for edge in node.choices:
        assert edge.condition is not None
        seen = [
            f"{reference.text} = {_shown(reference, view)}"
            for reference in edge.condition.references
        ]
        lines.append(f"`{edge.condition.text}`" + (f" [{', '.join(seen)}]" if seen else ""))
    return f"no choice edge of {node.code} is true and it has no otherwise: " + "; ".join(lines)


def _shown(reference: Reference, view: View) -> str:
    try:
        value = reference.resolve(view)
    except NotJson:  # inside a filter that had nothing to look at, so that nobody noticed
        return "not JSON"
    if value is MISSING:
        return "missing"
    return _short(value)
