"""What is wrong in a story beyond its shape."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from cli.scenarios.documents import functions_of
from cli.scenarios.shape import SCHEMA
from cli.scenarios.story import Act, Story, Trigger, Wait
from engine.core.findings import Finding
from engine.core.status import NodeStatus, TraceStatus
from engine.core.waits import WaitCode

_VERBS = [word for word in SCHEMA["$defs"]["step"]["properties"] if word != "expect_error"]
_RETURNS = ("echo", "returns", "returns_env")
_IN_SCRIPT = (*_RETURNS, "fails")
_OUTCOMES = (*_IN_SCRIPT, "script", "crashes", "absent")
_NODE_STATUSES = tuple(status.name for status in NodeStatus)
_TRACE_STATUSES = tuple(status.name for status in TraceStatus)
_REASONS = tuple(code.name for code in WaitCode)


def parts_wrong(data: Mapping[str, Any]) -> Iterator[Finding]:
    if ("steps" in data) == ("publish_error" in data):
        message = "a story has either steps or publish_error"
        yield Finding("STORY_AIMLESS", "", message, mend="keep one of them")
    elif "publish_error" in data and "expect" in data:
        yield Finding("STORY_AIMLESS", "expect", "nothing runs where publishing is refused")
    elif "steps" in data and not _expects(data):
        yield Finding("STORY_AIMLESS", "", "the story expects nothing", mend="add expect:")


def _expects(data: Mapping[str, Any]) -> bool:
    waits = any("expect_error" in step or "wait" in step for step in data["steps"])
    return waits or bool(data.get("expect"))


def steps_wrong(steps: list[dict[str, Any]]) -> Iterator[Finding]:
    for index, step in enumerate(steps):
        verbs = [word for word in step if word != "expect_error"]
        if len(verbs) != 1:
            message = f"a step does one thing; this one does {', '.join(verbs) or 'nothing'}"
            mend = f"write one of {', '.join(_VERBS)}"
            yield Finding("STEP_AMBIGUOUS", f"steps[{index}]", message, mend=mend)
        if "until" in step.get("wait", {}):
            yield from _until_wrong(f"steps[{index}].wait.until", step["wait"]["until"])


def _until_wrong(path: str, until: dict[str, str]) -> Iterator[Finding]:
    if "status" not in until and not {"node", "waits"} <= until.keys():
        message = "it is not said what is waited for"
        yield Finding("MISSING_KEY", path, message, mend="add status: or, beside node:, waits:")
    known = _NODE_STATUSES if "node" in until else _TRACE_STATUSES
    for word, values in (("status", known), ("waits", _REASONS)):
        if word in until and until[word] not in values:
            message = f"must be one of {', '.join(values)}"
            yield Finding("VALUE_INVALID", f"{path}.{word}", message, until[word])


def waits_wrong(expect: Mapping[str, Any]) -> Iterator[Finding]:
    for name, expected in expect.items():
        for node, reason in expected.get("waits", {}).items():
            if reason not in _REASONS:
                message = f"must be one of {', '.join(_REASONS)}"
                yield Finding("VALUE_INVALID", f"expect.{name}.waits.{node}", message, reason)


def commands_wrong(commands: Mapping[str, Any]) -> Iterator[Finding]:
    for name, behaviour in commands.items():
        yield from _behaviour_wrong(f"commands.{name}", behaviour, ("returns", "fails"))


def behaviours_wrong(functions: Mapping[str, Any]) -> Iterator[Finding]:
    for name, behaviour in functions.items():
        yield from _behaviour_wrong(f"functions.{name}", behaviour, _OUTCOMES)


def _behaviour_wrong(
    path: str, behaviour: Mapping[str, Any], allowed: tuple[str, ...]
) -> Iterator[Finding]:
    outcomes = [word for word in _OUTCOMES if word in behaviour]
    if len(outcomes) != 1 or outcomes[0] not in allowed:
        message = f"must have exactly one of {', '.join(allowed)}"
        yield Finding("BEHAVIOUR_AMBIGUOUS", path, message, ", ".join(outcomes))
        return
    outcome = outcomes[0]
    if ("then" in behaviour) != (outcome == "crashes"):
        yield Finding("BEHAVIOUR_AMBIGUOUS", path, "crashes and then belong together")
    elif outcome == "crashes":
        yield from _behaviour_wrong(f"{path}.then", behaviour["then"], ("script", *_IN_SCRIPT))
    elif outcome == "script":
        for index, entry in enumerate(behaviour["script"]):
            yield from _behaviour_wrong(f"{path}.script[{index}]", entry, _IN_SCRIPT)
    beside = {"env"} if outcome not in _RETURNS else set()
    beside |= {"takes", "heartbeats"} if outcome in ("script", "absent") else set()
    for word in sorted(beside & behaviour.keys()):
        mend = "write it inside the script" if outcome == "script" else ""
        message = f"{word} means nothing beside {outcome}"
        yield Finding("BEHAVIOUR_AMBIGUOUS", f"{path}.{word}", message, mend=mend)


def names_wrong(story: Story) -> Iterator[Finding]:
    """Traces that are named before a step starts them."""
    known: set[str] = set()
    for step in story.steps:
        what = step.what
        if isinstance(what, Wait | Act) and what.trace not in known:
            path = f"steps[{step.number - 1}].{step.word}.trace"
            yield Finding("TRACE_UNKNOWN", path, f"no step before starts {what.trace}", what.trace)
        if isinstance(what, Trigger | Act) and what.name:
            known.add(what.name)
    for name in story.expect:
        if name not in known:
            message = f"no step starts {name}"
            mend = f"a trigger or rerun says `as: {name}`"
            yield Finding("TRACE_UNKNOWN", f"expect.{name}", message, name, mend)


def functions_missing(story: Story) -> Iterator[Finding]:
    if story.publish_error:
        return
    called = {function for document in story.documents for function in functions_of(document)}
    for function in sorted(called - story.functions.keys()):
        message = f"{function} is called and has no behaviour"
        yield Finding("FUNCTION_MISSING", "functions", message, mend=f"add {function}: {{…}}")
    counted = {name for expected in story.expect.values() for name in expected.calls}
    for function in sorted(counted - story.functions.keys() - called):
        message = f"calls of {function} are counted, and no function is called so"
        yield Finding("FUNCTION_MISSING", "expect", message, function)
