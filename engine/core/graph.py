"""The compiled snapshot: what `machine` walks over. Immutable, shared by all its traces."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from msgspec.structs import replace

from engine.core.expressions import Expression
from engine.core.payload import of_value
from engine.core.playbook import (
    UNSET,
    Edge,
    EdgeKind,
    Join,
    Map,
    Node,
    Playbook,
    Repeat,
    Sleep,
    Subplaybook,
    Task,
)
from engine.core.references import Reference
from engine.core.templates import Template, compile_template


@dataclass(frozen=True, slots=True)
class GraphEdge:
    """`index` is the place in the document; a trace's events name edges by it."""

    index: int
    source: int
    target: int
    kind: EdgeKind
    priority: int
    condition: Expression | None
    codes: frozenset[str]

    def matches(self, code: str) -> bool:
        """Whether this error edge handles a failure with the code."""
        return not self.codes or code in self.codes


@dataclass(frozen=True, slots=True)
class GraphNode:
    """`index` is the place in the document; a trace's events name nodes by it.

    A map and a repeat have a `body`: what an item or a round is, drawn as a node without edges.
    `subject` is what the kind itself evaluates: a map's list, the moment that a sleep ends."""

    index: int
    code: str
    drawn: Node
    function: str  # empty for a node that needs no worker
    input: Template | None
    join: Join
    incoming: tuple[GraphEdge, ...]
    outgoing: tuple[GraphEdge, ...]
    parallel: tuple[GraphEdge, ...]
    choices: tuple[GraphEdge, ...]  # in the order of evaluation
    otherwise: GraphEdge | None
    errors: tuple[GraphEdge, ...]  # in the order of matching
    env: bytes  # the node's own env, a JSON object or empty
    body: GraphNode | None
    compensation: GraphNode | None
    subject: Template | None
    until: Expression | None
    foreign: bool  # whether the function is another app's

    @property
    def starts(self) -> bool:
        return not self.incoming


@dataclass(frozen=True, slots=True)
class Graph:
    """`ends` are the nodes that nothing follows when they succeed; their outputs are the trace's
    by default."""

    playbook_id: int
    snapshot_id: int
    drawn: Playbook
    nodes: tuple[GraphNode, ...]
    edges: tuple[GraphEdge, ...]
    output: Template | None
    starts: tuple[int, ...]
    ends: tuple[int, ...]
    by_code: dict[str, int]

    @property
    def full_name(self) -> str:
        return self.drawn.full_name


def compile_graph(drawn: Playbook, playbook_id: int = 0, snapshot_id: int = 0) -> Graph:
    """The graph of a playbook that `checks.check` found no error in."""
    by_code = {node.code: index for index, node in enumerate(drawn.nodes)}
    edges = tuple(_edge(index, edge, by_code) for index, edge in enumerate(drawn.edges))
    app = drawn.app
    nodes = tuple(_node(index, node, edges, app) for index, node in enumerate(drawn.nodes))
    return Graph(
        playbook_id,
        snapshot_id,
        drawn,
        nodes,
        edges,
        None if drawn.output is UNSET else compile_template(drawn.output),
        tuple(node.index for node in nodes if node.starts),
        tuple(node.index for node in nodes if len(node.errors) == len(node.outgoing)),
        by_code,
    )


def _edge(index: int, edge: Edge, by_code: dict[str, int]) -> GraphEdge:
    return GraphEdge(
        index,
        by_code[edge.source],
        by_code[edge.target],
        edge.kind,
        edge.priority,
        Expression(edge.when) if edge.kind is EdgeKind.CHOICE else None,
        frozenset(edge.codes),
    )


def _node(index: int, node: Node, edges: Sequence[GraphEdge], app: str) -> GraphNode:
    outgoing = tuple(edge for edge in edges if edge.source == index)
    by_priority = sorted(outgoing, key=lambda edge: edge.priority)  # stable: document order
    kinds = {kind: [edge for edge in by_priority if edge.kind is kind] for kind in EdgeKind}
    incoming = tuple(edge for edge in edges if edge.target == index)
    function = node.kind.function if isinstance(node.kind, Task) else ""
    return GraphNode(
        index=index,
        code=node.code,
        drawn=node,
        function=function,
        input=None if node.input is UNSET else compile_template(node.input),
        join=node.join,
        incoming=incoming,
        outgoing=outgoing,
        parallel=tuple(kinds[EdgeKind.PARALLEL]),
        choices=tuple(kinds[EdgeKind.CHOICE]),
        otherwise=next(iter(kinds[EdgeKind.OTHERWISE]), None),
        errors=tuple(kinds[EdgeKind.ERROR]),
        env=b"" if node.env is UNSET else of_value(node.env).data,
        body=_body(node, app),
        compensation=_compensation(node, app),
        subject=_subject(node),
        until=Expression(node.kind.until) if isinstance(node.kind, Repeat) else None,
        foreign=bool(function) and not function.startswith(f"{app}/"),
    )


def _body(node: Node, app: str) -> GraphNode | None:
    """One item of a map or one round of a repeat. A map's items have the node's options each; a
    repeat's rounds have none, for they are the repeat's as a whole."""
    if isinstance(node.kind, Map):
        return _node(
            0, replace(node, kind=node.kind.body, compensate=None, hook_after=False), (), app
        )
    if isinstance(node.kind, Repeat):
        callee = Subplaybook(node.kind.playbook, node.kind.snapshot_id)
        return _node(0, Node(node.code, callee, priority=node.priority), (), app)
    return None


def _compensation(node: Node, app: str) -> GraphNode | None:
    if node.compensate is None:
        return None
    return _node(
        0,
        Node(
            node.code,
            Task(node.compensate.function),
            input=node.compensate.input,
            timeout=node.timeout,
            retry=node.retry,
            priority=node.priority,
            explicit_priority=node.explicit_priority,
        ),
        (),
        app,
    )


def _subject(node: Node) -> Template | None:
    if isinstance(node.kind, Map):
        return compile_template(node.kind.over)
    if isinstance(node.kind, Sleep) and node.kind.until is not None:
        return compile_template(node.kind.until)
    return None


def passes_whole(template: Template | None) -> Reference | None:
    """The reference that a mapping consists of, if it hands over one root unchanged."""
    if isinstance(template, Reference) and template.whole:
        return template
    return None
