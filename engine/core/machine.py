"""Every rule of execution: `decide(graph, state, command, now) -> events`.

Pure: the clock, ids and chance come in as arguments, and what must happen outside goes out as
events, whose effects are released after the commit. `decide` applies each event to the state as
it makes it, so the next rule sees its consequence; replaying the same events with `state.apply`
gives the same bytes.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass
from typing import Any

from engine.core.effects import TimerKind
from engine.core.events import (
    AttemptFailed,
    Event,
    NodeFailed,
    NodeSkipped,
    NodeSucceeded,
    OperatorActed,
    TaskScheduled,
    TraceEnded,
    TraceStarted,
)
from engine.core.expressions import ExpressionFailed
from engine.core.failure import Code, Failure
from engine.core.graph import Graph, GraphEdge, GraphNode, passes_whole
from engine.core.payload import NotJson, Payload, json_text, of_value, to_value
from engine.core.playbook import Join
from engine.core.references import MISSING, Reference, Root
from engine.core.retry import wait_before_next
from engine.core.state import NodeState, TraceState, apply, begin, fits_state
from engine.core.status import NodeStatus, TraceStatus
from engine.core.templates import MappingFailed, Template, render

MAX_PAYLOAD = 1_048_576  # bytes of one input or output
MAX_ENV = 65_536  # bytes of the trace-wide env


@dataclass(frozen=True, slots=True)
class Succeeded:
    """A worker returned. `env` is a JSON object or empty."""

    node: int
    attempt: int
    output: Payload
    env: bytes = b""
    worker: str = ""
    began_at: int = 0


@dataclass(frozen=True, slots=True)
class Failed:
    """A worker reported a failure, or the attempt was lost."""

    node: int
    attempt: int
    failure: Failure
    worker: str = ""


@dataclass(frozen=True, slots=True)
class TimerFired:
    """A timer that an event asked for is due."""

    kind: TimerKind
    node: int
    attempt: int


@dataclass(frozen=True, slots=True)
class Abort:
    """An operator ends the trace."""

    by: str
    why: str


Command = Succeeded | Failed | TimerFired | Abort


def start(
    graph: Graph, trace_id: bytes, event: TraceStarted, now: int
) -> tuple[TraceState, list[Event]]:
    """The first events of a trace; the state is as after them."""
    state = begin(graph, trace_id, event, now)
    turn = _Turn(graph, state, now)
    turn.events.append(event)
    for index in graph.starts:
        turn.ready.append(index)
    turn.run()
    return state, turn.events


def decide(graph: Graph, state: TraceState, command: Command, now: int) -> list[Event]:
    """The events that the command causes. Empty: it has no effect any more, because the trace
    has ended, the attempt is not the current one, or the timer is out of date."""
    if state.status.ended:
        return []
    turn = _Turn(graph, state, now)
    if type(command) is Succeeded:
        turn.succeeded(command)
    elif type(command) is Failed:
        turn.failed(command)
    elif type(command) is TimerFired:
        turn.timer(command)
    elif type(command) is Abort:
        turn.abort(command)
    return turn.events


def resume(graph: Graph, state: TraceState, now: int) -> list[Event]:
    """What was left undecided when a crash cut a turn's events in two. Empty for a trace whose
    turns are whole."""
    if state.status.ended:
        return []
    turn = _Turn(graph, state, now)
    for node, current in zip(graph.nodes, state.nodes, strict=True):
        if current.status is NodeStatus.PENDING and _decidable(node, current):
            turn.ready.append(node.index)
        elif current.failure is not None and current.status.settled and not _handled(state, node):
            turn.end_failed(current.failure)
            return turn.events
    turn.run()
    return turn.events


def _handled(state: TraceState, node: GraphNode) -> bool:
    return any(node.index in state.nodes[edge.target].taken for edge in node.errors)


def _decidable(node: GraphNode, state: NodeState) -> bool:
    return state.unresolved == 0 or (bool(state.taken) and node.join is Join.ANY)


def is_current(state: TraceState, node: int, attempt: int) -> bool:
    """Whether this attempt still wants a result."""
    if state.status.ended or not 0 <= node < len(state.nodes):
        return False
    current = state.nodes[node]
    return (
        current.status is NodeStatus.QUEUED and current.attempt == attempt and not current.retry_at
    )


class _Turn:
    """One command's way through the graph. `ready` holds nodes whose incoming edges allow a
    decision; `run` works it off, so that depth never becomes recursion."""

    __slots__ = ("events", "graph", "now", "ready", "state", "values")

    def __init__(self, graph: Graph, state: TraceState, now: int) -> None:
        self.graph = graph
        self.state = state
        self.now = now
        self.events: list[Event] = []
        self.ready: deque[int] = deque()
        self.values: dict[int, Any] = {}

    # What comes in.

    def succeeded(self, command: Succeeded) -> None:
        if not is_current(self.state, command.node, command.attempt):
            return
        refusal = self._refusal(command)
        if refusal is None:
            self._succeed(
                self.graph.nodes[command.node],
                command.attempt,
                command.output,
                command.env,
                command.worker,
                command.began_at,
            )
        else:
            self._attempt_over(command.node, command.attempt, refusal, command.worker)
        self.run()

    def failed(self, command: Failed) -> None:
        if not is_current(self.state, command.node, command.attempt):
            return
        self._attempt_over(command.node, command.attempt, command.failure, command.worker)
        self.run()

    def timer(self, command: TimerFired) -> None:
        if command.kind is TimerKind.TRACE:
            seconds = self.graph.drawn.timeout / 1_000
            message = f"the trace ran longer than its timeout of {seconds:g} s"
            self._end(TraceStatus.TIMED_OUT, Failure(Code.TRACE_TIMEOUT, message))
            return
        state = self.state.nodes[command.node]
        if state.status is not NodeStatus.QUEUED:
            return
        node = self.graph.nodes[command.node]
        if command.kind is TimerKind.TOTAL:
            seconds = node.drawn.total_timeout / 1_000
            message = f"all attempts together took longer than total_timeout ({seconds:g} s)"
            self._fail(node, state.attempt, Failure(Code.TOTAL_TIMEOUT, message), state.worker)
        elif command.attempt != state.attempt:
            return
        elif command.kind is TimerKind.RETRY and state.retry_at:
            self._emit(TaskScheduled(command.node, state.attempt + 1, None))
        elif command.kind is TimerKind.ATTEMPT and not state.retry_at:
            seconds = node.drawn.timeout / 1_000
            message = f"no result within the timeout of {seconds:g} s"
            failure = Failure(Code.TIMEOUT, message, retryable=True)
            self._attempt_over(command.node, state.attempt, failure, "")
        self.run()

    def abort(self, command: Abort) -> None:
        self._emit(OperatorActed("abort", command.by, command.why))
        message = f"aborted by {command.by}" + (f": {command.why}" if command.why else "")
        self._end(TraceStatus.ABORTED, Failure(Code.ABORTED, message))

    # The graph's rules.

    def run(self) -> None:
        """Decides every node that can be decided, then ends the trace if nothing is left."""
        while self.ready:
            if self.state.status.ended:
                return
            index = self.ready.popleft()
            node, state = self.graph.nodes[index], self.state.nodes[index]
            if state.status is not NodeStatus.PENDING:
                continue  # a join of any that was decided by an earlier edge
            if state.taken or node.starts:
                self._enter(node, state)
            else:
                self._emit(NodeSkipped(index))
                self._follow(node)
        if not self.state.open and not self.state.status.ended:
            self._finish()

    def _enter(self, node: GraphNode, state: NodeState) -> None:
        try:
            value = self._input(node, state)
        except (MappingFailed, NotJson) as error:
            self._fail(node, 0, Failure(Code.INPUT_MAPPING, str(error)), "")
            return
        if len(value.data) > MAX_PAYLOAD:
            message = f"the input has {len(value.data)} bytes; {MAX_PAYLOAD} are allowed"
            self._fail(node, 0, Failure(Code.PAYLOAD_TOO_LARGE, message), "")
        elif node.function:
            self._emit(TaskScheduled(node.index, 1, value))
        else:
            self._succeed(node, 0, value, b"", "", 0)

    def _succeed(
        self,
        node: GraphNode,
        attempt: int,
        output: Payload,
        env: bytes,
        worker: str,
        began_at: int,
    ) -> None:
        taken: tuple[int, ...] = tuple([edge.index for edge in node.parallel])
        if node.choices:
            chosen = self._choose(node, attempt, output, env, worker)
            if chosen is None:
                return
            taken = tuple(sorted((*taken, chosen.index)))
        elif node.otherwise is not None:
            taken = tuple(sorted((*taken, node.otherwise.index)))
        self._emit(NodeSucceeded(node.index, attempt, output, taken, env, worker, began_at))
        self._follow(node)

    def _choose(
        self, node: GraphNode, attempt: int, output: Payload, env: bytes, worker: str
    ) -> GraphEdge | None:
        """The choice edge to take; None when the node has failed over it."""
        scope = _Scope(self, node, output, env)
        try:
            for edge in node.choices:
                assert edge.condition is not None
                if edge.condition.holds(scope):
                    return edge
        except (ExpressionFailed, NotJson) as error:
            self._fail(node, attempt, Failure(Code.EXPRESSION_ERROR, str(error)), worker)
            return None
        if node.otherwise is not None:
            return node.otherwise
        failure = Failure(Code.NO_BRANCH_MATCHED, _no_branch(node, scope))
        self._fail(node, attempt, failure, worker, handled=False)
        return None

    def _attempt_over(self, index: int, attempt: int, failure: Failure, worker: str) -> None:
        node = self.graph.nodes[index]
        seed = self.state.trace_id + index.to_bytes(4, "big")
        wait = wait_before_next(node.drawn.retry, attempt, failure, seed)
        if wait is None:
            self._fail(node, attempt, failure, worker)
            return
        there = failure.at(node.code, attempt)
        self._emit(AttemptFailed(index, attempt, there, self.now + wait, worker))

    def _fail(
        self,
        node: GraphNode,
        attempt: int,
        failure: Failure,
        worker: str,
        handled: bool = True,
    ) -> None:
        there = failure.at(node.code, attempt)
        handler = next((e for e in node.errors if handled and e.matches(failure.code)), None)
        place = -1 if handler is None else handler.index
        self._emit(NodeFailed(node.index, attempt, there, place, worker))
        if handler is None:
            self._end(TraceStatus.FAILED, there)
        else:
            self._follow(node)

    def _follow(self, node: GraphNode) -> None:
        for edge in node.outgoing:
            if _decidable(self.graph.nodes[edge.target], self.state.nodes[edge.target]):
                self.ready.append(edge.target)

    def _finish(self) -> None:
        try:
            output = self._output()
        except (MappingFailed, NotJson) as error:
            self._end(TraceStatus.FAILED, Failure(Code.OUTPUT_MAPPING, str(error)))
            return
        self._emit(TraceEnded(TraceStatus.SUCCEEDED, output))

    def end_failed(self, failure: Failure) -> None:
        self._end(TraceStatus.FAILED, failure)

    def _end(self, status: TraceStatus, failure: Failure) -> None:
        self._emit(TraceEnded(status, None, failure))

    def _emit(self, event: Event) -> None:
        apply(self.graph, self.state, event, self.now)
        self.events.append(event)

    # Data.

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

    def _input(self, node: GraphNode, state: NodeState) -> Payload:
        if node.input is None:
            return self.state.input if node.starts else self._last(state)
        whole = passes_whole(node.input)
        if whole is not None:
            if whole.root is Root.TRIGGER:
                return self.state.input
            if whole.root is Root.LAST:
                return self.state.input if node.starts else self._last(state)
            if whole.root is Root.NODE:
                source = self.state.nodes[self.graph.by_code[whole.code]]
                if source.output is not None:
                    return source.output
        return self._render(node.input, _Scope(self, node, None), "input")

    def _output(self) -> Payload:
        if self.graph.output is not None:
            return self._render(self.graph.output, _Scope(self, None, None), "output")
        ran = (i for i in self.graph.ends if self.state.nodes[i].status is not NodeStatus.SKIPPED)
        return self._join(ran)

    def _render(self, template: Template, scope: _Scope, path: str) -> Payload:
        value = render(template, scope, path)
        try:
            return of_value(value)
        except (TypeError, ValueError, OverflowError) as error:
            raise MappingFailed(f"the value cannot be written as JSON: {error}", path) from error

    def _last(self, state: NodeState) -> Payload:
        """What led here: one output, or an object of several."""
        if len(set(state.taken)) == 1:
            return self._outcome(state.taken[0])
        return self._join(sorted(set(state.taken)))

    def _outcome(self, index: int) -> Payload:
        node = self.state.nodes[index]
        if node.output is not None:
            return node.output
        return of_value(self.value_of(index))

    def _join(self, indexes: Any) -> Payload:
        """An object from node code to outcome, put together without parsing any of them."""
        parts = []
        for index in indexes:
            payload = self._outcome(index)
            if not payload.is_json:
                code = self.graph.nodes[index].code
                raise NotJson(f"the output of {code} is {payload.content_type}, not JSON")
            parts.append(
                b'"%s":%s' % (self.graph.nodes[index].code.encode(), payload.data or b"null")
            )
        return Payload(b"{" + b",".join(parts) + b"}")

    def value_of(self, index: int) -> Any:
        """What `$.<node>` sees: the output, `{"error": …}` after a failure, null when skipped,
        `MISSING` when it has not settled."""
        if index in self.values:
            return self.values[index]
        node = self.state.nodes[index]
        value: Any
        if node.status is NodeStatus.SUCCEEDED or node.status is NodeStatus.SKIPPED:
            value = to_value(node.output) if node.output is not None else None
        elif node.failure is not None and node.status.settled:
            value = {"error": node.failure.as_value()}
        else:
            return MISSING
        self.values[index] = value
        return value

    def last_value(self, state: NodeState) -> Any:
        """What `$$` sees."""
        if not state.taken:
            return to_value(self.state.input)
        if len(set(state.taken)) == 1:
            return self.value_of(state.taken[0])
        return {self.graph.nodes[i].code: self.value_of(i) for i in sorted(set(state.taken))}


class _Scope:
    """The data that one node's mapping or conditions see.

    `output` is the node's own output while its choice edges are evaluated: then `$$` and
    `$.<node>` mean that output, and `env`, the keys that it set, counts already.
    """

    __slots__ = ("_env", "_node", "_output", "_turn")

    def __init__(
        self, turn: _Turn, node: GraphNode | None, output: Payload | None, env: bytes = b""
    ) -> None:
        self._turn = turn
        self._node = node
        self._output = output
        self._env = env

    def root(self, root: Root, code: str) -> Any:
        turn = self._turn
        if root is Root.NODE:
            index = turn.graph.by_code.get(code)
            if index is None:
                return MISSING
            if self._own(index):
                return self._own_output()
            return turn.value_of(index)
        if root is Root.TRIGGER:
            return to_value(turn.state.input)
        if root is Root.ENV:
            if self._env:
                return {**turn.state.env, **to_value(Payload(self._env))}
            return turn.state.env
        if root is Root.LAST:
            if self._output is not None:
                return self._own_output()
            if self._node is not None:
                return turn.last_value(turn.state.nodes[self._node.index])
        return MISSING

    def _own(self, index: int) -> bool:
        return self._output is not None and self._node is not None and self._node.index == index

    def _own_output(self) -> Any:
        assert self._output is not None
        return to_value(self._output)


def _no_branch(node: GraphNode, scope: _Scope) -> str:
    lines = []
    for edge in node.choices:
        assert edge.condition is not None
        seen = [
            f"{reference.text} = {_shown(reference, scope)}"
            for reference in edge.condition.references
        ]
        lines.append(f"`{edge.condition.text}`" + (f" [{', '.join(seen)}]" if seen else ""))
    return f"no choice edge of {node.code} is true and it has no otherwise: " + "; ".join(lines)


def _shown(reference: Reference, scope: _Scope) -> str:
    try:
        value = reference.resolve(scope)
    except NotJson:  # inside a filter that had nothing to look at, so that nobody noticed
        return "not JSON"
    if value is MISSING:
        return "missing"
    text = json_text(value)
    return text if len(text) <= 80 else text[:77] + "…"
