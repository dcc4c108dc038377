"""Replaying: a projection's events applied anew, to other tables than the living ones."""

from __future__ import annotations

from functools import partial
from typing import NoReturn

from sqlalchemy import Connection

from eventstore.errors import HandlerError, StoredEventError
from eventstore.log.base import Bounds, Log, Row, Shard
from eventstore.projections.applying import Applier, described, raise_if_passing
from eventstore.projections.changes import Recorder
from eventstore.projections.feed import Feed, Page
from eventstore.projections.table_projection import TableProjection


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
