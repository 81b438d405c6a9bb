"""One fault hides no other and shows as no other: what can be read of a document is checked
whatever else is wrong with it."""

from __future__ import annotations

import copy
import json
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from engine.core.checks.flow import Signature
from engine.core.checks.types import Nothing
from engine.document.examine import Examined, examine_text
from tests.engine.test_bad_documents import BOOKS

HEAD = "playbook: p\napp: shop\n"
SHAPE = {
    "DUPLICATE_KEY",
    "UNKNOWN_KEY",
    "MISSING_KEY",
    "WRONG_TYPE",
    "VALUE_INVALID",
    "NAME_INVALID",
    "NODE_KIND_MISSING",
    "NODE_KIND_AMBIGUOUS",
    "EDGE_KIND_AMBIGUOUS",
}


class Priced:
    """`shop/price` gives a total and nothing else, `shop/pay` takes an amount."""

    def function(self, name: str) -> Signature | None:
        if name == "shop/price":
            total = {"properties": {"total": {"type": "integer"}}, "additionalProperties": False}
            return Signature(output={"type": "object", "required": ["total"], **total})
        if name == "shop/pay":
            return Signature(input={"type": "object", "required": ["amount"]})
        return None

    def playbook(self, name: str, snapshot_id: int) -> Signature | None:
        return None


def found(text: str) -> set[tuple[str, str]]:
    return codes(examine_text(HEAD + text).with_types(Priced()))


def codes(examined: Examined) -> set[tuple[str, str]]:
    return {(finding.code, finding.path) for finding in examined.findings}


EVERY_STAGE = """
bogus: 1
nodes:
  price: {task: price}
  price2: {task: price}
  price2: {task: price}
  see:   {task: f, input: $.price.totel}
  late:  {until: 12}
  pay:   {task: pay, input: {amont: 1}, compensate: {task: f, input: $.nowhere}}
  one:   {task: f, timeout: 0s, input: {x: "${ 1 + }"}}
  two:   {nop: {}, heartbeat: 5s}
edges:
  - {from: price, to: see}
  - {from: price, to: late}
  - {from: late, to: nobody}
  - {from: one, to: two}
  - {from: two, to: one}
  - {from: see, to: pay, otherwise: true}
env: {n: 99999999999999999999999}
input: {type: 3}
output: $$
"""


def test_faults_of_every_stage_are_found_at_once() -> None:
    assert found(EVERY_STAGE) == {
        ("UNKNOWN_KEY", "bogus"),
        ("DUPLICATE_KEY", "nodes.price2"),
        ("FIELD_UNKNOWN", "nodes.see.input"),
        ("WRONG_TYPE", "nodes.late.until"),
        ("TYPE_CLASH", "nodes.pay.input"),
        ("REFERENCE_UNKNOWN", "nodes.pay.compensate.input"),
        ("VALUE_INVALID", "nodes.one.timeout"),
        ("EXPRESSION_INVALID", "nodes.one.input.x"),
        ("OPTION_WITHOUT_EFFECT", "nodes.two.heartbeat"),
        ("EDGE_DANGLING", "edges[2].to"),
        ("GRAPH_CYCLE", "edges[3]"),
        ("OTHERWISE_ALONE", "edges[5]"),
        ("VALUE_INVALID", "env"),
        ("SCHEMA_INVALID", "input"),
        ("REFERENCE_OUT_OF_PLACE", "output"),
    }


ALONE = [
    # What is not there is no reason to complain of what would have needed it.
    ("nods: {a: {task: f}}\noutput: $.a", {("MISSING_KEY", ""), ("UNKNOWN_KEY", "nods")}),
    ("nodes: 3\noutput: $.a\nedges: [{from: a, to: b}]", {("WRONG_TYPE", "nodes")}),
    ("nodes: {a: {task: f}, b: {task: f, input: $.a}}\negdes: [{from: a, to: b}]",
     {("UNKNOWN_KEY", "egdes")}),
    ("nodes: {a: {task: f}, b: {task: f, input: $.a}}\nedges: 3", {("WRONG_TYPE", "edges")}),
    ("nodes: {a: {task: f}, b: {task: f, input: $.a}}\nedges: [{form: a, to: b}]",
     {("MISSING_KEY", "edges[0]"), ("UNKNOWN_KEY", "edges[0].form")}),
    ("nodes: {a: {task: f}, b: {task: f, input: $.a}, c: {nop: {}}}\n"
     "edges: [{from: a, too: b}, {from: b, to: c}]",
     {("MISSING_KEY", "edges[0]"), ("UNKNOWN_KEY", "edges[0].too")}),
    ("nodes: {a: {task: f}, b: {task: f, input: $.a}}\nedges: [{from: a, to: bb}]",
     {("EDGE_DANGLING", "edges[0].to")}),
    ("nodes: {a: {task: f}, b: {task: f, input: $.a}}\nedges: [{from: aa, to: b}]",
     {("EDGE_DANGLING", "edges[0].from")}),
    ("nodes: {a: {task: f}, b: {nop: {}}}\n"
     "edges: [{from: a, to: b, wehn: $$ == 1}, {from: a, to: b, otherwise: true}]",
     {("UNKNOWN_KEY", "edges[0].wehn")}),
    ("nodes: {a: {task: f}, b: {nop: {}}}\n"
     "edges: [{from: a, to: b, on: error, codes: X}, {from: a, to: b, on: error, codes: [Y]}]",
     {("WRONG_TYPE", "edges[0].codes")}),
    # A node is there although it does not say what it does.
    ("nodes: {a: {}, b: {task: f, input: $.a.x}}\nedges: [{from: a, to: b}]",
     {("NODE_KIND_MISSING", "nodes.a")}),
    ("nodes: {a: 3, b: {task: f, input: $.a.x}}\nedges: [{from: a, to: b}]",
     {("WRONG_TYPE", "nodes.a")}),
    ("nodes: {a: {map: {over: $$$}, input: $item}}", {("NODE_KIND_AMBIGUOUS", "nodes.a.map")}),
    ("nodes: {a: {map: {over: $$$, task: 3}, input: $item, heartbeat: 5s}}",
     {("WRONG_TYPE", "nodes.a.map.task")}),
    ("nodes: {a: {nop: 3, heartbeat: 5s}}", {("WRONG_TYPE", "nodes.a.nop")}),
    ("nodes: {a: {task: pay, imput: {amount: 3}}}", {("UNKNOWN_KEY", "nodes.a.imput")}),
    ("nodes: {a: {hook: {timeuot: 5s}}, b: {nop: {}}}\nedges: [{from: a, to: b, on: timeout}]",
     {("UNKNOWN_KEY", "nodes.a.hook.timeuot")}),
    ("nodes: {a: {task: f, retry: {atempts: 3, on: [X]}}}",
     {("UNKNOWN_KEY", "nodes.a.retry.atempts")}),
    ("nodes: {a: {task: price, compensate: {task: pay, imput: {amount: 1}}}}",
     {("UNKNOWN_KEY", "nodes.a.compensate.imput")}),
    ("nodes: {a: {task: f}}\noutptu: 3\noutput_schema: {type: integer}",
     {("UNKNOWN_KEY", "outptu")}),
    # A circle has edges too many; which ones, nobody knows.
    ("nodes: {a: {task: price}, b: {task: f, input: $.a.total}, c: {task: pay, input: $$}}\n"
     "edges: [{from: a, to: b}, {from: b, to: c}, {from: c, to: a}]",
     {("GRAPH_CYCLE", "edges[0]")}),
]  # fmt: skip


@pytest.mark.parametrize(("text", "faults"), ALONE, ids=[text[:60] for text, _ in ALONE])
def test_a_fault_does_not_show_as_another(text: str, faults: set[tuple[str, str]]) -> None:
    assert found(text) == faults


WRONG: Any = st.sampled_from((3, True, None, "", "!", [], [3], {}, {"bogus": 1}))


@st.composite
def spoiled(draw: st.DrawFn) -> tuple[dict[str, Any], dict[str, Any]]:
    """A published playbook, and the same with one wrong value or one key too many in it, but not
    inside of mappings and schemas, where everything has its meaning."""
    book = draw(st.sampled_from(BOOKS))
    other = copy.deepcopy(book)
    places: list[tuple[Any, Any]] = [(other, key) for key in (*other, "bogus")]
    for node in other["nodes"].values():
        places += [(node, key) for key in (*node, "bogus")]
        for key in ("map", "repeat", "hook", "retry", "compensate"):
            if isinstance(node.get(key), dict):
                places += [(node[key], inner) for inner in (*node[key], "bogus")]
    places += [(other["nodes"], code) for code in other["nodes"]]
    for index, edge in enumerate(other.get("edges", [])):
        places += [(edge, key) for key in (*edge, "bogus")] + [(other["edges"], index)]
    where, key = draw(st.sampled_from(places))
    if key != "bogus" and draw(st.booleans()):
        wrong = "bogus" if isinstance(where, dict) else 3
        where[wrong if isinstance(where, dict) else key] = where[key]
        if isinstance(where, dict):
            del where[key]
    else:
        where[key] = draw(WRONG.filter(lambda value: key != "nodes" or not value))
    return book, other


def test_whatever_breaks_the_shape_shows_as_that_alone() -> None:
    broken = 0

    @settings(max_examples=1_000, deadline=None, suppress_health_check=list(HealthCheck))
    @given(spoiled())
    def tried(books: tuple[dict[str, Any], dict[str, Any]]) -> None:
        nonlocal broken
        before, after = (examine_text(json.dumps(book)).with_types(Nothing()) for book in books)
        if after.playbook is not None:
            return  # the new value is a good one
        broken += 1
        follow = {hit for hit in codes(after) - codes(before) if hit[0] not in SHAPE}
        assert not follow, books[1]

    tried()
    assert broken > 500
