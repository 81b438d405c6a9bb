"""What lies at a path into a value of a type, and why nothing can."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from enum import Enum

from engine.core.checks.schemas import ANY, Budget, Shape, Type, list_of, union
from engine.core.checks.shapes import shapes
from engine.core.references import Index, Name, Segment


class Fault(Enum):
    """Why a path leads nowhere."""

    FORBIDDEN = "forbidden"  # no object that fits has the field
    UNLISTED = "unlisted"  # the field may be there, but others are listed and it is not
    NO_OBJECT = "no object"
    NO_LIST = "no list"
    BEYOND = "beyond"  # the list is shorter


@dataclass(frozen=True, slots=True)
class Problem:
    """At `path[:at]` there is nothing for `path[at]`. `names` are the fields that are listed,
    `kinds` what is there instead of an object or a list. `many`: the path goes through items, so
    that nothing is found where it is wrong."""

    fault: Fault
    at: int
    names: tuple[str, ...] = ()
    kinds: frozenset[str] = frozenset()
    many: bool = False


def follow(type_: Type, path: Sequence[Segment], budget: Budget) -> tuple[Type, Problem | None]:
    """What the path leads to, and the first thing that is wrong with it for every value."""
    many = 0
    problem: Problem | None = None
    for at, segment in enumerate(path):
        found = shapes(type_, budget)
        if isinstance(segment, Name):
            type_, problem = _name(found, segment.name, at)
        elif isinstance(segment, Index):
            type_, problem = _index(found, segment.index, at)
        else:
            type_, problem = _all_items(found, at)
            many += 1
        if problem is not None:
            passed = many - (not isinstance(segment, Name | Index))
            return ANY, replace(problem, many=passed > 0)
    for _ in range(many):
        type_ = list_of(type_)
    return type_, None


def _name(found: tuple[Shape, ...], name: str, at: int) -> tuple[Type, Problem | None]:
    objects = [shape for shape in found if "object" in shape.kinds]
    if not objects:
        return ANY, _wrong(Fault.NO_OBJECT, found, at)
    options: list[Type] = []
    unlisted = False
    for shape in objects:
        if name in shape.fields:
            options.append(shape.fields[name])
        elif shape.rest is not None and (not shape.listed or shape.vague):
            options.append(shape.rest)
        elif shape.rest is not None:
            unlisted = True
    if options:
        return (ANY if unlisted else union(options)), None
    names = tuple(dict.fromkeys(known for shape in objects for known in shape.fields))
    return ANY, Problem(Fault.UNLISTED if unlisted else Fault.FORBIDDEN, at, names)


def _index(found: tuple[Shape, ...], index: int, at: int) -> tuple[Type, Problem | None]:
    lists = [shape for shape in found if "array" in shape.kinds]
    if not lists:
        return ANY, _wrong(Fault.NO_LIST, found, at)
    options = [shape.item(index) if index >= 0 else _from_the_end(shape, index) for shape in lists]
    there = [option for option in options if option is not None]
    return (union(there), None) if there else (ANY, Problem(Fault.BEYOND, at))


def _from_the_end(shape: Shape, index: int) -> Type | None:
    if shape.most is not None and -index > shape.most:
        return None
    if shape.most == shape.least:
        return shape.item(shape.least + index)
    return shape.each()


def _all_items(found: tuple[Shape, ...], at: int) -> tuple[Type, Problem | None]:
    lists = [shape for shape in found if "array" in shape.kinds]
    if not lists:
        return ANY, _wrong(Fault.NO_LIST, found, at)
    return union([shape.each() for shape in lists]), None


def _wrong(fault: Fault, found: tuple[Shape, ...], at: int) -> Problem | None:
    kinds = frozenset(kind for shape in found for kind in shape.kinds)
    return Problem(fault, at, kinds=kinds) if kinds else None


def items_of(type_: Type, budget: Budget) -> Type:
    """What the items of a list may be; anything for what is no list."""
    return _all_items(shapes(type_, budget), 0)[0]
