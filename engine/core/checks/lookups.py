"""References and expressions that lead nowhere, and comparisons that say nothing."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Iterator
from dataclasses import replace

from engine.core.checks.conditions import Read, read_condition
from engine.core.checks.flow import Flow, View
from engine.core.checks.paths import Fault, Problem, follow
from engine.core.checks.routes import Fate
from engine.core.checks.schemas import words
from engine.core.checks.terms import Reading, guards, oddities, readings
from engine.core.expressions import Expression
from engine.core.findings import Finding, shorten
from engine.core.references import Filter, Index, Name, Picks, Reference, Root, Segment, Slice
from engine.core.templates import List, Object, Template, Text


class Lookups:
    """The findings about what a mapping or an expression reads, in the place of `view`."""

    def __init__(self, flow: Flow) -> None:
        self._flow = flow

    def template(self, template: Template, path: str, view: View) -> Iterator[Finding]:
        match template:
            case Reference():
                yield from self._reference(template, path, view)
            case Expression():
                yield from self.expression(template.text, path, view)
            case Text():
                for part in template.parts:
                    if isinstance(part, Expression):
                        yield from self.expression(part.text, path, view)
            case Object():
                for key, item in template.fields:
                    yield from self.template(item, f"{path}.{key}", view)
            case List():
                for index, item in enumerate(template.items):
                    yield from self.template(item, f"{path}[{index}]", view)

    def _reference(self, reference: Reference, path: str, view: View) -> Iterator[Finding]:
        place = (reference.root.value, reference.code, reference.path)
        text = reference.text.removesuffix("?") if reference.optional else reference.text
        read = Read(place, text)
        if reference.optional:
            yield from _softened(self._unknown(read, path, view))
        else:
            mend = f"write {text}? to get null instead"
            yield from self._read(read, path, view, mend, guarded=False)

    def expression(self, text: str, path: str, view: View) -> Iterator[Finding]:
        term = read_condition(text)
        asked = list(guards(term))
        for reading in readings(term):
            yield from self._reading(reading, asked, path, view)
        for oddity in oddities(term, self._flow.types(view), self._flow.budget):
            seen = shorten(oddity.seen)
            yield Finding("TYPE_CLASH", path, oddity.message, seen, oddity.mend, warning=True)

    def _reading(
        self, reading: Reading, asked: list[tuple[Read, bool]], path: str, view: View
    ) -> Iterator[Finding]:
        read = reading.read
        if any(has and _leads_through(read, guard) for guard, has in asked):
            return
        if not reading.certain:
            yield from _softened(self._unknown(read, path, view))
            return
        guarded = any(
            _same_node(read, guard) if has else read != guard and _leads_through(read, guard)
            for guard, has in asked
        )
        yield from self._read(read, path, view, f"guard it with has({read.text})", guarded)

    def _read(
        self, read: Read, path: str, view: View, mend: str, guarded: bool
    ) -> Iterator[Finding]:
        finding = self._unknown(read, path, view)
        if finding is not None:
            yield finding
        elif not guarded:
            yield from self._missing(read, path, view, mend)

    def _unknown(self, read: Read, path: str, view: View) -> Finding | None:
        """A path that leads nowhere, whatever the values."""
        root, code, steps = read.place
        budget = self._flow.budget.renew()
        _, problem = follow(self._flow.root(root, code, view), steps, budget)
        return None if problem is None else _nothing_there(read, problem, path)

    def _missing(self, read: Read, path: str, view: View, mend: str) -> Iterator[Finding]:
        """A path into a node that has no output on some route to here."""
        root, code, steps = read.place
        if root != Root.NODE.value or code == view.own:
            return
        if not self._flow.comes_before(code, view.reader):
            return
        shown = self._flow.fates(code, view.reader).shown
        if not steps:
            shown &= {Fate.UNSETTLED}  # null and {"error": …} are values
        elif steps[0] == Name("error"):
            shown -= {Fate.FAILED}
        if shown:
            where = f"when {view.reader} runs" if isinstance(view.reader, str) else "at the end"
            fates = " or ".join(_WORDS[fate] for fate in Fate if fate in shown)
            message = f"{code} may {fates} {where}: {read.text} then leads nowhere"
            seen = shorten(read.text)
            yield Finding("VALUE_MAY_BE_MISSING", path, message, seen, mend, warning=True)


_WORDS = {
    Fate.SKIPPED: "have been skipped",
    Fate.FAILED: "have failed",
    Fate.UNSETTLED: "not have ended",
}


def _softened(finding: Finding | None) -> Iterator[Finding]:
    """As a warning, where the playbook says that the path may be missing, and only if it always
    is."""
    if finding is not None and not finding.warning:
        yield replace(finding, warning=True)


def _same_node(read: Read, guard: Read) -> bool:
    return read.place[:2] == guard.place[:2]


def _leads_through(read: Read, guard: Read) -> bool:
    path = guard.place[2]
    return _same_node(read, guard) and read.place[2][: len(path)] == path


def _nothing_there(read: Read, problem: Problem, path: str) -> Finding:
    root, code, steps = read.place
    there = _written(root, code, steps[: problem.at])
    step, seen, soft = steps[problem.at], shorten(read.text), problem.many
    name = step.name if isinstance(step, Name) else _step(step)
    match problem.fault:
        case Fault.NO_OBJECT:
            message = f"{there} is {words(problem.kinds)}: it has no field {name}"
            return Finding("TYPE_CLASH", path, message, seen, f"read {there} itself", soft)
        case Fault.NO_LIST:
            message = f"{there} is {words(problem.kinds)}, no list"
            return Finding("TYPE_CLASH", path, message, seen, f"read {there} itself", soft)
        case Fault.BEYOND:
            message = f"{there} has no item {name}: it is shorter"
            return Finding("FIELD_UNKNOWN", path, message, seen, "read an item that it has", soft)
        case Fault.UNLISTED:
            message = f"the schema of {there} does not list {name}"
            mend = near(name, problem.names, f"{there}.") or f"add {name} to the schema"
            return Finding("FIELD_UNKNOWN", path, message, seen, mend, warning=True)
        case Fault.FORBIDDEN:
            mend = near(name, problem.names, f"{there}.") or listing(problem.names)
            message = f"{there} has no field {name}"
            return Finding("FIELD_UNKNOWN", path, message, seen, mend, soft)


def near(name: str, names: Iterable[str], prefix: str = "") -> str:
    """`did you mean …?`, empty when nothing is like it."""
    close = difflib.get_close_matches(name, list(names), 1)
    return f"did you mean {prefix}{close[0]}?" if close else ""


def listing(names: Iterable[str]) -> str:
    """What there is instead."""
    known = ", ".join(names)
    return shorten(f"its fields are {known}", 200) if known else "it has no fields at all"


def _written(root: str, code: str, steps: Iterable[Segment]) -> str:
    return root + code + "".join(map(_step, steps))


def _step(step: Segment) -> str:
    match step:
        case Name():
            return f".{step.name}" if step.name.isidentifier() else f'["{step.name}"]'
        case Index():
            return f"[{step.index}]"
        case Picks():
            return f"[{','.join(map(str, step.places))}]"
        case Slice() if step.start is None and step.stop is None:
            return "[*]"
        case Slice():
            bounds = ("" if bound is None else str(bound) for bound in (step.start, step.stop))
            return f"[{':'.join(bounds)}]"
        case Filter():
            return f"[?({step.text})]"
