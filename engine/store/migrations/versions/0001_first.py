"""The first tables."""

import sqlalchemy as sa
from alembic import op

revision = "0001"
down_revision = None

_key = sa.BigInteger().with_variant(sa.Integer, "sqlite")


def _column(name: str, kind: object, **options: object) -> sa.Column:  # type: ignore[type-arg]
    return sa.Column(name, kind, nullable=False, **options)  # type: ignore[arg-type, call-overload, no-any-return]


def upgrade() -> None:
    op.create_table(
        "app",
        sa.Column("name", sa.String(64), primary_key=True),
        _column("description", sa.Text()),
        _column("enabled", sa.Integer()),
        _column("quota", sa.Float()),
        _column("brokers", sa.LargeBinary()),
        _column("created_at", sa.BigInteger()),
    )
    op.create_table(
        "token",
        sa.Column("id", sa.String(64), primary_key=True),
        _column("app", sa.String(64)),
        _column("subject", sa.String(128)),
        _column("scopes", sa.String(128)),
        _column("created_at", sa.BigInteger()),
        _column("expires_at", sa.BigInteger()),
        _column("revoked_at", sa.BigInteger()),
    )
    op.create_index("ix_token_app", "token", ["app"])
    op.create_table(
        "playbook",
        sa.Column("id", _key, primary_key=True, autoincrement=True),
        _column("app", sa.String(64)),
        _column("name", sa.String(64)),
        _column("description", sa.Text()),
        _column("created_at", sa.BigInteger()),
        sa.UniqueConstraint("app", "name", name="playbook_name"),
        sqlite_autoincrement=True,
    )
    op.create_table(
        "snapshot",
        sa.Column("id", _key, primary_key=True, autoincrement=True),
        _column("playbook_id", sa.BigInteger()),
        _column("checksum", sa.LargeBinary(32)),
        _column("content", sa.LargeBinary()),
        _column("document", sa.Text()),
        _column("published_at", sa.BigInteger()),
        _column("published_by", sa.String(128)),
        sa.UniqueConstraint("playbook_id", "checksum", name="snapshot_content"),
        sqlite_autoincrement=True,
    )
    op.create_table(
        "app_grant",
        sa.Column("owner", sa.String(64), primary_key=True),
        sa.Column("grantee", sa.String(64), primary_key=True),
        sa.Column("target", sa.String(129), primary_key=True),
    )
    op.create_table(
        "projection",
        sa.Column("partition", sa.Integer(), primary_key=True, autoincrement=False),
        _column("sequence", sa.BigInteger()),
        _column("epoch", sa.BigInteger()),
    )
    for shard in range(10):
        _shard(shard)


def _shard(shard: int) -> None:
    execution, journal = f"execution_{shard}", f"journal_{shard}"
    op.create_table(
        execution,
        sa.Column("id", _key, primary_key=True, autoincrement=True),
        _column("trace_id", sa.String(32), unique=True),
        _column("playbook_id", sa.BigInteger()),
        _column("snapshot_id", sa.BigInteger()),
        _column("app", sa.String(64)),
        _column("playbook", sa.String(64)),
        _column("status", sa.Integer()),
        _column("triggered_at", sa.BigInteger()),
        _column("started_at", sa.BigInteger()),
        _column("ended_at", sa.BigInteger()),
        _column("triggered_by", sa.String(128)),
        _column("failure_code", sa.String(128)),
    )
    op.create_index(f"{execution}_snapshot", execution, ["snapshot_id", "id"])
    op.create_index(f"{execution}_playbook", execution, ["playbook_id", "id"])
    op.create_table(
        journal,
        sa.Column("id", _key, primary_key=True, autoincrement=True),
        _column("trace_id", sa.String(32)),
        _column("partition", sa.Integer()),
        _column("sequence", sa.BigInteger()),
        _column("at", sa.BigInteger()),
        _column("events", sa.LargeBinary()),
    )
    op.create_index(f"ix_{journal}_trace_id", journal, ["trace_id"])


def downgrade() -> None:
    for shard in range(10):
        op.drop_table(f"journal_{shard}")
        op.drop_table(f"execution_{shard}")
    for name in ("projection", "app_grant", "snapshot", "playbook", "token", "app"):
        op.drop_table(name)
