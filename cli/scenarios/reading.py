"""A story from its file, with every finding at its place."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cli.scenarios.checks import (
    behaviours_wrong,
    commands_wrong,
    functions_missing,
    names_wrong,
    parts_wrong,
    steps_wrong,
    waits_wrong,
)
from cli.scenarios.shape import check_shape
from cli.scenarios.story import (
    ABSENT,
    Act,
    Advance,
    Expected,
    ExpectedError,
    ExpectedFailure,
    ExpectedFinding,
    Grant,
    Publish,
    Step,
    Story,
    Switch,
    Trigger,
    Wait,
    What,
)
from engine.core.findings import Finding
from engine.document.durations import parse_duration
from engine.document.reading import PRIORITIES
from engine.document.text import Document, dotted, read_text


@dataclass(frozen=True, slots=True)
class Broken:
    """A file that is no story. `findings` is never empty."""

    file: Path
    findings: tuple[Finding, ...]


def read_story(file: Path) -> Story | Broken:
    """Never raises for what stands in the file, or for a file that cannot be read."""
    try:
        text = file.read_text("utf-8")
    except (OSError, UnicodeDecodeError) as error:
        return Broken(file, (Finding("FILE_UNREADABLE", "", f"cannot be read: {error}"),))
    return parse_story(text, file)


def parse_story(text: str, file: Path = Path("story.yaml")) -> Story | Broken:
    """The story in YAML or JSON text."""
    document, findings = read_text(text)
    if document is None:
        return Broken(file, tuple(findings))
    findings += check_shape(document.data)
    if findings:
        return Broken(file, _located(document, findings))
    data: dict[str, Any] = document.data
    steps = data.get("steps", [])
    broken = [
        *steps_wrong(steps),
        *behaviours_wrong(data.get("functions", {})),
        *commands_wrong(data.get("commands", {})),
        *waits_wrong(data.get("expect", {})),
    ]
    if broken:
        return Broken(file, _located(document, broken))
    story = _story(file, data, document)
    findings = [*parts_wrong(data), *names_wrong(story), *functions_missing(story)]
    return Broken(file, _located(document, findings)) if findings else story


def _located(document: Document, findings: list[Finding]) -> tuple[Finding, ...]:
    places = {dotted(path): place for path, place in document.positions.items()}
    found = []
    for finding in findings:
        path = finding.path
        while path and path not in places:
            path = path[: max(path.rfind("."), path.rfind("["), 0)]
        place = None if finding.line else places.get(path)
        found.append(finding if place is None else finding.at(place.line, place.column))
    return tuple(sorted(found, key=lambda finding: (finding.line, finding.column)))


# From data to a story.


def _story(file: Path, data: Mapping[str, Any], document: Document) -> Story:
    grants = data.get("grants")
    return Story(
        file,
        data["name"],
        tuple(data["playbooks"]),
        data.get("functions", {}),
        tuple(_step(index, step, document) for index, step in enumerate(data.get("steps", []))),
        tuple(ExpectedFinding(**finding) for finding in data.get("publish_error", ())),
        {name: _expected(expected) for name, expected in data.get("expect", {}).items()},
        None if grants is None else tuple(Grant(*g) for g in grants if grants != "none"),
        data.get("commands", {}),
    )


def _step(index: int, data: dict[str, Any], document: Document) -> Step:
    word = next(key for key in data if key != "expect_error")
    place = document.locate(("steps", index))
    error = ExpectedError(**data["expect_error"]) if "expect_error" in data else None
    what = _READERS[word](data[word])
    return Step(index + 1, place.line if place else 0, word, what, error)


def _trigger(data: dict[str, Any]) -> What:
    playbook, _, pin = data["playbook"].partition("@")
    priority = data.get("priority")
    return Trigger(
        playbook,
        data.get("input"),
        data.get("as", ""),
        data.get("idempotency_key", ""),
        PRIORITIES[priority] if isinstance(priority, str) else priority,
        parse_duration(data.get("start_in", "0s")),
        data.get("snapshot", int(pin or 0)),
    )


def _wait(data: dict[str, Any]) -> What:
    until = data.get("until", {})
    words = (until.get(word, "") for word in ("node", "status", "waits"))
    return Wait(data["trace"], *words)


def _act(verb: str) -> Callable[[dict[str, Any]], What]:
    def read(data: dict[str, Any]) -> What:
        failure = data.get("failure", {})
        values = (data, "payload"), (data, "output"), (data, "input"), (failure, "details")
        return Act(
            verb,
            data["trace"],
            data.get("why", ""),
            data.get("node", ""),
            next((source[word] for source, word in values if word in source), ABSENT),
            data.get("decision") != "reject",
            data.get("compensate", False),
            tuple(data.get("nodes", ())),
            data.get("snapshot", 0),
            data.get("as", ""),
            failure.get("code", ""),
            failure.get("message", ""),
        )

    return read


_READERS: dict[str, Callable[[Any], What]] = {
    "publish": Publish,
    "switch": lambda data: Switch(data["playbook"], data["snapshot"]),
    "grant": lambda data: Grant(*data),
    "revoke": lambda data: Grant(data[0], data[1], given=False),
    "trigger": _trigger,
    "wait": _wait,
    "advance": lambda text: Advance(parse_duration(text)),
    **{
        verb: _act(verb)
        for verb in (
            "signal",
            "abort",
            "pause",
            "resume",
            "retry",
            "rerun",
            "complete",
            "fail",
            "skip",
        )
    },
}


def _expected(data: dict[str, Any]) -> Expected:
    error = data.get("error")
    return Expected(
        data.get("status", ""),
        ExpectedFailure(**error) if error is not None else None,
        data.get("output", ABSENT),
        data.get("nodes", {}),
        data.get("inputs", {}),
        data.get("outputs", {}),
        data.get("attempts", {}),
        tuple((first, second) for first, second in data.get("order", ())),
        data.get("env"),
        data.get("calls", {}),
        data.get("exactly", False),
        data.get("waits", {}),
    )
