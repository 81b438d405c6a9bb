"""`magicflow dev` and `magicflow serve`."""

from __future__ import annotations

import asyncio
import contextlib
import signal
from collections.abc import Coroutine
from pathlib import Path
from typing import Annotated, Any

import typer
from pydantic import ValidationError

from cli.output import Exit, command, err, fail, out
from engine.config import Settings


def settings_of(**options: Any) -> Settings:
    """Settings from environment, file and options. Ends the command for one that is wrong."""
    try:
        return Settings(**{key: value for key, value in options.items() if value is not None})
    except ValidationError as error:
        details = [
            f"{'.'.join(map(str, item['loc']))}: {item['msg']} (seen: {item['input']!r})"
            for item in error.errors()
        ]
        fail("the settings are wrong", Exit.INVALID, details=details)
        raise AssertionError from error


def stop_signal() -> asyncio.Event:
    """Set at SIGTERM or Ctrl-C, from this call on: also what stops a start half-way is stopped in
    order, and leaves no server behind."""
    stopped = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stopped.set)
    return stopped


async def started(start: Coroutine[Any, Any, Any], stopped: asyncio.Event) -> bool:
    """Whether the start came to its end before the stop. Errors: those of the start."""
    starting = asyncio.create_task(start)
    waiting = asyncio.create_task(stopped.wait())
    try:
        await asyncio.wait({starting, waiting}, return_when=asyncio.FIRST_COMPLETED)
        if starting.done():
            starting.result()
            return True
        return False
    finally:
        for task in (starting, waiting):
            task.cancel()
        await asyncio.gather(starting, waiting, return_exceptions=True)


@command
async def serve(
    names: Annotated[
        list[str], typer.Argument(help="Services: trigger, dispatcher, registry, trace, or all.")
    ],
    listen: Annotated[str | None, typer.Option(help="host:port to listen on.")] = None,
) -> None:
    """Run services over NATS, etcd and a database named by MAGICFLOW_… variables."""
    from engine.telemetry import configure_logs
    from services.host import SERVICES, Host

    settings = settings_of(listen=listen)
    configure_logs(settings.log_level, settings.log_json)
    wanted = list(SERVICES) if "all" in names else names
    host = Host(settings, wanted)
    stopped = stop_signal()
    try:
        if await started(host.start(), stopped):
            await stopped.wait()
    finally:
        await host.stop()


@command
async def dev(
    listen: Annotated[str, typer.Option(help="host:port to listen on.")] = "127.0.0.1:7200",
    data: Annotated[Path, typer.Option(help="Data directory.")] = Path(".magicflow"),
    verbose: Annotated[bool, typer.Option("--verbose", "-v", help="Show the services' logs.")] = (
        False
    ),
) -> None:
    """Run everything in one process, with a nats-server of its own. Ctrl-C stops it; the next
    start goes on where it was."""
    from engine.telemetry import configure_logs

    configure_logs("info" if verbose else "warning", as_json=False)
    stopped = stop_signal()
    async with contextlib.AsyncExitStack() as stack:
        if not await started(start_dev(stack, listen, data), stopped):
            return
        out.print(f"[bold green]magicflow[/] is up at [bold]{listen}[/]", highlight=False)
        out.print(f"data in {data}, logs of its servers in {data / 'log'}", highlight=False)
        out.print("Next: magicflow app create shop    (Ctrl-C stops)", highlight=False)
        await stopped.wait()
        err.print("stopping: running tasks may finish …")
    err.print("stopped")


async def start_dev(stack: contextlib.AsyncExitStack, listen: str, data: Path) -> None:
    """Starts everything; the stack stops it, also what had only begun to start.

    Errors: `Unavailable` when a port is taken or a server cannot be started.
    """
    from services.embedded import etcd_child, nats_child
    from services.host import SERVICES, Host

    _refuse_taken(listen)
    data.mkdir(parents=True, exist_ok=True)
    nats, nats_address, monitor = await nats_child(data)
    stack.push_async_callback(nats.stop)
    await nats.start()
    etcd_endpoints: list[str] = []
    found = await etcd_child(data)
    if found is not None:
        etcd, endpoint = found
        stack.push_async_callback(etcd.stop)
        await etcd.start()
        etcd_endpoints = [endpoint]
    settings = settings_of(
        listen=listen,
        data=data,
        nats=[nats_address],
        nats_monitor=[monitor],
        etcd=etcd_endpoints,
        auth="local",
    )
    host = Host(settings, SERVICES)
    await host.start()
    stack.push_async_callback(host.stop)


def _refuse_taken(listen: str) -> None:
    """A taken port is the commonest mistake: said before anything is started."""
    import socket

    from engine.errors import Unavailable

    name, _, port = listen.rpartition(":")
    try:
        with socket.create_connection((name.strip("[]") or "127.0.0.1", int(port)), timeout=0.5):
            pass
    except OSError:
        return
    except ValueError:
        fail(f"{listen!r} is no host:port", Exit.USAGE)
    raise Unavailable(
        f"{listen} is taken by another process",
        mend="stop it (perhaps another `magicflow dev`), or choose another with --listen",
    )
