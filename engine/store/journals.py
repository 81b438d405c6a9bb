"""Traces in SQL: the projection that fills the tables, and what is read from them."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import msgspec
import sqlalchemy as sa
from sqlalchemy.ext.asyncio import AsyncConnection

from engine.core.events import Event, TraceEnded, TraceStarted
from engine.core.journal import UNKNOWN, Entry, Frame, follows
from engine.core.status import TraceStatus
from engine.errors import Conflict
from engine.ids import SHARDS, shard_of
from engine.store import tables
from engine.store.sql import Database

_encoder = msgspec.msgpack.Encoder()
_events = msgspec.msgpack.Decoder(list[Event])


@dataclass(frozen=True, slots=True)
class Chapter:
    """What one frame says of one trace. `at` is milliseconds since 1970."""

    partition: int
    sequence: int
    at: int
    events: list[Event]


@dataclass(frozen=True, slots=True)
class Execution:
    """A row of a list of traces; times are milliseconds since 1970, 0 for not yet."""

    trace_id: str
    playbook_id: int
    snapshot_id: int
    app: str
    playbook: str
    status: TraceStatus
    triggered_at: int
    started_at: int
    ended_at: int
    triggered_by: str
    failure_code: str


class Journals:
    """The SQL side of a projection. Rows and the position up to which they reach are written in
    one transaction, so that SQL is a prefix of the log: never ahead, never with a hole."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def positions(self) -> dict[int, int]:
        """For each partition the sequence of the last frame that is in SQL."""
        async with self._database.read() as connection:
            rows = await connection.execute(sa.select(tables.projection))
            return {row.partition: row.sequence for row in rows}

    async def project(self, frames: Sequence[tuple[int, Frame]], expected: dict[int, int]) -> None:
        """Writes frames (sequence, frame), in order per partition, that follow right after the
        positions in `expected`.

        Frames that do not follow are passed over, as `journal.fold` does.

        Errors: `Conflict` when another projector was faster; then nothing is written.
        `Unavailable`.
        """
        async with self._database.write() as connection:
            lives = await _lives(connection, {frame.partition for _, frame in frames})
            rows = _Rows()
            reached: dict[int, int] = {}
            for sequence, frame in frames:
                reached[frame.partition] = sequence
                epoch, number = lives.get(frame.partition, (0, UNKNOWN))
                if not follows(epoch, number, frame):
                    lives[frame.partition] = (max(epoch, frame.epoch), number)
                    continue
                lives[frame.partition] = (frame.epoch, frame.number)
                for entry in frame.entries:
                    rows.take(entry, frame, sequence)
            for partition, sequence in reached.items():
                life = lives.get(partition, (0, UNKNOWN))
                await _advance(connection, partition, expected.get(partition, 0), sequence, life)
            await rows.write(connection)

    async def chapters(self, trace_id: bytes) -> list[Chapter]:
        """Everything that SQL knows of a trace, in order; empty for an unknown one."""
        table = tables.journal[shard_of(trace_id)]
        query = (
            sa.select(table.c.partition, table.c.sequence, table.c.at, table.c.events)
            .where(table.c.trace_id == trace_id.hex())
            .order_by(table.c.sequence, table.c.id)
        )
        async with self._database.read() as connection:
            found = (await connection.execute(query)).all()
        return [
            Chapter(row.partition, row.sequence, row.at, _events.decode(row.events))
            for row in found
        ]

    async def list_snapshot(
        self, snapshot_id: int, status: int, before: str, limit: int
    ) -> list[Execution]:
        """Traces of a snapshot, newest first; `before` is the last trace id of the page before,
        empty for the first. Reads one shard."""
        table = tables.execution[snapshot_id % SHARDS]
        return await self._list(table, table.c.snapshot_id == snapshot_id, status, before, limit)

    async def list_playbook(
        self, playbook_id: int, status: int, before: str, limit: int
    ) -> list[Execution]:
        """Traces of all snapshots of a playbook, newest first. Reads every shard."""
        found: list[Execution] = []
        for table in tables.execution:
            condition = table.c.playbook_id == playbook_id
            found += await self._list(table, condition, status, before, limit)
        return sorted(found, key=lambda row: row.trace_id, reverse=True)[:limit]

    async def _list(
        self, table: sa.Table, condition: Any, status: int, before: str, limit: int
    ) -> list[Execution]:
        query = sa.select(*table.c[1:]).where(condition)
        if status:
            query = query.where(table.c.status == status)
        if before:
            query = query.where(table.c.trace_id < before)
        query = query.order_by(table.c.trace_id.desc()).limit(limit)
        async with self._database.read() as connection:
            rows = (await connection.execute(query)).all()
        return [_execution(row) for row in rows]


def _execution(row: Any) -> Execution:
    return Execution(
        row.trace_id,
        row.playbook_id,
        row.snapshot_id,
        row.app,
        row.playbook,
        TraceStatus(row.status),
        row.triggered_at,
        row.started_at,
        row.ended_at,
        row.triggered_by,
        row.failure_code,
    )


async def _lives(connection: AsyncConnection, partitions: set[int]) -> dict[int, tuple[int, int]]:
    """(epoch, number) of the last frame that counted, by partition."""
    table = tables.projection
    query = sa.select(table).where(table.c.partition.in_(partitions))
    return {row.partition: (row.epoch, row.number) for row in await connection.execute(query)}


async def _advance(
    connection: AsyncConnection,
    partition: int,
    expected: int,
    sequence: int,
    life: tuple[int, int],
) -> None:
    table, (epoch, number) = tables.projection, life
    if not expected:
        exists = await connection.execute(
            sa.select(table.c.sequence).where(table.c.partition == partition)
        )
        if exists.first() is None:
            await connection.execute(
                table.insert().values(partition=partition, sequence=0, epoch=0)
            )
    changed = await connection.execute(
        table.update()
        .where(
            table.c.partition == partition,
            table.c.sequence == expected,
            table.c.epoch <= epoch,
        )
        .values(sequence=sequence, epoch=epoch, number=number)
    )
    if changed.rowcount != 1:
        raise Conflict(f"partition {partition} is not at {expected} any more")


class _Rows:
    """Rows of one transaction, by table."""

    def __init__(self) -> None:
        self._started: dict[int, list[dict[str, Any]]] = defaultdict(list)
        self._ended: dict[int, list[dict[str, Any]]] = defaultdict(list)
        self._chapters: dict[int, list[dict[str, Any]]] = defaultdict(list)
        self._new: dict[str, dict[str, Any]] = {}

    def take(self, entry: Entry, frame: Frame, sequence: int) -> None:
        shard, trace_id = shard_of(entry.trace_id), entry.trace_id.hex()
        for event in entry.events:
            if isinstance(event, TraceStarted):
                row = _started_row(trace_id, event, frame.at)
                self._started[shard].append(row)
                self._new[trace_id] = row
            elif isinstance(event, TraceEnded):
                self._end(shard, trace_id, event, frame.at)
        self._chapters[shard].append(
            {
                "trace_id": trace_id,
                "partition": frame.partition,
                "sequence": sequence,
                "at": frame.at,
                "events": _encoder.encode(entry.events),
            }
        )

    def _end(self, shard: int, trace_id: str, event: TraceEnded, at: int) -> None:
        code = event.failure.code if event.failure is not None else ""
        new = self._new.get(trace_id)
        if new is not None:
            new.update(status=int(event.status), ended_at=at, failure_code=code)
            return
        self._ended[shard].append(
            {"key": trace_id, "new_status": int(event.status), "end": at, "code": code}
        )

    async def write(self, connection: AsyncConnection) -> None:
        for shard, rows in self._started.items():
            await connection.execute(tables.execution[shard].insert(), rows)
        for shard, rows in self._ended.items():
            table = tables.execution[shard]
            await connection.execute(
                table.update()
                .where(table.c.trace_id == sa.bindparam("key"))
                .values(
                    status=sa.bindparam("new_status"),
                    ended_at=sa.bindparam("end"),
                    failure_code=sa.bindparam("code"),
                ),
                rows,
            )
        for shard, rows in self._chapters.items():
            await connection.execute(tables.journal[shard].insert(), rows)


def _started_row(trace_id: str, event: TraceStarted, at: int) -> dict[str, Any]:
    return {
        "trace_id": trace_id,
        "playbook_id": event.playbook_id,
        "snapshot_id": event.snapshot_id,
        "app": event.app,
        "playbook": event.playbook,
        "status": int(TraceStatus.RUNNING),
        "triggered_at": event.triggered_at,
        "started_at": at,
        "ended_at": 0,
        "triggered_by": event.by[:128],
        "failure_code": "",
    }
