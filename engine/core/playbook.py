"""A playbook as it was drawn: frozen data, nothing decided yet.

Durations are milliseconds; 0 means no limit. Templates and schemas are plain JSON values.
`docs/playbook.md` says what everything means.
"""

from __future__ import annotations

import hashlib
from enum import IntEnum
from typing import Any

import msgspec

MAX_NODES = 2_000
MAX_EDGES = 10_000
MAX_DOCUMENT = 1_048_576  # bytes


class Limits(msgspec.Struct, frozen=True):
    """How large a playbook may be. The checks are made for no more than the defaults."""

    nodes: int = MAX_NODES
    edges: int = MAX_EDGES
    document: int = MAX_DOCUMENT


LIMITS = Limits()


UNSET = msgspec.UNSET
"""Stands for a template that was not given; None is a template (JSON null)."""

Template = Any | msgspec.UnsetType


class Task(msgspec.Struct, frozen=True, tag="task"):
    function: str  # app/name


class Subplaybook(msgspec.Struct, frozen=True, tag="playbook"):
    playbook: str  # app/name
    snapshot_id: int = 0  # 0: the active one at the moment of the call


class Map(msgspec.Struct, frozen=True, tag="map"):
    over: Any
    body: Task | Subplaybook
    concurrency: int = 0
    tolerate_count: int = 0
    tolerate_percent: float = 0.0


class Hook(msgspec.Struct, frozen=True, tag="hook"):
    timeout: int = 0


class Sleep(msgspec.Struct, frozen=True, tag="sleep"):
    duration: int = 0
    until: Any = None


class Nop(msgspec.Struct, frozen=True, tag="nop"):
    pass


class Repeat(msgspec.Struct, frozen=True, tag="repeat"):
    playbook: str
    snapshot_id: int
    until: str
    max: int


Kind = Task | Subplaybook | Map | Hook | Sleep | Nop | Repeat


class Join(IntEnum):
    ALL = 1
    ANY = 2


class EdgeKind(IntEnum):
    PARALLEL = 1
    CHOICE = 2
    OTHERWISE = 3
    ERROR = 4


class Retry(msgspec.Struct, frozen=True):
    """The wait before attempt n + 1 is min(max, backoff x factor^(n - 1)), spread by jitter."""

    attempts: int = 1
    backoff: int = 1_000
    factor: float = 2.0
    max: int = 3_600_000
    jitter: float = 0.0
    on: tuple[str, ...] = ()
    not_on: tuple[str, ...] = ()


class Compensation(msgspec.Struct, frozen=True):
    function: str
    input: Template = UNSET


DEFAULT_PRIORITY = 5


class Node(msgspec.Struct, frozen=True):
    code: str
    kind: Kind
    input: Template = UNSET
    join: Join = Join.ALL
    timeout: int = 0
    queue_timeout: int = 0
    total_timeout: int = 0
    heartbeat: int = 0
    retry: Retry = Retry()
    priority: int = DEFAULT_PRIORITY
    before: tuple[str, ...] = ()
    after: tuple[str, ...] = ()
    env: Template = UNSET
    compensate: Compensation | None = None
    affinity: bool = False
    hook_after: bool = False
    description: str = ""
    tags: tuple[str, ...] = ()
    explicit_priority: bool | msgspec.UnsetType = UNSET  # true where the default itself is given

    @property
    def own_priority(self) -> int | None:
        """None: that of the trace. Snapshots have the default also where none was given."""
        given = self.explicit_priority is True or self.priority != DEFAULT_PRIORITY
        return self.priority if given else None


class Edge(msgspec.Struct, frozen=True):
    source: str
    target: str
    kind: EdgeKind = EdgeKind.PARALLEL
    when: str = ""
    priority: int = 0
    codes: tuple[str, ...] = ()


class Playbook(msgspec.Struct, frozen=True):
    name: str
    app: str
    nodes: tuple[Node, ...]
    edges: tuple[Edge, ...] = ()
    description: str = ""
    input_schema: Template = UNSET
    output_schema: Template = UNSET
    env: dict[str, Any] = {}
    timeout: int = 0
    output: Template = UNSET

    @property
    def full_name(self) -> str:
        return f"{self.app}/{self.name}"


_canonical = msgspec.json.Encoder(order="sorted")


def canonical(playbook: Playbook) -> bytes:
    """The one byte form of the content: sorted keys, no white space."""
    return _canonical.encode(playbook)


def checksum(playbook: Playbook) -> bytes:
    """SHA-256 over the canonical form, 32 bytes."""
    return hashlib.sha256(canonical(playbook)).digest()


def kind_name(kind: Kind) -> str:
    """The word that documents use: `task`, `nop`, …"""
    return str(type(kind).__struct_config__.tag)
