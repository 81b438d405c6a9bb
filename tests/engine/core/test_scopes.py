"""Calls, maps and repeats inside a trace: what stories cannot show, because it needs a late
result, a slow lookup or a limit."""

from __future__ import annotations

import pytest

from engine.core import machine
from engine.core.effects import Cancel, Lookup, TimerKind, Wake, effects_of, owed
from engine.core.events import AttemptBegan
from engine.core.failure import Failure
from engine.core.places import find, path_of
from engine.core.status import NodeStatus, TraceStatus
from engine.core.steering import Verb
from tests.engine.core.playing import START, Trace

INNER = "playbook: inner\napp: shop\nnodes: {i: {task: f}, j: {task: f}}"
CALL = "nodes: {pay: {playbook: inner, retry: {attempts: 2, backoff: 1s, on: [BOOM]}}}"


def test_a_callee_that_is_not_known_yet_is_looked_up_and_owed_meanwhile() -> None:
    trace = Trace("nodes: {a: {task: f}, pay: {playbook: inner}}\nedges: [{from: a, to: pay}]",
                  callees=[INNER])  # fmt: skip
    trace.graphs.hidden = {"shop/inner"}
    events = trace.returns("a", 1)
    effects = [e for event in events for e in effects_of(trace.graphs, trace.state, event)]
    assert effects == [Lookup(*trace.place("pay"))]
    assert list(owed(trace.graphs, trace.state)) == effects
    assert trace.found("pay") == []  # still not there: asked again
    trace.graphs.hidden = set()
    trace.found("pay")
    assert trace.queued == {"pay/i", "pay/j"}
    assert trace.found("pay") == []  # a second answer comes too late


def test_a_lookup_that_can_never_succeed_fails_the_node() -> None:
    trace = Trace(CALL, callees=[INNER])
    other = Trace("nodes: {pay: {playbook: nowhere}}")
    assert other.failure.code == "PLAYBOOK_NOT_FOUND"
    trace.graphs.hidden = {"shop/inner"}
    trace.fails("pay/i")
    trace.fires(TimerKind.RETRY, "pay", 1)
    trace.found("pay", Failure("SNAPSHOT_NOT_FOUND", "gone"))
    assert trace.failure.code == "SNAPSHOT_NOT_FOUND"


def test_a_late_result_of_a_former_call_is_not_taken_for_one_of_the_new() -> None:
    trace = Trace(CALL, callees=[INNER])
    trace.fails("pay/i")
    assert trace.status("pay/j") is NodeStatus.CANCELLED
    trace.fires(TimerKind.RETRY, "pay", 1)
    assert trace.queued == {"pay/i", "pay/j"}
    assert trace.node("pay/j").attempt == 2
    assert trace.returns("pay/j", "late", attempt=1) == []
    trace.returns("pay/i", 1)
    trace.returns("pay/j", 2)
    assert trace.output == {"pay": {"i": 1, "j": 2}}


def test_a_repeat_that_is_tried_again_numbers_its_inner_attempts_on() -> None:
    trace = Trace(
        "nodes: {n: {repeat: {playbook: inner, until: $$ == 1, max: 3},"
        " retry: {attempts: 2, backoff: 1s, on: [BOOM]}}}",
        callees=[INNER],
    )
    trace.fails("n[0]/i")
    trace.fires(TimerKind.RETRY, "n", 1)
    assert trace.node("n[0]/i").attempt == 2


def test_what_runs_inside_a_call_that_fails_is_cancelled() -> None:
    trace = Trace("nodes: {pay: {playbook: inner}}", callees=[INNER])
    events = trace.fails("pay/i")
    effects = [e for event in events for e in effects_of(trace.graphs, trace.state, event)]
    assert Cancel(*trace.place("pay/j"), 1) in effects
    assert (trace.failure.code, trace.failure.node) == ("BOOM", "pay/i")


@pytest.mark.parametrize(("own", "callee"), [("5s", "9s"), ("9s", "5s"), ("", "5s")])
def test_a_call_has_the_shorter_of_two_timeouts(own: str, callee: str) -> None:
    option = f", timeout: {own}" if own else ""
    trace = Trace(
        f"nodes: {{pay: {{playbook: inner{option}}}}}", callees=[INNER + f"\ntimeout: {callee}"]
    )
    armed = [e.at for e in owed(trace.graphs, trace.state)
             if isinstance(e, Wake) and e.kind is TimerKind.ATTEMPT]  # fmt: skip
    assert min(armed) == START + 5_000
    trace.fires(TimerKind.ATTEMPT, "pay", 1)
    assert trace.status("pay") is NodeStatus.TIMED_OUT
    assert trace.failure.code == "TIMEOUT"


def test_a_grant_that_is_gone_fails_the_node() -> None:
    document = (
        "nodes: {a: {task: f}, b: {task: billing/pay}, c: {playbook: billing/p}}\n"
        "edges: [{from: a, to: b}, {from: b, to: c}]"
    )
    callee = "playbook: p\napp: billing\nnodes: {x: {task: f}}"
    trace = Trace(document, callees=[callee])
    trace.graphs.denied = {("shop", "billing/pay")}
    trace.returns("a")
    assert (trace.failure.code, trace.failure.node) == ("PERMISSION_DENIED", "b")
    trace = Trace(document, callees=[callee])
    trace.returns("a")
    trace.graphs.denied = {("shop", "billing/p")}
    trace.returns("b")
    assert (trace.failure.code, trace.failure.node) == ("PERMISSION_DENIED", "c")


def test_functions_inside_a_callee_belong_to_its_own_app() -> None:
    callee = "playbook: p\napp: billing\nnodes: {x: {task: f}}"
    trace = Trace("nodes: {c: {playbook: billing/p}}", callees=[callee])
    trace.graphs.denied = {("shop", "billing/f")}
    assert trace.queued == {"c/x"}


def test_calls_nest_up_to_the_limit() -> None:
    depth = machine.MAX_DEPTH
    chain = [
        f"playbook: p{n}\napp: shop\nnodes: {{c: {{playbook: p{n + 1}}}}}" for n in range(depth)
    ]
    last = f"playbook: p{depth}\napp: shop\nnodes: {{x: {{task: f}}}}"
    trace = Trace("nodes: {c: {playbook: p0}}", callees=[*chain, last])
    assert trace.failure.code == "DEPTH_EXCEEDED"
    assert trace.failure.node.count("/") == depth - 1
    fits = Trace("nodes: {c: {playbook: p2}}", callees=[*chain, last])
    assert len(fits.queued) == 1


def test_a_trace_has_a_largest_size(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(machine, "MAX_TRACE_NODES", 3)
    trace = Trace("nodes: {m: {map: {over: [1, 2, 3], task: f}}}")
    assert trace.failure.code == "TRACE_TOO_LARGE"
    assert len(Trace("nodes: {m: {map: {over: [1, 2], task: f}}}").queued) == 2


def test_a_window_is_filled_in_order_and_never_exceeded() -> None:
    trace = Trace("nodes: {m: {map: {over: [5, 6, 7, 8], task: f, concurrency: 2}}}")
    assert trace.queued == {"m[0]", "m[1]"}
    trace.returns("m[1]", "b")
    assert trace.queued == {"m[0]", "m[2]"}
    trace.steer(Verb.SKIP, "m[3]")
    trace.returns("m[0]", "a")
    trace.returns("m[2]", "c")
    assert trace.output == {"m": ["a", "b", "c", None]}


def test_every_path_leads_back_to_its_place() -> None:
    trace = Trace(
        "nodes: {pay: {playbook: inner, compensate: {task: undo}},"
        " m: {map: {over: [1, 2], playbook: inner}}, z: {task: f}}",
        callees=[INNER],
    )
    trace.returns("pay/i")
    trace.returns("pay/j")
    trace.fails("z")
    paths = set()
    for scope, here in enumerate(trace.state.scopes):
        for index in range(len(here.nodes)):
            path = path_of(trace.graphs, trace.state, scope, index)
            assert find(trace.graphs, trace.state, path) == (scope, index)
            paths.add(path)
    assert {"pay", "pay/i", "m[1]", "m[1]/j", "pay:compensate"} <= paths
    assert trace.state.status is TraceStatus.RUNNING
    for wrong in (
        "m[2]",
        "m[x]",
        "pay/",
        "/",
        "pay/i/j",
        "m/i",
        "pay[0]",
        "z:compensate",
        "é",
        "pay" + ":compensate" * 5_000,
    ):
        assert find(trace.graphs, trace.state, wrong) is None


QUEUED = "nodes: {a: {task: f, queue_timeout: 2s, retry: {attempts: 2, backoff: 1s}}}"


def test_a_task_that_no_worker_begins_in_time_is_given_up_and_tried_again() -> None:
    trace = Trace(QUEUED)
    trace.fires(TimerKind.QUEUE, "a", 1)
    assert trace.now == START + 2_000
    trace.fires(TimerKind.RETRY, "a", 1)
    trace.fires(TimerKind.QUEUE, "a", 2)
    assert trace.status("a") is NodeStatus.TIMED_OUT
    assert trace.failure.code == "QUEUE_TIMEOUT"


def test_a_task_that_has_begun_is_not_given_up_for_waiting() -> None:
    trace = Trace(QUEUED)
    [event] = trace.decide(machine.Began(0, 0, 1, "worker-1"))
    assert trace.decide(machine.Began(0, 0, 1, "worker-1")) == []  # told twice
    trace.now = START + 9_000
    assert trace.fires(TimerKind.QUEUE, "a", 1) == []
    assert not [e for e in owed(trace.graphs, trace.state)
                if isinstance(e, Wake) and e.kind is TimerKind.QUEUE]  # fmt: skip
    other = Trace("nodes: {a: {task: f}}")
    assert other.decide(machine.Began(0, 0, 1, "worker-1")) == []  # nothing depends on it
    assert isinstance(event, AttemptBegan)
