"""`magicflow playbook …`."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.markup import escape
from rich.table import Table

import magicflow
from cli.output import (
    MAX_INT64,
    Exit,
    JsonFlag,
    add_row,
    command,
    err,
    fail,
    out,
    show_json,
    split_pin,
)
from magicflow.v1.playbook_pb2 import SEVERITY_ERROR, Finding

if TYPE_CHECKING:
    from cli.drawing.model import Drawing

app = typer.Typer(no_args_is_help=True, help="Check, publish and switch playbooks.")

File = Annotated[str, typer.Argument(help="A YAML or JSON file, or - for standard input.")]
Strict = Annotated[bool, typer.Option("--strict", help="Turn warnings into errors.")]
Name = Annotated[str, typer.Argument(help="The playbook, app/name.")]


def read_document(file: str) -> str:
    try:
        return sys.stdin.read() if file == "-" else Path(file).read_text("utf-8")
    except (OSError, UnicodeDecodeError) as error:
        fail(f"{file} cannot be read: {error}", Exit.INVALID)
        raise AssertionError from error


def _show_findings(file: str, findings: list[Finding]) -> None:
    for finding in findings:
        is_error = finding.severity == SEVERITY_ERROR
        word = "[red]error[/]" if is_error else "[yellow]warning[/]"
        place = f"{file}:{finding.line}:{finding.column}" if finding.line else file
        err.print(
            f"{escape(place)}: {word} [bold]{finding.code}[/] "
            f"{escape(finding.path or 'document')}: {escape(finding.message)}",
            highlight=False,
            soft_wrap=True,
        )
        if finding.mend:
            err.print(f"    {escape(finding.mend)}", style="dim", highlight=False, soft_wrap=True)


@app.command("validate")
@command
async def validate(
    file: File,
    strict: Strict = False,
    offline: Annotated[
        bool, typer.Option("--offline", help="Ask no server; functions and grants go unchecked.")
    ] = False,
    as_json: JsonFlag = False,
) -> None:
    """Check a playbook; every finding with its place. Ends with 3 if it has an error."""
    text = read_document(file)
    if offline:
        from engine.core.checks.types import Nothing
        from engine.document.examine import examine_text
        from engine.wire.playbooks import finding_message

        examined = examine_text(text).with_types(Nothing())
        if strict:
            examined = examined.without_warnings()
        findings = [finding_message(finding) for finding in examined.findings]
    else:
        async with magicflow.Client() as client:
            findings = await client.validate(text, strict=strict)
    errors = [finding for finding in findings if finding.severity == SEVERITY_ERROR]
    if as_json:
        show_json({"valid": not errors, "findings": findings})
    else:
        _show_findings(file, findings)
        if not errors:
            out.print(f"[green]✓[/] {escape(file)} is valid")
    if errors:
        raise typer.Exit(int(Exit.INVALID))


@app.command("publish")
@command
async def publish(
    file: File,
    switch: Annotated[bool, typer.Option("--switch", help="Make it live at once.")] = False,
    strict: Strict = False,
    as_json: JsonFlag = False,
) -> None:
    """Freeze a playbook into a snapshot."""
    text = read_document(file)
    async with magicflow.Client() as client:
        try:
            answer = await client.publish(text, switch=switch, strict=strict)
        except magicflow.Invalid as error:
            if as_json or error.reason != "PLAYBOOK_INVALID":
                raise
            _show_findings(file, await client.validate(text, strict=strict))
            raise typer.Exit(int(Exit.INVALID)) from error
    if as_json:
        show_json(answer)
        return
    _show_findings(file, list(answer.findings))
    snapshot = answer.snapshot
    name = f"{snapshot.playbook.app}/{snapshot.playbook.name}"
    known = "was published before as" if answer.existing else "published as"
    out.print(f"{name} {known} snapshot [bold]{snapshot.id}[/]", highlight=False)
    if answer.active:
        out.print(f"[green]✓[/] live. Next: magicflow trigger {name} --wait", highlight=False)
    else:
        out.print(
            f"Not live yet. Next: magicflow playbook switch {name} {snapshot.id}", highlight=False
        )


@app.command("switch")
@command
async def switch(
    name: Name,
    snapshot: Annotated[int, typer.Argument(min=1, max=MAX_INT64, help="The snapshot's number.")],
    expect: Annotated[
        int, typer.Option(min=0, max=MAX_INT64, help="Only if this one is live now.")
    ] = 0,
    as_json: JsonFlag = False,
) -> None:
    """Make a snapshot the live version. Running traces keep theirs."""
    async with magicflow.Client() as client:
        previous = await client.switch(name, snapshot, expected=expect)
    if as_json:
        show_json({"snapshot_id": snapshot, "previous_snapshot_id": previous})
    else:
        before = f" (before: {previous})" if previous else ""
        out.print(f"{name}: snapshot [bold]{snapshot}[/] is live{before}", highlight=False)


@app.command("list")
@command
async def list_playbooks(
    app_name: Annotated[str, typer.Argument(metavar="[APP]", help="Only this app's.")] = "",
    as_json: JsonFlag = False,
) -> None:
    """All playbooks."""
    async with magicflow.Client() as client:
        found = await client.playbooks(app_name)
    if as_json:
        show_json(found)
        return
    table = Table("playbook", "id", "live", "latest", "description")
    for record in found:
        add_row(
            table,
            f"{record.app}/{record.name}",
            str(record.id),
            str(record.active_snapshot_id or "-"),
            str(record.latest_snapshot_id),
            record.description[:60],
        )
    out.print(table)


@app.command("show")
@command
async def show(
    name: Annotated[str, typer.Argument(help="app/name, or app/name@snapshot.")],
    as_json: JsonFlag = False,
) -> None:
    """A playbook, its snapshots, and the text of the live or the named one."""
    full, pin = split_pin(name)
    async with magicflow.Client() as client:
        record = await client.playbook(full)
        snapshots = await client.snapshots(full)
        number = pin or record.active_snapshot_id or record.latest_snapshot_id
        snapshot = await client.snapshot(number)
    if as_json:
        show_json({"playbook": record, "snapshots": snapshots, "snapshot": snapshot})
        return
    table = Table("snapshot", "published", "by", "checksum", "")
    for item in snapshots:
        add_row(
            table,
            str(item.id),
            item.published_at.ToDatetime().isoformat(" ", "seconds"),
            item.published_by,
            item.checksum.hex()[:12],
            "live" if item.id == record.active_snapshot_id else "",
        )
    out.print(table)
    out.print(f"[bold]{full}@{number}[/]", highlight=False)
    sys.stdout.write(snapshot.document.rstrip() + "\n")


GRAPH_WIDTH = 100  # columns, where the output is no terminal


@app.command("graph")
@command
async def graph(
    playbook: Annotated[
        str,
        typer.Argument(
            metavar="FILE_OR_NAME",
            help="A YAML or JSON file, - for standard input, app/name, or app/name@snapshot.",
        ),
    ],
    snapshot: Annotated[
        int, typer.Option(min=0, max=MAX_INT64, help="This one, not the live one.")
    ] = 0,
    svg: Annotated[
        Path | None, typer.Option("--svg", metavar="FILE", help="Write a picture; - for output.")
    ] = None,
    as_json: JsonFlag = False,
) -> None:
    """Draw a playbook. Of a file with errors what can be drawn is drawn; it ends with 3."""
    from cli.drawing.saving import save_svg
    from cli.drawing.svg import render
    from cli.drawing.text import draw

    if playbook == "-" or playbook.endswith((".yaml", ".yml", ".json")) or _is_file(playbook):
        if snapshot:
            fail("--snapshot goes with the name of a published playbook", Exit.USAGE)
        drawing, good = _drawn_file(playbook)
    else:
        drawing, good = await _drawn_snapshot(playbook, snapshot), True
    if as_json:
        show_json(_graph_data(drawing))
    if svg is not None:
        save_svg(svg, render(drawing))
    elif not as_json:
        width = out.width if out.is_terminal else GRAPH_WIDTH
        out.print(draw(drawing, width), crop=False, soft_wrap=True)
    if not good:
        raise typer.Exit(int(Exit.INVALID))


def _is_file(name: str) -> bool:
    return Path(name).is_file()


def _drawn_file(file: str) -> tuple[Drawing, bool]:
    """The drawing, and whether the document has no errors; warnings are for `validate`."""
    from cli.drawing.model import drawing_of
    from engine.document.examine import examine_text
    from engine.wire.playbooks import finding_message

    examined = examine_text(read_document(file))
    _show_findings(file, [finding_message(finding) for finding in examined.errors])
    hidden = {finding.code for finding in examined.errors} & {"GRAPH_CYCLE", "EDGE_DANGLING"}
    if examined.playbook is None or hidden:
        raise typer.Exit(int(Exit.INVALID))
    return drawing_of(examined.playbook), not examined.errors


async def _drawn_snapshot(name: str, number: int) -> Drawing:
    from cli.drawing.model import drawing_of
    from engine.wire.playbooks import playbook

    full, pin = split_pin(name)
    if "/" not in full:
        fail(f"{full!r} is neither a file nor app/name", Exit.USAGE)
    async with magicflow.Client() as client:
        record = await client.playbook(full)
        latest = record.active_snapshot_id or record.latest_snapshot_id
        snapshot = await client.snapshot(number or pin or latest)
    drawn = playbook(snapshot.playbook)
    if drawn.full_name != full:
        fail(f"snapshot {snapshot.id} is one of {drawn.full_name}, not of {full}", Exit.NOT_FOUND)
    return drawing_of(drawn, snapshot.id)


def _graph_data(drawing: Drawing) -> dict[str, Any]:
    codes = [shape.code for shape in drawing.shapes]
    return {
        "playbook": drawing.title,
        "nodes": [
            {
                "code": shape.code,
                "kind": shape.kind,
                "callee": shape.callee,
                "join": "any" if shape.join_any else "all",
            }
            for shape in drawing.shapes
        ],
        "edges": [
            {
                "from": codes[arrow.source],
                "to": codes[arrow.target],
                "kind": arrow.style.value,
                "label": arrow.label,
            }
            for arrow in drawing.arrows
        ],
    }


@app.command("diff")
@command
async def diff(
    older: Annotated[int, typer.Argument(help="The older snapshot.")],
    newer: Annotated[int, typer.Argument(help="The newer snapshot.")],
    as_json: JsonFlag = False,
) -> None:
    """What changed between two snapshots of one playbook."""
    async with magicflow.Client() as client:
        found = await client.diff(older, newer)
    if as_json:
        show_json(found)
        return
    if not found:
        out.print("no difference")
    for item in found:
        sign, style = {"added": ("+", "green"), "removed": ("-", "red")}.get(
            item.change, ("~", "yellow")
        )
        values = " → ".join(escape(value) for value in (item.before, item.after) if value)
        out.print(f"[{style}]{sign} {escape(item.path)}[/] {values}", highlight=False)


@app.command("schema")
def schema() -> None:
    """The JSON Schema of playbook documents, for editors."""
    from engine.document.shape import SCHEMA

    sys.stdout.write(json.dumps(SCHEMA, indent=2) + "\n")
