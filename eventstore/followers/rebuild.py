"""Rebuild: a projection's tables are built anew beside the living ones, then put in their place."""

from __future__ import annotations

import contextlib
import json
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Final

from sqlalchemy import Connection

from eventstore.codec import Codec
from eventstore.errors import (
    HandlerError,
    LogLockedError,
    ProjectionOutdatedError,
    RebuildDiffersError,
    RebuildRunningError,
    ShardsChangedError,
)
from eventstore.followers.follower import shard_of
from eventstore.followers.owner import has_died
from eventstore.followers.registration import Registration, lock_of
from eventstore.log.base import Bounds, Log, Row, Shard
from eventstore.log.followers import Checkpoint, Followers
from eventstore.log.parked import ParkedEvents
from eventstore.log.tables import REBUILD
from eventstore.log.transactions import lock_name
from eventstore.projections.applying import Applier, handler_error, may_be_a_handlers
from eventstore.projections.feed import Feed
from eventstore.projections.places import Shadow, shadow
from eventstore.projections.table_projection import TableProjection

#: Events a transaction, at the most.
BATCH: Final = 5000
#: Seconds for which a rebuild holds its lease from one batch to the next.
_LEASE: Final = 30.0
#: How many differing rows of a table a verification tells.
_MOST: Final = 100
#: How long, in seconds, a swap is tried again while readers hold on to the living tables.
_READERS: Final = 60.0


@dataclass(frozen=True, slots=True)
class Progress:
    """How far a rebuild is."""

    #: The position up to which events have been handled, and the one to be reached.
    position: int
    head: int
    #: How many events have been handled.
    events: int
    #: How long it has taken.
    seconds: float
    #: The position from which it went on.
    started: int = 0

    @property
    def rate(self) -> float:
        """Events a second."""
        return self.events / self.seconds if self.seconds else 0.0

    @property
    def seconds_left(self) -> float | None:
        """An estimate of the time left; None while nothing is known."""
        done, left = self.position - self.started, self.head - self.position
        return self.seconds * left / done if done else None


class Rebuild:
    """One rebuild of one projection. See `EventStore.rebuild`."""

    def __init__(
        self,
        log: Log,
        codec: Codec,
        followers: Followers,
        parked: ParkedEvents,
        registration: Registration,
        cls: type[TableProjection],
        *,
        owner: str,
        read_timeout: float,
        verify: bool,
        progress: Callable[[Progress], None] | None,
    ) -> None:
        self._log = log
        self._codec = codec
        self._followers = followers
        self._parked = parked
        self._registration = registration
        self._cls = cls
        self._owner = owner
        self._read_timeout = read_timeout
        self._verify = verify
        self._report = progress or (lambda _: None)
        self._feed = self._feed_of(None)
        self._applier = Applier(cls(), self._feed)
        self._events = 0
        self._renewed_at = time.monotonic()

    def run(self) -> Progress:
        """Build, catch up, compare if asked to, swap; the last progress."""
        name = self._registration.name
        if not self._followers.find(name):
            self._registration.create()
        tables = shadow(self._log, self._cls.__tables__)
        try:
            lease = self._begin(tables)
            try:
                return self._build_and_swap(tables, lease)
            except (HandlerError, RebuildDiffersError):
                self._abandon(tables)
                raise
            except BaseException:
                # What is built so far is kept, where it can be, for the next one to go on from.
                with contextlib.suppress(Exception):
                    self._followers.release(lease)
                raise
        finally:
            tables.close()

    # --- beginning -----------------------------------------------------------------------------

    def _begin(self, tables: Shadow) -> Checkpoint:
        """Make the shadows, or find those that an interrupted rebuild has left, and own them."""
        registration = self._registration
        name = registration.name
        with self._log.transaction() as connection:
            lock_name(connection, lock_of(name))
            found = self._followers.find(name, connection)
            if found and found[0].version > registration.version:
                raise ProjectionOutdatedError(name, found[0].version, registration.version)
            left = self._followers.rebuild(name, connection)
            lease = None
            if left is not None:
                lease = self._claim(connection, left)
                if lease is None:
                    raise RebuildRunningError(name, str(left.owner))
            if left is None or lease is None or not self._fits(tables, left):
                self._followers.remove(connection, name, rebuild=True)
                tables.make(connection, json.loads(left.tables) if left else ())
                fresh = registration.row(REBUILD)._replace(epoch=left.epoch if left else 0)
                self._followers.add(connection, [fresh])
                lease = self._claim(connection, fresh)
        assert lease is not None
        return lease

    def _claim(self, connection: Connection, row: Checkpoint) -> Checkpoint | None:
        dead = row.owner if row.owner and has_died(row.owner) else None
        return self._followers.claim(
            row.name, REBUILD, self._owner, _LEASE, dead=dead, connection=connection
        )

    def _fits(self, tables: Shadow, left: Checkpoint) -> bool:
        """Whether the shadows that were left behind were made by this very code."""
        registration = self._registration
        return (
            tables.durable
            and left.version == registration.version
            and left.fingerprint == registration.fingerprint
        )

    def _abandon(self, tables: Shadow) -> None:
        tables.drop()
        with self._log.transaction() as connection:
            self._followers.remove(connection, self._registration.name, rebuild=True)

    # --- building ------------------------------------------------------------------------------

    def _build_and_swap(self, tables: Shadow, lease: Checkpoint) -> Progress:
        started, began = lease.position, time.monotonic()

        def report(head: int) -> Progress:
            seconds = time.monotonic() - began
            progress = Progress(lease.position, head, self._events, seconds, started)
            self._report(progress)
            return progress

        # Until next to nothing is left, and that is left for the swap.
        head = self._target()
        while lease.position < head:
            lease = self._batch(tables, lease, head)
            report(head)
            if lease.position >= head:
                head = self._target()
        deadline = time.monotonic() + _READERS
        while True:
            try:
                lease = self._finish(tables, lease)
                return report(lease.position)
            except LogLockedError:  # readers of the living tables
                if time.monotonic() > deadline:
                    raise
                self._followers.renew(lease, _LEASE)
                time.sleep(0.2)

    def _target(self) -> int:
        """How far to build before the swap."""
        head = self._log.settled(self._read_timeout)
        shards = self._followers.find(self._registration.name)
        if self._goes_to_head(shards):
            return head
        return min(row.position for row in shards)  # no further than the living, to compare

    def _batch(self, tables: Shadow, lease: Checkpoint, head: int) -> Checkpoint:
        page = self._feed.page(lease.position, Bounds(position=head), BATCH)
        to = page[-1][0] if len(page) == BATCH else head
        with self._blaming(tables, lease.position, to), tables.transaction() as connection:
            self._applier.together(connection, page)
            if tables.durable:
                lease = self._move(connection, lease, to, len(page))
        if not tables.durable:
            lease = self._renewed(lease, to, len(page))
        self._events += len(page)
        return lease

    def _move(self, connection: Connection, lease: Checkpoint, to: int, handled: int) -> Checkpoint:
        return self._followers.advance(connection, lease, to, handled=handled, seconds=_LEASE)

    def _renewed(self, lease: Checkpoint, to: int, handled: int) -> Checkpoint:
        # The shadows would not outlive this process, so their position need not either; only now
        # and then does the log's one writer have to wait for a lease.
        if time.monotonic() - self._renewed_at > _LEASE / 3:
            self._followers.renew(lease, _LEASE)
            self._renewed_at = time.monotonic()
        return lease._replace(position=to, handled=lease.handled + handled)

    @contextlib.contextmanager
    def _blaming(self, tables: Shadow, after: int, to: int) -> Iterator[None]:
        """Turn the failure of a page into that of the first event that fails by itself."""
        try:
            yield
        except Exception as error:
            if not may_be_a_handlers(error):
                raise
            culprits: list[tuple[Row, Exception]] = []

            def failed(row: Row, failure: Exception) -> None:
                culprits.append((row, failure))
                raise failure

            with contextlib.suppress(Exception), tables.transaction() as connection:
                rows = self._feed.rows(after, Bounds(position=to), BATCH, connection=connection)
                self._applier.singly(connection, rows, failed)
                connection.rollback()
            if not culprits:
                raise
            row, failure = culprits[0]
            raise handler_error(self._log, self._registration.name, row, failure) from failure

    # --- finishing -----------------------------------------------------------------------------

    def _finish(self, tables: Shadow, lease: Checkpoint) -> Checkpoint:
        """Catch up, compare and swap, in one transaction that keeps other writers out."""
        name = self._registration.name
        living = json.loads(self._followers.find(name)[0].tables)
        with tables.finishing(lock_of(name), living) as connection:
            shards = self._followers.lock(connection, name)
            self._followers.renew(lease, _LEASE, connection)
            head = self._log.settled(self._read_timeout, connection=connection)
            if self._goes_to_head(shards):
                self._catch_up(connection, lease.position, head, None)
            else:
                for row in shards:
                    self._catch_up(connection, lease.position, row.position, shard_of(row))
            if self._verify:
                self._compare(tables, connection)
            tables.swap(connection, living)
            self._adopt(connection, shards, head)
            self._followers.remove(connection, name, rebuild=True)
        return lease._replace(position=head)

    def _goes_to_head(self, shards: Sequence[Checkpoint]) -> bool:
        """Whether the new tables begin where the log ends; else where the living ones are."""
        return not self._verify or any(row.in_step for row in shards)

    def _catch_up(
        self, connection: Connection, after: int, until: int, shard: Shard | None
    ) -> None:
        feed = self._feed if shard is None else self._feed_of(shard)
        applier = Applier(self._cls(), feed)
        while page := feed.page(after, Bounds(position=until), BATCH, connection=connection):
            try:
                applier.together(connection, page)
            except Exception as error:
                rows = feed.rows(after, Bounds(position=page[-1][0]), BATCH, connection=connection)
                raise handler_error(self._log, self._registration.name, rows[0], error) from error
            self._events += len(page)
            after = page[-1][0]

    def _compare(self, tables: Shadow, connection: Connection) -> None:
        found = tables.differences(connection, _MOST + 1)
        if found:
            more = len(found) > _MOST
            raise RebuildDiffersError(self._registration.name, tuple(found[:_MOST]), more)

    def _adopt(self, connection: Connection, shards: Sequence[Checkpoint], head: int) -> None:
        """The checkpoints of the new tables. Whoever holds a lease on the old ones has lost it."""
        registration, name = self._registration, self._registration.name
        self._parked.clear(connection, name)
        if len(shards) == self._cls.__shards__:
            position = {"position": head} if self._goes_to_head(shards) else {}
            self._followers.set(
                connection,
                name,
                version=registration.version,
                fingerprint=registration.fingerprint,
                tables=registration.table_names(),
                **position,
            )
            return
        positions = {head} if self._goes_to_head(shards) else {row.position for row in shards}
        if len(positions) > 1:
            raise ShardsChangedError(name, len(shards), self._cls.__shards__)
        epoch = max(row.epoch for row in shards) + 1
        in_step = shards[0].in_step
        self._followers.remove(connection, name)
        self._followers.add(
            connection,
            [
                row._replace(epoch=epoch, in_step=in_step)
                for row in registration.shards(positions.pop())
            ],
        )

    def _feed_of(self, shard: Shard | None) -> Feed:
        return Feed(
            self._log,
            self._codec,
            self._cls.__handlers__,
            categories=self._cls.__categories__,
            shard=shard,
        )
