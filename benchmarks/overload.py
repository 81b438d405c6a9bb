"""`python -m benchmarks.overload`: what a burst of starts, and a noisy app, do to traces that run.

Each service is a process of its own. The same traces are measured calm and under load, in one run;
what counts is the ratio of the two.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path

import magicflow
from benchmarks.run import BATCH, PAYLOAD, ROOT, chain, until_ready
from services.embedded import etcd_child, free_port, nats_child

SERVICES = ("registry", "trace", "dispatcher", "trigger")
ONE = "playbook: one\napp: {app}\nnodes: {{n: {{task: noop}}}}\n"


class Cluster:
    """Every service in a process of its own, over a nats-server and an etcd."""

    def __init__(self, data: Path, partitions: int, settings: dict[str, str] | None = None) -> None:
        self._data = data
        self._stack = contextlib.AsyncExitStack()
        self._settings = {
            "MAGICFLOW_DATA": str(data / "data"),
            "MAGICFLOW_AUTH": "local",
            "MAGICFLOW_LOG_LEVEL": "error",
            "MAGICFLOW_PARTITIONS": str(partitions),
            **(settings or {}),
        }
        self.addresses: dict[str, str] = {}
        self.nats = self.etcd = self.monitor = ""

    async def __aenter__(self) -> Cluster:
        found = await etcd_child(self._data)
        assert found is not None, "there is no etcd on the PATH: run `make servers`"
        nats, self.nats, self.monitor = await nats_child(self._data)
        self._stack.push_async_callback(nats.stop)
        await nats.start()
        etcd, self.etcd = found
        self._stack.push_async_callback(etcd.stop)
        await etcd.start()
        self._settings |= {
            "MAGICFLOW_NATS": self.nats,
            "MAGICFLOW_NATS_MONITOR": self.monitor,
            "MAGICFLOW_ETCD": self.etcd,
        }
        for service in SERVICES:
            await self.serve(service, service)
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._stack.aclose()

    async def serve(self, service: str, instance: str) -> subprocess.Popen[bytes]:
        """Starts an instance; returns when it listens."""
        address = f"127.0.0.1:{free_port()}"
        self.addresses.setdefault(service, address)
        child = subprocess.Popen(
            [sys.executable, "-m", "cli.main", "serve", service, "--listen", address],
            env={**os.environ, **self._settings, "MAGICFLOW_INSTANCE": instance},
            cwd=ROOT,
        )
        self._stack.callback(_end, child)
        await _until_open(address)
        return child


async def _until_open(address: str) -> None:
    host, _, port = address.rpartition(":")
    while True:
        with contextlib.suppress(OSError):
            _, writer = await asyncio.open_connection(host, int(port))
            writer.close()
            return
        await asyncio.sleep(0.05)


def _end(child: subprocess.Popen[bytes]) -> None:
    child.terminate()
    try:
        child.wait(20)
    except subprocess.TimeoutExpired:
        child.kill()


class Noisy:
    """The noisy app: callers and a worker in a process of their own, told what to do by lines.

    `burst N` starts so many traces and answers when the last one has run; `noise` starts as many as
    are taken until `calm`.
    """

    def __init__(self, addresses: dict[str, str]) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-m", "benchmarks.overload", "--noisy", json.dumps(addresses)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            cwd=ROOT,
        )

    async def tell(self, line: str) -> str:
        """Returns its answer."""
        assert self._process.stdin is not None and self._process.stdout is not None
        self._process.stdin.write(line + "\n")
        self._process.stdin.flush()
        return (await asyncio.to_thread(self._process.stdout.readline)).strip()

    def end(self) -> None:
        self._process.kill()
        self._process.wait()


async def be_noisy(addresses: dict[str, str]) -> None:
    done = 0
    worker = magicflow.Worker(addresses["dispatcher"], slots=20)

    @worker.function("noisy/noop")
    async def noop(input: object) -> object:
        nonlocal done
        done += 1
        return input

    serving = asyncio.create_task(worker.serve())
    async with magicflow.Client(addresses=addresses, timeout=300) as client:

        async def batch(count: int) -> None:
            await client.trigger_batch([("noisy/one", PAYLOAD)] * count)

        async def forever() -> None:
            while True:
                await batch(BATCH)

        noise: list[asyncio.Task[None]] = []
        while line := await asyncio.to_thread(sys.stdin.readline):
            match line.split():
                case ["burst", number]:
                    goal = done + int(number)
                    await asyncio.gather(*(batch(BATCH) for _ in range(int(number) // BATCH)))
                    while done < goal:
                        await asyncio.sleep(0.02)
                case ["noise"]:
                    noise = [asyncio.create_task(forever()) for _ in range(2)]
                case ["calm"]:
                    for task in noise:
                        task.cancel()
                    await asyncio.gather(*noise, return_exceptions=True)
            print(done, flush=True)
    serving.cancel()


class Steps:
    """When each step of the measured traces began."""

    def __init__(self) -> None:
        self.times: dict[str, list[float]] = {}

    def note(self, ctx: magicflow.Context) -> None:
        if ctx.trace_id in self.times:
            self.times[ctx.trace_id].append(time.perf_counter())


async def measured(
    client: magicflow.Client, steps: Steps, until: Callable[[], bool]
) -> list[float]:
    """Milliseconds between the begins of steps, of one trace after the other."""
    gaps: list[float] = []
    while True:
        handle = await client.trigger("quiet/chain10", PAYLOAD)
        steps.times[handle.trace_id] = []
        await handle.outcome(120)
        times = steps.times.pop(handle.trace_id)
        gaps += [(later - earlier) * 1_000 for earlier, later in pairwise(times)]
        if until():
            return gaps


async def _for(client: magicflow.Client, steps: Steps, seconds: float) -> list[float]:
    end = time.perf_counter() + seconds
    return await measured(client, steps, lambda: time.perf_counter() > end)


def _report(title: str, calm: list[float], loaded: list[float]) -> None:
    for name, pick in (("p50", 50), ("p99", 99)):
        a, b = (statistics.quantiles(gaps, n=100)[pick - 1] for gaps in (calm, loaded))
        print(f"{title:44} {name}  calm {a:8.2f} ms  loaded {b:8.2f} ms  ratio {b / a:5.2f}")


async def main(count: int, seconds: float) -> None:
    with tempfile.TemporaryDirectory() as folder:
        async with (
            Cluster(Path(folder), 8) as cluster,
            magicflow.Client(addresses=cluster.addresses, timeout=120) as client,
        ):
            addresses = cluster.addresses
            await until_ready(client)
            for app in ("quiet", "noisy"):
                await client.create_app(app)
            noisy = Noisy(addresses)
            try:
                await run(client, addresses["dispatcher"], noisy, count, seconds)
            finally:
                noisy.end()


async def run(
    client: magicflow.Client, dispatcher: str, noisy: Noisy, count: int, seconds: float
) -> None:
    steps = Steps()
    worker = magicflow.Worker(dispatcher, slots=20)

    @worker.function("quiet/noop")
    async def noop(input: object, ctx: magicflow.Context) -> object:
        steps.note(ctx)
        return input

    serving = asyncio.create_task(worker.serve())
    while len(await client.functions()) < 2:
        await asyncio.sleep(0.05)
    await client.publish(chain(10).replace("app: bench", "app: quiet"), switch=True)
    await client.publish(ONE.format(app="noisy"), switch=True)
    await _for(client, steps, 2.0)  # warm

    calm = await _for(client, steps, seconds)
    began = time.perf_counter()
    bursting = asyncio.create_task(noisy.tell(f"burst {count}"))
    loaded = await measured(client, steps, bursting.done)
    took = time.perf_counter() - began
    print(f"burst of {count} starts, worked off in {took:.1f} s ({count / took:,.0f}/s)")
    _report("steps of traces that run, under the burst", calm, loaded)

    calm = await _for(client, steps, seconds)
    before = int(await noisy.tell("noise"))
    loaded = await _for(client, steps, seconds)
    after = int(await noisy.tell("calm"))
    share = (after - before) / max(1, len(loaded) / 9)
    print(f"noisy app: {share:,.0f} traces for each one of the quiet app")
    _report("steps of a quiet app beside a noisy one", calm, loaded)
    worker.stop()
    await serving


if __name__ == "__main__":
    import uvloop

    uvloop.install()
    parser = argparse.ArgumentParser()
    parser.add_argument("--burst", type=int, default=50_000)
    parser.add_argument("--seconds", type=float, default=10.0)
    parser.add_argument("--noisy", default="", help=argparse.SUPPRESS)
    asked = parser.parse_args()
    if asked.noisy:
        asyncio.run(be_noisy(json.loads(asked.noisy)))
    else:
        asyncio.run(main(asked.burst, asked.seconds))
