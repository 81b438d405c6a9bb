"""From a type to its alternatives: which values fit it, by what JSON Schema says."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from typing import Any

from engine.core.checks.schemas import (
    ANY,
    KINDS,
    MAX_DEPTH,
    NUMBERS,
    Both,
    Budget,
    Declared,
    Exactly,
    OneOf,
    Shape,
    Type,
)

MAX_SHAPES = 16  # alternatives of one type
_ANYTHING = Shape(rest=ANY, items=ANY)
_UNKNOWN = replace(_ANYTHING, vague=True)
_VAGUE = frozenset(
    (
        "if", "not", "dependentSchemas", "dependencies", "patternProperties", "propertyNames",
        "unevaluatedProperties", "$dynamicRef", "$recursiveRef",
    )
)  # fmt: skip
_TYPES = {name: frozenset((name,)) for name in KINDS - {"fraction"}} | {"number": NUMBERS}


def shapes(type_: Type, budget: Budget, depth: int = 0) -> tuple[Shape, ...]:
    """The alternatives of a type, at most sixteen; none: no value fits."""
    if depth > MAX_DEPTH or not budget.spend():
        return (_UNKNOWN,)
    match type_:
        case Shape():
            return (type_,)
        case Exactly():
            return (_exact(type_.value),)
        case OneOf():
            return _bounded(
                shape for option in type_.options for shape in shapes(option, budget, depth + 1)
            )
        case Both():
            first = shapes(type_.first, budget, depth + 1)
            return _product(first, shapes(type_.second, budget, depth + 1))
        case Declared():
            seen = budget.recall(type_)
            return seen or budget.remember(type_, _of_schema(type_, budget, depth))


def _bounded(found: Iterable[Shape]) -> tuple[Shape, ...]:
    kept: list[Shape] = []
    for shape in found:
        kept.append(shape)
        if len(kept) > MAX_SHAPES:
            return (_UNKNOWN,)
    return tuple(kept)


def _of_schema(type_: Declared, budget: Budget, depth: int) -> tuple[Shape, ...]:
    schema, root = type_.schema, type_.root
    if schema is True:
        return (_ANYTHING,)
    if schema is False:
        return ()
    if not isinstance(schema, dict) or ("$id" in schema and schema is not root):
        return (_UNKNOWN,)
    if "$ref" in schema:
        target = _resolve(schema["$ref"], root)
        return (_UNKNOWN,) if target is None else shapes(target, budget, depth + 1)
    if not budget.spend(_size(schema)):
        return (_UNKNOWN,)
    found = _own(schema, root)
    for part in _schemas(schema.get("allOf")):
        found = _product(found, shapes(Declared(part, root), budget, depth + 1))
    for keyword in ("anyOf", "oneOf"):
        parts = _schemas(schema.get(keyword))
        if parts:
            options = OneOf(tuple(Declared(part, root) for part in parts))
            found = _product(found, shapes(options, budget, depth + 1))
    return found


def _size(schema: dict[str, Any]) -> int:
    parts = (schema.get(key) for key in ("properties", "enum", "prefixItems", "required"))
    return sum(len(part) for part in parts if isinstance(part, dict | list))


def _resolve(reference: Any, root: Any) -> Type | None:
    """The schema that a reference within the document leads to."""
    if not isinstance(reference, str) or not reference.startswith("#"):
        return None
    if reference == "#":
        return Declared(root, root)
    here: Any = root
    for part in reference[1:].split("/")[1:]:
        part = part.replace("~1", "/").replace("~0", "~")
        if isinstance(here, dict) and part in here:
            here = here[part]
        else:
            return None
        if isinstance(here, dict) and "$id" in here:
            return None
    return Declared(here, root) if reference.startswith("#/") else None


def _schemas(value: Any) -> list[Any]:
    return value if isinstance(value, list) else []


def _own(schema: dict[str, Any], root: Any) -> tuple[Shape, ...]:
    """What the keywords say that stand in the schema itself."""
    kinds = _kinds(schema.get("type"))
    listed = schema.get("properties")
    fields = listed if isinstance(listed, dict) else {}
    rest = schema.get("additionalProperties", True)
    patterns = bool(schema.get("patternProperties"))
    prefix, items = _items(schema)
    shape = Shape(
        kinds=kinds,
        fields={name: Declared(part, root) for name, part in fields.items()},
        required=_names(schema.get("required")),
        rest=ANY if patterns else None if rest is False else Declared(rest, root),
        listed=bool(fields) and "additionalProperties" not in schema,
        vague=not _VAGUE.isdisjoint(schema),
        prefix=tuple(Declared(part, root) for part in prefix),
        items=None if items is False else Declared(items, root),
        least=_count(schema.get("minItems")) or 0,
        most=_count(schema.get("maxItems")),
    )
    if items is False:
        most = len(prefix) if shape.most is None else min(shape.most, len(prefix))
        shape = replace(shape, most=most)
    found: tuple[Shape, ...] = (shape,) if kinds else ()
    if "const" in schema:
        found = _product(found, _exactly([schema["const"]]))
    if isinstance(schema.get("enum"), list):
        found = _product(found, _exactly(schema["enum"]))
    return found


def _kinds(written: Any) -> frozenset[str]:
    names = [written] if isinstance(written, str) else written
    if not isinstance(names, list) or not all(
        isinstance(name, str) and name in _TYPES for name in names
    ):
        return KINDS
    return frozenset().union(*(_TYPES[name] for name in names))


def _items(schema: dict[str, Any]) -> tuple[list[Any], Any]:
    items = schema.get("items", True)
    if isinstance(items, list):  # how it was written before 2020-12
        return items, schema.get("additionalItems", True)
    prefix = schema.get("prefixItems")
    return (prefix if isinstance(prefix, list) else []), items


def _names(value: Any) -> frozenset[str]:
    if not isinstance(value, list):
        return frozenset()
    return frozenset(name for name in value if isinstance(name, str))


def _count(value: Any) -> int | None:
    if isinstance(value, int | float) and not isinstance(value, bool) and value >= 0:
        return int(value)
    return None


def _exactly(values: Sequence[Any]) -> tuple[Shape, ...]:
    """Scalars in one alternative, each list and object in its own."""
    plain = tuple(value for value in values if not isinstance(value, dict | list))
    found = [_exact(value) for value in values if isinstance(value, dict | list)]
    if plain:
        kinds = frozenset(kind_of(value) for value in plain)
        found.append(Shape(kinds, plain, rest=ANY, items=ANY))
    return _bounded(found)


def _exact(value: Any) -> Shape:
    kinds = frozenset((kind_of(value),))
    if isinstance(value, dict):
        fields: dict[str, Type] = {str(name): Exactly(part) for name, part in value.items()}
        return Shape(kinds, fields=fields, required=frozenset(fields), items=ANY)
    if isinstance(value, list):
        prefix = tuple(Exactly(part) for part in value)
        return Shape(kinds, rest=ANY, prefix=prefix, least=len(value), most=len(value))
    return Shape(kinds, (value,), rest=ANY, items=ANY)


def kind_of(value: Any) -> str:
    """Which of JSON's types the value has."""
    match value:
        case None:
            return "null"
        case bool():
            return "boolean"
        case str():
            return "string"
        case list():
            return "array"
        case dict():
            return "object"
        case float() if not value.is_integer():
            return "fraction"
    return "integer"


def _product(first: tuple[Shape, ...], second: tuple[Shape, ...]) -> tuple[Shape, ...]:
    if len(first) * len(second) > MAX_SHAPES:
        return tuple(replace(shape, vague=True) for shape in first)
    met = (_meet(one, other) for one in first for other in second)
    return tuple(shape for shape in met if shape is not None)


def _meet(one: Shape, other: Shape) -> Shape | None:
    kinds = one.kinds & other.kinds
    values = one.values if other.values is None else other.values
    if one.values is not None and other.values is not None:
        values = common(one.values, other.values)
    if values is not None:
        values = tuple(value for value in values if kind_of(value) in kinds)
        kinds &= frozenset(kind_of(value) for value in values)
    if not kinds:
        return None
    return Shape(
        kinds,
        values,
        _meet_fields(one, other),
        one.required | other.required,
        _meet_types(one.rest, other.rest),
        one.listed or other.listed,
        one.vague or other.vague,
        _meet_prefix(one, other),
        _meet_types(one.items, other.items),
        max(one.least, other.least),
        min((most for most in (one.most, other.most) if most is not None), default=None),
    )


def _meet_fields(one: Shape, other: Shape) -> dict[str, Type]:
    """A field that one side forbids may only be absent."""
    met: dict[str, Type] = {}
    for name in {**one.fields, **other.fields}:
        first, second = one.fields.get(name, one.rest), other.fields.get(name, other.rest)
        kept = _meet_types(first, second)
        if kept is not None:
            met[name] = kept
    return met


def _meet_prefix(one: Shape, other: Shape) -> tuple[Type, ...]:
    met: list[Type] = []
    for index in range(max(len(one.prefix), len(other.prefix))):
        kept = _meet_types(one.item(index), other.item(index))
        if kept is None:
            break
        met.append(kept)
    return tuple(met)


def _meet_types(first: Type | None, second: Type | None) -> Type | None:
    if first is None or second is None:
        return None
    if _is_any(first):
        return second
    return first if _is_any(second) else Both(first, second)


def _is_any(type_: Type) -> bool:
    return isinstance(type_, Declared) and type_.schema is True


def common(values: tuple[Any, ...], others: tuple[Any, ...]) -> tuple[Any, ...]:
    """The scalars that are in both: 1 is 1.0 and is not true."""
    there = {(isinstance(value, bool), value) for value in others}
    return tuple(value for value in values if (isinstance(value, bool), value) in there)


def kinds_of(type_: Type, budget: Budget) -> frozenset[str]:
    """Which of JSON's types its values may have; all of them when nothing fits."""
    return frozenset(kind for shape in shapes(type_, budget) for kind in shape.kinds) or KINDS


def scalars(type_: Type, budget: Budget) -> Iterator[Any]:
    """The only values of a type that lists them; nothing for any other."""
    found = shapes(type_, budget)
    if all(shape.values is not None for shape in found):
        for shape in found:
            yield from shape.values or ()
