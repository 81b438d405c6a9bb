"""Why no value of one type can fit another."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from engine.core.checks.schemas import MAX_DEPTH, Budget, Shape, Type, words
from engine.core.checks.shapes import common, kind_of, shapes
from engine.core.payload import json_text


@dataclass(frozen=True, slots=True)
class Clash:
    """Why no value of a type fits another: `path` leads into the value (`.a[0]`, or empty).
    `missing` and `excess` name the fields that the other requires or forbids."""

    path: str
    message: str
    missing: tuple[str, ...] = ()
    excess: str = ""
    names: tuple[str, ...] = ()


def clash(value: Type, wanted: Type, budget: Budget, depth: int = 0) -> Clash | None:
    """Why no value of the one type fits the other; None when one may."""
    if depth > MAX_DEPTH or not budget.spend():
        return None
    there, allowed = shapes(value, budget), shapes(wanted, budget)
    if not there:
        return None
    if not allowed:
        return Clash("", "no value is allowed here")
    first: Clash | None = None
    for one in there:
        for other in allowed:
            found = _clash(one, other, budget, depth)
            if found is None:
                return None
            first = first or found
    if len(there) == len(allowed) == 1:
        return first
    return _of_many(there, allowed)


def _of_many(there: tuple[Shape, ...], allowed: tuple[Shape, ...]) -> Clash:
    one = frozenset(kind for shape in there for kind in shape.kinds)
    other = frozenset(kind for shape in allowed for kind in shape.kinds)
    if one & other:
        return Clash("", f"none of the {len(allowed) * len(there)} ways to read it fits")
    return Clash("", f"is {words(one)}, must be {words(other)}")


def _clash(one: Shape, other: Shape, budget: Budget, depth: int) -> Clash | None:
    kinds = one.kinds & other.kinds
    if not kinds:
        return Clash("", f"is {words(one.kinds)}, must be {words(other.kinds)}")
    if one.values is not None or other.values is not None:
        return _values_clash(one, other, kinds)
    if kinds == {"object"}:
        return _fields_clash(one, other, budget, depth)
    if kinds == {"array"}:
        return _items_clash(one, other, budget, depth)
    return None


def _values_clash(one: Shape, other: Shape, kinds: frozenset[str]) -> Clash | None:
    if one.values is None or other.values is None:
        values = one.values if other.values is None else other.values
        assert values is not None
        if any(kind_of(value) in kinds for value in values):
            return None
        return Clash("", f"is {words(one.kinds)}, must be {words(other.kinds)}")
    if common(one.values, other.values):
        return None
    return Clash("", f"is {_one_of(one.values)}, must be {_one_of(other.values)}")


def _fields_clash(one: Shape, other: Shape, budget: Budget, depth: int) -> Clash | None:
    missing = [name for name in sorted(other.required) if _field(one, name) is None]
    if missing:
        return Clash("", f"lacks {', '.join(missing)}", missing=tuple(missing))
    for name in sorted(one.required):
        if _field(other, name) is None:
            names = tuple(other.fields)
            return Clash("", f"{name} is not allowed", excess=name, names=names)
    for name in sorted(one.required | other.required):
        value, wanted = _field(one, name), _field(other, name)
        if value is None or wanted is None:
            continue
        found = clash(value, wanted, budget, depth + 1)
        if found is not None:
            return replace(found, path=f".{name}{found.path}")
    return None


def _field(shape: Shape, name: str) -> Type | None:
    return shape.fields.get(name, shape.rest)


def _items_clash(one: Shape, other: Shape, budget: Budget, depth: int) -> Clash | None:
    if other.most is not None and one.least > other.most:
        return Clash("", f"has {one.least} items or more, at most {other.most} are allowed")
    if one.most is not None and other.least > one.most:
        return Clash("", f"has at most {one.most} items, must have {other.least}")
    for index in range(min(max(one.least, other.least), MAX_DEPTH)):
        value, wanted = one.item(index), other.item(index)
        if value is None or wanted is None:
            continue
        found = clash(value, wanted, budget, depth + 1)
        if found is not None:
            return replace(found, path=f"[{index}]{found.path}")
    return None


def _one_of(values: Sequence[Any]) -> str:
    shown = [json_text(value)[:40] for value in values[:6]]
    return " or ".join(shown) + (" …" if len(values) > 6 else "")
