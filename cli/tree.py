"""A trace as a tree of its nodes: states, times, and why something waits."""

from __future__ import annotations

import re
import time

from rich.console import Group, RenderableType
from rich.markup import escape
from rich.text import Text
from rich.tree import Tree

from cli.drawing.progress import node_state
from cli.drawing.states import look_of, state_word
from cli.output import age
from magicflow.client import status_name
from magicflow.payloads import from_payload, to_json
from magicflow.v1 import trace_pb2
from magicflow.v1.playbook_pb2 import Playbook


def trace_tree(trace: trace_pb2.Trace, playbook: Playbook | None) -> RenderableType:
    """Each node hangs under the source of its first incoming edge, further sources are named
    behind it; what runs inside a node hangs under that node. Without the playbook the nodes of
    the trace itself stand in a row."""
    status = status_name(trace.status)
    look = look_of(status)
    head = (
        f"[{look.paint.terminal}]{look.sign} {status}[/] "
        f"[bold]{trace.app}/{trace.playbook}[/]@{trace.snapshot_id} "
        f"[dim]{trace.trace_id}[/] {_span(trace.triggered_at, trace.ended_at)}"
    )
    tree = Tree(head, guide_style="dim")
    sources = _sources(playbook) | _enclosing({node.path for node in trace.nodes})
    branches: dict[str, Tree] = {}
    waiting = list(trace.nodes)
    while waiting:
        left = []
        for node in waiting:
            parents = sources.get(node.path, [])
            if parents and parents[0] not in branches:
                left.append(node)
                continue
            parent = branches[parents[0]] if parents else tree
            branches[node.path] = parent.add(_line(node, parents[1:]))
        if len(left) == len(waiting):
            break
        waiting = left
    parts: list[RenderableType] = [tree]
    if trace.HasField("failure"):
        failure = trace.failure
        where = f" at {failure.node}" if failure.node else ""
        parts.append(Text(f"{failure.code}{where}: {failure.message}", style="red"))
    if trace.HasField("output"):
        parts.append(Text(f"output: {_short(trace.output)}"))
    return Group(*parts)


def _sources(playbook: Playbook | None) -> dict[str, list[str]]:
    found: dict[str, list[str]] = {}
    for edge in playbook.edges if playbook is not None else ():
        parents = found.setdefault(edge.to, [])
        source = getattr(edge, "from")
        if source not in parents:
            parents.append(source)
    return found


def _enclosing(paths: set[str]) -> dict[str, list[str]]:
    """The node around each inner one: `each[3]` around `each[3]/resize`, `each` around that."""
    found: dict[str, list[str]] = {}
    for path in paths:
        outer = path
        while outer and (outer == path or outer not in paths):
            outer = outer[: max(map(outer.rfind, "/[:"))] if re.search(r"[/\[:]", outer) else ""
        if outer:
            found[path] = [outer]
    return found


def _line(node: trace_pb2.NodeState, others: list[str]) -> str:
    status = node_state(node)
    look = look_of(status)
    style = look.paint.terminal
    parts = [f"[{style}]{look.sign} {escape(node.path)}[/]"]
    if node.function:
        parts.append(f"[dim]{escape(node.function)}[/]")
    parts.append(f"[{style}]{state_word(status)}[/]")
    if node.HasField("started_at") and status not in ("PENDING", "SKIPPED"):
        parts.append(_span(node.started_at, node.ended_at))
    if node.attempt > 1:
        parts.append(f"attempt {node.attempt}")
    if node.HasField("failure"):
        parts.append(f"[red]{escape(node.failure.code)}: {escape(node.failure.message[:120])}[/]")
    if node.HasField("wait"):
        until = ""
        if node.wait.HasField("until"):
            left = node.wait.until.ToMilliseconds() - time.time() * 1_000
            until = f" in {age(max(0.0, left))}"
        parts.append(f"[yellow]{escape(node.wait.message)}{until}[/]")
    if others:
        parts.append(f"[dim](also after {', '.join(others)})[/]")
    return " ".join(parts)


def _span(start: object, end: object) -> str:
    begun = start.ToMilliseconds()  # type: ignore[attr-defined]
    ended = end.ToMilliseconds()  # type: ignore[attr-defined]
    if not begun:
        return ""
    length = (ended or time.time() * 1_000) - begun
    return f"[dim]{age(max(0.0, length))}[/]"


def _short(payload: object) -> str:
    value = from_payload(payload)  # type: ignore[arg-type]
    text = f"{len(value)} bytes" if isinstance(value, bytes) else to_json(value).decode()
    return text if len(text) <= 2_000 else text[:2_000] + "…"
