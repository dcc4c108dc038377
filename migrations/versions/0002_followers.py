"""Followers of the log: checkpoints and leases, workers, parked events, folds.

On PostgreSQL also the schema in which projections are rebuilt beside the living: making it here
spares the application the right to make schemas.
"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0002"
down_revision = "0001"
branch_labels = None
depends_on = None

_name = sa.Text().with_variant(sa.Text(collation="C"), "postgresql")


def upgrade() -> None:
    op.create_table(
        "eventstore_followers",
        sa.Column("name", _name, nullable=False),
        sa.Column("shard", sa.Integer, nullable=False),
        sa.Column("shards", sa.Integer, nullable=False),
        sa.Column("version", sa.Integer, nullable=False),
        sa.Column("fingerprint", _name, nullable=False),
        sa.Column("tables", _name, nullable=False),
        sa.Column("in_step", sa.Boolean, nullable=False),
        sa.Column("position", sa.BigInteger, nullable=False),
        sa.Column("handled", sa.BigInteger, nullable=False),
        sa.Column("rate", sa.Double, nullable=False),
        sa.Column("advanced_at", sa.BigInteger, nullable=False),
        sa.Column("epoch", sa.BigInteger, nullable=False),
        sa.Column("owner", _name),
        sa.Column("expires_at", sa.BigInteger, nullable=False),
        sa.PrimaryKeyConstraint("name", "shard", name="eventstore_followers_pkey"),
    )
    op.create_table(
        "eventstore_workers",
        sa.Column("follower", _name, nullable=False),
        sa.Column("worker", _name, nullable=False),
        sa.Column("expires_at", sa.BigInteger, nullable=False),
        sa.PrimaryKeyConstraint("follower", "worker", name="eventstore_workers_pkey"),
    )
    op.create_table(
        "eventstore_parked",
        sa.Column("follower", _name, nullable=False),
        sa.Column("shard", sa.Integer, nullable=False),
        sa.Column("position", sa.BigInteger, nullable=False),
        sa.Column("stream", _name, nullable=False),
        sa.Column("version", sa.BigInteger, nullable=False),
        sa.Column("type", _name, nullable=False),
        sa.Column("attempts", sa.Integer, nullable=False),
        sa.Column("error", sa.Text),
        sa.Column("parked_at", sa.BigInteger, nullable=False),
        sa.Column("retry", sa.Boolean, nullable=False),
        sa.PrimaryKeyConstraint("follower", "shard", "position", name="eventstore_parked_pkey"),
    )
    op.create_table(
        "eventstore_folds",
        sa.Column("projection", _name, nullable=False),
        sa.Column("fingerprint", sa.LargeBinary(16), nullable=False),
        sa.Column("position", sa.BigInteger, nullable=False),
        sa.Column("recorded_at", sa.BigInteger, nullable=False),
        sa.Column("state", sa.LargeBinary, nullable=False),
        sa.PrimaryKeyConstraint(
            "projection", "fingerprint", "position", name="eventstore_folds_pkey"
        ),
    )
    if op.get_bind().dialect.name == "postgresql":
        op.execute("CREATE SCHEMA IF NOT EXISTS eventstore_shadow")


def downgrade() -> None:
    if op.get_bind().dialect.name == "postgresql":
        op.execute("DROP SCHEMA IF EXISTS eventstore_shadow CASCADE")
    for table in ("folds", "parked", "workers", "followers"):
        op.drop_table(f"eventstore_{table}")
