"""The publishing checks that need the schemas of functions and playbooks: references into
outputs, values for inputs, comparisons.

Only what is certain is reported: an error is wrong whenever it is evaluated; a warning is about
what never has an effect, or is missing on some route through the graph. Where a schema is silent
or not followed, so are these checks (`schemas`).
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from engine.core.checks.clashes import clash
from engine.core.checks.doubts import doubts_of
from engine.core.checks.fitting import Fitting, type_clash
from engine.core.checks.flow import Flow, Known, Signature, View, compiled
from engine.core.checks.lookups import Lookups
from engine.core.checks.routes import END, Routes
from engine.core.checks.schemas import BOOLEAN, Budget, Type, declared, of_kinds
from engine.core.checks.shadows import dead_edges
from engine.core.expressions import Expression, ExpressionSyntaxError
from engine.core.findings import Finding, shorten
from engine.core.moments import NotAMoment, milliseconds_of
from engine.core.playbook import (
    UNSET,
    EdgeKind,
    Map,
    Node,
    Playbook,
    Repeat,
    Sleep,
)
from engine.core.templates import Literal

__all__ = ["Known", "Signature", "check_types"]

_A_LIST = of_kinds("array")
_A_MOMENT = of_kinds("string", "integer", "fraction")
_MOMENT = "write 2026-01-31T18:00:00Z, or a reference to such a text or to seconds since 1970"


def check_types(
    playbook: Playbook, known: Known, untold: frozenset[int] = frozenset()
) -> list[Finding]:
    """What is provably wrong with the types, in no particular order. Never raises for what stands
    in the playbook or in a schema. Where edges are in doubt, because `rules.check` refuses them
    or they are among the `untold`, nothing is said that they could change."""
    doubts = doubts_of(playbook, untold)
    dead = dead_edges(playbook) if not doubts.edges else frozenset()
    try:
        routes = Routes(playbook, dead, doubts.edges)
    except ValueError:
        return []
    places = _Places(Flow(playbook, known, routes, Budget(), doubts))
    return list(dict.fromkeys(places.findings(playbook)))


class Nothing:
    """Knows no function and no playbook: what can be said of a playbook alone."""

    def function(self, name: str) -> Signature | None:
        return None

    def playbook(self, name: str, snapshot_id: int) -> Signature | None:
        return None


class _Places:
    """Every place of a playbook that holds a mapping or an expression."""

    def __init__(self, flow: Flow) -> None:
        self._flow = flow
        self._lookups = Lookups(flow)
        self._fitting = Fitting(flow)

    def findings(self, playbook: Playbook) -> Iterator[Finding]:
        runs = self._flow.routes.runs
        for node in playbook.nodes:
            if runs(node.code):
                yield from self._node(node)
        nodes = {node.code: node for node in playbook.nodes}
        for index, edge in enumerate(playbook.edges):
            if edge.kind is EdgeKind.CHOICE and edge.source in nodes and runs(edge.source):
                view = self._after(nodes[edge.source])
                yield from self._condition(edge.when, f"edges[{index}].when", view)
        yield from self._output(playbook)

    def _node(self, node: Node) -> Iterator[Finding]:
        path, view = f"nodes.{node.code}", self._flow.view(node)
        around = View(view.reader, view.last)
        if isinstance(node.kind, Map):
            yield from self._over(node.kind.over, f"{path}.map.over", around)
        elif isinstance(node.kind, Sleep) and node.kind.until is not None:
            yield from self._until(node.kind.until, f"{path}.until", around)
        elif isinstance(node.kind, Repeat):
            yield from self._condition(node.kind.until, f"{path}.repeat.until", self._after(node))
        name, signature = self._flow.callee(node) or ("", Signature())
        taken = view.last if view.item is None else view.item
        yield from self._mapping(node.input, path, view, taken, signature, name)
        if node.compensate is not None:
            name = node.compensate.function
            view, path = self._after(node), f"{path}.compensate"
            signature = self._flow.function(name)
            yield from self._mapping(node.compensate.input, path, view, view.last, signature, name)

    def _after(self, node: Node) -> View:
        """What is seen once the node has an output, or a repeat's round one."""
        return View(node.code, self._flow.success(node.code), own=node.code)

    def _mapping(
        self, value: Any, path: str, view: View, taken: Type, signature: Signature, name: str
    ) -> Iterator[Finding]:
        """An `input` at the path, or what is taken where there is none."""
        wanted = declared(signature.input)
        if value is UNSET:
            found = clash(taken, wanted, self._budget())
            if found is not None:
                what = "what leads here" if view.item is None else "an item of the list"
                what = "its own output" if view.own else what
                yield type_clash(path, found, what, name, "")
            return
        template = compiled(value)
        if template is not None:
            yield from self._lookups.template(template, f"{path}.input", view)
            yield from self._fitting.template(template, wanted, f"{path}.input", view, name)

    def _over(self, value: Any, path: str, view: View) -> Iterator[Finding]:
        template = compiled(value)
        if template is None:
            return
        yield from self._lookups.template(template, path, view)
        found = clash(self._flow.template(template, view), _A_LIST, self._budget())
        if found is not None:
            message, mend = f"over {found.message}", "write a list, or a reference to one"
            yield Finding("MAP_NOT_A_LIST", path, message, shorten(str(value)), mend)

    def _until(self, value: Any, path: str, view: View) -> Iterator[Finding]:
        template = compiled(value)
        if template is None:
            return
        yield from self._lookups.template(template, path, view)
        found = clash(self._flow.template(template, view), _A_MOMENT, self._budget())
        message = "" if found is None else f"until {found.message}"
        if found is None and isinstance(template, Literal):
            try:
                milliseconds_of(template.value)
            except NotAMoment:
                message = "until is no time"
        if message:
            yield Finding("TYPE_CLASH", path, message, shorten(str(value)), _MOMENT)

    def _condition(self, text: str, path: str, view: View) -> Iterator[Finding]:
        try:
            Expression(text)
        except ExpressionSyntaxError:
            return
        yield from self._lookups.expression(text, path, view)
        found = clash(self._flow.expression(text, view), BOOLEAN, self._budget())
        if found is not None:
            message, mend = f"the condition {found.message}", "write a comparison, as in $.a.n > 1"
            yield Finding("TYPE_CLASH", path, message, shorten(text), mend)

    def _output(self, playbook: Playbook) -> Iterator[Finding]:
        given = playbook.output_schema
        wanted = declared(None if given is UNSET else given)
        if playbook.output is UNSET:
            found = clash(self._flow.default_output(), wanted, self._budget())
            if found is not None:
                what = "the object of what the end nodes give"
                yield type_clash("output_schema", found, what, "output_schema", "")
            return
        template, view = compiled(playbook.output), View(END)
        if template is not None:
            yield from self._lookups.template(template, "output", view)
            yield from self._fitting.template(template, wanted, "output", view, "output_schema")

    def _budget(self) -> Budget:
        return self._flow.budget.renew()
