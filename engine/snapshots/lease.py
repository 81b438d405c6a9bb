"""The holder's side of a lease, the same for every adapter.

The server's clock and ours never meet: the holder counts two thirds of the time to live from
the moment it *sent* the last renewal that was confirmed, so that it stops before any server
that received it later can end the lease and let a next owner in.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable

from engine.errors import MagicflowError

HELD = 2 / 3  # of the time to live, after the last confirmed renewal was sent
RENEW = 1 / 3


class KeptLease:
    """A lease that renews itself in a task of its own, until lost, revoked or stopped.

    `renew` asks the server once and returns the new time to live in seconds, or None if the
    server knows no such lease; `now` is a monotonic clock in seconds. `sent` is the time by
    that clock at which the grant was asked for.
    """

    def __init__(
        self,
        id: int,
        ttl: float,
        *,
        sent: float,
        renew: Callable[[int], Awaitable[float | None]],
        revoke: Callable[[int], Awaitable[None]],
        now: Callable[[], float],
    ) -> None:
        self._id = id
        self._ttl = ttl
        self._renew = renew
        self._revoke = revoke
        self._now = now
        self._sent = sent
        self._until = sent + ttl * HELD
        self._lost = asyncio.Event()
        self._revoked = False
        self._timer: asyncio.TimerHandle | None = None
        self._watch_deadline()
        self._keeper: asyncio.Task[None] = asyncio.create_task(
            self._keep(), name=f"lease {id:x} renewal"
        )

    @property
    def id(self) -> int:
        return self._id

    @property
    def ttl(self) -> float:
        return self._ttl

    async def lost(self) -> None:
        await self._lost.wait()

    def held(self) -> bool:
        # By the clock and not only by the event: a process that was paused asks this before
        # its event loop has run the timer.
        return not self._lost.is_set() and self._now() < self._until

    async def revoke(self) -> None:
        self._lose()
        if not self._revoked:
            await self._revoke(self._id)
            self._revoked = True

    def pause_renewal(self) -> None:
        """For tests: from now on this holder is as good as dead, and the lease runs out."""
        self._keeper.cancel()

    async def stop(self) -> None:
        """Renews no more and counts as lost; the server ends the lease when its time is up."""
        self._lose()
        await asyncio.gather(self._keeper, return_exceptions=True)

    def finished(self) -> bool:
        """True when nothing of this lease runs any more."""
        return self._lost.is_set() and self._keeper.done()

    def _lose(self) -> None:
        self._lost.set()
        if self._timer is not None:
            self._timer.cancel()
        self._keeper.cancel()

    def _watch_deadline(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
        self._timer = asyncio.get_running_loop().call_later(
            max(0.0, self._until - self._now()), self._at_deadline
        )

    def _at_deadline(self) -> None:
        # Timers may fire a clock tick early, and an injected clock may run differently.
        if self._now() < self._until:
            self._watch_deadline()
        else:
            self._lose()

    async def _keep(self) -> None:
        while True:
            await asyncio.sleep(self._sent + self._ttl * RENEW - self._now())
            await self._renew_once()

    async def _renew_once(self) -> None:
        pause = self._ttl / 60
        while True:
            sent = self._now()
            try:
                async with asyncio.timeout(self._ttl * RENEW):
                    ttl = await self._renew(self._id)
                break
            except (TimeoutError, MagicflowError):
                # The deadline timer ends this; until then every moment counts.
                await asyncio.sleep(pause)
                pause = min(pause * 2, self._ttl / 6)
        # An answer that arrives after the deadline must not revive a holder that has stopped.
        if ttl is None or not self.held():
            self._lose()
            return
        self._ttl = ttl
        self._sent = sent
        self._until = sent + ttl * HELD
        self._watch_deadline()
