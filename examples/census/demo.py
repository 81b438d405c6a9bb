"""The demo: starts magicflow and two workers, runs one trace per module of the standard library,
and checks the totals against a direct computation."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import analysis
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table

import magicflow
from cli.tree import trace_tree

HERE = Path(__file__).parent
SHOWN = ("files", "lines", "imports", "broken", "functions", "classes")
SUMS = ("files", "lines", "bytes", "imports", "broken", "functions", "classes")
console = Console()


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@contextlib.contextmanager
def process(name: str, *arguments: str, log: Path, **environment: str) -> Any:
    """A program of ours, stopped by its process id at the end."""
    with (log / f"{name}.log").open("wb") as out:
        child = subprocess.Popen(
            [sys.executable, *arguments],
            stdout=out,
            stderr=out,
            env={**os.environ, "PYTHONUNBUFFERED": "1", **environment},
        )
    try:
        yield child
    finally:
        child.send_signal(signal.SIGTERM)
        try:
            child.wait(15)
        except subprocess.TimeoutExpired:
            child.kill()


async def ready(client: magicflow.Client, child: subprocess.Popen[bytes], log: Path) -> None:
    """Returns when the server owns all its partitions."""
    deadline = time.monotonic() + 30
    while time.monotonic() < deadline and child.poll() is None:
        with contextlib.suppress(magicflow.MagicflowError):
            cluster = await client.cluster()
            if all(partition.instance for partition in cluster.partitions):
                return
        await asyncio.sleep(0.05)
    raise SystemExit(f"magicflow did not come up:\n{(log / 'magicflow.log').read_text()}")


async def offered(client: magicflow.Client, count: int) -> None:
    """Returns when so many functions are known."""
    deadline = time.monotonic() + 30
    while len(await client.functions()) < count:
        if time.monotonic() > deadline:
            raise SystemExit("the workers did not come up")
        await asyncio.sleep(0.05)


async def run_all(
    client: magicflow.Client, modules: list[tuple[str, str]]
) -> tuple[dict[str, dict[str, Any]], dict[str, str], float]:
    """Reports and trace ids by module, and the seconds it took."""
    reports: dict[str, dict[str, Any]] = {}
    traces: dict[str, str] = {}
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn())
    with Progress(*columns, TimeElapsedColumn(), console=console) as progress:
        bar = progress.add_task("traces", total=len(modules))

        async def one(name: str, path: str) -> None:
            handle = await client.trigger("census/module", {"module": name, "path": path})
            traces[name] = handle.trace_id
            reports[name] = await handle.result(timeout=120)
            progress.advance(bar)

        began = time.monotonic()
        await asyncio.gather(*(one(name, path) for name, path in modules))
        return reports, traces, time.monotonic() - began


def totals(reports: dict[str, dict[str, Any]]) -> dict[str, int]:
    return {key: sum(report[key] or 0 for report in reports.values()) for key in SUMS}


def show(reports: dict[str, dict[str, Any]]) -> None:
    table = Table("module", *SHOWN, title="The ten largest modules of the standard library")
    largest = sorted(reports.items(), key=lambda item: -item[1]["lines"])[:10]
    for name, report in largest:
        cells = ["-" if report[key] is None else f"{report[key]:,}" for key in SHOWN]
        table.add_row(name, *cells)
    sums = totals(reports)
    table.add_section()
    table.add_row(f"all {len(reports)}", *(f"{sums[key]:,}" for key in SHOWN), style="bold")
    console.print(table)


async def main() -> int:
    address = f"127.0.0.1:{free_port()}"
    os.environ["MAGICFLOW_ADDRESS"] = address
    with tempfile.TemporaryDirectory() as folder, contextlib.ExitStack() as stack:
        data = Path(folder)
        console.print(f"starting magicflow at {address} …", highlight=False)
        server = stack.enter_context(
            process(
                "magicflow", "-m", "cli.main", "dev", "--listen", address,
                "--data", str(data / "data"), log=data,
            )
        )  # fmt: skip
        async with magicflow.Client() as client:
            await ready(client, server, data)
            tokens = {name: await client.create_app(name) for name in ("census", "files", "code")}
            for name in ("files", "code"):
                await client.grant(f"{name}/*", "census")
                script = str(HERE / f"{name}_worker.py")
                stack.enter_context(
                    process(f"{name}-worker", script, log=data, MAGICFLOW_TOKEN=tokens[name])
                )
            await offered(client, 6)
            console.print("two workers are connected: files (2 functions), code (4 functions)")
            published = await client.publish((HERE / "playbook.yaml").read_text(), switch=True)
            console.print(f"playbook census/module is live as snapshot {published.snapshot.id}")
            modules = analysis.modules()
            reports, traces, seconds = await run_all(client, modules)
            show(reports)
            await show_one(client, reports, traces, published.snapshot.playbook)
        console.print(f"{len(reports)} traces took [bold]{seconds:.1f} s[/]", highlight=False)
    return check(reports, modules)


async def show_one(
    client: magicflow.Client,
    reports: dict[str, dict[str, Any]],
    traces: dict[str, str],
    playbook: Any,
) -> None:
    """The most telling trace: one with files that do not parse, else the largest."""
    chosen = max(reports, key=lambda name: (reports[name]["broken"], reports[name]["lines"]))
    console.print(f"\nOne of the traces ({chosen}):")
    console.print(trace_tree(await client.get(traces[chosen]), playbook))
    console.print()


def check(reports: dict[str, dict[str, Any]], modules: list[tuple[str, str]]) -> int:
    console.print("checking against a direct computation, without magicflow …")
    direct = {name: {"module": name, **analysis.census(path)} for name, path in modules}
    wrong = [name for name in direct if direct[name] != reports.get(name)]
    if wrong or totals(direct) != totals(reports):
        console.print(f"[bold red]✗ different:[/] {', '.join(wrong[:5])}")
        return 1
    console.print(f"[bold green]✓[/] all {len(direct)} reports and all totals are equal")
    console.print(
        "\nWhat next:\n"
        "  .venv/bin/magicflow dev              a server of your own, at 127.0.0.1:7200\n"
        "  .venv/bin/magicflow app create shop  an app and its token\n"
        "  docs/quickstart.md                   a worker and a playbook in five minutes",
        highlight=False,
    )
    return 0


if __name__ == "__main__":
    sys.exit(asyncio.run(main()))
