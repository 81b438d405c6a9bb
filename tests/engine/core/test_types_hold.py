"""What the types say, against what traces do: nothing that is refused could have worked."""

from __future__ import annotations

from typing import Any

import jsonschema_rs
from hypothesis import given, settings
from hypothesis import strategies as st

from engine.core.checks.rules import check
from engine.core.checks.types import Signature, check_types
from engine.core.failure import Failure
from engine.core.findings import Finding
from engine.core.graph import compile_graph
from engine.core.playbook import (
    UNSET,
    Edge,
    EdgeKind,
    Join,
    Map,
    Node,
    Nop,
    Playbook,
    Task,
)
from engine.core.status import NodeStatus, TraceStatus
from tests.engine.core.playing import Trace

CLOSED: dict[str, Any] = {"type": "object", "additionalProperties": False}
SCHEMAS: list[Any] = [
    None,
    {**CLOSED, "properties": {"x": {"type": "integer"}}, "required": ["x"]},
    {**CLOSED, "properties": {"x": {"type": "integer"}, "y": {"enum": ["a", "b"]}}},
    {"type": "object", "properties": {"y": {"type": ["string", "null"]}}},
    {"type": "array", "items": {"type": "integer"}},
    {"type": "array", "items": {**CLOSED, "properties": {"x": {"type": "string"}}}},
    {"anyOf": [{"type": "string"}, {**CLOSED, "properties": {"x": {"const": 1}}}]},
    {"type": ["integer", "null"]},
    {"type": "object", "properties": {"x": {"$ref": "#/$defs/d"}}, "$defs": {"d": {"minimum": 2}}},
]
VALUES: list[Any] = [
    None, 0, 1, 2.5, "a", "z", True, [], [1], [1, 2], [{"x": "s"}, {}], ["s"], {}, {"x": 1},
    {"x": 3}, {"x": 1, "y": "a"}, {"y": "b"}, {"y": None}, {"x": "s"}, {"x": {"y": 1}}, {"z": 0},
]  # fmt: skip
PATHS = ["", ".x", ".y", ".z", "[0]", "[*].x", "[-1].x", ".error.code", ".n0.x", ".x.y", "[0:1]"]
FORMS = [
    "{0}",
    "{0}?",
    "${{ {0} }}",
    "${{ has({0}) ? {0} : 1 }}",
    "${{ {0} == 1 }}",
    "v ${{ {0} }}",
]
CONDITIONS = ["{0} == 1", "{0} > 1", "has({0})", "{0} == 'a' && {0} != 1", "{0}", "has({0}) || {0}"]


def fits(value: Any, schema: Any) -> bool:
    return schema is None or jsonschema_rs.validator_for(schema, offline=True).is_valid(value)


class Signatures:
    """The function `f3` of the node `n3`."""

    def __init__(self, inputs: list[Any], outputs: list[Any]) -> None:
        self.inputs = inputs
        self.outputs = outputs

    def function(self, name: str) -> Signature:
        number = int(name.removeprefix("a/f"))
        return Signature(self.inputs[number], self.outputs[number])

    def playbook(self, name: str, snapshot_id: int) -> None:
        return None


@st.composite
def stories(draw: st.DrawFn) -> tuple[Playbook, Signatures]:
    count = draw(st.integers(2, 4))
    known = Signatures(
        [draw(st.sampled_from(SCHEMAS)) for _ in range(count)],
        [draw(st.sampled_from(SCHEMAS)) for _ in range(count)],
    )
    nodes = [draw(a_node(number)) for number in range(count)]
    pairs = [(a, b) for a in range(count) for b in range(a + 1, count)]
    edges = [draw(an_edge(*pair)) for pair in draw(st.lists(st.sampled_from(pairs), max_size=6))]
    output = draw(st.just(UNSET) | values(count))
    return Playbook(
        "p",
        "a",
        tuple(nodes),
        tuple(edges),
        input_schema=draw(st.sampled_from(SCHEMAS[1:])),
        output_schema=draw(st.sampled_from([UNSET, *SCHEMAS[1:]])),
        output=output,
    ), known


@st.composite
def references(draw: st.DrawFn, before: int) -> str:
    roots = ["$$$", "$$", *(f"$.n{number}" for number in range(before))]
    return draw(st.sampled_from(roots)) + draw(st.sampled_from(PATHS))


@st.composite
def values(draw: st.DrawFn, before: int) -> Any:
    one = draw(st.sampled_from(FORMS)).format(draw(references(before)))
    shape = draw(st.sampled_from(["plain", "object", "list", "constant"]))
    if shape == "constant":
        return draw(st.sampled_from(VALUES))
    return {"plain": one, "object": {"x": one}, "list": [one]}[shape]


@st.composite
def a_node(draw: st.DrawFn, number: int) -> Node:
    kinds: list[Any] = [Task(f"a/f{number}")] * 3 + [Nop()]
    if draw(st.integers(0, 5)) == 0:
        kinds = [Map(draw(values(number)), Task(f"a/f{number}"), tolerate_count=1)]
    join = draw(st.sampled_from([Join.ALL, Join.ALL, Join.ANY]))
    given = draw(st.just(UNSET) | values(number))
    return Node(f"n{number}", draw(st.sampled_from(kinds)), input=given, join=join)


@st.composite
def an_edge(draw: st.DrawFn, source: int, target: int) -> Edge:
    kind = draw(st.sampled_from([*EdgeKind, EdgeKind.PARALLEL]))
    when = ""
    if kind is EdgeKind.CHOICE:
        when = draw(st.sampled_from(CONDITIONS)).format(draw(references(source + 1)))
    return Edge(f"n{source}", f"n{target}", kind, when)


def play(trace: Trace, known: Signatures, draw: st.DataObject) -> None:
    for _ in range(100):
        queued = sorted(trace.queued)
        if not queued or trace.state.status.ended:
            return
        path = draw.draw(st.sampled_from(queued))
        schema = known.outputs[int(path[1])]
        fitting = [value for value in VALUES if fits(value, schema)]
        if draw.draw(st.integers(0, 5)) == 0 or not fitting:
            trace.fails(path, Failure("BOOM"))
        else:
            trace.returns(path, draw.draw(st.sampled_from(fitting)))


@settings(max_examples=150, deadline=None)
@given(stories(), st.data())
def test_what_is_refused_never_works(
    story: tuple[Playbook, Signatures], data: st.DataObject
) -> None:
    drawn, known = story
    if any(not finding.warning for finding in check(drawn)):
        return
    errors = [finding for finding in check_types(drawn, known) if not finding.warning]
    inputs = [value for value in VALUES if fits(value, drawn.input_schema)]
    if not errors or not inputs:
        return
    trace = Trace(compile_graph(drawn, 7, 42), data.draw(st.sampled_from(inputs)))
    play(trace, known, data)
    for finding in errors:
        judge(finding, drawn, trace, known)


def judge(finding: Finding, drawn: Playbook, trace: Trace, known: Signatures) -> None:
    """The error was one, as far as the trace has come to it."""
    if finding.path.startswith("output"):
        assert trace.state.status is not TraceStatus.SUCCEEDED
    elif finding.path.startswith("edges["):
        index = int(finding.path[6 : finding.path.index("]")])
        source = drawn.edges[index].source
        first = next(e for e in drawn.edges if e.source == source and e.kind is EdgeKind.CHOICE)
        if first is drawn.edges[index]:
            assert trace.status(source) is not NodeStatus.SUCCEEDED
    else:
        code = finding.path.split(".")[1]
        node = next(node for node in drawn.nodes if node.code == code)
        wanted = known.inputs[int(code[1])]
        read = finding.code == "FIELD_UNKNOWN" or "no field" in finding.message
        if not isinstance(node.kind, Map):
            ran = trace.node(code).input is not None and code in trace.ran
            assert not ran or not (read or fits(trace.input(code), wanted))
            assert not (read and trace.status(code) is NodeStatus.SUCCEEDED)
        elif "map.over" in finding.path:
            assert trace.status(code) is not NodeStatus.SUCCEEDED
        else:
            items = [path for path in trace.ran if path.startswith(f"{code}[")]
            assert all(not (read or fits(trace.input(path), wanted)) for path in items)
