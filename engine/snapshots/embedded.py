"""The space in one SQLite file, for one process that runs without an etcd.

Keys and revisions outlive the process. Leases do not: their holders died with it, so their
keys go when the file is opened again. The history does not either; a watch from before the
opening raises `Compacted`.
"""

from __future__ import annotations

import asyncio
import sqlite3
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from engine.errors import Corrupt, Unavailable
from engine.snapshots.port import Entry
from engine.snapshots.space import HISTORY, LocalSnapshots, Space

FORMAT = 1

_TABLES = """
CREATE TABLE space (only INTEGER PRIMARY KEY CHECK (only = 1), revision INTEGER NOT NULL);
CREATE TABLE entries (
    key TEXT PRIMARY KEY,
    value BLOB NOT NULL,
    created INTEGER NOT NULL,
    modified INTEGER NOT NULL,
    lease INTEGER NOT NULL
) WITHOUT ROWID;
INSERT INTO space VALUES (1, 1);
"""


class EmbeddedSnapshots(LocalSnapshots):
    """The space in the file `path`, which is made if it is missing; its folder must be there.

    Opening raises `Unavailable` while another opener, in this process or another, has the file,
    and `Corrupt` for a file that is no such space. An acknowledged change survives a power cut.
    """

    def __init__(self, path: Path | str, *, history: int = HISTORY) -> None:
        journal = _SqliteJournal(Path(path))
        entries, revision = journal.open()
        super().__init__(
            Space(entries=entries, revision=revision, history=history, journal=journal)
        )

    async def close(self) -> None:
        await super().close()
        await self._space.close()


class _SqliteJournal:
    def __init__(self, path: Path) -> None:
        self._path = path
        self._connection: sqlite3.Connection | None = None
        # One thread of our own: a synced write takes milliseconds that the loop must not lose.
        self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="snapshots")

    def open(self) -> tuple[Sequence[Entry], int]:
        """Takes the file for this opener alone; returns what it holds and its revision."""
        try:
            self._connection = self._connect()
            self._prepare(self._connection)
            return self._load(self._connection)
        except (sqlite3.Error, Corrupt) as error:
            self._shut()
            if isinstance(error, Corrupt):
                raise
            raise self._explain(error) from error

    async def write(self, revision: int, put: Sequence[Entry], gone: Sequence[str]) -> None:
        loop = asyncio.get_running_loop()
        await loop.run_in_executor(self._thread, self._write, revision, put, gone)

    async def close(self) -> None:
        if self._connection is None:
            return
        await asyncio.get_running_loop().run_in_executor(self._thread, self._shut)
        self._thread.shutdown()

    def _connect(self) -> sqlite3.Connection:
        connection = sqlite3.connect(
            self._path,
            timeout=0,  # whoever has the file keeps it for long: waiting would only hide that
            isolation_level=None,
            check_same_thread=False,  # opened by the caller, then used by our thread only
        )
        # SQLite's own lock, held until the connection ends: the system drops it with the
        # process, however that dies, and no second file can be left behind.
        connection.execute("PRAGMA locking_mode = EXCLUSIVE")
        connection.execute("PRAGMA journal_mode = WAL")
        connection.execute("PRAGMA synchronous = FULL")
        connection.execute("BEGIN EXCLUSIVE")
        connection.execute("COMMIT")
        return connection

    def _prepare(self, connection: sqlite3.Connection) -> None:
        (version,) = connection.execute("PRAGMA user_version").fetchone()
        (tables,) = connection.execute("SELECT count(*) FROM sqlite_master").fetchone()
        if version == 0 and tables == 0:
            connection.executescript(f"BEGIN;\n{_TABLES}\nPRAGMA user_version = {FORMAT};\nCOMMIT;")
        elif version != FORMAT:
            raise Corrupt(
                f"{self._path} is not a space of format {FORMAT} (it says {version})",
                reason="SPACE_FORMAT",
                mend="Name another file, or open it with the version that wrote it.",
            )

    def _load(self, connection: sqlite3.Connection) -> tuple[Sequence[Entry], int]:
        connection.execute("BEGIN")
        orphans = connection.execute("DELETE FROM entries WHERE lease <> 0").rowcount
        if orphans:
            connection.execute("UPDATE space SET revision = revision + 1")
        connection.execute("COMMIT")
        (revision,) = connection.execute("SELECT revision FROM space").fetchone()
        rows = connection.execute("SELECT key, value, created, modified, lease FROM entries")
        return [Entry(*row) for row in rows], revision

    def _write(self, revision: int, put: Sequence[Entry], gone: Sequence[str]) -> None:
        connection = self._connection
        assert connection is not None, "written to before open or after close"
        try:
            connection.execute("BEGIN IMMEDIATE")
            connection.executemany(
                "INSERT OR REPLACE INTO entries VALUES (?, ?, ?, ?, ?)",
                [(e.key, e.value, e.created, e.modified, e.lease) for e in put],
            )
            connection.executemany("DELETE FROM entries WHERE key = ?", [(key,) for key in gone])
            connection.execute("UPDATE space SET revision = ?", (revision,))
            connection.execute("COMMIT")
        except sqlite3.Error as error:
            if connection.in_transaction:
                connection.execute("ROLLBACK")
            raise self._explain(error) from error

    def _shut(self) -> None:
        if self._connection is not None:
            self._connection.close()
            self._connection = None

    def _explain(self, error: sqlite3.Error) -> Exception:
        code = getattr(error, "sqlite_errorcode", 0) & 0xFF
        if code in (sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED):
            return Unavailable(
                f"{self._path} is in use by another process",
                reason="SPACE_IN_USE",
                mend="Stop the other process, give this one a data directory of its own, "
                "or run etcd and name its endpoints if both must share one space.",
            )
        if code in (sqlite3.SQLITE_NOTADB, sqlite3.SQLITE_CORRUPT):
            return Corrupt(
                f"{self._path} is not a SQLite file that can be read: {error}",
                reason="SPACE_CORRUPT",
                mend="Restore the file from a backup, or name another one.",
            )
        return Unavailable(
            f"{self._path} cannot be used: {error}",
            reason="SPACE_FILE",
            mend="See that the folder is there, may be written to and has room.",
        )
