"""What SQL says, read in one transaction that sees one moment."""

from __future__ import annotations

from dataclasses import dataclass

import sqlalchemy as sa
from sqlalchemy.ext.asyncio import create_async_engine

from engine.store import tables


@dataclass(frozen=True, slots=True)
class Chapter:
    """A row of the journal: what one frame says of one trace."""

    partition: int
    sequence: int
    trace: str
    events: bytes


@dataclass(frozen=True, slots=True)
class Execution:
    """A row of the list of traces. `status` is the number of `TraceStatus`."""

    trace: str
    status: int
    failure_code: str


@dataclass(frozen=True, slots=True)
class Rows:
    """One moment of SQL. `positions` are the projection's, by partition."""

    positions: dict[int, int]
    chapters: tuple[Chapter, ...]
    executions: tuple[Execution, ...]


async def read_rows(url: str, above: dict[int, int] | None = None) -> Rows:
    """With `above` no chapters up to these sequences. Errors: SQLAlchemy's, and OSError."""
    engine = create_async_engine(url, isolation_level="REPEATABLE READ")
    try:
        async with engine.connect() as connection:
            projection = await connection.execute(sa.select(tables.projection))
            positions = {row.partition: row.sequence for row in projection}
            chapters: list[Chapter] = []
            for journal in tables.journal:
                query = sa.select(journal).order_by(journal.c.id)
                for partition, sequence in (above or {}).items():
                    old = (journal.c.partition == partition) & (journal.c.sequence <= sequence)
                    query = query.where(~old)
                chapters += [
                    Chapter(row.partition, row.sequence, row.trace_id, row.events)
                    for row in await connection.execute(query)
                ]
            executions: list[Execution] = []
            for execution in tables.execution:
                executions += [
                    Execution(row.trace_id, row.status, row.failure_code)
                    for row in await connection.execute(sa.select(execution))
                ]
    finally:
        await engine.dispose()
    return Rows(positions, tuple(chapters), tuple(executions))
