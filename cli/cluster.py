"""`magicflow cluster`: who runs, who owns what, who serves which function, what is wrong."""

from __future__ import annotations

import time
from typing import Any

from rich.table import Table
from rich.text import Text

import magicflow
from cli.output import JsonFlag, add_row, age, command, out, show_json


@command
async def cluster(as_json: JsonFlag = False) -> None:
    """The cluster at a glance: instances, partitions, functions, alarms."""
    async with magicflow.Client() as client:
        found = await client.cluster()
    if as_json:
        show_json(found)
        return
    _show_instances(found)
    _show_functions(found)
    _show_alarms(found)


def _show_instances(found: Any) -> None:
    owned: dict[str, list[str]] = {}
    for partition in found.partitions:
        owned.setdefault(partition.instance, []).append(str(partition.partition))
    table = Table("service", "instance", "address", "version", "up", "partitions")
    for instance in found.instances:
        numbers = owned.get(instance.name, []) if instance.service == "dispatcher" else []
        name = f"{instance.name} (leader)" if instance.name == found.leader else instance.name
        up = age(max(0.0, time.time() * 1_000 - instance.started_at.ToMilliseconds()))
        add_row(
            table,
            instance.service,
            name if instance.service == "dispatcher" else instance.name,
            instance.address,
            instance.version,
            up,
            " ".join(numbers),
        )
    out.print(table)


def _show_functions(found: Any) -> None:
    if not found.functions:
        return
    table = Table("function", "workers", "slots", "frames not done")
    for function in found.functions:
        figures = (function.workers, function.slots, function.waiting)
        add_row(table, function.name, *map(str, figures))
    out.print(table)


def _show_alarms(found: Any) -> None:
    if not found.leader:
        out.print("[yellow]no leader reports at this moment[/]")
    elif not found.alarms:
        out.print("[green]no alarms[/]")
    else:
        table = Table("alarm", "about", "what", "since")
        for alarm in found.alarms:
            since = age(max(0.0, time.time() * 1_000 - alarm.since.ToMilliseconds()))
            add_row(table, Text(alarm.code, "red"), alarm.subject, alarm.message, since)
        out.print(table)
