"""Stories: how they are read, told and held against what came out."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest
from typer.testing import CliRunner

from cli.main import app
from cli.scenarios.core import CoreWay
from cli.scenarios.expectations import same_json
from cli.scenarios.playing import Verdict, play
from cli.scenarios.reading import Broken, parse_story
from cli.scenarios.story import ABSENT, Act, Grant, Story, Trigger, Wait
from magicflow.conformance import (
    Call,
    CallLog,
    Crashes,
    Fails,
    Plan,
    Returns,
    calls_file,
    milliseconds,
    plan,
    read_calls,
)
from magicflow.context import Context

ECHO = """
name: one node
playbooks:
  - {playbook: p, app: shop, nodes: {a: {task: echo}}}
functions:
  shop/echo: {echo: true}
steps:
  - trigger: {playbook: shop/p, input: {x: 1}, as: t1}
"""


def read(text: str) -> Story:
    story = parse_story(text)
    assert isinstance(story, Story), story
    return story


def tell(text: str) -> Verdict:
    return asyncio.run(play(read(text), CoreWay()))


# Reading.


@pytest.mark.parametrize(
    ("text", "place", "code", "message"),
    [
        ("name: [", (1, 8), "DOCUMENT_MALFORMED", "not YAML or JSON"),
        ("name: x", (1, 1), "MISSING_KEY", "playbooks is missing"),
        (ECHO + "    expekt_error: {}", (9, 5), "UNKNOWN_KEY", "expekt_error"),
        (ECHO + "expect: {t1: {status: DONE}}", (9, 15), "VALUE_INVALID", "one of RUNNING"),
        (ECHO + "expect: {t2: {status: FAILED}}", (9, 10), "TRACE_UNKNOWN", "no step starts t2"),
        (ECHO, (2, 1), "STORY_AIMLESS", "expects nothing"),
        (ECHO + "  - {}", (9, 5), "STEP_AMBIGUOUS", "this one does nothing"),
        (ECHO + "  - {advance: soon}", (9, 6), "VALUE_INVALID", "soon cannot stand here"),
        (ECHO + "  - wait: {trace: t9}", (9, 12), "TRACE_UNKNOWN", "no step before starts t9"),
        (
            ECHO + "  - wait: {trace: t1, until: {node: a, status: ABORTED}}",
            (9, 40),
            "VALUE_INVALID",
            "PENDING",
        ),
        (
            ECHO.replace("{echo: true}", "{echo: true, returns: 1}"),
            (6, 3),
            "BEHAVIOUR_AMBIGUOUS",
            "exactly one of echo",
        ),
        (
            ECHO.replace("{echo: true}", "{script: [{returns: 1}], takes: 1s}"),
            (6, 39),
            "BEHAVIOUR_AMBIGUOUS",
            "takes means nothing beside script",
        ),
        (
            ECHO.replace("{echo: true}", "{crashes: 1}"),
            (6, 3),
            "BEHAVIOUR_AMBIGUOUS",
            "crashes and then belong together",
        ),
        (
            ECHO.replace("{echo: true}", "{absent: true, takes: 1s}"),
            (6, 29),
            "BEHAVIOUR_AMBIGUOUS",
            "takes means nothing beside absent",
        ),
        (
            ECHO + "commands: {warm: {returns: 1, fails: {code: C}}}",
            (9, 12),
            "BEHAVIOUR_AMBIGUOUS",
            "exactly one of returns, fails",
        ),
        (ECHO + "commands: {warm: {echo: true}}", (9, 19), "UNKNOWN_KEY", "echo is not known"),
        (ECHO + "commands: {wa/rm: {returns: 1}}", (9, 12), "NAME_INVALID", "wa/rm is no name"),
        (
            ECHO + "  - wait: {trace: t1, until: {waits: EDGES}}",
            (9, 23),
            "MISSING_KEY",
            "not said what is waited for",
        ),
        (
            ECHO + "  - wait: {trace: t1, until: {node: a, waits: EDGE}}",
            (9, 40),
            "VALUE_INVALID",
            "must be one of EDGES",
        ),
        (
            ECHO + "expect: {t1: {waits: {a: BUSY}}}",
            (9, 23),
            "VALUE_INVALID",
            "must be one of EDGES",
        ),
        (
            ECHO.replace("shop/echo", "shop/other") + "expect: {t1: {status: FAILED}}",
            (5, 1),
            "FUNCTION_MISSING",
            "shop/echo is called and has no behaviour",
        ),
    ],
)
def test_what_is_wrong_in_a_story_is_said_with_its_place(
    text: str, place: tuple[int, int], code: str, message: str
) -> None:
    broken = parse_story(text)
    assert isinstance(broken, Broken)
    found = broken.findings[0]
    assert found.code == code
    assert message in found.message
    assert (found.line, found.column) == place


def test_a_file_that_cannot_be_read_is_a_finding(tmp_path: Path) -> None:
    result = CliRunner().invoke(app, ["scenario", "run", str(tmp_path)])
    assert result.exit_code == 2
    (tmp_path / "bad.yaml").write_bytes(b"\xff")
    result = CliRunner().invoke(app, ["scenario", "run", str(tmp_path)])
    assert result.exit_code == 1
    assert "FILE_UNREADABLE" in result.output


def test_every_form_of_a_step_is_understood() -> None:
    steps = """
  - trigger: {playbook: shop/p@2, idempotency_key: k, priority: high, start_in: 1m30s}
  - wait: {trace: t1, until: {node: a, status: PAUSED}}
  - signal: {trace: t1, node: a, payload: null, decision: reject, why: no}
  - abort: {trace: t1, compensate: true}
  - retry: {trace: t1, nodes: [a, b]}
  - rerun: {trace: t1, node: a, input: 5, snapshot: 2, as: t2}
  - fail: {trace: t1, node: a, failure: {code: C, details: [1]}}
  - revoke: [shop/echo, other]
    expect_error: {code: NOT_FOUND}
"""
    story = read(ECHO.rstrip() + steps)
    _, trigger, wait, signal, abort, retry, rerun, fail, revoke = [s.what for s in story.steps]
    assert trigger == Trigger("shop/p", None, "", "k", 8, 90_000, 2)
    assert wait == Wait("t1", "a", "PAUSED")
    assert signal == Act("signal", "t1", "no", "a", None, approve=False)
    assert abort == Act("abort", "t1", compensate=True, value=ABSENT)
    assert retry == Act("retry", "t1", nodes=("a", "b"))
    assert rerun == Act("rerun", "t1", node="a", value=5, snapshot=2, name="t2")
    assert fail == Act("fail", "t1", node="a", value=[1], code="C")
    assert revoke == Grant("shop/echo", "other", given=False)
    assert story.steps[-1].error is not None
    assert (story.steps[-1].number, story.steps[-1].line) == (9, 16)


# What came out, against what was expected.


def test_a_story_that_comes_out_as_expected_has_no_differences() -> None:
    expect = """
expect:
  t1:
    status: SUCCEEDED
    output: {a: {x: 1.0}}
    nodes: {a: SUCCEEDED}
    inputs: {a: {x: 1}}
    outputs: {a: {x: 1}}
    attempts: {a: 1}
    calls: {shop/echo: 1}
    env: {}
    exactly: true
"""
    assert tell(ECHO + expect).differences == ()


@pytest.mark.parametrize(
    ("expected", "difference"),
    [
        ("status: FAILED", "t1.status: expected FAILED, saw SUCCEEDED"),
        ("error: {code: BOOM}", "t1.error: expected BOOM, saw none"),
        ("output: {a: {x: 2}}", "t1.output.a.x: expected 2, saw 1"),
        ("output: {a: {x: true}}", "t1.output.a.x: expected true, saw 1"),
        ("output: {a: {}}", "t1.output.a.x: expected nothing, saw 1"),
        ("output: {a: {x: 1}, b: 2}", "t1.output.b: expected 2, saw nothing"),
        ("nodes: {a: FAILED}", "t1.nodes.a: expected FAILED, saw SUCCEEDED"),
        ("nodes: {b: SKIPPED}", "t1.nodes.b: expected SKIPPED, saw no such node"),
        ("exactly: true", "t1.nodes.a: expected no such node, saw SUCCEEDED"),
        ("inputs: {a: null}", 't1.inputs.a: expected null, saw {"x": 1}'),
        ("inputs: {b: 1}", "t1.inputs.b: expected 1, saw no such node"),
        ("outputs: {a: [1]}", 't1.outputs.a: expected [1], saw {"x": 1}'),
        ("attempts: {a: 2}", "t1.attempts.a: expected 2, saw 1"),
        ("calls: {shop/echo: 0}", "t1.calls.shop/echo: expected 0, saw 1"),
        ("env: {k: v}", 't1.env.k: expected "v", saw nothing'),
        ("waits: {a: EDGES}", "t1.waits.a: expected EDGES, saw nothing"),
        ("waits: {b: EDGES}", "t1.waits.b: expected EDGES, saw no such node"),
        ("order: [[a, a]]", "t1.order: expected a ended before a started, saw a started first"),
        ("order: [[a, b]]", "t1.order: expected a ended before b started, saw no start of b"),
    ],
)
def test_a_wrong_expectation_is_named(expected: str, difference: str) -> None:
    assert tell(f"{ECHO}expect: {{t1: {{{expected}}}}}").differences == (difference,)


def test_a_failure_is_compared_by_code_node_and_words() -> None:
    text = ECHO.replace("{echo: true}", "{fails: {code: BOOM, message: it is broken}}")
    right = "{code: BOOM, node: a, message_contains: broken}"
    assert tell(f"{text}expect: {{t1: {{status: FAILED, error: {right}}}}}").differences == ()
    wrong = tell(f"{text}expect: {{t1: {{error: {{code: BUSY, node: b}}}}}}").differences
    assert wrong == (
        "t1.error.code: expected BUSY, saw BOOM (BOOM at a: it is broken)",
        "t1.error.node: expected b, saw a",
    )


def test_a_wrong_status_says_why_the_trace_failed() -> None:
    text = ECHO.replace("{echo: true}", "{fails: {code: BOOM}}")
    (difference,) = tell(text + "expect: {t1: {status: SUCCEEDED}}").differences
    assert difference == "t1.status: expected SUCCEEDED, saw FAILED (BOOM at a: BOOM)"


def test_a_step_that_must_be_refused_and_is_not_is_a_difference() -> None:
    step = "    expect_error: {code: NOT_FOUND, reason: PLAYBOOK_NOT_FOUND}\n"
    (difference,) = tell(ECHO + step).differences
    assert difference == (
        "step 1, trigger (line 8): expected NOT_FOUND PLAYBOOK_NOT_FOUND, saw no error"
    )


def test_a_step_that_is_refused_for_another_reason_is_a_difference() -> None:
    step = "  - pause: {trace: t1}\n    expect_error: {code: NOT_FOUND}\n"
    (difference,) = tell(ECHO + step).differences
    assert difference.startswith(
        "step 2, pause (line 9): expected NOT_FOUND, saw FAILED_PRECONDITION TRACE_ENDED: "
    )


def test_a_wait_in_vain_says_what_is_there_instead() -> None:
    step = "  - wait: {trace: t1, until: {node: a, status: PAUSED}}\n"
    (difference,) = tell(ECHO + step).differences
    assert difference == (
        "step 2, wait (line 9): expected a to be PAUSED, the trace is SUCCEEDED and a SUCCEEDED"
    )


def test_a_wait_for_a_reason_in_vain_says_the_reason_that_is_there() -> None:
    text = ECHO.replace("{echo: true}", "{absent: true}")
    step = "  - wait: {trace: t1, until: {node: a, waits: EDGES}}\n"
    (difference,) = tell(text + step).differences
    assert difference == (
        "step 2, wait (line 9): expected a to wait for EDGES, "
        "the trace is RUNNING and a QUEUED (NO_WORKER)"
    )


def test_a_trace_that_does_not_end_is_a_difference() -> None:
    text = ECHO.replace("{echo: true}", "{echo: true, takes: 1h}")
    verdict = tell(text + "expect: {t1: {status: SUCCEEDED}}")
    assert verdict.differences[0] == "t1: expected the end, the trace is RUNNING"
    assert tell(text + "expect: {t1: {status: RUNNING, nodes: {a: RUNNING}}}").differences == ()
    advanced = text + "  - advance: 1h\nexpect: {t1: {status: SUCCEEDED}}"
    assert tell(advanced).differences == ()


PUBLISHED = """
name: a node that does nothing
playbooks:
  - {playbook: p, app: shop, nodes: {a: {}}}
publish_error:
  - {code: CODE, at: nodes.a, message_contains: WORDS}
"""


def test_what_publishing_must_find_is_compared_by_code_place_and_words() -> None:
    good = PUBLISHED.replace("CODE", "NODE_KIND_MISSING").replace("WORDS", "what it does")
    assert tell(good).differences == ()
    (difference,) = tell(good.replace("NODE_KIND_MISSING", "GRAPH_CYCLE")).differences
    assert difference.startswith(
        "publish_error: expected GRAPH_CYCLE at nodes.a with “what it does”, "
        "saw NODE_KIND_MISSING at nodes.a: "
    )
    (difference,) = tell(good.replace("a: {}", "a: {nop: {}}")).differences
    assert difference.endswith("saw no error")


def test_numbers_of_snapshots_are_those_of_the_story() -> None:
    caller = "{playbook: shop/q@1}"
    text = f"""
name: a pinned call
playbooks:
  - {{playbook: p, app: shop, nodes: {{a: {caller}}}}}
  - {{playbook: q, app: shop, nodes: {{b: {{nop: {{}}, input: old}}}}}}
steps:
  - publish: {{playbook: q, app: shop, nodes: {{b: {{nop: {{}}, input: new}}}}}}
  - switch: {{playbook: shop/q, snapshot: 2}}
  - trigger: {{playbook: shop/p, as: t1}}
  - trigger: {{playbook: shop/q, as: t2}}
  - trigger: {{playbook: shop/q@3, as: t3}}
    expect_error: {{code: NOT_FOUND, reason: SNAPSHOT_NOT_FOUND}}
expect:
  t1: {{status: SUCCEEDED, output: {{a: {{b: old}}}}}}
  t2: {{status: SUCCEEDED, output: {{b: new}}}}
"""
    assert tell(text).differences == ()


def test_apps_may_use_what_they_call_unless_the_story_says_otherwise() -> None:
    text = ECHO.replace("task: echo", "task: other/echo").replace("shop/echo:", "other/echo:")
    assert tell(text + "expect: {t1: {status: SUCCEEDED}}").differences == ()
    refused = tell(text + "grants: none\nexpect: {t1: {status: SUCCEEDED}}").differences
    assert "shop has no grant for other/echo" in refused[0]
    revoked = text.replace("steps:\n", "steps:\n  - revoke: [other/echo, shop]\n")
    failed = "expect: {t1: {status: FAILED, error: {code: PERMISSION_DENIED, node: a}}}"
    assert tell(revoked + failed).differences == ()


@pytest.mark.parametrize(
    ("one", "other", "same"),
    [
        (1, 1.0, True),
        (0, False, False),
        ([1, {"a": True}], [1.0, {"a": True}], True),
        ([True], [1], False),
        ({"a": None}, {}, False),
        (10**30, 10**30, True),
        ("1", 1, False),
    ],
)
def test_values_are_compared_as_json(one: Any, other: Any, same: bool) -> None:
    assert same_json(one, other) is same


# Behaviours.


def test_a_script_goes_on_call_by_call_and_its_last_entry_repeats() -> None:
    behaviour = {"script": [{"fails": {"code": "BUSY", "retryable": True}}, {"returns": 7}]}
    assert [plan(behaviour, number).outcome for number in (1, 2, 3)] == [
        Fails("BUSY", "BUSY", True),
        Returns(7),
        Returns(7),
    ]


def test_after_its_crashes_a_function_begins_to_count_anew() -> None:
    then = {"script": [{"returns": 1}, {"returns": 2}]}
    behaviour = {"crashes": 2, "takes": "1s", "then": then}
    assert plan(behaviour, 2) == Plan((), 1_000, Crashes())
    assert [plan(behaviour, number).outcome for number in (3, 4)] == [Returns(1), Returns(2)]


def test_heartbeats_come_before_the_rest_of_the_time() -> None:
    behaviour = {"heartbeats": ["1s", "500ms"], "takes": "1m", "echo": True, "env": {"k": 1}}
    assert plan(behaviour, 1) == Plan((1_000, 500), 60_000, Returns(echo=True, env={"k": 1}))


def test_a_failure_has_what_the_story_gives_it() -> None:
    failure = {"code": "C", "message": "m", "details": {"a": 1}, "retry_after": "2s"}
    assert plan({"fails": failure}, 1).outcome == Fails("C", "m", False, {"a": 1}, 2_000)


@pytest.mark.parametrize(
    ("text", "length"), [("200ms", 200), ("1m30s", 90_000), ("0.5s", 500), ("1d", 86_400_000)]
)
def test_durations_are_text(text: str, length: int) -> None:
    assert milliseconds(text) == length


@pytest.mark.parametrize("text", ["", "5", "s", "1s 2s", "1x"])
def test_what_is_no_duration_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="is no duration"):
        milliseconds(text)


def test_calls_count_on_when_the_worker_was_started_again(tmp_path: Path) -> None:
    path = calls_file(tmp_path / "behaviour.json")
    called = SimpleNamespace(function="shop/f", trace_id="ab" * 16, node="each[0]/a", attempt=2)
    context = cast(Context, called)
    assert read_calls(path) == []
    assert [CallLog(path).add(context), CallLog(path).add(context)] == [1, 2]
    assert read_calls(path) == [Call("shop/f", "ab" * 16, "each[0]/a", 2)] * 2


def test_a_crash_takes_every_task_of_the_worker_with_it() -> None:
    text = """
name: two tasks, one crash
playbooks:
  - {playbook: p, app: shop, nodes: {a: {task: dies}, b: {task: slow}}}
functions:
  shop/dies: {crashes: 1, takes: 100ms, then: {returns: 1}}
  shop/slow: {returns: 2, takes: 300ms}
steps:
  - trigger: {playbook: shop/p, as: t1}
expect:
  t1:
    status: SUCCEEDED
    output: {a: 1, b: 2}
    attempts: {a: 1, b: 1}
    calls: {shop/dies: 2, shop/slow: 2}
"""
    assert tell(text).differences == ()


# The command.


def test_the_command_prints_a_line_per_story_and_sums_up(tmp_path: Path) -> None:
    (tmp_path / "a.yaml").write_text(ECHO + "expect: {t1: {status: SUCCEEDED}}")
    (tmp_path / "b.yaml").write_text(ECHO + "expect: {t1: {status: FAILED}}")
    result = CliRunner().invoke(app, ["scenario", "run", str(tmp_path)])
    assert result.exit_code == 1
    assert result.output.splitlines() == [
        f"ok      {tmp_path}/a.yaml: one node",
        f"FAILED  {tmp_path}/b.yaml: one node",
        "          t1.status: expected FAILED, saw SUCCEEDED",
        "1 passed, 1 failed",
    ]
    result = CliRunner().invoke(app, ["scenario", "run", str(tmp_path / "a.yaml")])
    assert (result.exit_code, result.output.splitlines()[-1]) == (0, "1 passed, 0 failed")


def test_the_command_writes_json(tmp_path: Path) -> None:
    (tmp_path / "b.yaml").write_text(ECHO + "expect: {t1: {status: FAILED}}")
    result = CliRunner().invoke(app, ["scenario", "run", "--json", str(tmp_path)])
    assert json.loads(result.output) == [
        {
            "file": f"{tmp_path}/b.yaml",
            "outcome": "failed",
            "name": "one node",
            "differences": ["t1.status: expected FAILED, saw SUCCEEDED"],
        }
    ]


def test_a_worker_needs_a_stack(tmp_path: Path) -> None:
    result = CliRunner().invoke(app, ["scenario", "run", "--worker", "x", str(tmp_path)])
    assert result.exit_code == 2


def test_real_services_tell_a_story_alike(tmp_path: Path) -> None:
    (tmp_path / "a.yaml").write_text(ECHO + "expect: {t1: {status: SUCCEEDED, exactly: false}}")
    (tmp_path / "b.yaml").write_text(ECHO + "expect: {t1: {output: {a: {x: 2}}}}")
    (tmp_path / "c.yaml").write_text(ECHO + "  - advance: 1s\nexpect: {t1: {status: FAILED}}")
    result = CliRunner().invoke(app, ["scenario", "run", "--stack", str(tmp_path)])
    assert result.output.splitlines() == [
        f"ok      {tmp_path}/a.yaml: one node",
        f"FAILED  {tmp_path}/b.yaml: one node",
        "          t1.output.a.x: expected 2, saw 1",
        f"skipped {tmp_path}/c.yaml: one node (it advances the time, which only the core can)",
        "1 passed, 1 failed, 1 skipped",
    ]
    assert result.exit_code == 1
