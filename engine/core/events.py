"""What happened to a trace. The state of a trace is the fold of its events.

Events name nodes and edges by their place in the snapshot's document, which never changes, and
the scope that the document runs in (0: the trace's own). Their byte form is part of the contract
with every log ever written: a field is never removed, reordered or given another meaning; new
ones are appended with a default (decision 0001).
"""

from __future__ import annotations

from enum import IntEnum
from typing import Any

import msgspec

from engine.core.failure import Failure
from engine.core.payload import Payload
from engine.core.playbook import DEFAULT_PRIORITY
from engine.core.status import TraceStatus


class ScopeKind(IntEnum):
    PLAYBOOK = 1  # a playbook's nodes
    MAP = 2  # a map's items
    REPEAT = 3  # a repeat's rounds
    COMPENSATION = 4  # what undoes the completed nodes of a trace that fails


class TraceStarted(msgspec.Struct, frozen=True, array_like=True, gc=False, tag=1):
    """Times are milliseconds since 1970 by the owner's clock. With `start_at` the first nodes
    wait for a `TraceReleased`."""

    playbook_id: int
    snapshot_id: int
    app: str
    playbook: str
    input: Payload
    triggered_at: int
    by: str
    trigger: int = 0  # sequence of the trigger in its queue; 0 where there was none
    start_at: int = 0
    priority: int = DEFAULT_PRIORITY
    key: bytes = b""  # digest of the idempotency key; empty without one
    request: bytes = b""  # digest of what the key was used for
    rerun_of: bytes = b""  # the trace whose outcomes it takes over
    patched: int = -1  # the node whose input is replaced in a rerun
    patch: Payload | None = None
    setters: dict[str, list[tuple[int, Any]]] | None = None  # of the env, see `state.Setters`


class TaskScheduled(msgspec.Struct, frozen=True, array_like=True, gc=False, tag=2):
    node: int
    attempt: int
    input: Payload | None  # None: as in the attempt before
    scope: int = 0


class NodeSucceeded(msgspec.Struct, frozen=True, array_like=True, gc=False, tag=3):
    node: int
    attempt: int  # 0 for a node that needs no worker
    output: Payload
    taken: tuple[int, ...]  # places of the edges
    env: bytes = b""  # the keys it set, a JSON object
    worker: str = ""
    began_at: int = 0
    scope: int = 0


class AttemptFailed(msgspec.Struct, frozen=True, array_like=True, gc=False, tag=4):
    node: int
    attempt: int
    failure: Failure
    retry_at: int
    worker: str = ""
    scope: int = 0


class NodeFailed(msgspec.Struct, frozen=True, array_like=True, gc=False, tag=5):
    node: int
    attempt: int
    failure: Failure
    taken: int  # place of the error edge; -1 when the failure is not handled
    worker: str = ""
    scope: int = 0


class NodeSkipped(msgspec.Struct, frozen=True, array_like=True, gc=False, tag=6):
    node: int
    scope: int = 0


class TraceEnded(msgspec.Struct, frozen=True, array_like=True, gc=False, tag=7):
    status: TraceStatus
    output: Payload | None = None
    failure: Failure | None = None


class OperatorActed(msgspec.Struct, frozen=True, array_like=True, gc=False, tag=8):
    verb: str
    by: str
    why: str
    node: int = -1
    scope: int = 0


class CallStarted(msgspec.Struct, frozen=True, array_like=True, gc=False, tag=9):
    """A playbook, map or repeat node is under way. The input of a map is its list."""

    node: int
    attempt: int
    input: Payload | None  # None: as in the attempt before
    scope: int = 0


class ScopeOpened(msgspec.Struct, frozen=True, array_like=True, gc=False, tag=10):
    """What a call runs, from now on: the nodes of a snapshot, a map's items, a repeat's rounds."""

    node: int
    kind: ScopeKind
    scope: int = 0
    playbook_id: int = 0
    snapshot_id: int = 0


class RoundStarted(msgspec.Struct, frozen=True, array_like=True, gc=False, tag=11):
    """A repeat goes round once more; `scope` is that of its rounds."""

    scope: int


class HookOpened(msgspec.Struct, frozen=True, array_like=True, gc=False, tag=12):
    """A branch waits for a signal. After a task, `output` is what the task returned."""

    node: int
    input: Payload | None
    due_at: int = 0  # 0: waits for ever
    attempt: int = 0
    output: Payload | None = None
    env: bytes = b""
    worker: str = ""
    began_at: int = 0
    scope: int = 0


class SleepStarted(msgspec.Struct, frozen=True, array_like=True, gc=False, tag=13):
    node: int
    input: Payload
    due_at: int
    scope: int = 0


class AttemptBegan(msgspec.Struct, frozen=True, array_like=True, gc=False, tag=14):
    """A worker has begun. Recorded only for nodes with a queue_timeout, which ends with it."""

    node: int
    attempt: int
    worker: str
    scope: int = 0


class TracePaused(msgspec.Struct, frozen=True, array_like=True, gc=False, tag=15):
    by: str = ""


class TraceResumed(msgspec.Struct, frozen=True, array_like=True, gc=False, tag=16):
    """Timers that stood still go on, later by the pause."""


class TraceReleased(msgspec.Struct, frozen=True, array_like=True, gc=False, tag=17):
    """A delayed trace may begin."""


class TraceFailing(msgspec.Struct, frozen=True, array_like=True, gc=False, tag=18):
    """The trace will end like this once the compensations have run. Everything that still ran
    is cancelled. `undo` names (scope, node), in the order in which they are compensated."""

    status: TraceStatus
    failure: Failure
    undo: tuple[tuple[int, int], ...]


class TraceRevived(msgspec.Struct, frozen=True, array_like=True, gc=False, tag=19):
    """An ended trace runs again. It stands alone, as the log may have forgotten the trace:
    `state` is the state's bytes as they were at the end, with the nodes that run again open."""

    state: bytes


class AttemptLost(msgspec.Struct, frozen=True, array_like=True, gc=False, tag=20):
    """The worker disappeared over the attempt, which goes to another one. `at` is when its
    gateway saw so, milliseconds since 1970: with the worker it names this one loss."""

    node: int
    attempt: int
    worker: str
    scope: int = 0
    at: int = 0


class AttemptResumed(msgspec.Struct, frozen=True, array_like=True, gc=False, tag=21):
    """A worker that was taken for lost came back and still has the attempt."""

    node: int
    attempt: int
    worker: str
    scope: int = 0


Event = (
    TraceStarted
    | TaskScheduled
    | NodeSucceeded
    | AttemptFailed
    | NodeFailed
    | NodeSkipped
    | TraceEnded
    | OperatorActed
    | CallStarted
    | ScopeOpened
    | RoundStarted
    | HookOpened
    | SleepStarted
    | AttemptBegan
    | TracePaused
    | TraceResumed
    | TraceReleased
    | TraceFailing
    | TraceRevived
    | AttemptLost
    | AttemptResumed
)
