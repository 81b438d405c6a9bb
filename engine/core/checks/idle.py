"""What is written and can never have an effect: options of nodes that do not work that way, and
edges for failures that their source does not have."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Set

from engine.core.failure import Code
from engine.core.findings import Finding
from engine.core.playbook import (
    Edge,
    EdgeKind,
    Hook,
    Map,
    Node,
    Nop,
    Playbook,
    Retry,
    Sleep,
    Task,
    kind_name,
)

OF_WORK = ("timeout", "total_timeout", "retry", "compensate")
OF_WORKERS = ("queue_timeout", "heartbeat", "priority", "before", "after", "env", "affinity")


def idle_options(playbook: Playbook, given: Mapping[str, Set[str]] | None) -> Iterator[Finding]:
    """Options that could never have an effect on a node of this kind. `given` names those that
    each node is written with; without it those that are not as by default."""
    for node in playbook.nodes:
        written = _changed(node) if given is None else given.get(node.code, frozenset())
        kind, path = kind_name(node.kind), f"nodes.{node.code}"
        for option in _idle(node):
            if option in written:
                message = f"{option} has no effect on a node of kind {kind}"
                yield Finding(
                    "OPTION_WITHOUT_EFFECT", f"{path}.{option}", message, mend="remove it"
                )
        works = not isinstance(node.kind, Nop | Hook | Sleep)
        if works and node.retry.attempts == 1 and node.retry != Retry():
            message = "retry has no effect with one attempt, which is the default"
            mend = "write attempts: 2 or more, or remove it"
            yield Finding("OPTION_WITHOUT_EFFECT", f"{path}.retry", message, mend=mend)


def _idle(node: Node) -> Iterator[str]:
    if isinstance(node.kind, Nop | Hook | Sleep):
        yield from OF_WORK
    if not _has_workers(node):
        yield from OF_WORKERS


def _has_workers(node: Node) -> bool:
    body = node.kind.body if isinstance(node.kind, Map) else node.kind
    return isinstance(body, Task)


def _changed(node: Node) -> set[str]:
    plain = Node(node.code, node.kind)
    options = {
        name for name in (*OF_WORK, *OF_WORKERS) if getattr(node, name) != getattr(plain, name)
    }
    return options | {"priority"} if node.explicit_priority is True else options


# Failures that the engine alone makes out. Those inside of calls are those of the calls, too.

_TIMES = {
    Code.TIMEOUT: "timeout",
    Code.TOTAL_TIMEOUT: "total_timeout",
    Code.QUEUE_TIMEOUT: "queue_timeout",
    Code.HEARTBEAT_TIMEOUT: "heartbeat",
}
_MADE_OUT = frozenset((*_TIMES, Code.HOOK_TIMEOUT, Code.REJECTED))


def idle_edges(playbook: Playbook, untold: frozenset[int]) -> Iterator[Finding]:
    """Error edges for timeouts and rejections that their source does not have: an error after a
    nop, a warning after what may fail with the same code by itself or by hand."""
    nodes = {node.code: node for node in playbook.nodes}
    for index, edge in enumerate(playbook.edges):
        node = nodes.get(edge.source)
        if index in untold or node is None or not _never_matches(edge, node):
            continue
        rejected = set(edge.codes) == {Code.REJECTED}
        message = f"{node.code} can never {'be rejected' if rejected else 'time out'}"
        mend = "remove the edge"
        warning = not isinstance(node.kind, Nop)
        if warning:
            message = f"nothing lets {node.code} {'be rejected' if rejected else 'time out'}"
            mend = f"{'wait for a signal' if rejected else 'give it a timeout'}, or {mend}"
        yield Finding("EDGE_NEVER_TAKEN", f"edges[{index}]", message, "", mend, warning)


def _never_matches(edge: Edge, node: Node) -> bool:
    if edge.kind is not EdgeKind.ERROR or not edge.codes or not _MADE_OUT.issuperset(edge.codes):
        return False
    if not isinstance(node.kind, Nop | Sleep | Hook) and not _has_workers(node):
        return False
    return not _has(node, edge.codes)


def _has(node: Node, codes: tuple[str, ...]) -> bool:
    """Whether the engine may make out one of the failures."""
    possible = {code for code, option in _TIMES.items() if getattr(node, option)}
    if isinstance(node.kind, Hook) and node.kind.timeout:
        possible.add(Code.HOOK_TIMEOUT)
    if isinstance(node.kind, Hook) or node.hook_after:
        possible.add(Code.REJECTED)
    return not possible.isdisjoint(codes)
