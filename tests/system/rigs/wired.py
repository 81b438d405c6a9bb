"""A stack whose services can be reached, and reach their servers, over wires of a test's own."""

from __future__ import annotations

import asyncio
import contextlib
import threading
import time
from collections import Counter
from collections.abc import AsyncIterator, Callable, Iterable
from pathlib import Path

import magicflow
from tests.servers import free_port
from tests.system.stack import PATIENCE, SERVICES, Program, Stack, until_offered, until_owned

CHAIN = """
playbook: chain
app: shop
nodes:
  first:  {task: work, input: $$$}
  second: {task: work}
edges: [{from: first, to: second}]
output: $.second.n
"""
FUNCTION = "shop/work"


class WiredStack(Stack):
    """A `Stack` in which each service can have settings of its own. `extra` is for the environment
    of all that are started from now on."""

    def __init__(self, directory: Path) -> None:
        super().__init__(directory)
        self.extra: dict[str, str] = {}

    def settings(self, name: str, **mine: str) -> dict[str, str]:
        """Of an instance; `mine` go before those of the stack: nats, etcd, auth, …"""
        usual = {
            "nats": self.nats.url,
            "nats_monitor": self.nats.monitor,
            "etcd": self.etcd.endpoint,
            "database": self.postgres.url,
            "data": str(self.folder("data")),
            "partitions": "4",
            "lease": "2",
            "auth": "local",
            "instance": name,
            "drain": "5",
        }
        return {f"MAGICFLOW_{key.upper()}": value for key, value in {**usual, **mine}.items()}

    def folder(self, name: str) -> Path:
        return self._directory / name

    def serve_with(self, service: str, instance: str = "", **settings: str) -> Program:
        """As `serve`, with settings of its own."""
        name = instance or service
        mine = {**self.settings(name, **settings), **self.extra}
        program = Program(self.folder(name), ["serve", service], free_port(), mine)
        self.programs[name] = program
        program.start()
        return program

    def serve_together(self, *others: Callable[[], Program]) -> None:
        """The usual services; the dispatcher only where `others` do not bring theirs."""
        for name in SERVICES:
            if not (others and name == "dispatcher"):
                self.serve_with(name)
        for other in others:
            other()

    def all_run(self) -> bool:
        return all(program.running for program in self.programs.values())


class Journal:
    """What workers did: runs by (trace, node), and who did the last one."""

    def __init__(self) -> None:
        self.runs: Counter[tuple[str, str]] = Counter()
        self.by: dict[tuple[str, str], str] = {}
        self.ended: dict[tuple[str, str], float] = {}
        self.gate = threading.Event()  # functions return only while it is set
        self.gate.set()
        self.begun = 0

    def work(self, ctx: magicflow.Context, worker: str) -> None:
        """In a thread of the worker's."""
        key = (ctx.trace_id, ctx.node)
        self.begun += 1
        self.runs[key] += 1
        self.by[key] = worker
        self.gate.wait()
        self.ended[key] = time.monotonic()


@contextlib.asynccontextmanager
async def working(
    address: str, journal: Journal, *, name: str = "", slots: int = 20, function: str = FUNCTION
) -> AsyncIterator[magicflow.Worker]:
    """A worker in this process whose function returns what it was given."""
    worker = magicflow.Worker(address, token="", slots=slots, worker_id=name, drain_timeout=2)

    @worker.function(function)
    def work(n: int, ctx: magicflow.Context, pad: str = "") -> dict[str, object]:
        journal.work(ctx, worker.worker_id)
        return {"n": n, "pad": pad}

    serving = asyncio.create_task(worker.serve())
    try:
        yield worker
    finally:
        journal.gate.set()
        worker.stop()
        await asyncio.wait_for(serving, 30)


async def prepare(client: magicflow.Client, *functions: str) -> None:
    """An app, its playbook live, and somebody to work for it."""
    await until_owned(client)
    with contextlib.suppress(magicflow.AlreadyExists):
        await client.create_app("shop")
    await until_offered(client, *(functions or (FUNCTION,)))
    await client.publish(CHAIN, switch=True)


async def results(handles: Iterable[magicflow.TraceHandle], patience: float) -> list[object]:
    """The results of all, in order. Errors: the first that has none in time."""
    return list(await asyncio.gather(*(handle.result(patience) for handle in handles)))


async def until(
    condition: Callable[[], bool], what: str | Callable[[], str], patience: float = PATIENCE
) -> None:
    """Returns when the condition holds. Errors: `AssertionError` that says what did not happen."""
    deadline = time.monotonic() + patience
    while not condition():
        told = what if isinstance(what, str) else what()
        assert time.monotonic() < deadline, f"{told}: not within {patience:g} s"
        await asyncio.sleep(0.02)
