"""What mappings and conditions see: the data of a trace from one place in it."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from engine.core.events import ScopeKind
from engine.core.graph import GraphNode, passes_whole
from engine.core.payload import NULL, NotJson, Payload, list_items, of_value, to_value
from engine.core.references import MISSING, Root
from engine.core.state import ROOT, Graphs, NodeState, TraceState, drawn
from engine.core.status import NodeStatus
from engine.core.templates import MappingFailed, Template, render


class Data:
    """The values of one trace during one turn; what was read is kept."""

    __slots__ = ("_graphs", "_state", "_values")

    def __init__(self, graphs: Graphs, state: TraceState) -> None:
        self._graphs = graphs
        self._state = state
        self._values: dict[tuple[int, int], Any] = {}

    # What goes in and comes out.

    def input(self, scope: int, index: int) -> Payload:
        """The node's input. Errors: `MappingFailed`, `NotJson`."""
        if scope == ROOT and index == self._state.patched and self._state.patch is not None:
            return self._state.patch
        here = self._state.scopes[scope]
        node = drawn(self._graphs, self._state, scope, index)
        if here.kind is ScopeKind.REPEAT:
            return here.input if index == 0 else here.nodes[index - 1].output or NULL
        if node.input is None:
            return self._default_input(scope, index, node)
        whole = passes_whole(node.input)
        if whole is not None and here.kind is ScopeKind.PLAYBOOK:
            if whole.root is Root.TRIGGER:
                return here.input
            if whole.root is Root.LAST:
                return self._default_input(scope, index, node)
            if whole.root is Root.NODE:
                place = self._graphs.graph(here.snapshot_id).by_code[whole.code]
                output = here.nodes[place].output
                if output is not None:
                    return output
        return self.render(node.input, self.view(scope, index), "input")

    def _default_input(self, scope: int, index: int, node: GraphNode) -> Payload:
        here = self._state.scopes[scope]
        if here.kind is ScopeKind.MAP:
            return Payload(list_items(here.input)[index])
        if here.kind is ScopeKind.COMPENSATION:
            undone, place = here.undo[index]
            return self._state.scopes[undone].nodes[place].output or NULL
        return here.input if node.starts else self.last(scope, here.nodes[index])

    def subject(self, scope: int, index: int, path: str) -> Any:
        """What the node's kind evaluates: a map's list, a sleep's end. Errors: as `input`."""
        node = drawn(self._graphs, self._state, scope, index)
        assert node.subject is not None
        return render(node.subject, self.view(scope, index), path)

    def items(self, scope: int, index: int) -> tuple[bytes, ...]:
        """The JSON of each item of a map that is under way."""
        taken = self._state.scopes[scope].nodes[index].input
        assert taken is not None
        return list_items(taken)

    def output(self, scope: int) -> Payload:
        """The output of a playbook whose nodes have settled. Errors: as `input`."""
        here = self._state.scopes[scope]
        graph = self._graphs.graph(here.snapshot_id)
        if graph.output is not None:
            return self.render(graph.output, View(self, scope, None), "output")
        ran = (i for i in graph.ends if here.nodes[i].status is NodeStatus.SUCCEEDED)
        return self._join(scope, ran)

    def list_output(self, scope: int) -> Payload:
        """The outputs of a map's items, null where one failed. Errors: `NotJson`."""
        parts = []
        for index, node in enumerate(self._state.scopes[scope].nodes):
            payload = node.output or NULL
            if not payload.is_json:
                raise NotJson(f"the output of item {index} is {payload.content_type}, not JSON")
            parts.append(payload.data or b"null")
        return Payload(b"[" + b",".join(parts) + b"]")

    def render(self, template: Template, view: View, path: str) -> Payload:
        value = render(template, view, path)
        try:
            return of_value(value)
        except (TypeError, ValueError, OverflowError) as error:
            raise MappingFailed(f"the value cannot be written as JSON: {error}", path) from error

    # Values.

    def view(self, scope: int, index: int, output: Payload | None = None, env: bytes = b"") -> View:
        """What the node sees. Items, rounds and compensations look out from the node that they
        belong to."""
        here = self._state.scopes[scope]
        if here.kind is ScopeKind.PLAYBOOK:
            return View(self, scope, index, output, env)
        if here.kind is ScopeKind.COMPENSATION:
            undone, place = here.undo[index]
            done = self._state.scopes[undone].nodes[place].output
            return View(self, undone, place, done or NULL)
        item: Any = MISSING
        if here.kind is ScopeKind.MAP:
            item = to_value(Payload(list_items(here.input)[index]))
        return View(self, here.parent, here.node, output, env, item, index)

    def last(self, scope: int, node: NodeState) -> Payload:
        """What led to the node: one output, or an object of several."""
        sources = sorted(set(node.taken))
        if len(sources) == 1:
            return self._outcome(scope, sources[0])
        return self._join(scope, sources)

    def _outcome(self, scope: int, index: int) -> Payload:
        output = self._state.scopes[scope].nodes[index].output
        return output if output is not None else of_value(self.value_of(scope, index))

    def _join(self, scope: int, indexes: Iterable[int]) -> Payload:
        """An object from node code to outcome, put together without parsing any of them."""
        graph = self._graphs.graph(self._state.scopes[scope].snapshot_id)
        parts = []
        for index in indexes:
            payload = self._outcome(scope, index)
            code = graph.nodes[index].code
            if not payload.is_json:
                raise NotJson(f"the output of {code} is {payload.content_type}, not JSON")
            parts.append(b'"%s":%s' % (code.encode(), payload.data or b"null"))
        return Payload(b"{" + b",".join(parts) + b"}")

    def value_of(self, scope: int, index: int) -> Any:
        """What `$.<node>` sees: the output, `{"error": …}` after a failure, null when skipped,
        `MISSING` when it has not settled."""
        if (scope, index) in self._values:
            return self._values[scope, index]
        node = self._state.scopes[scope].nodes[index]
        value: Any
        if node.status is NodeStatus.SUCCEEDED or node.status is NodeStatus.SKIPPED:
            value = to_value(node.output) if node.output is not None else None
        elif node.failure is not None and node.status.settled:
            value = {"error": node.failure.as_value()}
        else:
            return MISSING
        self._values[scope, index] = value
        return value

    def last_value(self, scope: int, index: int) -> Any:
        """What `$$` sees."""
        here = self._state.scopes[scope]
        sources = sorted(set(here.nodes[index].taken))
        if not sources:
            return to_value(here.input)
        if len(sources) == 1:
            return self.value_of(scope, sources[0])
        graph = self._graphs.graph(here.snapshot_id)
        return {graph.nodes[i].code: self.value_of(scope, i) for i in sources}

    def index_of(self, scope: int, code: str) -> int | None:
        return self._graphs.graph(self._state.scopes[scope].snapshot_id).by_code.get(code)

    def trigger(self, scope: int) -> Any:
        return to_value(self._state.scopes[scope].input)

    def env(self, changes: bytes) -> dict[str, Any]:
        if changes:
            return {**self._state.env, **to_value(Payload(changes))}
        return self._state.env


class View:
    """The data that one node's mapping or conditions see.

    `output` is the node's own output while its choice edges are evaluated: then `$$` and
    `$.<node>` mean that output, and `env`, the keys that it set, counts already. `item` and
    `place` are what `$item` and `$index` mean.
    """

    __slots__ = ("_data", "_env", "_index", "_item", "_output", "_place", "_scope")

    def __init__(
        self,
        data: Data,
        scope: int,
        index: int | None,
        output: Payload | None = None,
        env: bytes = b"",
        item: Any = MISSING,
        place: Any = MISSING,
    ) -> None:
        self._data = data
        self._scope = scope
        self._index = index
        self._output = output
        self._env = env
        self._item = item
        self._place = place

    def root(self, root: Root, code: str) -> Any:
        data = self._data
        if root is Root.NODE:
            index = data.index_of(self._scope, code)
            if index is None:
                return MISSING
            if self._output is not None and self._index == index:
                return to_value(self._output)
            return data.value_of(self._scope, index)
        if root is Root.TRIGGER:
            return data.trigger(self._scope)
        if root is Root.ENV:
            return data.env(self._env)
        if root is Root.ITEM:
            return self._item
        if root is Root.INDEX:
            return self._place
        if root is Root.LAST:
            if self._output is not None:
                return to_value(self._output)
            if self._index is not None:
                return data.last_value(self._scope, self._index)
        return MISSING
