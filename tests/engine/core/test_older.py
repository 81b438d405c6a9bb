"""Conditions and paths of the older dialect: what has a sensible meaning works, the rest gets an
error that names what to write instead, and that can be written."""

from __future__ import annotations

import operator
from fractions import Fraction
from random import Random
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from engine.core.expressions import (
    Expression,
    ExpressionFailed,
    ExpressionSyntaxError,
    parse_reference,
)
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
    ("round($.a)", "math.round", "math.round(double($.a)) > 1.0"),
    ("truncate($.a)", "math.trunc", "math.trunc(double($.a)) > 1.0"),
    ("trunc($.a)", "math.trunc", "math.trunc(double($.a)) > 1.0"),
    ("floor($.a)", "math.floor", "math.floor(double($.a)) > 1.0"),
    ("ceil($.a)", "math.ceil", "math.ceil(double($.a)) > 1.0"),
    ("ceiling($.a)", "math.ceil", "math.ceil(double($.a)) > 1.0"),
    ("sqrt($.a)", "math.sqrt", "math.sqrt($.a) > 1.0"),
    ("sign($.a)", "math.sign", "math.sign($.a) == 1"),
    ("pow($.a, 2)", "x * x", "$.a * $.a > 3"),
    ("sum($.a, $.b)", "a + b", "$.a + $.b > 3"),
    ("avg($.a, $.b)", "(a + b) / 2.0", "($.a + $.b) / 2.0 > 3.0"),
    ("IF($.a, 1, 2)", "? a : b", "$.a ? 1 : 2"),
    ("LEN($.a) == 1", "len(x)", "len($.a) == 1"),
    ("Max($.a, 2)", "math.greatest", "math.greatest($.a, 2) > 1"),
    ("AND($.a, $.b)", "a and b", "$.a and $.b"),
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
    ("NOT $.a", "instead of NOT write not", "not $.a"),
    ("$.a == TRUE", "write true", "$.a == true"),
    ("$.a xor $.b", "a != b", "$.a != $.b"),
    ("$.a IN [1, 2]", "instead of IN write in", "$.a in [1, 2]"),
    ("$.a IN (1, 2)", "in brackets", "$.a in [1, 2]"),
    ("$.a > #2014-01-02#", "timestamp(", "timestamp($.a) > timestamp('2014-01-02T00:00:00Z')"),
    ("$.a * π", "3.14159", "$.a * 3.141592653589793"),
    ("[param0] == 1", "the reference itself", "$.a == 1"),
    ("Context.x == 1", "$$$", "$$$.x == 1"),
    ("$.a == 0X1F", "0x1F", "$.a == 0x1F"),
    ("$. == 1", "$.<node>", "$.a == 1"),
    ("$$.[0].xxx == 1", "write $$[0]", "$$[0].xxx == 1"),
]


@pytest.mark.parametrize(("older", "word", "today"), TABLE, ids=[row[0] for row in TABLE])
def test_what_was_written_is_told_how_to_write_it(older: str, word: str, today: str) -> None:
    with pytest.raises(ExpressionSyntaxError) as refused:
        Expression(older)
    assert word in str(refused.value)
    Expression(today)


@pytest.mark.parametrize("name", ["log", "LOG", "log10", "exp", "sin", "cos", "tan", "random"])
def test_what_nothing_replaces_is_told_so(name: str) -> None:
    with pytest.raises(ExpressionSyntaxError, match=rf"nothing replaces {name}\(\)"):
        Expression(f"{name}($.a) > 1")


WORKS = [
    ("$$ < 5.5 ? 'a' : 'b'", "a"),
    ("false || true && false", False),
    ("1 + 2 * 3 % 4 - -5", 8),
    ("0x10 + 0xfF", 271),
    ("-0x10", -16),
    ("!true || !false", True),
    ("'a' + \"b\" == 'ab'", True),
    ("'it\\'s' == 'it' + \"'\" + 's'", True),
    ("'2014-01-02' == '2014-01-02'", True),  # no text is ever taken for a time
    ("'2014-01-02' < '2014-01-03'", True),
    ("$$ == '5' || $$ == null || $$ != 5", False),
    ("[1, {'a': 2}] == [1, {'a': 2}]", True),
    ("null == null && $$ != null", True),
    ("2 in [1, 2] and not (3 in [1, 2])", True),
    ("len([1, 2, 3]) == 3 && len('ab') > 1 && len({'a': 1}) == 1", True),
    ("$.s.expensive==10||$.nothing", True),  # the older one took | for a part of the name
    ("$.s.expensive == 10 || $.s.exp.n == 4", True),  # no reference is taken for another's start
    ("$.s.book[0].tags[1] == 'b'", True),  # two brackets
    ("'$.s' + '$x' == '$.s$x'", True),  # a text is a text
    ("$$. == 5 && $$.==5&&   $$.         ==5", True),
]


@pytest.mark.parametrize(("text", "value"), WORKS, ids=[row[0] for row in WORKS])
def test_what_has_a_sensible_meaning_works(text: str, value: Any) -> None:
    assert Expression(text).evaluate(Scope()) == value


@pytest.mark.parametrize(
    "text",
    [
        "1, 2",  # the comma was an operator
        "xxx$$%%s ",
        "1 + 'a'",  # nothing is turned into text
        "$ == 1",
    ],
)
def test_what_has_none_is_refused(text: str) -> None:
    with pytest.raises(ExpressionSyntaxError):
        Expression(text)


@pytest.mark.parametrize("text", ["$.s.expensive > 'a'", "null < 1", "$.s && true", "$$ + 'a'"])
def test_what_would_have_been_guessed_fails(text: str) -> None:
    with pytest.raises((ExpressionFailed, ExpressionSyntaxError)):
        Expression(text).holds(Scope())


# Generated expressions against a reference evaluator.

Tree = tuple[Any, ...]  # (sign, operands…); a leaf is ("", text, value)
BINDING = {
    "?": 0, "||": 1, "&&": 2,
    **dict.fromkeys(("==", "!=", "<", "<=", ">", ">="), 3),
    "+": 4, "-": 4, "*": 5, "/": 5, "%": 5,
    "!": 6, "neg": 6, "": 7,
}  # fmt: skip
WORDS = {"&&": "and", "||": "or", "!": "not "}
LEAVES = st.one_of(
    st.integers(0, 20).map(lambda n: ("", str(n), n)),
    st.integers(0, 40).map(lambda n: ("", hex(n), n)),
    st.sampled_from([("", "$$", 5), ("", "$.s.expensive", 10)]),
)


def numbers(depth: int) -> st.SearchStrategy[Tree]:
    if not depth:
        return LEAVES
    inner = numbers(depth - 1)
    return st.one_of(
        LEAVES,
        st.tuples(st.sampled_from("+-*/%"), inner, inner),
        st.tuples(st.just("neg"), inner),
        st.tuples(st.just("?"), truths(depth - 1), inner, inner),
    )


def truths(depth: int) -> st.SearchStrategy[Tree]:
    plain = st.sampled_from([("", "true", True), ("", "false", False)])
    if not depth:
        return plain
    inner, number = truths(depth - 1), numbers(depth - 1)
    return st.one_of(
        plain,
        st.tuples(st.sampled_from(["&&", "||"]), inner, inner),
        st.tuples(st.sampled_from(["==", "!=", "<", "<=", ">", ">="]), number, number),
        st.tuples(st.just("!"), inner),
        st.tuples(st.just("?"), inner, inner, inner),
    )


def written(tree: Tree, random: Random) -> str:
    """With no bracket that the order of binding makes unnecessary."""
    sign, *operands = tree
    if sign == "":
        return str(operands[0])
    parts = [written(operand, random) for operand in operands]
    for place, operand in enumerate(operands):
        inner, own = BINDING[operand[0]], BINDING[sign]
        # `a - (b - c)`; only `?` binds to the right, with another in its middle in brackets.
        same = place < 2 if sign == "?" else place == 1
        if inner < own or (inner == own and same):
            parts[place] = f"({parts[place]})"
    word = WORDS.get(sign, sign) if random.random() < 0.5 else sign
    space = " " if sign in WORDS or random.random() < 0.5 else ""
    if sign == "?":
        return f"{parts[0]} ? {parts[1]} : {parts[2]}"
    if sign == "neg":
        return f"-{parts[0]}"
    if sign == "!":
        return f"{word}{parts[0]}"
    return f"{parts[0]}{space}{word}{space}{parts[1]}"


def meant(tree: Tree) -> Any:
    """By the tree alone. Integers are divided towards zero, as in CEL."""
    sign, *operands = tree
    if sign == "":
        return operands[1]
    first, *rest = (meant(operand) for operand in operands)
    match sign:
        case "?":
            return rest[0] if first else rest[1]
        case "&&":
            return first and rest[0]
        case "||":
            return first or rest[0]
        case "!":
            return not first
        case "neg":
            return -first
        case "/":
            return int(Fraction(first, rest[0]))
        case "%":
            return first - rest[0] * int(Fraction(first, rest[0]))
    return getattr(operator, NAMES[sign])(first, rest[0])


NAMES = {
    "+": "add", "-": "sub", "*": "mul",
    "==": "eq", "!=": "ne", "<": "lt", "<=": "le", ">": "gt", ">=": "ge",
}  # fmt: skip


@settings(max_examples=600, deadline=None)
@given(truths(3) | numbers(3), st.randoms(use_true_random=False))
def test_operators_bind_as_they_always_have(tree: Tree, random: Random) -> None:
    try:
        value = meant(tree)
    except ZeroDivisionError:
        return
    assert Expression(written(tree, random)).evaluate(Scope()) == value


def test_the_generated_expressions_need_their_brackets() -> None:
    plain, random = ("", "2", 2), Random(1)
    trees = [
        ("-", plain, ("-", plain, plain)),
        ("*", ("+", plain, plain), plain),
        ("&&", ("||", ("", "true", True), ("", "false", False)), ("", "false", False)),
        ("neg", ("+", plain, plain)),
    ]
    for tree in trees:
        text = written(tree, random)
        assert "(" in text
        assert Expression(text).evaluate(Scope()) == meant(tree)
        assert Expression(text.replace("(", "").replace(")", "")).evaluate(Scope()) != meant(tree)


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
        {"author": "Nigel Rees", "price": 8.95, "tags": ["a", "b"]},
        {"author": "Evelyn Waugh", "price": 12.99},
        {"author": "Herman Melville", "isbn": "0-553", "price": 8.99},
        {"author": "J. R. R. Tolkien", "isbn": "0-395", "price": 22.99, "signed": False},
    ],
}


class Scope:
    def root(self, root: Root, code: str) -> Any:
        if root is Root.LAST:
            return 5
        return STORE if root is Root.NODE and code == "s" else MISSING


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
        ("$.", "$.<node>"),
        ("$$.[0].xxx", "write $$[0]"),
        ("$.[0]", "$.<node>"),
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
