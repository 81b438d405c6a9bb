"""How far a trace has come, told on the nodes and edges of its playbook."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from enum import StrEnum

from cli.drawing.states import state_word
from cli.output import age
from engine.core.playbook import EdgeKind, Playbook
from magicflow.client import status_name
from magicflow.v1.event_pb2 import Event
from magicflow.v1.trace_pb2 import NodeState, NodeStatus, Trace

_ITEM = re.compile(r"\[\d+\]")
_BROKEN = ("FAILED", "TIMED_OUT")
_SETTLED = ("SUCCEEDED", "SKIPPED", "CANCELLED", *_BROKEN)


class Passage(StrEnum):
    """What became of an edge."""

    OPEN = "open"
    TAKEN = "taken"
    DEAD = "dead"


@dataclass(frozen=True, slots=True)
class Mark:
    """What a trace says of a node: its state, what runs inside it, where that failed."""

    state: str
    note: str = ""
    failed: str = ""
    facts: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Progress:
    """`marks` are by node code; `passages` stand as the playbook's edges do."""

    state: str
    headline: str
    failure: str
    marks: dict[str, Mark]
    passages: tuple[Passage, ...]


def progress_of(playbook: Playbook, trace: Trace, events: Iterable[Event] = ()) -> Progress:
    """`events` tell which edges were taken; without them only the states of nodes do."""
    inner: dict[str, list[NodeState]] = {}
    for node in trace.nodes:
        root = re.split(r"[/\[:]", node.path, maxsplit=1)[0]
        inner.setdefault(root, []).append(node)
    marks = {node.path: _mark(node, inner[node.path]) for node in trace.nodes if node.path in inner}
    return Progress(
        status_name(trace.status),
        f"{state_word(status_name(trace.status))} · {trace.trace_id}",
        _failure(trace) if trace.HasField("failure") else "",
        marks,
        _passages(playbook, marks, _taken(events)),
    )


def node_state(node: NodeState) -> str:
    """`SUCCEEDED`, `FAILED`, …; the bare number of a state that this program does not know."""
    if node.status not in NodeStatus.values():
        return str(node.status)
    return NodeStatus.Name(node.status).removeprefix("NODE_STATUS_")


def _failure(owner: Trace | NodeState) -> str:
    failure = owner.failure
    where = f" at {failure.node}" if failure.node else ""
    return f"{failure.code}{where}: {failure.message}"


def _mark(node: NodeState, family: list[NodeState]) -> Mark:
    children = [other for other in family if other.path != node.path]
    return Mark(
        node_state(node),
        ", ".join(_notes(node, children)),
        _failed_inside(node, children),
        tuple(_facts(node)),
    )


def _notes(node: NodeState, children: list[NodeState]) -> Iterator[str]:
    """`3/5 items, 1 failed`, `round 3`, `2/4 nodes`, `attempt 2`, `undone`."""
    rests = {child.path.removeprefix(node.path): node_state(child) for child in children}
    items = [state for rest, state in rests.items() if _ITEM.fullmatch(rest)]
    steps = [state for rest, state in rests.items() if re.fullmatch(r"/[^/\[:]+", rest)]
    if items and node.kind == "repeat":
        yield f"round {len(items)}"
    elif items:
        yield f"{items.count('SUCCEEDED')}/{len(items)} items"
    elif steps:
        yield f"{sum(state in ('SUCCEEDED', 'SKIPPED') for state in steps)}/{len(steps)} nodes"
    broken = sum(state in _BROKEN for state in items or steps)
    if broken:
        yield f"{broken} failed"
    if node.attempt > 1:
        yield f"attempt {node.attempt}"
    if ":compensate" in rests:
        undone = rests[":compensate"]
        yield "undone" if undone == "SUCCEEDED" else f"undoing {state_word(undone)}"


def _failed_inside(node: NodeState, children: list[NodeState]) -> str:
    """The path of the innermost node that failed, when it is not the node itself."""
    if node.failure.node not in ("", node.path):
        return node.failure.node
    broken = [child.path for child in children if node_state(child) in _BROKEN]
    return max(broken, key=len, default="")


def _facts(node: NodeState) -> Iterator[str]:
    if node.HasField("failure"):
        yield _failure(node)
    if node.HasField("wait"):
        until = ""
        if node.wait.HasField("until"):
            until = f" until {node.wait.until.ToDatetime().isoformat(' ', 'seconds')} UTC"
        yield f"waits{until}: {node.wait.message}"
    if node.HasField("ended_at") and node.HasField("started_at"):
        took = node.ended_at.ToMilliseconds() - node.started_at.ToMilliseconds()
        yield f"took {age(max(0, took))}"
    if node.worker:
        yield f"worker {node.worker}"


def _taken(events: Iterable[Event]) -> dict[str, list[str]]:
    """Where each node went on to, by what was said of it last."""
    found: dict[str, list[str]] = {}
    for event in events:
        if event.WhichOneof("what") == "node_succeeded":
            found[event.node_succeeded.node] = list(event.node_succeeded.taken)
        elif event.WhichOneof("what") == "node_failed":
            target = event.node_failed.taken
            found[event.node_failed.node] = [target] if target else []
    return found


def _passages(
    playbook: Playbook, marks: dict[str, Mark], taken: dict[str, list[str]]
) -> tuple[Passage, ...]:
    """Open is also what cannot be told: events name targets, and of two choices or error edges
    to the same target either may have been the one."""
    passages = []
    for edge in playbook.edges:
        state = marks[edge.source].state if edge.source in marks else "PENDING"
        fits = (edge.kind is EdgeKind.ERROR) == (state in _BROKEN)
        if state not in _SETTLED:
            passages.append(Passage.OPEN)
        elif state in ("SKIPPED", "CANCELLED") or not fits:
            passages.append(Passage.DEAD)
        elif edge.kind is EdgeKind.PARALLEL:
            passages.append(Passage.TAKEN)
        else:
            passages.append(_chosen(playbook, edge.source, edge.target, state, taken))
    return tuple(passages)


def _chosen(
    playbook: Playbook, source: str, target: str, state: str, taken: dict[str, list[str]]
) -> Passage:
    if source not in taken:
        return Passage.OPEN
    rivals = [
        edge
        for edge in playbook.edges
        if (edge.source, edge.target) == (source, target)
        and (edge.kind is EdgeKind.ERROR) == (state in _BROKEN)
    ]
    went = taken[source].count(target)
    if went == 0:
        return Passage.DEAD
    return Passage.TAKEN if went == len(rivals) else Passage.OPEN
