"""One dispatcher speaks for the cluster: it is elected by a lease, looks around once a second and
writes what it sees. It raises alarms; it never advances work, so a moment without a leader, or
with two, harms nobody."""

from __future__ import annotations

import asyncio
import contextlib

import structlog

from engine.bus.load import Load, decode_loads
from engine.bus.port import Bus, Listening
from engine.bus.subjects import LOAD
from engine.clock import Clock
from engine.errors import MagicflowError
from engine.snapshots import keys
from engine.snapshots.capacity import Capacity
from engine.snapshots.membership import Claim, Member, decode_member, encode
from engine.snapshots.mirror import Mirror
from engine.snapshots.port import Lease, LeaseLost, Put, Require, Snapshots
from engine.snapshots.report import Alarm, Function, Report, encode_report
from services.dispatcher.alarms import Facts, alarms

EVERY = 1.0  # seconds between looks
AGAIN = 10_000  # milliseconds after which a report is written though nothing has changed
FORGET = 15.0  # seconds until a partition's last report of load means nothing
_log = structlog.get_logger(__name__)


class Leader:
    """A candidate, and the leader while it holds the key."""

    def __init__(
        self,
        me: Member,
        partitions: int,
        snapshots: Snapshots,
        bus: Bus,
        capacity: Capacity,
        clock: Clock,
        lease_seconds: float,
    ) -> None:
        self._me = me
        self._partitions = partitions
        self._snapshots = snapshots
        self._bus = bus
        self._capacity = capacity
        self._clock = clock
        self._lease_seconds = lease_seconds
        self._instances = Mirror(snapshots, keys.INSTANCES)
        self._owners = Mirror(snapshots, keys.PARTITIONS)
        self._elected = Mirror(snapshots, keys.LEADER)
        self._loads: dict[int, tuple[float, Load]] = {}
        self._listening: Listening | None = None
        self._lease: Lease | None = None
        self._keeper: asyncio.Task[None] | None = None
        self._alarms: tuple[Alarm, ...] = ()
        self._last: Report | None = None

    async def open(self) -> None:
        """Errors: `Unavailable`."""
        for mirror in (self._instances, self._owners, self._elected):
            await mirror.open()
        self._listening = await self._bus.listen(LOAD, self._hear)
        self._keeper = asyncio.create_task(self._keep())

    async def close(self) -> None:
        if self._keeper is not None:
            self._keeper.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._keeper
        if self._lease is not None:
            with contextlib.suppress(MagicflowError):
                await self._lease.revoke()
        if self._listening is not None:
            await self._listening.close()
        for mirror in (self._instances, self._owners, self._elected):
            await mirror.close()

    async def _hear(self, _subject: str, data: bytes) -> None:
        now = asyncio.get_running_loop().time()
        with contextlib.suppress(ValueError):
            self._loads.update({load.partition: (now, load) for load in decode_loads(data)})

    async def _keep(self) -> None:
        while True:
            try:
                if await self._leads():
                    await self._report()
            except (MagicflowError, LeaseLost) as error:
                _log.debug("no report", why=str(error))
            except Exception:  # the lease stays, so nobody else would report
                _log.exception("no report")
            await asyncio.sleep(EVERY)

    async def _leads(self) -> bool:
        """Whether this instance is the leader, after standing for it where nobody is."""
        if self._lease is None or not self._lease.held():
            self._lease = await self._snapshots.grant(self._lease_seconds)
            self._last = None
        claim = encode(Claim(self._me.name, self._me.address))
        if self._elected.entries.get(keys.LEADER) is not None:
            return self._elected.entries[keys.LEADER] == claim
        put = Put(keys.LEADER, claim, self._lease.id)
        won = await self._snapshots.commit([Require(keys.LEADER, 0)], [put])
        if won is not None:
            _log.info("this instance reports for the cluster")
        return won is not None

    async def _report(self) -> None:
        assert self._lease is not None
        now = self._clock.now()
        functions = await self._functions()
        self._alarms = self._told(alarms(await self._facts(functions), self._alarms, now))
        report = Report(self._me.name, now, self._alarms, tuple(functions))
        last = self._last
        if last is not None and now - last.at < AGAIN and _says(last) == _says(report):
            return
        await self._snapshots.put(keys.REPORT, encode_report(report), self._lease.id)
        self._last = report

    def _told(self, found: tuple[Alarm, ...]) -> tuple[Alarm, ...]:
        before = {(alarm.code, alarm.subject) for alarm in self._alarms}
        for alarm in found:
            if (alarm.code, alarm.subject) not in before:
                _log.warning("alarm", code=alarm.code, subject=alarm.subject, what=alarm.message)
        return found

    async def _functions(self) -> list[Function]:
        waiting = await self._bus.task_backlog()
        offered = self._capacity.of_functions()
        return [
            Function(name, *offered.get(name, (0, 0)), waiting.get(name, 0))
            for name in sorted({*waiting, *offered})
        ]

    async def _facts(self, functions: list[Function]) -> Facts:
        since = asyncio.get_running_loop().time() - FORGET
        members = [decode_member(value) for value in self._instances.entries.values()]
        letters = await self._bus.dead.letters(0, 1)
        return Facts(
            services=frozenset(member.service for member in members),
            unowned=[
                partition
                for partition in range(self._partitions)
                if keys.partition(partition) not in self._owners.entries
            ],
            functions=functions,
            loads={p: load for p, (heard, load) in self._loads.items() if heard > since},
            dead=f"{letters[0].code} from {letters[0].origin}" if letters else "",
            trouble=self._bus.trouble(),
        )


def _says(report: Report) -> tuple[object, object]:
    return report.alarms, report.functions
