"""Paths into the data of a trace."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from engine.core.expressions import parse_reference
from engine.core.references import MAX_PATH, MISSING, ReferenceSyntaxError, Root
from tests.engine.core.seeing import BOOKS, Seen

DATA = {"a": {"b": [10, 20, 30, 40]}, "any key": 1, "x.y": 2, "ü": 3, "n": None, "books": BOOKS}


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("$$$", DATA),
        ("$$$.", DATA),
        ("$$.a.b", [10, 20, 30, 40]),
        ("$.node.x", 5),
        ("$._env.region", "cn"),
        ("$$$.a.b[0]", 10),
        ("$$$.a.b[-1]", 40),
        ("$$$.a.b[ 1 ]", 20),
        ("$$$.a.b[0:2]", [10, 20]),
        ("$$$.a.b[1:]", [20, 30, 40]),
        ("$$$.a.b[:-1]", [10, 20, 30]),
        ("$$$.a.b[9:]", []),
        ("$$$.a.b[*]", [10, 20, 30, 40]),
        ('$$$["any key"]', 1),
        ("$$$['any key']", 1),
        ('$$$["x.y"]', 2),
        ('$$$["ü"]', 3),
        ("$$$.n", None),
        ("$$$.books[*].title", ["Sayings", "Sword", "Moby"]),
        ("$$$.books[*].isbn", ["0-553"]),
        ("$$$.books[?(@.price < 10)].title", ["Sayings", "Moby"]),
        ("$$$.books[?(has(@.isbn))].title", ["Moby"]),
        ("$$$.books[?(@.isbn == '0-553')][0].title", []),
        ("$$$.books[?(@.pages > $.node.limit)].title", ["Moby"]),
        ("$$$.books[?(@.title.startsWith('S') && @.price > 9.0)].title", ["Sword"]),
        ("$$$.books[?(@.nowhere.at.all == 1)]", []),
        ("$$$.books[0:2].price", [8.95, 12.99]),
        ("$$$.a.b[?(@ > 15)]", [20, 30, 40]),
    ],
)
def test_a_reference_gives_the_value_at_its_path(text: str, value: Any) -> None:
    assert parse_reference(text).resolve(Seen(DATA, node={"x": 5, "limit": 600})) == value


@pytest.mark.parametrize(
    "text",
    ["$$$.nowhere", "$$$.a.b[4]", "$$$.a.b[-5]", "$$$.a[0]", "$$$.a.b.c", "$$$.n.x", "$.other",
     "$.other.x[0]", "$$$.a[*]", "$$$.a[?(true)]", "$$$.a.b[0:2].x[0][0].y[9].z[1:]"],
)  # fmt: skip
def test_a_path_that_leads_nowhere_is_missing(text: str) -> None:
    value = parse_reference(text).resolve(Seen(DATA))
    assert value is MISSING or value == []


@pytest.mark.parametrize(
    ("text", "position"),
    [
        ("$", 0),
        ("$.", 0),
        ("$x", 0),
        ("$$$ .a", 3),
        ("$.a b", 3),
        ("$.a[", 3),
        ("$.a[x]", 3),
        ("$.a[1", 3),
        ("$.a[1:2:3]", 3),
        ("$.a[x:2]", 3),
        ('$.a["x]', 3),
        ("$.a[?(@.x > ]", 3),
        ("$.a[?(@.x >)]", 11),
        ("$.a[99999999999]", 3),
        ("$.a..b", 3),
        ("$.a" + "[0]" * (MAX_PATH + 1), 0),
    ],
)
def test_a_malformed_reference_is_refused_with_its_position(text: str, position: int) -> None:
    with pytest.raises(ReferenceSyntaxError) as refused:
        parse_reference(text)
    assert refused.value.position == position


@pytest.mark.parametrize(
    ("text", "root"),
    [("$item", Root.ITEM), ("$index", Root.INDEX), ("$.item", Root.NODE), ("$._env", Root.ENV),
     ("$._environment", Root.NODE)],
)  # fmt: skip
def test_roots_are_told_apart_by_their_whole_name(text: str, root: Root) -> None:
    assert parse_reference(text).root is root


def test_a_question_mark_makes_a_reference_optional() -> None:
    assert parse_reference("$.a.b?").optional
    assert not parse_reference("$.a.b").optional


def test_references_inside_filters_are_known() -> None:
    reference = parse_reference("$.a[?(@.x > $.b.y)].z")
    assert [found.text for found in reference.all()] == ["$.a[?(@.x > $.b.y)].z", "$.b.y"]


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=3),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from("ab"), inner),
    max_leaves=8,
)


@given(JSON, st.sampled_from(["$$$.a[0].b", "$$$[*].a", "$$$[?(@.a > 1)].b", "$$$[-1:][0].a.b"]))
def test_resolving_never_raises_whatever_the_data(data: Any, text: str) -> None:
    parse_reference(text).resolve(Seen(data))
