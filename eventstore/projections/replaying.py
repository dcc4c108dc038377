"""Replaying: a projection's events applied anew, to other tables than the living ones."""

from __future__ import annotations

import time
from collections.abc import Generator
from functools import partial
from typing import Final, NamedTuple, NoReturn

from sqlalchemy import Connection

from eventstore.errors import HandlerError, StoredEventError
from eventstore.log.base import Bounds, Log, Row, Shard
from eventstore.projections.applying import Applier, described, raise_if_passing
from eventstore.projections.changes import Recorder
from eventstore.projections.feed import Feed, Page
from eventstore.projections.table_projection import TableProjection

#: What ends a batch, beside its number of events: so many rows to be written, which are held in
#: memory, or so many seconds, after which it should be seen to get on.
_ROWS: Final = 20_000
_SECONDS: Final = 5.0
#: Events a page, of those that are applied once more.
_AGAIN: Final = 500


class Batch(NamedTuple):
    """What was applied: up to where, how many events, and whether there are no more."""

    position: int
    handled: int
    is_last: bool


class Replay:
    """The events of a projection, or of one shard of it, for whatever its tables' names mean.

    Side effects do not run, and nothing is parked: the first event that fails ends it.
    """

    def __init__(self, log: Log, cls: type[TableProjection], shard: Shard | None = None) -> None:
        self._log = log
        self._name = cls.__follower__
        self._feed = Feed(log, cls.__handlers__, categories=cls.__categories__, shard=shard)
        self._applier = Applier(cls(), self._feed)

    def record(self, recorder: Recorder) -> None:
        """From now on, note which rows are changed."""
        self._applier.record(recorder)

    def page(
        self, after: int, until: Bounds, limit: int, *, connection: Connection | None = None
    ) -> Page:
        """The next events past a position."""
        return self._feed.page(after, until, limit, connection=connection)

    def pages(self, after: int, until: Bounds, size: int) -> Generator[Page]:
        """All events past a position, to a final one: to be used up or closed, as `Log.pages`."""
        return self._feed.pages(after, until, size)

    def batch(
        self, connection: Connection, page: Page | None, pages: Generator[Page], most: int
    ) -> Batch:
        """Apply a page and the next ones in the caller's transaction, as one.

        About so many events at the most. Raises what `apply` does, and what reading the pages does.
        """
        if page is None:
            return Batch(0, 0, True)
        first, handled, unread = page[0][0], 0, None
        last = first
        end = time.monotonic() + _SECONDS
        try:
            with connection.begin_nested(), self._applier.applying(connection) as apply:
                while page is not None:
                    last, handled = page[-1][0], handled + len(page)
                    rows = apply(page)
                    if handled >= most or rows >= _ROWS or time.monotonic() > end:
                        break
                    try:
                        page = next(pages, None)
                    except Exception as error:
                        unread = error
                        raise
        except Exception as error:
            if error is unread:
                raise
            raise_if_passing(error, connection)
            self._again(connection, first - 1, last)
        return Batch(last, handled, page is None)

    def _again(self, connection: Connection, after: int, until: int) -> None:
        """In smaller parts, so that few events have to be applied one by one."""
        bounds = Bounds(position=until)
        while rows := self._feed.rows(after, bounds, _AGAIN, connection=connection):
            self.apply(connection, rows)
            after = rows[-1].position

    def apply(self, connection: Connection, page: Page) -> None:
        """Apply a page in the caller's transaction.

        Raises HandlerError or StoredEventError, which say where the event is; the transaction is
        then to be rolled back. Raises LogError for what is no event's fault.
        """
        if not page:
            return
        try:
            with connection.begin_nested():
                self._applier.together(connection, page)
        except Exception as error:
            raise_if_passing(error, connection)
            # One of them fails by itself; or merging their writes has broken a constraint that
            # none of them breaks, and then they are applied now.
            bounds = Bounds(position=page[-1][0])
            rows = self._feed.rows(page[0][0] - 1, bounds, len(page), connection=connection)
            self._applier.singly(connection, rows, partial(self._blame, connection))

    def _blame(self, connection: Connection, row: Row, error: Exception) -> NoReturn:
        if isinstance(error, StoredEventError):
            raise error
        type = self._log.event_type(row.type, connection).name
        raise HandlerError(
            self._name, row.stream, row.version, row.position, type, described(error)
        ) from error
