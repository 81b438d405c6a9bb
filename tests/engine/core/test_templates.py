"""Input and output mappings."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from engine.core.templates import (
    MAX_DEPTH,
    Literal,
    MappingFailed,
    TemplateSyntaxError,
    compile_template,
    references_of,
    render,
)
from tests.engine.core.seeing import Seen

DATA = {"n": 3, "s": "x", "l": [1], "o": {"k": "ü"}, "big": 2**100}


@pytest.mark.parametrize(
    ("template", "value"),
    [
        (None, None),
        (1.5, 1.5),
        ("plain", "plain"),
        ("", ""),
        ("$$$.n", 3),
        ("$$$.nowhere?", None),
        ("${ $$$.n + 1 }", 4),
        ("${$$$.l}", [1]),
        ("n is ${ $$$.n }!", "n is 3!"),
        ("${ $$$.n }${ $$$.s }", "3x"),
        ("l is ${ $$$.l }, o is ${ $$$.o }", 'l is [1], o is {"k":"ü"}'),
        (" ${ $$$.n }", " 3"),
        ("${ '}' }", "}"),
        ("${ {'a': 1} }", {"a": 1}),
        ("$\\$$$.n", "$$$$.n"),
        ("$\\.n", "$.n"),
        ("$\\{ 1 }", "${ 1 }"),
        ("$\\", "$"),
        ("costs 5$", "costs 5$"),
        ("a $.n b", "a $.n b"),
        ({"a": ["$$$.n", {"b": "${ $$$.s }"}], "c": 1}, {"a": [3, {"b": "x"}], "c": 1}),
        ({"$$$.n": "key"}, {"$$$.n": "key"}),
        ("größe ${ $$$.o.k } ✓", "größe ü ✓"),
        ("$$$.big", 2**100),
        ([], []),
        ({}, {}),
    ],
)
def test_a_template_has_a_value(template: Any, value: Any) -> None:
    assert render(compile_template(template), Seen(DATA)) == value


@pytest.mark.parametrize(
    ("template", "complaint"),
    [
        ("$$$.nowhere", "in: $$$.nowhere does not exist; write $$$.nowhere? to get null instead"),
        ({"a": [0, "$$$.x"]}, "in.a[1]: $$$.x does not exist"),
        ("${ $$$.x }", "in: `$$$.x`: $$$.x (at 1) does not exist"),
        ({"a": "n: ${ $$$.s + 1 }"}, "in.a: `$$$.s + 1`: + at 7 does not take"),
    ],
)
def test_a_template_without_value_says_where_and_why(template: Any, complaint: str) -> None:
    with pytest.raises(MappingFailed) as failed:
        render(compile_template(template), Seen(DATA), "in")
    assert str(failed.value).startswith(complaint)


@pytest.mark.parametrize(
    ("template", "path", "complaint"),
    [
        ("$x", "", "(at 1)"),
        ({"a": [1, "$.b["]}, "a[1]", "a [ is not closed (at 4)"),
        ("${ 1 +", "", "${ is not closed (at 1)"),
        ("a ${ 1 + }", "", "(at 9)"),
        ("a ${ }", "", "the expression is empty"),
        ("$.a b", "", "' b' does not belong to a reference (at 4)"),
    ],
)
def test_a_malformed_string_is_refused_with_place_and_position(
    template: Any, path: str, complaint: str
) -> None:
    with pytest.raises(TemplateSyntaxError) as refused:
        compile_template(template)
    assert refused.value.path == path
    assert complaint in str(refused.value)


def test_depth_has_a_bound() -> None:
    def nested(depth: int) -> Any:
        value: Any = 1
        for _ in range(depth):
            value = [value]
        return value

    compile_template(nested(MAX_DEPTH))
    with pytest.raises(TemplateSyntaxError, match="nested deeper than 32"):
        compile_template(nested(MAX_DEPTH + 1))


def test_what_contains_no_reference_is_a_literal() -> None:
    assert isinstance(compile_template({"a": [1, {"b": "text"}], "c": "$\\x"}), Literal)


def test_every_reference_of_a_template_is_known() -> None:
    template = compile_template({"a": "$.x", "b": ["${ $.y }", "t ${ $.z[?(@ > $.w)] }"], "c": 1})
    assert [found.code for found in references_of(template)] == ["x", "y", "z", "w"]


@given(
    st.recursive(
        st.none() | st.booleans() | st.integers() | st.text().filter(lambda t: "$" not in t),
        lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
        max_leaves=10,
    )
)
def test_data_without_dollars_stands_for_itself(value: Any) -> None:
    assert render(compile_template(value), Seen()) == value


@given(st.text("$\\{}.[]?ab 1'\"", max_size=12))
def test_a_text_behind_the_escape_stands_for_itself(text: str) -> None:
    assert render(compile_template("$\\" + text), Seen()) == "$" + text
