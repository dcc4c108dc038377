"""The log in PostgreSQL: many writers at once, and one order that readers can trust.

An append to one stream is one statement, so one round trip. Its head row comes first: updating it
is the check of the version, and the lock that keeps the stream's positions in the order of its
versions. Positions are drawn after it.

Positions of different streams may commit out of order: `frontier` tells what is final.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Generator, Iterable, Mapping, Sequence
from itertools import islice
from typing import Any, Final, Literal

import psycopg
from psycopg import errors as pg
from psycopg.pq import Format, TransactionStatus
from psycopg.rows import tuple_row
from sqlalchemy import (
    ARRAY,
    URL,
    BigInteger,
    Connection,
    Engine,
    Text,
    any_,
    bindparam,
    create_engine,
    event,
)
from sqlalchemy.dialects.postgresql import insert
from sqlalchemy.exc import DBAPIError
from sqlalchemy.exc import TimeoutError as PoolTimeoutError

from eventstore import moments
from eventstore.errors import (
    EventStoreError,
    InvalidArgumentError,
    LogError,
    LogLockedError,
    LogReadOnlyError,
    LogUnavailableError,
    SchemaMissingError,
    StoreClosedError,
)
from eventstore.log.awaited import AwaitedCursor, driver_connection
from eventstore.log.base import (
    EventType,
    Frontier,
    Receipt,
    Write,
)
from eventstore.log.borrowing import Borrowed, check_dialect
from eventstore.log.frontier import Frontiers
from eventstore.log.grouping import Request
from eventstore.log.notifying import Notifier, PostgresWatch, is_proxied
from eventstore.log.postgres_statements import (
    CLAIM,
    DELETED,
    ERASE,
    FOLDS,
    LOCK_HEADS,
    MANY,
    MANY_AT,
    NEW_TYPES,
    ONE,
    ONE_AT,
    UNLOCK_NEW,
)
from eventstore.log.queries import PAGE, Mask, Statement
from eventstore.log.reading import Page, Rows
from eventstore.log.seats import KEPT, Seat
from eventstore.log.sql import SqlLog, refuse
from eventstore.log.tables import REVISION
from eventstore.log.work import Joinable
from eventstore.names import category_of

Durability = Literal["full", "relaxed"]


class PostgresLog(SqlLog):
    """Events in PostgreSQL 13 or later, through psycopg 3."""

    insert = staticmethod(insert)
    begin = "BEGIN"
    places = 4  # commits of several connections overlap

    def __init__(
        self,
        engine: Engine,
        *,
        clock: Callable[[], int] | None = None,
        keep: int = 0,
        notify: bool = True,
    ) -> None:
        super().__init__(engine, keep=keep, notifier=Notifier(engine) if notify else None)
        self._clock = clock
        self._frontiers = Frontiers(self._reading)
        self._transactional = False  # nothing to undo for an engine that is made with AUTOCOMMIT

    # --- appending -----------------------------------------------------------------------------

    def _write(
        self,
        writes: Sequence[Write],
        key: str | None,
        recorded_at: int | None,
        connection: Joinable | None,
        *,
        erase: bool = False,
    ) -> tuple[Receipt, ...]:
        self._know_types(writes)
        if recorded_at is None and self._clock is not None:
            recorded_at = self._clock()
        if len(writes) == 1 and key is None and not erase and writes[0].events:
            with self._writing(connection) as cursor:  # the statement is its own transaction
                return (self._append(cursor, writes[0], recorded_at),)
        with self._transaction(connection) as cursor:
            if key is not None:
                cursor.execute(CLAIM, {"key": key})
                if cursor.fetchone() is None:
                    return self._first_receipts(cursor, key, writes) or ()
            if len(writes) > 1:
                receipts = self._append_all(cursor, writes, recorded_at)
            else:
                receipts = (self._append(cursor, writes[0], recorded_at),)
            if erase:
                cursor.execute(DELETED, {"stream": receipts[0].stream})
                values = {"id": cursor.fetchone()[0], "version": receipts[0].version}
                cursor.execute(ERASE, values)
            if key is not None:
                self._keep_receipts(cursor, key, receipts)
        return receipts

    def _append_all(
        self, cursor: Any, writes: Sequence[Write], now: int | None
    ) -> tuple[Receipt, ...]:
        names = [write.stream for write in writes]
        categories = [category_of(name) for name in names]
        cursor.execute(LOCK_HEADS, {"names": names, "categories": categories}, prepare=True)
        heads = {name: head for name, *head in cursor.fetchall()}
        for write in writes:
            version, _, deleted, _ = heads[write.stream]
            refuse(write, version, deleted)
        if now is None:
            now = max(clock for _, _, _, clock in heads.values())
        latest: int = max(now, *(moment for _, moment, _, _ in heads.values()))
        statements = [
            self._statement_of(write, latest, heads[write.stream][0])
            for write in writes
            if write.events
        ]
        rows = iter(self._first_rows(cursor, statements))
        receipts = []
        for write in writes:
            version, moment, _, _ = heads[write.stream]
            if write.events:
                row = next(rows)
                receipts.append(Receipt(write.stream, row[0], row[2], row[1]))
            else:
                receipts.append(Receipt(write.stream, version, 0, moment if version else latest))
        unused = [write.stream for write in writes if not write.events]
        if unused:
            cursor.execute(UNLOCK_NEW, {"names": unused})
        return tuple(receipts)

    def _first_rows(
        self, cursor: Any, statements: Sequence[tuple[str, dict[str, Any]]]
    ) -> Sequence[Any]:
        """The one row of each statement: of several in one trip, where they can be prepared."""
        raw: Any = getattr(cursor, "connection", None)
        is_sync = isinstance(raw, psycopg.Connection)
        if len(statements) < 2 or not is_sync or raw.prepare_threshold is None:
            return [cursor.execute(*one, prepare=True).fetchone() for one in statements]
        with raw.pipeline():
            answers = [self.cursor(raw).execute(*one, prepare=True) for one in statements]
            return [answer.fetchone() for answer in answers]

    def _append(self, cursor: Any, write: Write, now: int | None, *, tries: int = 2) -> Receipt:
        """Append to one stream."""
        stream, new, _ = write
        count = len(new)
        if not count:
            self._refuse(cursor, write)
            head = self._row(cursor, "head", name=stream)
            if head:
                return Receipt(stream, head[1], 0, head[2])
            return Receipt(stream, 0, 0, moments.now() if now is None else now)
        cursor.execute(*self._statement_of(write, now), prepare=True)
        row = cursor.fetchone()
        if row is None:
            self._refuse(cursor, write)
            # It was refused a moment ago, and would not be now: the stream has moved meanwhile.
            if tries > 1:
                return self._append(cursor, write, now, tries=tries - 1)
            raise LogLockedError(
                f"stream {stream!r} changed during the append; nothing was written, retry"
            )
        return Receipt(stream, row[0], row[2], row[1])

    def _statement_of(
        self, write: Write, now: int | None, held: int | None = None
    ) -> tuple[str, dict[str, Any]]:
        """The one statement that appends to a stream, and its parameters."""
        stream, new, expected = write
        count = len(new)
        type_ids = self._type_ids
        values: dict[str, Any] = {"stream": stream, "now": now, "count": count}
        if held is None and expected.__class__ is int and expected:
            # The statement finds out whether it is.
            held = expected  # pyright: ignore[reportAssignmentType]
        at_version = held is not None
        if at_version:
            values["expected"] = held
        else:
            values["category"] = category_of(stream)
        if count == 1:
            type, data, id, metadata = new[0]
            values |= {"type": type_ids[type], "data": data, "id": id, "metadata": metadata}
            text = ONE_AT if at_version else ONE[expected]
        else:
            values |= {
                "types": [type_ids[e.type] for e in new],
                "data": [e.data for e in new],
                "ids": [e.id for e in new],
                "metadata": [e.metadata for e in new],
            }
            text = MANY_AT if at_version else MANY[expected]
        return text, values

    def _write_together(self, requests: Sequence[Request]) -> None:
        # In a pipeline: one trip for all of their statements. What takes more is left alone, and so
        # is everything behind a proxy, where nothing can be prepared.
        simple = sorted((r for r in requests if r.is_simple), key=lambda r: r.writes[0].stream)
        self._know_types([request.writes[0] for request in simple])
        try:
            with self._transaction(None) as cursor:
                raw = cursor.connection
                if len(simple) < 2 or raw.prepare_threshold is None:
                    return
                answers = []
                with raw.pipeline():
                    for request in simple:
                        now = request.recorded_at
                        if now is None and self._clock is not None:
                            now = self._clock()
                        answer = raw.cursor(binary=True)
                        answer.execute(*self._statement_of(request.writes[0], now), prepare=True)
                        answers.append(answer)
                    rows = [answer.fetchone() for answer in answers]
                for request, row in zip(simple, rows, strict=True):
                    self._settle(cursor, request, row)
        except LogError as error:
            if isinstance(error, LogUnavailableError) and error.outcome == "unknown":
                raise
            # A deadlock, or one of them at fault: nothing is written, so each for itself.
            for request in requests:
                request.receipts = request.error = None

    def _settle(self, cursor: Any, request: Request, row: Any) -> None:
        """Note the outcome of one statement of a group."""
        (write,) = request.writes
        if row is not None:
            request.receipts = (Receipt(write.stream, row[0], row[2], row[1]),)
            return
        try:
            self._refuse(cursor, write)  # if it would not refuse now, it is tried again alone
        except EventStoreError as error:
            request.error = error

    def _know_types(self, writes: Sequence[Write]) -> None:
        """Add new types in a transaction of their own, so that no rollback takes them back."""
        known = self._type_ids
        new = {e.type for write in writes for e in write.events if e.type not in known}
        if not new:
            return
        with self._reading() as cursor:
            wanted = sorted(new)
            columns = {"names": [t.name for t in wanted], "versions": [t.version for t in wanted]}
            self._execute(cursor, self._statement("types"), {})
            known.update({EventType(row[1], row[2]): row[0] for row in cursor.fetchall()})
            if not new <= known.keys():
                cursor.execute(NEW_TYPES, columns)
                self._execute(cursor, self._statement("types"), {})
                known.update({EventType(row[1], row[2]): row[0] for row in cursor.fetchall()})

    # --- reading -------------------------------------------------------------------------------

    def settled(self, timeout: float, *, connection: Connection | None = None) -> int:
        return self._frontiers.settled(timeout, connection)

    def frontier(self) -> Frontier:
        return self._frontiers.frontier()

    @property
    def doubts(self) -> int:
        return self._frontiers.doubts

    def describe(self, writers: Iterable[str]) -> tuple[str, ...]:
        return self._frontiers.describe(writers)

    def watch(self) -> PostgresWatch:
        return PostgresWatch(self.engine, self.signal)

    def _execute(self, cursor: Any, statement: Any, values: Mapping[str, Any]) -> None:
        cursor.execute(statement.text, values, prepare=True)

    def _read_on(self, statement: Any, values: dict[str, Any], whole: bool) -> Generator[Rows]:
        size = values["limit"]
        if not _STREAMS:
            yield from self._paged(statement, values)
            return
        # One statement is not to last for long, as no dead row is cleaned up meanwhile.
        full, limit = True, _FIRST_STREAM
        while full:
            values["limit"], count, began = limit, 0, time.monotonic()
            for page in self._streamed(statement, values, size):
                count += len(page)
                values["after"] = page[-1][0]
                yield page
            full = count == limit
            seconds = time.monotonic() - began
            if seconds < _STREAM_SECONDS / 4:
                limit = min(limit * 4, _LONGEST_STREAM)
            elif seconds > _STREAM_SECONDS:
                limit = max(limit // 4, size)

    def _pages(
        self, first: Page, mask: Mask, values: dict[str, Any], connection: Connection | None
    ) -> Generator[Page]:
        if connection is not None or not _STREAMS:
            yield from super()._pages(first, mask, values, connection)
            return
        yield first
        values["after"] += len(first)
        del first
        values["limit"] = _LONGEST_STREAM
        statement = self._statement("fold", mask)
        full = True
        while full:
            count = 0
            try:
                for page in self._streamed(statement, values, PAGE):
                    count += len(page)
                    yield page
                    del page
                full = count == _LONGEST_STREAM
            except LogUnavailableError:
                if not count:
                    raise
                # The connection was lost half-way: another one may go on from there.
            values["after"] += count

    def fold_together(self, streams: Sequence[str]) -> Sequence[Page | None]:
        pages: list[list[tuple[int, bytes]]] = [[] for _ in streams]
        with self._reading() as cursor:
            cursor.execute(FOLDS, {"streams": list(streams)}, prepare=True)
            for number, type, data in cursor.fetchall():
                pages[number - 1].append((type, data))
        return [page if len(page) < PAGE else None for page in pages]

    def _streamed(
        self, statement: Statement, values: Mapping[str, Any], size: int
    ) -> Generator[Sequence[Any]]:
        """The rows of one statement, in pages.

        They arrive while others are handled: three times as fast as a query a page.
        """
        reading = self._reading()
        _streaming.add(reading)
        try:
            with reading as cursor:
                rows = cursor.stream(statement.text, values, binary=True, size=min(size, 500))
                with contextlib.closing(rows):
                    while page := list(islice(rows, size)):
                        yield page
                        del page
        finally:
            _streaming.discard(reading)

    def one_of(self, column: Any, parameter: str) -> Any:
        kind = column.type if isinstance(column.type, BigInteger) else Text()
        return column == any_(bindparam(parameter, type_=ARRAY(kind)))

    def list_value(self, values: Iterable[str | int]) -> list[str | int]:
        return list(values)

    # --- connections ---------------------------------------------------------------------------

    def checkout(self) -> Any:
        while True:
            try:
                pooled = self.engine.raw_connection()
            except (DBAPIError, PoolTimeoutError, psycopg.Error) as error:
                cause = error.orig if isinstance(error, DBAPIError) else error
                raise LogUnavailableError(
                    f"PostgreSQL could not be reached: {_without_secrets(cause)}", "not written"
                ) from cause
            raw: Any = pooled.dbapi_connection
            if not self.is_dropped(raw):
                break
            pooled.invalidate()  # seen before anything was sent on it
        if not raw.autocommit:
            raw.autocommit = True
            self._transactional = True
        return pooled

    def checkin(self, pooled: Any) -> None:
        raw = pooled.dbapi_connection
        if self._transactional and raw.info.transaction_status == TransactionStatus.IDLE:
            raw.autocommit = False
        pooled.close()

    def is_dropped(self, raw: Any, /) -> bool:
        # Less than a microsecond: nothing is sent.
        try:
            raw.pgconn.consume_input()  # perhaps the server's last words, perhaps a notification
            raw.pgconn.consume_input()  # the end of the stream comes after them
        except (psycopg.Error, OSError):
            return True
        return False

    def join(self, connection: Connection) -> Any:
        check_dialect(connection, "postgresql")
        raw = driver_connection(connection)
        if not isinstance(raw, (psycopg.Connection, psycopg.AsyncConnection)):
            raise InvalidArgumentError(
                "connection",
                connection,
                f"its driver is {connection.dialect.driver}: use postgresql+psycopg:// (psycopg 3)",
            )
        if raw.autocommit:
            raise InvalidArgumentError(
                "connection", connection, "it is in AUTOCOMMIT, so it has no transaction to join"
            )
        if not connection.in_transaction():
            connection.begin()
        return raw

    def cursor(self, raw: Any) -> Any:
        # Not `raw.cursor`: a caller's connection may make cursors of another kind, and other rows.
        if isinstance(raw, psycopg.AsyncConnection):
            own = psycopg.AsyncCursor(raw, row_factory=tuple_row)
            own.format = Format.BINARY
            return AwaitedCursor(own)
        cursor = psycopg.Cursor(raw, row_factory=tuple_row)
        cursor.format = Format.BINARY
        return cursor

    def tidy(self, seat: Seat, /) -> None:
        # A new one costs 10 us: it looks up again how to convert each type. An old one holds on to
        # its last result.
        if seat.cursor.rowcount > _FEW_ROWS:
            seat.cursor.close()
            seat.cursor = self.cursor(seat.raw)

    def _storing(self, connection: Connection | None) -> Borrowed:
        return self._writing(connection)

    def failed(self, error: BaseException, borrowed: Borrowed) -> BaseException | None:
        raw, pooled = borrowed.seat.raw, borrowed.seat.pooled
        lost = raw.closed or raw.broken
        if pooled is not None:
            if not lost and raw.info.transaction_status != TransactionStatus.IDLE:
                with contextlib.suppress(psycopg.Error):
                    raw.rollback()
            if lost or raw.info.transaction_status != TransactionStatus.IDLE:
                pooled.invalidate()
            else:
                self.give(borrowed.seat)
        if not isinstance(error, psycopg.Error):
            return None
        if self._closed:
            return StoreClosedError()
        # A caller's transaction cannot have been committed, as that is the caller's to do.
        unknown = borrowed.writes and pooled is not None
        return translated(error, lost, "unknown" if unknown else "not written")


#: Whether libpq hands over rows in chunks (from 17 on).
_STREAMS: Final = psycopg.capabilities.has_stream_chunked()
#: What is being streamed. Not only the pages know of it, so that they are cleaned up first where
#: they are forgotten: a stream holds its connection's lock, and the pool would wait for that.
_streaming: Final[set[Borrowed]] = set()
#: Rows of a stream: of the first, and at the most. A later one has more if this one was quick.
_FIRST_STREAM: Final = 1_000
_LONGEST_STREAM: Final = 100_000
#: Seconds that one should not take longer than, however slow its reader is.
_STREAM_SECONDS: Final = 2.0
#: The longest result that a cursor may still hold while it waits for its next use.
_FEW_ROWS: Final = 100


def _without_secrets(error: object) -> str:
    """The driver's text, first line only: further ones may repeat connection parameters."""
    return str(error).strip().partition("\n")[0]


def translated(
    error: psycopg.Error, lost: bool, outcome: Literal["not written", "unknown"]
) -> EventStoreError:
    """The library's error for one of the driver's; `lost` says that the connection is gone."""
    text = f"PostgreSQL: {_without_secrets(error)}"
    if isinstance(error, pg.UndefinedTable):
        return SchemaMissingError(
            None, REVISION, f"{text}: create the tables with: eventstore migrate URL"
        )
    if isinstance(error, (pg.ReadOnlySqlTransaction, pg.InsufficientPrivilege)):
        return LogReadOnlyError(text)
    if isinstance(
        error,
        (pg.LockNotAvailable, pg.DeadlockDetected, pg.SerializationFailure, pg.QueryCanceled),
    ):
        return LogLockedError(f"{text}; nothing was written, a retry is safe")
    if isinstance(error, (pg.DiskFull, pg.OutOfMemory, pg.TooManyConnections)):
        return LogUnavailableError(text, "not written")
    if lost or isinstance(error, (pg.AdminShutdown, pg.CrashShutdown, pg.CannotConnectNow)):
        return LogUnavailableError(text, outcome)
    return LogError(text)


def open_postgres(
    url: URL, *, durability: Durability = "full"
) -> tuple[Engine, Callable[[], None]]:
    """An engine for a PostgreSQL URL, and what to call when it is no longer needed.

    "full" acknowledges a commit when it is durable (the server's `synchronous_commit`); "relaxed"
    may lose the last commits, never in part, when the server crashes (synchronous_commit=off).
    Behind a proxy such as PgBouncer no statement is prepared, and "relaxed" is refused.
    """
    # SQLAlchemy hides the password of a URL, but shows its options.
    secrets = {name: url.query[name] for name in ("password", "sslpassword") if name in url.query}
    url = url.difference_update_query(secrets)
    engine = create_engine(url, max_overflow=10 + KEPT, connect_args=secrets)

    @event.listens_for(engine, "connect")
    def connected(raw: Any, _record: Any) -> None:
        raw.autocommit = True
        if is_proxied(raw):
            if durability == "relaxed":
                raw.close()
                raise InvalidArgumentError("durability", durability, _NOT_RELAXED)
            raw.prepare_threshold = None  # no statement, then, not even one that asks for it
        elif durability == "relaxed":
            raw.execute("SET synchronous_commit = off")
        raw.autocommit = False

    return engine, engine.dispose


_NOT_RELAXED: Final = (
    "a proxy such as PgBouncer is between this process and the server, and what one session sets "
    "would reach others, or nobody; set it on the server instead (ALTER DATABASE ... SET "
    "synchronous_commit = off, or ALTER ROLE ...), and leave durability as it is by default"
)
