"""The gateway over the in-memory bus: credit is never lost, whatever comes twice."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from typing import Any

import pytest

from engine.bus.memory import MemoryBus
from engine.clock import Clock
from engine.ids import mint, partition_of
from engine.snapshots.memory import MemorySnapshots
from magicflow.v1.payload_pb2 import Payload
from magicflow.v1.task_pb2 import Task, TaskFrame, TaskId, TaskResult
from magicflow.v1.worker_pb2 import Function, TaskProgress, WorkerHello
from services.dispatcher.gateway import Gateway
from services.dispatcher.lanes import Began, Owner
from services.dispatcher.roster import Roster
from services.dispatcher.sessions import Session
from services.dispatcher.turns import Result

PARTITIONS = 4


class Commits:
    """An owner that accepts everything."""

    def __init__(self) -> None:
        self.results: list[Result] = []

    async def deliver(self, results: list[Result]) -> list[bool]:
        self.results += results
        return [True] * len(results)

    def began(self, notes: list[Began]) -> bool:
        return True


class Bench:
    def __init__(self) -> None:
        self.bus = MemoryBus()
        self.snapshots = MemorySnapshots()
        self.owner: Owner | None = Commits()
        roster = Roster(self.snapshots, "d")
        self.roster = roster
        self.gateway = Gateway(
            self.bus, Clock(), PARTITIONS, lambda partition: self.owner, self.recheck, roster
        )

    async def recheck(self, partition: int, tasks: list[Task]) -> list[bool]:
        return [True] * len(tasks)

    async def worker(self, slots: int) -> Session:
        hello = WorkerHello(functions=[Function(name="a/f")], slots=slots)
        return await self.gateway.join("a", hello, foreign=False)

    async def dispatch(self, task: Task) -> None:
        frame = TaskFrame(
            partition=partition_of(task.id.trace_id, PARTITIONS),
            epoch=1,
            function="a/f",
            tasks=[task],
        )
        data = frame.SerializeToString()
        await (await self.bus.offer_tasks("a", "f", task.priority, data))


def a_task() -> Task:
    identity = TaskId(trace_id=mint(1_000, 1), node="n", attempt=1)
    return Task(id=identity, function="a/f", input=Payload(data=b"1"), priority=5)


def result_of(task: Task) -> TaskResult:
    return TaskResult(id=task.id, output=task.input)


async def until(true: Callable[[], bool]) -> None:
    async with asyncio.timeout(5):
        while not true():
            await asyncio.sleep(0)


@pytest.fixture
async def bench() -> AsyncIterator[Bench]:
    made = Bench()
    await made.roster.open()
    await made.gateway.open()
    yield made
    await made.gateway.close(0.0)
    await made.roster.close()
    await made.snapshots.close()


async def test_a_task_that_comes_again_while_its_result_waits_for_an_owner_takes_no_slot(
    bench: Bench,
) -> None:
    """At a takeover the new owner dispatches what it owes before it has the waiting results."""
    session = await bench.worker(slots=1)
    task, owner = a_task(), bench.owner
    bench.owner = None
    bench.gateway.results(session, [result_of(task)])  # sent again after a reconnect
    await bench.dispatch(task)
    assert session.credit == 1
    bench.owner = owner
    await until(lambda: not bench.bus.space.queues["FLOW_TASK"].items)
    other = a_task()
    await bench.dispatch(other)
    await until(lambda: session.credit == 0)  # the slot is there for other work


async def test_a_task_that_was_never_written_is_withdrawn_when_its_result_is_committed(
    bench: Bench,
) -> None:
    first, second = await bench.worker(slots=1), await bench.worker(slots=1)
    task = a_task()
    await bench.dispatch(task)
    await until(lambda: first.credit + second.credit == 1)
    holder = first if first.credit == 0 else second
    elsewhere = second if holder is first else first
    bench.gateway.results(elsewhere, [result_of(task)])  # of an earlier stream of that worker
    await until(lambda: not bench.bus.space.queues["FLOW_TASK"].items)
    assert holder.credit == 1


async def test_a_lost_worker_leaves_its_tasks_to_others(bench: Bench) -> None:
    first = await bench.worker(slots=1)
    await bench.dispatch(a_task())
    await until(lambda: first.credit == 0)
    second = await bench.worker(slots=1)
    await bench.gateway.leave(first)
    await until(lambda: second.credit == 0)


async def test_a_task_that_is_given_back_and_comes_straight_back_is_not_lost(
    bench: Bench,
) -> None:
    """The gateway may have asked for more before its last worker left: then the bus hands it
    the very frame that it gives back, while it still holds the former copy."""
    first = await bench.worker(slots=2)
    task = a_task()
    await bench.dispatch(task)
    await until(lambda: first.credit == 1)
    await bench.gateway.leave(first)
    second = await bench.worker(slots=1)
    await until(lambda: second.credit == 0)
    assert len(bench.bus.space.queues["FLOW_TASK"].items) == 1


# What the options of a node ask of a gateway.


def task_with(**options: Any) -> Task:
    identity = TaskId(trace_id=mint(1_000, 1), node="n", attempt=1)
    fields = {"priority": 5, **options}
    return Task(id=identity, function="a/f", input=Payload(data=b"1"), **fields)


async def test_waiting_tasks_are_given_out_by_priority(bench: Bench) -> None:
    busy = await bench.worker(slots=1)
    first = task_with()
    await bench.dispatch(first)
    await until(lambda: busy.credit == 0)
    low, normal, high = (task_with(priority=priority) for priority in (1, 5, 9))
    for task in (low, normal, high):
        await bench.dispatch(task)
    done: list[int] = []
    for _ in range(3):
        [held] = [h for h in bench.gateway._holding.tasks.values() if h.session is not None]
        bench.gateway.results(busy, [result_of(held.task)])
        await until(lambda held=held: held.done)  # type: ignore[misc]
        await until(lambda: busy.credit == 0)
        [now] = [h for h in bench.gateway._holding.tasks.values() if h.session is not None]
        done.append(now.task.priority)
    assert done == [9, 5, 1]


async def test_a_task_goes_to_the_worker_that_served_its_trace(bench: Bench) -> None:
    workers = [await bench.worker(slots=4) for _ in range(4)]
    before = task_with()
    await bench.dispatch(before)
    await until(lambda: any(worker.credit == 3 for worker in workers))
    served = next(worker for worker in workers if worker.credit == 3)
    for attempt in range(2, 5):
        again = Task()
        again.CopyFrom(before)
        again.id.attempt, again.affinity = attempt, True
        await bench.dispatch(again)
    await until(lambda: served.credit == 0)
    assert all(worker.credit == 4 for worker in workers if worker is not served)


async def test_a_task_that_is_silent_for_longer_than_its_heartbeat_has_failed(
    bench: Bench,
) -> None:
    session = await bench.worker(slots=2)
    silent, beating = task_with(), task_with()
    for task in (silent, beating):
        task.heartbeat.FromMilliseconds(60_000)
        await bench.dispatch(task)
    await until(lambda: session.credit == 0)
    bench.gateway.began(session, [silent, beating])
    commits = bench.owner
    assert isinstance(commits, Commits)
    for held in bench.gateway._holding.beating.values():
        held.heard -= 61  # as if a minute had passed
    bench.gateway.progress(session, [TaskProgress(id=beating.id)])
    await until(lambda: bool(commits.results))
    [result] = commits.results
    assert (result.trace_id, result.failure and result.failure.code) == (
        silent.id.trace_id,
        "HEARTBEAT_TIMEOUT",
    )


async def test_workers_without_a_name_that_join_at_once_are_not_taken_for_one(
    bench: Bench,
) -> None:
    """An id that two of them had would let each throw out the other, again and again."""
    hello = WorkerHello(functions=[Function(name="a/f")], slots=1)
    joining = (bench.gateway.join("a", hello, foreign=False) for _ in range(50))
    sessions = await asyncio.gather(*joining)
    assert len({session.worker_id for session in sessions}) == 50
    assert not any(session.closed for session in sessions)


async def test_what_was_not_written_to_a_worker_that_drains_goes_to_others(bench: Bench) -> None:
    first = await bench.worker(slots=2)
    await bench.dispatch(a_task())
    await until(lambda: first.credit == 1)
    second = await bench.worker(slots=2)
    bench.gateway.drain(first)
    await until(lambda: second.credit == 1)
    assert first.assigned == {}


async def test_what_was_written_to_a_worker_that_drains_stays_with_it(bench: Bench) -> None:
    first = await bench.worker(slots=2)
    await bench.dispatch(a_task())
    assert await first.next_frame(5) is not None
    bench.gateway.drain(first)
    assert len(first.assigned) == 1
