"""Loss in one direction, or both, between any two that talk: nothing acknowledged is lost, every
trace ends once the wire has healed, and what a deposed owner says counts for nothing."""

from __future__ import annotations

import time
from collections.abc import Iterator

import pytest

import magicflow
from tests.system.rigs.apart import Wires, cut_off, wired
from tests.system.rigs.proxy import Proxy
from tests.system.rigs.wired import FUNCTION, Journal, prepare, results, until, working
from tests.system.rigs.zombies import DEAF_AFTER, MUTE_AFTER, undead
from tests.system.stack import until_offered

pytestmark = [pytest.mark.timeout(240)]
SLACK = 4.0  # seconds for the way to another worker, on a busy machine
OTHERS = """
playbook: {name}
app: shop
nodes: {{only: {{task: {name}, input: $$$}}}}
output: $.only.n
"""
SHORT = ("nats-there", "nats-back", "etcd-back", "both")  # the others by `rigs apart`


@pytest.fixture(scope="module")
def wires(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Wires]:
    with wired(tmp_path_factory.mktemp("stack")) as wires:
        yield wires


async def offered(client: magicflow.Client, name: str) -> None:
    function = f"shop/{name}"
    await until_offered(client, function)
    await client.publish(OTHERS.format(name=name), switch=True)


async def test_tasks_of_a_worker_that_hears_or_says_nothing_go_to_another_one(
    wires: Wires,
) -> None:
    """The zombies: of one, heartbeats arrive and deliveries do not; of the other, deliveries
    arrive and nothing comes back. Four traces each are sent to them when nobody else is there."""
    journal = Journal()
    dispatcher = wires.field.stack.programs["dispatcher"].address
    port = wires.field.stack.programs["dispatcher"].port
    with Proxy(port) as deaf_wire, Proxy(port) as mute_wire:
        async with (
            wires.field.stack.client() as client,
            working(dispatcher, journal) as _,
            undead(deaf_wire.address, "deaf", "shop/deaf"),
            undead(mute_wire.address, "mute", "shop/mute") as mute,
        ):
            await prepare(client)
            await offered(client, "deaf")
            await offered(client, "mute")
            deaf_wire.back.hold()
            mute_wire.there.hold()
            began = time.monotonic()
            deaf_ones = [await client.trigger("shop/deaf", {"n": n}) for n in range(4)]
            mute_ones = [await client.trigger("shop/mute", {"n": n}) for n in range(4)]
            await until(lambda: mute.tasks == 4, "the mute one has its tasks")
            passed = deaf_wire.there.passed
            async with (
                working(dispatcher, journal, name="next-deaf", function="shop/deaf"),
                working(dispatcher, journal, name="next-mute", function="shop/mute"),
            ):
                assert await results(mute_ones, MUTE_AFTER + SLACK) == list(range(4))
                mute_for = time.monotonic() - began
                assert await results(deaf_ones, DEAF_AFTER + SLACK) == list(range(4))
                deaf_for = time.monotonic() - began
            print(f"tasks of the mute one ended after {mute_for:.1f} s, deaf {deaf_for:.1f} s")
            assert deaf_wire.there.passed > passed  # its heart went on beating
            # Neither was taken for gone at once: that would be another test.
            assert mute_for > MUTE_AFTER / 2
            assert deaf_for > MUTE_AFTER / 2
            assert set(journal.by.values()) == {"next-deaf", "next-mute"}
            assert set(journal.runs.values()) == {1}


@pytest.mark.parametrize("way", SHORT)
async def test_every_trace_ends_when_a_dispatcher_was_cut_off_for_longer_than_its_lease(
    wires: Wires, way: str
) -> None:
    print(await cut_off(wires, way))


async def test_negative_control_a_wire_that_never_heals_is_noticed(wires: Wires) -> None:
    """What the tests above wait for does not come by itself."""
    journal = Journal()
    with Proxy(wires.field.stack.programs["dispatcher"].port) as wire:
        async with (
            wires.field.stack.client() as client,
            working(wire.address, journal, name="alone"),
        ):
            await prepare(client, FUNCTION)
            wire.part()
            handle = await client.trigger("shop/chain", {"n": 1})
            with pytest.raises(magicflow.DeadlineExceeded):
                await handle.result(2.0)
            wire.heal()
            assert await handle.result(30) == 1
