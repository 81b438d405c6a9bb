"""Why a node waits: every reason, and that they are those of the contract."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from msgspec.structs import replace

from engine.core.payload import of_value
from engine.core.steering import Verb
from engine.core.waits import Wait, WaitCode, why
from magicflow.v1.trace_pb2 import WaitCode as Contract
from tests.engine.core.playing import START, Trace, started

INNER = "playbook: inner\napp: shop\nnodes: {i: {task: f}}"
ALL = """
nodes:
  task: {task: f, retry: {attempts: 2, backoff: 5s, on: [BOOM]}}
  after: {task: f}
  call: {playbook: inner}
  map: {map: {over: [1, 2], task: f, concurrency: 1}}
  hook: {hook: {timeout: 1h}}
  sleep: {sleep: 1h}
edges: [{from: task, to: after}]
"""


def hidden() -> Trace:
    trace = Trace("nodes: {a: {task: f}, call: {playbook: inner}}\nedges: [{from: a, to: call}]",
                  callees=[INNER])  # fmt: skip
    trace.graphs.hidden = {"shop/inner"}
    trace.returns("a")
    return trace


def everything(do: Callable[[Trace], object] = lambda trace: None) -> Trace:
    trace = Trace(ALL, callees=[INNER])
    do(trace)
    return trace


def delayed() -> Trace:
    return Trace(ALL, callees=[INNER], event=replace(started(of_value(None)), start_at=START + 9))


F = frozenset(("shop/f",))
TABLE = [
    (everything, "after", F, WaitCode.EDGES, "waits for task", ("task",), 0),
    (everything, "task", F, WaitCode.WORKER_BUSY, "free slot", ("shop/f",), 0),
    (everything, "task", frozenset(), WaitCode.NO_WORKER, "no live worker", ("shop/f",), 0),
    (lambda: everything(lambda t: t.fails("task")), "task", F, WaitCode.BACKOFF, "after BOOM", (),
     START + 5_000),
    (everything, "hook", F, WaitCode.SIGNAL, "signal", (), START + 3_600_000),
    (everything, "sleep", F, WaitCode.SLEEP, "sleeps", (), START + 3_600_000),
    (lambda: everything(lambda t: t.steer(Verb.PAUSE)), "task", F, WaitCode.PAUSED, "paused", (),
     0),
    (delayed, "task", F, WaitCode.START, "not begun", (), START + 9),
    (everything, "map[1]", F, WaitCode.WINDOW, "1 places", (), 0),
    (hidden, "call", F, WaitCode.CALL, "looked up", (), 0),
    (everything, "call", F, WaitCode.CHILDREN, "0 of 1", (), 0),
]  # fmt: skip


@pytest.mark.parametrize(
    ("make", "path", "offered", "code", "word", "holders", "until"),
    TABLE,
    ids=[row[3].name for row in TABLE],
)
def test_a_node_says_why_it_waits_and_what_releases_it(
    make: Callable[[], Trace],
    path: str,
    offered: frozenset[str],
    code: WaitCode,
    word: str,
    holders: tuple[str, ...],
    until: int,
) -> None:
    trace = make()
    wait = why(trace.graphs, trace.state, *trace.place(path), offered)
    assert isinstance(wait, Wait)
    assert (wait.code, wait.holders, wait.until) == (code, holders, until)
    assert word in wait.message


def test_the_table_has_every_reason() -> None:
    assert {row[3] for row in TABLE} == set(WaitCode)


def test_a_settled_node_waits_for_nothing() -> None:
    trace = everything(lambda trace: trace.returns("task"))
    assert why(trace.graphs, trace.state, *trace.place("task"), F) is None


def test_every_reason_has_its_number_in_the_contract() -> None:
    for code in WaitCode:
        assert Contract.Name(code) == f"WAIT_CODE_{code.name}"
