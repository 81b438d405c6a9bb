"""Types of values: JSON Schemas and what is put together from them.

`shapes` says which values fit one, `paths` what lies inside, `clashes` what can never fit another;
`complaints` asks the library about whole values. Every answer errs on the side of
possibility: a keyword that is not followed allows anything, and work is bounded (references 16
deep, a budget of steps), beyond which everything is possible. So a `Clash` and a `Problem` are
always true, and silence proves nothing.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

MAX_DEPTH = 16

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


def words(kinds: frozenset[str]) -> str:
    """`integer or string`, for people."""
    names = sorted(kinds - NUMBERS)
    if "fraction" in kinds:
        names.append("number")
    elif "integer" in kinds:
        names.append("integer")
    return " or ".join(names) or "nothing"
