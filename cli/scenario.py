"""`magicflow scenario …`."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.markup import escape

from cli.output import Exit, JsonFlag, command, fail, out, show_json

if TYPE_CHECKING:
    from cli.scenarios.playing import Verdict
    from cli.scenarios.reading import Broken
    from cli.scenarios.way import Way
    from engine.core.findings import Finding

app = typer.Typer(no_args_is_help=True, help="Stories that every engine and SDK tells alike.")

SUFFIXES = (".yaml", ".yml", ".json")


@app.command("run")
@command
async def run(
    paths: Annotated[
        list[Path], typer.Argument(metavar="FILE_OR_FOLDER…", help="Stories, or folders of them.")
    ],
    stack: Annotated[
        bool, typer.Option("--stack", help="On real services of its own, with a real worker.")
    ] = False,
    worker: Annotated[
        str, typer.Option(metavar="COMMAND", help="Another worker than that of the Python SDK.")
    ] = "",
    as_json: JsonFlag = False,
) -> None:
    """Tell stories, in the core alone unless --stack is given. Ends with 1 if one came out
    otherwise than expected."""
    if worker and not stack:
        fail("--worker goes with --stack", Exit.USAGE)
    files = list(_files(paths))
    if stack:
        told = await _tell_on_services(files, worker, as_json)
    else:
        from cli.scenarios.core import CoreWay

        told = await _tell(files, CoreWay(), as_json)
    if as_json:
        show_json([_data(file, outcome) for file, outcome in zip(files, told, strict=True)])
    else:
        _sum_up(told)
    if any(_word(outcome) == "FAILED" for outcome in told):
        raise typer.Exit(int(Exit.FAILED))


async def _tell_on_services(files: list[Path], worker: str, quiet: bool) -> list[Verdict | Broken]:
    """A stop signal leaves no server behind."""
    import asyncio
    import signal

    from cli.scenarios.stack import StackWay

    here = asyncio.current_task()
    assert here is not None
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, here.cancel)
    try:
        async with StackWay(worker) as way:
            return await _tell(files, way, quiet)
    except asyncio.CancelledError:
        raise typer.Exit(130) from None


def _files(paths: list[Path]) -> Iterator[Path]:
    for path in paths:
        if not path.exists():
            fail(f"there is no {path}", Exit.USAGE)
        if not path.is_dir():
            yield path
            continue
        inside = sorted(file for file in path.rglob("*") if file.suffix in SUFFIXES)
        if not inside:
            fail(f"{path} holds no story", Exit.USAGE, mend="stories end in .yaml or .json")
        yield from inside


async def _tell(files: list[Path], way: Way, quiet: bool) -> list[Verdict | Broken]:
    from cli.scenarios.playing import play
    from cli.scenarios.reading import Broken, read_story

    told: list[Verdict | Broken] = []
    for file in files:
        story = read_story(file)
        outcome = story if isinstance(story, Broken) else await play(story, way)
        if not quiet:
            _show(file, outcome)
        told.append(outcome)
    return told


def _show(file: Path, outcome: Verdict | Broken) -> None:
    from cli.scenarios.reading import Broken

    word = _word(outcome)
    style = {"ok": "green", "FAILED": "bold red", "skipped": "yellow"}[word]
    name = "not a story" if isinstance(outcome, Broken) else outcome.story.name
    reason = "" if isinstance(outcome, Broken) else outcome.skipped
    tail = f": {name}" + (f" ({reason})" if reason else "")
    out.print(
        f"[{style}]{word:8}[/]{escape(str(file))}{escape(tail)}", highlight=False, soft_wrap=True
    )
    for line in _wrong(file, outcome):
        out.print(f"          {escape(line)}", highlight=False, soft_wrap=True)


def _word(outcome: Verdict | Broken) -> str:
    from cli.scenarios.reading import Broken

    if isinstance(outcome, Broken) or outcome.differences:
        return "FAILED"
    return "skipped" if outcome.skipped else "ok"


def _wrong(file: Path, outcome: Verdict | Broken) -> list[str]:
    from cli.scenarios.reading import Broken

    if isinstance(outcome, Broken):
        return [_line(file, finding) for finding in outcome.findings]
    return list(outcome.differences)


def _line(file: Path, finding: Finding) -> str:
    place = f"{file}:{finding.line}:{finding.column}" if finding.line else str(file)
    seen = f" (seen: {finding.seen})" if finding.seen else ""
    mend = f"; {finding.mend}" if finding.mend else ""
    where = finding.path or "story"
    return f"{place}: {finding.code} {where}: {finding.message}{seen}{mend}"


def _sum_up(told: list[Verdict | Broken]) -> None:
    words = [_word(outcome) for outcome in told]
    text = f"{words.count('ok')} passed, {words.count('FAILED')} failed"
    if "skipped" in words:
        text += f", {words.count('skipped')} skipped"
    out.print(text, highlight=False)


def _data(file: Path, outcome: Verdict | Broken) -> dict[str, Any]:
    from cli.scenarios.reading import Broken

    word = {"ok": "passed", "FAILED": "failed"}.get(_word(outcome), "skipped")
    told = {} if isinstance(outcome, Broken) else _told(outcome)
    return {"file": str(file), "outcome": word, **told, "differences": _wrong(file, outcome)}


def _told(verdict: Verdict) -> dict[str, Any]:
    reason = {"reason": verdict.skipped} if verdict.skipped else {}
    return {"name": verdict.story.name, **reason}
