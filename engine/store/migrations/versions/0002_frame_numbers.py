"""The projection remembers the number of the last frame, to know a hole in an epoch."""

import sqlalchemy as sa
from alembic import op

revision = "0002"
down_revision = "0001"


def upgrade() -> None:
    op.add_column(
        "projection",
        sa.Column("number", sa.BigInteger(), nullable=False, server_default="-2"),
    )
