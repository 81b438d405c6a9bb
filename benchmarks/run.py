"""`make bench`: durable steps per second and idle step latency, beside the reference pipe.

Everything of one round runs on the same machine, one after the other, over the same nats-server;
what counts is the ratio. See benchmarks/README.md.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import AsyncIterator
from itertools import pairwise
from pathlib import Path

import magicflow
from benchmarks import reference
from services.embedded import Child, free_port, nats_child

ROOT = Path(__file__).resolve().parent.parent
PAYLOAD = {"x": "y" * 240}
BATCH = 500  # triggers in one call
SLOTS = 2_000


def chain(length: int) -> str:
    nodes = "".join(f"  n{i}: {{task: noop}}\n" for i in range(length))
    edges = "".join(f"  - {{from: n{i}, to: n{i + 1}}}\n" for i in range(length - 1))
    return f"playbook: chain{length}\napp: bench\nnodes:\n{nodes}edges:\n{edges}"


def fan(width: int) -> str:
    """A start that needs no worker, `width` tasks at once, a join."""
    nodes = "".join(f"  n{i}: {{task: noop}}\n" for i in range(width))
    out = "".join(f"  - {{from: s, to: n{i}}}\n" for i in range(width))
    back = "".join(f"  - {{from: n{i}, to: e}}\n" for i in range(width))
    return (
        f"playbook: fan{width}\napp: bench\noutput: null\nnodes:\n  s: {{nop: {{}}}}\n{nodes}"
        f"  e: {{nop: {{}}, input: null}}\nedges:\n{out}{back}"
    )


class Counter:
    """Tasks that the worker ran."""

    def __init__(self) -> None:
        self.count = 0
        self.goal = 0
        self.reached = asyncio.Event()
        self.times: dict[str, list[float]] | None = None

    def note(self, ctx: magicflow.Context) -> None:
        if self.times is not None:
            self.times[ctx.trace_id].append(time.perf_counter())
        self.count += 1
        if self.count == self.goal:
            self.loop.call_soon_threadsafe(self.reached.set)

    def expect(self, goal: int) -> None:
        self.loop = asyncio.get_running_loop()
        self.count, self.goal = 0, goal
        self.reached.clear()


@contextlib.asynccontextmanager
async def services(nats: str, data: Path, partitions: int) -> AsyncIterator[str]:
    """All services in one process of their own; the address."""
    address = f"127.0.0.1:{free_port()}"
    settings = {
        "MAGICFLOW_NATS": nats,
        "MAGICFLOW_DATA": str(data / "data"),
        "MAGICFLOW_AUTH": "local",
        "MAGICFLOW_LOG_LEVEL": "warning",
        "MAGICFLOW_PARTITIONS": str(partitions),
        "MAGICFLOW_LATENESS": "1",  # nothing else runs that the burst could disturb
    }
    child = subprocess.Popen(
        [sys.executable, "-m", "cli.main", "serve", "all", "--listen", address],
        env={**os.environ, **settings},
        cwd=ROOT,
    )
    try:
        yield address
    finally:
        child.terminate()
        child.wait(30)


async def until_ready(client: magicflow.Client) -> None:
    while True:
        with contextlib.suppress(magicflow.MagicflowError):
            if all(partition.instance for partition in (await client.cluster()).partitions):
                return
        await asyncio.sleep(0.05)


async def saturate(
    client: magicflow.Client, counter: Counter, name: str, n: int, per: int
) -> float:
    """Steps per second of n traces with `per` tasks each, all triggered at once in batches."""
    counter.expect(n * per)
    began = time.perf_counter()
    for start in range(0, n, BATCH):
        count = min(BATCH, n - start)
        await client.trigger_batch([(f"bench/{name}", PAYLOAD)] * count)
    await counter.reached.wait()
    return n * per / (time.perf_counter() - began)


async def idle(client: magicflow.Client, counter: Counter, rounds: int) -> list[float]:
    """Milliseconds from one task's begin to the next one's, one trace at a time."""
    counter.times = defaultdict(list)
    counter.expect(-1)
    for _ in range(rounds):
        await client.run("bench/chain10", PAYLOAD, timeout=60)
    gaps = [
        (later - earlier) * 1_000
        for times in counter.times.values()
        for earlier, later in pairwise(times)
    ]
    counter.times = None
    return gaps


async def magicflow_round(nats: str, data: Path, traces: int) -> dict[str, float]:
    async with services(nats, data, 4) as address, magicflow.Client(address) as client:
        await until_ready(client)
        await client.create_app("bench")
        counter = Counter()
        worker = magicflow.Worker(address, slots=SLOTS)

        @worker.function("bench/noop")
        async def noop(input: object, ctx: magicflow.Context) -> object:
            counter.note(ctx)
            return input

        serving = asyncio.create_task(worker.serve())
        while not await client.functions():
            await asyncio.sleep(0.05)
        for document in (chain(10), fan(100)):
            await client.publish(document, switch=True)
        await saturate(client, counter, "chain10", 50, 10)  # warm
        gaps = await idle(client, counter, 30)
        figures = {
            "chain": await saturate(client, counter, "chain10", traces, 10),
            "fan": await saturate(client, counter, "fan100", traces // 10, 100),
            "idle_p50": statistics.median(gaps),
            "idle_p99": statistics.quantiles(gaps, n=100)[98],
        }
        worker.stop()
        await serving
        return figures


async def reference_run(nats: str, traces: int, length: int, window: int, is_fan: bool) -> float:
    """Steps per second of the pipe."""
    port = free_port()
    arguments = [nats, port, traces, length, window, int(is_fan)]
    child = subprocess.Popen(
        [sys.executable, "-m", "benchmarks.reference", *map(str, arguments)], cwd=ROOT
    )
    try:
        while True:
            with contextlib.suppress(OSError):
                _, writer = await asyncio.open_connection("127.0.0.1", port)
                writer.close()
                break
            await asyncio.sleep(0.05)
        steps, seconds = await reference.drive(port)
        assert steps == traces * length, (steps, traces * length)
        return steps / seconds
    finally:
        child.kill()
        child.wait()


async def reference_round(nats: str, traces: int) -> dict[str, float]:
    sequential = await reference_run(nats, 30, 10, 1, False)
    return {
        "chain": await reference_run(nats, 10 * traces, 10, traces, False),
        "fan": await reference_run(nats, traces, 100, max(1, traces // 10), True),
        "idle_p50": 1_000 / sequential,
    }


async def main(rounds: int, traces: int) -> None:
    ours, pipe = [], []
    for number in range(rounds):
        with tempfile.TemporaryDirectory() as folder:
            data = Path(folder)
            child: Child
            child, nats, _ = await nats_child(data)
            await child.start()
            try:
                pipe.append(await reference_round(nats, traces))
            finally:
                await child.stop()
        with tempfile.TemporaryDirectory() as folder:
            data = Path(folder)
            child, nats, _ = await nats_child(data)
            await child.start()
            try:
                ours.append(await magicflow_round(nats, data, traces))
            finally:
                await child.stop()
        print(f"round {number + 1}: magicflow {_short(ours[-1])} | pipe {_short(pipe[-1])}")
    _table(ours, pipe)


def _short(figures: dict[str, float]) -> str:
    return ", ".join(f"{key} {value:.4g}" for key, value in figures.items())


def _table(ours: list[dict[str, float]], pipe: list[dict[str, float]]) -> None:
    rows = (
        ("chain of 10, durable steps/s", "chain", False),
        ("fan-out of 100, durable steps/s", "fan", False),
        ("idle step latency p50, ms", "idle_p50", True),
    )
    print(f"\n{'median (min-max)':34} {'magicflow':>26} {'reference pipe':>26} {'ratio':>8}")
    for title, key, lower in rows:
        a, b = [f[key] for f in ours], [f[key] for f in pipe]
        ratio = statistics.median(a) / statistics.median(b)
        print(f"{title:34} {_range(a):>26} {_range(b):>26} {ratio:>7.3f}{'↓' if lower else '↑'}")
    print(f"{'idle step latency p99, ms':34} {_range([f['idle_p99'] for f in ours]):>26}")


def _range(values: list[float]) -> str:
    low, high = min(values), max(values)
    return f"{statistics.median(values):,.4g} ({low:,.4g}-{high:,.4g})"


if __name__ == "__main__":
    import uvloop

    uvloop.install()
    parser = argparse.ArgumentParser()
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--traces", type=int, default=1_000)
    asked = parser.parse_args()
    asyncio.run(main(asked.rounds, asked.traces))
