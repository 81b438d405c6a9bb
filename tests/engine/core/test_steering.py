"""What an operator may do, and when: every verb on every kind of node in every state."""

from __future__ import annotations

from functools import cache
from typing import Any

import pytest
from msgspec.structs import replace

from engine.core.effects import Cancel, TimerKind, Wake, effects_of
from engine.core.events import OperatorActed, TraceRevived
from engine.core.failure import Failure
from engine.core.graph import Graph
from engine.core.payload import of_value, to_value
from engine.core.refusal import Refused
from engine.core.reruns import outcomes_before
from engine.core.state import dump, load
from engine.core.status import NodeStatus, TraceStatus
from engine.core.steering import Act, Verb, rerun, retry
from tests.engine.core.playing import START, Trace, graph_of, started

INNER = "playbook: inner\napp: shop\nnodes: {i: {task: f}}"
TASK = "{task: f, retry: {attempts: 2, backoff: 10s, on: [BOOM]}}"
MAP = "{map: {over: [1, 2], task: f, concurrency: 1}}"
CALLS = "{map: {over: [1, 2], playbook: inner, concurrency: 1}}"
KINDS = {
    "task": (TASK, "n"),
    "playbook": ("{playbook: inner}", "n"),
    "map": ("{map: {over: [1, 2], task: f}}", "n"),
    "repeat": ("{repeat: {playbook: inner, until: $$.i == 1, max: 3}}", "n"),
    "hook": ("{hook: {}}", "n"),
    "hooked task": ("{task: f, hook: true}", "n"),
    "sleep": ("{sleep: 1h}", "n"),
    "sleep until": ("{until: $$$.when}", "n"),
    "nop": ("{nop: {}}", "n"),
    "node of a call": ("{playbook: inner}", "n/i"),
    "item": (MAP, "n[0]"),
    "call under a map": (CALLS, "n[0]"),
    "node of a call under a map": (CALLS, "n[0]/i"),
    "round": ("{repeat: {playbook: inner, until: $$.i == 1, max: 3}}", "n[0]"),
    "compensation": (
        "{task: f, compensate: {task: undo}, retry: {attempts: 2, backoff: 10s, on: [BOOM]}}",
        "n:compensate",
    ),
}
"""What the node `n` is, and the path of the node that is steered."""
INSIDE = {"playbook": "n/i", "map": "n[0]", "repeat": "n[0]/i", "call under a map": "n[0]/i",
          "round": "n[0]/i"}  # fmt: skip
OWN = tuple(kind for kind, (_, path) in KINDS.items() if path == "n")
LATER = tuple(kind for kind in KINDS if kind not in OWN)
SIGNALLED = "waiting for a signal after it has run"

STATES = {
    "pending": (*OWN, "item", "call under a map", "compensation"),
    "under way": tuple(kind for kind in KINDS if kind != "nop"),
    "back-off": ("task", "compensation"),
    SIGNALLED: ("hooked task",),
    "settled": tuple(KINDS),
    "failed": tuple(kind for kind in KINDS if kind != "nop"),
    "skipped": OWN,
    "cancelled": LATER[:-1],
    "in a pause": tuple(kind for kind in KINDS if kind != "nop"),
    "delayed": OWN,
    "compensating": OWN,
    "ended": tuple(KINDS),
}


@cache
def graph_with(kind: str) -> Graph:
    others = (
        "first: {task: f}, other: {task: f}, gate: {hook: {}}, mend: {nop: {}}, boom: {task: f},"
        " kept: {task: f, compensate: {task: undo}}"
    )
    return graph_of(
        f"nodes: {{n: {KINDS[kind][0]}, {others}}}\n"
        "edges: [{from: first, to: n, when: $$ == 1}, {from: first, to: other, otherwise: true},"
        " {from: n, to: mend, on: error}]"
    )


def reached(kind: str, state: str) -> Trace:
    """A trace whose node of this kind is in this state."""
    event = started(of_value({"when": 9_000}))  # seconds since 1970
    if state == "delayed":
        event = replace(event, start_at=START + 5_000)
    trace = Trace(graph_with(kind), callees=[INNER], event=event)
    if state == "delayed" or (state == "pending" and kind in OWN):
        return trace
    trace.returns("first", 2 if state == "skipped" else 1)
    path = KINDS[kind][1]
    if kind == "compensation":
        for done in ("n", "kept") if state == "pending" else ("kept", "n"):
            trace.returns(done)  # the last is undone first
        trace.fails("boom")
    match state:
        case "back-off":
            trace.fails(path, "BOOM")
        case "waiting for a signal after it has run":
            trace.returns("n", "done")
        case "settled":
            _settle(trace, kind, path)
        case "failed":
            trace.steer(Verb.FAIL, path)
        case "cancelled":
            trace.steer(Verb.COMPLETE, "n")
        case "in a pause":
            trace.steer(Verb.PAUSE)
        case "compensating":
            trace.returns("kept")
            trace.fails("boom")
        case "ended":
            trace.aborts()
    return trace


def _settle(trace: Trace, kind: str, path: str) -> None:
    if kind in ("sleep", "sleep until"):
        trace.fires(TimerKind.DUE, path)
    elif kind == "hook":
        trace.steer(Verb.SIGNAL, path)
    elif kind in INSIDE:
        trace.returns(INSIDE[kind], 1)
        if kind == "map":
            trace.returns("n[1]", 1)
    elif kind != "nop":
        trace.returns(path, 1)
        if kind == "hooked task":
            trace.steer(Verb.SIGNAL, path)


def path_in(kind: str, state: str) -> str:
    later = state == "pending" and kind in ("item", "call under a map")
    return "n[1]" if later else KINDS[kind][1]


OF_NODES = (Verb.SIGNAL, Verb.COMPLETE, Verb.FAIL, Verb.SKIP)
OF_TRACES = (Verb.ABORT, Verb.PAUSE, Verb.RESUME)


def rows(*verbs: Verb) -> list[tuple[Verb, str, str]]:
    return [(verb, kind, state) for verb in verbs for state in STATES for kind in STATES[state]]


def test_every_verb_is_in_a_table() -> None:
    assert {*OF_NODES, *OF_TRACES, Verb.RETRY, Verb.RERUN} == set(Verb)


def test_the_states_are_what_they_are_called() -> None:
    wanted = {
        "pending": {"PENDING"},
        "under way": {"QUEUED", "RUNNING", "PAUSED", "SLEEPING"},
        "back-off": {"QUEUED"},
        SIGNALLED: {"PAUSED"},
        "settled": {"SUCCEEDED"},
        "failed": {"FAILED"},
        "skipped": {"SKIPPED"},
        "cancelled": {"CANCELLED"},
        "in a pause": {"QUEUED", "RUNNING", "PAUSED", "SLEEPING"},
        "delayed": {"PENDING"},
        "compensating": {"CANCELLED", "SUCCEEDED"},
        "ended": {"CANCELLED", "SUCCEEDED"},
    }
    for state, kinds in STATES.items():
        for kind in kinds:
            trace = reached(kind, state)
            assert trace.status(path_in(kind, state)).name in wanted[state], (kind, state)
            assert trace.state.status.ended == (state == "ended"), (kind, state)


def expected(verb: Verb, kind: str, state: str) -> str:
    """What becomes of the node, or the reason of the refusal and a word of its sentence."""
    if state == "ended":
        return "TRACE_ENDED: ended"
    waits = state == SIGNALLED or (kind == "hook" and state in ("under way", "in a pause"))
    if verb is Verb.SIGNAL:
        if waits:
            return "SUCCEEDED"
        hook = kind in ("hook", "hooked task")
        return "NODE_STATE: " + ("does not wait" if hook else "no hook")
    if state in ("settled", "failed", "skipped", "cancelled", "compensating"):
        return "NODE_STATE: has settled"
    if verb is Verb.SKIP:
        return "SKIPPED"
    if state in ("pending", "delayed"):
        return "NODE_STATE: not reached it"
    return "SUCCEEDED" if verb is Verb.COMPLETE else "FAILED"


@pytest.mark.parametrize(("verb", "kind", "state"), rows(*OF_NODES))
def test_a_verb_on_a_node(verb: Verb, kind: str, state: str) -> None:
    trace, path = reached(kind, state), path_in(kind, state)
    want = expected(verb, kind, state)
    reason, _, sentence = want.partition(": ")
    if sentence:
        refuses(trace, verb, path, reason, sentence)
        return
    of_trace = trace.state.status
    first, *_ = trace.steer(verb, path, why="because", payload=of_value({"by": "hand"}))
    scope, index = trace.place(path)
    assert first == OperatorActed(verb, "ann", "because", index, scope)
    assert trace.status(path).name == want
    assert trace.state.status is of_trace
    inside = INSIDE.get(kind)
    if inside and state in ("under way", "in a pause"):
        assert trace.status(inside) is NodeStatus.CANCELLED


def refuses(trace: Trace, verb: Verb, path: str, reason: str, sentence: str) -> None:
    before, count = dump(trace.state), len(trace.events)
    with pytest.raises(Refused, match=sentence) as refused:
        trace.steer(verb, path, why="because")
    assert refused.value.reason == reason
    assert (dump(trace.state), len(trace.events)) == (before, count)


@pytest.mark.parametrize(("verb", "kind", "state"), rows(*OF_TRACES))
def test_a_verb_on_a_trace(verb: Verb, kind: str, state: str) -> None:
    trace, path = reached(kind, state), path_in(kind, state)
    paused = state == "in a pause"
    if state == "ended":
        refuses(trace, verb, "", "TRACE_ENDED", "has ended: ")
    elif verb is Verb.PAUSE and paused:
        refuses(trace, verb, "", "TRACE_STATE", "paused already")
    elif verb is Verb.RESUME and not paused:
        refuses(trace, verb, "", "TRACE_STATE", "RUNNING, not paused")
    else:
        before = trace.status(path)
        first, *_ = trace.steer(verb, why="because")
        assert first == OperatorActed(verb, "ann", "because")
        word = {Verb.ABORT: "ABORTED", Verb.PAUSE: "PAUSED", Verb.RESUME: "RUNNING"}[verb]
        assert trace.state.status.name == word
        open_ = verb is not Verb.ABORT or before.settled
        assert trace.status(path) is (before if open_ else NodeStatus.CANCELLED)


@pytest.mark.parametrize(("verb", "kind", "state"), rows(Verb.RETRY))
def test_a_retry_of_a_trace(verb: Verb, kind: str, state: str) -> None:
    trace = reached(kind, state)
    before = dump(trace.state)
    if state == "ended" and kind != "compensation":
        trace.retry()
        assert trace.state.status is TraceStatus.RUNNING
        assert trace.status("n").settled == (kind == "nop")
        return
    sentence = "compensations have undone" if state == "ended" else "it has not ended"
    with pytest.raises(Refused, match=sentence) as refused:
        trace.retry()
    assert (refused.value.reason, dump(trace.state)) == ("TRACE_STATE", before)


@pytest.mark.parametrize(("verb", "kind", "state"), rows(Verb.RERUN))
def test_a_rerun_from_a_node(verb: Verb, kind: str, state: str) -> None:
    trace, path = reached(kind, state), path_in(kind, state)
    before = dump(trace.state)
    act = Act(verb, "ann", "because", path)
    if kind in OWN and state != "compensating":
        outcomes = outcomes_before(trace.graphs, trace.state, trace.graph, path)
        first = started(trace.state.input)
        new, events = rerun(trace.graphs, bytes(16), first, act, outcomes, START)
        assert events[1] == OperatorActed(verb, "ann", "because", trace.place(path)[1])
        n, source = new.nodes[0], new.nodes[1]
        assert source.status.settled == trace.status("first").settled
        begun = source.status.settled and state != "skipped"
        settled = kind == "nop" or state == "skipped"
        assert (n.status is not NodeStatus.PENDING) == (begun or state == "skipped")
        assert n.status.settled == (settled and source.status.settled)
        return
    reason, sentence = "NODE_NOT_FOUND", "not a node of the trace's own playbook"
    if kind in OWN:
        reason, sentence = "TRACE_STATE", f"a rerun from {path} would rest on kept, which"
    with pytest.raises(Refused, match=sentence) as refused:
        outcomes_before(trace.graphs, trace.state, trace.graph, path)
    assert (refused.value.reason, dump(trace.state)) == (reason, before)


@pytest.mark.parametrize("verb", OF_NODES)
def test_an_unknown_path_is_refused_with_the_known_ones(verb: Verb) -> None:
    trace = reached("task", "under way")
    for path in ("nowhere", "n/i", "n[0]", "", "n:compensate", "first/first"):
        with pytest.raises(Refused) as refused:
            trace.steer(verb, path)
        assert refused.value.reason == "NODE_NOT_FOUND"
        assert "n, first, other, gate" in refused.value.mend


# Pause and resume.

SLOW = """
timeout: 1m
nodes:
  a: {task: f, timeout: 10s}
  b: {task: f}
  h: {hook: {timeout: 20s}}
  s: {sleep: 30s}
  r: {task: f, retry: {attempts: 2, backoff: 5s, on: [BOOM]}}
edges: [{from: a, to: b}]
"""


def test_a_pause_keeps_results_and_starts_nothing() -> None:
    trace = Trace(SLOW)
    trace.steer(Verb.PAUSE)
    assert trace.returns("a", 1)
    assert (trace.status("a"), trace.status("b")) == (NodeStatus.SUCCEEDED, NodeStatus.PENDING)
    trace.steer(Verb.RESUME)
    assert trace.queued == {"b", "r"}
    assert trace.input("b") == 1


def test_a_failure_in_a_pause_ends_the_trace_when_it_goes_on() -> None:
    trace = Trace(SLOW)
    trace.steer(Verb.PAUSE)
    trace.fails("a")
    assert trace.state.status is TraceStatus.PAUSED
    trace.steer(Verb.RESUME)
    assert (trace.state.status, trace.failure.node) == (TraceStatus.FAILED, "a")


def test_time_spent_in_a_pause_counts_against_no_timeout() -> None:
    trace = Trace(SLOW)
    trace.fails("r", "BOOM")
    trace.now = START + 4_000
    trace.steer(Verb.PAUSE)
    for kind, node in (
        (TimerKind.ATTEMPT, "a"),
        (TimerKind.DUE, "h"),
        (TimerKind.RETRY, "r"),
        (TimerKind.TRACE, ""),
    ):
        trace.now = START + 100_000
        assert trace.fires(kind, node, 1) == []
    trace.now = START + 104_000
    events = trace.steer(Verb.RESUME)
    due = {
        (wake.kind, wake.at - START)
        for event in events
        for wake in effects_of(trace.graphs, trace.state, event)
        if isinstance(wake, Wake)
    }
    assert due == {
        (TimerKind.ATTEMPT, 110_000),
        (TimerKind.DUE, 120_000),  # the hook
        (TimerKind.DUE, 30_000),  # the sleep waits for the world, not for work: it is over
        (TimerKind.RETRY, 105_000),
        (TimerKind.TRACE, 160_000),
    }


def test_a_failure_in_a_pause_backs_off_from_its_end() -> None:
    trace = Trace(SLOW)
    trace.now = START + 1_000
    trace.steer(Verb.PAUSE)
    trace.now = START + 50_000
    trace.fails("r", "BOOM")
    trace.now = START + 61_000
    trace.steer(Verb.RESUME)
    assert trace.node("r").retry_at == START + 66_000


@pytest.mark.parametrize(
    ("paused", "verb", "word"),
    [(False, Verb.RESUME, "RUNNING, not paused"), (True, Verb.PAUSE, "paused already")],
)
def test_what_is_so_already_is_refused(paused: bool, verb: Verb, word: str) -> None:
    trace = Trace(SLOW)
    if paused:
        trace.steer(Verb.PAUSE)
    with pytest.raises(Refused, match=word) as refused:
        trace.steer(verb)
    assert refused.value.reason == "TRACE_STATE"


def test_what_is_steered_in_a_delayed_trace_counts_when_it_begins() -> None:
    delayed = replace(started(of_value(None)), start_at=START + 5_000)
    trace = Trace("nodes: {a: {task: f}, b: {hook: {}}}", event=delayed)
    trace.steer(Verb.SKIP, "a")
    trace.steer(Verb.SKIP, "b")
    assert trace.state.status is TraceStatus.RUNNING
    trace.fires(TimerKind.START)
    assert trace.output == {}


# Signals.


def test_a_rejected_hook_fails_with_the_reason_and_the_payload() -> None:
    trace = Trace("nodes: {h: {hook: {}}, e: {task: f}}\nedges: [{from: h, to: e, on: rejected}]")
    trace.steer(Verb.SIGNAL, "h", approve=False, why="too dear", payload=of_value({"max": 5}))
    failure = trace.node("h").failure
    assert failure is not None
    assert (failure.code, failure.message) == ("REJECTED", "too dear")
    assert trace.queued == {"e"}


@pytest.mark.parametrize(("payload", "output"), [(None, "ran"), ({"x": 1}, {"x": 1})])
def test_a_task_with_a_hook_keeps_its_output_unless_it_is_given_another(
    payload: Any, output: Any
) -> None:
    trace = Trace("nodes: {t: {task: f, hook: true}}")
    trace.returns("t", "ran", env={"k": 1})
    assert trace.status("t") is NodeStatus.PAUSED
    assert trace.state.env == {"k": 1}
    given = None if payload is None else of_value(payload)
    trace.steer(Verb.SIGNAL, "t", payload=given)
    assert trace.output == {"t": output}


# Abort.


def test_an_abort_may_compensate_what_has_completed_in_reverse_order() -> None:
    trace = Trace(
        "nodes: {a: {task: f, compensate: {task: undo}}, b: {task: f, compensate: {task: undo}},"
        " c: {task: f}}\nedges: [{from: a, to: b}, {from: b, to: c}]"
    )
    trace.returns("a", "A")
    trace.returns("b", "B")
    events = trace.steer(Verb.ABORT, compensate=True)
    assert trace.state.status is TraceStatus.RUNNING
    cancels = [e for x in events for e in effects_of(trace.graphs, trace.state, x)]
    assert Cancel(0, 2, 1) in cancels
    assert trace.queued == {"b:compensate"}
    assert trace.input("b:compensate") == "B"
    trace.fails("b:compensate")  # the others still run
    assert trace.queued == {"a:compensate"}
    trace.returns("a:compensate")
    assert (trace.state.status, trace.failure.code) == (TraceStatus.ABORTED, "ABORTED")


# Retry of an ended trace.

CHAIN = (
    "nodes: {a: {task: f}, b: {task: f}, c: {task: f}}\nedges: [{from: a, to: b}, {from: b, to: c}]"
)


def test_a_retry_runs_what_failed_and_goes_on() -> None:
    trace = Trace(CHAIN, 7)
    trace.returns("a", "A")
    trace.fails("b")
    events = trace.retry()
    assert isinstance(events[0], TraceRevived)
    assert (trace.queued, trace.node("b").attempt) == ({"b"}, 2)
    assert trace.returns("b", "late", attempt=1) == []
    trace.returns("b", "B")
    trace.returns("c", "C")
    assert trace.output == {"c": "C"}


def test_a_retry_gives_the_retry_policy_a_new_start() -> None:
    trace = Trace("nodes: {a: {task: f, retry: {attempts: 2, backoff: 1s, on: [BOOM]}}}")
    trace.fails("a")
    trace.fires(TimerKind.RETRY, "a", 1)
    trace.fails("a")
    assert trace.state.status is TraceStatus.FAILED
    trace.retry()
    assert trace.node("a").attempt == 3
    trace.fails("a")
    assert trace.node("a").retry_at > 0


def test_a_retry_goes_on_inside_a_call() -> None:
    trace = Trace(
        "nodes: {pay: {playbook: inner}, z: {task: f}}\nedges: [{from: pay, to: z}]",
        callees=[
            "playbook: inner\napp: shop\nnodes: {i: {task: f}, j: {task: f}}\n"
            "edges: [{from: i, to: j}]"
        ],
    )
    trace.returns("pay/i", 1)
    trace.fails("pay/j")
    assert trace.failure.node == "pay/j"
    trace.retry()
    assert trace.queued == {"pay/j"}
    trace.returns("pay/j", 2)
    trace.returns("z", 3)
    assert trace.output == {"z": 3}


def test_an_aborted_trace_can_run_again_from_what_was_cancelled() -> None:
    trace = Trace(CHAIN)
    trace.steer(Verb.PAUSE)
    trace.aborts()
    trace.retry()
    assert (trace.state.status, trace.queued) == (TraceStatus.RUNNING, {"a"})


@pytest.mark.parametrize(
    ("prepare", "nodes", "reason", "word"),
    [
        (lambda t: None, (), "TRACE_STATE", "has not ended"),
        (lambda t: [t.returns(n) for n in "abc"], (), "TRACE_STATE", "nothing failed"),
        (lambda t: t.fails("a"), ("nowhere",), "NODE_NOT_FOUND", "nowhere"),
        (lambda t: t.fails("a"), ("b",), "NODE_STATE", "no failure to retry"),
    ],
)
def test_a_retry_that_makes_no_sense_is_refused(
    prepare: Any, nodes: tuple[str, ...], reason: str, word: str
) -> None:
    trace = Trace(CHAIN)
    prepare(trace)
    before = dump(trace.state)
    with pytest.raises(Refused, match=word) as refused:
        trace.retry(*nodes)
    assert refused.value.reason == reason
    assert dump(trace.state) == before


def test_a_trace_that_was_compensated_is_not_retried() -> None:
    trace = Trace(
        "nodes: {a: {task: f, compensate: {task: undo}}, b: {task: f}}\nedges: [{from: a, to: b}]"
    )
    trace.returns("a")
    trace.fails("b")
    trace.returns("a:compensate")
    with pytest.raises(Refused, match="compensations"):
        trace.retry()


def test_a_retry_leaves_the_ended_state_alone() -> None:
    trace = Trace(CHAIN)
    trace.fails("a")
    ended = load(dump(trace.state))
    retry(trace.graphs, ended, Act(Verb.RETRY, "ann"), START)
    assert dump(ended) == dump(trace.state)


def test_a_failure_by_hand_says_who_and_why_unless_told_more() -> None:
    trace = Trace("nodes: {a: {task: f}, e: {task: f}}\nedges: [{from: a, to: e, on: error}]")
    trace.steer(Verb.FAIL, "a", why="stuck")
    assert trace.input("e")["error"]["code"] == "FAILED_BY_OPERATOR"
    assert trace.input("e")["error"]["message"] == "stuck"
    other = Trace("nodes: {a: {task: f}}")
    other.steer(Verb.FAIL, "a", failure=Failure("GONE", "no more", details=of_value([1])))
    assert (other.failure.code, other.failure.message) == ("GONE", "no more")
    assert other.failure.details is not None
    assert to_value(other.failure.details) == [1]
