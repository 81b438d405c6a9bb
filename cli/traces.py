"""`magicflow trigger` and `magicflow trace …`."""

from __future__ import annotations

import json
import sys
from datetime import datetime
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.live import Live
from rich.table import Table

import magicflow
from cli.output import (
    MAX_INT64,
    Exit,
    JsonFlag,
    add_row,
    age,
    command,
    fail,
    out,
    show_json,
    split_pin,
)
from magicflow.client import status_name, value_of
from magicflow.payloads import to_json
from magicflow.v1 import trace_pb2
from magicflow.v1.playbook_pb2 import Playbook

app = typer.Typer(no_args_is_help=True, help="Look at traces and steer them.")

TraceId = Annotated[str, typer.Argument(help="The trace id, as trigger prints it.")]


def read_input(text: str) -> Any:
    """JSON from the argument, `@file`, or `-` for standard input."""
    if text == "-":
        text = sys.stdin.read()
    elif text.startswith("@"):
        try:
            text = Path(text[1:]).read_text()
        except OSError as error:
            fail(f"the input file cannot be read: {error}", Exit.INVALID)
    try:
        return json.loads(text)
    except ValueError as error:
        fail(
            f"the input is not JSON: {error}",
            Exit.INVALID,
            mend="""write for example --input '{"sku": "a1"}', --input @file.json or --input -""",
        )


@command
async def trigger(
    playbook: Annotated[str, typer.Argument(help="The playbook, app/name or app/name@snapshot.")],
    input: Annotated[str, typer.Option("--input", "-i", help="JSON, @file or -.")] = "null",
    wait: Annotated[bool, typer.Option("--wait", "-w", help="Wait for the end.")] = False,
    timeout: Annotated[float, typer.Option(help="How long to wait, in seconds.")] = 60.0,
    key: Annotated[str, typer.Option(help="The same key and input: the same trace.")] = "",
    start_at: Annotated[datetime | None, typer.Option(help="Begin then, local time.")] = None,
    priority: Annotated[int | None, typer.Option(min=0, max=9, help="9 is first.")] = None,
    as_json: JsonFlag = False,
) -> None:
    """Start a trace; with --wait, show its output."""
    name, pin = split_pin(playbook)
    async with magicflow.Client() as client:
        handle = await client.trigger(
            name,
            read_input(input),
            snapshot=pin,
            key=key,
            start_at=start_at,
            priority=priority,
        )
        if not wait:
            if as_json:
                show_json({"trace_id": handle.trace_id, "snapshot_id": handle.snapshot_id})
            else:
                out.print(handle.trace_id, highlight=False)
            return
        outcome = await handle.outcome(timeout)
    if as_json:
        show_json(
            {"trace_id": handle.trace_id, "snapshot_id": handle.snapshot_id, "outcome": outcome}
        )
        if outcome.status != trace_pb2.TRACE_STATUS_SUCCEEDED:
            raise typer.Exit(int(Exit.FAILED))
        return
    value = value_of(handle.trace_id, outcome)
    text = value if isinstance(value, bytes) else to_json(value)
    sys.stdout.buffer.write(text + b"\n")


async def _drawn(client: magicflow.Client, trace: trace_pb2.Trace) -> Playbook | None:
    try:
        return (await client.snapshot(trace.snapshot_id)).playbook
    except magicflow.MagicflowError:
        return None  # the tree is then a row


@app.command("show")
@command
async def show(
    trace_id: TraceId,
    svg: Annotated[
        Path | None,
        typer.Option("--svg", metavar="FILE", help="Write a picture of its graph; - for output."),
    ] = None,
    as_json: JsonFlag = False,
) -> None:
    """One trace as a tree, now; with --svg, its playbook's graph coloured by state."""
    from cli.tree import trace_tree

    async with magicflow.Client() as client:
        trace = await client.get(trace_id)
        if as_json:
            show_json(trace)
        if svg is not None:
            await _draw(client, trace, svg)
        elif not as_json:
            out.print(trace_tree(trace, await _drawn(client, trace)))


async def _draw(client: magicflow.Client, trace: trace_pb2.Trace, file: Path) -> None:
    """Events only tell which edges were taken: without them the picture is still one."""
    from cli.drawing.model import drawing_of
    from cli.drawing.progress import progress_of
    from cli.drawing.saving import save_svg
    from cli.drawing.svg import render
    from engine.wire.playbooks import playbook

    drawn = playbook((await client.snapshot(trace.snapshot_id)).playbook)
    try:
        happened = await client.events(trace.trace_id)
    except magicflow.MagicflowError:
        happened = []
    progress = progress_of(drawn, trace, happened)
    save_svg(file, render(drawing_of(drawn, trace.snapshot_id), progress))


@app.command("watch")
@command
async def watch(trace_id: TraceId, as_json: JsonFlag = False) -> None:
    """A live tree until the trace has ended. Ends with 1 if it did not succeed."""
    from cli.tree import trace_tree

    trace: trace_pb2.Trace | None = None
    async with magicflow.Client() as client:
        if as_json:
            async for trace in client.watch(trace_id):
                sys.stdout.write(json.dumps(_plain(trace), ensure_ascii=False) + "\n")
                sys.stdout.flush()
        else:
            playbook: Playbook | None = None
            with Live(console=out, auto_refresh=False) as live:
                async for trace in client.watch(trace_id):
                    playbook = playbook or await _drawn(client, trace)
                    live.update(trace_tree(trace, playbook), refresh=True)
    if trace is not None and trace.status != trace_pb2.TRACE_STATUS_SUCCEEDED:
        raise typer.Exit(int(Exit.FAILED))


def _plain(trace: trace_pb2.Trace) -> Any:
    from cli.output import plain

    return plain(trace)


@app.command("list")
@command
async def list_traces(
    playbook: Annotated[str, typer.Argument(help="The playbook, app/name.")] = "",
    snapshot: Annotated[int, typer.Option(min=0, max=MAX_INT64, help="Only this snapshot.")] = 0,
    status: Annotated[str, typer.Option(help="Only this status, such as failed.")] = "",
    limit: Annotated[int, typer.Option(min=1, max=10_000)] = 20,
    as_json: JsonFlag = False,
) -> None:
    """Traces of a playbook or a snapshot, newest first."""
    known = [name.removeprefix("TRACE_STATUS_") for name in trace_pb2.TraceStatus.keys()[1:]]
    if status and status.upper() not in known:
        fail(f"there is no status {status}", Exit.USAGE, mend=f"one of {', '.join(known)}")
    if not playbook and not snapshot:
        fail("name a playbook or a --snapshot", Exit.USAGE)
    async with magicflow.Client() as client:
        traces = await client.list_traces(playbook, snapshot=snapshot, status=status, limit=limit)
    if as_json:
        show_json(traces)
        return
    table = Table("trace", "playbook", "status", "triggered", "took", "failure")
    table.columns[0].no_wrap = True
    table.columns[0].overflow = "fold"
    for trace in traces:
        took = trace.ended_at.ToMilliseconds() - trace.triggered_at.ToMilliseconds()
        add_row(
            table,
            trace.trace_id,
            f"{trace.app}/{trace.playbook}@{trace.snapshot_id}",
            status_name(trace.status),
            trace.triggered_at.ToDatetime().isoformat(" ", "seconds"),
            age(took) if took >= 0 else "",
            trace.failure.code,
        )
    out.print(table)


@app.command("events")
@command
async def events(trace_id: TraceId, as_json: JsonFlag = False) -> None:
    """Everything that happened to a trace, in order."""
    async with magicflow.Client() as client:
        found = await client.events(trace_id)
    if as_json:
        show_json(found)
        return
    table = Table("at", "what", "node", "attempt", "detail")
    for event in found:
        name = event.WhichOneof("what") or ""
        body = getattr(event, name)
        detail = ""
        if "failure" in body.DESCRIPTOR.fields_by_name and body.HasField("failure"):
            detail = f"{body.failure.code}: {body.failure.message[:80]}"
        elif getattr(body, "taken", None) and name == "node_succeeded":
            detail = f"to {', '.join(body.taken)}"
        add_row(
            table,
            event.at.ToDatetime().isoformat(" ", "milliseconds")[11:],
            name,
            getattr(body, "node", ""),
            str(getattr(body, "attempt", "") or ""),
            detail,
        )
    out.print(table)
