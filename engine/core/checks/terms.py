"""Types of expressions, and comparisons that can have only one outcome."""

from __future__ import annotations

import difflib
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from engine.core.checks.clashes import clash
from engine.core.checks.conditions import (
    And,
    Arithmetic,
    Call,
    Choose,
    Compare,
    Constant,
    Has,
    Not,
    Or,
    Read,
    Row,
    Term,
    parts_of,
)
from engine.core.checks.paths import items_of
from engine.core.checks.schemas import (
    ANY,
    BOOLEAN,
    INTEGER,
    NUMBER,
    NUMBERS,
    STRING,
    Budget,
    Exactly,
    Type,
    list_of,
    row_of,
    union,
    words,
)
from engine.core.checks.shapes import kinds_of, scalars
from engine.core.payload import json_text

Types = Callable[[Read], Type]
"""What a reference in the expression may be."""

_CALLS: dict[str, Type] = {
    "size": INTEGER,
    "int": INTEGER,
    "uint": INTEGER,
    "double": NUMBER,
    "string": STRING,
    "bool": BOOLEAN,
    "startsWith": BOOLEAN,
    "endsWith": BOOLEAN,
    "contains": BOOLEAN,
    "matches": BOOLEAN,
    "exists": BOOLEAN,
    "exists_one": BOOLEAN,
    "all": BOOLEAN,
    "lowerAscii": STRING,
    "upperAscii": STRING,
    "replace": STRING,
    "trim": STRING,
    "substring": STRING,
    "filter": list_of(ANY),
    "map": list_of(ANY),
    "split": list_of(STRING),
}
_MACROS = frozenset(("exists", "exists_one", "all", "map", "filter"))


def type_of(term: Term, types: Types, budget: Budget) -> Type:
    """What the expression may be, when it has a value."""
    match term:
        case Constant():
            return Exactly(term.value)
        case Read():
            return types(term)
        case Has() | Compare() | And() | Or() | Not():
            return BOOLEAN
        case Choose():
            return union([type_of(term.yes, types, budget), type_of(term.no, types, budget)])
        case Row():
            return row_of([type_of(item, types, budget) for item in term.items])
        case Call():
            return _CALLS.get(term.name, ANY)
        case Arithmetic():
            return _computed(term, types, budget)
    return ANY


def _computed(term: Arithmetic, types: Types, budget: Budget) -> Type:
    left = kinds_of(type_of(term.left, types, budget), budget)
    right = kinds_of(type_of(term.right, types, budget), budget)
    if left <= NUMBERS and right <= NUMBERS:
        return INTEGER if left == right == {"integer"} else NUMBER
    if term.sign == "+" and left == right == {"string"}:
        return STRING
    return ANY


# Which references are read.


@dataclass(frozen=True, slots=True)
class Reading:
    """`certain`: no other part of the expression decides whether it is read."""

    read: Read
    certain: bool


def readings(term: Term, certain: bool = True) -> Iterator[Reading]:
    """Every reference whose value is asked for, `has()` left out."""
    match term:
        case Read():
            yield Reading(term, certain)
        case Has():
            return
        case And() | Or():
            yield from readings(term.left, certain)
            yield from readings(term.right, False)
        case Choose():
            yield from readings(term.condition, certain)
            yield from readings(term.yes, False)
            yield from readings(term.no, False)
        case Call() if term.method and term.name in _MACROS:
            yield from readings(term.arguments[0], certain)
            for argument in term.arguments[1:]:
                yield from readings(argument, False)
        case _:
            for part in parts_of(term):
                yield from readings(part, certain)


def guards(term: Term) -> Iterator[tuple[Read, bool]]:
    """The references that `has()` asks about (true), and those that are compared with null."""
    if isinstance(term, Has):
        yield term.read, True
    if isinstance(term, Compare) and Constant(None) in (term.left, term.right):
        for side in (term.left, term.right):
            if isinstance(side, Read):
                yield side, False
    for part in parts_of(term):
        yield from guards(part)


# Comparisons.


@dataclass(frozen=True, slots=True)
class Oddity:
    """A comparison that always ends the same way."""

    message: str
    seen: str
    mend: str


def oddities(term: Term, types: Types, budget: Budget) -> Iterator[Oddity]:
    """The comparisons in the expression whose sides can never be equal, or not be compared."""
    if isinstance(term, Compare):
        found = _odd(term, types, budget.renew())
        if found is not None:
            yield found
    for part in parts_of(term):
        yield from oddities(part, types, budget)


def _odd(term: Compare, types: Types, budget: Budget) -> Oddity | None:
    if Constant(None) in (term.left, term.right):
        return None  # a guard, whether it is needed or not
    if isinstance(term.left, Constant) and isinstance(term.right, Constant):
        return None  # `1 == 2`: on purpose
    left, right = type_of(term.left, types, budget), type_of(term.right, types, budget)
    if term.sign in ("==", "!="):
        return _unequal(term, left, right, budget)
    if term.sign == "in":
        return _never_in(term, left, right, budget)
    return _incomparable(term, left, right, budget)


def _unequal(term: Compare, left: Type, right: Type, budget: Budget) -> Oddity | None:
    if clash(left, right, budget) is None:
        return None
    always = "false" if term.sign == "==" else "true"
    message = f"{_is(term.left, left, budget)}, {_is(term.right, right, budget)}"
    return Oddity(
        f"{message}: {term.sign} is always {always}",
        _shown(term.left) if isinstance(term.left, Read) else _shown(term.right),
        _near(term, left, right, budget),
    )


def _near(term: Compare, left: Type, right: Type, budget: Budget) -> str:
    for side, other in ((term.right, left), (term.left, right)):
        if isinstance(side, Constant) and isinstance(side.value, str):
            known = [value for value in scalars(other, budget) if isinstance(value, str)]
            close = difflib.get_close_matches(side.value, known, 1)
            if close:
                return f"did you mean {json_text(close[0])}?"
    return "compare values of one type"


def _never_in(term: Compare, left: Type, right: Type, budget: Budget) -> Oddity | None:
    kinds = kinds_of(right, budget)
    if kinds.isdisjoint(("array", "object")):
        message = f"{_is(term.right, right, budget)}: in needs a list"
        return Oddity(message, _shown(term.right), "write a list on the right: [1, 2]")
    if kinds != {"array"} or clash(left, items_of(right, budget), budget) is None:
        return None
    message = f"{_is(term.left, left, budget)}, which no item of the list is"
    return Oddity(f"{message}: in is always false", _shown(term.left), "compare values of one type")


_ORDERED = {"integer": "number", "fraction": "number", "string": "string", "boolean": "boolean"}


def _incomparable(term: Compare, left: Type, right: Type, budget: Budget) -> Oddity | None:
    one = {_ORDERED.get(kind) for kind in kinds_of(left, budget)} - {None}
    other = {_ORDERED.get(kind) for kind in kinds_of(right, budget)} - {None}
    if one & other:
        return None
    message = f"{_is(term.left, left, budget)}, {_is(term.right, right, budget)}"
    return Oddity(
        f"{message}: {term.sign} is always an error",
        _shown(term.left) if isinstance(term.left, Read) else _shown(term.right),
        "compare values of one type",
    )


def _is(term: Term, type_: Type, budget: Budget) -> str:
    if isinstance(term, Constant):
        return f"{_shown(term)} is {words(kinds_of(type_, budget))}"
    known = list(scalars(type_, budget))
    what = " or ".join(json_text(value)[:40] for value in known[:6])
    more = " …" if len(known) > 6 else ""
    return f"{_shown(term)} is {what + more if known else words(kinds_of(type_, budget))}"


def _shown(term: Term) -> str:
    if isinstance(term, Read):
        return term.text
    return json_text(term.value) if isinstance(term, Constant) else "the other side"
