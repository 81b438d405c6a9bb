"""kill -9 of the embedded PostgreSQL, and its recovery. The package that embeds it offers neither,
so this reaches into it."""

from __future__ import annotations

import contextlib
import time

import psutil

from tests.servers import START_LIMIT, Postgres


def kill_postgres(postgres: Postgres) -> None:
    """The server with every process that it has forked: none may finish what it had begun."""
    server = psutil.Process(postgres._server.get_pid())
    processes = [server, *server.children(recursive=True)]
    for process in processes:
        with contextlib.suppress(psutil.NoSuchProcess):
            process.kill()
    _, left = psutil.wait_procs(processes, timeout=START_LIMIT)
    assert not left, f"{left} are still there"


def start_postgres(postgres: Postgres) -> None:
    """Starts it on the same data and waits until it answers. Errors: `AssertionError`."""
    deadline = time.monotonic() + START_LIMIT
    while True:
        try:
            postgres.run()
            return
        except AssertionError:
            # Its predecessor's memory may be held for a moment still.
            assert time.monotonic() < deadline, "PostgreSQL does not come back"
            time.sleep(0.1)
