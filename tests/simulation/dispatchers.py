"""Simulated dispatcher processes: real processors, a real gateway, and calls between them."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable
from typing import Any, cast

from engine.clock import Clock
from engine.core.graph import Graph
from engine.core.steering import Act
from engine.errors import MagicflowError, Unavailable
from engine.rpc.channels import CALL_TIMEOUT, Owners
from engine.snapshots.library import Library
from magicflow.v1 import partition_service_pb2 as inner
from magicflow.v1.task_pb2 import (
    RESULT_VERDICT_ACCEPTED,
    RESULT_VERDICT_SUPERSEDED,
    ResultReceipt,
)
from magicflow.v1.worker_pb2 import Worker
from services.dispatcher.gateway import Gateway, result_of
from services.dispatcher.letters import Letters
from services.dispatcher.owners import OwnerFinder
from services.dispatcher.ownership import Ownership
from services.dispatcher.processor import Deposed, Processor
from services.dispatcher.recovery import Recovery
from services.dispatcher.roster import Roster
from services.dispatcher.servicer import DispatchServicer
from tests.simulation.bus import Connection, Faults, Server
from tests.simulation.loop import Process, VirtualLoop
from tests.simulation.playbooks import graph

STANDING_BY = 3.0  # seconds

Route = Callable[[int], "Dispatcher | None"]
Vacated = Callable[[int, int], None]


class SkewedClock(Clock):
    """A machine's clock is never quite right."""

    def __init__(self, skew: int) -> None:
        super().__init__()
        self._skew = skew

    def now(self) -> int:
        return super().now() + self._skew


class Shelf(Library):
    """A library that always has every snapshot."""

    def __init__(self) -> None:
        """Watches nothing."""

    async def graph(self, playbook_id: int, snapshot_id: int) -> Graph:
        await asyncio.sleep(0)
        return graph(snapshot_id)

    def playbook_id(self, full_name: str) -> int:
        return 1

    def active(self, full_name: str) -> tuple[int, int]:
        return 1, int(full_name.removeprefix("a/p"))

    def granted(self, app: str, target: str) -> bool:
        return True


class NoRoster:
    """Nobody looks at lists of workers here."""

    def joined(self, worker: Worker) -> None: ...

    def left(self, worker_id: str) -> None: ...


class Dispatcher:
    """One process from its start until it is killed or has ended. `vacated` is called when it
    has given up a partition (partition, epoch)."""

    def __init__(
        self,
        name: str,
        loop: VirtualLoop,
        server: Server,
        partitions: int,
        route: Route,
        vacated: Vacated,
        skew: int,
    ) -> None:
        self.name = name
        self.process = Process(loop, name)
        self.bus = Connection(server, self.process)
        self.processors: dict[int, Processor] = {}
        self.owning: dict[int, asyncio.Task[None]] = {}  # by epoch
        self.made: dict[int, Processor] = {}
        self.warm: dict[int, tuple[Recovery, asyncio.Task[None]]] = {}
        self.running: set[int] = set()  # partitions that it has not quite given up yet
        self.closing = False
        self.gone = False
        self._vacated = vacated
        self._clock = SkewedClock(skew)
        mesh = cast(Owners, Mesh(self, loop, server.faults, route))
        finder = OwnerFinder(cast(Ownership, self), mesh)
        roster = cast(Roster, NoRoster())
        self.gateway = Gateway(self.bus, self._clock, partitions, finder, finder.recheck, roster)
        self.servicer = DispatchServicer(self.gateway, Letters(self.bus.dead), name)
        self._opening = self.process.spawn(self._open())

    @property
    def alive(self) -> bool:
        """Takes workers and partitions."""
        return not (self.process.dead or self.gone or self.closing)

    def takes(self, partition: int) -> bool:
        """Whether it would claim the partition now, as `Ownership._settle` decides it."""
        return self.alive and not self.process.stopped and partition not in self.running

    async def _open(self) -> None:
        while True:
            try:
                return await self.gateway.open()
            except Unavailable:
                await asyncio.sleep(0.2)

    # Partitions, as `services.dispatcher.ownership` runs them.

    def claim(self, partition: int, epoch: int) -> None:
        self.running.add(partition)
        self.owning[epoch] = self.process.spawn(self._own(partition, epoch))

    def stand_by(self, partition: int) -> None:
        """Reads in advance, as `Standby` does."""
        if partition not in self.warm and partition not in self.running:
            recovery = Recovery(partition, self.bus, Shelf())
            self.warm[partition] = recovery, self.process.spawn(self._follow(partition, recovery))

    async def _follow(self, partition: int, recovery: Recovery) -> None:
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(STANDING_BY):
                while True:
                    with contextlib.suppress(Unavailable):
                        await recovery.follow()
                    await asyncio.sleep(0.25)
        self.warm.pop(partition, None)

    async def _read_before(self, partition: int) -> Recovery | None:
        if partition not in self.warm:
            return None
        recovery, following = self.warm.pop(partition)
        following.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await following
        return recovery

    async def _own(self, partition: int, epoch: int) -> None:
        recovery = await self._read_before(partition)
        processor = Processor(partition, epoch, self.bus, Shelf(), self._clock, recovery=recovery)
        self.made[epoch] = processor
        try:
            await processor.recover()
            self.processors[partition] = processor
            if self.closing:
                processor.stop()
            await processor.run()
        except (Deposed, Unavailable):
            pass
        finally:
            if self.processors.get(partition) is processor:
                del self.processors[partition]
            self.owning.pop(epoch, None)
            self.made.pop(epoch, None)
            self.running.discard(partition)
            self._vacated(partition, epoch)

    def lose_lease(self) -> None:
        """It could not renew in time: everything is given up, as `Ownership._rejoin` does."""
        for epoch in list(self.owning):
            self.give_up(epoch)

    def give_up(self, epoch: int) -> None:
        """As `Ownership._abandon_all`."""
        task = self.owning.get(epoch)
        if task is not None:
            if epoch in self.made:
                self.made[epoch].abandon()
            task.cancel()

    def drain(self, grace: float) -> None:
        """A clean end."""
        self.closing = True
        self.process.spawn(self._close(grace))

    async def _close(self, grace: float) -> None:
        await self.gateway.close(grace)
        for processor in list(self.processors.values()):
            processor.stop()
        if self.owning:
            await asyncio.wait(list(self.owning.values()), timeout=15.0)
        self.lose_lease()
        await asyncio.sleep(1.0)
        self.gone = True

    def operate(self, trace_id: bytes, partition: int, act: Act, done: Callable[[], None]) -> None:
        """`done` is called when the act was acknowledged."""
        self.process.spawn(self._operate(trace_id, partition, act, done))

    async def _operate(
        self, trace_id: bytes, partition: int, act: Act, done: Callable[[], None]
    ) -> None:
        processor = self.processors.get(partition)
        if processor is not None:
            with contextlib.suppress(MagicflowError):
                await processor.operate(trace_id, act)
                done()

    # What other instances ask, as `services.dispatcher.servicer.PartitionServicer` answers.

    async def answer(self, request: Any) -> Any:
        processor = self.processors.get(request.partition)
        if processor is None:
            raise Unavailable("not owned here", reason="PARTITION_UNOWNED")
        if isinstance(request, inner.OwedRequest):
            tasks = [(task.trace_id, task.node, task.attempt) for task in request.tasks]
            return inner.OwedResponse(owed=await processor.owed(tasks))
        pairs = zip(request.results, request.workers, strict=True)
        results = [result_of(message, worker) for message, worker in pairs]
        accepted = await processor.deliver(results)
        verdicts = (RESULT_VERDICT_SUPERSEDED, RESULT_VERDICT_ACCEPTED)
        return inner.DeliverResponse(
            receipts=[
                ResultReceipt(id=message.id, verdict=verdicts[taken])
                for message, taken in zip(request.results, accepted, strict=True)
            ]
        )


class Mesh:
    """Calls from one dispatcher to the others, over a network that may lose both ways."""

    def __init__(self, caller: Dispatcher, loop: VirtualLoop, faults: Faults, route: Route) -> None:
        self._caller = caller
        self._loop = loop
        self._faults = faults
        self._route = route

    def of_partition(self, partition: int) -> Mesh._Stub:
        target = self._route(partition)
        if target is None:
            raise Unavailable("nobody owns the partition", reason="PARTITION_UNOWNED")
        return Mesh._Stub(self, target)

    def credentials(self) -> None:
        return None

    class _Stub:
        def __init__(self, mesh: Mesh, target: Dispatcher) -> None:
            self._mesh = mesh
            self._target = target

        async def Deliver(self, request: Any, timeout: float, metadata: Any) -> Any:
            return await self._mesh.call(self._target, request)

        async def Owed(self, request: Any, timeout: float, metadata: Any) -> Any:
            return await self._mesh.call(self._target, request)

    def call(self, target: Dispatcher, request: Any) -> asyncio.Future[Any]:
        future: asyncio.Future[Any] = self._loop.create_future()
        alarm = self._loop.call_later(CALL_TIMEOUT, _fail, future)
        future.add_done_callback(lambda _: alarm.cancel())
        self._travel(self._faults.lose_request, self._arrived, target, request, future)
        return future

    def _travel(self, loss: float, call: Callable[..., None], *arguments: Any) -> None:
        if loss and self._loop.random.random() < loss:
            return
        delay = self._loop.random.random() * self._faults.quick
        self._loop.outside(delay, call, *arguments)

    def _arrived(self, target: Dispatcher, request: Any, future: asyncio.Future[Any]) -> None:
        if target.process.dead or target.gone:
            self._travel(0.0, _fail, future)
        else:
            target.process.spawn(self._serve(target, request, future))

    async def _serve(self, target: Dispatcher, request: Any, future: asyncio.Future[Any]) -> None:
        try:
            answer = await target.answer(request)
        except Unavailable:
            self._travel_back(_fail, future)
        else:
            self._travel_back(_succeed, future, answer)

    def _travel_back(self, call: Callable[..., None], *arguments: Any) -> None:
        loss = self._faults.lose_answer
        self._travel(loss, self._caller.process.call, call, *arguments)


def _fail(future: asyncio.Future[Any]) -> None:
    if not future.done():
        future.set_exception(Unavailable("the other instance does not answer"))


def _succeed(future: asyncio.Future[Any], answer: Any) -> None:
    if not future.done():
        future.set_result(answer)
