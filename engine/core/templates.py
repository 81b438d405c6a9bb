"""Input and output mappings: JSON with references, expressions and texts in it.

A string that begins with `$` is a reference, `${ expr }` alone is an expression, `a ${ expr } b`
is a text, `$\\` at the start escapes; everything else is itself, at any depth.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from engine.core.expressions import (
    Expression,
    ExpressionFailed,
    ExpressionSyntaxError,
    parse_reference,
)
from engine.core.payload import json_text
from engine.core.references import MISSING, Reference, ReferenceSyntaxError, Scope, closing

MAX_DEPTH = 32


class MappingFailed(ValueError):
    """A template has no value on this data; `path` is where in the template."""

    def __init__(self, message: str, path: str) -> None:
        super().__init__(f"{path}: {message}" if path else message)
        self.path = path


class TemplateSyntaxError(ValueError):
    """A string of the template is malformed. `path` is where in the template."""

    def __init__(self, message: str, path: str, text: str) -> None:
        super().__init__(message)
        self.path = path
        self.text = text


@dataclass(frozen=True, slots=True)
class Literal:
    value: Any


@dataclass(frozen=True, slots=True)
class Text:
    """Literal strings and expressions in turn."""

    parts: tuple[str | Expression, ...]


@dataclass(frozen=True, slots=True)
class Object:
    fields: tuple[tuple[str, Template], ...]


@dataclass(frozen=True, slots=True)
class List:
    items: tuple[Template, ...]


Template = Literal | Reference | Expression | Text | Object | List


def compile_template(value: Any, path: str = "", depth: int = 0) -> Template:
    """Errors: `TemplateSyntaxError`."""
    if depth > MAX_DEPTH:
        raise TemplateSyntaxError(f"nested deeper than {MAX_DEPTH}", path, "")
    if isinstance(value, str):
        return _compile_string(value, path)
    if isinstance(value, dict):
        fields = tuple(
            (key, compile_template(item, _join(path, key), depth + 1))
            for key, item in value.items()
        )
        constant = {key: item.value for key, item in fields if isinstance(item, Literal)}
        return Literal(constant) if len(constant) == len(fields) else Object(fields)
    if isinstance(value, list):
        items = tuple(
            compile_template(item, f"{path}[{index}]", depth + 1)
            for index, item in enumerate(value)
        )
        constants = [item.value for item in items if isinstance(item, Literal)]
        return Literal(constants) if len(constants) == len(items) else List(items)
    return Literal(value)


def _join(path: str, key: str) -> str:
    return f"{path}.{key}" if path else key


def _compile_string(text: str, path: str) -> Template:
    try:
        if text.startswith("$\\"):
            return Literal("$" + text[2:])
        if text.startswith("$") and not text.startswith("${"):
            return parse_reference(text)
        if "${" not in text:
            return Literal(text)
        parts = tuple(_parts(text))
    except (ReferenceSyntaxError, ExpressionSyntaxError) as error:
        raise TemplateSyntaxError(f"{error} (at {error.position + 1})", path, text) from error
    if len(parts) == 1 and isinstance(parts[0], Expression):
        return parts[0]
    return Text(parts)


def _parts(text: str) -> Iterator[str | Expression]:
    at = 0
    while (start := text.find("${", at)) >= 0:
        end = closing(text, start + 2, "{", "}")
        if end < 0:
            raise ExpressionSyntaxError("${ is not closed", start)
        if start > at:
            yield text[at:start]
        try:
            yield Expression(text[start + 2 : end].strip())
        except ExpressionSyntaxError as error:
            raise ExpressionSyntaxError(str(error), start + 3 + error.position) from error
        at = end + 1
    if at < len(text):
        yield text[at:]


def render(template: Template, scope: Scope, path: str = "") -> Any:
    """The template's value on this data.

    Errors: `MappingFailed`; it names the place in the template and the values seen.
    """
    if isinstance(template, Literal):
        return template.value
    if isinstance(template, Reference):
        value = template.resolve(scope)
        if value is not MISSING:
            return value
        if template.optional:
            return None
        advice = template.into_list(scope) or f"; write {template.text}? to get null instead"
        raise MappingFailed(f"{template.text} does not exist{advice}", path)
    if isinstance(template, Object):
        return {key: render(item, scope, _join(path, key)) for key, item in template.fields}
    if isinstance(template, List):
        return [render(item, scope, f"{path}[{i}]") for i, item in enumerate(template.items)]
    try:
        if isinstance(template, Expression):
            return template.evaluate(scope)
        return "".join(
            part if isinstance(part, str) else _as_text(part.evaluate(scope))
            for part in template.parts
        )
    except ExpressionFailed as error:
        raise MappingFailed(str(error), path) from error


def _as_text(value: Any) -> str:
    return value if isinstance(value, str) else json_text(value)


def references_of(template: Template) -> Iterator[Reference]:
    """Every reference in the template, those inside expressions included."""
    if isinstance(template, Reference):
        yield from template.all()
    elif isinstance(template, Expression):
        yield from template.references
    elif isinstance(template, Text):
        for part in template.parts:
            if isinstance(part, Expression):
                yield from part.references
    elif isinstance(template, Object):
        for _, item in template.fields:
            yield from references_of(item)
    elif isinstance(template, List):
        for item in template.items:
            yield from references_of(item)
