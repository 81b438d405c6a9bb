"""What is wrong in a cluster, from what its parts say. Pure: facts in, alarms out."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

from engine.bus.load import Load
from engine.snapshots.report import Alarm, Function

SERVICES = ("trigger", "dispatcher", "registry", "trace")
LAG = 10_000  # frames that SQL may be behind
BACKLOG = 10_000  # triggers of a partition that may wait


@dataclass(frozen=True, slots=True)
class Facts:
    """`services` are those with a live instance, `unowned` partitions, `trouble` what the bus
    says of itself: (code, subject, message)."""

    services: frozenset[str]
    unowned: Sequence[int]
    functions: Sequence[Function]
    loads: Mapping[int, Load]
    dead: str = ""  # the newest dead letter in a word; empty for none
    trouble: Sequence[tuple[str, str, str]] = field(default=())


def alarms(facts: Facts, before: Iterable[Alarm], now: int) -> tuple[Alarm, ...]:
    """The oldest first. An alarm that was there before keeps its time; milliseconds."""
    known = {(alarm.code, alarm.subject): alarm.since for alarm in before}
    found = [
        Alarm(code, subject, message, known.get((code, subject), now))
        for code, subject, message in _found(facts)
    ]
    return tuple(sorted(found, key=lambda alarm: (alarm.since, alarm.code, alarm.subject)))


def _found(facts: Facts) -> Iterator[tuple[str, str, str]]:
    for service in SERVICES:
        if service not in facts.services:
            message = f"no {service} is running: start one, `magicflow serve {service}`"
            yield "SERVICE_MISSING", service, message
    for partition in facts.unowned:
        message = "no dispatcher owns the partition: its traces stand still; see their logs"
        yield "PARTITION_UNOWNED", str(partition), message
    for function in facts.functions:
        if function.waiting and not function.workers:
            message = f"{function.waiting} frames of tasks wait and no live worker takes them"
            yield "NO_WORKER", function.name, message
    for partition, load in sorted(facts.loads.items()):
        if load.unprojected > LAG:
            message = f"SQL is {load.unprojected} frames behind the log: look at the trace service"
            yield "PROJECTION_LAG", str(partition), message
        waiting = sum(load.waiting.values())
        if waiting > BACKLOG:
            message = f"{waiting} triggers wait for their start: add workers or dispatchers"
            yield "START_BACKLOG", str(partition), message
    if facts.dead:
        yield "DEAD_LETTERS", "", f"the newest is {facts.dead}; see `magicflow dead list`"
    yield from facts.trouble
