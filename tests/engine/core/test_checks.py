"""Every rule of publishing, broken once: code, path and place of what is reported."""

from __future__ import annotations

import re

import pytest

from engine.core.checks.types import Nothing
from engine.core.playbook import MAX_DOCUMENT, Limits, Node, Playbook, Task
from engine.document.examine import examine_playbook, examine_text

HEAD = "playbook: p\napp: a\n"
A, AB = "nodes: {a: {task: f}}\n", "nodes: {a: {task: f}, b: {task: f}}\n"

# A document without its first two lines; then code, path, line and column of each finding.
BROKEN: list[tuple[str, list[tuple[str, str, int, int]]]] = [
    # The text.
    ("nodes: {a: [", [("DOCUMENT_MALFORMED", "", 3, 13)]),
    ("nodes: {a: {task: !!int x}}", [("DOCUMENT_MALFORMED", "nodes.a.task", 3, 19)]),
    (A + "description: a\ndescription: b", [("DUPLICATE_KEY", "description", 5, 1)]),
    ("nodes: {a: {task: f}, a: {task: g}}", [("DUPLICATE_KEY", "nodes.a", 3, 23)]),
    ("nodes: {a: {task: f, input: .inf}}\ntimeout: 1e999", [("WRONG_TYPE", "timeout", 4, 10)]),
    ('nodes: {a: {task: "\\ud800"}}', [("WRONG_TYPE", "nodes.a.task", 3, 19)]),
    # The shape.
    ("nods: {}", [("MISSING_KEY", "", 1, 1), ("UNKNOWN_KEY", "nods", 3, 1)]),
    ("nodes: {a: {task: f, timout: 5s}}", [("UNKNOWN_KEY", "nodes.a.timout", 3, 22)]),
    ("nodes: {a: {task: f, retry: 3}}", [("WRONG_TYPE", "nodes.a.retry", 3, 22)]),
    ("nodes: {a: {task: f, timeout: 5}}", [("WRONG_TYPE", "nodes.a.timeout", 3, 22)]),
    ("nodes: {a: {task: f, timeout: soon}}", [("VALUE_INVALID", "nodes.a.timeout", 3, 22)]),
    ("nodes: {a: {task: f, join: some}}", [("VALUE_INVALID", "nodes.a.join", 3, 22)]),
    ("nodes: {a: {task: f, priority: 11}}", [("VALUE_INVALID", "nodes.a.priority", 3, 22)]),
    ("nodes: {a: {task: f, timeout: 9999d}}", [("VALUE_INVALID", "nodes.a.timeout", 3, 22)]),
    ("nodes: {a: {task: f, timeout: 0s}}", [("VALUE_INVALID", "nodes.a.timeout", 3, 22)]),
    ("nodes: {a: {hook: {timeout: 0.1ms}}}", [("VALUE_INVALID", "nodes.a.hook.timeout", 3, 20)]),
    ("nodes: {a: {task: f, retry: {attempts: 2, backoff: 0s}}}",
     [("VALUE_INVALID", "nodes.a.retry.backoff", 3, 43)]),
    (A + "timeout: 0h0m", [("VALUE_INVALID", "timeout", 4, 1)]),
    ("nodes: {a: {hook: true}}", [("VALUE_INVALID", "nodes.a.hook", 3, 13)]),
    (A + "env: {n: 99999999999999999999999}", [("VALUE_INVALID", "env", 4, 1)]),
    ("nodes: {a: {task: F!}}", [("NAME_INVALID", "nodes.a.task", 3, 13)]),
    ("nodes: {1a: {task: f}}", [("NAME_INVALID", "nodes", 3, 1)]),
    ("nodes: {a: {timeout: 5s}}", [("NODE_KIND_MISSING", "nodes.a", 3, 9)]),
    ("nodes: {a: {task: f, nop: {}}}", [("NODE_KIND_AMBIGUOUS", "nodes.a", 3, 9)]),
    ("nodes: {a: {map: {over: $$$}}}", [("NODE_KIND_AMBIGUOUS", "nodes.a.map", 3, 13)]),
    (AB + "edges: [{from: a, to: b, on: error, when: 'true'}]",
     [("EDGE_KIND_AMBIGUOUS", "edges[0]", 4, 9)]),
    (AB + "edges: [{from: a, to: b, codes: [X]}]",
     [("EDGE_KIND_AMBIGUOUS", "edges[0].codes", 4, 26)]),
    (AB + "edges: [{from: a, to: b, priority: 2}]",
     [("EDGE_KIND_AMBIGUOUS", "edges[0].priority", 4, 26)]),
    # The graph.
    (A + "edges: [{from: a, to: aa}]", [("EDGE_DANGLING", "edges[0].to", 4, 19)]),
    (AB + "edges:\n  - {from: a, to: b}\n  - {from: a, to: b}",
     [("EDGE_DUPLICATE", "edges[1]", 6, 5)]),
    (AB + "edges: [{from: a, to: b, when: 1 == 2}, {from: a, to: b, otherwise: true},\n"
     "  {from: a, to: c, otherwise: true}]".replace("c", "b"),
     [("EDGE_DUPLICATE", "edges[2]", 5, 3), ("OTHERWISE_TWICE", "edges[2]", 5, 3)]),
    (AB + "edges: [{from: a, to: b, otherwise: true}]",
     [("OTHERWISE_ALONE", "edges[0]", 4, 9)]),
    (AB + "edges: [{from: a, to: b}, {from: b, to: a}]", [("GRAPH_CYCLE", "edges[0]", 4, 9)]),
    (A + "edges: [{from: a, to: a}]", [("GRAPH_CYCLE", "edges[0]", 4, 9)]),
    (AB + "edges: [{from: a, to: b, when: 1 == 2}, {from: a, to: b, when: 1==2, priority: 3}]",
     [("CHOICE_SHADOWED", "edges[1].when", 4, 58)]),
    (AB + "edges: [{from: a, to: b, when: 1 == 2}, {from: a, to: b, when: 'true', priority: -1}]",
     [("CHOICE_SHADOWED", "edges[0].when", 4, 26)]),
    # Data.
    (AB + "edges: [{from: a, to: b, when: 1 +}]", [("EXPRESSION_INVALID", "edges[0].when", 4, 26)]),
    ("nodes: {a: {task: f, input: {x: '${ 1 + }'}}}",
     [("EXPRESSION_INVALID", "nodes.a.input.x", 3, 30)]),
    ("nodes: {a: {task: f, input: [1, $x]}}",
     [("REFERENCE_INVALID", "nodes.a.input[1]", 3, 33)]),
    ("nodes: {a: {task: f, input: $.b.x}}", [("REFERENCE_UNKNOWN", "nodes.a.input", 3, 22)]),
    ("nodes: {a: {task: f, input: $.b}, b: {task: f}}",
     [("REFERENCE_NOT_ANCESTOR", "nodes.a.input", 3, 22)]),
    ("nodes: {a: {task: f, input: $.a}}", [("REFERENCE_NOT_ANCESTOR", "nodes.a.input", 3, 22)]),
    (AB + "edges: [{from: a, to: b, when: $.b == 1}]",
     [("REFERENCE_NOT_ANCESTOR", "edges[0].when", 4, 26)]),
    ("nodes: {a: {task: f, input: $item}}", [("REFERENCE_OUT_OF_PLACE", "nodes.a.input", 3, 22)]),
    ("nodes: {a: {task: f, input: '${ @.x }'}}",
     [("REFERENCE_OUT_OF_PLACE", "nodes.a.input", 3, 22)]),
    (A + "output: $$.x", [("REFERENCE_OUT_OF_PLACE", "output", 4, 1)]),
    (A + "input: {type: 3}", [("SCHEMA_INVALID", "input", 4, 1)]),
    # What comes later, and what could have no effect.
    (
        "nodes: {a: {sleep: 5s, retry: {attempts: 2}}}",
        [("OPTION_WITHOUT_EFFECT", "nodes.a.retry", 3, 24)],
    ),
    (
        "nodes: {a: {playbook: q, heartbeat: 5s}}",
        [("OPTION_WITHOUT_EFFECT", "nodes.a.heartbeat", 3, 26)],
    ),
    ("nodes: {a: {nop: {}, timeout: 5s}}", [("OPTION_WITHOUT_EFFECT", "nodes.a.timeout", 3, 22)]),
]  # fmt: skip


@pytest.mark.parametrize(("text", "findings"), BROKEN, ids=[text[:50] for text, _ in BROKEN])
def test_a_broken_rule_is_reported_at_its_place(
    text: str, findings: list[tuple[str, str, int, int]]
) -> None:
    found = examine_text(HEAD + text).findings
    assert [(f.code, f.path, f.line, f.column) for f in found] == findings
    assert all(finding.message for finding in found)


def test_an_empty_document_is_reported() -> None:
    (finding,) = examine_text("# nothing\n").findings
    assert (finding.code, finding.line, finding.column) == ("DOCUMENT_EMPTY", 1, 1)


def test_a_document_has_a_bound() -> None:
    (finding,) = examine_text("#" * (MAX_DOCUMENT + 1)).findings
    assert finding.code == "DOCUMENT_TOO_LARGE"
    (finding,) = examine_text("#" * 21, Limits(document=20)).findings
    assert finding.code == "DOCUMENT_TOO_LARGE"


def test_a_playbook_that_came_as_a_message_has_the_bound_of_a_document() -> None:
    node = Node("a", Task("a/f"), input="x" * 2_000)
    playbook = Playbook("p", "a", (node,))
    assert examine_playbook(playbook).findings == ()
    (finding,) = examine_playbook(playbook, Limits(document=2_000)).findings
    assert finding.code == "DOCUMENT_TOO_LARGE"


def test_of_what_is_too_large_nothing_else_is_looked_at() -> None:
    nodes = "\n".join(f"  n{i}: {{nop: {{}}, bogus: 1}}" for i in range(2_001))
    found = examine_text(f"{HEAD}nodes:\n{nodes}").with_types(Nothing())
    assert {f.code for f in found.findings} == {"UNKNOWN_KEY", "BUDGET_EXCEEDED"}
    assert found.readable is None


def test_nodes_and_edges_have_bounds() -> None:
    text = HEAD + AB + "edges: [{from: a, to: b}]"
    found = examine_text(text, Limits(nodes=1, edges=0)).findings
    assert [(f.code, f.path, f.message) for f in found] == [
        ("BUDGET_EXCEEDED", "nodes", "2 nodes; 1 are allowed"),
        ("BUDGET_EXCEEDED", "edges", "1 edges; 0 are allowed"),
    ]


def test_everything_is_reported_at_once_in_the_order_of_the_text() -> None:
    found = examine_text(
        HEAD
        + "nodes:\n"
        + "  a: {task: f, input: $.nowhere}\n"
        + "  b: {sleep: 5s, priority: high}\n"
        + "edges:\n"
        + "  - {from: a, to: bb}\n"
        + "  - {from: a, to: b, when: 1 +}\n"
        + "output: $$\n"
    ).findings
    assert [(f.line, f.code) for f in found] == [
        (4, "REFERENCE_UNKNOWN"),
        (5, "OPTION_WITHOUT_EFFECT"),
        (7, "EDGE_DANGLING"),
        (8, "EXPRESSION_INVALID"),
        (9, "REFERENCE_OUT_OF_PLACE"),
    ]


@pytest.mark.parametrize(
    ("text", "mend"),
    [
        ("nodes: {a: {tusk: f}}", "did you mean task?"),
        ("nodes: {pay: {task: f}, b: {task: f, input: $.pya}}", "did you mean $.pay?"),
        ("nodes: {pay: {task: f}}\nedges: [{from: pay, to: pya}]", "did you mean pay?"),
        ("nodes: {a: {task: f, timeout: 5}}", "write a duration such as 200ms, 5s or 1h30m"),
    ],
)
def test_a_finding_says_what_to_write_instead(text: str, mend: str) -> None:
    assert mend in [finding.mend for finding in examine_text(HEAD + text).findings]


def test_a_cycle_is_spelled_out() -> None:
    (finding,) = examine_text(
        HEAD + "nodes: {a: {nop: {}}, b: {nop: {}}, c: {nop: {}}}\n"
        "edges: [{from: a, to: b}, {from: b, to: c}, {from: c, to: b}]"
    ).findings
    assert re.search(r"circle: (b -> c -> b|c -> b -> c)$", finding.message)


def test_a_document_with_as_many_findings_as_places_is_examined_in_time() -> None:
    nodes = ", ".join(f"n{i}: {{}}" for i in range(20_000))
    assert len(examine_text(f"{HEAD}nodes: {{{nodes}}}").findings) >= 20_000


def test_a_schema_that_names_an_address_is_refused_and_nothing_is_fetched() -> None:
    found = examine_text(HEAD + A + 'input: {$ref: "http://127.0.0.1:9/schema.json"}').findings
    assert [(finding.code, finding.path) for finding in found] == [("SCHEMA_INVALID", "input")]
    assert "127.0.0.1" in found[0].message
