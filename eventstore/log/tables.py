"""The tables. The migrations are checked against this module: a schema has one definition."""

from __future__ import annotations

from typing import Final

from sqlalchemy import (
    BigInteger,
    Boolean,
    Column,
    Identity,
    Index,
    Integer,
    LargeBinary,
    MetaData,
    PrimaryKeyConstraint,
    Table,
    Text,
    UniqueConstraint,
    false,
)

#: Every table's name starts so; `eventstore_alembic` holds the revision.
PREFIX: Final = "eventstore_"
VERSION_TABLE: Final = "eventstore_alembic"

#: The Alembic revision whose schema this module describes.
REVISION: Final = "0001"

metadata: Final = MetaData(
    naming_convention={
        "pk": "%(table_name)s_pkey",
        "uq": "%(table_name)s_%(column_0_name)s_key",
        "fk": "%(table_name)s_%(column_0_name)s_fkey",
        "ix": "%(table_name)s_%(column_0_N_name)s_idx",
    }
)

# SQLite's rowid is an "INTEGER PRIMARY KEY" by that very name. AUTOINCREMENT is not needed: a
# deletion leaves a tombstone at the log's tail, so that no position is ever given twice.
Key: Final = BigInteger().with_variant(Integer(), "sqlite")
# By code points on both databases, so that paging by name has one order.
Name: Final = Text().with_variant(Text(collation="C"), "postgresql")

streams: Final = Table(
    "eventstore_streams",
    metadata,
    Column("id", Key, Identity(), primary_key=True),
    Column("name", Name, nullable=False),
    Column("category", Name, nullable=False),
    Column("version", BigInteger, nullable=False),
    Column("recorded_at", BigInteger, nullable=False),  # that of the last event
    Column("deleted", Boolean, nullable=False, server_default=false()),
    UniqueConstraint("name"),
    Index(None, "category", "name"),
)

#: A stored name with a schema version. Events carry its small id instead of both.
types: Final = Table(
    "eventstore_types",
    metadata,
    Column("id", Integer, Identity(), primary_key=True),
    Column("name", Name, nullable=False),
    Column("version", Integer, nullable=False),
    UniqueConstraint("name", "version"),
)

# No foreign keys: each costs a lookup and a row lock for every event, and the one statement that
# writes an event takes both keys from the rows themselves.
events: Final = Table(
    "eventstore_events",
    metadata,
    Column("position", Key, Identity(), primary_key=True),
    Column("stream_id", BigInteger, nullable=False),
    Column("version", BigInteger, nullable=False),
    Column("type_id", Integer, nullable=False),
    Column("recorded_at", BigInteger, nullable=False),  # microseconds since the epoch
    Column("id", LargeBinary(16), nullable=False),
    Column("data", LargeBinary, nullable=False),
    Column("metadata", LargeBinary),
    UniqueConstraint("stream_id", "version"),
)

snapshots: Final = Table(
    "eventstore_snapshots",
    metadata,
    Column("stream_id", BigInteger, nullable=False),
    Column("fingerprint", LargeBinary(16), nullable=False),
    Column("version", BigInteger, nullable=False),
    Column("position", BigInteger, nullable=False),
    Column("recorded_at", BigInteger, nullable=False),
    Column("state", LargeBinary, nullable=False),
    PrimaryKeyConstraint("stream_id", "fingerprint", "version"),
)

#: Idempotency keys, with the receipts of the append that had them first.
appends: Final = Table(
    "eventstore_appends",
    metadata,
    Column("key", Name, primary_key=True),
    Column("receipts", LargeBinary, nullable=False),
    Column("recorded_at", BigInteger, nullable=False),
)
