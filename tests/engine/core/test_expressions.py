"""Conditions and computed values."""

from __future__ import annotations

import contextlib
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from engine.core.expressions import (
    MAX_TEXT,
    MAX_VARIABLES,
    Expression,
    ExpressionFailed,
    ExpressionSyntaxError,
)
from tests.engine.core.seeing import BOOKS, Seen

DATA = {
    "n": 3, "f": 1.5, "s": "text", "t": True, "l": [1, 2, 3], "o": {"k": "v"}, "z": None,
    "big": 2**62, "u": "größe ✓", "books": BOOKS,
}  # fmt: skip


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("1 == 1", True),
        ("$$$.n > 2 and $$$.n < 4", True),
        ("$$$.n > 2 && !($$$.n > 3)", True),
        ("not $$$.t or $$$.n == 3", True),
        ("not ($$$.n == 3)", False),
        ("$$$.n + 1", 4),
        ("$$$.n * 2 - 1", 5),
        ("$$$.f * 2.0", 3.0),
        ("double($$$.n) + $$$.f", 4.5),
        ("$$$.s + '!'", "text!"),
        ("$$$.s == 'text'", True),
        ("$$$.s.startsWith('te')", True),
        ("$$$.s.matches('^t.*t$')", True),
        ("$$$.s.size()", 4),
        ("len($$$.s)", 4),
        ("size($$$.l) + len($$$.l)", 6),
        ("len($$$.u)", 7),
        ("2 in $$$.l", True),
        ("'k' in $$$.o", True),
        ("$$$.n == 3 ? 'three' : 'other'", "three"),
        ("$$$.l.exists(x, x > 2)", True),
        ("$$$.l.all(x, x > 2)", False),
        ("$$$.l.map(x, x * 2)", [2, 4, 6]),
        ("$$$.l.filter(x, x != 2)", [1, 3]),
        ("$$$.z == null", True),
        ("has($$$.n)", True),
        ("has($$$.nowhere)", False),
        ("has( $$$.o.k ) && $$$.o.k == 'v'", True),
        ("has($$$.o.x) && $$$.o.x > 3", False),
        ("has($$$.z)", True),
        ("has($$$.l[2]) && !has($$$.l[3])", True),
        ("len($$$.books[?(@.price < 10.0)]) == 2", True),
        ("$$$.big + 1", 2**62 + 1),
        ("'and $.not.a.reference or len()'", "and $.not.a.reference or len()"),
        ('"a \\" $$$.n"', 'a " $$$.n'),
        ("'✓' + $$$.u", "✓größe ✓"),
        ("$._env.region == 'cn'", True),
        ("$$$.f > 1", True),
        ("$$$.n == 3.0", True),
        ("{'a': $$$.n}", {"a": 3}),
        ("[$$$.n, $$$.s]", [3, "text"]),
        ("$$$.n == '3'", False),
    ],
)
def test_an_expression_has_a_value(text: str, value: Any) -> None:
    assert Expression(text).evaluate(Seen(DATA)) == value


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("$$$.nowhere > 1", "$$$.nowhere (at 1) does not exist; guard it with has($$$.nowhere)"),
        ("1 < 2 && $$$.o.x == 1", "$$$.o.x (at 10) does not exist"),
        ("$.other.x == 1", "$.other.x (at 1) does not exist"),
        ("$$$.s > 1", "> at 7 does not take a string and an integer [saw $$$.s = "),
        ("$$$.f + 1", "write double(…) or int(…) around one side"),
        ("$$$.n / 0", "divide by zero"),
        ("$$$.big * 4", "overflow"),
        ("$$$.l[7]", "does not exist"),
        ("$$$.l.map(x, $$$.o.y)", "does not exist"),
    ],
)
def test_an_expression_without_value_says_why_and_what_it_saw(text: str, complaint: str) -> None:
    with pytest.raises(ExpressionFailed) as failed:
        Expression(text).evaluate(Seen(DATA))
    assert str(failed.value).startswith(f"`{text}`: ")
    assert complaint in str(failed.value)


ODD = {"a": 1, "s": "x", "l": [1, 2], "n": None, "m": {}, "d": 1.5, "b": True, "z": 0}


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("$$$.s + $$$.a", "+ at 7 does not take a string and an integer"),
        ("$$$.a  *  $$$.d > 2", "* at 8 does not take an integer and a double; write double(…)"),
        ("$$$.a + $$$.a + 1 + $$$.s", "+ at 19 does not take an integer and a string"),
        ("$$$.b && ($$$.s - 1 > 0)", "- at 17 does not take a string and an integer"),
        ("$$$.a == 2 || $$$.a + $$$.s > 1", "+ at 21 does not take"),
        ("$$$.a > 1 ? 0 : $$$.a + $$$.s", "+ at 23 does not take"),
        ('"é" + $$$.s + $$$.a', "+ at 13 does not take"),
        ("-$$$.s", "- at 1 does not take a string"),
        ("not $$$.s", "not at 1 does not take these values"),
        ("$$$.s and $$$.b", "and at 7 does not take these values"),
        ("$$$.a in $$$.a", "in at 7 does not take these values"),
        ("$$$.a ? 1 : 2", "? : at 7 does not take these values"),
        ("$$$.n > 1", "> at 7 does not take null and an integer"),
        ("$$$.m + $$$.l", "+ at 7 does not take an object and a list"),
        ("1 + size($$$.a)", "size at 5 does not take an integer"),
        ("len($$$.a) > 1", "len at 1 does not take an integer"),
        ('$$$.b and $$$.a.startsWith("x")', "startsWith at 17 does not take an integer and a"),
        ("math.greatest($$$.s, 1)", "greatest at 6 does not take a string and an integer"),
        ("$$$.l.exists(x, x + $$$.s == 1)", "+ at 19 does not take an integer and a string"),
        ("$$$.l.exists(x, x + 1 + $$$.s == 1)", "+ does not take an integer and a string"),
        ("[1, $$$.a + $$$.s][0]", "+ at 11 does not take"),
        ('{"k": $$$.a + $$$.s}.k', "+ at 13 does not take"),
        ("1 + $$$.a / $$$.z", "divide by zero (at 11)"),
        ("1 + int($$$.s)", "cannot convert string to int (at 5)"),
        ("9223372036854775807 + $$$.a", "integer overflow (at 21)"),
    ],
)
def test_a_complaint_names_the_place_of_what_failed(text: str, complaint: str) -> None:
    with pytest.raises(ExpressionFailed) as failed:
        Expression(text).evaluate(Seen(ODD))
    assert str(failed.value).startswith(f"`{text}`: {complaint}")
    assert "[saw " in str(failed.value)


def test_a_complaint_shows_values_and_cuts_long_ones() -> None:
    with pytest.raises(ExpressionFailed) as failed:
        Expression("$$$.a + $$$.b > 1").evaluate(Seen({"a": "x" * 500, "b": 1}))
    assert '[saw $$$.a = "xxx' in str(failed.value)
    assert "…, $$$.b = 1]" in str(failed.value)
    assert len(str(failed.value)) < 400


@pytest.mark.parametrize("value", [0, 1, "true", None, []])
def test_a_condition_is_true_or_false_and_nothing_else(value: Any) -> None:
    with pytest.raises(ExpressionFailed, match="must be true or false"):
        Expression("$$$").holds(Seen(value))


@pytest.mark.parametrize(
    ("text", "position"),
    [
        ("", 0),
        ("   ", 0),
        ("1 +", 3),
        ("$$$.n == ", 9),
        ("$$$.n > > 3", 8),
        ("$$$.nn.nn.nn > > 3", 15),
        ("'open", 0),
        ("1 == 'open", 5),
        ("$x == 1", 0),
        ("1 == $.", 5),
        ("has($.a, 1)", 0),
        ("$.a[?(@.x >)] == 1", 11),
        ("foo(1)", 3),
        ("x + 1", 0),
    ],
)
def test_a_syntax_error_has_its_position(text: str, position: int) -> None:
    with pytest.raises(ExpressionSyntaxError) as refused:
        Expression(text)
    assert refused.value.position == position


def test_a_text_has_a_bound() -> None:
    Expression("1" + " " * (MAX_TEXT - 1))
    with pytest.raises(ExpressionSyntaxError, match="longer than 4096 characters"):
        Expression("1" + " " * MAX_TEXT)


def test_references_have_a_bound() -> None:
    def listing(count: int) -> str:
        return "[" + ", ".join(f"$.n{i}" for i in range(count)) + "]"

    Expression(listing(MAX_VARIABLES))
    with pytest.raises(ExpressionSyntaxError, match="more than 64 references"):
        Expression(listing(MAX_VARIABLES + 1))


def test_too_many_operators_in_a_row_are_refused_in_plain_words() -> None:
    with pytest.raises(ExpressionSyntaxError, match="more than 32 operators in a row"):
        Expression(" + ".join("1" * 40))


@pytest.mark.parametrize("depth", [100, 2_000])
def test_deep_nesting_is_refused_or_computed_but_never_crashes(depth: int) -> None:
    with contextlib.suppress(ExpressionSyntaxError):
        assert Expression("(" * depth + "1" + ")" * depth).evaluate(Seen()) == 1


def test_nested_loops_have_a_budget() -> None:
    nested = Expression("$$$.map(x, $$$.map(y, $$$.map(z, x + y + z)))")
    with pytest.raises(ExpressionFailed, match="budget"):
        nested.evaluate(Seen(list(range(200))))


def test_a_result_has_a_bound() -> None:
    doubled = Expression("$$$ + $$$")
    with pytest.raises(ExpressionFailed, match="larger than"):
        doubled.evaluate(Seen("x" * 600_000))


@pytest.mark.parametrize("value", [2**64, -(2**63) - 1, 2**200])
def test_integers_that_cannot_be_computed_with_fail_clearly(value: int) -> None:
    with pytest.raises(ExpressionFailed, match="out of range"):
        Expression("$$$ > 1").evaluate(Seen(value))


def test_bytes_are_no_json() -> None:
    assert Expression("true ? 'a' : 'b'").evaluate(Seen()) == "a"
    with pytest.raises(ExpressionFailed):
        Expression("1.0 / 0.0").holds(Seen())


def test_references_are_listed_in_the_order_of_the_text() -> None:
    expression = Expression("has($.a.x) && $$$.l[?(@ > $.b)] == [1]")
    assert [found.text for found in expression.references] == [
        "$.a.x",
        "$$$.l[?(@ > $.b)]",
        "$.b",
    ]


@given(st.text(max_size=30) | st.text("$@.[]?()'\"&|!<>=+-*/ abn01{},:", max_size=25))
def test_any_text_compiles_or_is_refused_and_any_value_is_one_or_fails(text: str) -> None:
    try:
        expression = Expression(text)
    except ExpressionSyntaxError as error:
        assert 0 <= error.position <= len(text)
        return
    with contextlib.suppress(ExpressionFailed):
        expression.evaluate(Seen({"a": [1, {"b": 2}]}, a={"b": 1}, b=[1]))
