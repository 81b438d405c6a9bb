"""What commands print: rich for people, JSON for programs; errors with place and mend; exit
codes that scripts can rely on (docs/errors.md lists them)."""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Callable, Coroutine
from enum import IntEnum
from functools import wraps
from typing import Annotated, Any, NoReturn, ParamSpec, TypeVar

import typer
from google.protobuf.json_format import MessageToDict
from google.protobuf.message import Message
from rich.console import Console
from rich.markup import escape
from rich.table import Table
from rich.text import Text

import magicflow
from engine.errors import MagicflowError as ServerError

P = ParamSpec("P")
T = TypeVar("T")

MAX_INT64 = (1 << 63) - 1


class Exit(IntEnum):
    OK = 0
    FAILED = 1  # the trace failed, the check found errors
    USAGE = 2  # the command line itself
    INVALID = 3
    NOT_FOUND = 4
    DENIED = 5
    UNAVAILABLE = 6
    DEADLINE = 7
    CONFLICT = 8
    INTERNAL = 70


_EXITS: list[tuple[type[magicflow.MagicflowError], Exit]] = [
    (magicflow.Invalid, Exit.INVALID),
    (magicflow.NotFound, Exit.NOT_FOUND),
    (magicflow.Denied, Exit.DENIED),
    (magicflow.Unauthenticated, Exit.DENIED),
    (magicflow.Unavailable, Exit.UNAVAILABLE),
    (magicflow.Exhausted, Exit.UNAVAILABLE),
    (magicflow.DeadlineExceeded, Exit.DEADLINE),
    (magicflow.Conflict, Exit.CONFLICT),
    (magicflow.WrongState, Exit.CONFLICT),
    (magicflow.AlreadyExists, Exit.CONFLICT),
    (magicflow.TraceFailed, Exit.FAILED),
    (magicflow.Unimplemented, Exit.INVALID),
]

JsonFlag = Annotated[bool, typer.Option("--json", help="Print JSON.")]

# Of what others have written, `:x:` stays what it is.
out = Console(emoji=False)
err = Console(stderr=True, emoji=False)


def show_json(value: Any) -> None:
    """One JSON document on standard output. Messages are written with their own field names."""
    sys.stdout.write(json.dumps(plain(value), ensure_ascii=False, indent=2) + "\n")


def plain(value: Any) -> Any:
    """JSON's types of messages, lists of them, and payloads as the values that they hold."""
    if isinstance(value, Message):
        return _open_payloads(MessageToDict(value, preserving_proto_field_name=True), value)
    if isinstance(value, list | tuple):
        return [plain(item) for item in value]
    if isinstance(value, dict):
        return {key: plain(item) for key, item in value.items()}
    return value


def _open_payloads(data: dict[str, Any], message: Message) -> dict[str, Any]:
    from magicflow.payloads import from_payload
    from magicflow.v1.payload_pb2 import Payload

    for field, value in message.ListFields():
        name = field.name
        if isinstance(value, Payload):
            opened = from_payload(value)
            data[name] = opened if not isinstance(opened, bytes) else data[name]
        elif isinstance(value, Message) and isinstance(data.get(name), dict):
            if value.DESCRIPTOR.file.package == "magicflow.v1":
                data[name] = _open_payloads(data[name], value)
        elif isinstance(data.get(name), list) and len(value) and isinstance(value[0], Message):
            data[name] = [
                _open_payloads(item, inner) for item, inner in zip(data[name], value, strict=True)
            ]
    return data


def add_row(table: Table, *cells: str | Text) -> None:
    """As `Table.add_row`, but brackets in a text, which others may have written, mean nothing."""
    table.add_row(*(escape(cell) if isinstance(cell, str) else cell for cell in cells))


def say(text: str) -> None:
    """A line of plain text, in which brackets mean nothing."""
    out.print(escape(text), highlight=False)


def split_pin(text: str) -> tuple[str, int]:
    """`app/name@snapshot` as (app/name, snapshot); 0 for none."""
    name, _, pin = text.partition("@")
    number = whole_number(pin) or 0
    if pin and not 1 <= number <= MAX_INT64:
        fail(f"{pin!r} is no snapshot number", Exit.USAGE)
    return name, number


def whole_number(text: str) -> int | None:
    """Of the digits 0 to 9, up to 20 of them; None for anything else."""
    return int(text) if re.fullmatch(r"[0-9]{1,20}", text) else None


def fail(
    message: str, exit_code: Exit, *, mend: str = "", details: list[str] | None = None
) -> NoReturn:
    """Prints an error for a person and ends the command."""
    err.print(f"[bold red]error:[/] {escape(message)}", highlight=False, soft_wrap=True)
    for line in details or ():
        err.print(f"  [red]-[/] {escape(line)}", highlight=False, soft_wrap=True)
    if mend:
        err.print(f"[bold]mend:[/] {escape(mend)}", highlight=False, soft_wrap=True)
    raise typer.Exit(int(exit_code))


def report(error: magicflow.MagicflowError | ServerError) -> None:
    """Prints an error of ours and ends the command with its exit code."""
    if isinstance(error, ServerError):
        fail(error.message, Exit.UNAVAILABLE, mend=error.mend)
        return
    exit_code = next((code for kind, code in _EXITS if isinstance(error, kind)), Exit.INTERNAL)
    details = [f"{v.field or 'document'}: {v.description}" for v in error.violations]
    reason = f" ({error.reason})" if error.reason else ""
    fail(f"{error.message}{reason}", exit_code, mend=error.mend, details=details)


def command(work: Callable[P, Coroutine[Any, Any, T]]) -> Callable[P, T]:
    """Runs an asynchronous command; nobody sees a stack trace for their own mistake."""

    @wraps(work)
    def run(*arguments: P.args, **options: P.kwargs) -> T:
        import asyncio

        try:
            return asyncio.run(work(*arguments, **options))
        except (magicflow.MagicflowError, ServerError) as error:
            report(error)
        except KeyboardInterrupt:
            raise typer.Exit(130) from None
        raise AssertionError("unreachable")

    return run


def age(milliseconds: float) -> str:
    """A duration for people."""
    if milliseconds < 1_000:
        return f"{milliseconds:.0f} ms"
    seconds = milliseconds / 1_000
    if seconds < 120:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(int(seconds), 60)
    if minutes < 120:
        return f"{minutes} min {rest} s"
    return f"{minutes // 60} h {minutes % 60} min"
