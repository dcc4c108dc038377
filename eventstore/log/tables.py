"""The tables. The migrations are checked against this module: a schema has one definition."""

from __future__ import annotations

from typing import Final

from sqlalchemy import (
    BigInteger,
    Boolean,
    Column,
    Double,
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
REVISION: Final = "0005"

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

#: Who follows the log under a name of its own: projections and handlers, a row a shard. A rebuild
#: in progress has a row as well, with the shard REBUILD.
followers: Final = Table(
    "eventstore_followers",
    metadata,
    Column("name", Name, nullable=False),
    Column("shard", Integer, nullable=False),
    Column("shards", Integer, nullable=False),
    Column("version", Integer, nullable=False),
    Column("fingerprint", Name, nullable=False),
    Column("tables", Name, nullable=False),  # those that a projection owns: a JSON list
    Column("in_step", Boolean, nullable=False),
    Column("position", BigInteger, nullable=False),  # the checkpoint
    Column("handled", BigInteger, nullable=False),  # how many events, in all
    Column("rate", Double, nullable=False),  # events a second, of late
    Column("advanced_at", BigInteger, nullable=False),
    Column("epoch", BigInteger, nullable=False),  # one more with each owner: the fence
    Column("owner", Name),
    Column("expires_at", BigInteger, nullable=False),  # of the owner's lease
    Column("event", LargeBinary(16)),  # the id of the last event up to the checkpoint
    PrimaryKeyConstraint("name", "shard"),
)
REBUILD: Final = -1

#: Who is ready to take shards of a follower, so that all get their share.
workers: Final = Table(
    "eventstore_workers",
    metadata,
    Column("follower", Name, nullable=False),
    Column("worker", Name, nullable=False),
    Column("expires_at", BigInteger, nullable=False),
    PrimaryKeyConstraint("follower", "worker"),
)

#: Events that a follower has set aside: one that failed, and what came after it in its stream.
parked: Final = Table(
    "eventstore_parked",
    metadata,
    Column("follower", Name, nullable=False),
    Column("shard", Integer, nullable=False),
    Column("position", BigInteger, nullable=False),
    Column("stream", Name, nullable=False),
    Column("version", BigInteger, nullable=False),
    Column("type", Name, nullable=False),
    Column("attempts", Integer, nullable=False),
    Column("error", Text),  # none for one that only stands behind another
    Column("parked_at", BigInteger, nullable=False),
    Column("retry", Boolean, nullable=False),
    PrimaryKeyConstraint("follower", "shard", "position"),
)

#: The state of a pure projection at a position: a cache, as snapshots are.
folds: Final = Table(
    "eventstore_folds",
    metadata,
    Column("projection", Name, nullable=False),
    Column("fingerprint", LargeBinary(16), nullable=False),
    Column("position", BigInteger, nullable=False),
    Column("recorded_at", BigInteger, nullable=False),  # the latest of any event folded
    Column("state", LargeBinary, nullable=False),
    PrimaryKeyConstraint("projection", "fingerprint", "position"),
)

#: Streams made over HTTP: what the protocol knows of one beside its messages, which are events of
#: the log stream `stream`. A row outlives its stream, so that a name made anew gets another one.
resources: Final = Table(
    "eventstore_resources",
    metadata,
    Column("path", Name, primary_key=True),
    Column("stream", Name, nullable=False),
    Column("incarnation", Integer, nullable=False),  # from 0: how often the path was made before
    Column("content_type", Name, nullable=False),
    Column("ttl", BigInteger),  # seconds, sliding
    Column("expires_at", BigInteger),  # for ever fixed
    Column("due_at", BigInteger),  # when it is gone unless somebody touches it before
    Column("closed", Boolean, nullable=False),
    Column("closed_by", Name),  # the producer, epoch and sequence that closed it: a JSON list
    Column("seq", LargeBinary),  # the last Stream-Seq
    Column("forked_from", Name),  # the path, and what was asked for with it
    Column("fork_version", BigInteger),
    Column("fork_sub", BigInteger),
    Column("gone", Integer, nullable=False),  # PRESENT, KEPT or ERASED
    Column("created_at", BigInteger, nullable=False),
    Index(None, "due_at"),
    Index(None, "forked_from"),
)
PRESENT: Final = 0
KEPT: Final = 1  # deleted while there are forks of it
ERASED: Final = 2

#: Idempotent producers of such streams: the fence, and what was last accepted.
producers: Final = Table(
    "eventstore_producers",
    metadata,
    Column("path", Name, nullable=False),
    Column("producer", Name, nullable=False),
    Column("epoch", BigInteger, nullable=False),
    Column("seq", BigInteger, nullable=False),
    PrimaryKeyConstraint("path", "producer"),
)

#: Subscriptions made over HTTP: what was asked for, and the state of the wake (section 7 of the
#: protocol). A row outlives its subscription, so that no generation is ever given twice.
subscriptions: Final = Table(
    "eventstore_subscriptions",
    metadata,
    Column("id", Name, primary_key=True),
    Column("type", Name, nullable=False),
    Column("pattern", Name),
    Column("streams", Text, nullable=False),  # named when it was made: a JSON list
    Column("url", Name),  # of a webhook
    Column("wake_stream", Name),
    Column("lease_ttl", BigInteger, nullable=False),  # microseconds
    Column("description", Text),
    Column("digest", LargeBinary(32), nullable=False),  # of all that was asked for
    Column("base_url", Name, nullable=False),  # of the streams, as receivers reach them
    Column("local", Boolean, nullable=False),  # whether the webhook may be on this machine
    Column("created_at", BigInteger, nullable=False),
    Column("deleted", Boolean, nullable=False),
    Column("generation", BigInteger, nullable=False),  # one more with each wake: the fence
    Column("phase", Integer, nullable=False),
    Column("wake_id", Name),
    Column("holder", Name),
    Column("lease_until", BigInteger),
    Column("due_at", BigInteger),  # when somebody has to look at it, if nobody has before
    Column("attempt", BigInteger, nullable=False),  # one more with each try to deliver
    Column("failures", Integer, nullable=False),  # in a row
    Index(None, "due_at"),
)

#: The streams of such a subscription, and up to where each is acknowledged.
links: Final = Table(
    "eventstore_links",
    metadata,
    Column("subscription", Name, nullable=False),
    Column("path", Name, nullable=False),
    Column("explicit", Boolean, nullable=False),
    Column("matched", Boolean, nullable=False),  # by the pattern
    Column("incarnation", BigInteger, nullable=False),
    Column("acked", BigInteger, nullable=False),
    PrimaryKeyConstraint("subscription", "path"),
    Index(None, "path"),
)

#: Keys with which webhooks and tokens are signed.
signing_keys: Final = Table(
    "eventstore_signing_keys",
    metadata,
    Column("id", Name, primary_key=True),
    Column("kind", Name, nullable=False),
    Column("secret", LargeBinary, nullable=False),
    Column("created_at", BigInteger, nullable=False),
)

#: The chain of a log that is sealed: a row an event, also of events that were erased since.
chain: Final = Table(
    "eventstore_chain",
    metadata,
    Column("position", Key, primary_key=True, autoincrement=False),
    Column("stream_id", BigInteger, nullable=False),
    Column("version", BigInteger, nullable=False),
    Column("hash", LargeBinary(32), nullable=False),  # of the event and its stream's previous hash
    Column("seal", LargeBinary(32), nullable=False),  # of the hash and the log's previous seal
    UniqueConstraint("stream_id", "version"),
)
