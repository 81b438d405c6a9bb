"""What changed between two documents, path by path."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from engine.core.payload import json_text


@dataclass(frozen=True, slots=True)
class Difference:
    """`before` and `after` are JSON; empty where there is nothing."""

    path: str
    change: str
    before: str
    after: str


def differences(before: Any, after: Any, path: str = "") -> Iterator[Difference]:
    """Objects are compared key by key, edges by their ends, everything else whole."""
    if isinstance(before, dict) and isinstance(after, dict):
        for key in [*before, *(key for key in after if key not in before)]:
            inner = f"{path}.{key}" if path else key
            if key not in before:
                yield Difference(inner, "added", "", json_text(after[key]))
            elif key not in after:
                yield Difference(inner, "removed", json_text(before[key]), "")
            else:
                yield from differences(before[key], after[key], inner)
    elif path == "edges":
        yield from differences(_by_ends(before), _by_ends(after), "edges")
    elif before != after:
        yield Difference(path, "changed", json_text(before), json_text(after))


def _by_ends(edges: list[dict[str, Any]]) -> dict[str, Any]:
    named: dict[str, Any] = {}
    for edge in edges:
        name = f"{edge['from']}->{edge['to']}"
        while name in named:
            name += "'"
        named[name] = {key: value for key, value in edge.items() if key not in ("from", "to")}
    return named
