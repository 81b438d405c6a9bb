"""The rules of execution, one example each."""

from __future__ import annotations

import pytest

from engine.core import machine
from engine.core.effects import Cancel, Notify, TimerKind, Wake, effects_of, owed
from engine.core.events import AttemptFailed, NodeFailed, NodeSkipped, TaskScheduled
from engine.core.failure import MAX_MESSAGE, Failure
from engine.core.payload import Payload, of_value
from engine.core.state import MAX_ENV, TraceState, apply, begin, dump, load
from engine.core.status import NodeStatus, TraceStatus
from engine.core.steering import Refused
from tests.engine.core.playing import START, TRACE, Trace

# Order.

CHAIN = """
nodes:
  a: {task: f}
  b: {task: f}
  c: {task: f, input: {p: $.b.x, q: $$$., r: "$.b.list[1]", l: [1, $$.x]}}
edges:
  - {from: a, to: b}
  - {from: b, to: c}
"""


def test_a_chain_runs_in_order_and_hands_its_data_on() -> None:
    """G1."""
    trace = Trace(CHAIN, {"body": 1})
    trace.returns("a", {"any": "thing"})
    trace.returns("b", {"x": 11, "list": [5, 6]})
    assert trace.input("a") == {"body": 1}
    assert trace.input("b") == {"any": "thing"}
    assert trace.input("c") == {"p": 11, "q": {"body": 1}, "r": 6, "l": [1, 11]}
    trace.returns("c", "end")
    assert trace.ran == ["a", "b", "c"]
    assert trace.output == {"c": "end"}


def test_all_parallel_edges_are_taken() -> None:
    trace = Trace(
        "nodes: {a: {task: f}, b: {task: f}, c: {task: f}}\n"
        "edges: [{from: a, to: b}, {from: a, to: c}]"
    )
    trace.returns("a")
    assert trace.queued == {"b", "c"}


def test_every_node_without_incoming_edges_starts_with_the_trace() -> None:
    trace = Trace("nodes: {a: {task: f}, b: {task: f}}", 5)
    assert trace.queued == {"a", "b"}
    assert trace.input("b") == 5


def test_a_fan_of_a_hundred_is_joined_once() -> None:
    names = [f"n{i}" for i in range(100)]
    nodes = ", ".join(f"{name}: {{task: f}}" for name in names)
    edges = ", ".join(f"{{from: a, to: {n}}}, {{from: {n}, to: z}}" for n in names)
    trace = Trace(f"nodes: {{a: {{task: f}}, z: {{task: f}}, {nodes}}}\nedges: [{edges}]")
    trace.returns("a")
    for name in reversed(names):
        trace.returns(name, name)
    assert trace.ran.count("z") == 1
    assert trace.input("z") == {name: name for name in names}


def test_a_chain_of_two_thousand_nops_ends_in_one_turn() -> None:
    nodes = ", ".join(f"n{i}: {{nop: {{}}}}" for i in range(2000))
    edges = ", ".join(f"{{from: n{i}, to: n{i + 1}}}" for i in range(1999))
    trace = Trace(f"nodes: {{{nodes}}}\nedges: [{edges}]", "through")
    assert trace.output == {"n1999": "through"}


# Joins.

DIAMOND = """
nodes:
  a: {task: f}
  b: {task: f}
  c: {task: f}
  d: {task: f, input: INPUT}
edges:
  - {from: a, to: b}
  - {from: a, to: c}
  - {from: b, to: d}
  - {from: c, to: d}
"""
MKX, MKY = {"x": 11, "list": [5, 6]}, {"x": 22, "list": [7, 8]}


@pytest.mark.parametrize("first", ["b", "c"])
def test_a_join_sees_every_parent_whichever_was_first(first: str) -> None:
    """G2, G3: `$$` is an object by node code, in the document's order."""
    mapping = "{bx: $.b.x, cx: $.c.x, last: $$, bl: '$.b.list[0]', cl: '$.c.list[0]'}"
    trace = Trace(DIAMOND.replace("INPUT", mapping))
    trace.returns("a")
    second = "c" if first == "b" else "b"
    for code in (first, second):
        assert trace.status("d") is NodeStatus.PENDING
        trace.returns(code, MKX if code == "b" else MKY)
    seen = trace.input("d")
    assert seen == {"bx": 11, "cx": 22, "last": {"b": MKX, "c": MKY}, "bl": 5, "cl": 7}
    assert list(seen["last"]) == ["b", "c"]


def test_a_join_below_a_choice_runs_once() -> None:
    """G4."""
    trace = Trace("""
nodes: {a: {task: f}, b: {task: f}, c: {task: f}, d: {task: f}, e: {task: f}}
edges:
  - {from: a, to: b, when: 1 == 1}
  - {from: b, to: c}
  - {from: b, to: d}
  - {from: c, to: e}
  - {from: d, to: e}
""")
    for code in ("a", "b", "c", "d", "e"):
        trace.returns(code)
    assert trace.ran == ["a", "b", "c", "d", "e"]
    assert trace.state.status is TraceStatus.SUCCEEDED


def test_a_join_waits_for_a_slow_branch_while_another_way_to_it_is_dead() -> None:
    """G5."""
    trace = Trace("""
nodes: {s: {task: f}, p: {task: f}, q: {task: f}, k: {task: f}, j: {task: f}}
edges:
  - {from: s, to: p}
  - {from: s, to: q}
  - {from: p, to: j, when: "1 == 1", priority: 1}
  - {from: p, to: k, when: "1 == 2", priority: 2}
  - {from: k, to: j}
  - {from: q, to: j}
""")
    trace.returns("s")
    trace.returns("p")
    assert trace.status("k") is NodeStatus.SKIPPED
    assert trace.status("j") is NodeStatus.PENDING
    trace.returns("q")
    assert trace.queued == {"j"}


def test_skipping_around_a_node_reaches_the_node_behind_it() -> None:
    """G6."""
    trace = Trace(
        """
nodes: {a: {task: f}, b: {task: f}, c: {task: f, input: {b: $.b, last: $$}}}
edges:
  - {from: a, to: b, when: $.a.x}
  - {from: b, to: c}
  - {from: a, to: c, when: "!$.a.x"}
"""
    )
    trace.returns("a", {"x": False})
    assert trace.status("b") is NodeStatus.SKIPPED
    assert trace.input("c") == {"b": None, "last": {"x": False}}


def test_a_join_runs_after_its_strong_parent_and_the_chosen_weak_one() -> None:
    """G10."""
    trace = Trace("""
nodes: {a: {task: f}, p: {task: f}, b: {task: f}, c: {task: f}, j: {task: f}}
edges:
  - {from: a, to: p}
  - {from: a, to: b, when: $$ == 1}
  - {from: a, to: c, when: $$ == 2}
  - {from: p, to: j}
  - {from: b, to: j}
  - {from: c, to: j}
""")
    trace.returns("a", 2)
    assert trace.queued == {"p", "c"}
    trace.returns("c", "c")
    trace.returns("p", "p")
    assert trace.input("j") == {"p": "p", "c": "c"}
    assert trace.ran.count("j") == 1


def test_branches_of_different_depth_keep_apart() -> None:
    """G20."""
    trace = Trace("""
nodes: {n1: {task: f}, n2: {task: f}, n3: {task: f}, left: {task: f}, right: {task: f},
        left2: {task: f}}
edges:
  - {from: n1, to: n2}
  - {from: n2, to: n3}
  - {from: n3, to: left}
  - {from: n3, to: right}
  - {from: left, to: left2}
""")
    for code in ("n1", "n2", "n3"):
        trace.returns(code)
    trace.returns("right", "r")
    trace.returns("left", "l")
    assert trace.input("left2") == "l"
    trace.returns("left2", "end")
    assert trace.output == {"right": "r", "left2": "end"}


def test_a_condition_sees_a_node_that_nothing_else_reads() -> None:
    """G25."""
    trace = Trace("""
nodes: {a: {task: f}, b: {task: f, input: $$$.}, c: {task: f}}
edges: [{from: a, to: b}, {from: b, to: c, when: $.a.x == 11}]
""")
    trace.returns("a", MKX)
    trace.returns("b")
    assert trace.queued == {"c"}


ANY = """
nodes: {a: {task: f}, b: {task: f}, j: {task: f, join: any}}
edges: [{from: a, to: j}, {from: b, to: j}]
"""


def test_a_join_of_any_runs_at_the_first_taken_edge_and_ignores_later_ones() -> None:
    trace = Trace(ANY)
    trace.returns("b", "b")
    assert trace.input("j") == "b"
    trace.returns("a", "a")
    trace.returns("j", "j")
    assert trace.ran == ["a", "b", "j"]
    assert trace.output == {"j": "j"}


def test_a_trace_waits_for_the_branches_that_a_join_of_any_ignored() -> None:
    trace = Trace(ANY)
    trace.returns("b")
    trace.returns("j")
    assert trace.state.status is TraceStatus.RUNNING
    trace.returns("a")
    assert trace.state.status is TraceStatus.SUCCEEDED


def test_a_join_of_any_is_skipped_when_every_edge_is_dead() -> None:
    trace = Trace(
        """
nodes: {a: {task: f}, b: {task: f}, j: {nop: {}, join: any}}
edges:
  - {from: a, to: j, when: "false"}
  - {from: b, to: j, when: "1 == 2"}
  - {from: a, to: b, otherwise: true}
  - {from: b, to: end, otherwise: true}
""".replace("j: {nop: {}, join: any}", "j: {nop: {}, join: any}, end: {nop: {}}")
    )
    trace.returns("a")
    assert trace.status("j") is NodeStatus.PENDING
    trace.returns("b")
    assert trace.status("j") is NodeStatus.SKIPPED


# Choices.

CHOICE = """
nodes: {a: {task: f}, b: {task: f}, c: {task: f}, d: {task: f}}
edges:
  - {from: a, to: b, when: $$.x > 1, priority: 2}
  - {from: a, to: c, when: $$.x > 2, priority: 1}
  - {from: a, to: d, otherwise: true}
"""


@pytest.mark.parametrize(("x", "taken"), [(3, "c"), (2, "b"), (1, "d")])
def test_the_first_true_choice_by_priority_is_taken_and_only_that(x: int, taken: str) -> None:
    """G8."""
    trace = Trace(CHOICE)
    trace.returns("a", {"x": x})
    assert trace.queued == {taken}


def test_choices_of_equal_priority_are_tried_in_document_order() -> None:
    trace = Trace("""
nodes: {a: {task: f}, b: {task: f}, c: {task: f}}
edges: [{from: a, to: c, when: 1 < 2}, {from: a, to: b, when: 1 < 3}]
""")
    trace.returns("a")
    assert trace.queued == {"c"}


def test_choice_and_parallel_edges_of_one_node_both_count() -> None:
    trace = Trace("""
nodes: {a: {task: f}, b: {task: f}, c: {task: f}, p: {task: f}}
edges:
  - {from: a, to: b, when: $$ == 1}
  - {from: a, to: c, when: $$ == 2}
  - {from: a, to: p}
""")
    trace.returns("a", 2)
    assert trace.queued == {"c", "p"}


def test_no_true_choice_fails_the_trace_and_names_expressions_with_values() -> None:
    """G7: the parallel edge is not taken."""
    trace = Trace("""
nodes: {a: {task: f}, b: {task: f}, c: {task: f}, p: {task: f}}
edges:
  - {from: a, to: b, when: $.a.x > 10}
  - {from: a, to: c, when: has($.a.y) && $.a.y == 1}
  - {from: a, to: p}
""")
    trace.returns("a", {"x": 3})
    assert trace.state.status is TraceStatus.FAILED
    assert trace.failure.code == "NO_BRANCH_MATCHED"
    assert trace.failure.node == "a"
    assert "`$.a.x > 10` [$.a.x = 3]" in trace.failure.message
    assert "`has($.a.y) && $.a.y == 1` [$.a.y = missing, $.a.y = missing]" in trace.failure.message
    assert trace.ran == ["a"]


def test_no_true_choice_is_not_for_error_edges() -> None:
    trace = Trace("""
nodes: {a: {task: f}, b: {task: f}, e: {task: f}}
edges: [{from: a, to: b, when: 1 == 2}, {from: a, to: e, on: error}]
""")
    trace.returns("a")
    assert trace.failure.code == "NO_BRANCH_MATCHED"


def test_no_true_choice_over_data_that_is_not_json_fails_the_trace_clearly() -> None:
    trace = Trace(
        """
nodes: {a: {task: f}, b: {task: f}}
edges: [{from: a, to: b, when: "size($.a[?(@ == $$$)]) > 0"}]
""",
        Payload(b"\x00", "image/png"),
    )
    trace.returns("a", [])
    assert trace.failure.code == "NO_BRANCH_MATCHED"
    assert "$$$ = not JSON" in trace.failure.message


def test_an_error_in_a_choice_fails_the_node_before_later_choices() -> None:
    """G9."""
    trace = Trace("""
nodes: {a: {task: f}, b: {task: f}, c: {task: f}}
edges: [{from: a, to: b, when: $$.nowhere > 1}, {from: a, to: c, when: "true"}]
""")
    trace.returns("a", {"x": 3})
    assert trace.failure.code == "EXPRESSION_ERROR"
    assert "`$$.nowhere > 1`" in trace.failure.message
    assert "$$.nowhere (at 1) does not exist" in trace.failure.message
    assert trace.ran == ["a"]


def test_an_expression_error_can_be_handled() -> None:
    trace = Trace("""
nodes: {a: {task: f}, b: {task: f}, e: {task: f}}
edges: [{from: a, to: b, when: $$ > 1}, {from: a, to: e, on: error, codes: [EXPRESSION_ERROR]}]
""")
    trace.returns("a", "text")
    assert trace.queued == {"e"}


def test_a_condition_must_be_true_or_false() -> None:
    trace = Trace("nodes: {a: {task: f}, b: {nop: {}}}\nedges: [{from: a, to: b, when: $$}]")
    trace.returns("a", 1)
    assert trace.failure.code == "EXPRESSION_ERROR"
    assert "must be true or false; it is 1" in trace.failure.message


# Failures.


def test_an_unhandled_failure_fails_the_trace_and_cancels_the_rest() -> None:
    """G11."""
    trace = Trace("""
nodes: {a: {task: f}, b: {task: f}, j: {task: f}}
edges: [{from: a, to: j}, {from: b, to: j}]
""")
    events = trace.fails("a", Failure("BOOM", "it broke"))
    assert trace.state.status is TraceStatus.FAILED
    assert trace.failure == Failure("BOOM", "it broke", node="a", attempt=1)
    assert trace.status("a") is NodeStatus.FAILED
    assert trace.status("b") is trace.status("j") is NodeStatus.CANCELLED
    ends = list(effects_of(trace.graphs, trace.state, events[-1]))
    assert ends == [Cancel(*trace.place("b"), 1), Notify()]


HANDLED = """
nodes: {a: {task: f}, ok: {task: f}, one: {task: f}, two: {task: f}, all: {task: f}}
edges:
  - {from: a, to: ok}
  - {from: a, to: all, on: error, priority: 9}
  - {from: a, to: two, on: error, codes: [TWO, BOTH], priority: 2}
  - {from: a, to: one, on: error, codes: [ONE, BOTH], priority: 1}
"""


@pytest.mark.parametrize(
    ("code", "handler"), [("ONE", "one"), ("TWO", "two"), ("BOTH", "one"), ("OTHER", "all")]
)
def test_the_first_error_edge_that_matches_is_taken_and_all_others_are_dead(
    code: str, handler: str
) -> None:
    trace = Trace(HANDLED)
    trace.fails("a", code)
    assert trace.queued == {handler}
    others = {"ok", "one", "two", "all"} - {handler}
    assert all(trace.status(other) is NodeStatus.SKIPPED for other in others)
    trace.returns(handler)
    assert trace.state.status is TraceStatus.SUCCEEDED


def test_error_edges_are_dead_after_a_success() -> None:
    trace = Trace(HANDLED)
    trace.returns("a")
    assert trace.queued == {"ok"}


def test_a_failure_that_no_error_edge_matches_is_unhandled() -> None:
    trace = Trace("""
nodes: {a: {task: f}, e: {task: f}}
edges: [{from: a, to: e, on: error, codes: [OTHER]}]
""")
    trace.fails("a", "BOOM")
    assert trace.taken_by_failure("a") == ""
    assert trace.failure.code == "BOOM"


def test_a_handler_sees_the_failure_in_full() -> None:
    trace = Trace("""
nodes: {a: {task: f}, e: {task: f, input: {all: $.a.error, last: $$.error.code}}}
edges: [{from: a, to: e, on: error}]
""")
    trace.fails("a", Failure("BOOM", "it broke", details=of_value({"why": 3})))
    error = {"code": "BOOM", "message": "it broke", "attempt": 1, "details": {"why": 3}}
    assert trace.input("e") == {"all": error, "last": "BOOM"}


def test_without_a_mapping_a_handler_gets_the_failure() -> None:
    trace = Trace("nodes: {a: {task: f}, e: {task: f}}\nedges: [{from: a, to: e, on: error}]")
    trace.fails("a", Failure("BOOM", "it broke", details=Payload(b"\x00", "image/png")))
    error = {"code": "BOOM", "message": "it broke", "attempt": 1, "details": None}
    assert trace.input("e") == {"error": error}


def test_on_timeout_matches_an_attempt_that_took_too_long() -> None:
    trace = Trace("""
nodes: {a: {task: f, timeout: 5s}, e: {task: f}}
edges: [{from: a, to: e, on: timeout}]
""")
    trace.fires(TimerKind.ATTEMPT, "a", 1)
    assert trace.queued == {"e"}


def test_a_message_without_end_is_cut() -> None:
    trace = Trace("nodes: {a: {task: f}}")
    trace.fails("a", Failure("BOOM", "x" * 100_000))
    assert len(trace.failure.message) == MAX_MESSAGE


# Input and output mappings.


def test_an_input_that_leads_nowhere_fails_the_node_and_says_where() -> None:
    trace = Trace("nodes: {a: {task: f, input: {deep: [$$$.x, $$$.nowhere]}}}", {"x": 1})
    assert trace.failure.code == "INPUT_MAPPING"
    assert trace.failure.node == "a"
    assert trace.failure.attempt == 0
    assert trace.failure.message.startswith("input.deep[1]: $$$.nowhere does not exist")


def test_an_input_that_leads_nowhere_can_be_handled() -> None:
    trace = Trace("""
nodes: {a: {task: f, input: $$$.nowhere}, e: {task: f}}
edges: [{from: a, to: e, on: error, codes: [INPUT_MAPPING]}]
""")
    assert trace.queued == {"e"}


def test_a_question_mark_makes_a_missing_path_null() -> None:
    trace = Trace("nodes: {a: {task: f, input: {x: '$$$.x?', y: '$$$.y[3].z?'}}}", {"x": 1})
    assert trace.input("a") == {"x": 1, "y": None}


def test_a_node_that_a_join_of_any_did_not_wait_for_is_missing() -> None:
    trace = Trace(ANY.replace("join: any", "join: any, input: {a: '$.a?', b: $.b}"))
    trace.returns("b", 2)
    assert trace.input("j") == {"a": None, "b": 2}


def test_a_nop_hands_its_mapping_on() -> None:
    trace = Trace("nodes: {a: {nop: {}, input: {twice: '${ $$$.x * 2 }'}}}", {"x": 4})
    assert trace.output == {"a": {"twice": 8}}


def test_the_output_is_that_of_the_end_nodes_that_ran() -> None:
    trace = Trace(CHOICE)
    trace.returns("a", {"x": 3})
    trace.returns("c", "chosen")
    assert trace.output == {"c": "chosen"}


def test_an_end_node_whose_failure_nobody_needed_is_not_in_the_way() -> None:
    trace = Trace("nodes: {a: {task: f}, e: {task: f}}\nedges: [{from: a, to: e, on: error}]")
    trace.fails("a")
    trace.returns("e", "mended")
    assert trace.output == {"e": "mended"}


def test_an_output_mapping_sees_every_node_and_null_for_a_skipped_one() -> None:
    trace = Trace(CHOICE + "output: {picked: $.c, other: $.b, x: $.a.x, start: $$$}", "go")
    trace.returns("a", {"x": 3})
    trace.returns("c", "chosen")
    assert trace.output == {"picked": "chosen", "other": None, "x": 3, "start": "go"}


def test_an_output_mapping_that_leads_nowhere_fails_the_trace() -> None:
    trace = Trace("nodes: {a: {task: f}}\noutput: {x: $.a.nowhere}")
    trace.returns("a", {})
    assert trace.state.status is TraceStatus.FAILED
    assert trace.failure.code == "OUTPUT_MAPPING"
    assert trace.failure.message.startswith("output.x: $.a.nowhere does not exist")


# Payloads.

PICTURE = Payload(b"\x89PNG\x00\xff", "image/png", {"name": "cat"})


def test_a_payload_that_is_not_json_passes_whole() -> None:
    trace = Trace(
        """
nodes: {a: {task: f}, b: {task: f}, c: {task: f, input: $.a}}
edges: [{from: a, to: b}, {from: b, to: c}]
output: $.c
""",
        PICTURE,
    )
    assert trace.node("a").input == PICTURE
    trace.returns("a", PICTURE)
    assert trace.node("b").input == PICTURE
    trace.returns("b")
    assert trace.node("c").input == PICTURE


def test_looking_into_a_payload_that_is_not_json_fails_clearly() -> None:
    trace = Trace("nodes: {a: {task: f}, b: {task: f, input: $.a.x}}\nedges: [{from: a, to: b}]")
    trace.returns("a", PICTURE)
    assert trace.failure.code == "INPUT_MAPPING"
    assert "image/png, not JSON" in trace.failure.message


def test_a_condition_on_a_payload_that_is_not_json_fails_clearly() -> None:
    trace = Trace("nodes: {a: {task: f}, b: {nop: {}}}\nedges: [{from: a, to: b, when: $$ == 1}]")
    trace.returns("a", PICTURE)
    assert trace.failure.code == "EXPRESSION_ERROR"
    assert "image/png, not JSON" in trace.failure.message


def test_a_join_of_payloads_that_are_not_json_fails_clearly() -> None:
    trace = Trace(DIAMOND.replace(", input: INPUT", ""))
    trace.returns("a")
    trace.returns("b", PICTURE)
    trace.returns("c", 1)
    assert trace.failure.code == "INPUT_MAPPING"
    assert "the output of b is image/png" in trace.failure.message


def test_an_empty_payload_is_null_where_outputs_are_joined() -> None:
    trace = Trace(DIAMOND.replace(", input: INPUT", ""))
    trace.returns("a")
    trace.returns("b", Payload(b""))
    trace.returns("c", 1)
    assert trace.input("d") == {"b": None, "c": 1}


def test_an_output_beyond_the_limit_fails_the_attempt() -> None:
    trace = Trace("nodes: {a: {task: f}}")
    trace.returns("a", Payload(b"1" * (machine.MAX_PAYLOAD + 1)))
    assert trace.failure.code == "PAYLOAD_TOO_LARGE"
    assert trace.failure.message == "the output has 1048577 bytes; 1048576 are allowed"


def test_an_output_at_the_limit_is_accepted() -> None:
    trace = Trace("nodes: {a: {task: f}, b: {task: f}}\nedges: [{from: a, to: b}]")
    trace.returns("a", Payload(b"1" * machine.MAX_PAYLOAD, "text/plain"))
    assert trace.queued == {"b"}


def test_an_input_beyond_the_limit_fails_the_node() -> None:
    trace = Trace(DIAMOND.replace(", input: INPUT", ""))
    trace.returns("a")
    trace.returns("b", "x" * 600_000)
    trace.returns("c", "x" * 600_000)
    assert trace.failure.code == "PAYLOAD_TOO_LARGE"
    assert trace.failure.node == "d"


def test_integers_beyond_64_bits_come_through_unchanged() -> None:
    big = 2**100 + 1
    trace = Trace("nodes: {a: {task: f, input: {n: $$$.n}}}", {"n": big})
    assert trace.input("a") == {"n": big}


# Retries.

RETRY = "nodes: {a: {task: f, retry: {attempts: 4, backoff: 100ms, factor: 3, max: 500ms}}}"
LOST = Failure("LOST", "try again", retryable=True)


def retry_of(trace: Trace, failure: Failure = LOST) -> int:
    """Milliseconds until the attempt after this failure."""
    (event,) = trace.fails("a", failure)
    assert isinstance(event, AttemptFailed)
    return event.retry_at - trace.now


def test_attempts_are_spaced_by_a_growing_wait_up_to_its_bound() -> None:
    trace = Trace(RETRY)
    waits = []
    for attempt in (1, 2, 3):
        waits.append(retry_of(trace))
        assert trace.queued == set()
        trace.fires(TimerKind.RETRY, "a", attempt)
        assert trace.node("a").attempt == attempt + 1
    assert waits == [100, 300, 500]
    trace.fails("a", LOST)
    assert trace.failure == LOST.at("a", 4)


def test_every_attempt_gets_the_same_input() -> None:
    trace = Trace(RETRY, {"n": 1})
    retry_of(trace)
    (event,) = trace.fires(TimerKind.RETRY, "a", 1)
    assert event == TaskScheduled(0, 2, None)
    assert trace.input("a") == {"n": 1}


def test_jitter_spreads_traces_and_is_the_same_on_every_replay() -> None:
    spread = RETRY.replace("max: 500ms", "jitter: 0.5")
    waits = [retry_of(Trace(spread, trace_id=bytes([n]) * 16)) for n in range(40)]
    again = [retry_of(Trace(spread, trace_id=bytes([n]) * 16)) for n in range(40)]
    assert waits == again
    assert all(50 <= wait <= 150 for wait in waits)
    assert len(set(waits)) > 20


def test_a_failure_that_is_not_retryable_is_final() -> None:
    trace = Trace(RETRY)
    trace.fails("a", Failure("BOOM", retryable=False))
    assert trace.failure.code == "BOOM"


@pytest.mark.parametrize(
    ("policy", "failure", "again"),
    [
        ("on: [A]", Failure("A", retryable=False), True),
        ("on: [A]", Failure("C", retryable=True), False),
        ("not_on: [B]", Failure("B", retryable=True), False),
        ("not_on: [B]", Failure("C", retryable=True), True),
        ("not_on: [B]", Failure("C", retryable=False), False),
        ("on: [A], not_on: [A]", Failure("A", retryable=True), False),
    ],
)
def test_on_and_not_on_say_which_failures_are_repeated(
    policy: str, failure: Failure, again: bool
) -> None:
    trace = Trace(f"nodes: {{a: {{task: f, retry: {{attempts: 2, {policy}}}}}}}")
    trace.fails("a", failure)
    assert (trace.state.status is TraceStatus.RUNNING) is again


def test_a_worker_may_ask_for_a_longer_wait_and_not_for_a_shorter_one() -> None:
    def asked(milliseconds: int) -> Failure:
        return Failure("BUSY", retryable=True, retry_after=milliseconds)

    assert retry_of(Trace(RETRY), asked(7_000)) == 7_000
    assert retry_of(Trace(RETRY), asked(1)) == 100


def test_a_refused_output_is_not_repeated() -> None:
    trace = Trace(RETRY)
    trace.returns("a", 1, env=b"[]")
    assert trace.failure.code == "ENV_INVALID"


def test_a_success_after_a_failed_attempt_leaves_no_failure_behind() -> None:
    trace = Trace(RETRY)
    retry_of(trace)
    trace.fires(TimerKind.RETRY, "a", 1)
    trace.returns("a", "at last")
    assert trace.node("a").failure is None
    assert trace.output == {"a": "at last"}


# Time.

TIMED = "nodes: {a: {task: f, timeout: 5s, total_timeout: 12s, retry: {attempts: 3, backoff: 1s}}}"


def test_an_attempt_without_result_times_out_and_is_repeated() -> None:
    trace = Trace(TIMED)
    trace.now += 5_000
    (event,) = trace.fires(TimerKind.ATTEMPT, "a", 1)
    assert isinstance(event, AttemptFailed)
    assert event.failure.code == "TIMEOUT"
    assert event.failure.message == "no result within the timeout of 5 s"
    owing = list(effects_of(trace.graphs, trace.state, event))
    assert owing == [Cancel(0, 0, 1), Wake(trace.now + 1_000, TimerKind.RETRY, 0, 0, 1)]


def test_each_attempt_has_its_own_timeout_and_all_share_the_total_one() -> None:
    trace = Trace(TIMED)
    first = trace.events[1]
    assert set(effects_of(trace.graphs, trace.state, first)) >= {
        Wake(START + 5_000, TimerKind.ATTEMPT, 0, 0, 1),
        Wake(START + 12_000, TimerKind.TOTAL, 0, 0, 0),
    }
    trace.fails("a", LOST)
    trace.now += 1_000
    (second,) = trace.fires(TimerKind.RETRY, "a", 1)
    timers = [e for e in effects_of(trace.graphs, trace.state, second) if isinstance(e, Wake)]
    assert timers == [Wake(START + 6_000, TimerKind.ATTEMPT, 0, 0, 2)]
    assert Wake(START + 12_000, TimerKind.TOTAL, 0, 0, 0) in set(owed(trace.graphs, trace.state))


def test_a_timer_of_an_earlier_attempt_is_without_effect() -> None:
    trace = Trace(TIMED)
    trace.fails("a", LOST)
    assert trace.fires(TimerKind.ATTEMPT, "a", 1) == []
    trace.fires(TimerKind.RETRY, "a", 1)
    assert trace.fires(TimerKind.ATTEMPT, "a", 1) == []
    assert trace.fires(TimerKind.RETRY, "a", 1) == []
    assert trace.queued == {"a"}


@pytest.mark.parametrize("waiting", [True, False])
def test_the_total_timeout_ends_the_node_at_work_or_in_its_wait(waiting: bool) -> None:
    trace = Trace(TIMED)
    if waiting:
        trace.fails("a", LOST)
    trace.fires(TimerKind.TOTAL, "a")
    assert trace.status("a") is NodeStatus.TIMED_OUT
    assert trace.failure.code == "TOTAL_TIMEOUT"
    assert "total_timeout (12 s)" in trace.failure.message


def test_a_trace_that_runs_too_long_times_out() -> None:
    trace = Trace("timeout: 1m\nnodes: {a: {task: f}}")
    timer = Wake(START + 60_000, TimerKind.TRACE, -1, -1, 0)
    assert list(effects_of(trace.graphs, trace.state, trace.events[0])) == [timer]
    trace.fires(TimerKind.TRACE)
    assert trace.state.status is TraceStatus.TIMED_OUT
    assert trace.status("a") is NodeStatus.CANCELLED
    assert trace.failure.code == "TRACE_TIMEOUT"


# What comes too late.


def test_an_abort_ends_the_trace_and_is_recorded_with_who_and_why() -> None:
    trace = Trace("nodes: {a: {task: f}, b: {task: f}}\nedges: [{from: a, to: b}]")
    acted, _ = trace.aborts("wrong order")
    assert (acted.verb, acted.by, acted.why) == ("abort", "ann", "wrong order")  # type: ignore[union-attr]
    assert trace.state.status is TraceStatus.ABORTED
    assert trace.failure.message == "aborted by ann: wrong order"


def test_nothing_has_an_effect_on_an_ended_trace() -> None:
    trace = Trace("timeout: 1m\nnodes: {a: {task: f, timeout: 1s}}")
    trace.aborts()
    before = dump(trace.state)
    assert trace.returns("a") == []
    assert trace.fails("a") == []
    assert trace.fires(TimerKind.ATTEMPT, "a", 1) == []
    assert trace.fires(TimerKind.TRACE) == []
    with pytest.raises(Refused) as refused:
        trace.aborts()
    assert refused.value.reason == "TRACE_ENDED"
    assert machine.resume(trace.graphs, trace.state, trace.now) == []
    assert dump(trace.state) == before


def test_a_failed_trace_has_nothing_to_resume() -> None:
    trace = Trace("nodes: {a: {task: f}, b: {task: f}}")
    trace.fails("a")
    assert machine.resume(trace.graphs, trace.state, trace.now) == []


def test_a_duplicate_result_is_without_effect() -> None:
    trace = Trace(CHAIN)
    trace.returns("a", 1)
    before = dump(trace.state)
    assert trace.returns("a", 2, attempt=1) == []
    assert trace.fails("a", attempt=1) == []
    assert dump(trace.state) == before


def test_a_result_of_an_earlier_attempt_is_without_effect() -> None:
    trace = Trace(RETRY)
    trace.fails("a", LOST)
    assert trace.returns("a", "late", attempt=1) == []
    trace.fires(TimerKind.RETRY, "a", 1)
    assert trace.returns("a", "late", attempt=1) == []
    assert trace.returns("a", "from the future", attempt=3) == []
    trace.returns("a", "right", attempt=2)
    assert trace.output == {"a": "right"}


def test_a_result_of_a_node_that_has_not_begun_is_without_effect() -> None:
    trace = Trace(CHAIN)
    assert trace.returns("b", attempt=1) == []
    assert not machine.is_current(trace.state, 0, 1, 1)
    assert not machine.is_current(trace.state, 0, 99, 1)
    assert not machine.is_current(trace.state, -1, 0, 1)


# The trace-wide env.

ENV = """
env: {region: cn, level: 1}
nodes: {a: {task: f}, b: {task: f}, c: {task: f, input: {k: $._env.k, r: $._env.region}}}
edges: [{from: a, to: c}, {from: b, to: c, when: $._env.k == 'v'}]
"""


def test_env_keys_are_seen_by_mappings_and_conditions() -> None:
    """G18."""
    trace = Trace(ENV)
    trace.returns("a", env={"k": "v"})
    trace.returns("b")
    assert trace.input("c") == {"k": "v", "r": "cn"}


def test_a_choice_sees_the_env_that_its_own_node_has_set() -> None:
    trace = Trace("""
env: {k: old}
nodes: {a: {task: f}, b: {task: f}, c: {task: f}}
edges: [{from: a, to: b, when: $._env.k == 'new'}, {from: a, to: c, otherwise: true}]
""")
    trace.returns("a", env={"k": "new"})
    assert trace.queued == {"b"}


def test_of_two_branches_that_set_one_key_the_later_result_wins() -> None:
    """G19: the order of the log decides."""
    trace = Trace(ENV)
    trace.returns("b", env={"k": "v", "level": 2})
    trace.returns("a", env={"k": "w"})
    assert trace.state.env == {"region": "cn", "level": 2, "k": "w"}
    assert trace.input("c") == {"k": "w", "r": "cn"}


@pytest.mark.parametrize(
    ("env", "complaint"),
    [
        (b"[1]", "must be a JSON object"),
        (b"{", "not valid JSON"),
        (b'{"n": 99999999999999999999999}', "more than 64 bits"),
        (b'{"deep": [{"n": -99999999999999999999999}]}', "more than 64 bits"),
        ({"k": "x" * MAX_ENV}, "65536 are allowed"),
        ({"k": "ä" * (MAX_ENV // 2)}, "65536 are allowed"),
    ],
)
def test_an_env_that_cannot_be_kept_fails_the_attempt(env: object, complaint: str) -> None:
    trace = Trace("nodes: {a: {task: f}}")
    trace.returns("a", env=env)
    assert trace.failure.code == "ENV_INVALID"
    assert complaint in trace.failure.message
    dump(trace.state)


def test_the_env_counts_as_a_whole() -> None:
    trace = Trace("nodes: {a: {task: f}, b: {task: f}}")
    trace.returns("a", env={"a": "x" * 40_000})
    trace.returns("b", env={"b": "x" * 40_000})
    assert trace.failure.code == "ENV_INVALID"


def test_traces_do_not_share_their_env() -> None:
    first = Trace(ENV)
    first.returns("a", env={"region": "eu"})
    assert Trace(first.graph).state.env == {"region": "cn", "level": 1}


# State and replay.


def test_a_state_comes_back_from_its_bytes() -> None:
    trace = Trace(ENV, {"x": [1, 2.5, None, "ü"]})
    trace.returns("a", MKX, env={"k": ["v"]})
    state = load(dump(trace.state))
    assert state == trace.state
    assert dump(state) == dump(trace.state)


def replay(trace: Trace, count: int) -> TraceState:
    state = begin(trace.graphs, TRACE, trace.events[0], START)  # type: ignore[arg-type]
    for event in trace.events[1:count]:
        apply(trace.graphs, state, event, START)
    return state


def test_a_turn_that_was_cut_in_two_is_finished_by_whoever_comes_next() -> None:
    whole = Trace("""
nodes: {a: {task: f}, s: {nop: {}}, z: {nop: {}}}
edges: [{from: a, to: s, when: "1 == 2"}, {from: s, to: z}, {from: a, to: z, otherwise: true}]
""")
    whole.returns("a", 1)
    for count in range(3, len(whole.events)):
        state = replay(whole, count)
        events = machine.resume(whole.graphs, state, START)
        assert whole.events[:count] + events == whole.events
        assert dump(state) == dump(whole.state)


def test_a_cut_right_after_an_unhandled_failure_still_fails_the_trace() -> None:
    whole = Trace("nodes: {a: {task: f}, b: {task: f}}")
    whole.fails("b")
    assert isinstance(whole.events[-2], NodeFailed)
    state = replay(whole, len(whole.events) - 1)
    assert machine.resume(whole.graphs, state, START) == [whole.events[-1]]


def test_a_whole_turn_leaves_nothing_to_resume() -> None:
    trace = Trace(HANDLED)
    assert machine.resume(trace.graphs, trace.state, START) == []
    trace.fails("a", "ONE")
    assert machine.resume(trace.graphs, trace.state, START) == []
    assert any(isinstance(event, NodeSkipped) for event in trace.events)
