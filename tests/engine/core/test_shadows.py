"""Conditions that leave nothing for others, against what CEL says of them."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from engine.core.checks.conditions import Other, read_condition
from engine.core.checks.shadows import Shadow, dead_edges, implies, shadows
from engine.core.expressions import Expression, ExpressionFailed, ExpressionSyntaxError
from engine.core.playbook import Edge, EdgeKind, Node, Nop, Playbook
from tests.engine.core.seeing import Seen


@pytest.mark.parametrize(
    ("first", "then"),
    [
        ("$.a.n > 20", "$.a.n > 10"),
        ("20 < $.a.n", "$.a.n >= 20"),
        ("$.a.n == 5", "5 == $.a.n"),
        ("$.a.n == 5", "$.a.n in [4, 5]"),
        ("$.a.n in [1, 2]", "$.a.n < 3"),
        ("$.a.n > 20 and $.b.x", "$.a.n > 10"),
        ("$.a.n > 3", "$.a.n != 3"),
        ("!($.a.n > 3)", "$.a.n < 4"),
        ("$.a.n == 1", "has($.a)"),
        ("$.a.ok", "$.a.ok == true"),
        ("not $.a.ok", "$.a.ok == false"),
        ("$.a.n == 1 || $.a.n == 2", "$.a.n <= 2"),
        ("$.a.s == 'x'", "$.a.s != 'y'"),
        ("$.a.s < 'b'", "$.a.s < 'c'"),
        ("size($.a.l) > 3", "len($.a.l) > 2"),
        ("$.a.n > 1 and $.a.s == 'x'", '$.a.s == "x" && $.a.n > 1'),
        ("$.a.n > 100", "true"),
    ],
)
def test_one_condition_implies_another(first: str, then: str) -> None:
    assert implies(read_condition(first), read_condition(then))


@pytest.mark.parametrize(
    ("first", "then"),
    [
        ("$.a.n > 10", "$.a.n > 20"),
        ("$.a.n >= 3", "$.a.n > 3"),
        ("$.a.n > 10", "$.b.n > 10"),
        ("$.a.n == true", "$.a.n == 1"),
        ("$.a.s == 'a b'", "$.a.s == 'ab'"),
        ("$.a.s == '10'", "$.a.n > 5"),
        ("$.a.n != 3", "$.a.n > 3"),
        ("$.a.n == 1 || $.b.x", "$.a.n == 1"),
        ("has($.a.n)", "$.a.n > 1"),
        ("$.a.n in $.b", "$.a.n in [1]"),
    ],
)
def test_one_condition_does_not_imply_another(first: str, then: str) -> None:
    assert not implies(read_condition(first), read_condition(then))


def choices(*conditions: str) -> Playbook:
    nodes = [Node(code, Nop()) for code in ("a", *(f"b{n}" for n in range(len(conditions))))]
    edges = [
        Edge("a", f"b{n}", EdgeKind.CHOICE, condition) for n, condition in enumerate(conditions)
    ]
    return Playbook("p", "a", tuple(nodes), tuple(edges))


def test_a_choice_behind_a_wider_one_is_shadowed() -> None:
    drawn = choices("$$.n > 10", "$$.n < 5", "$$.n > 20", "true", "$$.x")
    assert shadows(drawn) == [Shadow(2, 0), Shadow(4, 3)]


def test_an_edge_for_failures_behind_one_for_all_is_shadowed() -> None:
    nodes = tuple(Node(code, Nop()) for code in "abcd")
    error = EdgeKind.ERROR
    edges = (
        Edge("a", "b", error, priority=5),
        Edge("a", "c", error, codes=("X", "Y")),
        Edge("a", "d", error, priority=1, codes=("Y",)),
        Edge("a", "d", error, priority=9, codes=("Z",)),
    )
    assert shadows(Playbook("p", "a", nodes, edges)) == [Shadow(2, 1), Shadow(3, 0)]


def test_edges_that_are_switched_off_shadow_nothing() -> None:
    assert shadows(choices("false", "false", "$$.x > 1")) == []


def test_false_and_what_stands_beside_true_is_dead() -> None:
    drawn = choices("false", "true")
    edges = (*drawn.edges, Edge("a", "b0", EdgeKind.OTHERWISE))
    assert dead_edges(Playbook("p", "a", drawn.nodes, edges)) == {0, 2}


@pytest.mark.parametrize(
    "text", ["r'a' == $.a", "'''a''' == $.a", "$.a // b", "{'a': 1}", "1u", "'\\'' == $.a", "("]
)
def test_what_is_not_followed_is_only_itself(text: str) -> None:
    assert isinstance(read_condition(text), Other)


def test_depth_is_bounded() -> None:
    assert isinstance(read_condition("(" * 2_000 + "1" + ")" * 2_000), Other)
    assert isinstance(read_condition("!" * 2_000 + "$.a"), object)
    assert not implies(read_condition("!" * 2_000 + "$.a"), read_condition("$.b"))


constants = st.sampled_from(["0", "1", "2", "1.5", "true", "false", "null", "'a'", "'b'", "-1"])
reads = st.sampled_from(["$.a.n", "$.a.m", "$.a"])
simple = st.one_of(
    st.tuples(reads, st.sampled_from(["==", "!=", "<", "<=", ">", ">="]), constants).map(" ".join),
    st.tuples(constants, st.sampled_from(["==", "<", ">="]), reads).map(" ".join),
    st.tuples(reads, st.lists(constants, max_size=3)).map(
        lambda t: f"{t[0]} in [{','.join(t[1])}]"
    ),
    reads,
    reads.map("has({})".format),
    st.sampled_from(["true", "false"]),
)
conditions = st.recursive(
    simple,
    lambda inner: st.one_of(
        st.tuples(inner, st.sampled_from(["&&", "||", "and", "or"]), inner).map(
            lambda t: f"({t[0]}) {t[1]} ({t[2]})"
        ),
        inner.map("!({})".format),
    ),
    max_leaves=3,
)
values = st.sampled_from([0, 1, 2, 1.5, -1, True, False, None, "a", "b", "c", 3, [], {}])
data = st.dictionaries(st.sampled_from(["n", "m"]), values) | values


@settings(max_examples=400, deadline=None)
@given(conditions, conditions, st.lists(data, min_size=6, max_size=6))
def test_what_is_implied_is_never_false(first: str, then: str, seen: list[object]) -> None:
    try:
        one, other = Expression(first), Expression(then)
    except ExpressionSyntaxError:
        return
    if not implies(read_condition(first), read_condition(then)):
        return
    for value in seen:
        try:
            if one.holds(Seen(a=value)):
                assert other.holds(Seen(a=value))
        except ExpressionFailed:
            continue
