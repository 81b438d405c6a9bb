"""References into the data of a trace: `$$$.sku`, `$.pay.items[0].price`, `$._env.region`.

A reference is a root and a path. A path that leads nowhere is `MISSING`; what that means is
decided by whoever asked (an error in an expression, null in a mapping that ends in `?`).
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from enum import Enum
from typing import Any, Final, Protocol

MAX_PATH = 64  # segments
_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")
_INTEGER = re.compile(r"-?\d+")


class Missing(Enum):
    """The value of a path that leads nowhere."""

    MISSING = "missing"

    def __repr__(self) -> str:
        return "MISSING"


MISSING: Final = Missing.MISSING


class Root(Enum):
    """Where a reference begins."""

    TRIGGER = "$$$"  # the trigger's input
    LAST = "$$"  # the output of what led here
    NODE = "$."  # the output of a named node
    ENV = "$._env"  # the trace-wide env
    ITEM = "$item"  # the item of a map
    INDEX = "$index"  # its place, from 0
    HERE = "@"  # the candidate of a filter


@dataclass(frozen=True, slots=True)
class Name:
    name: str


@dataclass(frozen=True, slots=True)
class Index:
    index: int


@dataclass(frozen=True, slots=True)
class Slice:
    """`[start:stop]`; the upper bound is excluded. `[*]` is a slice without bounds."""

    start: int | None
    stop: int | None


@dataclass(frozen=True, slots=True)
class Picks:
    """`[0,2]`: the items at these places; those that are not there are left out."""

    places: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Filter:
    """`[?(condition)]`; `test(candidate, scope)` says whether to keep the candidate."""

    text: str
    test: Callable[[Any, Scope], bool]
    references: tuple[Reference, ...] = ()


Segment = Name | Index | Slice | Picks | Filter


class Scope(Protocol):
    """The data that a reference can see. Absent things are `MISSING`."""

    def root(self, root: Root, code: str) -> Any: ...


class ReferenceSyntaxError(ValueError):
    """The text is no reference. `position` counts characters from 0 in the text given."""

    def __init__(self, message: str, position: int) -> None:
        super().__init__(message)
        self.position = position


@dataclass(frozen=True, slots=True)
class Reference:
    """`code` is the node's code under `Root.NODE`, else empty. `text` is as it was written."""

    root: Root
    code: str
    path: tuple[Segment, ...]
    text: str
    optional: bool = False

    @property
    def whole(self) -> bool:
        """True when it stands for all of its root."""
        return not self.path

    def all(self) -> Iterator[Reference]:
        """This reference and those inside its filters."""
        yield self
        for segment in self.path:
            if isinstance(segment, Filter):
                yield from segment.references

    def into_list(self, scope: Scope) -> str:
        """Advice for a path that is missing because it asks a list for a field; else empty."""
        for end, segment in enumerate(self.path):
            before = _walk(scope.root(self.root, self.code), self.path[:end], 0, scope)
            if isinstance(segment, Name) and isinstance(before, list):
                return f"; {segment.name} is asked of a list: write [*].{segment.name}"
        return ""

    def resolve(self, scope: Scope) -> Any:
        """The value, or `MISSING`. Never raises for data of any shape."""
        return _walk(scope.root(self.root, self.code), self.path, 0, scope)


def _walk(value: Any, path: tuple[Segment, ...], at: int, scope: Scope) -> Any:
    while at < len(path):
        if value is MISSING:
            return MISSING
        segment = path[at]
        at += 1
        if isinstance(segment, Name):
            if not isinstance(value, dict):
                return MISSING
            value = value.get(segment.name, MISSING)
        elif isinstance(segment, Index):
            if not isinstance(value, list) or not -len(value) <= segment.index < len(value):
                return MISSING
            value = value[segment.index]
        else:
            if not isinstance(value, list):
                return MISSING
            if isinstance(segment, Slice):
                kept = value[segment.start : segment.stop]
            elif isinstance(segment, Picks):
                kept = [value[i] for i in segment.places if -len(value) <= i < len(value)]
            else:
                kept = [item for item in value if segment.test(item, scope)]
            if at == len(path):
                return kept
            found = (_walk(item, path, at, scope) for item in kept)
            return [item for item in found if item is not MISSING]
    return value


FilterCompiler = Callable[[str, int], Filter]


class Reader:
    """Reads one reference out of a longer text; `compile_filter` is called with a filter's
    condition and its position in the text."""

    def __init__(self, text: str, compile_filter: FilterCompiler) -> None:
        self._text = text
        self._compile_filter = compile_filter

    def read(self, start: int) -> tuple[Reference, int]:
        """The reference that begins at `start` and the position after it.

        Errors: `ReferenceSyntaxError`.
        """
        root, code, at = self._root(start)
        path: list[Segment] = []
        while at < len(self._text):
            segment, after = self._segment(at)
            if segment is None:
                at = after
                break
            path.append(segment)
            at = after
            if len(path) > MAX_PATH:
                raise ReferenceSyntaxError(f"the path is longer than {MAX_PATH} steps", start)
        return Reference(root, code, tuple(path), self._text[start:at]), at

    def _root(self, start: int) -> tuple[Root, str, int]:
        text = self._text
        if text.startswith("@", start):
            return Root.HERE, "", start + 1
        if text.startswith("$$$", start):
            return Root.TRIGGER, "", start + 3
        if text.startswith("$$", start):
            return Root.LAST, "", start + 2
        if text.startswith("$._env", start) and not _NAME.match(text, start + 6):
            return Root.ENV, "", start + 6
        for root in (Root.ITEM, Root.INDEX):
            end = start + len(root.value)
            if text.startswith(root.value, start) and not _NAME.match(text, end):
                return root, "", end
        if text.startswith("$.", start):
            name = _NAME.match(text, start + 2)
            if name:
                return Root.NODE, name.group(), name.end()
            raise ReferenceSyntaxError(
                "$. is followed by a node's code, $.<node>; all that led here is $$, the trigger's "
                "input $$$",
                start,
            )
        raise ReferenceSyntaxError(
            "a reference begins with $$$ (the trigger's input), $$ (what led here), "
            "$.<node> (a node's output), $._env, $item or $index",
            start,
        )

    def _segment(self, at: int) -> tuple[Segment | None, int]:
        text = self._text
        if text[at] == ".":
            name = _NAME.match(text, at + 1)
            if name is None:
                # "$$." and "$$$." are the older way to write the whole value.
                if text[at + 1 : at + 2] == "[":
                    raise ReferenceSyntaxError(
                        "no point stands before a bracket: write $$[0], $.a[0]", at
                    )
                return None, at + 1 if self._trailing_dot(at) else at
            if text[name.end() : name.end() + 1] == "(":
                return None, at  # a method of the expression language
            return Name(name.group()), name.end()
        if text[at] == "[":
            return self._bracket(at)
        return None, at

    def _trailing_dot(self, at: int) -> bool:
        return self._text[at - 1] == "$" and not self._text[at + 1 : at + 2].isdigit()

    def _bracket(self, at: int) -> tuple[Segment, int]:
        text = self._text
        inner = at + 1
        if text.startswith("?(", inner):
            return self._filter(inner + 2)
        if text[inner : inner + 1] in ('"', "'"):
            quote = text[inner]
            end = text.find(quote, inner + 1)
            if end < 0 or text[end + 1 : end + 2] != "]":
                raise ReferenceSyntaxError(f"the key after [{quote} is not closed", at)
            return Name(text[inner + 1 : end]), end + 2
        end = text.find("]", inner)
        if end < 0:
            raise ReferenceSyntaxError("a [ is not closed", at)
        body = text[inner:end].strip()
        if body == "*":
            return Slice(None, None), end + 1
        if ":" in body:
            return self._slice(body, at), end + 1
        if "," in body:
            return Picks(tuple(self._place(part, at) for part in body.split(","))), end + 1
        return Index(self._place(body, at)), end + 1

    def _place(self, text: str, at: int) -> int:
        body = text.strip()
        if not _INTEGER.fullmatch(body):
            raise ReferenceSyntaxError(
                f"[{body}] is neither an index [0], places [0,2], a slice [0:2], [*], a key "
                '["a"] nor a filter [?(@.price > 10)]',
                at,
            )
        return _bounded(body, at)

    def _slice(self, body: str, at: int) -> Slice:
        bounds: list[int | None] = []
        for part in body.split(":"):
            part = part.strip()
            if part and not _INTEGER.fullmatch(part):
                raise ReferenceSyntaxError(f"[{body}] is no slice; write [0:2]", at)
            bounds.append(_bounded(part, at) if part else None)
        if len(bounds) != 2:
            raise ReferenceSyntaxError(f"[{body}] is no slice; write [0:2]", at)
        return Slice(bounds[0], bounds[1])

    def _filter(self, start: int) -> tuple[Segment, int]:
        end = closing(self._text, start, "(", ")")
        if end < 0 or self._text[end + 1 : end + 2] != "]":
            raise ReferenceSyntaxError("a filter [?( … )] is not closed", start - 3)
        condition = self._text[start:end]
        return self._compile_filter(condition, start), end + 2


def _bounded(digits: str, at: int) -> int:
    if len(digits) > 10:
        raise ReferenceSyntaxError(f"the index {digits[:12]}… is too large", at)
    return int(digits)


def closing(text: str, start: int, opener: str, closer: str) -> int:
    """Position of the `closer` that matches an `opener` standing just before `start`, or -1.
    Quoted strings are passed over."""
    depth, quote, at = 1, "", start
    while at < len(text):
        character = text[at]
        if quote:
            if character == "\\":
                at += 1
            elif character == quote:
                quote = ""
        elif character in "\"'":
            quote = character
        elif character == opener:
            depth += 1
        elif character == closer:
            depth -= 1
            if depth == 0:
                return at
        at += 1
    return -1
