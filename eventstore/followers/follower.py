"""One shard of a follower at work: it takes its events off the log, and moves its checkpoint."""

from __future__ import annotations

import contextlib
import logging
import threading
import time
from abc import ABC, abstractmethod
from collections.abc import Generator, Sequence
from typing import TYPE_CHECKING, Final

from sqlalchemy import Connection, func, select

from eventstore.errors import LeaseLostError, ProjectionOutdatedError
from eventstore.log.base import Bounds, Log, Row, Shard
from eventstore.log.followers import Checkpoint, Followers
from eventstore.log.parked import ParkedEvents, ParkedRow
from eventstore.metadata import caused_by
from eventstore.projections.applying import (
    Applier,
    described,
    may_be_a_handlers,
)
from eventstore.projections.feed import Feed, Page
from eventstore.projections.table_projection import TableProjection

if TYPE_CHECKING:
    from eventstore.followers.event_handler import EventHandler

logger = logging.getLogger(__name__)

#: Events a transaction, at the most.
BATCH: Final = 1000
#: The part of its lease's time that a batch may take, about.
_SHARE: Final = 0.25
#: Seconds over which the rate is averaged.
_MEMORY: Final = 10.0


class Follower(ABC):
    """One shard of a follower, for as long as this process holds its lease.

    Used by one thread at a time, but for `stop` and `renew`. After an error it is of no more use:
    take the lease again.
    """

    #: Whether the streams of the events have to be known at any rate.
    _wants_rows = False

    def __init__(
        self,
        log: Log,
        followers: Followers,
        parked: ParkedEvents,
        feed: Feed,
        lease: Checkpoint,
        seconds: float,
    ) -> None:
        self._log = log
        self._followers = followers
        self._parked = parked
        self._feed = feed
        self._seconds = seconds
        self._moved_at = time.monotonic()
        self._size = 1
        self._waiting: set[str] = set()
        self._look_at_parked = True
        self.lease = lease
        self.stopping = threading.Event()

    @property
    def position(self) -> int:
        """The checkpoint: everything up to it is done or parked."""
        return self.lease.position

    def step(self, until: int) -> None:
        """Handle the next events, up to a position; the checkpoint moves, unless it is there.

        Raises LeaseLostError, and LogError for what may succeed later.
        """
        self._retry_parked()
        if self.position >= until:
            return
        read = self._feed.rows if self._waiting or self._wants_rows else self._feed.page
        page = read(self.position, Bounds(position=until), self._size)
        to = page[-1][0] if len(page) == self._size else until
        began = time.monotonic()
        self._handle(page, to)
        if page:
            self._fit((time.monotonic() - began) / len(page))

    def _fit(self, seconds: float) -> None:
        """Make the next batch as large as it can be, if an event takes so many seconds.

        The server ends a transaction in which nothing is heard for longer than the lease; a batch
        that always took longer would be begun again for ever.
        """
        most = int(self._seconds * _SHARE / seconds) if seconds else BATCH
        self._size = max(1, min(most, 4 * self._size, BATCH))

    @abstractmethod
    def _handle(self, page: Page, to: int) -> None:
        """Handle a page, then move the checkpoint past it."""

    @abstractmethod
    def _retry(self, parked: ParkedRow, row: Row) -> bool:
        """Handle a parked event again, and note the outcome; whether it succeeded."""

    def renew(self) -> None:
        """Lengthen the lease. Raises LeaseLostError."""
        self._followers.renew(self.lease, self._seconds)

    def release(self) -> None:
        """Give the lease back."""
        self._followers.release(self.lease)

    def stop(self) -> None:
        """Ask for an end before the next event. From any thread."""
        self.stopping.set()

    # --- the checkpoint ------------------------------------------------------------------------

    def _advance(self, connection: Connection, to: int, handled: int) -> Checkpoint:
        now = time.monotonic()
        passed = now - self._moved_at
        share = min(1.0, passed / _MEMORY)
        rate = self.lease.rate * (1 - share) + (handled / passed if passed else 0.0) * share
        moved = self._followers.advance(
            connection, self.lease, to, handled=handled, rate=rate, seconds=self._seconds
        )
        self._moved_at = now
        return moved

    @contextlib.contextmanager
    def _transaction(self) -> Generator[Connection]:
        with self._log.transaction() as connection:
            # A worker that is stopped in the middle of a transaction would keep its row locks for
            # ever. The server ends such a session; the lease has run out by then.
            if connection.dialect.name == "postgresql":
                limit = f"{max(1, int(self._seconds * 1000))}ms"
                name = "idle_in_transaction_session_timeout"
                connection.execute(select(func.set_config(name, limit, True)))
            yield connection

    # --- parked events -------------------------------------------------------------------------

    def _park(
        self, connection: Connection, row: Row, error: Exception | None, attempts: int
    ) -> None:
        self._parked.park(
            connection,
            self.lease.name,
            self.lease.shard,
            row,
            attempts=attempts,
            error=None if error is None else described(error),
        )
        self._waiting.add(row.stream)
        if error is not None:
            logger.warning(
                "%r parks version %d of %r (position %d), tried %d times: %s",
                self.lease.name,
                row.version,
                row.stream,
                row.position,
                attempts,
                described(error),
                extra={
                    "eventstore.follower": self.lease.name,
                    "eventstore.shard": self.lease.shard,
                    "eventstore.stream": row.stream,
                    "eventstore.version": row.version,
                    "eventstore.position": row.position,
                    "eventstore.attempts": attempts,
                    "eventstore.error": type(error).__name__,
                },
            )

    def _retry_parked(self) -> None:
        """Try again what somebody has asked to; learn which streams have to wait."""
        if not (self._look_at_parked or self._waiting):
            return
        name, shard = self.lease.name, self.lease.shard
        for events in self._parked.to_retry(name, shard):
            self._retry_stream(events)
        self._waiting = self._parked.streams(name, shard)
        self._look_at_parked = False

    def _retry_stream(self, events: list[ParkedRow]) -> None:
        for parked in events:
            bounds = Bounds(position=parked.position)
            found = self._log.read_all(parked.position - 1, bounds, limit=1)
            if found:
                if not self._retry(parked, found[0]):
                    return
            else:  # it was deleted meanwhile, with its stream
                with self._transaction() as connection:
                    self._note(connection, parked, None)

    def _note(self, connection: Connection, parked: ParkedRow, error: Exception | None) -> None:
        if error is None:
            self._parked.settle(connection, parked)
        else:
            self._parked.fail(connection, parked, described(error))
        # For the fence: the checkpoint stays where it is.
        self.lease = self._advance(connection, self.position, handled=0)


class TableFollower(Follower):
    """A shard of a TableProjection: handlers, tables and checkpoint in one transaction."""

    def __init__(
        self,
        log: Log,
        followers: Followers,
        parked: ParkedEvents,
        projection: TableProjection,
        lease: Checkpoint,
        seconds: float,
    ) -> None:
        feed = Feed(
            log,
            projection.__handlers__,
            categories=projection.__categories__,
            shard=shard_of(lease),
            effects=True,
        )
        super().__init__(log, followers, parked, feed, lease, seconds)
        if lease.version != projection.version:  # rebuilt by other code a moment ago
            self.release()
            raise ProjectionOutdatedError(lease.name, lease.version, projection.version)
        self._applier = Applier(projection, feed)

    @contextlib.contextmanager
    def _transaction(self) -> Generator[Connection]:
        # Its stream last: a rebuild that has locked the checkpoint may be about to tell too.
        with super()._transaction() as connection, self._applier.telling(self._log, connection):
            yield connection

    def _handle(self, page: Page, to: int) -> None:
        try:
            with self._transaction() as connection:
                free = self._park_what_waits(connection, page) if self._waiting else page
                if free:
                    self._applier.together(connection, free)
                moved = self._advance(connection, to, len(page))
        except LeaseLostError:
            raise
        except Exception as error:
            if not page or not may_be_a_handlers(error):
                raise
            self.renew()  # a rebuild may have swapped the tables: then no event is to blame
        else:
            self.lease = moved
            return
        self._handle_singly(to)

    def _park_what_waits(self, connection: Connection, page: Page) -> list[Row]:
        """Set aside what stands behind a parked event; the others, which do not wait for it."""
        free = []
        for row in page:
            assert isinstance(row, Row)  # as they are read while anything is parked
            if row.stream in self._waiting:
                self._park(connection, row, None, 0)
            else:
                free.append(row)
        return free

    def _handle_singly(self, to: int) -> None:
        """Find out which events fail, and park them; the others have their effect."""
        rows = self._feed.rows(self.position, Bounds(position=to), BATCH)
        with self._transaction() as connection:
            for row in rows:
                if row.stream in self._waiting:
                    self._park(connection, row, None, 0)
                    continue
                self._applier.singly(
                    connection, (row,), lambda row, error: self._park(connection, row, error, 2)
                )
            moved = self._advance(connection, to, len(rows))
        self.lease = moved

    def _retry(self, parked: ParkedRow, row: Row) -> bool:
        failures: list[Exception] = []
        with self._transaction() as connection:
            self._applier.singly(connection, (row,), lambda _, error: failures.append(error))
            self._note(connection, parked, failures[0] if failures else None)
        return not failures


class HandlerFollower(Follower):
    """A shard of an EventHandler: the checkpoint moves after each event."""

    _wants_rows = True

    def __init__(
        self,
        log: Log,
        followers: Followers,
        parked: ParkedEvents,
        handler: EventHandler,
        lease: Checkpoint,
        seconds: float,
    ) -> None:
        feed = Feed(
            log,
            handler.__handlers__,
            categories=handler.__categories__,
            shard=shard_of(lease),
        )
        super().__init__(log, followers, parked, feed, lease, seconds)
        self._handler = handler

    def _handle(self, page: Sequence[Row], to: int) -> None:  # type: ignore[override]
        for row in page:
            if self.stopping.is_set():
                return
            failure = None
            attempts = 0
            if row.stream not in self._waiting:
                failure, attempts = self._attempt(row)
                if failure is not None and self.stopping.is_set():
                    return  # in the middle of the attempts: the next owner makes them all
            with self._transaction() as connection:
                if row.stream in self._waiting or failure is not None:
                    self._park(connection, row, failure, attempts)
                moved = self._advance(connection, row.position, 1)
            self.lease = moved
        if self.position < to:
            with self._transaction() as connection:
                moved = self._advance(connection, to, 0)
            self.lease = moved

    def _attempt(self, row: Row) -> tuple[Exception | None, int]:
        """Call the handler until it returns; its last error if it never does."""
        handler = self._handler
        pause = handler.__backoff__
        for attempt in range(1, handler.__attempts__ + 1):
            try:
                self._call(row)
            except Exception as error:
                if attempt == handler.__attempts__ or self.stopping.wait(pause):
                    return error, attempt
                pause *= 2
                self.renew()  # nothing is begun that another worker has begun meanwhile
            else:
                return None, attempt
        raise AssertionError("unreachable")

    def _call(self, row: Row) -> None:
        with caused_by(self._feed.record(row)):
            self._feed.apply(self._handler, (row,))

    def _retry(self, parked: ParkedRow, row: Row) -> bool:
        failure: Exception | None = None
        try:  # outside of any transaction, since the handler may have some of its own
            self._call(row)
        except Exception as error:
            failure = error
        with self._transaction() as connection:
            self._note(connection, parked, failure)
        return failure is None


def shard_of(lease: Checkpoint) -> Shard | None:
    """The part of the log that a lease is for; None for all of it."""
    return None if lease.shards == 1 else Shard(lease.shard, lease.shards)
