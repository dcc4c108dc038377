"""Applying pages of events to the tables of a projection, on a connection of the caller's."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Generator, Sequence

from sqlalchemy import Connection
from sqlalchemy.exc import DBAPIError

from eventstore.errors import LogError, LogLockedError, LogUnavailableError
from eventstore.log.base import Log, Row
from eventstore.log.transactions import translated
from eventstore.projections.changes import Recorder, tell
from eventstore.projections.feed import Feed, Page
from eventstore.projections.table_projection import TableProjection

#: What passes: the same work may succeed later, and no event is to blame.
_PASSING = (LogLockedError, LogUnavailableError)


class Applier:
    """Hands events to a projection's handlers and lets what they write be flushed."""

    def __init__(self, projection: TableProjection, feed: Feed) -> None:
        self._projection = projection
        self._feed = feed
        self._recorder: Recorder | None = None

    def record(self, recorder: Recorder) -> None:
        """From now on, note which rows are changed."""
        self._recorder = recorder

    @contextlib.contextmanager
    def telling(self, log: Log, connection: Connection) -> Generator[None]:
        """At the end of the block, what it changes is told in the projection's stream, if any."""
        declared = self._projection.__changes__
        if declared is None:
            yield
            return
        recorder = self._recorder = Recorder(declared)
        try:
            yield
            tell(log, connection, (recorder,))
        finally:
            self._recorder = None

    def together(self, connection: Connection, page: Page) -> None:
        """Apply a page, flushed once.

        Raises what a handler or the flush raises; the transaction is then to be rolled back.
        """
        recorder = self._recorder
        with self._projection._writing(connection, recorder) as projection:
            self._feed.apply(projection, page, connection)
        if recorder is not None:
            recorder.position = page[-1][0]

    @contextlib.contextmanager
    def applying(self, connection: Connection) -> Generator[Callable[[Page], int]]:
        """In the block, what applies a page and says how many rows are to be written at its end.

        It raises as `together` does. What it changes is not told.
        """
        with self._projection._writing(connection, self._recorder) as projection:
            feed, buffer = self._feed, projection._buffer

            def apply(page: Page) -> int:
                feed.apply(projection, page, connection)
                return buffer.size

            yield apply

    def singly(
        self, connection: Connection, rows: Sequence[Row], failed: Callable[[Row, Exception], None]
    ) -> None:
        """Apply rows one by one, each in a savepoint, and tell which ones failed.

        Such a row has no effect, and the next ones go on. Raises what is no row's fault.
        """
        for row in rows:
            try:
                with connection.begin_nested():
                    self.together(connection, (row,))
            except Exception as error:
                raise_if_passing(error, connection)
                failed(row, error)


def raise_if_passing(error: Exception, connection: Connection) -> None:
    """Raise for a failure of the database (a deadlock, a lost connection), return for any other."""
    own = translated(error, connection.dialect.name) if isinstance(error, DBAPIError) else error
    if isinstance(own, _PASSING):
        if own is error:
            raise error
        raise own from error


def may_be_a_handlers(error: Exception) -> bool:
    """Whether the failure of a page may be that of a handler, so that another try would fail."""
    # Of the driver's errors, those that are just LogError: a violated constraint, a wrong type.
    return not isinstance(error, LogError) or type(error) is LogError


def described(error: BaseException) -> str:
    """An exception in one line, as it is kept with a parked event."""
    text = f"{type(error).__name__}: {error}".strip().partition("\n")[0]
    return text[:1000]
