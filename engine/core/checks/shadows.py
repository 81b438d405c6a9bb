"""Edges that can never be taken, where that can be proved from the document alone.

A condition implies another when it cannot be true while the other is false, whatever the data:
`$.a.n > 20` implies `$.a.n > 10`. What cannot be proved is taken to be possible.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import islice

from engine.core.checks.conditions import (
    And,
    Compare,
    Constant,
    Has,
    Not,
    Or,
    Read,
    Row,
    Term,
    parts_of,
    read_condition,
)
from engine.core.playbook import Edge, EdgeKind, Playbook

MAX_CHOICES = 200  # of one node that are compared with the first of them
MAX_EARLIER = 32  # conditions that each is compared with, besides equal ones
MAX_STEPS = 200  # of one comparison

TRUE, FALSE = Constant(True), Constant(False)


@dataclass(frozen=True, slots=True)
class Shadow:
    """`edges[index]` is never taken, because `edges[by]` is tried before it and taken first."""

    index: int
    by: int


def shadows(playbook: Playbook) -> list[Shadow]:
    """Choice and error edges behind others of their source that leave nothing for them."""
    choices: dict[str, list[int]] = {}
    errors: dict[str, list[int]] = {}
    for index, edge in enumerate(playbook.edges):
        if edge.kind is EdgeKind.CHOICE:
            choices.setdefault(edge.source, []).append(index)
        elif edge.kind is EdgeKind.ERROR:
            errors.setdefault(edge.source, []).append(index)
    found: list[Shadow] = []
    for indexes in choices.values():
        found += _choice_shadows(playbook.edges, _tried(playbook.edges, indexes))
    for indexes in errors.values():
        found += _error_shadows(playbook.edges, _tried(playbook.edges, indexes))
    return found


def dead_edges(playbook: Playbook) -> frozenset[int]:
    """Places of the edges that no trace ever takes, as far as it can be proved: the shadowed
    ones, `when: false`, and `otherwise` beside a `true`. Not those of nodes that never run."""
    dead = {shadow.index for shadow in shadows(playbook)}
    always = set()
    for index, edge in enumerate(playbook.edges):
        if edge.kind is EdgeKind.CHOICE:
            condition = _positive(read_condition(edge.when))
            if condition == FALSE:
                dead.add(index)
            elif condition == TRUE:
                always.add(edge.source)
    for index, edge in enumerate(playbook.edges):
        if edge.kind is EdgeKind.OTHERWISE and edge.source in always:
            dead.add(index)
    return frozenset(dead)


def _tried(edges: tuple[Edge, ...], indexes: Iterable[int]) -> list[int]:
    return sorted(indexes, key=lambda index: (edges[index].priority, index))


def _choice_shadows(edges: tuple[Edge, ...], order: list[int]) -> Iterator[Shadow]:
    seen: dict[Term, int] = {}
    for place, index in enumerate(order):
        condition = _positive(read_condition(edges[index].when))
        if condition == FALSE:
            continue  # never taken, whatever stands before it
        by = seen.get(condition, seen.get(TRUE))
        if by is None and place < MAX_CHOICES:
            by = _implied(condition, seen)
        if by is not None:
            yield Shadow(index, by)
        seen.setdefault(condition, index)


def _implied(condition: Term, seen: dict[Term, int]) -> int | None:
    for earlier, index in islice(seen.items(), MAX_EARLIER):
        if implies(condition, earlier):
            return index
    return None


def _error_shadows(edges: tuple[Edge, ...], order: list[int]) -> Iterator[Shadow]:
    """Failure codes are plain texts: each goes to the first edge that names it, or names none."""
    owners: dict[str, int] = {}
    everything: int | None = None
    for index in order:
        codes = edges[index].codes
        if everything is not None:
            yield Shadow(index, everything)
        elif codes and all(code in owners for code in codes):
            yield Shadow(index, owners[codes[0]])
        for code in codes:
            owners.setdefault(code, index)
        if not codes and everything is None:
            everything = index


# Implication.


def implies(first: Term, then: Term) -> bool:
    """Whether `then` is never false while `first` is true. False also when it is not known."""
    return _Implication().holds(_positive(first), _positive(then))


class _Implication:
    __slots__ = ("_steps",)

    def __init__(self) -> None:
        self._steps = MAX_STEPS

    def holds(self, first: Term, then: Term) -> bool:
        self._steps -= 1
        if self._steps < 0:
            return False
        if first in (then, FALSE) or then == TRUE:
            return True
        if isinstance(first, Or):
            return self.holds(first.left, then) and self.holds(first.right, then)
        if isinstance(then, And):
            return self.holds(first, then.left) and self.holds(first, then.right)
        if isinstance(then, Or) and (self.holds(first, then.left) or self.holds(first, then.right)):
            return True
        if isinstance(first, And):
            return self.holds(first.left, then) or self.holds(first.right, then)
        if isinstance(then, Has):
            return _needs(first, then.read)
        return _narrower(first, then)


def _needs(term: Term, read: Read) -> bool:
    """Whether the comparison has no value without the path."""
    if not isinstance(term, Compare):
        return isinstance(term, Has) and _leads_through(term.read, read)
    return any(isinstance(side, Read) and _leads_through(side, read) for side in parts_of(term))


def _leads_through(longer: Read, shorter: Read) -> bool:
    root, code, path = shorter.place
    return longer.place[:2] == (root, code) and longer.place[2][: len(path)] == path


def _positive(term: Term, negated: bool = False) -> Term:
    """The same condition with `!` only where nothing else says it, constants on the right, and
    a bare value as `value == true`."""
    match term:
        case Not():
            return _positive(term.term, not negated)
        case And() | Or():
            left, right = _positive(term.left, negated), _positive(term.right, negated)
            both = isinstance(term, And) is not negated
            return And(left, right) if both else Or(left, right)
        case Constant() if isinstance(term.value, bool):
            return Constant(term.value is not negated)
        case Read():
            return Compare("==", term, Constant(not negated))
        case Compare():
            return _turned(term, negated)
    return Not(term) if negated else term


_OPPOSITE = {"==": "!=", "!=": "==", "<": ">=", ">=": "<", ">": "<=", "<=": ">"}
_MIRRORED = {"==": "==", "!=": "!=", "<": ">", ">": "<", "<=": ">=", ">=": "<="}


def _turned(term: Compare, negated: bool) -> Term:
    sign, left, right = term.sign, term.left, term.right
    if sign == "in":
        return Not(term) if negated else term
    if isinstance(left, Constant) and not isinstance(right, Constant):
        sign, left, right = _MIRRORED[sign], right, left
    return Compare(_OPPOSITE[sign] if negated else sign, left, right)


# Comparisons with constants, as sets of values.

_Number = int | float


@dataclass(frozen=True, slots=True)
class _Some:
    """These values."""

    values: tuple[Constant, ...]


@dataclass(frozen=True, slots=True)
class _Beyond:
    """The numbers, or the texts, on one side of the bound."""

    sign: str
    bound: _Number | str


@dataclass(frozen=True, slots=True)
class _Except:
    """Everything but one value."""

    value: Constant


_Values = _Some | _Beyond | _Except


def _narrower(first: Term, then: Term) -> bool:
    """Whether both compare the same thing with constants, and every value that passes the first
    passes the other."""
    if not (isinstance(first, Compare) and isinstance(then, Compare) and first.left == then.left):
        return False
    inner, outer = _values(first), _values(then)
    return inner is not None and outer is not None and _within(inner, outer)


def _values(term: Compare) -> _Values | None:
    right = term.right
    if term.sign == "in":
        if not isinstance(right, Row):
            return None
        values = tuple(item for item in right.items if isinstance(item, Constant))
        return _Some(values) if len(values) == len(right.items) else None
    if not isinstance(right, Constant):
        return None
    if term.sign == "==":
        return _Some((right,))
    if term.sign == "!=":
        return _Except(right)
    return _Beyond(term.sign, right.value) if _ordered(right.value) else None


def _ordered(value: object) -> bool:
    return isinstance(value, int | float | str) and not isinstance(value, bool)


def _within(inner: _Values, outer: _Values) -> bool:
    if isinstance(inner, _Some):
        return all(_passes(value, outer) for value in inner.values)
    if isinstance(inner, _Except):
        return inner == outer
    if isinstance(outer, _Except):
        value = outer.value.value
        return not (_ordered(value) and _alike(value, inner.bound)) or not _compare(
            inner.sign, value, inner.bound
        )
    return isinstance(outer, _Beyond) and _bound_within(inner, outer)


def _passes(value: Constant, values: _Values) -> bool:
    if isinstance(values, _Some):
        return value in values.values
    if isinstance(values, _Except):
        return value != values.value
    there = value.value
    return (
        _ordered(there)
        and _alike(there, values.bound)
        and _compare(values.sign, there, values.bound)
    )


def _bound_within(inner: _Beyond, outer: _Beyond) -> bool:
    if inner.sign[0] != outer.sign[0] or not _alike(inner.bound, outer.bound):
        return False
    if inner.bound == outer.bound:
        return len(inner.sign) <= len(outer.sign)  # `>` lies within `>=`
    return _compare(outer.sign, inner.bound, outer.bound)


def _alike(one: object, other: object) -> bool:
    return isinstance(one, str) is isinstance(other, str)


def _compare(sign: str, left: object, right: object) -> bool:
    match sign:
        case "<":
            return bool(left < right)  # type: ignore[operator]
        case "<=":
            return bool(left <= right)  # type: ignore[operator]
        case ">":
            return bool(left > right)  # type: ignore[operator]
    return bool(left >= right)  # type: ignore[operator]
