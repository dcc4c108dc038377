"""Connections of the pool, or a caller's, lent to a block: taken, given back, cleaned up.

Errors of the driver are turned into the library's here, and nowhere else.
"""

from __future__ import annotations

import contextlib
from abc import ABC, abstractmethod
from collections.abc import Generator
from types import TracebackType
from typing import Any, ClassVar

from sqlalchemy import Connection, Engine, event

from eventstore.errors import InvalidArgumentError, StoreClosedError
from eventstore.log.seats import Seat
from eventstore.log.work import Joinable, Work


class Borrowed:
    """A cursor on a pooled connection, or on the caller's, for one block.

    Errors of the driver leave the block as the library's own.
    """

    __slots__ = ("_log", "cursor", "seat", "writes")

    def __init__(self, log: Connections, connection: Joinable | None, *, writes: bool) -> None:
        self._log = log
        self.writes = writes
        self.seat = seat = log.take() if connection is None else log.joined(connection)
        self.cursor = seat.cursor

    def __enter__(self) -> Any:
        return self.cursor

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if error is None:
            self._log.give(self.seat)
        else:
            self._fail(error)

    def _fail(self, error: BaseException) -> None:
        """Clean up, and raise the library's error for a driver's."""
        translated = self._log.failed(error, self)
        if translated is not None:
            raise translated from error


class Transaction(Borrowed):
    """The same with a transaction of our own, which the end of the block commits."""

    #: Is there, and true, when the commit itself has failed.
    __slots__ = ("is_committing",)

    def __init__(self, log: Connections) -> None:
        # As in the base class, which this need not ask: an append is made of such steps.
        self._log = log
        self.writes = True
        self.seat = seat = log.take()
        self.cursor = seat.cursor

    def __enter__(self) -> Any:
        try:
            self.cursor.execute(self._log.begin)
        except BaseException as error:
            self._fail(error)
            raise
        return self.cursor

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if error is None:
            try:
                self.cursor.execute("COMMIT")
            except BaseException as failure:
                self.is_committing = True
                self._fail(failure)
                raise
            self._log.put_back(self.seat)  # COMMIT has left the cursor tidy
        else:
            self._fail(error)


class Connections(ABC):
    """The connections of one log. Safe for threads.

    A few of the pool's are kept checked out from one block to the next. The bookkeeping of a
    checkout costs 11 us, which is a third of an append to SQLite; taking one that was kept costs
    less than one. Only an engine that the store made itself is used so: on a caller's engine, each
    checkout is the pool's, with its pings, limits and events.
    """

    def __init__(self, engine: Engine, keep: int) -> None:
        """`keep` is how many are kept at the most; none of an engine that is the caller's."""
        self.engine = engine
        self._keep = keep
        self._owned = keep > 0
        #: What is kept, the one that was used last at the end. A list's operations are atomic.
        self._idle: list[Seat] = []
        self._closed = False
        if keep:
            event.listen(engine, "engine_disposed", self._disposed)

    # --- what a backend adds -------------------------------------------------------------------

    #: The statement that begins a transaction that writes.
    begin: ClassVar[str]

    @abstractmethod
    def checkout(self) -> Any:
        """A pooled connection on which each statement commits by itself."""

    @abstractmethod
    def checkin(self, pooled: Any) -> None:
        """Give it back as the engine's other users expect it."""

    @abstractmethod
    def is_dropped(self, raw: Any, /) -> bool:
        """Whether an idle connection has been closed by the other side."""

    @abstractmethod
    def join(self, connection: Connection) -> Any:
        """The DBAPI connection of a caller's transaction, which is begun if it was not."""

    @abstractmethod
    def cursor(self, raw: Any) -> Any:
        """A cursor for hot statements."""

    @abstractmethod
    def tidy(self, seat: Seat, /) -> None:
        """See that the cursor of an idle seat holds no result to speak of, and no lock."""

    @abstractmethod
    def failed(self, error: BaseException, borrowed: Borrowed) -> BaseException | None:
        """Clean up after a block that failed; the error to raise instead, if it is a driver's."""

    # --- plumbing ------------------------------------------------------------------------------

    def _check_open(self) -> None:
        if self._closed:
            raise StoreClosedError

    def take(self) -> Seat:
        """A seat on a pooled connection: one that was kept, or else a new one."""
        idle = self._idle
        while idle:
            try:
                seat = idle.pop()
            except IndexError:  # another thread was quicker
                break
            if not self.is_dropped(seat.raw):
                return seat
            seat.pooled.invalidate()
        pooled = self.checkout()
        raw = pooled.dbapi_connection
        return Seat(raw, self.cursor(raw), pooled)

    def joined(self, connection: Joinable) -> Seat:
        """A seat on a caller's connection."""
        if isinstance(connection, Work):
            return connection
        raw = self.join(connection)
        return Seat(raw, self.cursor(raw), None)

    def give(self, seat: Seat) -> None:
        """Keep a seat for the next block, or give its connection back to the pool."""
        if seat.pooled is None:
            if not isinstance(seat, Work):
                seat.cursor.close()
            return
        self.tidy(seat)
        self.put_back(seat)

    def put_back(self, seat: Seat) -> None:
        """The same for a seat of our own that is tidy."""
        if len(self._idle) < self._keep:
            self._idle.append(seat)
            if self._closed:  # meanwhile
                self._let_go()
        else:
            self._leave(seat)

    def _leave(self, seat: Seat) -> None:
        seat.cursor.close()
        if self._closed and self._owned:  # and its pool with it, which nobody would empty again
            seat.pooled.invalidate()
        else:
            self.checkin(seat.pooled)

    def _let_go(self) -> None:
        """Give back what is kept."""
        while self._idle:
            try:
                seat = self._idle.pop()
            except IndexError:
                break
            self._leave(seat)

    def _disposed(self, _engine: Engine) -> None:
        # The application wants fresh connections, perhaps since it is a forked process.
        self._let_go()

    def _reading(self, connection: Joinable | None = None) -> Borrowed:
        self._check_open()
        return Borrowed(self, connection, writes=False)

    def _writing(self, connection: Joinable | None = None) -> Borrowed:
        self._check_open()
        return Borrowed(self, connection, writes=True)

    def _transaction(self, connection: Joinable | None) -> contextlib.AbstractContextManager[Any]:
        """A cursor for a block that is written as a whole or not at all."""
        self._check_open()
        if isinstance(connection, Work):
            return Borrowed(self, connection, writes=True)
        return Transaction(self) if connection is None else self._joined(connection)

    @contextlib.contextmanager
    def _joined(self, connection: Connection) -> Generator[Any]:
        with self._writing(connection) as cursor, savepoint(cursor):
            yield cursor


def check_dialect(connection: Connection, name: str) -> None:
    """Raise InvalidArgumentError for a connection to another kind of database."""
    if connection.dialect.name != name:
        raise InvalidArgumentError(
            "connection",
            connection,
            f"it goes to {connection.dialect.name}, and this store is in {name}",
        )


@contextlib.contextmanager
def savepoint(cursor: Any) -> Generator[None]:
    """All of the block or nothing of it, in a caller's transaction that goes on after an error."""
    cursor.execute("SAVEPOINT eventstore")
    try:
        yield
    except BaseException:
        # Where that fails, there is no transaction left, and the first error says why.
        with contextlib.suppress(Exception):
            cursor.execute("ROLLBACK TO SAVEPOINT eventstore")
            cursor.execute("RELEASE SAVEPOINT eventstore")
        raise
    cursor.execute("RELEASE SAVEPOINT eventstore")
