"""The publishing checks that need nothing but the playbook. Functions, grants and other
playbooks are checked by the registry, which knows them."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Iterator, Mapping, Set
from graphlib import CycleError, TopologicalSorter
from typing import Any

import jsonschema_rs

from engine.core.checks.dead_ends import dead_ends
from engine.core.checks.doubts import doubts_of
from engine.core.checks.idle import idle_edges, idle_options
from engine.core.checks.readings import check_readings
from engine.core.checks.shadows import shadows
from engine.core.findings import Finding, shorten
from engine.core.payload import of_value
from engine.core.playbook import LIMITS, UNSET, Edge, EdgeKind, Limits, Playbook
from engine.core.state import MAX_ENV, fits_state


def check(
    playbook: Playbook,
    untold: frozenset[int] = frozenset(),
    given: Mapping[str, Set[str]] | None = None,
    limits: Limits = LIMITS,
) -> list[Finding]:
    """Every broken rule, in no particular order. Without an error among them the playbook
    compiles, and every trace of it ends.

    `untold` are places of edges whose kind or ends could not be read: nothing is reported that
    may follow from that alone. `given` names the options that each node is written with, for a
    playbook does not tell a default that was written from one that was not.
    """
    if excess(playbook, limits):
        return excess(playbook, limits)  # the rest is for graphs small enough to look at
    findings = list(_edges(playbook, untold))
    findings += _schemas(playbook)
    findings += _env(playbook)
    findings += idle_options(playbook, given)
    ancestors, cycle = _ancestors(playbook)
    findings += cycle
    findings += check_readings(playbook, ancestors)
    findings += _choices(playbook, untold)
    findings += idle_edges(playbook, untold)
    findings += dead_ends(playbook, doubts_of(playbook, untold))
    return findings


def excess(playbook: Playbook, limits: Limits) -> list[Finding]:
    """Where the playbook has more than it may; nothing else is then looked at."""
    return [
        Finding("BUDGET_EXCEEDED", name, f"{count} {name}; {limit} are allowed", mend=_SPLIT)
        for name, count, limit in (
            ("nodes", len(playbook.nodes), limits.nodes),
            ("edges", len(playbook.edges), limits.edges),
        )
        if count > limit
    ]


_SPLIT = "split it into several playbooks"


def _edges(playbook: Playbook, untold: frozenset[int]) -> Iterator[Finding]:
    codes = [node.code for node in playbook.nodes]
    known = set(codes)
    seen: dict[tuple[Any, ...], int] = {}
    otherwise: dict[str, int] = {}
    for index, edge in enumerate(playbook.edges):
        for end, code in (("from", edge.source), ("to", edge.target)):
            if code not in known:
                yield Finding(
                    "EDGE_DANGLING",
                    f"edges[{index}].{end}",
                    f"there is no node {code}",
                    code,
                    _suggest(code, codes),
                )
        if index in untold:
            continue
        same = (edge.source, edge.target, edge.kind, edge.when, edge.codes)
        if same in seen:
            message = f"the same edge stands at edges[{seen[same]}]"
            yield Finding("EDGE_DUPLICATE", f"edges[{index}]", message, mend="remove one of them")
        seen.setdefault(same, index)
        if edge.kind is EdgeKind.OTHERWISE:
            if edge.source in otherwise:
                first = otherwise[edge.source]
                message = f"{edge.source} has its otherwise at edges[{first}] already"
                mend = "keep one; give the other a when"
                yield Finding("OTHERWISE_TWICE", f"edges[{index}]", message, mend=mend)
            otherwise.setdefault(edge.source, index)
    deciding = {edge.source for edge in playbook.edges if edge.kind is EdgeKind.CHOICE}
    deciding |= {playbook.edges[index].source for index in untold}
    for source, index in otherwise.items():
        if source not in deciding and deciding <= known:
            message = f"{source} has an otherwise and no edge with when"
            mend = "remove otherwise: the edge is then always taken"
            yield Finding("OTHERWISE_ALONE", f"edges[{index}]", message, mend=mend)


def _suggest(code: str, codes: Iterable[str]) -> str:
    close = difflib.get_close_matches(code, list(codes), 1)
    return f"did you mean {close[0]}?" if close else "draw the node or remove the edge"


def _ancestors(playbook: Playbook) -> tuple[dict[str, set[str]], list[Finding]]:
    """For each node those that come before it; empty when the graph has a cycle. An edge that
    dangles may be meant to begin, or to end, anywhere."""
    codes = {node.code for node in playbook.nodes}
    before: dict[str, list[str]] = {node.code: [] for node in playbook.nodes}
    loose: set[str] = set()
    for edge in playbook.edges:
        if edge.target not in codes:
            loose |= codes if edge.source not in codes else {edge.source}
        elif edge.source in codes:
            before[edge.target].append(edge.source)
    try:
        order = list(TopologicalSorter(before).static_order())
    except CycleError as error:
        ring = error.args[1]
        closing = _edge_between(playbook.edges, ring[0], ring[1])
        message = f"the edges run in a circle: {' -> '.join(ring)}"
        mend = "remove one of these edges; to repeat a task after a failure use retry"
        return {}, [Finding("GRAPH_CYCLE", f"edges[{closing}]", message, mend=mend)]
    rootless = {edge.target for edge in playbook.edges if edge.source not in codes}
    ancestors: dict[str, set[str]] = {}
    for code in order:
        ancestors[code] = set(codes) if code in rootless else set(before[code])
        for source in before[code]:
            ancestors[code] |= ancestors[source]
    if loose:
        anywhere = loose.union(*(ancestors[code] for code in loose))
        ancestors = {code: known | anywhere for code, known in ancestors.items()}
    return ancestors, []


def _edge_between(edges: Iterable[Edge], source: str, target: str) -> int:
    return next(i for i, edge in enumerate(edges) if (edge.source, edge.target) == (source, target))


def _schemas(playbook: Playbook) -> Iterator[Finding]:
    for path, schema in (
        ("input", playbook.input_schema),
        ("output_schema", playbook.output_schema),
    ):
        if schema is UNSET:
            continue
        try:
            jsonschema_rs.validator_for(schema, offline=True)
        except (jsonschema_rs.ValidationError, ValueError) as error:
            message = f"not a valid JSON Schema: {getattr(error, 'message', error)}"
            mend = "a schema names types as in {type: object}; a $ref stays inside the document"
            yield Finding("SCHEMA_INVALID", path, message, mend=mend)


def _env(playbook: Playbook) -> Iterator[Finding]:
    if not fits_state(playbook.env):
        message = "an integer in the env needs more than 64 bits"
        yield Finding("VALUE_INVALID", "env", message, mend="write it as a string")
    size = len(of_value(playbook.env).data)
    if size > MAX_ENV:
        message = f"the env has {size} bytes; {MAX_ENV} are allowed"
        yield Finding("BUDGET_EXCEEDED", "env", message, mend="keep large data in an input")


def _choices(playbook: Playbook, untold: frozenset[int]) -> Iterator[Finding]:
    """Choice and error edges that can never be taken, where that can be proved."""
    for shadow in shadows(playbook):
        if {shadow.index, shadow.by} & untold:
            continue
        edge, path = playbook.edges[shadow.index], f"edges[{shadow.index}]"
        message = f"edges[{shadow.by}] is always taken before this one"
        if edge.kind is EdgeKind.CHOICE:
            mend = "change its condition or its priority"
            yield Finding("CHOICE_SHADOWED", f"{path}.when", message, shorten(edge.when), mend)
        else:
            seen, mend = ", ".join(edge.codes), "change its codes or its priority"
            yield Finding("CHOICE_SHADOWED", path, message, shorten(seen), mend, warning=True)
