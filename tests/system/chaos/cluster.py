"""What is attacked: a whole stack with several dispatchers, workers of its own, and a tape."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import time
from collections.abc import Awaitable, Callable, Mapping
from pathlib import Path
from typing import Any

import magicflow
from engine.core.graph import Graph
from engine.core.journal import snapshots_in
from engine.snapshots.etcd.adapter import EtcdSnapshots
from engine.snapshots.library import Library
from tests.servers import Server
from tests.system.chaos.functions import APP, FUNCTIONS
from tests.system.chaos.leases import Leases
from tests.system.chaos.playbooks import CALLED, KINDS
from tests.system.chaos.rows import Rows, read_rows
from tests.system.chaos.tape import Tape
from tests.system.chaos.workers import Fleet
from tests.system.stack import Program, Stack, until_offered, until_owned

PARTITIONS = 4
LEASE = 2.0  # seconds, as `Stack` sets it
# The names are such that each of the two dispatchers is given half of the partitions.
SERVICES = ("registry", "trace", "dispatcher-1", "dispatcher-2", "trigger")
STOP_WITHIN = 30.0  # seconds in which a service that is asked to end must have ended
SETTLE_WITHIN = 60.0  # seconds in which everything has come back after a fault


class Cluster:
    """Started and stopped as a whole; its parts are there for faults to be aimed at."""

    def __init__(self, directory: Path, workers: int = 3) -> None:
        self.directory = directory
        self.stack = Stack(directory)
        self.client: magicflow.Client
        self.tape: Tape
        self.leases: Leases
        self.fleet: Fleet
        self._workers = workers
        self._exit = contextlib.AsyncExitStack()
        self._graphs: dict[int, Graph] = {}

    async def start(self, variants: Mapping[int, str] | None = None) -> Cluster:
        """Returns when everything is owned, offered and published. `variants` are those of the
        workers by place."""
        async with contextlib.AsyncExitStack() as starting:
            await asyncio.to_thread(self.stack.__enter__)
            starting.push_async_callback(asyncio.to_thread, self.stack.__exit__)
            self.tape = Tape(self.stack.nats.url, PARTITIONS)
            await self.tape.open()
            starting.push_async_callback(self.tape.close)
            self.leases = Leases(self.stack.etcd.endpoint)
            await self.leases.open()
            starting.push_async_callback(self.leases.close)
            for name in SERVICES:
                service = name.partition("-")[0]
                await asyncio.to_thread(self.stack.serve, service, name)
            self.client = self._client()
            starting.push_async_callback(self.client.close)
            addresses = [program.address for program in self.dispatchers.values()]
            self.fleet = Fleet(self.directory / "workers", addresses)
            starting.push_async_callback(asyncio.to_thread, self.fleet.stop)
            for place in range(self._workers):
                self.fleet.variant = (variants or {}).get(place, "")
                self.fleet.start(place)
            await self._prepare()
            self.fleet.variant = ""
            self._exit = starting.pop_all()
        return self

    async def stop(self) -> None:
        await self._exit.aclose()

    async def _prepare(self) -> None:
        await until_owned(self.client)
        await self.client.create_app(APP)
        await until_offered(self.client, *FUNCTIONS)
        await self.client.publish(CALLED, switch=True)
        for name in _callees_first():
            await self.client.publish(KINDS[name].document, switch=True)

    def _client(self) -> magicflow.Client:
        programs = self.stack.programs
        addresses = {name: programs[name].address for name in ("registry", "trace", "trigger")}
        return magicflow.Client(addresses=addresses, timeout=15.0)

    @property
    def dispatchers(self) -> dict[str, Program]:
        return {n: p for n, p in self.stack.programs.items() if n.startswith("dispatcher")}

    async def owners(self) -> dict[int, tuple[str, int]]:
        """(instance, epoch) by partition, of those that are owned. Errors: the client's."""
        found = (await self.client.cluster()).partitions
        return {p.partition: (p.instance, p.epoch) for p in found if p.instance}

    async def settle(self) -> None:
        """Returns when all servers and services run, each partition has a live owner, and the
        functions are offered. Errors: `AssertionError`, `TimeoutError`."""
        async with asyncio.timeout(SETTLE_WITHIN):
            await until_owned(self.client, set(self.dispatchers))
            await self._until(self._offered)

    async def _offered(self) -> bool:
        workers = await self.client.workers()
        living = {member.name for member in self.fleet.members.values()}
        return {worker.worker_id for worker in workers} >= living

    async def projected(self) -> bool:
        """Whether SQL has come as far as the logs."""
        await self.tape.catch_up()
        positions = (await self.rows()).positions
        return all(
            positions.get(partition, 0) == reel.last
            for partition, reel in enumerate(self.tape.reels)
        )

    async def until_projected(self) -> None:
        """Returns when SQL has it all, or after `SETTLE_WITHIN`: then the oracle says what is
        missing."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(SETTLE_WITHIN):
                await self._until(self.projected)

    async def _until(self, holds: Callable[[], Awaitable[bool]]) -> None:
        while True:
            with contextlib.suppress(Exception):  # whatever is out of reach still
                if await holds():
                    return
            await asyncio.sleep(0.1)

    async def rows(self, above: dict[int, int] | None = None) -> Rows:
        return await read_rows(self.stack.postgres.url, above)

    async def graphs(self) -> dict[int, Graph]:
        """Every snapshot that the tape names."""
        wanted = {
            names
            for reel in self.tape.reels
            for recorded in reel.frames
            for names in snapshots_in(recorded.frame)
        }
        missing = [names for names in wanted if names[1] not in self._graphs]
        if missing:
            snapshots = EtcdSnapshots(self.stack.etcd.endpoint)
            library = Library(snapshots)
            try:
                for playbook, snapshot in missing:
                    self._graphs[snapshot] = await library.graph(playbook, snapshot)
            finally:
                await snapshots.close()
        return self._graphs

    def service_logs(self) -> list[Path]:
        return [program.log for program in self.stack.programs.values()]


async def end_cleanly(program: Program) -> bool:
    """SIGTERM, and waits. False when it had to be killed in the end."""
    os.kill(program.pid, signal.SIGTERM)
    deadline = time.monotonic() + STOP_WITHIN
    while program.running and time.monotonic() < deadline:
        await asyncio.sleep(0.02)
    clean = not program.running
    await asyncio.to_thread(program.stop)
    return clean


async def start_again(server: Server) -> None:
    await asyncio.to_thread(server.start)


def _callees_first() -> list[str]:
    names: list[Any] = sorted(KINDS, key=lambda name: "playbook: chain," in KINDS[name].document)
    return [str(name) for name in names]
