"""Subscriptions made over HTTP, the streams of each, and the keys that sign for them."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0004"
down_revision = "0003"
branch_labels = None
depends_on = None

_name = sa.Text().with_variant(sa.Text(collation="C"), "postgresql")


def upgrade() -> None:
    op.create_table(
        "eventstore_subscriptions",
        sa.Column("id", _name, nullable=False),
        sa.Column("type", _name, nullable=False),
        sa.Column("pattern", _name),
        sa.Column("streams", sa.Text, nullable=False),
        sa.Column("url", _name),
        sa.Column("wake_stream", _name),
        sa.Column("lease_ttl", sa.BigInteger, nullable=False),
        sa.Column("description", sa.Text),
        sa.Column("digest", sa.LargeBinary(32), nullable=False),
        sa.Column("base_url", _name, nullable=False),
        sa.Column("local", sa.Boolean, nullable=False),
        sa.Column("created_at", sa.BigInteger, nullable=False),
        sa.Column("deleted", sa.Boolean, nullable=False),
        sa.Column("generation", sa.BigInteger, nullable=False),
        sa.Column("phase", sa.Integer, nullable=False),
        sa.Column("wake_id", _name),
        sa.Column("holder", _name),
        sa.Column("lease_until", sa.BigInteger),
        sa.Column("due_at", sa.BigInteger),
        sa.Column("attempt", sa.BigInteger, nullable=False),
        sa.Column("failures", sa.Integer, nullable=False),
        sa.PrimaryKeyConstraint("id", name="eventstore_subscriptions_pkey"),
    )
    op.create_index("eventstore_subscriptions_due_at_idx", "eventstore_subscriptions", ["due_at"])
    op.create_table(
        "eventstore_links",
        sa.Column("subscription", _name, nullable=False),
        sa.Column("path", _name, nullable=False),
        sa.Column("explicit", sa.Boolean, nullable=False),
        sa.Column("matched", sa.Boolean, nullable=False),
        sa.Column("incarnation", sa.BigInteger, nullable=False),
        sa.Column("acked", sa.BigInteger, nullable=False),
        sa.PrimaryKeyConstraint("subscription", "path", name="eventstore_links_pkey"),
    )
    op.create_index("eventstore_links_path_idx", "eventstore_links", ["path"])
    op.create_table(
        "eventstore_signing_keys",
        sa.Column("id", _name, nullable=False),
        sa.Column("kind", _name, nullable=False),
        sa.Column("secret", sa.LargeBinary, nullable=False),
        sa.Column("created_at", sa.BigInteger, nullable=False),
        sa.PrimaryKeyConstraint("id", name="eventstore_signing_keys_pkey"),
    )


def downgrade() -> None:
    op.drop_table("eventstore_signing_keys")
    op.drop_table("eventstore_links")
    op.drop_table("eventstore_subscriptions")
