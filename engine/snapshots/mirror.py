"""A local copy of all keys under a prefix, kept up to date by a watch."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable

import structlog

from engine.errors import Unavailable
from engine.snapshots.port import Change, Compacted, Snapshots

_log = structlog.get_logger(__name__)


class Mirror:
    """`entries` maps keys to values as of the newest change seen. Stale by the watch's delay,
    never older than the last complete listing; it survives reconnects and compactions."""

    def __init__(
        self, snapshots: Snapshots, prefix: str, changed: Callable[[Change], None] | None = None
    ) -> None:
        self._snapshots = snapshots
        self._prefix = prefix
        self._changed = changed
        self._task: asyncio.Task[None] | None = None
        self._news = asyncio.Event()
        self.entries: dict[str, bytes] = {}
        self.created: dict[str, int] = {}

    async def open(self) -> None:
        """Returns when the first listing is in. Errors: `Unavailable`."""
        since = await self._list()
        self._task = asyncio.create_task(self._follow(since))

    async def close(self) -> None:
        if self._task is not None:
            self._task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._task

    async def news(self) -> None:
        """Returns at the next change."""
        await self._news.wait()

    async def _list(self) -> int:
        entries, revision = await self._snapshots.list(self._prefix)
        seen = {entry.key: entry for entry in entries}
        for key in set(self.entries) - set(seen):
            self._apply(Change(key, None, revision))
        for key, entry in seen.items():
            if self.entries.get(key) != entry.value or self.created.get(key) != entry.created:
                self._apply(Change(key, entry.value, entry.modified, entry.created))
        return revision

    async def _follow(self, since: int) -> None:
        while True:
            try:
                async for change in self._snapshots.watch(self._prefix, since):
                    since = change.revision
                    self._apply(change)
            except (Compacted, Unavailable) as error:
                _log.warning("watch begins anew", prefix=self._prefix, error=str(error))
            with contextlib.suppress(Unavailable):
                since = await self._list()
            await asyncio.sleep(0.2)

    def _apply(self, change: Change) -> None:
        if change.value is None:
            self.entries.pop(change.key, None)
            self.created.pop(change.key, None)
        else:
            self.entries[change.key] = change.value
            self.created[change.key] = change.created
        self._news.set()
        self._news = asyncio.Event()
        if self._changed is not None:
            self._changed(change)
