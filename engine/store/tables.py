"""The SQL tables. `migrations/` makes them; `tests/contracts/test_store.py` checks that both agree.

Times are milliseconds since 1970. Traces are spread over ten pairs of tables by the snapshot's id
modulo ten; the trace id carries the shard. Hot tables are appended to by integer keys.
"""

from __future__ import annotations

from sqlalchemy import (
    BigInteger,
    Column,
    Float,
    Index,
    Integer,
    LargeBinary,
    MetaData,
    String,
    Table,
    Text,
    UniqueConstraint,
)

from engine.ids import SHARDS

metadata = MetaData()

# SQLite counts only plain INTEGER keys by itself.
_Key = BigInteger().with_variant(Integer, "sqlite")

app = Table(
    "app",
    metadata,
    Column("name", String(64), primary_key=True),
    Column("description", Text, nullable=False),
    Column("enabled", Integer, nullable=False),
    Column("quota", Float, nullable=False),
    Column("brokers", LargeBinary, nullable=False),
    Column("created_at", BigInteger, nullable=False),
    Column("in_flight", Integer, nullable=False, server_default="0"),
    Column("require_workers", Integer, nullable=False, server_default="0"),
    Column("balancing", String(32), nullable=False, server_default="round_robin"),
    Column("max_nodes", Integer, nullable=False, server_default="0"),
    Column("max_edges", Integer, nullable=False, server_default="0"),
    Column("max_document", Integer, nullable=False, server_default="0"),
)

token = Table(
    "token",
    metadata,
    Column("id", String(64), primary_key=True),
    Column("app", String(64), nullable=False, index=True),
    Column("subject", String(128), nullable=False),
    Column("scopes", String(128), nullable=False),
    Column("created_at", BigInteger, nullable=False),
    Column("expires_at", BigInteger, nullable=False),
    Column("revoked_at", BigInteger, nullable=False),
)

playbook = Table(
    "playbook",
    metadata,
    Column("id", _Key, primary_key=True, autoincrement=True),
    Column("app", String(64), nullable=False),
    Column("name", String(64), nullable=False),
    Column("description", Text, nullable=False),
    Column("created_at", BigInteger, nullable=False),
    UniqueConstraint("app", "name", name="playbook_name"),
    sqlite_autoincrement=True,
)

snapshot = Table(
    "snapshot",
    metadata,
    Column("id", _Key, primary_key=True, autoincrement=True),
    Column("playbook_id", BigInteger, nullable=False),
    Column("checksum", LargeBinary(32), nullable=False),
    Column("content", LargeBinary, nullable=False),
    Column("document", Text, nullable=False),
    Column("published_at", BigInteger, nullable=False),
    Column("published_by", String(128), nullable=False),
    UniqueConstraint("playbook_id", "checksum", name="snapshot_content"),
    sqlite_autoincrement=True,
)

grant = Table(
    "app_grant",
    metadata,
    Column("owner", String(64), primary_key=True),
    Column("grantee", String(64), primary_key=True),
    Column("target", String(129), primary_key=True),
)

projection = Table(
    "projection",
    metadata,
    Column("partition", Integer, primary_key=True, autoincrement=False),
    Column("sequence", BigInteger, nullable=False),
    Column("epoch", BigInteger, nullable=False),
    Column("number", BigInteger, nullable=False, server_default="-2"),
)


def _execution(shard: int) -> Table:
    name = f"execution_{shard}"
    return Table(
        name,
        metadata,
        Column("id", _Key, primary_key=True, autoincrement=True),
        Column("trace_id", String(32), nullable=False, unique=True),
        Column("playbook_id", BigInteger, nullable=False),
        Column("snapshot_id", BigInteger, nullable=False),
        Column("app", String(64), nullable=False),
        Column("playbook", String(64), nullable=False),
        Column("status", Integer, nullable=False),
        Column("triggered_at", BigInteger, nullable=False),
        Column("started_at", BigInteger, nullable=False),
        Column("ended_at", BigInteger, nullable=False),
        Column("triggered_by", String(128), nullable=False),
        Column("failure_code", String(128), nullable=False),
        Index(f"{name}_snapshot", "snapshot_id", "id"),
        Index(f"{name}_playbook", "playbook_id", "id"),
    )


def _journal(shard: int) -> Table:
    return Table(
        f"journal_{shard}",
        metadata,
        Column("id", _Key, primary_key=True, autoincrement=True),
        Column("trace_id", String(32), nullable=False, index=True),
        Column("partition", Integer, nullable=False),
        Column("sequence", BigInteger, nullable=False),
        Column("at", BigInteger, nullable=False),
        Column("events", LargeBinary, nullable=False),
    )


execution = tuple(_execution(shard) for shard in range(SHARDS))
journal = tuple(_journal(shard) for shard in range(SHARDS))
