"""The kinds of traces in the load: what is drawn, and how each must end."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from tests.system.chaos.functions import APP, BOOM

Value = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Ending:
    """How a trace ends: its output when it succeeds, else the code of its failure."""

    status: str
    output: Any = None
    code: str = ""


@dataclass(frozen=True, slots=True)
class Kind:
    """A playbook of the load. `endings` are the right ones for an input, the first of them where
    nothing is disturbed. `follow_up` is what the caller does after the start."""

    name: str
    document: str
    endings: Callable[[Value], tuple[Ending, ...]]
    follow_up: str = ""

    @property
    def full_name(self) -> str:
        return f"{APP}/{self.name}"


CALLED = """
playbook: step
app: chaos
nodes:
  add: {task: inc, input: {n: $$$.n}}
output: {n: $.add}
"""  # goes round and round in `nested`

_CHAIN = """
playbook: chain
app: chaos
nodes:
  a: {task: inc, input: {n: $$$.n}}
  b: {task: slow, input: {n: $.a, pause: 0.05}}
  c: {task: inc, input: {n: $.b}}
  d: {task: inc, input: {n: $.c}}
edges:
  - {from: a, to: b}
  - {from: b, to: c}
  - {from: c, to: d}
output: $.d
"""
_FAN = """
playbook: fan
app: chaos
nodes:
  each:  {map: {over: $$$.items, task: inc, concurrency: 3}, input: {n: $item}}
  left:  {task: inc, input: {n: $$$.n}}
  right: {task: slow, input: {n: $$$.n, pause: 0.1}}
  total: {task: sum, input: {items: $.each}}
  both:  {task: add, input: {a: $.left, b: $.right}}
  end:   {task: add, input: {a: $.total, b: $.both}}
edges:
  - {from: each, to: total}
  - {from: left, to: both}
  - {from: right, to: both}
  - {from: total, to: end}
  - {from: both, to: end}
output: $.end
"""
_DIAMOND = """
playbook: diamond
app: chaos
nodes:
  start: {task: inc, input: {n: $$$.n}}
  high:  {task: inc, input: {n: $.start}}
  low:   {task: slow, input: {n: "${ $.start * 10 }", pause: 0.03}}
  end:   {task: add, input: {a: $.start, b: $$}}
edges:
  - {from: start, to: high, when: $$ > 50}
  - {from: start, to: low, otherwise: true}
  - {from: high, to: end}
  - {from: low, to: end}
output: $.end
"""
_RETRY = """
playbook: retry
app: chaos
nodes:
  a:
    task: flaky
    input: {n: $$$.n, fails: $$$.fails}
    retry: {attempts: 5, backoff: 50ms, jitter: 0.2}
  b: {task: inc, input: {n: $.a}}
edges:
  - {from: a, to: b}
output: $.b
"""
_TIMER = """
playbook: timer
app: chaos
nodes:
  cool: {sleep: 300ms}
  late: {task: stall, input: {n: $$$.n}, timeout: 800ms, retry: {attempts: 2, backoff: 100ms}}
  back: {task: inc, input: {n: $$$.n}}
edges:
  - {from: cool, to: late}
  - {from: late, to: back, on: timeout}
output: {back: $.back}
"""
_HOOK = """
playbook: hook
app: chaos
nodes:
  a:   {task: inc, input: {n: $$$.n}}
  ask: {hook: {}}
  b:   {task: add, input: {a: $.a, b: $.ask.n}}
edges:
  - {from: a, to: ask}
  - {from: ask, to: b}
output: $.b
"""
_NESTED = """
playbook: nested
app: chaos
nodes:
  first: {playbook: chain, input: {n: $$$.n}}
  each:  {map: {over: $$$.items, playbook: chain}, input: {n: $item}}
  again: {repeat: {playbook: step, until: $$.n >= 3, max: 5}, input: {n: 0}}
  total: {task: sum, input: {items: $.each}}
  end:   {task: sum, input: {items: [$.first, $.total, $.again.n]}}
edges:
  - {from: first, to: each}
  - {from: first, to: again}
  - {from: each, to: total}
  - {from: total, to: end}
  - {from: again, to: end}
output: $.end
"""
_ABORT = """
playbook: abort
app: chaos
nodes:
  a:    {task: inc, input: {n: $$$.n}}
  busy: {task: slow, input: {n: $.a, pause: 2.0}}
  long: {sleep: 1h}
edges:
  - {from: a, to: busy}
  - {from: a, to: long}
"""
_PAUSE = """
playbook: pause
app: chaos
nodes:
  a: {task: slow, input: {n: $$$.n, pause: 0.05}}
  b: {task: slow, input: {n: $.a, pause: 0.05}}
  c: {task: slow, input: {n: $.b, pause: 0.05}}
edges:
  - {from: a, to: b}
  - {from: b, to: c}
output: $.c
"""
_UNDO = """
playbook: undo
app: chaos
nodes:
  one: {task: inc, input: {n: $$$.n}, compensate: {task: undo, input: {n: $$}}}
  two: {task: inc, input: {n: $.one}, compensate: {task: undo, input: {n: $$}}}
  bad: {task: boom, input: {n: $.two}}
edges:
  - {from: one, to: two}
  - {from: two, to: bad}
"""


def hook_payload(given: Value) -> Value:
    """What the caller signals to the hook of a trace with this input."""
    return {"n": 2 * given["n"]}


def _succeeded(output: Callable[[Value], Any]) -> Callable[[Value], tuple[Ending, ...]]:
    return lambda given: (Ending("SUCCEEDED", output(given)),)


def _fan(given: Value) -> int:
    return sum(n + 1 for n in given["items"]) + 2 * (given["n"] + 1)


def _diamond(given: Value) -> int:
    start = given["n"] + 1
    return start + (start + 1 if start > 50 else 10 * start + 1)


def _nested(given: Value) -> int:
    return (given["n"] + 4) + sum(n + 4 for n in given["items"]) + 3


def _timer(given: Value) -> tuple[Ending, ...]:
    """Both attempts may be too late where a fault takes longer than they may."""
    in_time, late = {"back": None}, {"back": given["n"] + 1}
    return Ending("SUCCEEDED", in_time), Ending("SUCCEEDED", late)


KINDS = {
    kind.name: kind
    for kind in (
        Kind("chain", _CHAIN, _succeeded(lambda given: given["n"] + 4)),
        Kind("fan", _FAN, _succeeded(_fan)),
        Kind("diamond", _DIAMOND, _succeeded(_diamond)),
        Kind("retry", _RETRY, _succeeded(lambda given: given["n"] + 2)),
        Kind("timer", _TIMER, _timer),
        Kind("hook", _HOOK, _succeeded(lambda given: 3 * given["n"] + 1), "signal"),
        Kind("nested", _NESTED, _succeeded(_nested)),
        Kind("abort", _ABORT, lambda _: (Ending("ABORTED", code="ABORTED"),), "abort"),
        Kind("pause", _PAUSE, _succeeded(lambda given: given["n"] + 3), "pause"),
        Kind("undo", _UNDO, lambda _: (Ending("FAILED", code=BOOM),)),
    )
}
