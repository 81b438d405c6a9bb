"""The playbooks and grants of a story that is told in the core."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, cast

from cli.scenarios.story import Grant
from cli.scenarios.way import Published
from engine.clock import Clock
from engine.core.failure import Failure
from engine.core.graph import Graph, compile_graph
from engine.core.playbook import Subplaybook, checksum
from engine.errors import NotFound, WrongState
from engine.snapshots.memory import MemorySnapshots
from engine.snapshots.mirror import Mirror
from engine.store.registry import RegistryStore
from services.registry.publishing import Publishing, refuse_errors


class Shelf:
    """Implements `engine.core.state.Graphs`. As a real owner of a partition does, it knows a
    snapshot that is called only once it was looked up."""

    def __init__(self) -> None:
        self._graphs: dict[int, Graph] = {}  # by snapshot
        self._ids: dict[str, int] = {}
        self._checksums: dict[tuple[str, bytes], int] = {}
        self._active: dict[str, int] = {}
        self._known: set[int] = set()
        self._grants: set[Grant] = set()

    # What the core asks.

    def graph(self, snapshot_id: int) -> Graph:
        return self._graphs[snapshot_id]

    def callee(self, callee: Subplaybook) -> Graph | Failure | None:
        try:
            graph = self.find(callee.playbook, callee.snapshot_id)
        except (NotFound, WrongState) as error:
            return Failure(error.reason, error.message)
        return graph if graph.snapshot_id in self._known else None

    def granted(self, app: str, target: str) -> bool:
        owner = target.partition("/")[0]
        return bool({Grant(target, app), Grant(f"{owner}/*", app)} & self._grants)

    # What the services do.

    def look_up(self, callee: Subplaybook) -> Failure | None:
        try:
            self._known.add(self.find(callee.playbook, callee.snapshot_id).snapshot_id)
        except (NotFound, WrongState) as error:
            return Failure(error.reason, error.message)
        return None

    def find(self, playbook: str, snapshot_id: int) -> Graph:
        """The snapshot; 0: the active one. Errors: `NotFound`, `WrongState`."""
        if playbook not in self._ids:
            raise NotFound(f"there is no playbook {playbook}", reason="PLAYBOOK_NOT_FOUND")
        if not snapshot_id and playbook not in self._active:
            message = f"no snapshot of {playbook} is live yet"
            raise WrongState(message, reason="PLAYBOOK_NOT_ACTIVE")
        graph = self._graphs.get(snapshot_id or self._active[playbook])
        if graph is None or graph.full_name != playbook:
            message = f"{playbook} has no snapshot {snapshot_id}"
            raise NotFound(message, reason="SNAPSHOT_NOT_FOUND")
        return graph

    def grant(self, grant: Grant) -> None:
        kept = Grant(grant.target, grant.grantee)
        (self._grants.add if grant.given else self._grants.discard)(kept)

    async def publish(self, text: str) -> Published:
        """By the registry's own rules. Errors: `Invalid` with every finding."""
        playbook = refuse_errors(await self._publishing().examine(text, strict=False))
        name, content = playbook.full_name, checksum(playbook)
        known = self._checksums.get((name, content))
        if known is not None:
            return Published(name, known)
        playbook_id = self._ids.setdefault(name, len(self._ids) + 1)
        snapshot_id = self._checksums[name, content] = len(self._graphs) + 1
        self._graphs[snapshot_id] = compile_graph(playbook, playbook_id, snapshot_id)
        return Published(name, snapshot_id)

    def switch(self, playbook: str, snapshot_id: int) -> None:
        """Errors: `NotFound`."""
        self._active[playbook] = self.find(playbook, snapshot_id).snapshot_id

    def _publishing(self) -> Publishing:
        """Examining asks the store for grants, and the functions for those that are offered."""
        store = cast(RegistryStore, _GivenGrants(self._grants))
        return Publishing(store, MemorySnapshots(), cast(Mirror, _NoFunctions()), Clock())


class _Given:
    """As a row of the store."""

    def __init__(self, grant: Grant) -> None:
        self.owner = grant.target.partition("/")[0]
        self.target = grant.target
        self.grantee = grant.grantee


class _GivenGrants:
    def __init__(self, grants: set[Grant]) -> None:
        self._grants = grants

    async def grants(self, app: str) -> Sequence[_Given]:
        return [_Given(grant) for grant in self._grants]

    async def app(self, name: str) -> Any:
        """Apps of a story have no bounds of their own."""
        raise NotFound(f"no story makes the app {name}")


class _NoFunctions:
    """Only warnings follow from it."""

    entries: dict[str, bytes] = {}  # noqa: RUF012
