"""Which partitions this instance owns: elected by etcd leases, fenced by the logs.

A partition belongs to the live dispatcher with the highest rendezvous score. Its key is created
under the instance's lease; the revision that created it is the epoch. An instance that loses its
lease, or cannot renew it within two thirds of its time, stops all its processors at once. One that
shall hand a partition on goes on until the next owner has read the log (`standby`).
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
from services.dispatcher.recovery import Recovery
from services.dispatcher.standby import Standby

LEASE = 6.0  # seconds
CLOSING = 15.0  # seconds for all handovers at the end
RETRY = 0.25  # seconds between looks at what is not as it should be
FOLLOWING = 5.0  # seconds that the next owner may take to read the log before it gets it anyway
SETTLING = 0.5  # seconds that it may take to begin before the next partition moves
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
        self._followers = Mirror(snapshots, keys.STANDBYS)
        self._mirrors = (self._members, self._owners, self._projections, self._followers)
        self._standbys: dict[int, Standby] = {}
        self._due_since: dict[int, float] = {}  # partitions of ours that are another's by now
        self._lease: Lease | None = None
        self._running: dict[int, asyncio.Task[None]] = {}
        self._handover: asyncio.Task[None] | None = None  # of a partition that is another's now
        self._ended: asyncio.Event = asyncio.Event()  # a partition has been let go
        self._made: dict[int, Processor] = {}  # also those that recover still
        self._keeper: asyncio.Task[None] | None = None
        self._stopping = False
        self.processors: dict[int, Processor] = {}

    async def open(self) -> None:
        """Joins the cluster. Errors: `Unavailable`."""
        for mirror in self._mirrors:
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
        await self._stand_by(set())
        await self._leave()
        await self._until_followed()
        deadline = asyncio.get_running_loop().time() + CLOSING
        for partition in list(self.processors):
            handover = asyncio.create_task(self._pass_on(partition))
            await self._wait([handover], deadline)
            handover.cancel()
        await self._wait(self._running.values(), deadline)
        self._abandon_all()
        if self._lease is not None:
            with contextlib.suppress(Unavailable):
                await self._lease.revoke()
        await self._pace.close()
        for mirror in self._mirrors:
            await mirror.close()

    async def _leave(self) -> None:
        """The others shall know who follows before anything is handed over."""
        with contextlib.suppress(MagicflowError):
            await self._snapshots.delete(f"{keys.DISPATCHERS}{self._me.name}")

    async def _until_followed(self) -> None:
        """Returns when the next owners have read all our partitions, or have had time to, or when
        there are none."""
        end = asyncio.get_running_loop().time() + FOLLOWING
        while self._others() and asyncio.get_running_loop().time() < end:
            if all(self._is_followed(partition) for partition in self.processors):
                return
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(0.1):  # the others may leave, too
                    await self._followers.news()

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
                settled = await self._settle()
                timeout = 5.0 if settled else RETRY
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
                self._followers.news(),
                self._lease.lost(),
                self._ended.wait(),
            )
        ]

    def _mine(self) -> list[int]:
        names = [*self._others(), self._me.name]
        return [p for p in range(self._partitions) if chosen(p, names) == self._me.name]

    def _others(self) -> list[str]:
        names = (key.removeprefix(keys.DISPATCHERS) for key in self._members.entries)
        return [name for name in names if name != self._me.name]

    def _is_followed(self, partition: int) -> bool:
        """Whether its next owner has read it."""
        said = self._followers.entries.get(keys.standby(partition))
        return said is not None and said.decode() == chosen(partition, self._others())

    async def _rejoin(self) -> None:
        _log.error("the lease is lost: all partitions are given up", instance=self._me.name)
        self._abandon_all()
        await self._stand_by(set())
        if self._running:
            await asyncio.wait(self._running.values(), timeout=5.0)
        await self._join()

    def _abandon_all(self) -> None:
        for processor in self._made.values():
            processor.abandon()
        for task in self._running.values():
            task.cancel()

    async def _settle(self) -> bool:
        """Whether everything is as it shall be."""
        mine = set(self._mine())
        missing = {partition for partition in mine if partition not in self._running}
        free = {partition for partition in missing if self.owner_of(partition) is None}
        await asyncio.gather(*(self._claim(partition) for partition in sorted(free)))
        await self._stand_by(missing - free)
        others = [partition for partition in self.processors if partition not in mine]
        self._hand_on(others)
        for partition, processor in self.processors.items():
            value = self._projections.entries.get(keys.projection(partition))
            processor.projected = int(value) if value else 0
        return not others and all(partition in self._running for partition in mine)

    async def _stand_by(self, partitions: set[int]) -> None:
        """Reads in advance what is another's still and will be ours; nothing else."""
        assert self._lease is not None
        for partition in sorted(self._standbys.keys() - partitions):
            await self._standbys.pop(partition).close()
            await self._forget_standby(partition)
        for partition in sorted(partitions - self._standbys.keys()):
            standby = self._standbys[partition] = Standby(partition, self._bus, self._library)
            standby.open(self._snapshots, self._me.name, self._lease.id)

    def _hand_on(self, others: list[int]) -> None:
        """Lets go of what is another's now, one after the other, once all of it has been read
        there: to read a partition would hold up those that are there already."""
        now = asyncio.get_running_loop().time()
        self._due_since = {partition: self._due_since.get(partition, now) for partition in others}
        if self._handover is not None and not self._handover.done():
            return
        late = now - FOLLOWING
        ready = [p for p in others if self._is_followed(p) or self._due_since[p] < late]
        if ready and len(ready) == len(others):
            self._handover = asyncio.create_task(self._pass_on(ready[0]))

    async def _pass_on(self, partition: int) -> None:
        """Returns when the next owner is at work, if it had read the partition before."""
        followed = self._is_followed(partition)
        running, processor = self._running.get(partition), self.processors.get(partition)
        if running is None or processor is None:
            return  # it was lost meanwhile
        processor.stop(followed)
        await asyncio.wait([running])
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(SETTLING):
                while self._is_followed(partition):
                    await self._followers.news()
        self._ended.set()

    async def _claim(self, partition: int) -> None:
        assert self._lease is not None
        key = keys.partition(partition)
        claim = Claim(self._me.name, self._me.address)
        epoch = await self._snapshots.commit(
            [Require(key, 0)], [Put(key, encode(claim), self._lease.id)]
        )
        if epoch is None:
            return  # the former owner still holds it; its key goes with its lease
        standby = self._standbys.pop(partition, None)
        recovery = await standby.close() if standby is not None else None
        self._running[partition] = asyncio.create_task(self._own(partition, epoch, recovery))

    async def _own(self, partition: int, epoch: int, recovery: Recovery | None) -> None:
        processor = Processor(
            partition,
            epoch,
            self._bus,
            self._library,
            self._clock,
            self._limits,
            self._pace,
            recovery,
        )
        self._made[partition] = processor
        forget = self._pace.on_tick(processor.wake)
        log = _log.bind(partition=partition, epoch=epoch)
        said: asyncio.Task[None] | None = None
        try:
            await processor.recover()
            self.processors[partition] = processor
            said = asyncio.create_task(self._forget_standby(partition)) if recovery else None
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
            if said is not None:
                said.cancel()
            self.processors.pop(partition, None)
            self._made.pop(partition, None)
            await self._let_go(partition, epoch)
            self._running.pop(partition, None)
            self._ended.set()

    async def _forget_standby(self, partition: int) -> None:
        """Also tells the former owner that we are at work."""
        with contextlib.suppress(Unavailable):
            await self._snapshots.delete(keys.standby(partition))

    async def _let_go(self, partition: int, epoch: int) -> None:
        """Removes the key, if it is still the one of this epoch: it is written once, when it is
        made."""
        key = keys.partition(partition)
        with contextlib.suppress(Exception):
            await self._snapshots.commit([Require(key, epoch)], [Delete(key)])
