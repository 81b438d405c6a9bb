"""Every story, told by the core under virtual time and by real services, and those of the
documentation."""

from __future__ import annotations

import re
import sys
from pathlib import Path

import pytest

from cli.scenarios.core import CoreWay
from cli.scenarios.playing import play
from cli.scenarios.reading import Broken, read_story
from cli.scenarios.stack import StackWay
from cli.scenarios.way import Way
from engine.core import machine
from engine.core.steering import Verb

HERE = Path(__file__).parent
STORIES = sorted(HERE.rglob("*.yaml"))
FOLDERS = sorted({story.parent for story in STORIES})
PAGE = HERE.parent.parent / "docs" / "playbook.md"
EXAMPLES = re.findall(r"```yaml\n(name: .*?)```", PAGE.read_text(), re.DOTALL)


async def differences(file: Path, way: Way) -> tuple[str, ...]:
    story = read_story(file)
    assert not isinstance(story, Broken), story.findings
    return (await play(story, way)).differences


@pytest.mark.parametrize("file", STORIES, ids=[str(file.relative_to(HERE)) for file in STORIES])
async def test_the_core_tells_the_story(file: Path) -> None:
    assert await differences(file, CoreWay()) == ()


@pytest.mark.timeout(400)
@pytest.mark.parametrize("folder", FOLDERS, ids=[folder.name for folder in FOLDERS])
async def test_real_services_tell_the_same_stories(folder: Path) -> None:
    wrong: dict[str, tuple[str, ...]] = {}
    async with StackWay("") as way:
        for file in sorted(folder.glob("*.yaml")):
            found = await differences(file, way)
            if found:
                wrong[file.name] = found
    assert wrong == {}


@pytest.mark.parametrize("text", EXAMPLES, ids=[text.split("\n")[0][6:] for text in EXAMPLES])
async def test_the_examples_of_the_documentation_run(text: str, tmp_path: Path) -> None:
    file = tmp_path / "example.yaml"
    file.write_text(text)
    assert await differences(file, CoreWay()) == ()


def test_the_documentation_shows_every_construct() -> None:
    page = "\n".join(EXAMPLES)
    for word in (
        "task:", "playbook:", "map:", "repeat:", "hook:", "sleep:", "until:", "nop:", "when:",
        "otherwise:", "on: error", "on: rejected", "retry:", "timeout:", "compensate:", "env:",
        "tolerate:", "concurrency:", "idempotency_key:", "pause:", "resume:", "rerun:",
    ):  # fmt: skip
        assert word in page, f"no example has {word}"


async def test_negative_control_a_broken_rule_breaks_stories(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(machine, "_decidable", lambda node, state: bool(state.taken))
    joins = sorted((HERE / "02-joins").glob("*.yaml"))
    wrong = [file.name for file in joins if await differences(file, CoreWay())]
    assert len(wrong) >= 3


def test_every_verb_has_its_stories() -> None:
    text = "\n".join(file.read_text() for file in STORIES)
    for verb in Verb:
        assert f"- {verb}:" in text, f"no story has the step {verb}"


@pytest.mark.timeout(120)
async def test_a_worker_of_ones_own_tells_the_stories_and_one_that_errs_does_not(
    tmp_path: Path,
) -> None:
    """The third way: any program that keeps to the contract of `magicflow.conformance`."""
    program = tmp_path / "worker.py"
    program.write_text(
        "import os, pathlib, sys\n"
        "from magicflow import conformance\n"
        f"pathlib.Path({str(tmp_path / 'was-here')!r}).touch()\n"
        "async def lie(*given):\n"
        "    return 'a lie'\n"
        "if 'lies' in sys.argv:\n"
        "    conformance.perform = lie\n"
        "conformance.worker_of(pathlib.Path(os.environ['MAGICFLOW_BEHAVIOUR'])).run()\n"
    )
    story = HERE / "01-order" / "chain.yaml"
    async with StackWay(f"{sys.executable} {program}") as way:
        assert await differences(story, way) == ()
    assert (tmp_path / "was-here").exists()
    async with StackWay(f"{sys.executable} {program} lies") as way:
        assert await differences(story, way) != ()
