"""The whole stack on real servers: each service a process of its own, on free ports."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import socket
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import magicflow
from tests.servers import ROOT, Etcd, NatsServer, Postgres, Server, free_port

SERVICES = ("registry", "trace", "dispatcher", "trigger")
PATIENCE = 30.0  # seconds


class Program(Server):
    """A `magicflow` command that listens on a port."""

    def __init__(
        self, directory: Path, arguments: Sequence[str], port: int, settings: dict[str, str]
    ) -> None:
        self.name = "-".join(arguments[:2])
        super().__init__(directory)
        self._arguments = arguments
        self._settings = settings
        self.port = port
        self.address = f"127.0.0.1:{port}"

    def command(self) -> Sequence[str]:
        return [sys.executable, "-m", "cli.main", *self._arguments, "--listen", self.address]

    def environment(self) -> dict[str, str]:
        return {**os.environ, "PYTHONPATH": str(ROOT), **self._settings}

    def ready(self) -> bool:
        with socket.create_connection(("127.0.0.1", self.port), timeout=0.5):
            return True

    def interrupt(self) -> None:
        """Ctrl-C, and waits for the end."""
        assert self._process is not None
        self._process.send_signal(signal.SIGINT)
        self._process.wait(20)
        self._process = None


class Stack:
    """NATS, etcd and PostgreSQL with the services over them."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self._exit = contextlib.ExitStack()
        self.nats = NatsServer(directory / "nats")
        self.etcd = Etcd(directory / "etcd")
        self.postgres = Postgres()
        self.programs: dict[str, Program] = {}

    def __enter__(self) -> Stack:
        with (
            contextlib.ExitStack() as starting
        ):  # what runs is stopped when the next does not start
            for server in (self.nats, self.etcd, self.postgres):
                starting.callback(server.stop)
                server.start()
            self._exit = starting.pop_all()
        return self

    def __exit__(self, *_: object) -> None:
        for program in self.programs.values():
            program.stop()
        self._exit.close()

    def serve(self, service: str, instance: str = "") -> Program:
        """Starts one more instance of a service."""
        name = instance or service
        settings = {
            "MAGICFLOW_NATS": self.nats.url,
            "MAGICFLOW_NATS_MONITOR": self.nats.monitor,
            "MAGICFLOW_ETCD": self.etcd.endpoint,
            "MAGICFLOW_DATABASE": self.postgres.url,
            "MAGICFLOW_DATA": str(self._directory / "data"),
            "MAGICFLOW_PARTITIONS": "4",
            "MAGICFLOW_LEASE": "2",
            "MAGICFLOW_AUTH": "local",
            "MAGICFLOW_INSTANCE": name,
            "MAGICFLOW_DRAIN": "5",
        }
        program = Program(self._directory / name, ["serve", service], free_port(), settings)
        self.programs[name] = program
        program.start()
        return program

    def serve_all(self) -> None:
        for service in SERVICES:
            self.serve(service)

    def client(self, **addresses: str) -> magicflow.Client:
        """A client of the first instance of each service, or of those that are named."""
        first = {name: self.programs[name].address for name in SERVICES}
        return magicflow.Client(addresses={**first, **addresses}, timeout=15.0)


async def until_owned(client: magicflow.Client, by: set[str] | None = None) -> None:
    """Returns when every partition has an owner, one of `by` where given."""
    deadline = time.monotonic() + PATIENCE
    while time.monotonic() < deadline:
        with contextlib.suppress(magicflow.MagicflowError):
            owners = {p.instance for p in (await client.cluster()).partitions}
            if "" not in owners and (by is None or owners <= by):
                return
        await asyncio.sleep(0.05)
    raise AssertionError(f"partitions have no owner after {PATIENCE} s")


async def until_offered(client: magicflow.Client, *functions: str) -> None:
    """Returns when live workers offer these functions."""
    deadline = time.monotonic() + PATIENCE
    while time.monotonic() < deadline:
        offered = {f.name for worker in await client.workers() for f in worker.functions}
        if offered >= set(functions):
            return
        await asyncio.sleep(0.05)
    raise AssertionError(f"nobody offers {functions}")
