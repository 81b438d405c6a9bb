"""Where a node is in a trace: (scope, node) inside, a path outside.

`charge` is a node of the trace's own playbook, `pay/charge` one of the playbook that `pay`
calls, `each[3]` a map's item or a repeat's round, `each[3]/resize` a node of the playbook that
it runs, `reserve:compensate` what undoes `reserve`.
"""

from __future__ import annotations

import re

from engine.core.events import ScopeKind
from engine.core.state import ROOT, Graphs, TraceState

COMPENSATE = ":compensate"
_STEP = re.compile(r"([A-Za-z][A-Za-z0-9_]{0,63})(?:\[(\d{1,6})\])?")

Place = tuple[int, int]  # scope, node


def path_of(graphs: Graphs, state: TraceState, scope: int, node: int) -> str:
    """The node's path."""
    here = state.scopes[scope]
    if here.kind is ScopeKind.COMPENSATION:
        return path_of(graphs, state, *here.undo[node]) + COMPENSATE
    if here.kind is not ScopeKind.PLAYBOOK:
        return f"{path_of(graphs, state, here.parent, here.node)}[{node}]"
    code = graphs.graph(here.snapshot_id).nodes[node].code
    if scope == ROOT:
        return code
    return f"{path_of(graphs, state, here.parent, here.node)}/{code}"


def find(graphs: Graphs, state: TraceState, path: str) -> Place | None:
    """The place that a path names now; None where there is none (yet)."""
    root = graphs.graph(state.snapshot_id).by_code.get(path)
    if root is not None:
        return ROOT, root
    if path.endswith(COMPENSATE):
        return _compensation(graphs, state, path.removesuffix(COMPENSATE))
    scope = ROOT
    place: Place | None = None
    for step in path.split("/"):
        if place is not None:
            scope = state.scopes[place[0]].nodes[place[1]].scope
        place = _step(graphs, state, scope, step)
        if place is None:
            return None
    return place


def _step(graphs: Graphs, state: TraceState, scope: int, step: str) -> Place | None:
    match = _STEP.fullmatch(step)
    if match is None or scope < 0 or state.scopes[scope].kind is not ScopeKind.PLAYBOOK:
        return None
    here = state.scopes[scope]
    index = graphs.graph(here.snapshot_id).by_code.get(match.group(1))
    if index is None or match.group(2) is None:
        return None if index is None else (scope, index)
    inner = here.nodes[index].scope
    item = int(match.group(2))
    if inner < 0 or state.scopes[inner].kind is ScopeKind.PLAYBOOK:
        return None
    return (inner, item) if item < len(state.scopes[inner].nodes) else None


def _compensation(graphs: Graphs, state: TraceState, path: str) -> Place | None:
    if path.endswith(COMPENSATE):
        return None  # nothing undoes a compensation; and a path from outside may be of any length
    undone = find(graphs, state, path)
    for scope, here in enumerate(state.scopes):
        if here.kind is ScopeKind.COMPENSATION and undone in here.undo:
            return scope, here.undo.index(undone)
    return None


def is_reached(state: TraceState, scope: int) -> bool:
    """Whether the scope is the one that its node runs now, and so on up to the trace itself: a
    call that was made again has left its former scopes behind."""
    here = state.scopes[scope]
    while here.parent >= 0:
        if state.scopes[here.parent].nodes[here.node].scope != scope:
            return False
        scope, here = here.parent, state.scopes[here.parent]
    return True


def depth_of(state: TraceState, scope: int) -> int:
    """How many playbooks are called inside each other down to the scope; the trace's own is 1."""
    depth, here = 0, state.scopes[scope]
    while True:
        depth += here.kind is ScopeKind.PLAYBOOK
        if here.parent < 0:
            return depth
        here = state.scopes[here.parent]
