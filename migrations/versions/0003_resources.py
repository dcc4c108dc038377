"""Streams made over HTTP, and their idempotent producers."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0003"
down_revision = "0002"
branch_labels = None
depends_on = None

_name = sa.Text().with_variant(sa.Text(collation="C"), "postgresql")


def upgrade() -> None:
    op.create_table(
        "eventstore_resources",
        sa.Column("path", _name, nullable=False),
        sa.Column("stream", _name, nullable=False),
        sa.Column("incarnation", sa.Integer, nullable=False),
        sa.Column("content_type", _name, nullable=False),
        sa.Column("ttl", sa.BigInteger),
        sa.Column("expires_at", sa.BigInteger),
        sa.Column("due_at", sa.BigInteger),
        sa.Column("closed", sa.Boolean, nullable=False),
        sa.Column("closed_by", _name),
        sa.Column("seq", sa.LargeBinary),
        sa.Column("forked_from", _name),
        sa.Column("fork_version", sa.BigInteger),
        sa.Column("fork_sub", sa.BigInteger),
        sa.Column("gone", sa.Integer, nullable=False),
        sa.Column("created_at", sa.BigInteger, nullable=False),
        sa.PrimaryKeyConstraint("path", name="eventstore_resources_pkey"),
    )
    for column in ("due_at", "forked_from"):
        op.create_index(f"eventstore_resources_{column}_idx", "eventstore_resources", [column])
    op.create_table(
        "eventstore_producers",
        sa.Column("path", _name, nullable=False),
        sa.Column("producer", _name, nullable=False),
        sa.Column("epoch", sa.BigInteger, nullable=False),
        sa.Column("seq", sa.BigInteger, nullable=False),
        sa.PrimaryKeyConstraint("path", "producer", name="eventstore_producers_pkey"),
    )


def downgrade() -> None:
    op.drop_table("eventstore_producers")
    op.drop_table("eventstore_resources")
