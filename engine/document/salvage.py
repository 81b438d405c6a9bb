"""What can be read of a document that is not faultless, so that everything else that is wrong with
it is found at the same time.

Whatever breaks the shape is left out, and something that no rule finds fault with stands in its
place: nothing is reported that is wrong only because something was left out.
"""

from __future__ import annotations

from collections.abc import Mapping, Set
from dataclasses import dataclass
from typing import Any

from engine.core.playbook import Playbook
from engine.document.reading import to_playbook
from engine.document.shape import SCHEMA, edge_faults, fits, kinds_of, node_faults
from engine.document.text import Document, Path

UNREAD = "\0"  # a name that no document can have
UNREAD_CALLEE = f"{UNREAD}/{UNREAD}"
_ANYTHING = "$._env.unread?"  # a mapping of which no type is known
_KNOWN = SCHEMA["$defs"]["node"]["properties"].keys()
_TIMES = ("timeout", "queue_timeout", "total_timeout", "heartbeat")
_ALL_OR_NOTHING = ("hook", "retry", "compensate")  # half of it may be without effect
_ANY_EDGE = {"from": UNREAD, "to": UNREAD}


@dataclass(frozen=True, slots=True)
class Readable:
    """`given` names the keys of each node. `untold` are the places of edges whose kind or ends
    could not be read, also of edges that stand for others. Names that could not be read are
    `UNREAD`."""

    playbook: Playbook
    given: Mapping[str, Set[str]]
    untold: frozenset[int] = frozenset()

    @property
    def app(self) -> str:
        """Empty when it could not be read."""
        return "" if self.playbook.app == UNREAD else self.playbook.app


def readable(data: dict[str, Any], untold: frozenset[int] = frozenset()) -> Readable:
    """Of data that has the right shape."""
    given = {code: node.keys() for code, node in data["nodes"].items()}
    return Readable(to_playbook(data), given, untold)


def salvage(document: Document) -> Readable | None:
    """None when nothing of it could be read."""
    if not isinstance(document.data, dict):
        return None
    return _Salvage(document.data, document.twice).rest()


@dataclass(slots=True)
class _Pruned:
    """What is left of a value. `lost`: a part that the language knows; `strange`: one that it
    does not."""

    value: Any
    lost: bool = False
    strange: bool = False


def _prune(value: Any, place: str) -> _Pruned | None:
    """Without what breaks the schema at the place; None when nothing is left."""
    schema = SCHEMA
    for step in place.split("/"):
        schema = schema[step]
    if not isinstance(value, dict) or "properties" not in schema:
        return _Pruned(value) if fits(value, place) else None
    known = schema["properties"].keys()
    pruned = _Pruned({}, strange=not value.keys() <= known)
    for key in value.keys() & known:
        part = _prune(value[key], f"{place}/properties/{key}")
        pruned.lost |= part is None or part.lost
        pruned.strange |= part is not None and part.strange
        if part is not None:
            pruned.value[key] = part.value
    return pruned if all(key in pruned.value for key in schema.get("required", ())) else None


class _Salvage:
    def __init__(self, data: dict[str, Any], twice: frozenset[Path]) -> None:
        self._data = data
        self._twice = twice
        self._strange = not data.keys() <= SCHEMA["properties"].keys()
        self._untold: set[int] = set()

    def rest(self) -> Readable:
        book: dict[str, Any] = {"playbook": UNREAD, "app": UNREAD}
        for key in self._data.keys() & SCHEMA["properties"].keys() - {"nodes", "edges"}:
            if fits(self._data[key], f"properties/{key}"):
                book[key] = self._data[key]
        nodes = self._data.get("nodes")
        if isinstance(nodes, dict) and nodes and ("nodes",) not in self._twice:
            book["nodes"] = {code: self._node(code, node) for code, node in nodes.items()}
            book["edges"] = self._edges()
            if self._strange:
                book.setdefault("output", _ANYTHING)
        else:  # without a node every reference and edge would lead nowhere
            book["nodes"] = {}
            book.pop("output", None)
            book.pop("output_schema", None)
        return readable(book, frozenset(self._untold))

    def _is_twice(self, *path: str | int) -> bool:
        return any(place[: len(path)] == path for place in self._twice)

    def _node(self, code: str, data: Any) -> dict[str, Any]:
        if not isinstance(data, dict) or self._is_twice("nodes", code):
            return {"playbook": UNREAD_CALLEE, "input": _ANYTHING}
        kept, strange = {}, not data.keys() <= _KNOWN
        for key in data.keys() & _KNOWN:
            part = _prune(data[key], f"$defs/node/properties/{key}")
            whole = part is not None and not part.lost
            if part is not None and whole and not (part.strange and key in _ALL_OR_NOTHING):
                kept[key] = part.value
            elif key in _TIMES:
                kept[key] = "1s"
            elif part is not None and key == "hook":
                kept["hook"] = {"timeout": "1s"}  # it had one, or was meant to
        if node_faults(code, data) or kinds_of(data)[0] not in kept:
            may_be_map = "map" in data or not kinds_of(data)  # then the input may read $item
            kept = {key: kept[key] for key in ("join", "compensate", "input") if key in kept}
            kept["playbook"] = UNREAD_CALLEE
            if may_be_map:
                kept["input"] = _ANYTHING
        if strange:  # a key that was meant to be another one
            kept.setdefault("input", _ANYTHING)
            if "task" in kept:
                kept.setdefault("timeout", "1s")
                kept.setdefault("hook", True)
        return kept

    def _edges(self) -> list[dict[str, Any]]:
        data = self._data.get("edges", [])
        missing = "edges" not in self._data and self._strange
        if not isinstance(data, list) or missing or ("edges",) in self._twice:
            self._untold.add(0)
            return [_ANY_EDGE]
        return [self._edge(index, edge) for index, edge in enumerate(data)]

    def _edge(self, index: int, data: Any) -> dict[str, Any]:
        whole = fits(data, "$defs/edge") and not edge_faults(index, data)
        if whole and not self._is_twice("edges", index):
            return dict(data)
        self._untold.add(index)
        kept = dict(_ANY_EDGE)
        for key in ("from", "to", "when"):
            if isinstance(data, dict) and fits(data.get(key), f"$defs/edge/properties/{key}"):
                kept[key] = data[key]
        return kept
