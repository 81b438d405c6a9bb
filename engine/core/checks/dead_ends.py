"""What can be seen from the graph alone to lead nowhere: nodes that never run, and calls of a
playbook by itself that never come to an end."""

from __future__ import annotations

from collections.abc import Iterator

from engine.core.checks.doubts import Doubts
from engine.core.checks.routes import Routes
from engine.core.checks.shadows import dead_edges
from engine.core.findings import Finding, shorten
from engine.core.playbook import Kind, Map, Node, Playbook, Repeat, Subplaybook


def dead_ends(playbook: Playbook, doubts: Doubts) -> Iterator[Finding]:
    """In a graph with doubts no node is certain to run, and none certain not to."""
    if doubts.edges:
        yield from _recursion(playbook, None)
        return
    routes = Routes(playbook, dead_edges(playbook))
    yield from _unreachable(routes)
    yield from _recursion(playbook, routes)


def _unreachable(routes: Routes) -> Iterator[Finding]:
    for code, others in routes.never():
        message = f"{code} can never run: none of the edges to it can ever be taken"
        if others:
            message += f"; nor can {', '.join(others)} after it"
        mend = "change the conditions or priorities of these edges, or remove the node"
        message = shorten(message, 300)
        yield Finding("NODE_UNREACHABLE", f"nodes.{code}", message, code, mend, warning=True)


def _recursion(playbook: Playbook, routes: Routes | None) -> Iterator[Finding]:
    """A pinned snapshot is an older one, so that it is no circle by itself."""
    for node in playbook.nodes:
        if playbook.full_name not in _calls(node.kind):
            continue
        path, name = f"nodes.{node.code}", playbook.full_name
        if routes is not None and routes.always_runs(node.code) and not isinstance(node.kind, Map):
            message = f"{node.code} calls {name} itself in every run, so that no run can end"
            mend = f"lead to {node.code} by an edge with when, or use repeat or map"
            yield Finding("RECURSION", path, message, name, mend)
        else:
            message = f"{node.code} calls {name} itself; 16 calls deep it fails"
            mend = "see that its condition ends the recursion, or use repeat or map"
            yield Finding("RECURSION", path, message, name, mend, warning=True)


def certain_calls(playbook: Playbook) -> list[Node]:
    """The nodes that call a playbook in every run which no unhandled failure ends before. A map
    may have nothing to do."""
    calls = [node for node in playbook.nodes if isinstance(node.kind, Subplaybook | Repeat)]
    if not calls:
        return []
    try:
        routes = Routes(playbook, dead_edges(playbook))
    except ValueError:
        return []
    return [node for node in calls if routes.always_runs(node.code)]


def _calls(kind: Kind) -> list[str]:
    """The playbooks that are called by their active version."""
    body = kind.body if isinstance(kind, Map) else kind
    if isinstance(body, Subplaybook | Repeat) and not body.snapshot_id:
        return [body.playbook]
    return []
