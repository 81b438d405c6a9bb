"""Apps have limits and a set of brokers."""

import sqlalchemy as sa
from alembic import op

revision = "0003"
down_revision = "0002"


def upgrade() -> None:
    for name in ("in_flight", "require_workers", "max_nodes", "max_edges", "max_document"):
        op.add_column("app", sa.Column(name, sa.Integer(), nullable=False, server_default="0"))
    op.add_column(
        "app",
        sa.Column("balancing", sa.String(32), nullable=False, server_default="round_robin"),
    )
