"""The worker process of a story that is told on real services."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import shlex
import signal
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from magicflow.conformance import Call, calls_file, read_calls

STOPPING = 2.0  # seconds
RESTARTS = 50  # of one story; a worker that ends more often does not crash because it is told to
_TAIL = 5  # lines of its log


class WorkerProcess:
    """Offers `functions` and has `commands`; started again whenever it ends, until `stop`. Its
    files are those of the contract that `magicflow.conformance` describes, in a folder of its
    own."""

    def __init__(
        self,
        command: str,
        address: str,
        functions: Mapping[str, Any],
        commands: Mapping[str, Any],
        folder: Path,
    ) -> None:
        """An empty command means the worker of the Python SDK."""
        self._command = shlex.split(command) or [sys.executable, "-m", "magicflow.conformance"]
        self._address = address
        self._behaviour = folder / "behaviour.json"
        self._log = folder / "worker.log"
        self._process: asyncio.subprocess.Process | None = None
        self._keeper: asyncio.Task[None] | None = None
        folder.mkdir(parents=True)
        content = {"functions": functions, "commands": commands}
        self._behaviour.write_text(json.dumps(content), "utf-8")

    async def start(self) -> None:
        """Errors: `OSError` when there is no such program."""
        await self._launch()
        self._keeper = asyncio.create_task(self._keep())

    async def stop(self) -> None:
        """It may drain for a moment; then it is ended with whatever it has started."""
        if self._keeper is not None:
            self._keeper.cancel()
            with contextlib.suppress(asyncio.CancelledError, OSError):
                await self._keeper
        process = self._process
        if process is None:
            return
        self._signal(process, signal.SIGTERM)
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(process.wait(), STOPPING)
        self._signal(process, signal.SIGKILL)
        await process.wait()

    @property
    def given_up(self) -> bool:
        """Whether it has ended so often that it is not started again."""
        return self._keeper is not None and self._keeper.done()

    def calls(self) -> Sequence[Call]:
        return read_calls(calls_file(self._behaviour))

    def last_words(self) -> str:
        lines = self._log.read_text(errors="replace").strip().splitlines()
        return " | ".join(lines[-_TAIL:]) or "it printed nothing"

    async def _launch(self) -> None:
        settings = {
            "MAGICFLOW_ADDRESS": self._address,
            "MAGICFLOW_TOKEN": "",
            "MAGICFLOW_BEHAVIOUR": str(self._behaviour),
        }
        with self._log.open("ab") as out:
            self._process = await asyncio.create_subprocess_exec(
                *self._command,
                stdin=asyncio.subprocess.DEVNULL,
                stdout=out,
                stderr=out,
                env={**os.environ, **settings},
                start_new_session=True,  # so that what it starts can be ended with it
            )

    async def _keep(self) -> None:
        for _ in range(RESTARTS):
            assert self._process is not None
            await self._process.wait()
            await self._launch()

    def _signal(self, process: asyncio.subprocess.Process, number: signal.Signals) -> None:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, number)
