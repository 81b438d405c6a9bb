"""What finding the part of an expression that failed may cost."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from engine.core import expressions
from engine.core.blame import MOST_MACROS, blame
from engine.core.expressions import (
    LEAST_BLAMED,
    MOST_BLAMED,
    Expression,
    ExpressionFailed,
    _env,
)
from tests.engine.core.seeing import Seen


class Fails:
    """Answers as it is told, and then that no part fails; counts."""

    def __init__(self, *answers: bool) -> None:
        self._answers = list(answers)
        self.asked = 0

    def __call__(self, part: bytes) -> bool:
        self.asked += 1
        return self._answers.pop(0) if self._answers else False


def compiled(text: str) -> bytes:
    data: bytes = _env.compile(text).serialize()
    return data


LIST = f"[{', '.join(str(n) for n in range(50))}]"


def test_no_more_parts_are_evaluated_than_is_said() -> None:
    for most in (0, 1, 7, 49):
        fails = Fails()
        assert blame(compiled(LIST), "", fails, most) is None
        assert fails.asked == most


def test_where_nothing_inside_fails_it_is_the_whole() -> None:
    fails = Fails()
    assert blame(compiled(LIST), "", fails, 50) == 0
    assert fails.asked == 50


def test_the_way_to_the_innermost_counts_as_well() -> None:
    nested = "1 + (2 + (3 + (4 + (5 + 6))))"
    fails = Fails(*[False, True] * 2)
    assert blame(compiled(nested), "", fails, 4) is None
    assert fails.asked == 4
    fails = Fails(*[False, True] * 4)
    assert blame(compiled(nested), "", fails, 10) == nested.index("+ 6")


MACRO = "[1].all(x, x > 0)"


@pytest.mark.parametrize("wrap", ["{}", "({}) == true", "!({})"])
def test_few_parts_with_a_macro_are_evaluated(wrap: str) -> None:
    macros = ", ".join(wrap.format(MACRO) for _ in range(MOST_MACROS + 2))
    fails = Fails()
    assert blame(compiled(f"[{macros}]"), "", fails, 1_000) is None
    assert fails.asked == MOST_MACROS


def test_parts_without_a_macro_are_not_counted_as_such() -> None:
    fails = Fails()
    assert blame(compiled(f"[{MACRO}, 1, 2, 3, 4, 5]"), "", fails, 6) == 0
    assert fails.asked == 6


def bound_of(monkeypatch: pytest.MonkeyPatch, text: str, data: dict[str, Any]) -> list[int]:
    """What may be asked when the expression fails; empty where nothing is."""
    bounds: list[int] = []

    def seeing(part: bytes, function: str, fails: Callable[[bytes], bool], most: int) -> int | None:
        bounds.append(most)
        return blame(part, function, fails, most)

    monkeypatch.setattr(expressions, "blame", seeing)
    with pytest.raises(ExpressionFailed):
        Expression(text).evaluate(Seen(data))
    return bounds


def test_the_more_data_the_fewer_parts_are_evaluated(monkeypatch: pytest.MonkeyPatch) -> None:
    small, large = {"s": "x"}, {"s": "x" * 1_000_000}
    assert bound_of(monkeypatch, "$$$.s / 2 == 1", small) == [MOST_BLAMED]
    assert bound_of(monkeypatch, "$$$.s / 2 == 1", large) == [LEAST_BLAMED]
    [between] = bound_of(monkeypatch, "$$$.s / 2 == 1", {"s": "x" * 20_000})
    assert LEAST_BLAMED < between < MOST_BLAMED


def test_of_a_spent_budget_no_part_is_to_blame(monkeypatch: pytest.MonkeyPatch) -> None:
    text = "$$$.l.all(a, $$$.l.all(b, $$$.l.all(c, true)))"
    assert bound_of(monkeypatch, text, {"l": list(range(300))}) == []
