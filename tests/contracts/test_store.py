"""What the SQL side promises, on every database that we support."""

from __future__ import annotations

import asyncio
import functools
import operator
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa
import sqlalchemy.ext.asyncio
from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext

from engine.core.events import Event, NodeSkipped, TaskScheduled, TraceEnded, TraceStarted
from engine.core.failure import Failure
from engine.core.journal import VERSION, Entry, Frame
from engine.core.payload import NULL
from engine.core.status import TraceStatus
from engine.errors import AlreadyExists, Conflict, Invalid, NotFound, Unavailable
from engine.ids import make
from engine.rpc.paging import page_size
from engine.snapshots.apps import App
from engine.store import tables
from engine.store.journals import Journals
from engine.store.registry import RegistryStore
from engine.store.sql import Database
from tests.servers import Postgres


@pytest.fixture(scope="module")
def postgres() -> Iterator[Postgres]:
    server = Postgres()
    try:
        yield server.start()
    finally:
        server.stop()


async def emptied(url: str) -> None:
    """Forgets everything, the tables included."""
    engine = sa.ext.asyncio.create_async_engine(url)
    async with engine.begin() as connection:
        await connection.execute(sa.text("DROP SCHEMA public CASCADE"))
        await connection.execute(sa.text("CREATE SCHEMA public"))
    await engine.dispose()


@pytest.fixture(params=["sqlite", "postgresql"])
async def url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    if request.param == "sqlite":
        return f"sqlite:///{tmp_path / 'flow.db'}"
    url: str = request.getfixturevalue("postgres").url
    await emptied(url)
    return url


@pytest.fixture
async def database(url: str) -> AsyncIterator[Database]:
    database = await Database.open(url)
    yield database
    await database.close()


@pytest.fixture
def journals(database: Database) -> Journals:
    return Journals(database)


@pytest.fixture
def store(database: Database) -> RegistryStore:
    return RegistryStore(database)


# Tables.


async def test_the_migrations_make_the_tables_that_the_code_knows(database: Database) -> None:
    def differences(connection: sa.Connection) -> list[Any]:
        context = MigrationContext.configure(connection, opts={"compare_type": True})
        return list(compare_metadata(context, tables.metadata))

    async with database.write() as connection:
        assert await connection.run_sync(differences) == []


async def test_a_database_is_opened_again_as_it_was(url: str) -> None:
    first = await Database.open(url)
    await RegistryStore(first).create_app("shop", "", App(), 1)
    await first.close()
    again = await Database.open(url)
    assert [app.name for app in await RegistryStore(again).apps()] == ["shop"]
    await again.close()


async def test_several_services_open_a_new_database_at_once(postgres: Postgres) -> None:
    await emptied(postgres.url)
    url = postgres.url
    opened = await asyncio.gather(*(Database.open(url) for _ in range(4)))
    assert await RegistryStore(opened[0]).apps() == []
    for database in opened:
        await database.close()


async def test_a_database_that_cannot_be_used_is_unavailable(tmp_path: Path) -> None:
    with pytest.raises(Unavailable, match="the database cannot be used"):
        await Database.open(f"sqlite:///{tmp_path / 'nowhere' / 'flow.db'}")


# Journals.


def trace_id(number: int, snapshot: int = 42) -> bytes:
    return make(1_000 + number, 3, snapshot % 10, number)


def starting(number: int, snapshot: int = 42, playbook: int = 7) -> Entry:
    event = TraceStarted(playbook, snapshot, "shop", "shop/story", NULL, 900 + number, "ann")
    return Entry(trace_id(number, snapshot), [event])


def ending(number: int, status: TraceStatus = TraceStatus.SUCCEEDED, snapshot: int = 42) -> Entry:
    failure = Failure("BOOM") if status is TraceStatus.FAILED else None
    return Entry(trace_id(number, snapshot), [TraceEnded(status, None, failure)])


def frame(
    *entries: Entry, at: int = 5_000, epoch: int = 1, partition: int = 3, number: int = 0
) -> Frame:
    return Frame(VERSION, partition, epoch, number, at, 0, list(entries))


async def statuses(journals: Journals, snapshot: int = 42) -> dict[str, TraceStatus]:
    found = await journals.list_snapshot(snapshot, 0, "", 1_000)
    return {row.trace_id: row.status for row in found}


async def test_a_projection_writes_rows_and_its_position_together(journals: Journals) -> None:
    await journals.project([(1, frame(starting(1), at=5_000))], {})
    (row,) = await journals.list_snapshot(42, 0, "", 10)
    assert row.trace_id == trace_id(1).hex()
    assert (row.status, row.triggered_at, row.started_at, row.ended_at) == (1, 901, 5_000, 0)
    assert (row.playbook_id, row.playbook, row.triggered_by) == (7, "shop/story", "ann")
    assert await journals.positions() == {3: 1}
    failed = frame(ending(1, TraceStatus.FAILED), at=6_000, number=1)
    await journals.project([(2, failed)], {3: 1})
    (row,) = await journals.list_snapshot(42, 0, "", 10)
    assert (row.status, row.ended_at, row.failure_code) == (TraceStatus.FAILED, 6_000, "BOOM")
    assert await journals.positions() == {3: 2}


async def test_a_trace_that_begins_and_ends_in_one_batch_is_whole(journals: Journals) -> None:
    await journals.project([(1, frame(starting(1))), (2, frame(ending(1), at=7_000, number=1))], {})
    (row,) = await journals.list_snapshot(42, 0, "", 10)
    assert (row.status, row.ended_at) == (TraceStatus.SUCCEEDED, 7_000)


@pytest.mark.parametrize("expected", [{}, {3: 1}, {3: 3}])
async def test_a_projection_from_another_position_writes_nothing(
    journals: Journals, expected: dict[int, int]
) -> None:
    await journals.project([(2, frame(starting(1)))], {})
    batch = [(9, frame(starting(5), partition=4)), (9, frame(starting(2), ending(1), number=1))]
    with pytest.raises(Conflict):
        await journals.project(batch, expected)
    assert await journals.positions() == {3: 2}
    assert await statuses(journals) == {trace_id(1).hex(): TraceStatus.RUNNING}
    assert await journals.chapters(trace_id(2)) == []
    assert len(await journals.chapters(trace_id(1))) == 1


async def test_frames_behind_a_hole_in_their_epoch_are_passed_over(journals: Journals) -> None:
    """Of two in flight the first was refused, and a deposed owner's last frame made room for the
    second: its owner took both for refused."""
    await journals.project([(1, frame(starting(1), epoch=5))], {})
    await journals.project([(2, frame(epoch=4, number=7))], {3: 1})
    await journals.project([(3, frame(starting(2), epoch=5, number=2))], {3: 2})
    await journals.project([(4, frame(starting(3), epoch=5, number=3))], {3: 3})
    await journals.project([(5, frame(starting(4), epoch=6))], {3: 4})
    assert set(await statuses(journals)) == {trace_id(1).hex(), trace_id(4).hex()}


async def test_of_two_projectors_at_one_position_one_writes(journals: Journals) -> None:
    await journals.project([(1, frame(starting(1)))], {})
    outcomes = await asyncio.gather(
        *(journals.project([(2, frame(starting(2), number=1))], {3: 1}) for _ in range(4)),
        return_exceptions=True,
    )
    assert sorted(isinstance(outcome, Conflict) for outcome in outcomes) == [False] + [True] * 3
    assert len(await statuses(journals)) == 2


async def test_frames_of_a_deposed_epoch_are_passed_over(journals: Journals) -> None:
    await journals.project([(1, frame(epoch=5)), (2, frame(starting(1), epoch=4))], {})
    await journals.project([(3, frame(starting(2), epoch=4))], {3: 2})
    await journals.project([(4, frame(starting(3), epoch=5, number=1))], {3: 3})
    assert list(await statuses(journals)) == [trace_id(3).hex()]
    assert await journals.chapters(trace_id(1)) == []
    assert await journals.positions() == {3: 4}


async def test_partitions_have_positions_of_their_own(journals: Journals) -> None:
    await journals.project([(4, frame(partition=1)), (9, frame(partition=2))], {})
    await journals.project([(5, frame(partition=1, number=1))], {1: 4})
    assert await journals.positions() == {1: 5, 2: 9}


async def test_chapters_come_in_the_order_of_the_log(journals: Journals) -> None:
    events: list[list[Event]] = [[TaskScheduled(0, n, None)] for n in range(1, 6)]
    entries = [Entry(trace_id(1), said) for said in events]
    await journals.project([(1, frame(starting(1), entries[0], entries[1]))], {})
    await journals.project(
        [
            (2, frame(entries[2], at=6_000, number=1)),
            (3, frame(entries[3], entries[4], at=7_000, number=2)),
        ],
        {3: 1},
    )
    chapters = await journals.chapters(trace_id(1))
    assert [chapter.sequence for chapter in chapters] == [1, 1, 1, 2, 3, 3]
    assert [chapter.events for chapter in chapters[1:]] == events
    assert [chapter.at for chapter in chapters[2:4]] == [5_000, 6_000]
    assert await journals.chapters(trace_id(99)) == []


async def test_traces_of_a_snapshot_come_newest_first_in_pages(journals: Journals) -> None:
    await journals.project([(1, frame(*(starting(n) for n in range(7)), starting(8, 52)))], {})
    pages, before = [], ""
    while page := await journals.list_snapshot(42, 0, before, 3):
        pages.append([row.trace_id for row in page])
        before = page[-1].trace_id
    assert [len(page) for page in pages] == [3, 3, 1]
    assert functools.reduce(operator.iadd, pages, []) == [
        trace_id(n).hex() for n in reversed(range(7))
    ]


async def test_traces_of_a_playbook_are_gathered_from_all_shards(journals: Journals) -> None:
    entries = [starting(n, snapshot=n) for n in range(1, 24)]
    await journals.project([(1, frame(*entries, starting(50, 3, playbook=8)))], {})
    pages, before = [], ""
    while page := await journals.list_playbook(7, 0, before, 10):
        pages.append([row.snapshot_id for row in page])
        before = page[-1].trace_id
    assert [len(page) for page in pages] == [10, 10, 3]
    assert functools.reduce(operator.iadd, pages, []) == list(reversed(range(1, 24)))


async def test_lists_can_be_narrowed_to_a_status(journals: Journals) -> None:
    await journals.project([(1, frame(starting(1), starting(2), starting(3), ending(2)))], {})
    found = await journals.list_snapshot(42, TraceStatus.RUNNING, "", 10)
    assert [row.trace_id for row in found] == [trace_id(3).hex(), trace_id(1).hex()]
    (ended,) = await journals.list_playbook(7, TraceStatus.SUCCEEDED, "", 10)
    assert ended.trace_id == trace_id(2).hex()


def test_a_page_has_a_bound() -> None:
    assert page_size(0, 50, 500) == 50
    assert page_size(500, 50, 500) == 500
    with pytest.raises(Invalid, match="page_size is 501; 500 are allowed"):
        page_size(501, 50, 500)


async def test_a_skipped_node_is_no_ending(journals: Journals) -> None:
    await journals.project([(1, frame(starting(1), Entry(trace_id(1), [NodeSkipped(0)])))], {})
    assert await statuses(journals) == {trace_id(1).hex(): TraceStatus.RUNNING}


# The registry.


async def publish(
    store: RegistryStore, content: bytes, name: str = "story"
) -> tuple[int, int, bool]:
    checksum = content.ljust(32, b".")
    return await store.add_snapshot("shop", name, "", checksum, content, "doc", 1, "ann")


async def test_an_app_is_made_once(store: RegistryStore) -> None:
    await store.create_app("shop", "sells", App(quota=5.0), 1)
    with pytest.raises(AlreadyExists):
        await store.create_app("shop", "", App(), 2)
    app = await store.app("shop")
    assert (app.description, app.quota, app.enabled) == ("sells", 5.0, 1)
    with pytest.raises(NotFound):
        await store.app("nowhere")


async def test_the_same_content_is_one_snapshot(store: RegistryStore) -> None:
    playbook, first, there = await publish(store, b"one")
    assert not there
    assert await publish(store, b"one") == (playbook, first, True)
    _, second, there = await publish(store, b"two")
    assert not there
    assert second > first
    assert await publish(store, b"one") == (playbook, first, True)


async def test_the_same_content_in_another_playbook_is_another_snapshot(
    store: RegistryStore,
) -> None:
    first = await publish(store, b"one")
    other = await publish(store, b"one", "tale")
    assert first[0] != other[0]
    assert first[1] != other[1]


async def test_publishing_at_once_gives_one_playbook_and_one_snapshot(store: RegistryStore) -> None:
    outcomes = await asyncio.gather(*(publish(store, b"one") for _ in range(8)))
    assert len({outcome[:2] for outcome in outcomes}) == 1
    assert [outcome[2] for outcome in outcomes].count(False) == 1


async def test_publishing_different_content_at_once_gives_a_snapshot_each(
    store: RegistryStore,
) -> None:
    outcomes = await asyncio.gather(*(publish(store, b"%d" % n) for n in range(6)))
    assert len({playbook for playbook, _, _ in outcomes}) == 1
    assert len({snapshot for _, snapshot, _ in outcomes}) == 6
    assert not any(there for _, _, there in outcomes)


async def test_a_token_is_revoked_once_and_for_all(store: RegistryStore) -> None:
    token = {"id": "t1", "app": "shop", "subject": "ann", "scopes": "work"}
    await store.add_token({**token, "created_at": 1, "expires_at": 9})
    await store.revoke_token("t1", 5)
    await store.revoke_token("t1", 7)
    assert (await store.token("t1")).revoked_at == 5
    assert [row.id for row in await store.tokens("shop")] == ["t1"]
    with pytest.raises(NotFound):
        await store.token("t2")


async def test_a_grant_is_seen_from_both_sides_and_given_once(store: RegistryStore) -> None:
    await store.add_grant("billing", "shop", "billing/pay")
    await store.add_grant("billing", "shop", "billing/pay")
    for app in ("billing", "shop"):
        assert [tuple(row) for row in await store.grants(app)] == [
            ("billing", "shop", "billing/pay")
        ]
    await store.remove_grant("billing", "shop", "billing/pay")
    assert await store.grants("shop") == []
