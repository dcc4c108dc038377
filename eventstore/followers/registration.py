"""Registration: what the database knows of a follower must be what its class declares."""

from __future__ import annotations

import json
from collections.abc import Sequence
from functools import cache
from typing import TypeAlias

from sqlalchemy import Connection

from eventstore import moments
from eventstore.checkpoints import Mark, check_mark
from eventstore.errors import (
    ProjectionChangedError,
    ProjectionOutdatedError,
    ShardsChangedError,
)
from eventstore.fingerprint import comparable, read_model_fingerprint
from eventstore.followers.event_handler import EventHandler
from eventstore.log.base import Log
from eventstore.log.followers import Checkpoint, Followers
from eventstore.log.parked import ParkedEvents
from eventstore.log.transactions import lock_name
from eventstore.projections.changes import marked
from eventstore.projections.places import make_living
from eventstore.projections.table_projection import TableProjection
from eventstore.projections.told import Told

#: Whatever follows the log under a name of its own.
FollowerClass: TypeAlias = type[TableProjection] | type[EventHandler]


def lock_of(follower: str) -> str:
    """The name to lock while a follower's tables, or how it is run, are changed."""
    return f"eventstore follower {follower}"


def code_of(cls: FollowerClass) -> tuple[int, str]:
    """The version and the fingerprint of a follower's code."""
    if not issubclass(cls, TableProjection):
        return 1, ""
    return cls.version, _fingerprint(cls)  # type: ignore[arg-type]  # a class can be hashed


@cache
def _fingerprint(cls: type[TableProjection]) -> str:
    found = read_model_fingerprint(cls, cls.__handlers__, cls.__tables__)
    return marked(found, cls.__changes__)


def check_code(cls: FollowerClass, version: int, fingerprint: str) -> None:
    """Refuse code that is not what has built the tables.

    Raises ProjectionOutdatedError, ProjectionChangedError. Fingerprints of different versions of
    Python cannot be compared, and pass.
    """
    own_version, own = code_of(cls)
    if version != own_version:
        raise ProjectionOutdatedError(cls.__follower__, version, own_version)
    if fingerprint != own and comparable(fingerprint, own):
        raise ProjectionChangedError(cls.__follower__, version)


class Registration:
    """One follower's class against what the database knows of it."""

    def __init__(
        self, log: Log, followers: Followers, parked: ParkedEvents, cls: FollowerClass
    ) -> None:
        self._log = log
        self._followers = followers
        self._parked = parked
        self._cls = cls
        self.name = cls.__follower__
        self.tables = cls.__tables__ if issubclass(cls, TableProjection) else ()
        self.version, self.fingerprint = code_of(cls)
        self._changes = cls.__changes__ if issubclass(cls, TableProjection) else None

    def register(self) -> list[Checkpoint]:
        """The follower's shards; the first time, it is made, with its tables.

        Raises TableTakenError, ProjectionChangedError, ProjectionOutdatedError,
        ShardsChangedError, CheckpointAheadError.
        """
        found = self._followers.find(self.name)
        if not found:
            return self.create()
        self._check(found)
        if len(found) != self._cls.__shards__:
            return self._deal_out()
        return found

    def create(self) -> list[Checkpoint]:
        """Make the follower and its tables, unless somebody else was quicker."""
        with self._log.transaction() as connection:
            lock_name(connection, lock_of(self.name))
            if not self._followers.find(self.name, connection):
                make_living(connection, self.name, self.tables)
                self._followers.add(connection, self.shards())
                self._tell(connection, 0)
            return self._followers.find(self.name, connection)

    def shards(self, position: int = 0, handled: int = 0) -> list[Checkpoint]:
        """The rows of a follower of this class, all at one position."""
        return [
            self.row(shard, position=position, handled=handled if not shard else 0)
            for shard in range(self._cls.__shards__)
        ]

    def row(self, shard: int, *, position: int = 0, handled: int = 0) -> Checkpoint:
        """One row of a follower of this class, which nobody holds."""
        return Checkpoint(
            name=self.name,
            shard=shard,
            shards=self._cls.__shards__,
            version=self.version,
            fingerprint=self.fingerprint,
            tables=self.table_names(),
            in_step=False,
            position=position,
            handled=handled,
            rate=0.0,
            advanced_at=moments.now(),
            epoch=0,
            owner=None,
            expires_at=0,
        )

    def table_names(self) -> str:
        """The names of its tables, as they are stored."""
        return json.dumps([table.name for table in self.tables])

    def accept(self) -> None:
        """Take the present code for that which has built the tables."""
        with self._log.transaction() as connection:
            if self._changes is not None:
                lock_name(connection, lock_of(self.name))
                rows = self._followers.lock(connection, self.name)
                self._tell(connection, max(row.position for row in rows))
            self._followers.set(
                connection, self.name, fingerprint=self.fingerprint, version=self.version
            )

    def _tell(self, connection: Connection, position: int) -> None:
        """Let the stream of changes, if there is one, say what the tables do."""
        if self._changes is not None:
            told = Told(self._log, self._changes)
            told.read(connection)
            told.bring(connection, position)

    def _check(self, found: Sequence[Checkpoint]) -> None:
        check_code(self._cls, found[0].version, found[0].fingerprint)
        furthest = max(found, key=lambda row: row.position)
        check_mark(self._log, Mark(furthest.position, furthest.event))
        if found[0].fingerprint != self.fingerprint:
            # Another version of Python: its bytecode says nothing of ours.
            self.accept()

    def _deal_out(self) -> list[Checkpoint]:
        """Divide the streams anew: possible while all shards are at one position, and idle."""
        with self._log.transaction() as connection:
            lock_name(connection, lock_of(self.name))
            found = self._followers.lock(connection, self.name)
            idle = all(row.expires_at < moments.now() for row in found)
            if (
                len({row.position for row in found}) > 1
                or not idle
                or self._parked.any(connection, self.name)
            ):
                raise ShardsChangedError(self.name, len(found), self._cls.__shards__)
            self._followers.remove(connection, self.name)
            handled = sum(row.handled for row in found)
            self._followers.add(connection, self.shards(found[0].position, handled))
            return self._followers.find(self.name, connection)
