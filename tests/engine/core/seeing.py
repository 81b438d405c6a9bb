"""Data for references and expressions to look at."""

from __future__ import annotations

from typing import Any

from engine.core.references import MISSING, Root

BOOKS = [
    {"title": "Sayings", "price": 8.95, "pages": 300},
    {"title": "Sword", "price": 12.99, "pages": 500},
    {"title": "Moby", "price": 8.99, "isbn": "0-553", "pages": 700},
]


class Seen:
    """A scope with a trigger's input, what led here, nodes by code, and an env."""

    def __init__(self, trigger: Any = MISSING, **nodes: Any) -> None:
        self._trigger = trigger
        self._nodes = nodes

    def root(self, root: Root, code: str) -> Any:
        if root is Root.NODE:
            return self._nodes.get(code, MISSING)
        if root is Root.ENV:
            return {"region": "cn"}
        return self._trigger if root in (Root.TRIGGER, Root.LAST) else MISSING
