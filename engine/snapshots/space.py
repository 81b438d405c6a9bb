"""The space inside one process: what the memory and embedded adapters have in common.

`Space` is the server's side: keys, revisions, a bounded history, leases with their deadlines.
`LocalSnapshots` is a client of it, and implements the port. A `Journal` may make each revision
durable before anybody can see it.
"""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import AsyncGenerator, Callable, Coroutine, Iterable, Sequence
from dataclasses import dataclass
from operator import attrgetter
from typing import Any, Protocol, TypeVar

from engine.errors import Unavailable
from engine.snapshots.lease import KeptLease
from engine.snapshots.limits import (
    check_commit,
    check_key,
    check_prefix,
    whole_seconds,
)
from engine.snapshots.port import (
    Change,
    Compacted,
    Delete,
    Entry,
    LeaseLost,
    Put,
    Require,
)

HISTORY = 10_000  # revisions that a late watch can still ask for

Result = TypeVar("Result")


class Journal(Protocol):
    """Makes revisions durable, one after the other, in order."""

    async def write(self, revision: int, put: Sequence[Entry], gone: Sequence[str]) -> None:
        """Returns when the revision would survive a power cut. Raises `Unavailable` when it
        is certain that nothing was kept."""
        ...

    async def close(self) -> None: ...


@dataclass(slots=True)
class _Granted:
    ttl: float
    expires: float  # by the space's clock


class Space:
    """The one truth that any number of `LocalSnapshots` in this event loop share.

    `history` counts revisions; `clock` is monotonic, in seconds (the loop's own if none).
    """

    def __init__(
        self,
        *,
        entries: Iterable[Entry] = (),
        revision: int = 1,
        history: int = HISTORY,
        clock: Callable[[], float] | None = None,
        journal: Journal | None = None,
    ) -> None:
        self._entries = {entry.key: entry for entry in entries}
        self._revision = revision
        self._history: list[tuple[Change, ...]] = []  # one item per revision, the last one last
        # Changes at or before this revision are gone; a space at revision 1 has had none.
        self._forgotten = revision if revision > 1 else 0
        self._bound = history
        self._clock = clock
        self._journal = journal
        self._leases: dict[int, _Granted] = {}
        self._turn = asyncio.Lock()
        self._moved = asyncio.Event()
        self._running: set[asyncio.Task[Any]] = set()
        self._timer: asyncio.TimerHandle | None = None

    @property
    def revision(self) -> int:
        return self._revision

    def now(self) -> float:
        return self._clock() if self._clock else asyncio.get_running_loop().time()

    async def get(self, key: str) -> Entry | None:
        await self.expire()
        return self._entries.get(key)

    async def list(self, prefix: str) -> tuple[Sequence[Entry], int]:
        await self.expire()
        found = [entry for key, entry in self._entries.items() if key.startswith(prefix)]
        return sorted(found, key=attrgetter("key")), self._revision

    async def commit(self, require: Sequence[Require], do: Sequence[Put | Delete]) -> int | None:
        return await self._finish(self._commit(require, do))

    async def delete(self, key: str) -> bool:
        return await self._finish(self._delete(key))

    async def grant(self, ttl: float) -> int:
        # Random, so that an id of an earlier life of the process never names a new lease.
        id = secrets.randbits(62) + 1
        self._leases[id] = _Granted(ttl, self.now() + ttl)
        self._set_timer()
        return id

    async def renew(self, id: int) -> float | None:
        """The time to live in seconds from now, or None if there is no such lease."""
        await self.expire()
        lease = self._leases.get(id)
        if lease is None:
            return None
        lease.expires = self.now() + lease.ttl
        self._set_timer()
        return lease.ttl

    async def revoke(self, id: int) -> None:
        await self._finish(self._revoke(id))

    async def expire(self) -> None:
        """Ends the leases whose time is up. The loop's timer calls it; a test with a clock of
        its own calls it after turning the clock."""
        if self._due():
            await self._finish(self._expire())

    def compact(self) -> None:
        """Forgets the history: a watch from before now raises `Compacted`."""
        self._history.clear()
        self._forgotten = self._revision

    def wake(self) -> None:
        """Makes every waiting watch look again."""
        moved, self._moved = self._moved, asyncio.Event()
        moved.set()

    def after(self, revision: int) -> tuple[Sequence[tuple[Change, ...]], asyncio.Event]:
        """The changes after `revision`, and an event that is set when there are more.

        Raises `Compacted` if some of them are forgotten."""
        if revision < self._forgotten:
            raise Compacted(
                f"changes up to revision {self._forgotten} are forgotten, "
                f"the watch asks for those after {revision}"
            )
        missing = min(self._revision - revision, len(self._history))
        return self._history[-missing:] if missing > 0 else [], self._moved

    async def close(self) -> None:
        """Finishes what runs, then closes the journal."""
        if self._timer is not None:
            self._timer.cancel()
        while self._running:
            await asyncio.gather(*self._running, return_exceptions=True)
        if self._timer is not None:
            self._timer.cancel()
        if self._journal is not None:
            await self._journal.close()
        self.wake()

    async def _finish(self, work: Coroutine[Any, Any, Result]) -> Result:
        # A caller may go away while the journal writes; the revision must then still appear,
        # or the next one would be written over it.
        task = asyncio.create_task(work)
        self._running.add(task)
        task.add_done_callback(self._running.discard)
        return await asyncio.shield(task)

    async def _commit(self, require: Sequence[Require], do: Sequence[Put | Delete]) -> int | None:
        async with self._turn:
            await self._end(self._due())
            if any(self._modified(wanted.key) != wanted.modified for wanted in require):
                return None
            for operation in do:
                if isinstance(operation, Put) and operation.lease:
                    self._check_lease(operation.lease)
            return await self._apply(do)

    async def _delete(self, key: str) -> bool:
        async with self._turn:
            await self._end(self._due())
            there = key in self._entries
            await self._apply([Delete(key)])
            return there

    async def _revoke(self, id: int) -> None:
        async with self._turn:
            await self._end([id])

    async def _expire(self) -> None:
        async with self._turn:
            await self._end(self._due())

    def _modified(self, key: str) -> int:
        entry = self._entries.get(key)
        return entry.modified if entry else 0

    def _check_lease(self, id: int) -> None:
        if id not in self._leases:
            raise LeaseLost(f"lease {id:x} has ended; grant a new one")

    def _due(self) -> Sequence[int]:
        now = self.now()
        return [id for id, lease in self._leases.items() if lease.expires <= now]

    async def _end(self, leases: Sequence[int]) -> None:
        for id in leases:
            keys = sorted(key for key, entry in self._entries.items() if entry.lease == id)
            await self._apply([Delete(key) for key in keys])
            self._leases.pop(id, None)
        if leases:
            self._set_timer()

    async def _apply(self, do: Sequence[Put | Delete]) -> int:
        revision = self._revision + 1
        put: list[Entry] = []
        gone: list[str] = []
        changes: list[Change] = []
        for operation in do:
            before = self._entries.get(operation.key)
            if isinstance(operation, Put):
                entry = Entry(
                    operation.key,
                    bytes(operation.value),
                    before.created if before else revision,
                    revision,
                    operation.lease,
                )
                put.append(entry)
                changes.append(Change(entry.key, entry.value, revision, entry.created))
            elif before is not None:
                gone.append(operation.key)
                changes.append(Change(operation.key, None, revision))
        if not changes:
            return self._revision
        if self._journal is not None:
            await self._journal.write(revision, put, gone)
        self._entries.update((entry.key, entry) for entry in put)
        for key in gone:
            del self._entries[key]
        self._revision = revision
        self._history.append(tuple(changes))
        if len(self._history) > self._bound:
            self._forgotten = self._history.pop(0)[0].revision
        self.wake()
        return revision

    def _set_timer(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        if self._leases:
            nearest = min(lease.expires for lease in self._leases.values())
            self._timer = asyncio.get_running_loop().call_later(
                # An injected clock may stand still: look again soon, but do not spin.
                max(0.01, nearest - self.now()),
                self._on_timer,
            )

    def _on_timer(self) -> None:
        task = asyncio.create_task(self._expire_and_look_again(), name="lease expiry")
        self._running.add(task)
        task.add_done_callback(self._running.discard)

    async def _expire_and_look_again(self) -> None:
        try:
            await self._expire()
        finally:
            self._set_timer()


class LocalSnapshots:
    """A client of a `Space` in this process. Implements `engine.snapshots.port.Snapshots`."""

    def __init__(self, space: Space) -> None:
        self._space = space
        self._leases: set[KeptLease] = set()
        self._closed = False

    async def get(self, key: str) -> Entry | None:
        self._check_open()
        check_key(key)
        return await self._space.get(key)

    async def list(self, prefix: str) -> tuple[Sequence[Entry], int]:
        self._check_open()
        check_prefix(prefix)
        return await self._space.list(prefix)

    async def commit(self, require: Sequence[Require], do: Sequence[Put | Delete]) -> int | None:
        self._check_open()
        check_commit(require, do)
        return await self._space.commit(require, do)

    async def put(self, key: str, value: bytes, lease: int = 0) -> int:
        self._check_open()
        do = [Put(key, value, lease)]
        check_commit([], do)
        revision = await self._space.commit([], do)
        assert revision is not None, "a transaction without requirements always happens"
        return revision

    async def delete(self, key: str) -> bool:
        self._check_open()
        check_key(key)
        return await self._space.delete(key)

    async def watch(self, prefix: str, since: int) -> AsyncGenerator[Change, None]:
        self._check_open()
        check_prefix(prefix)
        position = since
        while True:
            revisions, moved = self._space.after(position)
            for changes in revisions:
                for change in changes:
                    if change.key.startswith(prefix):
                        yield change
                        self._check_open()
                position = changes[0].revision
            if not revisions:
                await moved.wait()
                self._check_open()

    async def grant(self, ttl: float) -> KeptLease:
        self._check_open()
        seconds = whole_seconds(ttl)
        sent = self._space.now()
        lease = KeptLease(
            await self._space.grant(seconds),
            seconds,
            sent=sent,
            renew=self._space.renew,
            revoke=self._space.revoke,
            now=self._space.now,
        )
        self._leases = {kept for kept in self._leases if not kept.finished()} | {lease}
        return lease

    async def compact(self) -> None:
        """Forgets the history so far. Administration; not part of the port."""
        self._space.compact()

    async def close(self) -> None:
        self._closed = True
        for lease in self._leases:
            await lease.stop()
        self._leases.clear()
        self._space.wake()

    def _check_open(self) -> None:
        if self._closed:
            raise Unavailable("this client of the space is closed", reason="CLOSED")
