"""What schemas say: examples, and that nothing is said which the library contradicts."""

from __future__ import annotations

from typing import Any

import jsonschema_rs
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from engine.core.checks.clashes import Clash, clash
from engine.core.checks.complaints import Validators
from engine.core.checks.paths import Fault, Problem, follow
from engine.core.checks.schemas import KINDS, Budget, Declared, Exactly, OneOf, Type, declared
from engine.core.checks.shapes import kinds_of
from engine.core.expressions import parse_reference
from engine.core.references import MISSING
from tests.engine.core.seeing import Seen

STRING, INTEGER, NUMBER = {"type": "string"}, {"type": "integer"}, {"type": "number"}


def an_object(closed: bool = False, **fields: Any) -> dict[str, Any]:
    schema: dict[str, Any] = {"type": "object", "properties": fields}
    return {**schema, "additionalProperties": False} if closed else schema


def looked_up(schema: Any, path: str) -> tuple[Type, Problem | None]:
    return follow(declared(schema), parse_reference("$$$" + path).path, Budget())


def kinds_at(schema: Any, path: str) -> set[str]:
    found, problem = looked_up(schema, path)
    assert problem is None
    return set(kinds_of(found, Budget()))


ADDRESS = {"$ref": "#/$defs/address", "$defs": {"address": an_object(True, city=STRING)}}


@pytest.mark.parametrize(
    ("schema", "path", "kinds"),
    [
        (an_object(a=INTEGER), ".a", {"integer"}),
        (an_object(a=NUMBER), ".a", {"integer", "fraction"}),
        (an_object(a={"type": ["string", "null"]}), ".a", {"string", "null"}),
        (an_object(a={"enum": ["x", 1]}), ".a", {"string", "integer"}),
        (an_object(a={"const": 1.5}), ".a", {"fraction"}),
        (ADDRESS, ".city", {"string"}),
        ({"type": "array", "items": STRING}, "[0]", {"string"}),
        ({"type": "array", "items": STRING}, "[-1]", {"string"}),
        ({"prefixItems": [STRING, INTEGER], "items": False}, "[1]", {"integer"}),
        ({"type": "array", "items": an_object(a=STRING)}, "[*].a", {"array"}),
        ({"type": "array", "items": STRING}, "[0:2]", {"array"}),
        ({"anyOf": [an_object(a=STRING), an_object(a=INTEGER)]}, ".a", {"string", "integer"}),
        ({"oneOf": [an_object(True, a=STRING), {"type": "null"}]}, ".a", {"string"}),
        ({"allOf": [an_object(a=NUMBER), an_object(a=INTEGER)]}, ".a", {"integer"}),
        (an_object(a=STRING, b=INTEGER) | {"required": ["a"]}, ".b", {"integer"}),
        ({"type": "object", "additionalProperties": STRING}, ".any", {"string"}),
        (True, ".a", set(KINDS)),
        ({}, ".a.b[0]", set(KINDS)),
        ({"type": "object"}, ".a", set(KINDS)),
        ({"$ref": "https://elsewhere/schema"}, ".a", set(KINDS)),
        ({"properties": {"a": STRING}, "patternProperties": {"^x": INTEGER}}, ".xy", set(KINDS)),
        ({"properties": {"a": STRING}, "additionalProperties": True}, ".b", set(KINDS)),
        ({"properties": {"a": STRING}, "if": {}, "then": {}}, ".b", set(KINDS)),
        ({"properties": {"a": STRING}, "anyOf": [{"$ref": "x:y"}]}, ".b", set(KINDS)),
    ],
)
def test_a_path_leads_to_a_type(schema: Any, path: str, kinds: set[str]) -> None:
    assert kinds_at(schema, path) == kinds


@pytest.mark.parametrize(
    ("schema", "path", "fault", "at"),
    [
        (an_object(True, a=STRING), ".b", Fault.FORBIDDEN, 0),
        (an_object(a=STRING), ".b", Fault.UNLISTED, 0),
        (an_object(a=an_object(True, b=STRING)), ".a.c", Fault.FORBIDDEN, 1),
        (an_object(a=STRING), ".a.b", Fault.NO_OBJECT, 1),
        (an_object(a=STRING), ".a[0]", Fault.NO_LIST, 1),
        (an_object(a=STRING), ".a[*]", Fault.NO_LIST, 1),
        (ADDRESS, ".town", Fault.FORBIDDEN, 0),
        ({"type": "array", "maxItems": 2}, "[2]", Fault.BEYOND, 0),
        ({"prefixItems": [STRING], "items": False}, "[-2]", Fault.BEYOND, 0),
        ({"anyOf": [an_object(True, a={}), an_object(True, b={})]}, ".c", Fault.FORBIDDEN, 0),
        ({"anyOf": [an_object(True, a=STRING), an_object(b=STRING)]}, ".c", Fault.UNLISTED, 0),
        ({"allOf": [an_object(True, a={}), an_object(b=STRING)]}, ".b", Fault.FORBIDDEN, 0),
        ({"const": {"a": 1}}, ".b", Fault.FORBIDDEN, 0),
    ],
)  # fmt: skip
def test_a_path_leads_nowhere(schema: Any, path: str, fault: Fault, at: int) -> None:
    problem = looked_up(schema, path)[1]
    assert problem is not None
    assert (problem.fault, problem.at, problem.many) == (fault, at, False)


def test_a_path_through_items_that_lack_the_field_finds_nothing() -> None:
    problem = looked_up({"items": an_object(True, a=STRING), "type": "array"}, "[*].b")[1]
    assert problem == Problem(Fault.FORBIDDEN, 1, ("a",), many=True)


@pytest.mark.parametrize(
    ("value", "wanted", "path", "message"),
    [
        (INTEGER, STRING, "", "is integer, must be string"),
        (NUMBER, {"type": ["string", "null"]}, "", "is number, must be null or string"),
        ({"enum": ["a", "b"]}, {"enum": ["c", 1]}, "", 'is "a" or "b", must be "c" or 1'),
        ({"const": True}, {"const": False}, "", "is true, must be false"),
        ({"const": True}, {"const": 1}, "", "is boolean, must be integer"),
        (an_object(True, a=STRING), {"type": "object", "required": ["b"]}, "", "lacks b"),
        (an_object(a=STRING) | {"required": ["a"]}, an_object(True), "", "a is not allowed"),
        (an_object(a=STRING), an_object(a=INTEGER) | {"required": ["a"]}, ".a",
         "is string, must be integer"),
        ({"type": "array", "items": STRING}, {"type": "array", "items": INTEGER, "minItems": 1},
         "[0]", "is string, must be integer"),
        ({"type": "array", "maxItems": 1}, {"type": "array", "minItems": 2}, "",
         "has at most 1 items, must have 2"),
        (STRING, False, "", "no value is allowed here"),
        ({"anyOf": [STRING, INTEGER]}, {"type": "boolean"}, "",
         "is string or integer, must be boolean"),
    ],
)  # fmt: skip
def test_types_that_never_meet(value: Any, wanted: Any, path: str, message: str) -> None:
    found = clash(declared(value), declared(wanted), Budget())
    assert found is not None
    assert (found.path, found.message) == (path, message)


@pytest.mark.parametrize(
    ("value", "wanted"),
    [
        (INTEGER, NUMBER),
        (NUMBER, INTEGER),
        ({"type": ["string", "null"]}, STRING),
        ({}, STRING),
        (an_object(a=STRING), an_object(b=INTEGER) | {"required": ["b"]}),
        (an_object(a=STRING), an_object(a=INTEGER)),
        ({"type": "array", "items": STRING}, {"type": "array", "items": INTEGER}),
        (STRING, {"type": "string", "minLength": 5}),
        (STRING, {"not": {"type": "string"}}),
        ({"const": 1}, {"enum": [1.0]}),
        (False, STRING),
        (None, STRING),
    ],
)
def test_types_that_may_meet(value: Any, wanted: Any) -> None:
    assert clash(declared(value), declared(wanted), Budget()) is None


def test_a_value_clashes_like_its_type() -> None:
    found = clash(Exactly({"a": [1]}), declared(an_object(a={"items": STRING})), Budget())
    assert found == Clash(".a[0]", "is integer, must be string")


def test_a_circle_of_references_says_nothing() -> None:
    for schema in ({"$ref": "#"}, {"anyOf": [{"$ref": "#"}]}, {"allOf": [{"$ref": "#"}] * 16}):
        assert kinds_of(declared(schema), Budget()) == KINDS


def test_work_is_bounded() -> None:
    doubling: dict[str, Any] = {
        f"d{n}": {"allOf": [{"$ref": f"#/$defs/d{n + 1}"}] * 9} for n in range(20)
    }
    schema = {"$ref": "#/$defs/d0", "$defs": doubling | {"d20": {"type": "string"}}}
    budget = Budget(total=50_000)
    assert clash(declared(schema), declared(schema), budget) is None
    assert budget.renew().spend()  # one question cannot use up what there is for all


def test_values_are_judged_by_the_library() -> None:
    validators = Validators(Budget())
    root = {"properties": {"a": {"$ref": "#/$defs/small"}}, "$defs": {"small": {"maximum": 3}}}
    wanted = Declared(root["properties"]["a"], root)
    assert [path for path, _ in validators.complaints(4, wanted)] == [""]
    assert validators.complaints(3, wanted) == []
    keys = Declared({"additionalProperties": STRING}, True)
    assert validators.complaints({"7": 1}, Declared(keys.schema, keys.schema))[0][0] == ".7"
    elsewhere = {"$ref": "http://127.0.0.1:1/schema"}
    assert validators.complaints(1, Declared(elsewhere, elsewhere)) == []


# What the library says, for schemas and values of all kinds.

names = st.sampled_from(["a", "b", "c"])
scalars = st.sampled_from([None, True, False, 0, 1, 1.0, 1.5, "x", "y", ""])
values = st.recursive(
    scalars,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(names, inner, max_size=3),
    max_leaves=5,
)
types = st.sampled_from(["null", "boolean", "integer", "number", "string", "array", "object"])


def keywords(inner: st.SearchStrategy[Any]) -> st.SearchStrategy[Any]:
    return st.fixed_dictionaries(
        {},
        optional={
            "type": types | st.lists(types, min_size=1, max_size=3, unique=True),
            "enum": st.lists(values, min_size=1, max_size=3, unique_by=repr),
            "const": values,
            "properties": st.dictionaries(names, inner, max_size=3),
            "required": st.lists(names, max_size=2, unique=True),
            "additionalProperties": inner,
            "patternProperties": st.fixed_dictionaries({"^b": inner}),
            "items": inner,
            "prefixItems": st.lists(inner, min_size=1, max_size=2),
            "minItems": st.integers(0, 3),
            "maxItems": st.integers(0, 3),
            "anyOf": st.lists(inner, min_size=1, max_size=2),
            "oneOf": st.lists(inner, min_size=1, max_size=2),
            "allOf": st.lists(inner, min_size=1, max_size=2),
            "not": inner,
            "minimum": st.integers(0, 2),
        },
    )


parts = st.recursive(st.booleans() | st.just({"$ref": "#/$defs/d"}), keywords, max_leaves=6)
roots = st.tuples(keywords(parts), parts).map(lambda pair: {**pair[0], "$defs": {"d": pair[1]}})
paths = st.lists(
    st.sampled_from([".a", ".b", ".c", "[0]", "[1]", "[-1]", "[*]", "[0:1]"]), max_size=3
).map("".join)


def fits(value: Any, schema: Any) -> bool:
    return jsonschema_rs.validator_for(schema, offline=True).is_valid(value)


def endless(schema: Any) -> bool:
    """A reference that leads to itself, which the library takes for an error or true."""
    return "$ref" in repr(schema["$defs"])


@settings(max_examples=100, deadline=None)
@given(roots, roots, st.lists(values, max_size=8))
def test_what_fits_both_is_no_clash(one: Any, other: Any, seen: list[Any]) -> None:
    if endless(one) or endless(other):
        return
    found = clash(declared(one), declared(other), Budget())
    for value in seen:
        if fits(value, one):
            assert kinds_of(declared(one), Budget()) >= kinds_of(Exactly(value), Budget())
            assert clash(Exactly(value), declared(one), Budget()) is None
            if fits(value, other):
                assert found is None
    merged = OneOf((declared(one), declared(other)))
    assert clash(merged, declared(one), Budget()) is None or not any(
        fits(value, one) for value in seen
    )


@settings(max_examples=100, deadline=None)
@given(roots, paths, st.lists(values, max_size=8))
def test_what_is_there_is_no_problem(schema: Any, path: str, seen: list[Any]) -> None:
    if endless(schema):
        return
    reference = parse_reference("$$$" + path)
    found, problem = follow(declared(schema), reference.path, Budget())
    for value in seen:
        if not fits(value, schema):
            continue
        there = reference.resolve(Seen(value))
        if there is MISSING or (problem is not None and problem.fault is Fault.UNLISTED):
            continue
        if problem is not None:
            assert problem.many
            assert there == [] or all(item == [] for item in there)
        else:
            assert clash(Exactly(there), found, Budget()) is None
