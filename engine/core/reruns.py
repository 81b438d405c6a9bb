"""What a rerun takes over from the trace that it repeats (decision 0014).

A node that does not run again is as it was: its outcome, the way that it chose, the env keys that
it set, or that somebody skipped it.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import Any

import msgspec

from engine.core.failure import Failure
from engine.core.graph import Graph, GraphEdge, GraphNode
from engine.core.payload import Payload
from engine.core.refusal import Refused
from engine.core.state import Graphs, NodeState, Setters, TraceState, own_node
from engine.core.status import NodeStatus

Outcome = Payload | Failure
"""What is taken over of a node, on its way to the new trace's owner: what `pack` makes."""

PACKED = "application/vnd.magicflow.taken"
_AFTER_CODE = re.compile(r"[/\[:]")  # what follows a node's code in a path


class Taken(msgspec.Struct, frozen=True, array_like=True):
    """Of a node that was skipped by hand there is neither output nor failure. `chosen` is the
    choice edge that it took, -1 where its conditions are to be evaluated. `env` has for every key
    that it set the value, and its rank among the nodes that set the key."""

    output: Payload | None = None
    failure: Failure | None = None
    chosen: int = -1
    env: dict[str, tuple[int, Any]] = {}


_encoder = msgspec.msgpack.Encoder()
_decoder = msgspec.msgpack.Decoder(Taken)


def pack(taken: Taken) -> Outcome:
    """The plain output or failure wherever that says all."""
    plain = taken.output if taken.failure is None else taken.failure
    if plain is None or taken.env or taken.chosen >= 0:
        return Payload(_encoder.encode(taken), PACKED)
    if isinstance(plain, Payload) and plain.content_type == PACKED:  # a function's own doing
        return Payload(_encoder.encode(taken), PACKED)
    return plain


def unpack(outcome: Outcome) -> Taken:
    """The other way."""
    if isinstance(outcome, Failure):
        return Taken(failure=outcome)
    return _decoder.decode(outcome.data) if outcome.content_type == PACKED else Taken(outcome)


def outcomes_before(
    graphs: Graphs, former: TraceState, snapshot: Graph, node: str
) -> dict[int, Outcome]:
    """What is taken over of every settled node that does not come after `node`, by the place of
    the node of the same code in the snapshot that runs now. Nodes that were skipped because no
    edge to them was taken follow from the others.

    Errors: `Refused`.
    """
    if not node:
        return {}
    anew = _from(snapshot, _start(snapshot, node))
    graph = graphs.graph(former.snapshot_id)
    places: dict[int, int] = {}  # of the former trace, to those of the snapshot
    for index, (drawn, state) in enumerate(zip(graph.nodes, former.nodes, strict=True)):
        place = snapshot.by_code.get(drawn.code)
        if place is not None and place not in anew and _is_kept(drawn, state):
            places[index] = place
    _check_undone(graph, former, places, node)
    env = _env(former, places)
    return {
        place: pack(
            Taken(
                *_outcome(former.nodes[index]),
                _chosen(graph, former, index, snapshot, place),
                env.get(index, {}),
            )
        )
        for index, place in places.items()
    }


def setters(taken: Mapping[int, Taken]) -> Setters:
    """Who has set which key of the env, in the order in which it was done."""
    given: dict[str, list[tuple[int, int, Any]]] = {}
    for place, one in taken.items():
        for key, (rank, value) in one.env.items():
            given.setdefault(key, []).append((rank, place, value))
    return {
        key: [(place, value) for _, place, value in sorted(found, key=lambda one: one[0])]
        for key, found in sorted(given.items())
    }


def _start(snapshot: Graph, node: str) -> int:
    start = snapshot.by_code.get(node)
    if start is not None:
        return start
    own = _AFTER_CODE.split(node)[0]
    if own in snapshot.by_code:
        message = f"{node} is not a node of the trace's own playbook: no rerun can begin there"
        raise Refused("NODE_NOT_FOUND", message, f"rerun it from {own}, which it belongs to")
    codes = ", ".join(drawn.code for drawn in snapshot.nodes[:20])
    message = f"{snapshot.full_name}@{snapshot.snapshot_id} has no node {node}"
    raise Refused("NODE_NOT_FOUND", message, f"its nodes are {codes}")


def _from(graph: Graph, start: int) -> set[int]:
    """The node and everything that comes after it."""
    found, open_ = {start}, [start]
    while open_:
        for edge in graph.nodes[open_.pop()].outgoing:
            if edge.target not in found:
                found.add(edge.target)
                open_.append(edge.target)
    return found


def _is_kept(drawn: GraphNode, state: NodeState) -> bool:
    if state.status is NodeStatus.SKIPPED:
        return drawn.starts or bool(state.taken) or state.unresolved > 0  # by hand
    if state.status is NodeStatus.SUCCEEDED:
        return state.output is not None
    return state.failure is not None and state.handled


def _outcome(state: NodeState) -> tuple[Payload | None, Failure | None]:
    if state.status is NodeStatus.SUCCEEDED:
        return state.output, None
    return None, None if state.status is NodeStatus.SKIPPED else state.failure


def _check_undone(graph: Graph, former: TraceState, kept: Iterable[int], node: str) -> None:
    undone = {own_node(former, *place) for scope in former.scopes for place in scope.undo}
    names = ", ".join(graph.nodes[index].code for index in sorted(undone & set(kept)))
    if names:
        message = f"a rerun from {node} would rest on {names}, which compensations have undone"
        raise Refused("TRACE_STATE", message, "rerun it from the start, without a node")


def _env(former: TraceState, kept: Iterable[int]) -> dict[int, dict[str, tuple[int, Any]]]:
    """By node of the former trace. One that began under a version that did not keep who set a key
    counts as if its first node had set them all."""
    setters = former.setters
    if setters is None:
        first = min(kept, default=-1)
        setters = {key: [(first, value)] for key, value in former.env.items()}
    found: dict[int, dict[str, tuple[int, Any]]] = {}
    for key, given in setters.items():
        for rank, (index, value) in enumerate(given):
            found.setdefault(index, {})[key] = (rank, value)
    return found


def _chosen(graph: Graph, former: TraceState, index: int, snapshot: Graph, place: int) -> int:
    """The edge of the snapshot that stands for the one that was chosen, if the node chooses among
    the same as before."""
    node = graph.nodes[index]
    then, now = _branches(node), _branches(snapshot.nodes[place])
    if [_meaning(graph, edge) for edge in then] != [_meaning(snapshot, edge) for edge in now]:
        return -1
    for edge, same in zip(then, now, strict=True):
        beside = sum(other.target == edge.target for other in node.parallel)
        if former.nodes[edge.target].taken.count(index) > beside:
            return same.index
    return -1


def _branches(node: GraphNode) -> list[GraphEdge]:
    """In the order of evaluation."""
    return [*node.choices, *([node.otherwise] if node.otherwise is not None else [])]


def _meaning(graph: Graph, edge: GraphEdge) -> tuple[str, str]:
    condition = "" if edge.condition is None else edge.condition.text
    return graph.nodes[edge.target].code, condition
