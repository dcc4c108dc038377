"""The log: streams, types, events, snapshots, idempotency keys.

A migration is history, so it spells everything out and imports nothing of the library.
"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0001"
down_revision = None
branch_labels = None
depends_on = None

_key = sa.BigInteger().with_variant(sa.Integer(), "sqlite")
_name = sa.Text().with_variant(sa.Text(collation="C"), "postgresql")


def upgrade() -> None:
    op.create_table(
        "eventstore_streams",
        sa.Column("id", _key, sa.Identity(), nullable=False),
        sa.Column("name", _name, nullable=False),
        sa.Column("category", _name, nullable=False),
        sa.Column("version", sa.BigInteger, nullable=False),
        sa.Column("recorded_at", sa.BigInteger, nullable=False),
        sa.Column("deleted", sa.Boolean, nullable=False, server_default=sa.false()),
        sa.PrimaryKeyConstraint("id", name="eventstore_streams_pkey"),
        sa.UniqueConstraint("name", name="eventstore_streams_name_key"),
    )
    op.create_index(
        "eventstore_streams_category_name_idx", "eventstore_streams", ["category", "name"]
    )
    op.create_table(
        "eventstore_types",
        sa.Column("id", sa.Integer, sa.Identity(), nullable=False),
        sa.Column("name", _name, nullable=False),
        sa.Column("version", sa.Integer, nullable=False),
        sa.PrimaryKeyConstraint("id", name="eventstore_types_pkey"),
        sa.UniqueConstraint("name", "version", name="eventstore_types_name_key"),
    )
    op.create_table(
        "eventstore_events",
        sa.Column("position", _key, sa.Identity(), nullable=False),
        sa.Column("stream_id", sa.BigInteger, nullable=False),
        sa.Column("version", sa.BigInteger, nullable=False),
        sa.Column("type_id", sa.Integer, nullable=False),
        sa.Column("recorded_at", sa.BigInteger, nullable=False),
        sa.Column("id", sa.LargeBinary(16), nullable=False),
        sa.Column("data", sa.LargeBinary, nullable=False),
        sa.Column("metadata", sa.LargeBinary),
        sa.PrimaryKeyConstraint("position", name="eventstore_events_pkey"),
        sa.UniqueConstraint("stream_id", "version", name="eventstore_events_stream_id_key"),
    )
    op.create_table(
        "eventstore_snapshots",
        sa.Column("stream_id", sa.BigInteger, nullable=False),
        sa.Column("fingerprint", sa.LargeBinary(16), nullable=False),
        sa.Column("version", sa.BigInteger, nullable=False),
        sa.Column("position", sa.BigInteger, nullable=False),
        sa.Column("recorded_at", sa.BigInteger, nullable=False),
        sa.Column("state", sa.LargeBinary, nullable=False),
        sa.PrimaryKeyConstraint(
            "stream_id", "fingerprint", "version", name="eventstore_snapshots_pkey"
        ),
    )
    op.create_table(
        "eventstore_appends",
        sa.Column("key", _name, nullable=False),
        sa.Column("receipts", sa.LargeBinary, nullable=False),
        sa.Column("recorded_at", sa.BigInteger, nullable=False),
        sa.PrimaryKeyConstraint("key", name="eventstore_appends_pkey"),
    )


def downgrade() -> None:
    for table in ("appends", "snapshots", "events", "types", "streams"):
        op.drop_table(f"eventstore_{table}")
