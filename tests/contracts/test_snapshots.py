"""What every adapter of the snapshots port promises; each test runs on all of them."""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncGenerator, AsyncIterator, Iterator
from contextlib import AbstractAsyncContextManager, aclosing
from pathlib import Path
from typing import Any, cast

os.environ.setdefault("GRPC_VERBOSITY", "ERROR")  # before the first import of grpc

import pytest

from engine.errors import Invalid, Unavailable
from engine.snapshots.embedded import EmbeddedSnapshots
from engine.snapshots.etcd.adapter import EtcdSnapshots
from engine.snapshots.memory import MemorySnapshots, MemorySpace
from engine.snapshots.port import (
    KEY_LIMIT,
    VALUE_LIMIT,
    Change,
    Compacted,
    Delete,
    Entry,
    Lease,
    LeaseLost,
    Put,
    Require,
    Snapshots,
)
from tests.servers import Etcd

PATIENCE = 15.0  # seconds until a test that waits has failed


class Bench:
    """One adapter with a space of its own, and what a test needs beyond the port."""

    def __init__(self) -> None:
        self._clients: list[Snapshots] = []

    def _open(self) -> Snapshots:
        raise NotImplementedError

    def client(self) -> Snapshots:
        """Another client of the same space."""
        client = self._open()
        self._clients.append(client)
        return client

    async def compact(self, client: Any) -> None:
        await client.compact()

    def abandon(self, lease: Any) -> None:
        """As if the lease's holder had died."""
        lease.pause_renewal()

    async def close(self) -> None:
        for client in self._clients:
            await client.close()


class MemoryBench(Bench):
    def __init__(self) -> None:
        super().__init__()
        self.space = MemorySpace()

    def _open(self) -> Snapshots:
        return MemorySnapshots(self.space)

    async def close(self) -> None:
        await super().close()
        await self.space.close()


class EmbeddedBench(Bench):
    def __init__(self, path: Path) -> None:
        super().__init__()
        self.path = path

    def _open(self) -> Snapshots:
        # One process, one opener: its parts share the one client.
        return self._clients[0] if self._clients else EmbeddedSnapshots(self.path)


class EtcdBench(Bench):
    def __init__(self, etcd: Etcd) -> None:
        super().__init__()
        self.etcd = etcd

    def _open(self) -> Snapshots:
        return EtcdSnapshots(self.etcd.endpoint)

    async def clear(self) -> None:
        client = self.client()
        entries, _ = await client.list("")
        for entry in entries:
            await client.delete(entry.key)


@pytest.fixture(scope="module")
def etcd(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Etcd]:
    with Etcd(tmp_path_factory.mktemp("etcd")) as server:
        yield server


@pytest.fixture(params=["memory", "embedded", "etcd"])
async def bench(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[Bench]:
    bench: Bench
    match request.param:
        case "memory":
            bench = MemoryBench()
        case "embedded":
            bench = EmbeddedBench(tmp_path / "space.db")
        case _:
            bench = EtcdBench(request.getfixturevalue("etcd"))
            await bench.clear()
    yield bench
    await bench.close()


@pytest.fixture
def space(bench: Bench) -> Snapshots:
    return bench.client()


def patience() -> AbstractAsyncContextManager[Any]:
    return asyncio.timeout(PATIENCE)


async def take(changes: AsyncIterator[Change], count: int) -> list[Change]:
    async with patience():
        return [await anext(changes) for _ in range(count)]


def watching(
    space: Snapshots, prefix: str, since: int
) -> AbstractAsyncContextManager[AsyncIterator[Change]]:
    # The port promises `aclose()` in words; only its type is less.
    return aclosing(cast(AsyncGenerator[Change, None], space.watch(prefix, since)))


async def now(space: Snapshots) -> int:
    _, revision = await space.list("")
    return revision


# -- reading and writing


async def test_an_absent_key_is_none(space: Snapshots) -> None:
    assert await space.get("absent") is None


async def test_a_key_reads_as_it_was_written(space: Snapshots) -> None:
    revision = await space.put("a", b"\x00\xffbytes")
    assert await space.get("a") == Entry("a", b"\x00\xffbytes", revision, revision)


async def test_an_empty_value_is_not_an_absent_key(space: Snapshots) -> None:
    await space.put("a", b"")
    entry = await space.get("a")
    assert entry is not None and entry.value == b""


async def test_a_key_may_hold_any_text(space: Snapshots) -> None:
    key = "playbooks/größe/数/\U0001f5dd/ with space/\x7f"
    await space.put(key, b"1")
    entries, _ = await space.list("playbooks/größe/")
    assert [entry.key for entry in entries] == [key]


async def test_a_space_starts_at_a_positive_revision(space: Snapshots) -> None:
    assert await now(space) >= 1


async def test_revisions_grow_by_every_change(space: Snapshots) -> None:
    revisions = [await space.put("a", b"1"), await space.put("b", b"1"), await space.put("a", b"1")]
    await space.delete("b")
    revisions.append(await now(space))
    assert revisions == sorted(set(revisions))


async def test_a_key_keeps_its_creation_while_it_lives_and_not_longer(space: Snapshots) -> None:
    first = await space.put("a", b"1")
    second = await space.put("a", b"2")
    assert await space.get("a") == Entry("a", b"2", first, second)
    await space.delete("a")
    third = await space.put("a", b"3")
    assert await space.get("a") == Entry("a", b"3", third, third)
    assert third > second


async def test_delete_says_whether_there_was_a_key(space: Snapshots) -> None:
    await space.put("a", b"1")
    assert await space.delete("a") is True
    assert await space.delete("a") is False
    assert await space.get("a") is None


async def test_deleting_nothing_is_no_change(space: Snapshots) -> None:
    before = await now(space)
    await space.delete("absent")
    assert await now(space) == before


async def test_a_list_is_in_order_of_keys_and_stays_under_its_prefix(space: Snapshots) -> None:
    for key in ("p/b", "p/é", "p/a", "p", "q", "p0", "o/z"):
        await space.put(key, b"1")
    entries, revision = await space.list("p/")
    assert [entry.key for entry in entries] == ["p/a", "p/b", "p/é"]
    everything, _ = await space.list("")
    assert [entry.key for entry in everything] == ["o/z", "p", "p/a", "p/b", "p/é", "p0", "q"]
    assert revision == max(entry.modified for entry in everything)


async def test_a_list_holds_entries_of_many_megabytes(space: Snapshots) -> None:
    value = bytes(VALUE_LIMIT)
    for number in range(6):
        await space.put(f"big/{number}", value)
    entries, _ = await space.list("big/")
    assert [len(entry.value) for entry in entries] == [VALUE_LIMIT] * 6


async def test_a_second_client_reads_what_the_first_was_told_is_written(bench: Bench) -> None:
    one, other = bench.client(), bench.client()
    for number in range(20):
        revision = await one.put("a", str(number).encode())
        entry = await other.get("a")
        assert entry is not None and entry.modified == revision


# -- transactions


async def test_a_commit_changes_all_its_keys_at_one_revision(space: Snapshots) -> None:
    await space.put("gone", b"1")
    before = await now(space)
    revision = await space.commit([], [Put("a", b"1"), Delete("gone"), Put("b", b"2")])
    assert revision == before + 1 == await now(space)
    entries, _ = await space.list("")
    assert entries == [
        Entry("a", b"1", revision, revision),
        Entry("b", b"2", revision, revision),
    ]


async def test_a_commit_whose_requirement_fails_changes_nothing(space: Snapshots) -> None:
    held = await space.put("a", b"1")
    before = await now(space)
    assert await space.commit([Require("a", held + 1)], [Put("b", b"1")]) is None
    assert await space.commit([Require("a", 0)], [Put("b", b"1")]) is None
    assert await space.commit([Require("absent", held)], [Put("b", b"1")]) is None
    assert await space.commit([Require("a", held), Require("absent", 1)], [Delete("a")]) is None
    assert await now(space) == before
    assert await space.get("b") is None


async def test_a_commit_may_require_absence_and_presence_together(space: Snapshots) -> None:
    held = await space.put("a", b"1")
    revision = await space.commit(
        [Require("a", held), Require("b", 0)], [Put("a", b"2"), Put("b", b"2")]
    )
    assert revision is not None
    assert await space.get("a") == Entry("a", b"2", held, revision)


async def test_a_commit_that_changes_nothing_returns_the_present_revision(space: Snapshots) -> None:
    held = await space.put("a", b"1")
    assert await space.commit([Require("a", held)], []) == held
    assert await space.commit([], [Delete("absent")]) == held
    assert await now(space) == held


async def test_of_many_that_compare_and_swap_at_once_exactly_one_wins(bench: Bench) -> None:
    clients = [bench.client() for _ in range(4)]
    for _ in range(5):
        entry = await clients[0].get("seat")
        required = [Require("seat", entry.modified if entry else 0)]
        outcomes = await asyncio.gather(
            *(
                client.commit(required, [Put("seat", f"{number}.{attempt}".encode())])
                for number, client in enumerate(clients)
                for attempt in range(5)
            )
        )
        won = [revision for revision in outcomes if revision is not None]
        assert len(won) == 1
        entry = await clients[-1].get("seat")
        assert entry is not None and entry.modified == won[0]


async def test_a_hundred_operations_are_one_commit(space: Snapshots) -> None:
    required = [Require(f"k{number:03}", 0) for number in range(100)]
    assert await space.commit(required, [Put(r.key, b"1") for r in required]) is not None
    entries, _ = await space.list("k")
    assert len(entries) == 100 and len({entry.modified for entry in entries}) == 1


# -- limits


@pytest.mark.parametrize(
    ("key", "value"),
    [
        pytest.param("", b"", id="an empty key"),
        pytest.param("k" * (KEY_LIMIT + 1), b"", id="a key that is too long"),
        pytest.param("k\ud800", b"", id="a key that is no text"),
        pytest.param("k", bytes(VALUE_LIMIT + 1), id="a value that is too large"),
    ],
)
async def test_what_is_beyond_the_limits_is_invalid(
    space: Snapshots, key: str, value: bytes
) -> None:
    before = await now(space)
    with pytest.raises(Invalid):
        await space.put(key, value)
    with pytest.raises(Invalid):
        await space.commit([], [Put("other", b""), Put(key, value)])
    assert await now(space) == before


async def test_the_largest_key_and_value_are_kept(space: Snapshots) -> None:
    key, value = "ü" * KEY_LIMIT, bytes(range(256)) * (VALUE_LIMIT // 256)
    await space.put(key, value)
    entry = await space.get(key)
    assert entry is not None and entry.value == value


async def test_the_largest_commit_is_done_and_a_larger_one_invalid(space: Snapshots) -> None:
    # 100 keys of 1 kB and, with the values, just what a commit may carry.
    puts = [Put(f"{number:03}".ljust(1000, "k"), bytes(14_000)) for number in range(100)]
    required = [Require("r", 0)]
    assert await space.commit([], puts) is not None
    with pytest.raises(Invalid):
        await space.commit(required, puts)
    with pytest.raises(Invalid):
        await space.commit([], [*puts[:99], Put("a", b""), Put("b", b"")])
    with pytest.raises(Invalid):
        await space.commit([], [Put("a", b"1"), Delete("a")])


@pytest.mark.parametrize("ttl", [0, -1, 0.5, 1.5])
async def test_a_lease_lives_a_whole_number_of_seconds(space: Snapshots, ttl: float) -> None:
    with pytest.raises(Invalid):
        await space.grant(ttl)


# -- watches


async def test_a_watch_delivers_what_comes_after_a_list(space: Snapshots) -> None:
    await space.put("p/before", b"0")
    _, since = await space.list("p/")
    async with watching(space, "p/", since) as changes:
        first = await space.put("p/a", b"1")
        await space.put("q", b"-")
        second = await space.put("p/a", b"2")
        await space.delete("p/before")
        assert await take(changes, 3) == [
            Change("p/a", b"1", first, first),
            Change("p/a", b"2", second, first),
            Change("p/before", None, second + 1),
        ]


async def test_a_watch_wakes_up_for_a_change_that_comes_later(space: Snapshots) -> None:
    async with watching(space, "", await now(space)) as changes:
        coming = asyncio.create_task(take(changes, 1))
        await asyncio.wait([coming], timeout=0.1)  # let it fall asleep; it must not be done
        assert not coming.done()
        revision = await space.put("a", b"1")
        assert await coming == [Change("a", b"1", revision, revision)]


async def test_a_watch_from_the_past_delivers_history_first(space: Snapshots) -> None:
    since = await now(space)
    written = [await space.put("a", str(number).encode()) for number in range(5)]
    async with watching(space, "a", since + 2) as changes:
        written.append(await space.put("a", b"5"))
        assert [change.revision for change in await take(changes, 4)] == written[2:]


async def test_a_watch_for_the_future_skips_what_is_before(space: Snapshots) -> None:
    since = await now(space)
    async with watching(space, "a", since + 2) as changes:
        written = [await space.put("a", b"1") for _ in range(4)]
        assert [change.revision for change in await take(changes, 2)] == written[2:]


async def test_a_watch_delivers_a_commit_in_the_order_of_its_operations(space: Snapshots) -> None:
    await space.put("b", b"0")
    since = await now(space)
    revision = await space.commit([], [Put("c", b"1"), Delete("b"), Put("a", b"2")])
    assert revision is not None
    async with watching(space, "", since) as changes:
        assert await take(changes, 3) == [
            Change("c", b"1", revision, revision),
            Change("b", None, revision),
            Change("a", b"2", revision, revision),
        ]


async def test_a_watch_delivers_many_megabytes_of_history_complete(space: Snapshots) -> None:
    since = await now(space)
    for number in range(5):
        await space.commit(
            [], [Put(f"big/{number}/{part}", bytes([part]) * 700_000) for part in (1, 2)]
        )
    async with watching(space, "big/", since) as changes:
        told = await take(changes, 10)
    assert [change.key for change in told] == [
        f"big/{n}/{part}" for n in range(5) for part in (1, 2)
    ]
    assert all(change.value == bytes([int(change.key[-1])]) * 700_000 for change in told)


async def test_two_watches_are_told_the_same(bench: Bench) -> None:
    one, other = bench.client(), bench.client()
    since = await now(one)
    async with watching(one, "", since) as these, watching(other, "", since) as those:
        told = asyncio.gather(take(these, 30), take(those, 30))
        await asyncio.gather(*(one.put(f"k{number}", b"1") for number in range(30)))
        first, second = await told
    assert first == second
    assert [c.revision for c in first] == list(range(since + 1, since + 31))


async def test_a_watch_from_before_the_compaction_says_so(bench: Bench, space: Snapshots) -> None:
    since = await now(space)
    for number in range(3):
        await space.put("a", str(number).encode())
    await bench.compact(space)
    async with watching(space, "a", since) as changes:
        with pytest.raises(Compacted):
            await take(changes, 1)


async def test_after_a_compaction_a_new_list_and_watch_miss_nothing(
    bench: Bench, space: Snapshots
) -> None:
    await space.put("a", b"1")
    await bench.compact(space)
    entries, since = await space.list("")
    assert [entry.value for entry in entries] == [b"1"]
    async with watching(space, "", since) as changes:
        revision = await space.put("a", b"2")
        assert await take(changes, 1) == [Change("a", b"2", revision, entries[0].created)]


async def test_a_watch_that_is_cancelled_leaves_the_space_usable(space: Snapshots) -> None:
    changes = space.watch("", await now(space))
    waiting = asyncio.create_task(take(changes, 1))
    await asyncio.wait([waiting], timeout=0.1)
    waiting.cancel()
    with pytest.raises(asyncio.CancelledError):
        await waiting
    await space.put("a", b"1")


# -- leases


async def test_a_leased_key_names_its_lease(space: Snapshots) -> None:
    lease = await space.grant(10)
    assert lease.ttl >= 10 and lease.held()
    revision = await space.put("a", b"1", lease.id)
    assert await space.get("a") == Entry("a", b"1", revision, revision, lease.id)
    await space.put("a", b"2")
    entry = await space.get("a")
    assert entry is not None and entry.lease == 0


async def test_a_revoked_lease_takes_its_keys_with_it_at_one_revision(space: Snapshots) -> None:
    lease = await space.grant(10)
    await space.commit([], [Put("b", b"1", lease.id), Put("a", b"1", lease.id), Put("c", b"1")])
    since = await now(space)
    await lease.revoke()
    async with patience():
        await lease.lost()
    assert not lease.held()
    entries, _ = await space.list("")
    assert [entry.key for entry in entries] == ["c"]
    async with watching(space, "", since) as changes:
        told = await take(changes, 2)
    assert sorted(told, key=lambda change: change.key) == [
        Change("a", None, since + 1),
        Change("b", None, since + 1),
    ]


async def test_a_key_that_left_its_lease_survives_it(space: Snapshots) -> None:
    lease, other = await space.grant(10), await space.grant(10)
    for key in ("bare", "moved"):
        await space.put(key, b"1", lease.id)
    await space.put("bare", b"2")
    await space.put("moved", b"2", other.id)
    await lease.revoke()
    entries, _ = await space.list("")
    assert [entry.key for entry in entries] == ["bare", "moved"]


async def test_revoking_twice_is_safe(space: Snapshots) -> None:
    lease = await space.grant(10)
    await lease.revoke()
    await lease.revoke()


async def test_a_put_on_an_ended_lease_is_refused(space: Snapshots) -> None:
    lease = await space.grant(10)
    await lease.revoke()
    before = await now(space)
    with pytest.raises(LeaseLost):
        await space.put("a", b"1", lease.id)
    with pytest.raises(LeaseLost):
        await space.commit([], [Put("b", b"1"), Put("a", b"1", lease.id)])
    with pytest.raises(LeaseLost):
        await space.put("a", b"1", 12345)
    assert await now(space) == before


async def test_a_failed_requirement_comes_before_an_ended_lease(space: Snapshots) -> None:
    lease = await space.grant(10)
    await lease.revoke()
    assert await space.commit([Require("a", 1)], [Put("a", b"1", lease.id)]) is None


async def test_a_lease_is_renewed_past_its_time_to_live(bench: Bench) -> None:
    space = bench.client()
    kept, abandoned = await space.grant(1), await space.grant(1)
    await space.put("kept", b"1", kept.id)
    await space.put("abandoned", b"1", abandoned.id)
    since = await now(space)
    bench.abandon(abandoned)
    # The abandoned one is the clock: when its key goes, the other's first life is over, too.
    async with watching(space, "", since) as changes:
        assert [change.key for change in await take(changes, 1)] == ["abandoned"]
    assert kept.held()
    assert await space.get("kept") is not None


async def test_a_lease_that_is_not_renewed_is_lost_before_its_keys_vanish(bench: Bench) -> None:
    space = bench.client()
    lease: Lease = await space.grant(1)
    await space.put("a", b"1", lease.id)
    since = await now(space)
    bench.abandon(lease)
    assert lease.held()
    async with patience():
        await lease.lost()
    assert not lease.held()
    assert await space.get("a") is not None, "the next owner came before the last one stopped"
    async with watching(space, "a", since) as changes:
        assert await take(changes, 1) == [Change("a", None, since + 1)]
    assert await space.get("a") is None
    with pytest.raises(LeaseLost):
        await space.put("a", b"2", lease.id)


async def test_a_later_owner_has_a_larger_creation_revision(bench: Bench) -> None:
    one, other = bench.client(), bench.client()
    first, second = await one.grant(1), await other.grant(10)
    epoch = await one.commit([Require("seat", 0)], [Put("seat", b"one", first.id)])
    assert epoch is not None
    assert await other.commit([Require("seat", 0)], [Put("seat", b"two", second.id)]) is None
    since = await now(other)
    bench.abandon(first)
    async with watching(other, "seat", since) as changes:
        await take(changes, 1)
    later = await other.commit([Require("seat", 0)], [Put("seat", b"two", second.id)])
    assert later is not None and later > epoch
    entry = await one.get("seat")
    assert entry == Entry("seat", b"two", later, later, second.id)


# -- closing


async def test_a_closed_client_says_so_to_its_watches_and_callers(bench: Bench) -> None:
    space = bench.client()
    lease = await space.grant(10)
    waiting = asyncio.create_task(take(space.watch("", await now(space)), 1))
    await asyncio.wait([waiting], timeout=0.1)
    await space.close()
    with pytest.raises(Unavailable) as ended:
        await waiting
    assert ended.value.reason == "CLOSED"
    async with patience():
        await lease.lost()
    assert not lease.held()
    with pytest.raises(Unavailable) as refused:
        await space.get("a")
    assert refused.value.reason == "CLOSED"
    await space.close()


async def test_closing_leaves_no_task_behind(bench: Bench) -> None:
    before = asyncio.all_tasks()
    space = bench.client()
    since = await now(space)
    for _ in range(3):
        await space.put("a", b"1", (await space.grant(10)).id)
    async with watching(space, "", since) as changes:
        await take(changes, 1)
    await space.close()
    async with patience():
        while left := asyncio.all_tasks() - before:
            await asyncio.wait(left)


# -- what only the memory or the embedded adapter promises


async def test_the_memory_history_is_bounded() -> None:
    space = MemorySnapshots(MemorySpace(history=3))
    since = await now(space)
    for number in range(3):
        await space.put("a", str(number).encode())
    async with watching(space, "", 0) as changes:
        assert len(await take(changes, 3)) == 3
    await space.put("a", b"3")
    async with watching(space, "", since + 1) as changes:
        assert len(await take(changes, 3)) == 3
    async with watching(space, "", since) as changes:
        with pytest.raises(Compacted):
            await take(changes, 1)
    await space.close()


async def test_a_memory_lease_ends_by_the_clock_that_was_given() -> None:
    time = 100.0
    shared = MemorySpace(clock=lambda: time)
    space = MemorySnapshots(shared)
    lease = await space.grant(30)
    lease.pause_renewal()
    await space.put("a", b"1", lease.id)
    time += 20.5
    assert not lease.held()
    await shared.expire()
    assert await space.get("a") is not None
    time += 10
    assert await space.get("a") is None
    await space.close()
    await shared.close()


async def test_an_embedded_space_outlives_its_process_without_its_leases(tmp_path: Path) -> None:
    space = EmbeddedSnapshots(tmp_path / "space.db")
    lease = await space.grant(30)
    first = await space.put("kept", b"1")
    await space.put("kept", b"2")
    await space.put("leased", b"1", lease.id)
    await space.put("deleted", b"1")
    await space.delete("deleted")
    before = await now(space)
    await space.close()

    again = EmbeddedSnapshots(tmp_path / "space.db")
    entries, revision = await again.list("")
    assert entries == [Entry("kept", b"2", first, first + 1)]
    assert revision > before
    assert await again.put("more", b"1") == revision + 1
    with pytest.raises(LeaseLost):
        await again.put("leased", b"1", lease.id)
    async with watching(again, "", before) as changes:
        with pytest.raises(Compacted):
            await take(changes, 1)
    await again.close()


async def test_a_second_opener_of_an_embedded_space_is_told_what_to_do(tmp_path: Path) -> None:
    space = EmbeddedSnapshots(tmp_path / "space.db")
    with pytest.raises(Unavailable, match="in use") as refused:
        EmbeddedSnapshots(tmp_path / "space.db")
    assert "data directory" in refused.value.mend
    await space.put("a", b"1")
    await space.close()
    await EmbeddedSnapshots(tmp_path / "space.db").close()


async def test_an_embedded_change_appears_though_its_caller_went_away(tmp_path: Path) -> None:
    space = EmbeddedSnapshots(tmp_path / "space.db")
    for number in range(20):
        caller = asyncio.create_task(space.put(f"k{number:02}", b"1"))
        await asyncio.wait([caller], timeout=0)  # lets it begin
        caller.cancel()
    last = await space.put("last", b"1")
    entries, revision = await space.list("")
    assert revision == last == entries[-1].modified
    await space.close()
    again = EmbeddedSnapshots(tmp_path / "space.db")
    assert await again.list("") == (entries, revision)
    await again.close()
