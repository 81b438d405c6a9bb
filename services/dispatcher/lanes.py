"""Results on their way to the owners of their traces.

One lane per partition. A lane sends what has gathered while its previous send was under way, to
the processor in this process or over gRPC to the instance that owns the partition. Results are
never dropped: a lane tries until somebody has committed them.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable
from typing import Protocol

import structlog

from engine.errors import MagicflowError
from services.dispatcher.turns import Result

Began = tuple[bytes, str, int, str, int, bool]
"""Trace, node, attempt, worker, milliseconds; True: it came back with it after a break."""

MAX_BATCH = 1_000
_log = structlog.get_logger(__name__)


class Owner(Protocol):
    """Whoever commits the results of a partition."""

    async def deliver(self, results: list[Result]) -> list[bool]: ...

    def began(self, notes: list[Began]) -> bool:
        """Takes note of attempts that workers have begun; False: it must be told by the bus."""
        ...


FindOwner = Callable[[int], Owner | None]
Done = Callable[[list[tuple[Result, bool]]], None]


class Lane:
    """`done` is called with each batch that was committed, and whether each was accepted."""

    def __init__(self, partition: int, find_owner: FindOwner, done: Done) -> None:
        self._partition = partition
        self._find_owner = find_owner
        self._done = done
        self._waiting: list[Result] = []
        self._sender: asyncio.Task[None] | None = None

    def push(self, results: list[Result]) -> None:
        self._waiting.extend(results)
        if self._sender is None:
            self._sender = asyncio.create_task(self._send())

    async def close(self, patience: float) -> None:
        """Waits so long for what is under way."""
        if self._sender is not None:
            await asyncio.wait([self._sender], timeout=patience)
        if self._sender is not None:
            self._sender.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._sender

    async def _send(self) -> None:
        pause = 0.02
        while self._waiting:
            batch = self._waiting[:MAX_BATCH]
            owner = self._find_owner(self._partition)
            try:
                if owner is None:
                    raise MagicflowError("the partition has no owner")
                accepted = await owner.deliver(batch)
            except MagicflowError as error:
                _log.debug("results wait", partition=self._partition, why=str(error))
                await asyncio.sleep(pause)
                pause = min(2 * pause, 1.0)
                continue
            pause = 0.02
            del self._waiting[: len(batch)]
            self._done(list(zip(batch, accepted, strict=True)))
        self._sender = None
