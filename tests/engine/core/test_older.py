"""Conditions and paths of the older dialect: what has a sensible meaning works, the rest gets an
error that names what to write instead, and that can be written."""

from __future__ import annotations

from typing import Any

import pytest

from engine.core.expressions import Expression, ExpressionSyntaxError, parse_reference
from engine.core.references import MISSING, ReferenceSyntaxError, Root
from engine.core.templates import MappingFailed, compile_template, render

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


# Paths, over the older system's own book store.

STORE = {
    "expensive": 10,
    "book": [
        {"author": "Nigel Rees", "price": 8.95},
        {"author": "Evelyn Waugh", "price": 12.99},
        {"author": "Herman Melville", "isbn": "0-553", "price": 8.99},
        {"author": "J. R. R. Tolkien", "isbn": "0-395", "price": 22.99, "signed": False},
    ],
}


class Scope:
    def root(self, root: Root, code: str) -> Any:
        return STORE if root is Root.NODE else MISSING


PATHS = [
    ("$.s.book[0].price", 8.95),
    ("$.s.book[-1].price", 22.99),
    ("$.s.book[0,2].price", [8.95, 8.99]),
    ("$.s.book[ 3 , -4 , 9 ].price", [22.99, 8.95]),
    ("$.s.book[0:2].price", [8.95, 12.99]),  # the upper bound is excluded now
    ("$.s.book[:].price", [8.95, 12.99, 8.99, 22.99]),
    ("$.s.book[1:].price", [12.99, 8.99, 22.99]),
    ("$.s.book[*].isbn", ["0-553", "0-395"]),
    ("$.s.book[?(@.isbn)].price", [8.99, 22.99]),
    ("$.s.book[?(@.signed)].price", []),  # it is there and says no
    ("$.s.book[?(@.price > 10)].price", [12.99, 22.99]),
    ("$.s.book[?(@.price<10)].price", [8.95, 8.99]),
    ("$.s.book[?(@.price < $.s.expensive)].price", [8.95, 8.99]),
    ("$.s.book[?(@.author.matches('(?i).*REES'))].price", [8.95]),
    ("$.s['expensive']", 10),
    ("$.s.nothing", MISSING),
    ("$.s.expensive.more", MISSING),  # the older one gave 10
    ("$.s.book[9]", MISSING),
]


@pytest.mark.parametrize(("text", "value"), PATHS, ids=[row[0] for row in PATHS])
def test_a_path_of_the_book_store(text: str, value: Any) -> None:
    assert parse_reference(text).resolve(Scope()) == value


@pytest.mark.parametrize(
    ("text", "word"),
    [
        ("$.s.book[?(@.author =~ /(?i).*REES/)]", "matches"),
        ("$.s..price", "every step"),
        ("$.s.*", "[*]"),
        ("$.s.book[a]", "neither an index"),
        ("$.s.book[0,]", "neither an index"),
        ("$x", "a reference begins with"),
        ("$[0]", "a reference begins with"),
    ],
)
def test_a_path_that_is_none_is_told_what_to_write(text: str, word: str) -> None:
    with pytest.raises(ReferenceSyntaxError) as refused:
        parse_reference(text)
    assert word in str(refused.value)


def test_a_field_that_is_asked_of_a_list_is_told_how_to_ask_its_items() -> None:
    with pytest.raises(MappingFailed, match=r"write \[\*\]\.price"):
        render(compile_template("$.s.book.price"), Scope())
    assert render(compile_template("$.s.book.price?"), Scope()) is None
