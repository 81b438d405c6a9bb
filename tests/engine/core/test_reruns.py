"""What a rerun takes over, and from where it is refused."""

from __future__ import annotations

from typing import Any

import pytest

from engine.core.failure import Failure
from engine.core.graph import Graph, compile_graph
from engine.core.payload import Payload, of_value
from engine.core.refusal import Refused
from engine.core.reruns import PACKED, Taken, outcomes_before, pack, unpack
from engine.core.state import TraceState, dump, load
from engine.core.status import NodeStatus
from engine.core.steering import Act, Verb, rerun
from tests.engine.core.playing import TRACE, Trace, drawn, started

CHAIN = (
    "env: {k: start}\nnodes: {a: {task: f}, b: {task: f}, c: {task: f}}\n"
    "edges: [{from: a, to: b}, {from: b, to: c}]"
)
INNER = "playbook: inner\napp: shop\nnodes: {i: {task: f, compensate: {task: undo}}}"


def again(trace: Trace, node: str, snapshot: Graph | None = None) -> TraceState:
    """The state of a rerun, right after its start."""
    graph = snapshot or trace.graph
    trace.graphs.graphs[graph.snapshot_id] = graph
    outcomes = outcomes_before(trace.graphs, trace.state, graph, node)
    first = started(trace.state.input)
    first = type(first)(7, graph.snapshot_id, "shop", "story", first.input, 0, "ann")
    act = Act(Verb.RERUN, "ann", node=node)
    state, _ = rerun(trace.graphs, TRACE, first, act, outcomes, trace.now)
    return state


def ended(document: str, *steps: tuple[str, Any, dict[str, Any] | None]) -> Trace:
    trace = Trace(document, callees=[INNER])
    for path, output, env in steps:
        trace.returns(path, output, env=env)
    return trace


@pytest.mark.parametrize(
    "taken",
    [
        Taken(of_value(1)),
        Taken(failure=Failure("BOOM", "it broke")),
        Taken(),
        Taken(of_value(1), chosen=2),
        Taken(of_value(1), env={"k": (1, {"x": [1]})}),
        Taken(failure=Failure("BOOM"), env={"k": (0, None)}),
        Taken(Payload(b"of a function", PACKED)),
    ],
)
def test_what_is_packed_comes_out_the_same(taken: Taken) -> None:
    assert unpack(pack(taken)) == taken


def test_what_is_plain_travels_plain() -> None:
    failure = Failure("BOOM")
    assert pack(Taken(of_value(1))) == of_value(1)
    assert pack(Taken(failure=failure)) is failure


def test_the_last_of_those_that_are_taken_over_has_set_a_key() -> None:
    trace = ended(
        "nodes: {a: {task: f}, b: {task: f}, c: {task: f}, z: {task: f}}\n"
        "edges: [{from: a, to: z}, {from: b, to: z}, {from: c, to: z}]",
        ("c", 1, {"k": "c", "other": 1}),
        ("a", 1, {"k": "a"}),
        ("b", 1, {"k": "b"}),
    )
    assert again(trace, "z").env == {"k": "b", "other": 1}
    assert again(trace, "b").env == {"k": "a", "other": 1}
    assert again(trace, "a").env == {"k": "b", "other": 1}
    assert again(trace, "c").env == {"k": "b"}


def test_a_trace_that_did_not_keep_who_set_a_key_hands_its_env_over_whole() -> None:
    trace = ended(CHAIN, ("a", 1, {"k": "a"}), ("b", 1, {"x": 1}), ("c", 1, None))
    trace.state.setters = None
    assert again(trace, "b").env == {"k": "a", "x": 1}
    assert again(trace, "a").env == {"k": "start"}  # nothing is taken over


def test_who_set_a_key_is_kept_in_the_state() -> None:
    trace = ended(CHAIN, ("a", 1, {"k": "a"}), ("b", 1, {"k": "b"}))
    assert load(dump(trace.state)).setters == {"k": [(0, "a"), (1, "b")]}


def test_what_is_skipped_in_back_off_is_skipped_in_the_rerun() -> None:
    trace = Trace(
        "nodes: {a: {task: f, retry: {attempts: 2, on: [BOOM]}}, b: {task: f}, z: {task: f}}\n"
        "edges: [{from: a, to: z}, {from: b, to: z}]"
    )
    trace.fails("a")
    trace.steer(Verb.SKIP, "a")
    trace.returns("b")
    state = again(trace, "z")
    assert [node.status for node in state.nodes] == [
        NodeStatus.SKIPPED,
        NodeStatus.SUCCEEDED,
        NodeStatus.QUEUED,
    ]


def test_a_node_that_was_skipped_with_its_branch_runs_where_the_branch_is_chosen() -> None:
    text = (
        "nodes: {a: {task: f}, b: {task: f}, c: {task: f}}\n"
        "edges: [{from: a, to: b, when: $$ == 1}, {from: a, to: c, otherwise: true}]"
    )
    trace = ended(text, ("a", 2, None))
    other = compile_graph(drawn(text.replace("== 1", "== 2")), 7, 43)
    state = again(trace, "c", other)
    assert [node.status.name for node in state.nodes] == ["SUCCEEDED", "QUEUED", "SKIPPED"]


def test_of_two_edges_to_one_node_the_choice_is_the_one_that_was_taken() -> None:
    text = (
        "nodes: {a: {task: f}, b: {nop: {}}, c: {nop: {}}, z: {task: f}}\n"
        "edges: [{from: a, to: b}, {from: a, to: b, when: $$ == 1},"
        " {from: a, to: c, otherwise: true}, {from: b, to: z}, {from: c, to: z}]"
    )
    for output, skipped in ((1, True), (2, False)):
        state = again(ended(text, ("a", output, None)), "z")
        assert (state.nodes[2].status is NodeStatus.SKIPPED) is skipped


UNDONE = (
    "nodes: {r: {task: f}, a: {task: f, compensate: {task: undo}}, call: {playbook: inner},"
    " b: {task: f}}\nedges: [{from: r, to: a}, {from: a, to: call}, {from: call, to: b}]"
)


@pytest.mark.parametrize("finished", [False, True])
def test_a_rerun_does_not_rest_on_what_compensations_undo(finished: bool) -> None:
    trace = ended(UNDONE, ("r", 0, None), ("a", 1, None), ("call/i", 2, None))
    trace.fails("b")
    if finished:
        trace.returns("call/i:compensate")
        trace.returns("a:compensate")
    for node, names in (("b", "a, call"), ("call", "a")):
        with pytest.raises(Refused, match=f"from {node} would rest on {names}, which") as no:
            outcomes_before(trace.graphs, trace.state, trace.graph, node)
        assert (no.value.reason, no.value.mend) == (
            "TRACE_STATE",
            "rerun it from the start, without a node",
        )
    for node in ("a", "r", ""):
        outcomes_before(trace.graphs, trace.state, trace.graph, node)


@pytest.mark.parametrize(
    ("node", "message", "mend"),
    [
        ("call/i", "not a node of the trace's own playbook", "rerun it from call, which it"),
        ("a:compensate", "not a node of the trace's own playbook", "rerun it from a, which"),
        ("nowhere", "has no node nowhere", "its nodes are r, a, call, b"),
        ("call[0]/x", "not a node of the trace's own playbook", "rerun it from call, which it"),
        ("x/call", "has no node x/call", "its nodes are r, a, call, b"),
    ],
)
def test_a_rerun_begins_at_a_node_of_the_traces_own_playbook(
    node: str, message: str, mend: str
) -> None:
    trace = ended(UNDONE, ("r", 0, None), ("a", 1, None), ("call/i", 2, None))
    trace.fails("b")
    with pytest.raises(Refused, match=message) as refused:
        outcomes_before(trace.graphs, trace.state, trace.graph, node)
    assert refused.value.reason == "NODE_NOT_FOUND"
    assert refused.value.mend.startswith(mend)
