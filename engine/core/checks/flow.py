"""The types of values on their way through a playbook's graph: what each node takes and gives,
and what `$$$`, `$$`, `$.node` and `$item` may be in each place."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Protocol

from engine.core.checks.conditions import Read, read_condition
from engine.core.checks.doubts import Doubts
from engine.core.checks.paths import follow, items_of
from engine.core.checks.routes import END, Fate, Fates, Routes
from engine.core.checks.schemas import (
    ANY,
    INTEGER,
    NULL,
    STRING,
    Budget,
    Exactly,
    Type,
    declared,
    list_of,
    object_of,
    row_of,
    union,
)
from engine.core.checks.terms import type_of
from engine.core.expressions import Expression
from engine.core.playbook import (
    UNSET,
    Hook,
    Join,
    Map,
    Node,
    Nop,
    Playbook,
    Repeat,
    Sleep,
    Subplaybook,
    Task,
)
from engine.core.references import Reference, Root, Segment
from engine.core.templates import (
    List,
    Literal,
    Object,
    Template,
    TemplateSyntaxError,
    Text,
    compile_template,
)

NO_DOUBTS = Doubts()
MAX_SOURCES = 8  # of one join whose every combination is considered

FAILURE = object_of(
    {
        "error": object_of(
            {"code": STRING, "message": STRING, "attempt": INTEGER, "details": ANY},
        )
    }
)
"""What `$.node` is after a failure that was handled."""


@dataclass(frozen=True, slots=True)
class Signature:
    """JSON Schemas of what a function or playbook takes and gives; None: not declared."""

    input: Any | None = None
    output: Any | None = None


class Known(Protocol):
    """What the registry knows. None: nothing."""

    def function(self, name: str) -> Signature | None: ...

    def playbook(self, name: str, snapshot_id: int) -> Signature | None:
        """`snapshot_id` 0 is the active one."""
        ...


@dataclass(frozen=True, slots=True)
class View:
    """What one place sees. `reader` is the node that reads, or `END`; `own` the node whose own
    output counts already, as in the conditions of its edges; `item` is None outside a map."""

    reader: str | int
    last: Type = ANY
    own: str = ""
    item: Type | None = None


class Flow:
    def __init__(
        self,
        playbook: Playbook,
        known: Known,
        routes: Routes,
        budget: Budget,
        doubts: Doubts = NO_DOUBTS,
    ) -> None:
        """`routes` are those without the edges in doubt."""
        self.doubts = doubts
        self.playbook = playbook
        self.routes = routes
        self.budget = budget
        self._known = known
        self._signatures: dict[tuple[str, int], Signature] = {}
        given = playbook.input_schema
        self.trigger = ANY if given is UNSET else declared(given)
        self._outputs: dict[str, Type] = {}
        nodes = {node.code: node for node in playbook.nodes}
        for code in routes.order:
            self._outputs[code] = self._output(nodes[code])

    # What is called.

    def callee(self, node: Node) -> tuple[str, Signature] | None:
        """The name and signature of what the node, or each item of a map, calls."""
        body = node.kind.body if isinstance(node.kind, Map) else node.kind
        if isinstance(body, Task):
            return body.function, self.function(body.function)
        if isinstance(body, Subplaybook | Repeat):
            return body.playbook, self._playbook(body.playbook, body.snapshot_id)
        return None

    def function(self, name: str) -> Signature:
        return self._once((name, -1), lambda: self._known.function(name))

    def _playbook(self, name: str, snapshot_id: int) -> Signature:
        return self._once((name, snapshot_id), lambda: self._known.playbook(name, snapshot_id))

    def _once(self, key: tuple[str, int], ask: Callable[[], Signature | None]) -> Signature:
        if key not in self._signatures:
            self._signatures[key] = ask() or Signature()
        return self._signatures[key]

    # What nodes take and give.

    def success(self, code: str) -> Type:
        """The output of the node when it has succeeded."""
        return self._outputs.get(code, ANY)

    def _output(self, node: Node) -> Type:
        if node.hook_after or isinstance(node.kind, Hook):
            return ANY  # whatever the signal brings
        if isinstance(node.kind, Nop | Sleep):
            return self.input(node)
        called = self.callee(node)
        output = ANY if called is None else declared(called[1].output)
        if not isinstance(node.kind, Map):
            return output
        tolerates = node.kind.tolerate_count or node.kind.tolerate_percent
        return list_of(union([output, NULL]) if tolerates else output)

    def input(self, node: Node) -> Type:
        """What the node, or each item of a map, takes."""
        view = self.view(node)
        if node.input is not UNSET:
            template = compiled(node.input)
            return ANY if template is None else self.template(template, view)
        return view.item if view.item is not None else view.last

    def view(self, node: Node) -> View:
        """What the node's input sees."""
        last = self.last(node)
        if not isinstance(node.kind, Map):
            return View(node.code, last)
        over = compiled(node.kind.over)
        item = ANY
        if over is not None:
            item = items_of(self.template(over, View(node.code, last)), self.budget.renew())
        return View(node.code, last, item=item)

    def last(self, node: Node) -> Type:
        """What `$$` is at the node: one outcome, or an object of several."""
        code = node.code
        if code in self.doubts.nodes:
            return ANY
        if code in self.routes.starts:
            return self.trigger
        sources = self.routes.sources(code)
        outcomes: dict[str, Type] = {}
        for source, succeeds, fails in sources:
            ways = [self.success(source)] * succeeds + [FAILURE] * fails
            outcomes[source] = union(ways)
        if not outcomes:
            return ANY
        if len(outcomes) == 1:
            return next(iter(outcomes.values()))
        certain = self._certain(node, outcomes)
        joined = object_of(outcomes, optional=set(outcomes) - certain)
        if len(certain) > 1:
            return joined
        return ANY if len(outcomes) > MAX_SOURCES else union([*outcomes.values(), joined])

    def _certain(self, node: Node, sources: Mapping[str, Type]) -> set[str]:
        """The sources that lead to the node whenever it runs."""
        if node.join is Join.ANY or self.doubts.edges:
            return set()
        return {
            source
            for source in sources
            if self.routes.always_leads(source, node.code)
            and not self.routes.fates(source, node.code).possible
        }

    def default_output(self) -> Type:
        """The playbook's output where it has no mapping: the end nodes that ran."""
        if self.doubts.edges:
            return ANY
        sources = {edge.source for edge in self.playbook.edges}
        ends = [code for code in self.routes.order if code not in sources]
        skipped = [code for code in ends if Fate.SKIPPED in self.routes.fates(code, END).possible]
        return object_of({code: self.success(code) for code in ends}, optional=skipped)

    # References.

    def root(self, root: str, code: str, view: View) -> Type:
        """What a reference without a path may be."""
        if root == Root.TRIGGER.value:
            return self.trigger
        if root == Root.LAST.value:
            return view.last
        if root == Root.NODE.value:
            return self.success(code) if code == view.own else self._outcome(code, view.reader)
        if root == Root.INDEX.value:
            return INTEGER
        if root == Root.ITEM.value and view.item is not None:
            return view.item
        return ANY

    def _outcome(self, code: str, reader: str | int) -> Type:
        if not self.comes_before(code, reader):
            return ANY
        possible = self.fates(code, reader).possible
        options = [self.success(code)]
        if Fate.SKIPPED in possible:
            options.append(NULL)
        if Fate.FAILED in possible:
            options.append(FAILURE)
        return union(options)

    def fates(self, code: str, reader: str | int) -> Fates:
        """What may have become of the node; with an edge in doubt anything, and nothing surely."""
        if self.doubts.edges:
            return Fates(frozenset(Fate), frozenset())
        return self.routes.fates(code, reader)

    def comes_before(self, code: str, reader: str | int) -> bool:
        if code not in self._outputs:
            return False
        return isinstance(reader, int) or self.routes.comes_before(code, reader)

    def at(self, root: str, code: str, path: tuple[Segment, ...], view: View) -> Type:
        """What a reference leads to; anything where it leads nowhere."""
        return follow(self.root(root, code, view), path, self.budget.renew())[0]

    # Mappings.

    def template(self, template: Template, view: View) -> Type:
        """What a mapping makes."""
        match template:
            case Literal():
                return Exactly(template.value)
            case Reference():
                there = self.at(template.root.value, template.code, template.path, view)
                return union([there, NULL]) if template.optional else there
            case Expression():
                return self.expression(template.text, view)
            case Text():
                return STRING
            case Object():
                return object_of({key: self.template(item, view) for key, item in template.fields})
            case List():
                return row_of([self.template(item, view) for item in template.items])

    def expression(self, text: str, view: View) -> Type:
        """What an expression makes."""
        return type_of(read_condition(text), self.types(view), self.budget.renew())

    def types(self, view: View) -> Callable[[Read], Type]:
        """What the references in an expression may be."""
        return lambda read: self.at(*read.place, view)


def compiled(value: Any) -> Template | None:
    """The template; None for one that is malformed, which `checks` reports."""
    try:
        return compile_template(value)
    except TemplateSyntaxError:
        return None
