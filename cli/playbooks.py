"""`magicflow playbook …`."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Annotated

import typer
from rich.markup import escape
from rich.table import Table

import magicflow
from cli.output import Exit, JsonFlag, command, err, fail, out, show_json
from magicflow.v1.playbook_pb2 import SEVERITY_ERROR, Finding

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
        from engine.document.examine import examine_text
        from engine.wire import finding_message

        findings = [finding_message(finding) for finding in examine_text(text).findings]
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
    snapshot: Annotated[int, typer.Argument(min=1, help="The snapshot's number.")],
    expect: Annotated[int, typer.Option(help="Only if this one is live now.")] = 0,
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
        table.add_row(
            f"{record.app}/{record.name}",
            str(record.id),
            str(record.active_snapshot_id or "-"),
            str(record.latest_snapshot_id),
            escape(record.description[:60]),
        )
    out.print(table)


@app.command("show")
@command
async def show(
    name: Annotated[str, typer.Argument(help="app/name, or app/name@snapshot.")],
    as_json: JsonFlag = False,
) -> None:
    """A playbook, its snapshots, and the text of the live or the named one."""
    full, _, pin = name.partition("@")
    if pin and not pin.isdigit():
        fail(f"{pin!r} is no snapshot number", Exit.USAGE)
    async with magicflow.Client() as client:
        record = await client.playbook(full)
        snapshots = await client.snapshots(full)
        number = int(pin) if pin else record.active_snapshot_id or record.latest_snapshot_id
        snapshot = await client.snapshot(number)
    if as_json:
        show_json({"playbook": record, "snapshots": snapshots, "snapshot": snapshot})
        return
    table = Table("snapshot", "published", "by", "checksum", "")
    for item in snapshots:
        table.add_row(
            str(item.id),
            item.published_at.ToDatetime().isoformat(" ", "seconds"),
            item.published_by,
            item.checksum.hex()[:12],
            "live" if item.id == record.active_snapshot_id else "",
        )
    out.print(table)
    out.print(f"[bold]{full}@{number}[/]", highlight=False)
    sys.stdout.write(snapshot.document.rstrip() + "\n")


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
