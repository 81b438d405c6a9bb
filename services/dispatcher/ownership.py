"""Which partitions this instance owns: elected by etcd leases, fenced by the logs.

A partition belongs to the live dispatcher with the highest rendezvous score. Its key is created
under the instance's lease; the revision that created it is the epoch. An instance that loses its
lease, or cannot renew it within two thirds of its time, stops all its processors at once.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Iterable
from typing import Any

import structlog

from engine.bus.port import Bus
from engine.clock import Clock
from engine.errors import MagicflowError, Unavailable
from engine.snapshots import keys
from engine.snapshots.library import Library
from engine.snapshots.membership import Claim, Member, chosen, decode_claim, encode
from engine.snapshots.mirror import Mirror
from engine.snapshots.port import Delete, Lease, LeaseLost, Put, Require, Snapshots
from services.dispatcher.limits import Limits
from services.dispatcher.pace import LATE, LoopPace
from services.dispatcher.processor import Deposed, Processor

LEASE = 6.0  # seconds
CLOSING = 15.0  # seconds for all handovers at the end
RETRY = 0.25  # seconds between looks at what is not as it should be
_log = structlog.get_logger(__name__)


class Ownership:
    """Keeps `processors` in step with who is alive. One per dispatcher instance."""

    def __init__(
        self,
        me: Member,
        partitions: int,
        snapshots: Snapshots,
        bus: Bus,
        library: Library,
        clock: Clock,
        limits: Limits,
        lease_seconds: float = LEASE,
        lateness: float = LATE,
    ) -> None:
        self._me = me
        self._partitions = partitions
        self._snapshots = snapshots
        self._bus = bus
        self._library = library
        self._clock = clock
        self._limits = limits
        self._pace = LoopPace(lateness)
        self._lease_seconds = lease_seconds
        self._members = Mirror(snapshots, keys.DISPATCHERS)
        self._owners = Mirror(snapshots, keys.PARTITIONS)
        self._projections = Mirror(snapshots, keys.PROJECTIONS)
        self._lease: Lease | None = None
        self._running: dict[int, asyncio.Task[None]] = {}
        self._leaving: asyncio.Task[None] | None = None  # a partition that is being handed on
        self._ended: asyncio.Event = asyncio.Event()  # a partition has been let go
        self._made: dict[int, Processor] = {}  # also those that recover still
        self._keeper: asyncio.Task[None] | None = None
        self._stopping = False
        self.processors: dict[int, Processor] = {}

    async def open(self) -> None:
        """Joins the cluster. Errors: `Unavailable`."""
        for mirror in (self._members, self._owners, self._projections):
            await mirror.open()
        await self._join()
        self._pace.open()
        self._keeper = asyncio.create_task(self._keep())

    async def close(self) -> None:
        """Hands everything over, one partition after the other, so that each stands still for its
        own handover only; the lease goes last."""
        self._stopping = True
        if self._keeper is not None:
            self._keeper.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._keeper
        await self._leave()
        deadline = asyncio.get_running_loop().time() + CLOSING
        for partition, processor in list(self.processors.items()):
            processor.stop()
            await self._wait([self._running[partition]], deadline)
        await self._wait(self._running.values(), deadline)
        self._abandon_all()
        if self._lease is not None:
            with contextlib.suppress(Unavailable):
                await self._lease.revoke()
        await self._pace.close()
        for mirror in (self._members, self._owners, self._projections):
            await mirror.close()

    async def _leave(self) -> None:
        """The others shall know who follows before anything is handed over."""
        with contextlib.suppress(MagicflowError):
            await self._snapshots.delete(f"{keys.DISPATCHERS}{self._me.name}")

    async def _wait(self, running: Iterable[asyncio.Task[None]], deadline: float) -> None:
        tasks = list(running)
        if tasks:
            left = max(0.0, deadline - asyncio.get_running_loop().time())
            await asyncio.wait(tasks, timeout=left)

    def owner_of(self, partition: int) -> Claim | None:
        """Who owns it, as far as known here."""
        value = self._owners.entries.get(keys.partition(partition))
        return None if value is None else decode_claim(value)

    async def _join(self) -> None:
        self._lease = await self._snapshots.grant(self._lease_seconds)
        key = f"{keys.DISPATCHERS}{self._me.name}"
        await self._snapshots.put(key, encode(self._me), self._lease.id)

    async def _keep(self) -> None:
        while True:
            self._ended.clear()
            news = self._news()
            await asyncio.sleep(0)  # it listens before we look: what comes meanwhile is not missed
            try:
                assert self._lease is not None
                if not self._lease.held():
                    await self._rejoin()
                await self._settle()
                timeout = 5.0 if self._all_mine_run() else RETRY
                await asyncio.wait(news, timeout=timeout, return_when=asyncio.FIRST_COMPLETED)
            except (MagicflowError, LeaseLost) as error:
                _log.warning("ownership is uncertain", why=str(error))
                await asyncio.sleep(RETRY)
            finally:
                for task in news:
                    task.cancel()

    def _news(self) -> list[asyncio.Task[Any]]:
        """Done when something has changed that decides who owns what."""
        assert self._lease is not None
        return [
            asyncio.create_task(coroutine)
            for coroutine in (
                self._members.news(),
                self._owners.news(),
                self._lease.lost(),
                self._ended.wait(),
            )
        ]

    def _all_mine_run(self) -> bool:
        return all(partition in self._running for partition in self._mine())

    def _mine(self) -> list[int]:
        names = [key.removeprefix(keys.DISPATCHERS) for key in self._members.entries]
        return [p for p in range(self._partitions) if chosen(p, names) == self._me.name]

    async def _rejoin(self) -> None:
        _log.error("the lease is lost: all partitions are given up", instance=self._me.name)
        self._abandon_all()
        if self._running:
            await asyncio.wait(self._running.values(), timeout=5.0)
        await self._join()

    def _abandon_all(self) -> None:
        for processor in self._made.values():
            processor.abandon()
        for task in self._running.values():
            task.cancel()

    async def _settle(self) -> None:
        mine = set(self._mine())
        free = [p for p in sorted(mine) if p not in self._running and self.owner_of(p) is None]
        await asyncio.gather(*(self._claim(partition) for partition in free))
        self._hand_on([p for p in self.processors if p not in mine])
        for partition, processor in self.processors.items():
            value = self._projections.entries.get(keys.projection(partition))
            processor.projected = int(value) if value else 0

    def _hand_on(self, others: list[int]) -> None:
        """Lets go of what is another's now, one after the other."""
        if others and (self._leaving is None or self._leaving.done()):
            self._leaving = self._running[others[0]]
            self.processors[others[0]].stop()

    async def _claim(self, partition: int) -> None:
        assert self._lease is not None
        key = keys.partition(partition)
        claim = Claim(self._me.name, self._me.address)
        epoch = await self._snapshots.commit(
            [Require(key, 0)], [Put(key, encode(claim), self._lease.id)]
        )
        if epoch is None:
            return  # the former owner still holds it; its key goes with its lease
        self._running[partition] = asyncio.create_task(self._own(partition, epoch))

    async def _own(self, partition: int, epoch: int) -> None:
        processor = Processor(
            partition, epoch, self._bus, self._library, self._clock, self._limits, self._pace
        )
        self._made[partition] = processor
        forget = self._pace.on_tick(processor.wake)
        log = _log.bind(partition=partition, epoch=epoch)
        try:
            await processor.recover()
            self.processors[partition] = processor
            if self._stopping:  # `close` has told those that it found here
                processor.stop()
            log.info("partition owned")
            await processor.run()
            log.info("partition handed over")
        except (Deposed, Unavailable) as error:
            log.error("partition lost", why=str(error))
        except Exception:
            log.exception("partition failed")
        finally:
            forget()
            self.processors.pop(partition, None)
            self._made.pop(partition, None)
            await self._let_go(partition, epoch)
            self._running.pop(partition, None)
            self._ended.set()

    async def _let_go(self, partition: int, epoch: int) -> None:
        """Removes the key, if it is still the one of this epoch."""
        key = keys.partition(partition)
        with contextlib.suppress(Exception):
            entry = await self._snapshots.get(key)
            if entry is not None and entry.created == epoch:
                await self._snapshots.commit([Require(key, entry.modified)], [Delete(key)])
