"""What is drawn: the nodes and edges of a playbook with the words that stand on them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from enum import StrEnum

from engine.core.playbook import (
    Edge,
    EdgeKind,
    Hook,
    Join,
    Kind,
    Map,
    Node,
    Playbook,
    Repeat,
    Sleep,
    Subplaybook,
    Task,
    kind_name,
)
from engine.document.durations import format_duration


class Style(StrEnum):
    PARALLEL = "parallel"
    CHOICE = "choice"
    OTHERWISE = "otherwise"
    ERROR = "error"


_STYLES = {
    EdgeKind.PARALLEL: Style.PARALLEL,
    EdgeKind.CHOICE: Style.CHOICE,
    EdgeKind.OTHERWISE: Style.OTHERWISE,
    EdgeKind.ERROR: Style.ERROR,
}


@dataclass(frozen=True, slots=True)
class Shape:
    """A node. `callee` is what it calls or waits for; `facts` are sentences for a closer look."""

    code: str
    kind: str
    callee: str
    join_any: bool
    facts: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Arrow:
    """An edge between two shapes, named by their places. A parallel edge has no label.

    `sentence` says the whole of it, `gather to deep when $.count.lines > 1000`."""

    source: int
    target: int
    style: Style
    label: str
    sentence: str


@dataclass(frozen=True, slots=True)
class Drawing:
    """`arrows` stand in document order: their places are those of the playbook's edges."""

    title: str
    description: str
    shapes: tuple[Shape, ...]
    arrows: tuple[Arrow, ...]


def drawing_of(playbook: Playbook, snapshot: int = 0) -> Drawing:
    """The drawing of a playbook without errors; `snapshot` is told in the title."""
    places = {node.code: place for place, node in enumerate(playbook.nodes)}
    choices = Counter(edge.source for edge in playbook.edges if edge.kind is EdgeKind.CHOICE)
    return Drawing(
        f"{playbook.full_name}@{snapshot}" if snapshot else playbook.full_name,
        playbook.description,
        tuple(_shape(node, playbook.app) for node in playbook.nodes),
        tuple(_arrow(edge, places, choices[edge.source] > 1) for edge in playbook.edges),
    )


def _shape(node: Node, app: str) -> Shape:
    return Shape(
        node.code,
        kind_name(node.kind),
        _callee(node.kind, app),
        node.join is Join.ANY,
        tuple(_facts(node, app)),
    )


def _callee(kind: Kind, app: str) -> str:
    match kind:
        case Task(function):
            return _near(function, app)
        case Subplaybook(name, snapshot) | Repeat(name, snapshot):
            return _near(name, app) + (f"@{snapshot}" if snapshot else "")
        case Map(body=body):
            return _callee(body, app)
        case Hook(timeout) if timeout:
            return f"up to {format_duration(timeout)}"
        case Sleep(duration, until):
            return format_duration(duration) if until is None else f"until {until}"
    return ""


def _near(name: str, app: str) -> str:
    """Names of the playbook's own app are written without it, as in documents."""
    return name.removeprefix(f"{app}/")


def _facts(node: Node, app: str) -> Iterator[str]:
    if node.description:
        yield node.description
    yield from _kind_facts(node.kind)
    if node.hook_after:
        yield "then waits for a signal"
    if node.join is Join.ANY:
        yield "join any: runs as soon as one edge is taken"
    yield from _limits(node)
    if node.retry.attempts > 1:
        yield f"up to {node.retry.attempts} attempts"
    if node.own_priority is not None:
        yield f"priority {node.own_priority}"
    if node.compensate is not None:
        yield f"undone by {_near(node.compensate.function, app)}"
    if node.tags:
        yield f"tags: {', '.join(node.tags)}"


def _kind_facts(kind: Kind) -> Iterator[str]:
    match kind:
        case Map(over=over, concurrency=concurrency):
            yield f"for each of {over}"
            if concurrency:
                yield f"{concurrency} at once"
            if kind.tolerate_count:
                yield f"tolerates {kind.tolerate_count} failures"
            if kind.tolerate_percent:
                yield f"tolerates {kind.tolerate_percent:g} % failures"
        case Repeat(until=until, max=most):
            yield f"until {until}"
            yield f"at most {most} rounds"


def _limits(node: Node) -> Iterator[str]:
    for name in ("timeout", "queue_timeout", "total_timeout", "heartbeat"):
        limit = getattr(node, name)
        if limit:
            yield f"{name.replace('_', ' ')} {format_duration(limit)}"


def _arrow(edge: Edge, places: dict[str, int], several: bool) -> Arrow:
    label, words = _words(edge, several)
    sentence = f"{edge.source} to {edge.target}{words}"
    return Arrow(places[edge.source], places[edge.target], _STYLES[edge.kind], label, sentence)


def _words(edge: Edge, several: bool) -> tuple[str, str]:
    """Label and end of the sentence. The priority is told where it decides something."""
    condition = " ".join(edge.when.split())
    ranked = several or edge.priority != 0
    match edge.kind:
        case EdgeKind.CHOICE if ranked:
            return f"{edge.priority}: {condition}", f" when {condition} (priority {edge.priority})"
        case EdgeKind.CHOICE:
            return condition, f" when {condition}"
        case EdgeKind.OTHERWISE:
            return "otherwise", " otherwise"
        case EdgeKind.ERROR:
            codes = f" {', '.join(edge.codes)}" if edge.codes else ""
            return _shorthand(edge.codes) or f"on error{codes}", f" on error{codes}"
    return "", ""


def _shorthand(codes: tuple[str, ...]) -> str:
    """Documents write `on: timeout` for all codes of that kind."""
    if codes == ("REJECTED",):
        return "on rejected"
    several = len(codes) > 1 and all(code.endswith("TIMEOUT") for code in codes)
    return "on timeout" if several else ""
