"""The state of one trace, and the fold that makes it: `apply(graphs, state, event, at)`.

A trace is a tree of scopes. Scope 0 holds the nodes of the trace's own playbook; a node that
calls a playbook, maps or repeats opens a scope of its own. Mutable, because it is the hottest
data of the engine and lives inside one partition's turn; nothing else may change it but `apply`.
Its bytes after a replay equal those before (`tests/engine/core/test_properties.py`).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, Protocol

import msgspec

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
    TracePaused,
    TraceReleased,
    TraceResumed,
    TraceStarted,
)
from engine.core.failure import OUT_OF_TIME, Failure
from engine.core.graph import Graph, GraphNode
from engine.core.payload import NULL, Payload, list_items
from engine.core.playbook import DEFAULT_PRIORITY, Subplaybook
from engine.core.status import NodeStatus, TraceStatus

ROOT = 0
MAX_ENV = 65_536  # bytes of the trace-wide env

Setters = dict[str, list[tuple[int, Any]]]
"""For keys of the env, which of the trace's own nodes has set which value, in the order in which
that was accepted; of each node the last. What happens inside a node is the node's doing."""


class Graphs(Protocol):
    """What the core may ask about playbooks. Every answer that decides something is recorded in
    an event, so a replay asks for nothing but snapshots by their number."""

    def graph(self, snapshot_id: int) -> Graph:
        """A snapshot that a state or an event names; it is always there."""
        ...

    def callee(self, callee: Subplaybook) -> Graph | Failure | None:
        """The snapshot to call now. None: not known yet, ask again after a `Lookup`."""
        ...

    def granted(self, app: str, target: str) -> bool:
        """Whether the app may call another app's function or playbook now."""
        ...


class NodeState(msgspec.Struct, array_like=True):
    """Times are milliseconds since 1970; 0 means not yet. `unresolved` counts incoming edges
    that are neither taken nor dead; `taken` holds the sources of the taken ones, in the order
    in which they were taken. A retry by hand begins at attempt `first`. `scope` is the scope
    that the node opened last. `due_at` is when a hook expires or a sleep ends."""

    unresolved: int
    status: NodeStatus = NodeStatus.PENDING
    taken: list[int] = []
    attempt: int = 0
    started_at: int = 0
    dispatched_at: int = 0
    retry_at: int = 0
    ended_at: int = 0
    began_at: int = 0
    worker: str = ""
    input: Payload | None = None
    output: Payload | None = None
    failure: Failure | None = None
    first: int = 1
    scope: int = -1
    due_at: int = 0
    total_from: int = 0
    handled: bool = False  # a failure that an error edge took up
    lost: list[tuple[str, int]] = []  # (worker, when): who disappeared over the current attempt
    queued_at: int = 0  # when the current attempt went back to the queue after such a loss


class ScopeState(msgspec.Struct, array_like=True):
    """`parent` and `node` say which node it belongs to; -1 for the trace's own. `open` counts
    the nodes that are not settled. `failing` is the node whose failure nothing handled. Of a
    map, `begun` items have been started, `running` of them are not settled, `failed` have
    failed. `first` is the attempt that its nodes begin with: of a scope that was opened again,
    one more than any before, so that a late result of the former is not taken for one of this.
    `undo` names what the nodes of a compensation undo."""

    parent: int
    node: int
    kind: ScopeKind
    playbook_id: int
    snapshot_id: int
    input: Payload
    nodes: list[NodeState]
    open: int
    closed: bool = False
    failing: int = -1
    begun: int = 0
    running: int = 0
    failed: int = 0
    first: int = 1
    undo: list[tuple[int, int]] = []


class TraceState(msgspec.Struct, array_like=True):
    """`completed` names the nodes that have a compensation and succeeded, in that order. A
    delayed trace has a `start_at`. `timeout_from` is when the trace's timeout began to count."""

    trace_id: bytes
    playbook_id: int
    snapshot_id: int
    app: str
    playbook: str
    input: Payload
    triggered_at: int
    started_at: int
    by: str
    scopes: list[ScopeState]
    status: TraceStatus = TraceStatus.RUNNING
    env: dict[str, Any] = {}
    ended_at: int = 0
    output: Payload | None = None
    failure: Failure | None = None
    start_at: int = 0
    timeout_from: int = 0
    paused_at: int = 0
    priority: int = DEFAULT_PRIORITY
    ending: TraceStatus | None = None  # how it will end once its compensations have run
    completed: list[tuple[int, int]] = []
    rerun_of: bytes = b""
    patched: int = -1
    patch: Payload | None = None
    setters: Setters | None = None  # None: began before they were kept
    paused_by: str = ""

    @property
    def nodes(self) -> list[NodeState]:
        """Those of the trace's own playbook."""
        return self.scopes[ROOT].nodes

    @property
    def live(self) -> bool:
        """Whether it advances: neither ended, paused nor delayed."""
        return self.status is TraceStatus.RUNNING and not self.start_at


_encoder = msgspec.msgpack.Encoder()
_decoder = msgspec.msgpack.Decoder(TraceState)
_env_decoder = msgspec.json.Decoder(dict[str, Any])


def dump(state: TraceState) -> bytes:
    """The state's one byte form."""
    return _encoder.encode(state)


def fits_state(env: dict[str, Any]) -> bool:
    """Whether the env can be dumped: MessagePack has no integers beyond 64 bits."""
    try:
        _encoder.encode(env)
    except OverflowError:
        return False
    return True


def load(data: bytes) -> TraceState:
    """Errors: `msgspec.MsgspecError` when the bytes are no state."""
    return _decoder.decode(data)


def drawn(graphs: Graphs, state: TraceState, scope: int, node: int) -> GraphNode:
    """What a place runs: a node of a snapshot, an item's or a round's body, a compensation."""
    here = state.scopes[scope]
    if here.kind is ScopeKind.PLAYBOOK:
        return graphs.graph(here.snapshot_id).nodes[node]
    if here.kind is ScopeKind.COMPENSATION:
        undone = drawn(graphs, state, *here.undo[node]).compensation
        assert undone is not None
        return undone
    body = drawn(graphs, state, here.parent, here.node).body
    assert body is not None
    return body


def begin(graphs: Graphs, trace_id: bytes, event: TraceStarted, at: int) -> TraceState:
    """The state right after its first event."""
    graph = graphs.graph(event.snapshot_id)
    setters = event.setters
    taken = {key: given[-1][1] for key, given in setters.items()} if setters else {}
    return TraceState(
        trace_id=trace_id,
        playbook_id=event.playbook_id,
        snapshot_id=event.snapshot_id,
        app=event.app,
        playbook=event.playbook,
        input=event.input,
        triggered_at=event.triggered_at,
        started_at=at,
        by=event.by,
        scopes=[_playbook_scope(graph, -1, -1, event.playbook_id, event.input, 1)],
        env={**graph.drawn.env, **taken},
        start_at=event.start_at if event.start_at > at else 0,
        timeout_from=at,
        priority=event.priority,
        rerun_of=event.rerun_of,
        patched=event.patched,
        patch=event.patch,
        setters=None if setters is None else {key: [*given] for key, given in setters.items()},
    )


def _playbook_scope(
    graph: Graph, parent: int, node: int, playbook_id: int, input: Payload, first: int
) -> ScopeState:
    return ScopeState(
        parent,
        node,
        ScopeKind.PLAYBOOK,
        playbook_id,
        graph.snapshot_id,
        input,
        [NodeState(len(drawn.incoming), first=first) for drawn in graph.nodes],
        len(graph.nodes),
        first=first,
    )


def apply(graphs: Graphs, state: TraceState, event: Event, at: int) -> None:
    """Changes the state by one event that was decided at `at`."""
    _APPLY[type(event)](graphs, state, event, at)


def _task_scheduled(graphs: Graphs, state: TraceState, event: TaskScheduled, at: int) -> None:
    scope = state.scopes[event.scope]
    node = scope.nodes[event.node]
    node.status = NodeStatus.QUEUED
    _attempt(scope, node, event, at)


def _call_started(graphs: Graphs, state: TraceState, event: CallStarted, at: int) -> None:
    scope = state.scopes[event.scope]
    node = scope.nodes[event.node]
    node.status = NodeStatus.RUNNING
    _attempt(scope, node, event, at)


def _attempt(
    scope: ScopeState, node: NodeState, event: TaskScheduled | CallStarted, at: int
) -> None:
    if event.attempt == node.first:
        _enter(scope, event.node, node, at)
    node.attempt = event.attempt
    node.dispatched_at = at
    node.began_at = 0
    node.retry_at = 0
    node.lost = []
    node.queued_at = 0
    if event.input is not None:
        node.input = event.input


def _enter(scope: ScopeState, index: int, node: NodeState, at: int) -> None:
    node.started_at = at
    node.total_from = at
    if scope.kind is ScopeKind.MAP:
        scope.begun = max(scope.begun, index + 1)
        scope.running += 1


def _scope_opened(graphs: Graphs, state: TraceState, event: ScopeOpened, at: int) -> None:
    outer = state.scopes[event.scope]
    node = outer.nodes[event.node]
    first = outer.first
    if node.scope >= 0:
        first = max(first, _last_attempt(state, node.scope) + 1)
    node.scope = len(state.scopes)
    assert node.input is not None
    if event.kind is ScopeKind.PLAYBOOK:
        graph = graphs.graph(event.snapshot_id)
        state.scopes.append(
            _playbook_scope(graph, event.scope, event.node, event.playbook_id, node.input, first)
        )
        missing = {k: v for k, v in graph.drawn.env.items() if k not in state.env}
        _set_env(state, event.scope, event.node, missing)
        return
    count = len(list_items(node.input)) if event.kind is ScopeKind.MAP else 0
    state.scopes.append(
        ScopeState(
            event.scope,
            event.node,
            event.kind,
            0,
            0,
            node.input,
            [NodeState(0, first=first) for _ in range(count)],
            count,
            first=first,
        )
    )


def _last_attempt(state: TraceState, scope: int) -> int:
    """The highest attempt of any task in the scope and those below it."""
    highest = state.scopes[scope].first
    for node in state.scopes[scope].nodes:
        highest = max(highest, node.attempt)
        if node.scope >= 0:
            highest = max(highest, _last_attempt(state, node.scope))
    return highest


def _round_started(graphs: Graphs, state: TraceState, event: RoundStarted, at: int) -> None:
    scope = state.scopes[event.scope]
    scope.nodes.append(NodeState(0, first=scope.first))
    scope.open += 1


def _hook_opened(graphs: Graphs, state: TraceState, event: HookOpened, at: int) -> None:
    scope = state.scopes[event.scope]
    node = scope.nodes[event.node]
    if not node.started_at:
        _enter(scope, event.node, node, at)
    if event.input is not None:
        node.input = event.input
    node.status = NodeStatus.PAUSED
    node.due_at = event.due_at
    node.output = event.output
    node.worker = event.worker
    node.began_at = event.began_at
    node.failure = None
    if event.env:
        _set_env(state, event.scope, event.node, _env_decoder.decode(event.env))


def _sleep_started(graphs: Graphs, state: TraceState, event: SleepStarted, at: int) -> None:
    scope = state.scopes[event.scope]
    node = scope.nodes[event.node]
    _enter(scope, event.node, node, at)
    node.input = event.input
    node.status = NodeStatus.SLEEPING
    node.due_at = event.due_at


def _attempt_began(graphs: Graphs, state: TraceState, event: AttemptBegan, at: int) -> None:
    node = state.scopes[event.scope].nodes[event.node]
    node.began_at = at
    node.queued_at = 0
    node.worker = event.worker


def _attempt_lost(graphs: Graphs, state: TraceState, event: AttemptLost, at: int) -> None:
    node = state.scopes[event.scope].nodes[event.node]
    node.lost.append((event.worker, event.at))
    node.queued_at = at


def _attempt_resumed(graphs: Graphs, state: TraceState, event: AttemptResumed, at: int) -> None:
    """The last loss of that worker was none."""
    lost = state.scopes[event.scope].nodes[event.node].lost
    for place in reversed(range(len(lost))):
        if lost[place][0] == event.worker:
            del lost[place]
            return


def _node_succeeded(graphs: Graphs, state: TraceState, event: NodeSucceeded, at: int) -> None:
    scope = state.scopes[event.scope]
    node = scope.nodes[event.node]
    node.output = event.output
    node.worker = event.worker
    node.began_at = event.began_at
    node.failure = None
    if event.env:
        _set_env(state, event.scope, event.node, _env_decoder.decode(event.env))
    _settle(state, event.scope, event.node, NodeStatus.SUCCEEDED, at)
    if scope.kind is ScopeKind.PLAYBOOK:
        done = graphs.graph(scope.snapshot_id).nodes[event.node]
        if done.outgoing:
            _resolve(scope, done, event.taken)
        if done.compensation is not None:
            state.completed.append((event.scope, event.node))


def _set_env(state: TraceState, scope: int, index: int, changes: dict[str, Any]) -> None:
    state.env.update(changes)
    if state.setters is None:
        return
    own = own_node(state, scope, index)
    for key, value in changes.items():
        others = [given for given in state.setters.get(key, ()) if given[0] != own]
        state.setters[key] = [*others, (own, value)]


def own_node(state: TraceState, scope: int, index: int) -> int:
    """The node of the trace's own playbook that the place is, or is inside of; what compensates
    a node belongs to it."""
    while scope != ROOT:
        here = state.scopes[scope]
        compensates = here.kind is ScopeKind.COMPENSATION
        scope, index = here.undo[index] if compensates else (here.parent, here.node)
    return index


def _attempt_failed(graphs: Graphs, state: TraceState, event: AttemptFailed, at: int) -> None:
    node = state.scopes[event.scope].nodes[event.node]
    node.failure = event.failure
    node.status = NodeStatus.QUEUED
    node.retry_at = event.retry_at
    node.worker = event.worker
    if node.scope >= 0:
        _close(state, node.scope, at)


def _node_failed(graphs: Graphs, state: TraceState, event: NodeFailed, at: int) -> None:
    scope = state.scopes[event.scope]
    node = scope.nodes[event.node]
    node.failure = event.failure
    node.output = None
    node.worker = event.worker
    timed_out = event.failure.code in OUT_OF_TIME
    status = NodeStatus.TIMED_OUT if timed_out else NodeStatus.FAILED
    _settle(state, event.scope, event.node, status, at)
    if event.taken >= 0:
        node.handled = True
        failed = graphs.graph(scope.snapshot_id).nodes[event.node]
        _resolve(scope, failed, (event.taken,))
    elif scope.kind is ScopeKind.MAP:
        scope.failed += 1
        scope.failing = event.node
    elif scope.failing < 0:
        scope.failing = event.node


def _node_skipped(graphs: Graphs, state: TraceState, event: NodeSkipped, at: int) -> None:
    scope = state.scopes[event.scope]
    scope.nodes[event.node].output = NULL
    _settle(state, event.scope, event.node, NodeStatus.SKIPPED, at)
    if scope.kind is ScopeKind.PLAYBOOK:
        _resolve(scope, graphs.graph(scope.snapshot_id).nodes[event.node], ())


def _trace_paused(graphs: Graphs, state: TraceState, event: TracePaused, at: int) -> None:
    state.status = TraceStatus.PAUSED
    state.paused_at = at
    state.paused_by = event.by


def _trace_resumed(graphs: Graphs, state: TraceState, event: TraceResumed, at: int) -> None:
    """A sleep is not prolonged: it waits for a time of the world, not for work."""
    pause = max(0, at - state.paused_at)
    state.status = TraceStatus.RUNNING
    state.paused_at = 0
    state.paused_by = ""
    state.timeout_from += pause
    for scope in state.scopes:
        for node in () if scope.closed else scope.nodes:
            if node.status.settled or not node.started_at:
                continue
            node.dispatched_at += pause
            node.total_from += pause
            if node.queued_at:
                node.queued_at += pause
            if node.retry_at:
                node.retry_at += pause
            if node.due_at and node.status is NodeStatus.PAUSED:
                node.due_at += pause


def _trace_released(graphs: Graphs, state: TraceState, event: TraceReleased, at: int) -> None:
    state.start_at = 0
    state.started_at = at
    state.timeout_from = at


def _trace_failing(graphs: Graphs, state: TraceState, event: TraceFailing, at: int) -> None:
    _close(state, ROOT, at)
    state.status = TraceStatus.RUNNING
    state.paused_at = 0
    state.paused_by = ""
    state.start_at = 0
    state.ending = event.status
    state.failure = event.failure
    count = len(event.undo)
    nodes = [NodeState(0) for _ in range(count)]
    state.scopes.append(
        ScopeState(
            -1,
            -1,
            ScopeKind.COMPENSATION,
            0,
            0,
            NULL,
            nodes,
            count,
            undo=list(event.undo),
        )
    )


def _trace_ended(graphs: Graphs, state: TraceState, event: TraceEnded, at: int) -> None:
    for scope in range(len(state.scopes)):
        _close(state, scope, at)
    state.status = event.status
    state.output = event.output
    state.failure = event.failure
    state.ended_at = at
    state.ending = None
    state.start_at = 0
    state.paused_at = 0
    state.paused_by = ""


def _operator_acted(graphs: Graphs, state: TraceState, event: OperatorActed, at: int) -> None:
    """Recorded for people; what it causes are events of their own."""


def _settle(state: TraceState, scope: int, index: int, status: NodeStatus, at: int) -> None:
    """What is still under way below the node is over with it."""
    here = state.scopes[scope]
    node = here.nodes[index]
    if node.scope >= 0:
        _close(state, node.scope, at)
    if here.kind is ScopeKind.MAP and node.started_at:
        here.running -= 1
    node.status = status
    node.retry_at = 0
    node.due_at = 0
    node.ended_at = at
    if not node.started_at:
        node.started_at = at
    here.open -= 1


def _close(state: TraceState, scope: int, at: int) -> None:
    here = state.scopes[scope]
    if here.closed:
        return
    here.closed = True
    if not here.open:
        return
    for index, node in enumerate(here.nodes):
        if not node.status.settled:
            _settle(state, scope, index, NodeStatus.CANCELLED, at)


def _resolve(scope: ScopeState, source: GraphNode, taken: tuple[int, ...]) -> None:
    for edge in source.outgoing:
        target = scope.nodes[edge.target]
        target.unresolved -= 1
        if edge.index in taken:
            target.taken.append(source.index)


def revive(state: TraceState, at: int) -> None:
    """Opens what failed or was cancelled, so that an ended trace can run again. Attempts count
    on; everything else of these nodes begins anew."""
    state.status = TraceStatus.RUNNING
    state.failure = None
    state.ended_at = 0
    state.started_at = state.started_at or at
    state.timeout_from = at
    _reopen(state, ROOT, at)


def _reopen(state: TraceState, scope: int, at: int) -> None:
    here = state.scopes[scope]
    here.closed = False
    here.failing = -1
    here.begun = here.running = here.failed = 0
    for node in here.nodes:
        failed = node.failure is not None and not node.handled and node.status.settled
        if node.status is NodeStatus.CANCELLED or (
            failed and node.status in (NodeStatus.FAILED, NodeStatus.TIMED_OUT)
        ):
            _open_again(state, here, node, at)


def _open_again(state: TraceState, scope: ScopeState, node: NodeState, at: int) -> None:
    """A node with a scope goes on inside it; any other begins anew."""
    scope.open += 1
    node.ended_at = node.retry_at = node.due_at = 0
    node.failure = None
    if node.scope >= 0 and state.scopes[node.scope].nodes:
        node.status = NodeStatus.RUNNING
        node.dispatched_at = node.total_from = at
        _reopen(state, node.scope, at)
        if scope.kind is ScopeKind.MAP:
            scope.running += 1
        return
    node.status = NodeStatus.PENDING
    node.first = node.attempt + 1 if node.attempt else node.first
    node.started_at = node.dispatched_at = 0
    node.output = None


def unhandled(state: TraceState) -> Iterator[tuple[int, int]]:
    """Places of failures that nothing handled, innermost where a call failed over one."""
    for scope, here in enumerate(state.scopes):
        for index, node in enumerate(here.nodes):
            if node.status in (NodeStatus.FAILED, NodeStatus.TIMED_OUT) and not node.handled:
                yield scope, index


_APPLY: dict[type, Callable[[Graphs, TraceState, Any, int], None]] = {
    TaskScheduled: _task_scheduled,
    NodeSucceeded: _node_succeeded,
    AttemptFailed: _attempt_failed,
    NodeFailed: _node_failed,
    NodeSkipped: _node_skipped,
    TraceEnded: _trace_ended,
    OperatorActed: _operator_acted,
    CallStarted: _call_started,
    ScopeOpened: _scope_opened,
    RoundStarted: _round_started,
    HookOpened: _hook_opened,
    SleepStarted: _sleep_started,
    AttemptBegan: _attempt_began,
    AttemptLost: _attempt_lost,
    AttemptResumed: _attempt_resumed,
    TracePaused: _trace_paused,
    TraceResumed: _trace_resumed,
    TraceReleased: _trace_released,
    TraceFailing: _trace_failing,
}
