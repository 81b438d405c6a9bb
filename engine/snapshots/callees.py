"""The playbooks that traces run, as the core asks for them."""

from __future__ import annotations

from engine.core.failure import Failure
from engine.core.graph import Graph
from engine.core.playbook import Subplaybook
from engine.errors import NotFound, WrongState
from engine.snapshots.library import Library


class Callees:
    """Implements `engine.core.state.Graphs` with what was loaded before it is asked for."""

    def __init__(self, library: Library) -> None:
        self._library = library
        self._graphs: dict[int, Graph] = {}

    def graph(self, snapshot_id: int) -> Graph:
        return self._graphs[snapshot_id]

    def callee(self, callee: Subplaybook) -> Graph | Failure | None:
        try:
            _, snapshot_id = self._named(callee)
        except (NotFound, WrongState) as error:
            return Failure(error.reason, error.message)
        return self._graphs.get(snapshot_id)

    def granted(self, app: str, target: str) -> bool:
        return self._library.granted(app, target)

    async def load(self, playbook_id: int, snapshot_id: int) -> None:
        """Errors: `NotFound`, `Corrupt`, `Unavailable`."""
        if snapshot_id not in self._graphs:
            self._graphs[snapshot_id] = await self._library.graph(playbook_id, snapshot_id)

    async def look_up(self, callee: Subplaybook) -> Failure | None:
        """Loads what is to be called; a failure when that can never succeed. Errors:
        `Unavailable`, `Corrupt`."""
        try:
            await self.load(*self._named(callee))
        except (NotFound, WrongState) as error:
            return Failure(error.reason, error.message)
        return None

    def _named(self, callee: Subplaybook) -> tuple[int, int]:
        """(playbook, snapshot). Errors: `NotFound`, `WrongState`."""
        if callee.snapshot_id:
            return self._library.playbook_id(callee.playbook), callee.snapshot_id
        return self._library.active(callee.playbook)
