"""The SQL database: engine, migrations, errors in our own words."""

from __future__ import annotations

import asyncio
import sqlite3
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import sqlalchemy as sa
import structlog
from alembic import command
from alembic.config import Config
from sqlalchemy import event
from sqlalchemy.exc import (
    DataError,
    DBAPIError,
    IntegrityError,
    NotSupportedError,
    ProgrammingError,
)
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine, create_async_engine

from engine.errors import Unavailable

_log = structlog.get_logger(__name__)


class Database:
    """One database for all services of a process."""

    def __init__(self, engine: AsyncEngine) -> None:
        self._engine = engine
        self._sqlite = engine.dialect.name == "sqlite"
        # SQLite has one writer; waiting here is fair and never ends in "database is locked".
        self._writer = asyncio.Lock()

    @classmethod
    async def open(cls, url: str) -> Database:
        """Connects and brings the tables up to date.

        Errors: `Unavailable` with a sentence that says what to do.
        """
        engine: AsyncEngine | None = None
        try:
            await _try_sqlite_file(url)
            engine = create_async_engine(_driver(url), pool_pre_ping=True)
            if engine.dialect.name == "sqlite":
                _tune_sqlite(engine)
            async with engine.begin() as connection:
                await _lock_migrations(connection)
                await connection.run_sync(_migrate)
        except (sa.exc.SQLAlchemyError, OSError) as error:
            if engine is not None:
                await engine.dispose()
            raise Unavailable(
                f"the database cannot be used: {_short(error)}",
                reason="STORE_UNAVAILABLE",
                mend="check MAGICFLOW_DATABASE and that the server runs",
            ) from error
        return cls(engine)

    @property
    def dialect(self) -> str:
        return self._engine.dialect.name

    @asynccontextmanager
    async def read(self) -> AsyncIterator[AsyncConnection]:
        """Errors inside: `Unavailable` when the server is out of reach."""
        try:
            async with self._engine.connect() as connection:
                yield connection
        except (DBAPIError, OSError) as error:
            raise _out_of_reach(error) from _cause(error)

    @asynccontextmanager
    async def write(self) -> AsyncIterator[AsyncConnection]:
        """One transaction, committed at the end. Errors inside: `Unavailable`."""
        try:
            if self._sqlite:
                async with self._writer, self._engine.begin() as connection:
                    yield connection
            else:
                async with self._engine.begin() as connection:
                    yield connection
        except (DBAPIError, OSError) as error:
            raise _out_of_reach(error) from _cause(error)

    async def close(self) -> None:
        await self._engine.dispose()


async def _try_sqlite_file(url: str) -> None:
    """Finds out whether a SQLite file can be opened before the asynchronous driver does, whose
    thread outlives a failed connection and complains when the loop is gone."""
    parsed = sa.make_url(url)
    if parsed.get_backend_name() == "sqlite" and parsed.database not in (None, "", ":memory:"):
        await asyncio.to_thread(_open_and_close, str(parsed.database))


def _open_and_close(file: str) -> None:
    try:
        sqlite3.connect(file).close()
    except sqlite3.Error as error:
        raise OSError(f"{file}: {error}") from error


def _driver(url: str) -> str:
    """Plain URLs get the driver that we ship."""
    for plain, full in (
        ("postgresql://", "postgresql+asyncpg://"),
        ("postgres://", "postgresql+asyncpg://"),
        ("sqlite://", "sqlite+aiosqlite://"),
    ):
        if url.startswith(plain):
            return full + url.removeprefix(plain)
    return url


def _tune_sqlite(engine: AsyncEngine) -> None:
    @event.listens_for(engine.sync_engine, "connect")
    def pragmas(connection: Any, _record: Any) -> None:
        cursor = connection.cursor()
        for pragma in ("journal_mode=WAL", "synchronous=NORMAL", "busy_timeout=10000"):
            cursor.execute(f"PRAGMA {pragma}")
        cursor.close()


async def _lock_migrations(connection: AsyncConnection) -> None:
    """Several services start at once; one of them migrates."""
    if connection.dialect.name == "postgresql":
        await connection.execute(sa.text("SELECT pg_advisory_xact_lock(7200001)"))


def _migrate(connection: sa.Connection) -> None:
    config = Config()
    config.set_main_option("script_location", str(Path(__file__).parent / "migrations"))
    config.attributes["connection"] = connection
    command.upgrade(config, "head")


_OUR_OWN = (IntegrityError, ProgrammingError, DataError, NotSupportedError)


def _out_of_reach(error: DBAPIError | OSError) -> Exception:
    """What a statement of ours is to blame for stays what it is. Everything else is a server that
    is gone or not there yet, which drivers say in many ways."""
    if isinstance(error, _OUR_OWN) and not error.connection_invalidated:
        return error
    return Unavailable(f"the database is out of reach: {_short(error)}", reason="STORE_UNAVAILABLE")


def _cause(error: Exception) -> BaseException | None:
    """Nobody is the cause of itself."""
    return error.__cause__ if isinstance(error, _OUR_OWN) else error


def _short(error: Exception) -> str:
    cause = error.orig if isinstance(error, DBAPIError) else error
    return str(cause).split("\n")[0]
