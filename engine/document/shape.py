"""Whether data has the shape of a playbook document: the published JSON Schema, in sentences."""

from __future__ import annotations

import difflib
import json
from functools import cache
from importlib import resources
from typing import Any

import jsonschema_rs

from engine.core.findings import Finding, shorten
from engine.document.durations import parse_duration
from engine.document.text import Path, dotted

SCHEMA: dict[str, Any] = json.loads(
    resources.files("engine.document").joinpath("playbook.schema.json").read_text("utf-8")
)
# What goes with what is there for editors; `_kinds` and `engine.core.checks.idle` say it better.
_TOLD_ELSEWHERE = ("oneOf", "not", "dependentSchemas", "works", "tasks")
KIND_WORDS = ("task", "playbook", "map", "hook", "sleep", "until", "nop", "repeat")


def _duration_fault(text: str) -> str:
    """What is wrong with a duration, empty for a good one."""
    try:
        parse_duration(text)
    except ValueError as error:
        return str(error)
    return ""


def _limit_fault(text: str) -> str:
    """To the engine 0 means that there is no limit; a document leaves it out."""
    if not _duration_fault(text) and not parse_duration(text):
        return f"{text!r} is no time at all; where there is no limit leave it out"
    return _duration_fault(text)


_FAULTS = {"duration": _duration_fault, "limit": _limit_fault}
_FORMATS = {
    "magicflow-duration": lambda text: not _duration_fault(text),
    "magicflow-limit": lambda text: not _limit_fault(text),
}


@cache
def _validator(definition: str) -> Any:
    """Of the schema, or of the part of it at a place."""
    schema = SCHEMA
    for step in filter(None, definition.split("/")):
        schema = schema[step]
    whole = {**schema, "$defs": SCHEMA["$defs"]}
    return jsonschema_rs.validator_for(whole, formats=_FORMATS, validate_formats=True)


def fits(value: Any, part: str) -> bool:
    """Whether the value fits the part of the schema at a place such as `$defs/node`."""
    return bool(_validator(part).is_valid(value))


def check_shape(data: Any) -> list[Finding]:
    """Unknown keys, missing keys, wrong types, values out of range; node and edge kinds."""
    findings: list[Finding] = []
    for error in _validator("").iter_errors(data):
        if not _is_about(error, *_TOLD_ELSEWHERE):
            findings.extend(_sentences(data, error))
    if isinstance(data, dict):
        findings.extend(_kinds(data))
    return findings


def _sentences(data: Any, error: Any) -> list[Finding]:
    path, value = _follow(data, error.instance_path)
    kind = error.kind
    where, seen = dotted(path), shorten(json.dumps(value, ensure_ascii=False, default=str))
    if kind.name == "additionalProperties":
        allowed = _allowed(error.schema_path)
        return [_unknown_key((*path, key), key, allowed) for key in kind.unexpected]
    if kind.name == "required":
        message = f"{kind.property} is missing"
        return [Finding("MISSING_KEY", where, message, mend=f"add {kind.property}:")]
    if kind.name == "propertyNames":
        inner = kind.error
        return [
            Finding(
                "NAME_INVALID",
                where,
                str(inner.message),
                mend="a node's code is a letter, then up to 63 letters, digits or _",
            )
        ]
    if kind.name == "type":
        wanted = " or ".join(kind.types)
        return [Finding("WRONG_TYPE", where, f"must be of type {wanted}", seen, _mend_for(error))]
    if kind.name == "anyOf":
        choices = "; ".join(str(inner.message) for group in kind.context for inner in group)
        return [
            Finding(
                "VALUE_INVALID",
                where,
                f"fits none of the ways to write it: {choices}",
                seen,
                "write it in one of these ways",
            )
        ]
    if kind.name == "format" or (kind.name == "pattern" and _fault(error, value)):
        if kind.name == "pattern":
            return []  # the format says it better
        return [Finding("VALUE_INVALID", where, _fault(error, value), seen, _mend_for(error))]
    code = "NAME_INVALID" if _is_about(error, "name", "target", "callee") else "VALUE_INVALID"
    return [Finding(code, where, str(error.message), seen, _mend_for(error))]


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


def _allowed(schema_path: list[str | int]) -> list[str]:
    schema: Any = SCHEMA
    for part in schema_path[:-1]:
        schema = schema[part]
    return list(schema.get("properties", {}))


def _unknown_key(path: Path, key: str, allowed: list[str]) -> Finding:
    close = difflib.get_close_matches(key, allowed, 1)
    mend = f"did you mean {close[0]}?" if close else f"known here: {', '.join(allowed) or 'none'}"
    return Finding("UNKNOWN_KEY", dotted(path), f"{key} is not known here", key, mend)


def _is_about(error: Any, *definitions: str) -> bool:
    return any(part in definitions for part in error.schema_path)


def _fault(error: Any, value: str) -> str:
    """What is wrong with the duration that an error is about; empty where it is about none."""
    return next((_FAULTS[name](value) for name in _FAULTS if _is_about(error, name)), "")


def _mend_for(error: Any) -> str:
    if _is_about(error, "duration", "limit"):
        return "write a duration such as 200ms, 5s or 1h30m"
    if _is_about(error, "name"):
        return "a name is a small letter, then up to 63 small letters, digits, _ or -"
    if _is_about(error, "target", "callee"):
        return "write app/name, or name alone for this playbook's own app"
    return "write what the message asks for; `magicflow playbook schema` has it all"


def _kinds(data: dict[str, Any]) -> list[Finding]:
    findings: list[Finding] = []
    nodes = data.get("nodes")
    for code, node in nodes.items() if isinstance(nodes, dict) else ():
        if isinstance(node, dict):
            findings.extend(node_faults(code, node))
    edges = data.get("edges")
    for index, edge in enumerate(edges if isinstance(edges, list) else ()):
        if isinstance(edge, dict):
            findings.extend(edge_faults(index, edge))
    return findings


def kinds_of(node: dict[str, Any]) -> list[str]:
    """The words in it that say what a node does; one, where all is well."""
    hook_after = "task" in node and node.get("hook") is True
    return [word for word in KIND_WORDS if word in node and not (hook_after and word == "hook")]


def node_faults(code: str, node: dict[str, Any]) -> list[Finding]:
    """What is wrong with how a node says what it does."""
    kinds = kinds_of(node)
    path = f"nodes.{code}"
    if not kinds:
        return [
            Finding(
                "NODE_KIND_MISSING",
                path,
                f"{code} does not say what it does",
                mend=f"add one of {', '.join(KIND_WORDS)}",
            )
        ]
    if len(kinds) > 1:
        message = f"{code} has {len(kinds)} kinds: {', '.join(kinds)}"
        return [Finding("NODE_KIND_AMBIGUOUS", path, message, mend="keep one of them")]
    if kinds == ["hook"] and isinstance(node["hook"], bool):
        message = "hook: true belongs beside a task"
        return [Finding("VALUE_INVALID", f"{path}.hook", message, mend="write hook: {}")]
    if "map" in node and isinstance(node["map"], dict):
        bodies = [word for word in ("task", "playbook") if word in node["map"]]
        if len(bodies) != 1:
            message = "a map runs either a task or a playbook"
            mend = "write one of task: and playbook: in the map"
            return [Finding("NODE_KIND_AMBIGUOUS", f"{path}.map", message, mend=mend)]
    return []


def edge_faults(index: int, edge: dict[str, Any]) -> list[Finding]:
    """What is wrong with how an edge says when it is taken."""
    path = f"edges[{index}]"
    words = [word for word in ("when", "otherwise", "on") if word in edge]
    if len(words) > 1:
        message = f"an edge has one condition, this one has {' and '.join(words)}"
        return [Finding("EDGE_KIND_AMBIGUOUS", path, message, mend="keep one of them")]
    if "codes" in edge and edge.get("on") != "error":
        message = "codes belongs to an edge with on: error"
        return [Finding("EDGE_KIND_AMBIGUOUS", f"{path}.codes", message, mend="add on: error")]
    if "priority" in edge and not ("when" in edge or "on" in edge):
        message = "priority orders choice and error edges only"
        return [Finding("EDGE_KIND_AMBIGUOUS", f"{path}.priority", message, mend="remove it")]
    return []
