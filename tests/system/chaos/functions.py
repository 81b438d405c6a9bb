"""What every function of the load must answer: pure, so that a worker and the oracle agree."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

APP = "chaos"
BUSY, BOOM = "BUSY", "BOOM"  # worth another attempt, and not
STALL = 3.0  # seconds that the first attempt of `stall` takes
DEFAULT_WORK = 0.01  # seconds


@dataclass(frozen=True, slots=True)
class Answer:
    """What an attempt ends with: a value, or a failure with its code. `work` is how long the
    worker takes for it, in seconds."""

    value: Any = None
    code: str = ""
    work: float = DEFAULT_WORK


def answer(function: str, given: dict[str, Any], attempt: int) -> Answer:
    """Errors: `KeyError` for a function that nobody offers."""
    return _ANSWERS[function.partition("/")[2]](given, attempt)


def _flaky(given: dict[str, Any], attempt: int) -> Answer:
    return Answer(code=BUSY) if attempt <= given["fails"] else Answer(given["n"] + 1)


def _stall(given: dict[str, Any], attempt: int) -> Answer:
    return Answer(given["n"] + 1, work=STALL if attempt == 1 else DEFAULT_WORK)


_ANSWERS: dict[str, Callable[[dict[str, Any], int], Answer]] = {
    "inc": lambda given, _: Answer(given["n"] + 1),
    "add": lambda given, _: Answer(given["a"] + given["b"]),
    "sum": lambda given, _: Answer(sum(given["items"])),
    "slow": lambda given, _: Answer(given["n"] + 1, work=given["pause"]),
    "boom": lambda given, _: Answer(code=BOOM),
    "undo": lambda given, _: Answer(-given["n"]),
    "flaky": _flaky,
    "stall": _stall,
}
FUNCTIONS = tuple(f"{APP}/{name}" for name in _ANSWERS)
