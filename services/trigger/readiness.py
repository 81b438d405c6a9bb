"""Whether live workers offer every function that a playbook needs, for apps that want to know."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterator
from dataclasses import dataclass

from engine.core.graph import Graph, GraphNode
from engine.core.playbook import Subplaybook
from engine.errors import NotFound, Unavailable, WrongState
from engine.snapshots.capacity import Capacity
from engine.snapshots.library import Library

MAX_CALLED = 200  # playbooks that are looked at for one trigger
MAX_CACHED = 1_000  # snapshots whose needs are remembered


@dataclass(frozen=True, slots=True)
class _Needs:
    """What one snapshot, which never changes, needs by itself."""

    functions: frozenset[str]
    calls: tuple[Subplaybook, ...]


class Readiness:
    def __init__(self, capacity: Capacity, library: Library) -> None:
        self._capacity = capacity
        self._library = library
        self._known: OrderedDict[int, _Needs] = OrderedDict()

    async def check(self, graph: Graph) -> None:
        """Errors: `Unavailable` with the reason NO_WORKER."""
        serving = self._capacity.serving
        missing = sorted(name for name in await self._needed(graph) if name not in serving)
        if missing:
            raise Unavailable(
                f"no live worker offers {', '.join(missing[:5])}",
                reason="NO_WORKER",
                mend="start a worker that does; `magicflow cluster` shows who serves what",
                metadata={"functions": ",".join(missing[:20])},
                retry_after=1.0,
            )

    async def _needed(self, graph: Graph) -> set[str]:
        """Of the playbook and of those that it calls, as they are live now. What cannot be called
        is for the call to say."""
        functions: set[str] = set()
        seen, waiting = {graph.snapshot_id}, [graph]
        while waiting and len(seen) <= MAX_CALLED:
            needs = self._needs(waiting.pop())
            functions |= needs.functions
            for call in needs.calls:
                callee = await self._callee(call)
                if callee is not None and callee.snapshot_id not in seen:
                    seen.add(callee.snapshot_id)
                    waiting.append(callee)
        return functions

    def _needs(self, graph: Graph) -> _Needs:
        found = self._known.get(graph.snapshot_id)
        if found is None:
            found = self._known[graph.snapshot_id] = _needs_of(graph)
            if len(self._known) > MAX_CACHED:
                self._known.popitem(last=False)
        else:
            self._known.move_to_end(graph.snapshot_id)
        return found

    async def _callee(self, kind: Subplaybook) -> Graph | None:
        try:
            playbook_id, snapshot_id = (
                (self._library.playbook_id(kind.playbook), kind.snapshot_id)
                if kind.snapshot_id
                else self._library.active(kind.playbook)
            )
            return await self._library.graph(playbook_id, snapshot_id)
        except (NotFound, WrongState):
            return None


def _needs_of(graph: Graph) -> _Needs:
    nodes = list(_all_nodes(graph))
    calls = [node.drawn.kind for node in nodes if isinstance(node.drawn.kind, Subplaybook)]
    return _Needs(frozenset(n.function for n in nodes if n.function), tuple(dict.fromkeys(calls)))


def _all_nodes(graph: Graph) -> Iterator[GraphNode]:
    """Nodes, what maps and repeats run, and compensations."""
    for node in graph.nodes:
        yield node
        if node.body is not None:
            yield node.body
        if node.compensation is not None:
            yield node.compensation
