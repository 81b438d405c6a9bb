"""Conditions and computed values: CEL over references.

The only module that knows which expression library is used (decision 0002). An expression is
text with references in it; each reference becomes a variable that is bound to its value just
before the evaluation, so only what the expression names is converted. A reference whose path is
missing stays unbound: CEL complains only if it is really needed, so `has($.a.b) && $.a.b > 3`
does what it says.

Expressions terminate (CEL has no loops, its macros have an iteration budget), see nothing but
their data, and fail as `ExpressionFailed`, never otherwise.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any

from cel_expr_python import cel
from cel_expr_python.ext import ext_math, ext_strings

from engine.core.blame import blame
from engine.core.older import replacement
from engine.core.payload import json_text
from engine.core.references import (
    MISSING,
    Filter,
    Reader,
    Reference,
    ReferenceSyntaxError,
    Root,
    Scope,
)

MAX_TEXT = 4_096  # characters
MAX_RESULT = 1_048_576  # bytes of JSON
MAX_VARIABLES = 64
# What may be spent on finding the part of an expression that failed: evaluations of parts, fewer of
# them where each has to take in more bytes of data.
MOST_BLAMED, LEAST_BLAMED, BLAMED_BYTES = 500, 4, 2_000_000

_WORDS = {"and": "&&", "or": "||", "not": "!", "len": "size"}
_WORD = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")
_HAS = re.compile(r"has\s*\(\s*(?=\$|@)")
_LOCATION = re.compile(r"<input>:1:(\d+): ")
_OVERLOAD = re.compile(
    r"No matching overloads found : (\((?P<target>\w+)\)\.)?"
    r"(?P<function>[^(\s]+)(\((?P<types>[\w, ]*)\))?"
)
_CALLED = re.compile(r"[A-Za-z_][A-Za-z0-9_]*\s*$")
_KINDS = {
    "string": "a string",
    "int64": "an integer",
    "double": "a double",
    "bool": "a boolean",
    "null_type": "null",
    "list": "a list",
    "map": "an object",
}
_UNBOUND = re.compile(r'No value with name "([rh]\d+)"')


class ExpressionSyntaxError(ValueError):
    """The text is no expression. `position` counts characters from 0."""

    def __init__(self, message: str, position: int) -> None:
        super().__init__(message)
        self.position = position


class ExpressionFailed(ValueError):
    """The expression has no value on this data; the message names expression, position and
    the values that it saw."""


@dataclass(frozen=True, slots=True)
class _Variable:
    name: str
    reference: Reference
    position: int
    existence: bool  # bound to whether the path exists, instead of to its value


def _environment() -> Any:
    variables = {f"r{n}": cel.Type.DYN for n in range(MAX_VARIABLES)}
    variables |= {f"h{n}": cel.Type.BOOL for n in range(MAX_VARIABLES)}
    return cel.NewEnv(
        variables=variables, extensions=[ext_strings.ExtStrings(), ext_math.ExtMath()]
    )


_env = _environment()


class Expression:
    """A compiled expression. Immutable; safe to share."""

    __slots__ = ("_program", "_variables", "text")

    def __init__(self, text: str) -> None:
        """Errors: `ExpressionSyntaxError`."""
        if len(text) > MAX_TEXT:
            raise ExpressionSyntaxError(f"longer than {MAX_TEXT} characters", MAX_TEXT)
        if not text.strip():
            raise ExpressionSyntaxError("the expression is empty", 0)
        self.text = text
        translation = _Translation(text)
        self._variables = tuple(translation.variables)
        try:
            self._program = _env.compile(translation.text)
        except RuntimeError as error:
            complaint = _syntax_error(error, translation)
            better = replacement(text)
            if better:
                raise ExpressionSyntaxError(f"{complaint}; {better}", complaint.position) from error
            raise complaint from error

    @property
    def references(self) -> tuple[Reference, ...]:
        """Every reference, in the order of the text, those inside filters included."""
        return tuple(found for variable in self._variables for found in variable.reference.all())

    def evaluate(self, scope: Scope) -> Any:
        """The value, made of JSON's types.

        Errors: `ExpressionFailed`.
        """
        data: dict[str, Any] = {}
        seen: dict[str, Any] = {}
        for variable in self._variables:
            value = variable.reference.resolve(scope)
            if variable.existence:
                data[variable.name] = value is not MISSING
            else:
                seen[variable.reference.text] = value
                if value is not MISSING:
                    data[variable.name] = value
        try:
            result = self._program.eval(data=data)
            if result.type() == cel.Type.ERROR:
                raise ExpressionFailed(self._complaint(str(result.value()), seen, data))
            return _plain(result.plain_value(), self)
        except (RuntimeError, TypeError, OverflowError, RecursionError) as error:
            raise ExpressionFailed(self._complaint(str(error), seen, data)) from error

    def holds(self, scope: Scope) -> bool:
        """The value of a condition.

        Errors: `ExpressionFailed`, also when the value is not a boolean.
        """
        value = self.evaluate(scope)
        if value is True or value is False:
            return value
        raise ExpressionFailed(
            f"`{self.text}` is a condition and must be true or false; it is {_shorten(value)}"
        )

    def _complaint(self, complaint: str, seen: dict[str, Any], data: dict[str, Any]) -> str:
        unbound = _UNBOUND.search(complaint)
        if unbound:
            name = unbound.group(1)
            variable = next(v for v in self._variables if v.name == name)
            what = f"{variable.reference.text} (at {variable.position + 1}) does not exist"
            hint = f"; guard it with has({variable.reference.text})"
        else:
            what = self._fault(complaint, data)
            hint = ""
            if "No matching overloads" in complaint and "double" in complaint:
                hint = "; write double(…) or int(…) around one side"
        values = ", ".join(f"{text} = {_shorten(value)}" for text, value in seen.items())
        return f"`{self.text}`: {what}{hint}" + (f" [saw {values}]" if values else "")

    def _fault(self, complaint: str, data: dict[str, Any]) -> str:
        """What went wrong, and where if that can be said."""
        named = _OVERLOAD.search(complaint)
        function = named.group("function") if named else ""
        place = self._place(complaint, function, data)
        if named is None:
            where = "" if place is None else f" (at {place + 1})"
            return re.sub(r"^[A-Z_]+: ", "", complaint).split(" [")[0] + where
        types = f"{named.group('target') or ''} {named.group('types') or ''}"
        kinds = " and ".join(_KINDS.get(kind, kind) for kind in re.findall(r"\w+", types))
        does_not = f"does not take {kinds or 'these values'}"
        if place is None:
            return f"{_sign(function)} {does_not}"
        written = _WORD.match(self.text, place)
        return f"{written.group() if written else _sign(function)} at {place + 1} {does_not}"

    def _place(self, complaint: str, function: str, data: dict[str, Any]) -> int | None:
        def fails(part: bytes) -> bool:
            try:
                result = _env.deserialize(part).eval(data=data)
                said = str(result.value()) if result.type() == cel.Type.ERROR else ""
            except (RuntimeError, TypeError, OverflowError, RecursionError) as error:
                said = str(error)
            return said == complaint

        if "Iteration budget" in complaint:
            return None  # every part has its share in that
        translation = _Translation(self.text)
        most = max(LEAST_BLAMED, min(MOST_BLAMED, BLAMED_BYTES // len(json_text(data))))
        found = blame(self._program.serialize(), function, fails, most)
        if found is None:
            return None
        called = _CALLED.search(translation.text[:found])  # CEL points at the bracket
        is_bracket = translation.text[found : found + 1] == "("
        return translation.original(called.start() if called and is_bracket else found)


def _plain(value: Any, expression: Expression) -> Any:
    """JSON's types only, within the size limit."""
    try:
        text = json_text(value)
    except (TypeError, ValueError, OverflowError) as error:
        raise ExpressionFailed(f"`{expression.text}` has no JSON value: {error}") from error
    if len(text) > MAX_RESULT:
        raise ExpressionFailed(f"`{expression.text}`: the result is larger than {MAX_RESULT} bytes")
    return value


def _sign(function: str) -> str:
    """CEL's name of an operator or a function as it is written."""
    if function == "<jump_condition>":
        return "? :"
    return function.strip("_@").replace("_?_:_", "? :").replace("@", "") or function


def _shorten(value: Any) -> str:
    if value is MISSING:
        return "missing"
    text = json_text(value)
    return text if len(text) <= 80 else text[:77] + "…"


class _Translation:
    """The expression in CEL's own words, with a way back to the original positions."""

    def __init__(self, text: str) -> None:
        self.variables: list[_Variable] = []
        self._source = text
        self._parts: list[str] = []
        self._anchors: list[tuple[int, int]] = [(0, 0)]  # (translated, original)
        self._length = 0
        self._reader = Reader(text, _compile_filter)
        self._translate()
        self.text = "".join(self._parts)

    def original(self, translated: int) -> int:
        before = [anchor for anchor in self._anchors if anchor[0] <= translated]
        start, source = before[-1]
        return min(source + translated - start, len(self._source))

    def _emit(self, part: str, source: int) -> None:
        self._anchors.append((self._length, source))
        self._parts.append(part)
        self._length += len(part)

    def _translate(self) -> None:
        text, at = self._source, 0
        while at < len(text):
            character = text[at]
            if character in "\"'":
                end = closing_quote(text, at)
                self._emit(text[at:end], at)
                at = end
            elif character in "$@":
                at = self._reference(at, existence=False)
            elif has := _HAS.match(text, at):
                at = self._existence(at, has.end())
            elif word := _WORD.match(text, at):
                self._emit(self._word(word), at)
                at = word.end()
            else:
                self._emit(character, at)
                at += 1

    def _word(self, word: re.Match[str]) -> str:
        written = word.group()
        if written == "len" and self._source[word.end() : word.end() + 1] != "(":
            return written
        before = self._source[: word.start()].rstrip()
        return written if before.endswith(".") else _WORDS.get(written, written)

    def _reference(self, at: int, existence: bool) -> int:
        try:
            reference, end = self._reader.read(at)
        except ReferenceSyntaxError as error:
            raise ExpressionSyntaxError(str(error), error.position) from error
        name = f"{'h' if existence else 'r'}{len(self.variables)}"
        if len(self.variables) == MAX_VARIABLES:
            raise ExpressionSyntaxError(f"more than {MAX_VARIABLES} references", at)
        self.variables.append(_Variable(name, reference, at, existence))
        self._emit(name, at)
        return end

    def _existence(self, at: int, inner: int) -> int:
        end = self._reference(inner, existence=True)
        rest = self._source[end:]
        if not rest.lstrip().startswith(")"):
            raise ExpressionSyntaxError("has() takes one reference", at)
        return end + rest.index(")") + 1


def closing_quote(text: str, start: int) -> int:
    """The position after the string that begins at `start`."""
    at = start + 1
    while at < len(text):
        if text[at] == "\\":
            at += 1
        elif text[at] == text[start]:
            return at + 1
        at += 1
    raise ExpressionSyntaxError("a string is not closed", start)


def _syntax_error(error: RuntimeError, translation: _Translation) -> ExpressionSyntaxError:
    message = str(error)
    if "recursion depth" in message:
        return ExpressionSyntaxError("nested too deep, or more than 32 operators in a row", 0)
    location = _LOCATION.search(message)
    position = translation.original(int(location.group(1)) - 1) if location else 0
    rest = message[location.end() :] if location else message
    first = rest.split("\n")[0].replace(" (in container '')", "")
    first = re.sub(r",? expecting \{.*", "", first).replace("<EOF>", "the end")
    return ExpressionSyntaxError(first, position)


class _FilterScope:
    """The scope of a filter: `@` is the candidate, everything else is as outside."""

    __slots__ = ("_here", "_outer")

    def __init__(self, here: Any, outer: Scope) -> None:
        self._here = here
        self._outer = outer

    def root(self, root: Root, code: str) -> Any:
        return self._here if root is Root.HERE else self._outer.root(root, code)


def _compile_filter(text: str, position: int) -> Filter:
    try:
        condition = Expression(text)
    except ExpressionSyntaxError as error:
        raise ReferenceSyntaxError(str(error), position + error.position) from error

    def test(candidate: Any, scope: Scope) -> bool:
        # A candidate without the field that is asked for does not match; it is no error.
        try:
            return condition.evaluate(_FilterScope(candidate, scope)) is True
        except ExpressionFailed:
            return False

    def has(candidate: Any, scope: Scope) -> bool:
        value = condition.references[0].resolve(_FilterScope(candidate, scope))
        return value is not MISSING and value is not False

    bare = len(condition.references) == 1 and condition.references[0].text == text.strip()
    outer = tuple(found for found in condition.references if found.root is not Root.HERE)
    return Filter(text, has if bare else test, outer)


_NO_STEPS = (
    ("..", "; name every step of the path"),
    (".*", "; [*] stands for all items of a list, a field needs its name"),
)


def parse_reference(text: str) -> Reference:
    """A string that is nothing but a reference, `$.a.b` or `$.a.b?` (null where missing).

    Errors: `ReferenceSyntaxError`.
    """
    optional = text.endswith("?")
    body = text[:-1] if optional else text
    reference, end = Reader(body, _compile_filter).read(0)
    if end != len(body):
        rest = body[end:]
        advice = next((text for sign, text in _NO_STEPS if rest.startswith(sign)), "")
        raise ReferenceSyntaxError(f"{rest!r} does not belong to a reference{advice}", end)
    return Reference(reference.root, reference.code, reference.path, text, optional)
