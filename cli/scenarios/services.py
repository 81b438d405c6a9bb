"""Real services for stories: everything that `magicflow dev` starts, on free ports and in a folder
of its own."""

from __future__ import annotations

import asyncio
import contextlib
import tempfile
import time
from pathlib import Path

import magicflow
from cli.scenarios.way import PATIENCE
from cli.servers import start_dev
from engine.telemetry import configure_logs
from services.embedded import free_port

_LOOK_EVERY = 0.03  # seconds


class Services:
    """`address` serves all of them, and `client` is one of theirs, while they are `running`."""

    def __init__(self) -> None:
        self._parts = contextlib.AsyncExitStack()
        self.running = False
        self.folder = Path()
        self.address = ""
        self.client: magicflow.Client

    async def start(self) -> None:
        """Begins anew, with nothing of what was before. Errors: `Unavailable`."""
        await self.stop()
        folder = tempfile.TemporaryDirectory(prefix="magicflow-", ignore_cleanup_errors=True)
        self.folder = Path(self._parts.enter_context(folder))
        configure_logs("error", as_json=False)
        self.address = f"127.0.0.1:{free_port()}"
        await start_dev(self._parts, self.address, self.folder / "data")
        self.client = magicflow.Client(self.address, token="")
        self._parts.push_async_callback(self.client.close)
        await self._until_owned()
        self.running = True

    async def stop(self) -> None:
        self.running = False
        await self._parts.aclose()

    async def _until_owned(self) -> None:
        """Returns when each partition has an owner."""
        deadline = time.monotonic() + PATIENCE
        while time.monotonic() < deadline:
            with contextlib.suppress(magicflow.MagicflowError):
                if all(p.instance for p in (await self.client.cluster()).partitions):
                    return
            await asyncio.sleep(_LOOK_EVERY)
        raise magicflow.Unavailable("partitions have no owner", reason="PARTITION_UNOWNED")
