"""Whether data has the shape of a story: its JSON Schema, in sentences."""

from __future__ import annotations

import difflib
import json
from collections.abc import Iterator
from importlib import resources
from typing import Any

import jsonschema_rs

from engine.core.findings import Finding, shorten
from engine.document.text import Path, dotted

SCHEMA: dict[str, Any] = json.loads(
    resources.files("cli.scenarios").joinpath("story.schema.json").read_text("utf-8")
)
_validator = jsonschema_rs.validator_for(SCHEMA)
_MENDS = {
    "duration": "write a duration such as 200ms, 5s or 1h30m",
    "function": "write app/name",
    "named": "write app/name, or app/name@2 for the second snapshot that the story publishes",
    "target": "write app/name, or app/* for everything of the app",
    "trace": "a trace's name is a letter, then letters, digits and _",
}


def check_shape(data: Any) -> list[Finding]:
    """Unknown keys, missing keys, wrong types and values, each at its path."""
    return [finding for error in _validator.iter_errors(data) for finding in _findings(data, error)]


def _findings(data: Any, error: Any) -> Iterator[Finding]:
    path, value = _follow(data, error.instance_path)
    kind = error.kind
    where, seen = dotted(path), shorten(json.dumps(value, ensure_ascii=False, default=str))
    match kind.name:
        case "additionalProperties":
            known = _known(error.schema_path)
            for key in kind.unexpected:
                yield _unknown(dotted((*path, key)), key, known)
        case "required":
            mend = f"add {kind.property}:"
            yield Finding("MISSING_KEY", where, f"{kind.property} is missing", mend=mend)
        case "type":
            message = f"must be of type {' or '.join(kind.types)}"
            yield Finding("WRONG_TYPE", where, message, seen, _mend(error))
        case "propertyNames":
            key = str(kind.error.instance)
            yield Finding(
                "NAME_INVALID", dotted((*path, key)), f"{key} is no name here", key, _mend(error)
            )
        case "pattern":
            yield Finding("VALUE_INVALID", where, f"{value} cannot stand here", seen, _mend(error))
        case "enum":
            message = f"must be one of {', '.join(map(str, kind.options))}"
            yield Finding("VALUE_INVALID", where, message, seen)
        case "anyOf":
            choices = "; ".join(str(inner.message) for group in kind.context for inner in group)
            message = f"fits none of the ways to write it: {choices}"
            yield Finding("VALUE_INVALID", where, message, seen)
        case _:
            yield Finding("VALUE_INVALID", where, str(error.message), seen, _mend(error))


def _follow(data: Any, instance_path: list[str | int]) -> tuple[Path, Any]:
    """The library turns keys that look like numbers into integers; this turns them back."""
    path: list[str | int] = []
    for part in instance_path:
        if isinstance(data, dict):
            part = str(part)
            data = data.get(part)
        else:
            data = data[part]
        path.append(part)
    return tuple(path), data


def _known(schema_path: list[str | int]) -> list[str]:
    schema: Any = SCHEMA
    for part in schema_path[:-1]:
        schema = schema[part]
    return list(schema.get("properties", {}))


def _unknown(where: str, key: str, known: list[str]) -> Finding:
    close = difflib.get_close_matches(key, known, 1)
    mend = f"did you mean {close[0]}?" if close else f"known here: {', '.join(known)}"
    return Finding("UNKNOWN_KEY", where, f"{key} is not known here", key, mend)


def _mend(error: Any) -> str:
    names = [name for name in _MENDS if name in error.schema_path]
    return _MENDS[names[-1]] if names else ""
