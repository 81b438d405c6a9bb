"""Conditions of the older dialect: each gets an error that names what to write instead, and what is
named can be written."""

from __future__ import annotations

import pytest

from engine.core.expressions import Expression, ExpressionSyntaxError

TABLE = [
    ("equals($.A.B, 'A')", "==", "$.A.B == 'A'"),
    ("gt(len($.a), 4)", "a > b", "len($.a) > 4"),
    ("gte($.a, 4)", "a >= b", "$.a >= 4"),
    ("lt($.a, 4)", "a < b", "$.a < 4"),
    ("lte($.a, 4)", "a <= b", "$.a <= 4"),
    ("contains($.a, 'x')", "a.contains", '$.a.contains("x")'),
    ("getKey($.a, 'k')", 'a["key"]', '$.a["k"] == 1'),
    ("getIndex($.a, 0)", "a[0]", "$.a[0] == 1"),
    ("in($.a, $.b)", "x in", "$.a in [1, 2]"),
    ("$.a in (1, 2, 3)", "in brackets", "$.a in [1, 2, 3]"),
    ("iif($.a, 1, 2)", "? a : b", "$.a ? 1 : 2"),
    ("abs($.a)", "math.abs", "math.abs($.a) > 1"),
    ("max($.a, 2)", "math.greatest", "math.greatest($.a, 2) > 1"),
    ("min($.a, 2)", "math.least", "math.least($.a, 2) > 1"),
    ("round($.a)", "math.round", "math.round($.a) > 1.0"),
    ("truncate($.a)", "math.trunc", "math.trunc($.a) > 1.0"),
    ("mod($.a, 2)", "a % b", "$.a % 2 == 0"),
    ("concat($.a, 'x')", "a + b", "$.a + 'x' == 'y'"),
    ("$.a =~ 'x'", "matches", "$.a.matches('x')"),
    ("$.a !~ 'x'", "!a.matches", "!$.a.matches('x')"),
    ("$.a ** 2 > 3", "a * a", "$.a * $.a > 3"),
    ("$.a << 1 == 2", "bitShiftLeft", "math.bitShiftLeft($.a, 1) == 2"),
    ("$.a >> 1 == 2", "bitShiftRight", "math.bitShiftRight($.a, 1) == 2"),
    ("$.a ?? 1", "has(", "has($.a.b) ? $.a.b : 1"),
    ("$.a <> 1", "write !=", "$.a != 1"),
    ("$.a = 1", "write ==", "$.a == 1"),
    ("$.a & 1", "bitAnd", "math.bitAnd($.a, 1) == 1"),
    ("$.a | 1", "bitOr", "math.bitOr($.a, 1) == 1"),
    ("$.a ^ 1", "bitXor", "math.bitXor($.a, 1) == 1"),
    ("~1", "bitNot", "math.bitNot(1) == 1"),
    ("$.a == 1 AND $.b == 2", "instead of AND write and", "$.a == 1 and $.b == 2"),
    ("$.a == 1 OR $.b == 2", "instead of OR write or", "$.a == 1 or $.b == 2"),
]


@pytest.mark.parametrize(("older", "word", "today"), TABLE, ids=[row[0] for row in TABLE])
def test_what_was_written_is_told_how_to_write_it(older: str, word: str, today: str) -> None:
    with pytest.raises(ExpressionSyntaxError) as refused:
        Expression(older)
    assert word in str(refused.value)
    Expression(today)


@pytest.mark.parametrize(
    "text", ["1 +", "$.a == 'x = 1' and", "unknown(1)", "$.equals == 1 and", "'gt(1' + "]
)
def test_other_mistakes_get_no_such_advice(text: str) -> None:
    with pytest.raises(ExpressionSyntaxError) as refused:
        Expression(text)
    assert "instead of" not in str(refused.value)
