"""Values that can never fit the schema of what takes them."""

from __future__ import annotations

from collections.abc import Iterator

from engine.core.checks.clashes import Clash, clash
from engine.core.checks.complaints import Validators
from engine.core.checks.flow import Flow, View
from engine.core.checks.lookups import listing, near
from engine.core.checks.schemas import ANY, Declared, Shape, Type
from engine.core.checks.shapes import shapes
from engine.core.expressions import Expression
from engine.core.findings import Finding, shorten
from engine.core.payload import json_text
from engine.core.references import Reference
from engine.core.templates import List, Literal, Object, Template


class Fitting:
    """The findings about what a mapping makes, as deep inside it as they can be placed. `name` is
    what takes the value."""

    def __init__(self, flow: Flow) -> None:
        self._flow = flow
        self._validators = Validators(flow.budget)

    def template(
        self, template: Template, wanted: Type, path: str, view: View, name: str
    ) -> Iterator[Finding]:
        if wanted is ANY:
            return
        found = list(self._parts(template, wanted, path, view, name))
        if not found and isinstance(template, Literal) and isinstance(wanted, Declared):
            mend = f"write a value that fits the schema of {name}"
            for at, says in self._validators.complaints(template.value, wanted):
                seen = shorten(json_text(template.value))
                found.append(Finding("TYPE_CLASH", path + at, f"for {name}: {says}", seen, mend))
        yield from found

    def _parts(
        self, template: Template, wanted: Type, path: str, view: View, name: str
    ) -> Iterator[Finding]:
        """By the structure, which says more than the library: names that are nearly right."""
        split = _split(template)
        kind = "array" if isinstance(split, List) else "object"
        allowed = shapes(wanted, self._flow.budget.renew())
        fitting = [shape for shape in allowed if kind in shape.kinds]
        if isinstance(split, Object) and len(fitting) == 1 and fitting[0].values is None:
            yield from self._object(split, fitting[0], path, view, name)
        elif isinstance(split, List) and len(fitting) == 1 and fitting[0].values is None:
            yield from self._list(split, fitting[0], path, view, name)
        else:
            made = self._flow.template(template, view)
            found = clash(made, wanted, self._flow.budget.renew())
            if found is not None:
                yield type_clash(path, found, _what(template), name, _seen(template))

    def _object(
        self, template: Object, wanted: Shape, path: str, view: View, name: str
    ) -> Iterator[Finding]:
        given = {key for key, _ in template.fields}
        missing = [key for key in sorted(wanted.required) if key not in given]
        if missing:
            message = f"{name} requires {', '.join(missing)}"
            yield Finding("TYPE_CLASH", path, message, mend=f"add {missing[0]}:")
        for key, item in template.fields:
            there = wanted.fields.get(key, wanted.rest)
            if there is not None:
                yield from self.template(item, there, f"{path}.{key}", view, name)
                continue
            mend = near(key, missing or wanted.fields) or f"remove it; {listing(wanted.fields)}"
            yield Finding("TYPE_CLASH", f"{path}.{key}", f"{name} takes no {key}", key, mend)

    def _list(
        self, template: List, wanted: Shape, path: str, view: View, name: str
    ) -> Iterator[Finding]:
        count = len(template.items)
        if count < wanted.least or (wanted.most is not None and count > wanted.most):
            limit = f"at least {wanted.least}" if count < wanted.least else f"at most {wanted.most}"
            message, mend = f"{name} takes a list of {limit} items", f"write {limit} items"
            yield Finding("TYPE_CLASH", path, message, f"{count} items", mend)
            return
        for index, item in enumerate(template.items):
            there = wanted.item(index)
            if there is not None:
                yield from self.template(item, there, f"{path}[{index}]", view, name)


def _split(template: Template) -> Template:
    """A constant object or list as one of constant parts."""
    if isinstance(template, Literal) and isinstance(template.value, dict):
        return Object(tuple((key, Literal(part)) for key, part in template.value.items()))
    if isinstance(template, Literal) and isinstance(template.value, list):
        return List(tuple(map(Literal, template.value)))
    return template


def type_clash(path: str, found: Clash, what: str, name: str, seen: str) -> Finding:
    """The finding for a value, described by `what`, that never fits what `name` takes."""
    message = f"for {name}: {what}{found.path} {found.message}"
    return Finding("TYPE_CLASH", path, shorten(message, 300), seen, _mend(found, what, name))


def _mend(found: Clash, what: str, name: str) -> str:
    if found.missing:
        return f"write an input that has {', '.join(found.missing)}"
    if found.excess:
        return near(found.excess, found.names) or f"leave it out; {listing(found.names)}"
    if what.startswith("$") and not found.path and found.message.endswith("must be string"):
        return f"write ${{ string({what}) }}"
    return f"give {name} what its schema allows"


def _what(template: Template) -> str:
    match template:
        case Reference():
            return template.text
        case Expression():
            return f"`{shorten(template.text)}`"
        case Literal():
            return shorten(json_text(template.value))
        case Object():
            return "the object"
        case List():
            return "the list"
    return "the text"


def _seen(template: Template) -> str:
    return _what(template) if isinstance(template, Reference | Expression | Literal) else ""
