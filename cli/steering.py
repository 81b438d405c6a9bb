"""`magicflow trace pause|resume|signal|…`: what an operator may do to a trace."""

from __future__ import annotations

from typing import Annotated, Any

import typer

import magicflow
from cli.output import MAX_INT64, command, out
from cli.traces import TraceId, read_input
from cli.traces import app as app

Why = Annotated[str, typer.Option(help="Recorded in the trace.")]
Node = Annotated[str, typer.Argument(help="The node's path, such as pay/charge or each[3].")]


def _payload(text: str) -> Any:
    return read_input(text) if text else None


@app.command("abort")
@command
async def abort(
    trace_id: TraceId,
    why: Why = "",
    compensate: Annotated[bool, typer.Option(help="Undo what has completed first.")] = False,
) -> None:
    """End a trace now."""
    async with magicflow.Client() as client:
        await client.abort(trace_id, why, compensate=compensate)
    out.print(f"{trace_id} aborted", highlight=False)


@app.command("pause")
@command
async def pause(trace_id: TraceId, why: Why = "") -> None:
    """Start nothing more in a trace; what runs may finish."""
    async with magicflow.Client() as client:
        await client.pause(trace_id, why)
    out.print(f"{trace_id} paused", highlight=False)


@app.command("resume")
@command
async def resume(trace_id: TraceId, why: Why = "") -> None:
    """Let a paused trace go on."""
    async with magicflow.Client() as client:
        await client.resume(trace_id, why)
    out.print(f"{trace_id} goes on", highlight=False)


@app.command("signal")
@command
async def signal(
    trace_id: TraceId,
    node: Node,
    payload: Annotated[str, typer.Option(help="JSON, @file or -.")] = "",
    reject: Annotated[bool, typer.Option("--reject", help="Fail the hook.")] = False,
    why: Why = "",
) -> None:
    """Give a waiting hook its decision and payload."""
    async with magicflow.Client() as client:
        await client.signal(trace_id, node, _payload(payload), approve=not reject, why=why)
    out.print(f"{node} {'rejected' if reject else 'approved'}", highlight=False)


@app.command("retry")
@command
async def retry(
    trace_id: TraceId,
    node: Annotated[list[str] | None, typer.Option(help="Only this failed node.")] = None,
    why: Why = "",
) -> None:
    """Run the failed nodes of an ended trace again."""
    async with magicflow.Client() as client:
        await client.retry(trace_id, node or [], why)
    out.print(f"{trace_id} runs again", highlight=False)


@app.command("rerun")
@command
async def rerun(
    trace_id: TraceId,
    node: Annotated[str, typer.Argument(help="Where to begin; nothing: at the start.")] = "",
    input: Annotated[str, typer.Option("--input", "-i", help="Instead of the former.")] = "",
    snapshot: Annotated[
        int, typer.Option(min=0, max=MAX_INT64, help="On this snapshot instead.")
    ] = 0,
    why: Why = "",
) -> None:
    """Run a trace again from a node, as a new trace; prints its id."""
    async with magicflow.Client() as client:
        handle = await client.rerun(
            trace_id, node, input=_payload(input), snapshot=snapshot, why=why
        )
    out.print(handle.trace_id, highlight=False)


@app.command("complete")
@command
async def complete(
    trace_id: TraceId,
    node: Node,
    output: Annotated[str, typer.Option("--output", "-o", help="JSON, @file or -.")] = "null",
    why: Why = "",
) -> None:
    """Give a node its output by hand."""
    async with magicflow.Client() as client:
        await client.complete_node(trace_id, node, read_input(output), why)
    out.print(f"{node} completed", highlight=False)


@app.command("fail")
@command
async def fail(
    trace_id: TraceId,
    node: Node,
    code: Annotated[str, typer.Option(help="The failure's code.")] = "",
    why: Why = "",
) -> None:
    """Fail a node by hand; error edges and compensations follow as usual."""
    async with magicflow.Client() as client:
        await client.fail_node(trace_id, node, code, why=why)
    out.print(f"{node} failed", highlight=False)


@app.command("skip")
@command
async def skip(trace_id: TraceId, node: Node, why: Why = "") -> None:
    """Skip a node: its edges are dead. To go on past it, complete it instead."""
    async with magicflow.Client() as client:
        await client.skip_node(trace_id, node, why)
    out.print(f"{node} skipped", highlight=False)
