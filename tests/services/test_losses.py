"""What a gateway makes of workers that go away, come back, or do not hear what they are sent."""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest

from engine.errors import Invalid
from magicflow.v1.task_pb2 import Task, TaskId
from magicflow.v1.worker_pb2 import Function, WorkerHello
from services.dispatcher.sessions import SILENCE, Session
from tests.services.test_gateway import Bench, Commits, a_task, result_of, until


@pytest.fixture
async def bench() -> AsyncIterator[Bench]:
    made = Bench()
    await made.roster.open()
    await made.gateway.open()
    yield made
    await made.gateway.close(0.0)
    await made.roster.close()
    await made.snapshots.close()


def owner(bench: Bench) -> Commits:
    assert isinstance(bench.owner, Commits)
    return bench.owner


async def named(bench: Bench, name: str, *resumed: TaskId, app: str = "a") -> Session:
    hello = WorkerHello(
        worker_id=name, functions=[Function(name=f"{app}/f")], slots=1, resumed=resumed
    )
    return await bench.gateway.join(app, hello, foreign=False)


async def at_work(bench: Bench, session: Session) -> Task:
    """A task that has been written to the worker."""
    task = a_task()
    await bench.dispatch(task)
    await until(lambda: session.credit == 0)
    frame = await session.next_frame()
    assert frame is not None
    assert [t.id for t in frame.tasks] == [task.id]
    return task


async def test_a_task_that_was_written_to_a_worker_that_goes_is_a_loss_for_its_owner(
    bench: Bench,
) -> None:
    first, second = await named(bench, "w1"), None
    task = await at_work(bench, first)
    second = await named(bench, "w2")
    await bench.gateway.leave(first)
    await until(lambda: bool(owner(bench).results))
    (lost,) = owner(bench).results
    assert (lost.lost, lost.node, lost.attempt, lost.worker) == (True, "n", 1, "w1")
    # Its frame leaves the bus once the owner has it; the owner dispatches it again.
    await until(lambda: not bench.bus.space.queues["FLOW_TASK"].items)
    assert second.credit == 1
    await bench.dispatch(task)
    await until(lambda: second.credit == 0)


async def test_a_task_that_was_never_written_goes_on_without_a_loss(bench: Bench) -> None:
    first = await named(bench, "w1")
    await bench.dispatch(a_task())
    await until(lambda: first.credit == 0)
    second = await named(bench, "w2")
    await bench.gateway.leave(first)
    await until(lambda: second.credit == 0)
    assert owner(bench).results == []


async def test_a_dispatcher_that_closes_loses_nothing(bench: Bench) -> None:
    session = await named(bench, "w1")
    await at_work(bench, session)
    await bench.gateway.close(0.0)
    assert owner(bench).results == []
    assert len(bench.bus.space.queues["FLOW_TASK"].items) == 1


async def test_a_copy_that_comes_before_the_loss_is_committed_is_given_out(bench: Bench) -> None:
    """Another instance owns the partition: its dispatch may be faster than its answer."""
    first = await named(bench, "w1")
    task = await at_work(bench, first)
    commits, bench.owner = bench.owner, None
    second = await named(bench, "w2")
    await bench.gateway.leave(first)
    await bench.dispatch(task)
    await until(lambda: second.credit == 0)
    bench.owner = commits
    await until(lambda: len(bench.bus.space.queues["FLOW_TASK"].items) == 1)
    bench.gateway.results(second, [result_of(task)])
    await until(lambda: not bench.bus.space.queues["FLOW_TASK"].items)


async def test_a_worker_that_connects_again_keeps_what_it_has_and_its_slot(bench: Bench) -> None:
    first = await named(bench, "w1")
    task = await at_work(bench, first)
    again = await named(bench, "w1", task.id)  # its stream broke, and only the worker knows
    assert first.closed
    assert (again.credit, owner(bench).results) == (0, [])
    bench.gateway.results(again, [result_of(task)])
    await until(lambda: not bench.bus.space.queues["FLOW_TASK"].items)
    assert again.credit == 1


async def test_a_worker_that_begins_anew_under_its_name_has_lost_what_it_had(bench: Bench) -> None:
    first = await named(bench, "w1")
    await at_work(bench, first)
    await named(bench, "w1")
    await until(lambda: bool(owner(bench).results))
    assert owner(bench).results[0].lost


async def test_a_worker_cannot_take_the_name_of_another_apps_worker(bench: Bench) -> None:
    session = await named(bench, "w1")
    with pytest.raises(Invalid, match="another app"):
        await named(bench, "w1", app="b")
    assert not session.closed


async def test_a_worker_cannot_claim_a_task_of_a_function_that_it_does_not_offer(
    bench: Bench,
) -> None:
    first = await named(bench, "w1")
    task = await at_work(bench, first)
    await named(bench, "thief", task.id, app="b")
    bench.gateway.results(first, [result_of(task)])
    await until(lambda: not bench.bus.space.queues["FLOW_TASK"].items)
    assert [r.worker for r in owner(bench).results] == ["w1"]


async def test_a_worker_whose_heart_beats_and_that_hears_nothing_is_gone(bench: Bench) -> None:
    session = await named(bench, "w1")
    task = await at_work(bench, session)
    key = next(iter(session.assigned))
    session.assigned[key] -= 2 * SILENCE  # as if it had been written that long ago
    bench.gateway.compare(session, [])
    assert not session.closed  # its answer may be on its way
    bench.gateway.compare(session, [])
    assert session.closed
    await until(lambda: bool(owner(bench).results))
    assert owner(bench).results[0].node == task.id.node


async def test_a_worker_that_says_what_it_has_is_not_taken_for_deaf(bench: Bench) -> None:
    session = await named(bench, "w1")
    task = await at_work(bench, session)
    key = next(iter(session.assigned))
    session.assigned[key] -= 2 * SILENCE
    for _ in range(5):
        bench.gateway.compare(session, [task.id])
    assert not session.closed
