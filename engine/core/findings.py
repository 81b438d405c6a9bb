"""What checking a playbook brings to light."""

from __future__ import annotations

from dataclasses import dataclass, replace


@dataclass(frozen=True, slots=True)
class Finding:
    """One broken rule. `path` points into the document (`nodes.pay.input.amount`); line and
    column count from 1, 0 where there is no text. `mend` says what to write instead."""

    code: str
    path: str
    message: str
    seen: str = ""
    mend: str = ""
    warning: bool = False
    line: int = 0
    column: int = 0

    def at(self, line: int, column: int) -> Finding:
        return replace(self, line=line, column=column)


def shorten(text: str, limit: int = 80) -> str:
    return text if len(text) <= limit else text[: limit - 1] + "…"
