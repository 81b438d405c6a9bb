"""Whether a payload fits a JSON Schema. The only module of the core that knows the library."""

from __future__ import annotations

from functools import lru_cache
from typing import Any

import jsonschema_rs

from engine.core.payload import NotJson, Payload, json_text, to_value

MAX_COMPLAINTS = 20


@lru_cache(maxsize=1_000)
def _validator(schema: str) -> Any:
    # Offline: a $ref in somebody's schema must not make the server fetch an address.
    return jsonschema_rs.validator_for(schema, offline=True)


def complaints(schema: Any, payload: Payload, root: str) -> list[tuple[str, str]]:
    """(path, sentence) for each place that does not fit, at most twenty; paths begin with `root`.

    Errors: `NotJson` when the payload is no JSON.
    """
    data = to_value(payload)
    found: list[tuple[str, str]] = []
    for error in _validator(json_text(schema)).iter_errors(data):
        path = root + "".join(
            f"[{part}]" if isinstance(part, int) else f".{part}" for part in error.instance_path
        )
        found.append((path, str(error.message)))
        if len(found) == MAX_COMPLAINTS:
            break
    return found


def complaint(schema: Any, payload: Payload) -> str:
    """Why the payload does not fit, in a sentence; empty when it does."""
    try:
        found = complaints(schema, payload, "$")
    except NotJson as error:
        return str(error)
    if not found:
        return ""
    path, message = found[0]
    more = f" (and {len(found) - 1} more)" if len(found) > 1 else ""
    return f"{path}: {message}{more}"
