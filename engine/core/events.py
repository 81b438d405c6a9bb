"""What happened to a trace. The state of a trace is the fold of its events.

Events name nodes and edges by their place in the snapshot's document, which never changes. Their
byte form is part of the contract with every log ever written: a field is never removed, reordered
or given another meaning; new ones are appended with a default (decision 0001).
"""

from __future__ import annotations

import msgspec

from engine.core.failure import Failure
from engine.core.payload import Payload
from engine.core.status import TraceStatus


class TraceStarted(msgspec.Struct, frozen=True, array_like=True, gc=False, tag=1):
    """Times are milliseconds since 1970 by the owner's clock."""

    playbook_id: int
    snapshot_id: int
    app: str
    playbook: str
    input: Payload
    triggered_at: int
    by: str
    trigger: int = 0  # sequence of the trigger in its queue; 0 where there was none


class TaskScheduled(msgspec.Struct, frozen=True, array_like=True, gc=False, tag=2):
    node: int
    attempt: int
    input: Payload | None  # None: as in the attempt before


class NodeSucceeded(msgspec.Struct, frozen=True, array_like=True, gc=False, tag=3):
    node: int
    attempt: int  # 0 for a node that needs no worker
    output: Payload
    taken: tuple[int, ...]  # places of the edges
    env: bytes = b""  # the keys it set, a JSON object
    worker: str = ""
    began_at: int = 0


class AttemptFailed(msgspec.Struct, frozen=True, array_like=True, gc=False, tag=4):
    node: int
    attempt: int
    failure: Failure
    retry_at: int
    worker: str = ""


class NodeFailed(msgspec.Struct, frozen=True, array_like=True, gc=False, tag=5):
    node: int
    attempt: int
    failure: Failure
    taken: int  # place of the error edge; -1 when the failure is not handled
    worker: str = ""


class NodeSkipped(msgspec.Struct, frozen=True, array_like=True, gc=False, tag=6):
    node: int


class TraceEnded(msgspec.Struct, frozen=True, array_like=True, gc=False, tag=7):
    status: TraceStatus
    output: Payload | None = None
    failure: Failure | None = None


class OperatorActed(msgspec.Struct, frozen=True, array_like=True, gc=False, tag=8):
    verb: str
    by: str
    why: str
    node: int = -1


Event = (
    TraceStarted
    | TaskScheduled
    | NodeSucceeded
    | AttemptFailed
    | NodeFailed
    | NodeSkipped
    | TraceEnded
    | OperatorActed
)
