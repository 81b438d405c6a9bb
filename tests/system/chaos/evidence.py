"""Everything that the oracle judges by. Plain data, so that tests can doctor it."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from engine.core.graph import Graph
from tests.system.chaos.journals import Done, Said
from tests.system.chaos.rows import Rows
from tests.system.chaos.tape import Recorded

EVERYTHING = "*"


@dataclass(frozen=True, slots=True)
class Injection:
    """A fault that was injected. Times are seconds of the monotonic clock, `wall` is the
    beginning in seconds since 1970.

    `excuses` says which second executions it explains: `EVERYTHING` that was under way, what the
    worker of that name had, or nothing. `tasks` are attempts that were given out once more.
    """

    fault: str
    target: str
    at: float
    wall: float
    healed: float
    excuses: str = ""
    tasks: frozenset[tuple[str, str, int]] = frozenset()
    owned: dict[int, int] = field(default_factory=dict)  # partitions of the target, their epochs
    live: int = 0  # traces that had not ended

    def covers(self, since: float, until: float, margin: float) -> bool:
        return self.at <= until and since <= self.healed + margin


@dataclass(frozen=True, slots=True)
class Shown:
    """A trace as `GetTrace` shows it."""

    status: str
    output: Any
    code: str
    outputs: dict[str, Any]  # of the succeeded nodes of its own playbook


@dataclass(frozen=True, slots=True)
class Evidence:
    """Of one cluster, from its beginning. `rows` is SQL at the end, `glimpses` are moments
    before; `shown` may lack traces that nobody asked for."""

    graphs: dict[int, Graph]
    logs: tuple[tuple[Recorded, ...], ...]
    said: tuple[Said, ...]
    done: tuple[Done, ...]
    injections: tuple[Injection, ...]
    rows: Rows
    glimpses: tuple[Rows, ...] = ()
    shown: dict[str, Shown] = field(default_factory=dict)
    altered: tuple[str, ...] = ()  # sentences about frames that changed or went away
    complaints: tuple[str, ...] = ()  # lines of service logs that must not be there
