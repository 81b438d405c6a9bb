"""What the library says of values that stand in the document."""

from __future__ import annotations

from collections.abc import Iterable
from itertools import islice
from typing import Any

import jsonschema_rs

from engine.core.checks.schemas import Budget, Declared

MAX_COMPLAINTS = 5
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
