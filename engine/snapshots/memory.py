"""The space in memory, for tests: real revisions, real leases, nothing kept."""

from __future__ import annotations

from collections.abc import Callable

from engine.snapshots.space import HISTORY, LocalSnapshots, Space


class MemorySpace(Space):
    """What several `MemorySnapshots` share, as processes share an etcd.

    `history` counts the revisions that a late watch can still ask for. `clock` is monotonic,
    in seconds; a test that turns its own clock calls `expire()` afterwards.
    """

    def __init__(self, *, history: int = HISTORY, clock: Callable[[], float] | None = None) -> None:
        super().__init__(history=history, clock=clock)


class MemorySnapshots(LocalSnapshots):
    """One client of a `MemorySpace`; of a space of its own if none is given."""

    def __init__(self, space: MemorySpace | None = None) -> None:
        super().__init__(space or MemorySpace())
        self._owns_space = space is None

    async def close(self) -> None:
        await super().close()
        if self._owns_space:
            await self._space.close()
