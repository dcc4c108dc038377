"""Rebuild: a projection's tables are built anew beside the living ones, then put in their place."""

from __future__ import annotations

import contextlib
import json
import time
from collections.abc import Callable, Generator, Sequence
from dataclasses import dataclass
from typing import Final

from sqlalchemy import Connection

from eventstore.errors import (
    EventStoreError,
    HandlerError,
    LogLockedError,
    ProjectionOutdatedError,
    RebuildDiffersError,
    RebuildRunningError,
    ShardsChangedError,
    StoredEventError,
)
from eventstore.followers.follower import shard_of
from eventstore.followers.owner import has_died
from eventstore.followers.registration import Registration, lock_of
from eventstore.log.base import Bounds, Log, Shard
from eventstore.log.followers import Checkpoint, Followers
from eventstore.log.parked import ParkedEvents
from eventstore.log.tables import REBUILD, followers
from eventstore.log.transactions import lock_name
from eventstore.projections.changes import Recorder
from eventstore.projections.feed import Page
from eventstore.projections.places import Shadow, shadow
from eventstore.projections.replaying import Replay
from eventstore.projections.table_projection import TableProjection
from eventstore.projections.told import Told

#: Events a transaction, about, at the most: a row that they change often is written once.
BATCH: Final = 200_000
#: Events a page, at the most; and one of those that are a transaction each.
_PAGE: Final = 500
_CATCH_UP: Final = 5000
#: Seconds for which a rebuild holds its lease from one batch to the next.
_LEASE: Final = 30.0
#: How many differing rows of a table a verification tells.
_MOST: Final = 100
#: How long, in seconds, a swap is tried again while others hold on to the living tables.
_READERS: Final = 60.0
#: Seconds for which they have the tables to themselves before the next try.
_PAUSE: Final = 0.2


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
        self._followers = followers
        self._parked = parked
        self._registration = registration
        self._name = registration.name
        self._cls = cls
        self._owner = owner
        self._read_timeout = read_timeout
        self._verify = verify
        self._report: Callable[[Progress], None] = progress or (lambda _: None)
        self._replay = Replay(log, cls)
        self._told = None if cls.__changes__ is None else Told(log, cls.__changes__)
        self._recorder: Recorder | None = None
        self._began = self._renewed_at = time.monotonic()

    def run(self) -> Progress:
        """Build, catch up, compare if asked to, swap; the last progress."""
        if not self._followers.find(self._name):
            self._registration.create()
        tables = shadow(self._log, self._cls.__tables__)
        try:
            lease = self._first = self._begin(tables)
            try:
                return self._build_and_swap(tables, lease)
            except BaseException as error:
                # It would come to the same if it went on from here, or it cannot.
                hopeless = isinstance(error, (HandlerError, StoredEventError, RebuildDiffersError))
                with contextlib.suppress(EventStoreError):
                    if hopeless or not tables.durable:
                        self._abandon(tables, lease)
                    else:
                        self._followers.release(lease)
                raise
        finally:
            tables.close()

    # --- beginning, and giving up --------------------------------------------------------------

    def _begin(self, tables: Shadow) -> Checkpoint:
        """Make the shadows, or find those that an interrupted rebuild has left, and own them."""
        registration, name = self._registration, self._name
        with self._log.transaction() as connection:
            lock_name(connection, lock_of(name))
            shards = self._followers.find(name, connection)
            if shards[0].version > registration.version:
                raise ProjectionOutdatedError(name, shards[0].version, registration.version)
            left = self._followers.rebuild(name, connection)
            lease = None if left is None else self._claim(connection, left)
            if left is not None and lease is None:
                raise RebuildRunningError(name, str(left.owner))
            tables.check(connection, name, _tables_of(shards[0]))
            if lease is None or not self._fits(tables, lease, shards):
                self._followers.remove(connection, name, rebuild=True)
                tables.make(connection, _tables_of(lease) if lease else ())
                fresh = registration.row(REBUILD)._replace(epoch=lease.epoch if lease else 0)
                self._followers.add(connection, [fresh])
                lease = self._claim(connection, fresh)
        assert lease is not None
        return lease

    def _claim(self, connection: Connection, row: Checkpoint) -> Checkpoint | None:
        dead = row.owner if row.owner and has_died(row.owner) else None
        return self._followers.claim(
            row.name, REBUILD, self._owner, _LEASE, dead=dead, connection=connection
        )

    def _fits(self, tables: Shadow, left: Checkpoint, shards: Sequence[Checkpoint]) -> bool:
        """Whether it can go on with the shadows that were left behind."""
        registration = self._registration
        return (
            tables.durable
            and (left.version, left.fingerprint) == (registration.version, registration.fingerprint)
            and (self._goes_to_head(shards) or left.position <= _least(shards))
        )

    def _abandon(self, tables: Shadow, lease: Checkpoint) -> None:
        with self._log.transaction() as connection:
            self._followers.renew(lease, _LEASE, connection)  # else the shadows are another's
            tables.drop(connection)
            self._followers.remove(connection, self._name, rebuild=True)

    # --- building ------------------------------------------------------------------------------

    def _build_and_swap(self, tables: Shadow, lease: Checkpoint) -> Progress:
        lease = self._build(tables, lease)
        if self._told is not None:
            self._survey(tables, lease, self._told)
            lease = self._build(tables, lease)  # what came in meanwhile
        tables.analyze()
        deadline = time.monotonic() + _READERS
        while True:
            if self._told is not None:
                self._told.read()
            try:
                lease = self._finish(tables, lease)
            except LogLockedError:
                if time.monotonic() > deadline:
                    raise
                time.sleep(_PAUSE)
                self._followers.renew(lease, _LEASE)
                lease = self._build(tables, lease)
            else:
                return self._tell(lease, lease.position)

    def _survey(self, tables: Shadow, lease: Checkpoint, told: Told) -> None:
        """See what there will be to tell, while nobody waits for the swap."""
        told.read()
        with tables.transaction() as connection:
            told.survey(connection)
        self._recorder = Recorder(told.declared)
        self._replay.record(self._recorder)
        self._renew_in_time(lease)

    def _build(self, tables: Shadow, lease: Checkpoint) -> Checkpoint:
        """Handle all but what is appended during one batch: that is left for the swap."""
        while True:
            head, batches = self._target(), 0
            bounds = Bounds(position=head)
            size = min(BATCH, _PAGE if self._log.reads_aside else _CATCH_UP)
            with contextlib.closing(self._replay.pages(lease.position, bounds, size)) as pages:
                while lease.position < head:
                    lease = self._batch(tables, lease, head, pages)
                    batches += 1
                    self._tell(lease, head)
            if batches <= 1:
                return lease

    def _target(self) -> int:
        """How far to build before the swap."""
        head = self._log.settled(self._read_timeout)
        shards = self._followers.find(self._name)
        return head if self._goes_to_head(shards) else _least(shards)

    def _goes_to_head(self, shards: Sequence[Checkpoint]) -> bool:
        """Whether the new tables begin where the log ends; else where the living ones are.

        There they are compared; and side effects, which a rebuild leaves out, go on from there.
        """
        stay = self._verify or self._cls.__handlers__.effects
        return not stay or any(row.in_step for row in shards)

    def _batch(
        self, tables: Shadow, lease: Checkpoint, head: int, pages: Generator[Page]
    ) -> Checkpoint:
        page = next(pages, None)  # before there is a transaction
        most = BATCH if self._log.reads_aside else 1
        with tables.transaction() as connection:
            position, handled, is_last = self._replay.batch(connection, page, pages, most)
            to = head if is_last else position
            if tables.durable:
                return self._followers.advance(
                    connection, lease, to, handled=handled, seconds=_LEASE
                )
        # The shadows would not outlive this process, so their position need not either.
        self._renew_in_time(lease)
        return lease._replace(position=to, handled=lease.handled + handled)

    def _renew_in_time(self, lease: Checkpoint) -> None:
        """Lengthen the lease now and then only: the log's one writer has to wait for it."""
        if time.monotonic() - self._renewed_at > _LEASE / 3:
            with contextlib.suppress(LogLockedError):  # after the next batch, then
                self._followers.renew(lease, _LEASE)
                self._renewed_at = time.monotonic()

    def _tell(self, lease: Checkpoint, head: int) -> Progress:
        progress = Progress(
            position=lease.position,
            head=head,
            events=lease.handled - self._first.handled,
            seconds=time.monotonic() - self._began,
            started=self._first.position,
        )
        self._report(progress)
        return progress

    # --- finishing -----------------------------------------------------------------------------

    def _finish(self, tables: Shadow, lease: Checkpoint) -> Checkpoint:
        """Catch up, compare and swap, in one transaction that keeps other writers out."""
        living = _tables_of(self._followers.find(self._name)[0])
        with tables.finishing(lock_of(self._name), living) as connection:
            shards = self._followers.lock(connection, self._name)
            self._followers.renew(lease, _LEASE, connection)
            ends = self._ends(connection, lease, shards)
            for shard, end in ends:
                lease = self._catch_up(tables, connection, lease, lease.position, end, shard)
            if self._verify:
                self._compare(tables, connection, living)
            if len(ends) > 1 and len(shards) != self._cls.__shards__:
                # The log is divided anew, and that needs one position.
                if self._cls.__handlers__.effects:  # which have not run up to there
                    raise ShardsChangedError(self._name, len(shards), self._cls.__shards__)
                furthest = max(end for _, end in ends)
                for shard, end in ends:
                    lease = self._catch_up(tables, connection, lease, end, furthest, shard)
                ends = [(None, furthest)]
            tables.swap(connection, living)
            if self._told is not None:
                self._told.read(connection)
                self._told.bring(connection, max(end for _, end in ends), self._recorder)
            self._adopt(connection, shards, ends)
            self._followers.remove(connection, self._name, rebuild=True)
        return lease._replace(position=min(end for _, end in ends))

    def _ends(
        self, connection: Connection, lease: Checkpoint, shards: Sequence[Checkpoint]
    ) -> list[tuple[Shard | None, int]]:
        """Up to where the new tables have to be, by shard: no reader is to go back in time."""
        if not self._goes_to_head(shards):
            return [(shard_of(row), row.position) for row in shards]
        found = self._log.read_all(0, Bounds(), limit=1, backwards=True, connection=connection)
        last = found[0].position if found else 0
        if any(row.in_step for row in shards):
            # Appends of what is handled wait for the name that this transaction holds, so all of
            # it is there, and others need not be waited for.
            return [(None, max(lease.position, last))]
        furthest = max(row.position for row in shards)
        # Where the living ones are, the log is final. Beyond its end they are of another log.
        return [(None, max(lease.position, furthest if furthest <= last else 0))]

    def _catch_up(
        self,
        tables: Shadow,
        connection: Connection,
        lease: Checkpoint,
        after: int,
        until: int,
        shard: Shard | None,
    ) -> Checkpoint:
        replay = self._replay if shard is None else Replay(self._log, self._cls, shard)
        if self._recorder is not None:
            replay.record(self._recorder)
        bounds, handled = Bounds(position=until), lease.handled
        while page := replay.page(after, bounds, _CATCH_UP, connection=connection):
            if tables.lenient:
                raise LogLockedError(
                    "the database enforces foreign keys, and events to be handled come in too "
                    "quick a succession for tables to be swapped between two of them; nothing was "
                    "written, a retry is safe"
                )
            replay.apply(connection, page)
            handled += len(page)
            after = page[-1][0]
        return lease._replace(handled=handled)

    def _compare(self, tables: Shadow, connection: Connection, living: Sequence[str]) -> None:
        found = tables.differences(connection, living, _MOST + 1)
        if found:
            more = len(found) > _MOST
            raise RebuildDiffersError(self._name, tuple(found[:_MOST]), more)

    def _adopt(
        self,
        connection: Connection,
        shards: Sequence[Checkpoint],
        ends: Sequence[tuple[Shard | None, int]],
    ) -> None:
        """The checkpoints of the new tables. Whoever holds a lease on the old ones has lost it."""
        registration, name = self._registration, self._name
        self._parked.clear(connection, name)
        if len(shards) == self._cls.__shards__:
            self._followers.set(
                connection,
                name,
                version=registration.version,
                fingerprint=registration.fingerprint,
                tables=registration.table_names(),
                position=ends[0][1] if len(ends) == 1 else followers.c.position,
            )
            return
        epoch = max(row.epoch for row in shards) + 1
        rows = registration.shards(ends[0][1], sum(row.handled for row in shards))
        self._followers.remove(connection, name)
        in_step = shards[0].in_step
        self._followers.add(
            connection, [row._replace(epoch=epoch, in_step=in_step) for row in rows]
        )


def _tables_of(row: Checkpoint) -> list[str]:
    names: list[str] = json.loads(row.tables)
    return names


def _least(shards: Sequence[Checkpoint]) -> int:
    return min(row.position for row in shards)
