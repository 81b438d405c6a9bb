"""What a JSON Schema says: which values fit it, what lies at a path, what can never fit.

Types are JSON Schemas and what is put together from them. Every answer errs on the side of
possibility: a keyword that is not followed allows anything, and work is bounded (references 16
deep, a budget of steps), beyond which everything is possible. So a `Clash` and a `Problem` are
always true, and silence proves nothing.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from enum import Enum
from itertools import islice
from typing import Any

import jsonschema_rs

from engine.core.payload import json_text
from engine.core.references import Index, Name, Segment

MAX_DEPTH = 16
MAX_SHAPES = 16  # alternatives of one type
MAX_COMPLAINTS = 5

KINDS = frozenset(("null", "boolean", "integer", "fraction", "string", "array", "object"))
"""JSON's types. `integer` are the whole numbers, 2.0 among them, `fraction` the other ones."""
NUMBERS = frozenset(("integer", "fraction"))


class Budget:
    """Steps that may still be made, for one question and for all; when they are used up
    everything is possible. Remembers what it has seen of schemas, which must not change."""

    __slots__ = ("_each", "_left", "_seen", "_total")

    def __init__(self, total: int = 1_000_000, each: int = 2_000) -> None:
        self._total = total
        self._each = each
        self._left = min(each, total)
        self._seen: dict[tuple[int, int], tuple[Declared, tuple[Shape, ...]]] = {}

    def renew(self) -> Budget:
        """The same for the next question."""
        self._left = min(self._each, self._total)
        return self

    def spend(self, steps: int = 1) -> bool:
        """Whether so many more steps may be made."""
        self._left -= steps
        self._total -= steps
        return self._left >= 0

    def recall(self, type_: Declared) -> tuple[Shape, ...] | None:
        seen = self._seen.get((id(type_.schema), id(type_.root)))
        return seen[1] if seen is not None else None

    def remember(self, type_: Declared, found: tuple[Shape, ...]) -> tuple[Shape, ...]:
        if self._left >= 0:  # holding on to the schema keeps its id from being given away
            self._seen[id(type_.schema), id(type_.root)] = (type_, found)
        return found


# Types.


@dataclass(frozen=True, slots=True, eq=False)
class Declared:
    """What a JSON Schema allows; `root` is where its local references begin."""

    schema: Any
    root: Any


@dataclass(frozen=True, slots=True, eq=False)
class Exactly:
    """One JSON value."""

    value: Any


@dataclass(frozen=True, slots=True, eq=False)
class OneOf:
    """What any of them allows."""

    options: tuple[Type, ...]


@dataclass(frozen=True, slots=True, eq=False)
class Both:
    """What both allow."""

    first: Type
    second: Type


@dataclass(frozen=True, slots=True, eq=False)
class Shape:
    """One alternative, its parts not looked into yet. `values`: the only ones, all of them
    scalars. `rest` and `items`: what other fields and later items may be, None where there can
    be none. `listed`: fields are listed and nothing says that there are others; `vague`: keywords
    were passed over. A list has `least` to `most` items."""

    kinds: frozenset[str] = KINDS
    values: tuple[Any, ...] | None = None
    fields: Mapping[str, Type] = field(default_factory=dict)
    required: frozenset[str] = frozenset()
    rest: Type | None = None
    listed: bool = False
    vague: bool = False
    prefix: tuple[Type, ...] = ()
    items: Type | None = None
    least: int = 0
    most: int | None = None

    def item(self, index: int) -> Type | None:
        """What stands at the index; None where nothing can."""
        if self.most is not None and index >= self.most:
            return None
        return self.prefix[index] if index < len(self.prefix) else self.items

    def each(self) -> Type:
        """What any item may be."""
        options = self.prefix if self.items is None else (*self.prefix, self.items)
        return union(options) if options else NEVER


Type = Declared | Exactly | OneOf | Both | Shape

ANY: Type = Declared(True, True)
NEVER: Type = Declared(False, False)
NULL: Type = Exactly(None)


def declared(schema: Any | None) -> Type:
    """The type of a schema; None: not declared, so anything."""
    return ANY if schema is None else Declared(schema, schema)


def of_kinds(*kinds: str) -> Type:
    """Everything of these of JSON's types."""
    return Shape(frozenset(kinds), rest=ANY, items=ANY)


BOOLEAN = of_kinds("boolean")
INTEGER = of_kinds("integer")
NUMBER = of_kinds(*NUMBERS)
STRING = of_kinds("string")


def union(options: Iterable[Type]) -> Type:
    """What any of them allows; a single one stays itself."""
    flat = tuple(options)
    if any(option is ANY for option in flat):
        return ANY
    return flat[0] if len(flat) == 1 else OneOf(flat)


def list_of(item: Type) -> Type:
    return Shape(frozenset(("array",)), rest=ANY, items=item)


def row_of(items: Sequence[Type]) -> Type:
    """A list of exactly these items."""
    return Shape(
        frozenset(("array",)), rest=ANY, prefix=tuple(items), least=len(items), most=len(items)
    )


def object_of(fields: Mapping[str, Type], optional: Iterable[str] = ()) -> Type:
    """An object of these fields and no others."""
    required = frozenset(fields) - frozenset(optional)
    return Shape(frozenset(("object",)), fields=fields, required=required, items=ANY)


# From a type to its alternatives.

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
        values = _common(one.values, other.values)
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


def _common(values: tuple[Any, ...], others: tuple[Any, ...]) -> tuple[Any, ...]:
    """The scalars that are in both: 1 is 1.0 and is not true."""
    there = {(isinstance(value, bool), value) for value in others}
    return tuple(value for value in values if (isinstance(value, bool), value) in there)


# What lies at a path.


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


def kinds_of(type_: Type, budget: Budget) -> frozenset[str]:
    """Which of JSON's types its values may have; all of them when nothing fits."""
    return frozenset(kind for shape in shapes(type_, budget) for kind in shape.kinds) or KINDS


# What can never fit.


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
    if _common(one.values, other.values):
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


def words(kinds: frozenset[str]) -> str:
    """`integer or string`, for people."""
    names = sorted(kinds - NUMBERS)
    if "fraction" in kinds:
        names.append("number")
    elif "integer" in kinds:
        names.append("integer")
    return " or ".join(names) or "nothing"


def _one_of(values: Sequence[Any]) -> str:
    shown = [json_text(value)[:40] for value in values[:6]]
    return " or ".join(shown) + (" …" if len(values) > 6 else "")


# Values that stand in the document.

_LOCAL = ("#/$defs/", "#/definitions/")
_ELSEWHERE = frozenset(("$id", "$anchor", "$dynamicRef", "$dynamicAnchor", "$recursiveRef"))
_FORMER = ("draft-03", "draft-04")  # where a plain `id` moves references


class Validators:
    """Whole values against schemas, by the library. Compiles each schema once; as long as there
    is work left in the budget."""

    __slots__ = ("_budget", "_made")

    def __init__(self, budget: Budget) -> None:
        self._budget = budget
        self._made: dict[tuple[int, int], tuple[Declared, Any | None]] = {}

    def complaints(self, value: Any, wanted: Declared) -> list[tuple[str, str]]:
        """(path into the value, sentence) for what does not fit, at most five. Nothing also for
        a schema that cannot be used by itself."""
        key = id(wanted.schema), id(wanted.root)
        if key not in self._made:
            self._made[key] = (wanted, self._compile(wanted))
        validator = self._made[key][1]
        if validator is None or not self._budget.spend():
            return []
        errors = islice(validator.iter_errors(value), MAX_COMPLAINTS)
        return [(_into(value, error.instance_path), str(error.message)) for error in errors]

    def _compile(self, wanted: Declared) -> Any | None:
        schema = _alone(wanted, self._budget)
        if schema is None:
            return None
        try:
            return jsonschema_rs.validator_for(schema, offline=True)
        except (jsonschema_rs.ValidationError, ValueError):
            return None


def _into(value: Any, path: Iterable[str | int]) -> str:
    """The library turns keys that look like numbers into integers; this turns them back."""
    text = ""
    for part in path:
        if isinstance(value, list) and isinstance(part, int):
            text += f"[{part}]"
            value = value[part]
        else:
            text += f".{part}"
            value = value.get(str(part)) if isinstance(value, dict) else None
    return text


def _alone(wanted: Declared, budget: Budget) -> Any | None:
    """The schema with the definitions that it may refer to."""
    root = wanted.root
    if wanted.schema is root:
        return root
    if not isinstance(root, dict):
        return None
    if any(draft in str(root.get("$schema", "")) for draft in _FORMER):
        return None
    kept = {key: root[key] for key in ("$schema", "$defs", "definitions") if key in root}
    schema = {**kept, "allOf": [wanted.schema]}
    return schema if _stands_alone(schema, budget) else None


def _stands_alone(schema: Any, budget: Budget) -> bool:
    """Whether it refers to nothing that is not in it."""
    open_ = [schema]
    while open_:
        here = open_.pop()
        if not budget.spend():
            return False
        if isinstance(here, dict):
            if not _ELSEWHERE.isdisjoint(here) or not _is_local(here.get("$ref", _LOCAL[0])):
                return False
            open_ += here.values()
        elif isinstance(here, list):
            open_ += here
    return True


def _is_local(reference: Any) -> bool:
    return isinstance(reference, str) and reference.startswith(_LOCAL)


def scalars(type_: Type, budget: Budget) -> Iterator[Any]:
    """The only values of a type that lists them; nothing for any other."""
    found = shapes(type_, budget)
    if all(shape.values is not None for shape in found):
        for shape in found:
            yield from shape.values or ()
