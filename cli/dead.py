"""`magicflow dead …`: frames that nobody could process."""

from __future__ import annotations

import time
from typing import Annotated, Any

import typer
from google.protobuf.message import DecodeError
from rich.table import Table

import magicflow
from cli.output import MAX_INT64, JsonFlag, add_row, age, command, out, plain, say, show_json
from magicflow.v1.dispatch_service_pb2 import DeadLetter
from magicflow.v1.task_pb2 import TaskFrame

app = typer.Typer(no_args_is_help=True, help="Frames that nobody could process.")

LOST = "WORKER_LOST"
Number = Annotated[
    int,
    typer.Argument(min=1, max=MAX_INT64, metavar="ID", help="The letter's number, from the list."),
]


@app.command("list")
@command
async def list_letters(
    limit: Annotated[int, typer.Option(min=1, max=100_000, help="At most this many.")] = 100,
    as_json: JsonFlag = False,
) -> None:
    """Dead letters, newest first."""
    async with magicflow.Client() as client:
        found = await client.dead_letters(limit)
    if as_json:
        show_json(found)
        return
    if not found:
        out.print("no dead letters", highlight=False)
        return
    table = Table("id", "reason", "from", "message", "since")
    for letter in found:
        since = age(max(0.0, time.time() * 1_000 - letter.at.ToMilliseconds()))
        add_row(table, str(letter.id), letter.code, letter.subject, letter.message, since)
    out.print(table)


@app.command("show")
@command
async def show(number: Number) -> None:
    """One dead letter with what is in it, as JSON."""
    async with magicflow.Client() as client:
        letter = await client.dead_letter(number)
    show_json(_data(letter))


@app.command("replay")
@command
async def replay(
    number: Number,
    why: Annotated[str, typer.Option(help="Recorded in the trace that is retried.")] = "",
) -> None:
    """Try it again: the frame, or, of a task that ended its workers, the node of its trace."""
    async with magicflow.Client() as client:
        letter = await client.dead_letter(number)
        if letter.code != LOST:
            await client.replay_dead_letter(number)
            say(f"{number} is back at {letter.subject}")
            return
        for task in TaskFrame.FromString(letter.frame).tasks:
            trace_id = task.id.trace_id.hex()
            await client.retry(trace_id, [task.id.node], why or f"dead letter {number}")
            say(f"{trace_id} runs again from {task.id.node}")
        await client.drop_dead_letter(number)


@app.command("drop")
@command
async def drop(number: Number) -> None:
    """Forget it."""
    async with magicflow.Client() as client:
        await client.drop_dead_letter(number)
    out.print(f"{number} dropped", highlight=False)


def _data(letter: DeadLetter) -> dict[str, Any]:
    """The letter with its tasks opened, where it holds tasks that can be read."""
    data: dict[str, Any] = plain(letter)
    if letter.subject.startswith("flow.task."):
        try:
            tasks = TaskFrame.FromString(letter.frame).tasks
        except DecodeError:
            return data
        data.pop("frame", None)  # there is none of an empty frame
        data["tasks"] = [
            {**plain(task), "trace_id": task.id.trace_id.hex(), "node": task.id.node}
            for task in tasks
        ]
    return data
