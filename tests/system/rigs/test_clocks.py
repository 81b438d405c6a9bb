"""Steps of the wall clock by an hour: what runs on elapsed time neither fires early nor gets
lost."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator, Callable, Iterator
from unittest import mock

import pytest

import magicflow
from engine.clock import Clock
from magicflow.v1.trace_pb2 import NodeStatus
from tests.system.rigs.clocks import HOUR, WallClock
from tests.system.rigs.wired import Journal, WiredStack, prepare, until, working
from tests.system.stack import until_offered, until_owned

pytestmark = [pytest.mark.timeout(240)]
WAIT = 4.0  # seconds of every wait in the playbook
SLACK = 3.0  # seconds, on a busy machine
TRACES = 10
WAITS = """
playbook: waits
app: shop
nodes:
  asleep:  {sleep: 4s}
  silent:  {task: silent, timeout: 4s}
  late:    {nop: {}}
  again:   {task: again, retry: {attempts: 2, backoff: 4s}}
  hooked:  {hook: {timeout: 4s}}
  unheard: {nop: {}}
edges:
  - {from: silent, to: late, on: error}
  - {from: hooked, to: unheard, on: error}
"""


class Times:
    """Stands for the module `time`."""

    def __init__(self) -> None:
        self.wall, self.elapsed = 1_700_000_000.0, 50.0

    def time(self) -> float:
        return self.wall

    def monotonic(self) -> float:
        return self.elapsed

    def passes(self, seconds: float, step: float = 0.0) -> None:
        self.elapsed += seconds
        self.wall += seconds + step


def seen(clock: Callable[[Times], Callable[[], int]], step: float) -> list[int]:
    """What the clock says of a second in which the wall clock steps, in milliseconds."""
    times = Times()
    with mock.patch("engine.clock.time", times):
        now = clock(times)
        first = now()
        times.passes(0.5)
        times.passes(0.5, step)
        return [first, now() - first]


@pytest.mark.parametrize("step", [HOUR, -HOUR])
def test_the_clock_of_the_services_goes_on_when_the_wall_clock_steps(step: float) -> None:
    assert seen(lambda _: Clock().now, step) == [1_700_000_000_000, 1_000]


def test_negative_control_a_clock_that_looks_at_the_wall_steps_with_it() -> None:
    wall = lambda times: lambda: int(times.time() * 1_000)  # noqa: E731
    assert seen(wall, HOUR)[1] == 1_000 + HOUR * 1_000


@contextlib.asynccontextmanager
async def waiting(address: str) -> AsyncIterator[None]:
    """A worker that never answers, or only at the second attempt."""
    worker = magicflow.Worker(address, token="", slots=40, worker_id="waits", drain_timeout=0.1)

    @worker.function("shop/silent")
    async def silent(ctx: magicflow.Context) -> None:
        while not ctx.cancelled:
            await asyncio.sleep(0.05)

    @worker.function("shop/again")
    def again(ctx: magicflow.Context) -> int:
        if ctx.attempt == 1:
            raise magicflow.TaskError("BUSY", "later", retryable=True)
        return ctx.attempt

    serving = asyncio.create_task(worker.serve())
    try:
        yield
    finally:
        worker.stop()
        await asyncio.wait_for(serving, 30)


@pytest.fixture(scope="module")
def stepped(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[WiredStack, WallClock]]:
    """All services under one wall clock."""
    directory = tmp_path_factory.mktemp("stack")
    clock = WallClock(directory / "clock")
    with WiredStack(directory) as stack:
        stack.extra = clock.environment()
        stack.serve_together()
        yield stack, clock


@pytest.mark.parametrize("step", [HOUR, -HOUR])
async def test_waits_of_running_services_end_in_time_when_the_wall_clock_steps(
    stepped: tuple[WiredStack, WallClock], step: int
) -> None:
    stack, clock = stepped
    clock.step(0)
    dispatcher = stack.programs["dispatcher"].address
    journal = Journal()
    async with (
        stack.client() as client,
        working(dispatcher, journal, name="works"),
        waiting(dispatcher),
    ):
        await prepare(client)
        await until_offered(client, "shop/silent", "shop/again")
        await client.publish(WAITS, switch=True)
        owners = [(p.partition, p.instance, p.epoch) for p in (await client.cluster()).partitions]
        began = time.monotonic()
        handles = await asyncio.gather(*(client.trigger("shop/waits", {}) for _ in range(TRACES)))
        await until(lambda: time.monotonic() > began + WAIT / 2, "half of the time has passed")
        clock.step(step)
        assert abs(clock.seen("time") - time.time() - step) < 60  # the clock has stepped
        await asyncio.gather(*(handle.outcome(WAIT + SLACK) for handle in handles))
        took = time.monotonic() - began
        print(f"step of {step / HOUR:+g} h: waits of {WAIT:g} s ended after {took:.2f} s")
        assert took >= WAIT
        traces = [await handle.get() for handle in handles]
        for trace in traces:
            for node in trace.nodes:
                lasted = (node.ended_at.ToMilliseconds() - node.started_at.ToMilliseconds()) / 1e3
                if node.path in ("asleep", "silent", "hooked", "again"):
                    assert WAIT - 0.01 <= lasted <= WAIT + SLACK, (node.path, lasted)
        after = [(p.partition, p.instance, p.epoch) for p in (await client.cluster()).partitions]
        assert after == owners  # no lease was lost over it


NAPS = """
playbook: naps
app: shop
nodes:
  short: {sleep: 2s}
  long:  {sleep: 10m}
"""


@pytest.mark.parametrize("step", [HOUR, -HOUR])
async def test_sleeps_end_in_time_when_the_next_owner_begins_under_a_stepped_clock(
    stepped: tuple[WiredStack, WallClock], step: int
) -> None:
    stack, clock = stepped
    clock.step(0)
    dispatcher = stack.programs["dispatcher"]
    dispatcher.kill()
    await asyncio.to_thread(dispatcher.start)
    async with stack.client() as client, working(dispatcher.address, Journal(), name="works"):
        await prepare(client)
        await client.publish(NAPS, switch=True)
        handle = await client.trigger("shop/naps", {})
        await until_asleep(handle)
        clock.step(step)
        dispatcher.kill()
        await asyncio.to_thread(dispatcher.start)
        await until_owned(client)
        async with asyncio.timeout(2 + SLACK):
            while (await statuses(handle))["short"] != "SUCCEEDED":
                await asyncio.sleep(0.1)
        assert (await statuses(handle))["long"] == "SLEEPING"


async def statuses(handle: magicflow.TraceHandle) -> dict[str, str]:
    trace = await handle.get()
    return {node.path: NodeStatus.Name(node.status)[12:] for node in trace.nodes}


async def until_asleep(handle: magicflow.TraceHandle) -> None:
    async with asyncio.timeout(10):
        while (await statuses(handle))["long"] != "SLEEPING":
            await asyncio.sleep(0.02)
