"""Where the services agree: snapshots, switches, leases and registrations.

A small key-value space with revisions, compare-and-swap, leases and watches. etcd is the
real one in a cluster; one process alone may keep it in SQLite; tests may keep it in memory.
All adapters pass `tests/contracts/test_snapshots.py`.

Promises:
- Revisions are positive, grow with every change to the space, and never repeat. A transaction
  that changes several keys gives them one revision. `Entry.created` is the revision at which
  the key came into being in its present life; it fences owners (a later owner has a larger one).
- Reads are linearizable: a read that starts after a write was acknowledged sees it.
- A key attached to a lease vanishes when the lease ends, and watchers see a `Change` for it.
- A watch delivers every change after `since`, in order, each exactly once, across reconnects.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass
from typing import Protocol

KEY_LIMIT = 1_024  # characters
VALUE_LIMIT = 1_048_576  # bytes: etcd refuses requests above 1.5 MiB


@dataclass(frozen=True, slots=True)
class Entry:
    """One key as it was read. `lease` is 0 where none is attached."""

    key: str
    value: bytes
    created: int
    modified: int
    lease: int = 0


@dataclass(frozen=True, slots=True)
class Change:
    """What a watch delivers. `value` is None for a key that is gone."""

    key: str
    value: bytes | None
    revision: int
    created: int = 0


@dataclass(frozen=True, slots=True)
class Require:
    """A condition of a transaction: `key` was last modified at `modified`; 0 means absent."""

    key: str
    modified: int


@dataclass(frozen=True, slots=True)
class Put:
    key: str
    value: bytes
    lease: int = 0


@dataclass(frozen=True, slots=True)
class Delete:
    key: str


class Compacted(Exception):
    """The history that a watch asked for is gone: list again, then watch from that revision."""


class LeaseLost(Exception):
    """The lease ended, or could not be renewed in time. Its keys are gone or will be."""


class Lease(Protocol):
    """A promise to be alive. Renewed in the background from `grant` until `revoke`.

    `lost` completes as soon as the holder must stop acting: two thirds of the time to live
    after the last confirmed renewal by the monotonic clock, or when the server says so.
    """

    @property
    def id(self) -> int: ...

    @property
    def ttl(self) -> float:
        """Seconds."""
        ...

    async def lost(self) -> None:
        """Returns when the holder may no longer act on this lease."""
        ...

    def held(self) -> bool:
        """True while the holder may act on this lease."""
        ...

    async def revoke(self) -> None:
        """Ends the lease now; its keys vanish. Safe to call twice."""
        ...


class Snapshots(Protocol):
    """The space. Errors: `engine.errors.Unavailable` when the server is out of reach or the
    call's time (five seconds by default) is up, `engine.errors.Invalid` for a key or value
    beyond the limits above or an empty key."""

    async def get(self, key: str) -> Entry | None: ...

    async def list(self, prefix: str) -> tuple[Sequence[Entry], int]:
        """All entries under `prefix` by key, and the revision at which they were read: a watch
        `since` that revision misses nothing and repeats nothing."""
        ...

    async def commit(self, require: Sequence[Require], do: Sequence[Put | Delete]) -> int | None:
        """If every requirement holds, does all of `do` at once and returns its revision;
        otherwise changes nothing and returns None. At most 100 operations, each key at most
        once. A put on a lease that has ended raises `LeaseLost`."""
        ...

    async def put(self, key: str, value: bytes, lease: int = 0) -> int:
        """Sets the key, whatever it held; returns the revision."""
        ...

    async def delete(self, key: str) -> bool:
        """True if there was such a key."""
        ...

    def watch(self, prefix: str, since: int) -> AsyncIterator[Change]:
        """Changes under `prefix` after revision `since`, until the caller stops iterating
        (`aclose()`). Reconnects by itself. Raises `Compacted` when `since` is too old."""
        ...

    async def grant(self, ttl: float) -> Lease:
        """A new lease of `ttl` seconds (whole seconds, at least 1), renewed until revoked."""
        ...

    async def close(self) -> None: ...
