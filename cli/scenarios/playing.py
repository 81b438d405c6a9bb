"""Tells a story in one of the ways in which it can be told, and says what came out otherwise."""

from __future__ import annotations

import asyncio
import time
from dataclasses import dataclass

from cli.scenarios.documents import name_of, text_of
from cli.scenarios.expectations import Seen, differences
from cli.scenarios.story import (
    Act,
    Advance,
    Document,
    Expected,
    ExpectedError,
    ExpectedFinding,
    Grant,
    Publish,
    Step,
    Story,
    Switch,
    Trigger,
    Wait,
)
from cli.scenarios.way import InVain, Published, Refused, Violation, Way

_NOWHERE = 1_000_000_000  # added to numbers of snapshots that the story has not published


@dataclass(frozen=True, slots=True)
class Verdict:
    """A story without `differences` came out as expected, unless it was `skipped`, with the
    reason."""

    story: Story
    differences: tuple[str, ...] = ()
    skipped: str = ""


async def play(story: Story, way: Way) -> Verdict:
    """Tells the story. Never raises for what comes of it."""
    try:
        skipped = await way.begin(story)
        if skipped:
            return Verdict(story, skipped=skipped)
        found = await _Telling(story, way).tell()
    except (Refused, InVain) as error:
        found = [str(error)]
    finally:
        await way.finish()
    return Verdict(story, tuple(found))


class _Stop(Exception):
    """A step went otherwise than told: the steps after it make no sense."""


class _Telling:
    """One story on its way."""

    def __init__(self, story: Story, way: Way) -> None:
        self._story = story
        self._way = way
        self._traces: dict[str, str] = {}
        self._snapshots: dict[str, list[int]] = {}
        self._differences: list[str] = []

    async def tell(self) -> list[str]:
        """The differences."""
        if self._story.publish_error:
            return await self._refused_publishing()
        try:
            await self._publish_all()
            for step in self._story.steps:
                await self._take(step)
        except _Stop:
            return self._differences
        await self._compare()
        return self._differences

    # Publishing.

    async def _publish_all(self) -> None:
        """The first is the one under test and may call the others: it comes last."""
        for document in reversed(self._story.playbooks):
            try:
                published = await self._publish(document)
                await self._way.switch(published.playbook, published.snapshot_id)
            except Refused as refused:
                self._stop(f"publishing {name_of(document)}: expected no error, saw {refused}")

    async def _publish(self, document: Document) -> Published:
        published = await self._way.publish(text_of(document, self._snapshot_id))
        known = self._snapshots.setdefault(published.playbook, [])
        if published.snapshot_id not in known:  # the same content is the same snapshot
            known.append(published.snapshot_id)
        return published

    def _snapshot_id(self, playbook: str, number: int) -> int:
        """The real id of the story's snapshot; one that does not exist for one that it has not
        published. 0 stays 0."""
        known = self._snapshots.get(playbook, [])
        if number > len(known):
            return _NOWHERE + number
        return known[number - 1] if number else 0

    async def _refused_publishing(self) -> list[str]:
        found: list[Violation] = []
        for document in reversed(self._story.playbooks):
            try:
                await self._publish(document)
            except Refused as refused:
                found += refused.violations
        return [
            f"publish_error: expected {_described(wanted)}, saw "
            + ("; ".join(f"{v.code} at {v.at}: {v.message}" for v in found) or "no error")
            for wanted in self._story.publish_error
            if not any(_fits(wanted, violation) for violation in found)
        ]

    # Steps.

    async def _take(self, step: Step) -> None:
        try:
            await self._do(step)
        except Refused as refused:
            if step.error is None:
                self._stop(f"{_place(step)}: expected no error, saw {refused}")
            elif not _is_expected(step.error, refused):
                self._stop(f"{_place(step)}: expected {_named(step.error)}, saw {refused}")
        except InVain as error:
            self._stop(f"{_place(step)}: {error}")
        else:
            if step.error is not None:
                self._stop(f"{_place(step)}: expected {_named(step.error)}, saw no error")

    def _stop(self, difference: str) -> None:
        self._differences.append(difference)
        raise _Stop

    async def _do(self, step: Step) -> None:
        match step.what:
            case Publish(document):
                await self._publish(document)
            case Switch(playbook, number):
                await self._way.switch(playbook, self._snapshot_id(playbook, number))
            case Grant() as grant:
                await self._way.grant(grant)
            case Trigger() as trigger:
                snapshot_id = self._snapshot_id(trigger.playbook, trigger.snapshot)
                self._name(step, trigger.name, await self._way.trigger(trigger, snapshot_id))
            case Wait() as wait:
                await self._way.wait(self._id(step, wait.trace), wait)
            case Advance(by):
                await self._way.advance(by)
            case Act() as act:
                await self._act(step, act)

    async def _act(self, step: Step, act: Act) -> None:
        trace_id = self._id(step, act.trace)
        snapshot_id = 0
        if act.snapshot:
            trace = await self._way.trace(trace_id)
            snapshot_id = self._snapshot_id(f"{trace.app}/{trace.playbook}", act.snapshot)
        self._name(step, act.name, await self._way.act(trace_id, act, snapshot_id))

    def _name(self, step: Step, name: str, trace_id: str) -> None:
        """A name that is used again stands for the same trace."""
        if name and self._traces.setdefault(name, trace_id) != trace_id:
            self._stop(f"{_place(step)}: expected {name} once more, saw another trace")

    def _id(self, step: Step, name: str) -> str:
        if name not in self._traces:
            self._stop(f"{_place(step)}: {name} was never started")
        return self._traces[name]

    # What came out.

    async def _compare(self) -> None:
        """Traces that must not have ended first: to wait for the end of the others takes
        time."""
        for name, expected in self._story.expect.items():
            if name in self._traces and expected.live:
                self._differences += await self._live(name, expected)
        for name, expected in self._story.expect.items():
            if name not in self._traces:
                self._differences.append(f"{name}: was never started")
            elif not expected.live:
                self._differences += await self._ended(name, expected)

    async def _live(self, name: str, expected: Expected) -> list[str]:
        until = time.monotonic() + self._way.patience
        while True:
            found = differences(name, expected, await self._seen(name))
            if not found or time.monotonic() >= until:
                return found
            await asyncio.sleep(0.1)

    async def _ended(self, name: str, expected: Expected) -> list[str]:
        try:
            await self._way.wait(self._traces[name], Wait(name))
        except InVain as error:
            return [f"{name}: {error}", *differences(name, expected, await self._seen(name))]
        return differences(name, expected, await self._seen(name))

    async def _seen(self, name: str) -> Seen:
        trace_id = self._traces[name]
        trace, events = await self._way.trace(trace_id), await self._way.events(trace_id)
        return Seen(trace, events, await self._way.calls())


def _place(step: Step) -> str:
    return f"step {step.number}, {step.word} (line {step.line})"


def _is_expected(expected: ExpectedError, refused: Refused) -> bool:
    return expected.code in ("", refused.code) and expected.reason in ("", refused.reason)


def _named(expected: ExpectedError) -> str:
    return " ".join(word for word in (expected.code, expected.reason) if word)


def _fits(wanted: ExpectedFinding, violation: Violation) -> bool:
    return (
        wanted.code == violation.code
        and wanted.at in ("", violation.at)
        and wanted.message_contains in violation.message
    )


def _described(wanted: ExpectedFinding) -> str:
    at = f" at {wanted.at}" if wanted.at else ""
    words = f" with “{wanted.message_contains}”" if wanted.message_contains else ""
    return f"{wanted.code}{at}{words}"
