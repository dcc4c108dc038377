"""The chain that shows what was altered; the event at each follower's checkpoint."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0005"
down_revision = "0004"
branch_labels = None
depends_on = None

_key = sa.BigInteger().with_variant(sa.Integer(), "sqlite")


def upgrade() -> None:
    op.create_table(
        "eventstore_chain",
        sa.Column("position", _key, autoincrement=False, nullable=False),
        sa.Column("stream_id", sa.BigInteger, nullable=False),
        sa.Column("version", sa.BigInteger, nullable=False),
        sa.Column("hash", sa.LargeBinary(32), nullable=False),
        sa.Column("seal", sa.LargeBinary(32), nullable=False),
        sa.PrimaryKeyConstraint("position", name="eventstore_chain_pkey"),
        sa.UniqueConstraint("stream_id", "version", name="eventstore_chain_stream_id_key"),
    )
    op.add_column("eventstore_followers", sa.Column("event", sa.LargeBinary(16)))
    op.execute("""
        UPDATE eventstore_followers SET event = (
            SELECT e.id FROM eventstore_events AS e
             WHERE e.position <= eventstore_followers.position
             ORDER BY e.position DESC LIMIT 1)""")


def downgrade() -> None:
    op.drop_column("eventstore_followers", "event")
    op.drop_table("eventstore_chain")
