"""Consumers that stop reading, and what they cost the others: workers, the projector, watchers."""

from __future__ import annotations

import asyncio
import contextlib
import sys
import time
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import grpc.aio

import magicflow
from magicflow.v1.trace_service_pb2 import WatchTraceRequest
from magicflow.v1.trace_service_pb2_grpc import TraceServiceStub
from tests.servers import ROOT, Server

PAYLOAD = 100 << 10  # bytes
WINDOW = 20  # traces under way at once
MIB = 1 << 20

_WORKER = """
import sys, magicflow
address, name, slots = sys.argv[1:]
worker = magicflow.Worker(address, token="", slots=int(slots), worker_id=name, drain_timeout=1)

@worker.function("shop/work")
def work(n: int, pad: str = "") -> dict[str, object]:
    return {"n": n}

worker.run()
"""


class WorkerProcess(Server):
    """A worker that can be stopped with all its threads. It returns `n` and drops the rest."""

    def __init__(self, directory: Path, address: str, name: str, slots: int) -> None:
        self.name = name
        super().__init__(directory)
        self._arguments = (address, name, str(slots))

    def command(self) -> Sequence[str]:
        return [sys.executable, "-c", _WORKER, *self._arguments]

    def environment(self) -> dict[str, str]:
        return {**super().environment(), "PYTHONPATH": str(ROOT)}

    def ready(self) -> bool:
        return True  # whoever needs it waits until its function is offered


def memory(pid: int) -> int:
    """Resident bytes of a process."""
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith("VmRSS:"):
            return int(line.split()[1]) * 1_024
    raise AssertionError(f"process {pid} has no memory")


class Peak:
    """The most memory that processes had while it was watched."""

    def __init__(self, **pids: int) -> None:
        self._pids = pids
        self.before = {name: memory(pid) for name, pid in pids.items()}
        self.most = dict(self.before)

    async def watch(self) -> None:
        while True:
            for name, pid in self._pids.items():
                self.most[name] = max(self.most[name], memory(pid))
            await asyncio.sleep(0.05)

    @property
    def growth(self) -> dict[str, int]:
        """Bytes."""
        return {name: most - self.before[name] for name, most in self.most.items()}


@contextlib.asynccontextmanager
async def watched(**pids: int) -> AsyncIterator[Peak]:
    peak = Peak(**pids)
    watching = asyncio.create_task(peak.watch())
    try:
        yield peak
    finally:
        watching.cancel()


@dataclass(slots=True)
class Load:
    """What came of a load. Times are seconds; `latest` is of the trace that took longest."""

    traces: int
    took: float
    median: float
    latest: float

    def __str__(self) -> str:
        return (
            f"{self.traces} traces in {self.took:.1f} s, median {self.median * 1_000:.0f} ms, "
            f"longest {self.latest:.1f} s"
        )


async def load(client: magicflow.Client, count: int, playbook: str = "shop/chain") -> Load:
    """Runs so many traces, a window of them at once, each with a payload of its own."""
    began = time.monotonic()
    numbers = iter(range(count))
    lasted: list[float] = []

    async def run() -> None:
        for n in numbers:
            start = time.monotonic()
            value = {"n": n, "pad": f"{n:08}" + "x" * PAYLOAD}
            assert await client.run(playbook, value, timeout=60) == n
            lasted.append(time.monotonic() - start)

    await asyncio.gather(*(run() for _ in range(WINDOW)))
    lasted.sort()
    return Load(count, time.monotonic() - began, lasted[count // 2], lasted[-1])


@contextlib.asynccontextmanager
async def deaf_watchers(address: str, trace_id: str, count: int) -> AsyncIterator[None]:
    """Clients that watch a trace, take its first state, and read no more. Each has a connection
    of its own."""
    async with contextlib.AsyncExitStack() as stack:
        for number in range(count):
            own = [("grpc.use_local_subchannel_pool", 1), ("magicflow.number", number)]
            channel = await stack.enter_async_context(
                grpc.aio.insecure_channel(address, options=own)
            )
            call = TraceServiceStub(channel).WatchTrace(WatchTraceRequest(trace_id=trace_id))
            await call.read()
            stack.callback(call.cancel)
        yield
