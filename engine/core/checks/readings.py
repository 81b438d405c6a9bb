"""Mappings and conditions: their syntax, and references that lead somewhere."""

from __future__ import annotations

import difflib
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from engine.core.expressions import Expression, ExpressionSyntaxError
from engine.core.findings import Finding, shorten
from engine.core.playbook import UNSET, EdgeKind, Map, Playbook, Repeat, Sleep
from engine.core.references import Reference, Root
from engine.core.templates import (
    MAX_DEPTH,
    Template,
    TemplateSyntaxError,
    compile_template,
    references_of,
)

ITEM = frozenset((Root.ITEM, Root.INDEX))  # in the input of a map
ROUND = frozenset((Root.INDEX,))  # in the until of a repeat


@dataclass(frozen=True, slots=True)
class _Reader:
    """Where something is read: `owner` is the node, empty in the playbook's output; `visible`
    are the nodes that may have run before; `local` what only this place has."""

    owner: str
    codes: set[str]
    visible: set[str]
    local: frozenset[Root] = frozenset()

    def after(self) -> _Reader:
        """The same node once it has run: it sees itself."""
        return _Reader(self.owner, self.codes, self.visible | {self.owner}, self.local)

    def with_local(self, local: frozenset[Root]) -> _Reader:
        return _Reader(self.owner, self.codes, self.visible, local)


def check_readings(playbook: Playbook, ancestors: dict[str, set[str]]) -> Iterator[Finding]:
    """`ancestors` says for each node which come before it; nothing for a graph with a cycle."""
    codes = {node.code for node in playbook.nodes}
    for node in playbook.nodes:
        path, kind = f"nodes.{node.code}", node.kind
        reader = _Reader(node.code, codes, ancestors.get(node.code, codes))
        if node.input is not UNSET:
            here = reader.with_local(ITEM) if isinstance(kind, Map) else reader
            yield from _template(node.input, f"{path}.input", here)
        if isinstance(kind, Map):
            yield from _template(kind.over, f"{path}.map.over", reader)
        elif isinstance(kind, Sleep) and kind.until is not None:
            yield from _template(kind.until, f"{path}.until", reader)
        elif isinstance(kind, Repeat):
            here = reader.after().with_local(ROUND)
            yield from _condition(kind.until, f"{path}.repeat.until", here)
        if node.compensate is not None and node.compensate.input is not UNSET:
            yield from _template(node.compensate.input, f"{path}.compensate.input", reader.after())
    for index, edge in enumerate(playbook.edges):
        if edge.kind is EdgeKind.CHOICE:
            reader = _Reader(edge.source, codes, ancestors.get(edge.source, codes)).after()
            yield from _condition(edge.when, f"edges[{index}].when", reader)
    if playbook.output is not UNSET:
        yield from _template(playbook.output, "output", _Reader("", codes, codes))


def _condition(text: str, path: str, reader: _Reader) -> Iterator[Finding]:
    try:
        condition = Expression(text)
    except ExpressionSyntaxError as error:
        message = f"{error} (at {error.position + 1})"
        yield Finding("EXPRESSION_INVALID", path, message, shorten(text), _AT)
        return
    for reference in condition.references:
        yield from _reference(reference, path, reader)


_AT = "mend it at the place that the message names; docs/playbook.md lists what there is"


def _template(value: Any, path: str, reader: _Reader) -> Iterator[Finding]:
    try:
        template: Template = compile_template(value)
    except TemplateSyntaxError as error:
        where = (f"{path}.{error.path}" if error.path else path).replace(".[", "[")
        if not error.text:
            code, mend = "REFERENCE_INVALID", f"nest at most {MAX_DEPTH} deep"
        elif "${" in error.text:
            code, mend = "EXPRESSION_INVALID", _AT
        else:
            code = "REFERENCE_INVALID"
            mend = "to write a text that begins with $, begin it with $\\ instead"
        yield Finding(code, where, str(error), shorten(error.text), mend)
        return
    for reference in references_of(template):
        yield from _reference(reference, path, reader)


def _reference(reference: Reference, path: str, reader: _Reader) -> Iterator[Finding]:
    text, code = reference.text, reference.code
    if reference.root in _PLACES and reference.root not in reader.local:
        where, mend = _PLACES[reference.root]
        message = f"{text} means something {where} only"
        yield Finding("REFERENCE_OUT_OF_PLACE", path, message, text, mend)
    elif reference.root is Root.LAST and not reader.owner:
        message = "$$ has no meaning in the playbook's output"
        yield Finding("REFERENCE_OUT_OF_PLACE", path, message, text, "name the node: $.<node>")
    elif reference.root is Root.NODE and code not in reader.codes:
        message = f"{text} names a node that does not exist"
        known = sorted(reader.codes)
        close = difflib.get_close_matches(code, known, 1)
        mend = f"did you mean $.{close[0]}?" if close else f"nodes are {', '.join(known)}"
        yield Finding("REFERENCE_UNKNOWN", path, message, text, shorten(mend, 200))
    elif reference.root is Root.NODE and code not in reader.visible:
        message = f"{code} cannot have run before {reader.owner}: no way leads from it to there"
        mend = f"draw an edge that leads from {code} to {reader.owner}, or read another node"
        yield Finding("REFERENCE_NOT_ANCESTOR", path, message, text, mend)


_PLACES = {
    Root.ITEM: ("in the input of a map", "name what you mean: $$$, $$ or $.<node>"),
    Root.INDEX: ("in the input of a map and the until of a repeat", "write the number itself"),
    Root.HERE: ("inside a filter [?( … )]", "name what you mean: $$$, $$ or $.<node>"),
}
