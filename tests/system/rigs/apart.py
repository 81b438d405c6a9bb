"""A dispatcher that is cut off from its servers for longer than its lease, while traces start.

Two dispatchers share the partitions. The wires of one fail in one of `WAYS` and heal again; then
everything that was acknowledged must end, and the log must tell of each node's end once.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator, Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import magicflow
from engine.bus.jetstream import connect
from engine.core.events import NodeFailed, NodeSkipped, NodeSucceeded
from engine.core.journal import decode_frame, follows
from tests.system.rigs.proxy import Proxy
from tests.system.rigs.wired import Journal, WiredStack, prepare, results, until, working

LEASE = 2.0  # seconds, of the stack
APART = 2 * LEASE + 1.0
TRACES = 60  # at least
PATIENCE = 60.0  # seconds from the healing to the end of every trace


@dataclass(frozen=True, slots=True)
class Field:
    """Where it happens: the dispatchers that must share the partitions, and those that have
    workers."""

    stack: WiredStack
    owners: frozenset[str]
    gateways: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Wires:
    """A field in which `wired` reaches its servers over wires, and `dispatcher` does not."""

    field: Field
    nats: Proxy
    etcd: Proxy

    def heal(self) -> None:
        self.nats.heal()
        self.etcd.heal()


@contextlib.contextmanager
def wired(directory: Path) -> Iterator[Wires]:
    with (
        WiredStack(directory) as stack,
        Proxy(stack.nats.port) as nats,
        Proxy(stack.etcd.port) as etcd,
    ):
        mine = {"nats": f"nats://{nats.address}", "etcd": etcd.address}
        stack.serve_together(
            lambda: stack.serve_with("dispatcher", "wired", **mine),
            lambda: stack.serve_with("dispatcher"),
        )
        names = ("wired", "dispatcher")
        yield Wires(Field(stack, frozenset(names), names), nats, etcd)


def _both(wires: Wires) -> None:
    wires.nats.part()
    wires.etcd.part()


WAYS: dict[str, Callable[[Wires], None]] = {
    "nats-there": lambda wires: wires.nats.there.hold(),
    "nats-back": lambda wires: wires.nats.back.hold(),
    "nats-both": lambda wires: wires.nats.part(),
    "nats-there-lossy": lambda wires: wires.nats.there.swallow(),
    "nats-back-lossy": lambda wires: wires.nats.back.swallow(),
    "nats-slow": lambda wires: setattr(wires.nats.back, "delay", 0.5),
    "etcd-there": lambda wires: wires.etcd.there.hold(),
    "etcd-back": lambda wires: wires.etcd.back.hold(),
    "etcd-both": lambda wires: wires.etcd.part(),
    "etcd-back-lossy": lambda wires: wires.etcd.back.swallow(),
    "both": _both,
}


@dataclass(slots=True)
class CutOff:
    """What came of one separation."""

    way: str
    accepted: int = 0
    again: int = 0  # second runs of a task
    passed_over: int = 0  # frames of a deposed owner that landed in the log
    took: float = 0.0  # seconds from the healing to the last end

    def __str__(self) -> str:
        return (
            f"{self.way}: {self.accepted} traces, all ended {self.took:.1f} s after the healing, "
            f"{self.again} tasks ran again, {self.passed_over} frames passed over"
        )


async def cut_off(wires: Wires, way: str, lasts: float = APART) -> CutOff:
    """One of the ways, on wires. Errors: as `separate`."""
    return await separate(wires.field, way, lambda: WAYS[way](wires), wires.heal, lasts)


async def separate(
    field: Field,
    way: str,
    part: Callable[[], None],
    heal: Callable[[], None],
    lasts: float = APART,
) -> CutOff:
    """Errors: `AssertionError` for a promise that is broken, `DeadlineExceeded` for a trace that
    does not end."""
    found = CutOff(way)
    async with load(field) as (client, journal):
        done = asyncio.Event()
        starting = asyncio.create_task(keep_starting(client, done))
        await until(lambda: journal.begun >= 10, "work has begun")
        part()
        await asyncio.sleep(lasts)  # the time without a wire is what is tested
        heal()
        healed = time.monotonic()
        done.set()
        accepted = await starting
        ended = await results([handle for _, handle in accepted], PATIENCE)
        assert ended == [n for n, _ in accepted]
        found.took = time.monotonic() - healed
        found.accepted = len(accepted)
        found.again = sum(count - 1 for count in journal.runs.values())
        await until_spread(client, field.owners)
        assert field.stack.all_run()
    traces = {handle.trace_id for _, handle in accepted}
    found.passed_over = await check_log(field.stack.nats.url, traces)
    return found


@contextlib.asynccontextmanager
async def load(field: Field) -> AsyncIterator[tuple[magicflow.Client, Journal]]:
    """A worker at each gateway, and a client."""
    journal = Journal()
    async with contextlib.AsyncExitStack() as stack:
        client = await stack.enter_async_context(field.stack.client())
        for name in field.gateways:
            address = field.stack.programs[name].address
            await stack.enter_async_context(working(address, journal, name=f"at-{name}"))
        await prepare(client)
        await until_spread(client, field.owners)
        yield client, journal


async def until_spread(client: magicflow.Client, owners: frozenset[str]) -> None:
    """All of them own partitions, so that there is something to lose."""
    async with asyncio.timeout(40):
        while {p.instance for p in (await client.cluster()).partitions} != owners:
            await asyncio.sleep(0.05)


async def keep_starting(
    client: magicflow.Client, enough: asyncio.Event
) -> list[tuple[int, magicflow.TraceHandle]]:
    """Starts traces one after the other; returns those that were acknowledged."""
    accepted: list[tuple[int, magicflow.TraceHandle]] = []
    n = 0
    while not enough.is_set() or len(accepted) < TRACES:
        n += 1
        with contextlib.suppress(magicflow.MagicflowError):
            accepted.append((n, await client.trigger("shop/chain", {"n": n})))
        await asyncio.sleep(0.02)
    return accepted


async def check_log(nats_url: str, accepted: set[str], partitions: int = 4) -> int:
    """Promises A, B and D: of the frames that count, every accepted trace has its last node
    settled, each node once, and no epoch counts behind a higher one. Returns how many frames do
    not count."""
    bus = await connect([nats_url], partitions=partitions)
    settled: set[tuple[str, int, int]] = set()
    passed_over = 0
    try:
        for partition in range(partitions):
            log = bus.partition_log(partition)
            epoch, number = 0, -2
            async for sequence, data in log.read(0, await log.last()):
                frame = decode_frame(data)
                if not follows(epoch, number, frame):
                    passed_over += 1
                    continue
                assert frame.epoch >= epoch, (partition, sequence)
                epoch, number = frame.epoch, frame.number
                for entry in frame.entries:
                    for event in entry.events:
                        if isinstance(event, NodeSucceeded | NodeFailed | NodeSkipped):
                            key = (entry.trace_id.hex(), event.scope, event.node)
                            assert key not in settled, (key, sequence)
                            settled.add(key)
    finally:
        await bus.close()
    missing = {trace for trace in accepted if (trace, 0, 1) not in settled}
    assert not missing, f"acknowledged and not in the log: {missing}"
    return passed_over
