"""Whether live workers offer every function that a playbook needs, for apps that want to know."""

from __future__ import annotations

from collections.abc import Iterator

from engine.core.graph import Graph, GraphNode
from engine.core.playbook import Subplaybook
from engine.errors import NotFound, Unavailable, WrongState
from engine.snapshots.capacity import Capacity
from engine.snapshots.library import Library

MAX_CALLED = 200  # playbooks that are looked at for one trigger


class Readiness:
    def __init__(self, capacity: Capacity, library: Library) -> None:
        self._capacity = capacity
        self._library = library

    async def check(self, graph: Graph) -> None:
        """Errors: `Unavailable` with the reason NO_WORKER."""
        missing = sorted(await self._needed(graph) - self._capacity.serving)
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
            for node in _all_nodes(waiting.pop()):
                if node.function:
                    functions.add(node.function)
                if isinstance(node.drawn.kind, Subplaybook):
                    callee = await self._callee(node.drawn.kind)
                    if callee is not None and callee.snapshot_id not in seen:
                        seen.add(callee.snapshot_id)
                        waiting.append(callee)
        return functions

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


def _all_nodes(graph: Graph) -> Iterator[GraphNode]:
    """Nodes, what maps and repeats run, and compensations."""
    for node in graph.nodes:
        yield node
        if node.body is not None:
            yield node.body
        if node.compensation is not None:
            yield node.compensation
