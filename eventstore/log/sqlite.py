"""The log in SQLite: one writer at a time, so the order of commits is the order of positions."""

from __future__ import annotations

import contextlib
import json
import re
import sqlite3
import threading
import uuid
from collections.abc import Callable, Generator, Iterable, Sequence
from typing import Any, Final, Literal

from sqlalchemy import (
    URL,
    Connection,
    Engine,
    QueuePool,
    Text,
    bindparam,
    create_engine,
    event,
    func,
    select,
)
from sqlalchemy.dialects.sqlite import insert
from sqlalchemy.exc import DBAPIError
from sqlalchemy.exc import TimeoutError as PoolTimeoutError
from sqlalchemy.util import await_

from eventstore import moments
from eventstore.errors import (
    EventStoreError,
    InvalidArgumentError,
    LogError,
    LogLockedError,
    LogReadOnlyError,
    LogUnavailableError,
    StoreClosedError,
)
from eventstore.log.ahead import block_of, has_idle_core, read_ahead
from eventstore.log.awaited import AwaitedCursor, driver_connection
from eventstore.log.base import (
    ANY,
    NO_STREAM,
    STREAM_EXISTS,
    EventType,
    Frontier,
    NewEvent,
    Receipt,
    Write,
)
from eventstore.log.borrowing import Borrowed, check_dialect, savepoint
from eventstore.log.grouping import Request
from eventstore.log.reading import Rows
from eventstore.log.seats import KEPT, Seat
from eventstore.log.sql import SqlLog
from eventstore.log.watching import SqliteWatch
from eventstore.log.work import Joinable, Work
from eventstore.names import category_of

Durability = Literal["full", "relaxed"]

# The head comes first in every append: it is the check, and it gives the version and the time.
_HEAD_NEW: Final = """
    INSERT INTO eventstore_streams (name, category, version, recorded_at, deleted)
    VALUES (:name, :category, :count, :now, 0)
    ON CONFLICT (name) DO NOTHING
    RETURNING id, version, recorded_at"""
_HEAD_ANY: Final = """
    INSERT INTO eventstore_streams (name, category, version, recorded_at, deleted)
    VALUES (:name, :category, :count, :now, 0)
    ON CONFLICT (name) DO UPDATE
       SET version = version + excluded.version, recorded_at = max(recorded_at, :now)
     WHERE NOT deleted
    RETURNING id, version, recorded_at"""
_HEAD_EXISTS: Final = """
    UPDATE eventstore_streams
       SET version = version + :count, recorded_at = max(recorded_at, :now)
     WHERE name = :name AND NOT deleted
    RETURNING id, version, recorded_at"""
_HEAD_AT: Final = """
    UPDATE eventstore_streams
       SET version = version + ?, recorded_at = max(recorded_at, ?)
     WHERE name = ? AND version = ? AND NOT deleted
    RETURNING id, version, recorded_at"""
_EVENT: Final = """
    INSERT INTO eventstore_events (stream_id, version, type_id, recorded_at, id, data, metadata)
    VALUES (?, ?, ?, ?, ?, ?, ?)"""
# Events of one stream, as many as a block has. Python's driver gives up the interpreter's lock for
# each statement, and getting it back from a busy thread can take longer than the statement.
_BLOCK: Final = 16
_EVENTS: Final = """
    INSERT INTO eventstore_events (stream_id, recorded_at, version, type_id, id, data, metadata)
    VALUES """ + ", ".join(
    f"(?1, ?2, ?3 + {n}, ?{4 + 4 * n}, ?{5 + 4 * n}, ?{6 + 4 * n}, ?{7 + 4 * n})"
    for n in range(_BLOCK)
)
_LATEST: Final = """
    SELECT max(recorded_at) FROM eventstore_streams
     WHERE name IN (SELECT value FROM json_each(?))"""
_CLAIM: Final = """
    INSERT INTO eventstore_appends (key, receipts, recorded_at) VALUES (?, x'', 0)"""
_TYPE: Final = "SELECT id FROM eventstore_types WHERE name = ? AND version = ?"
_NEW_TYPE: Final = "INSERT INTO eventstore_types (name, version) VALUES (?, ?)"


class Turn:
    """The right to write, of one thread at a time.

    Threads of one process queue here: fairer and quicker than SQLite's sleep and retry.
    """

    def __init__(self, timeout: float) -> None:
        self._timeout = timeout
        self._lock = threading.Lock()

    def __enter__(self) -> None:
        if not self._lock.acquire(False) and not self._lock.acquire(timeout=self._timeout):
            raise LogLockedError(
                f"another thread has been writing for {self._timeout:g} s; nothing was written, "
                "a retry is safe"
            )

    def __exit__(self, *_error: object) -> None:
        self._lock.release()


#: Rows after which a replay is long enough for a thread that reads ahead.
_FIRST_ROWS: Final = 10_000

_NO_TURN: Final = contextlib.nullcontext()
_NO_SAVEPOINT: Final = contextlib.nullcontext()


class SqliteLog(SqlLog):
    """Events in a SQLite file, or in memory."""

    insert = staticmethod(insert)
    begin = "BEGIN IMMEDIATE"
    places = 1  # there is one writer

    def __init__(
        self,
        engine: Engine,
        *,
        clock: Callable[[], int] = moments.now,
        lock_timeout: float = 5.0,
        keep: int = 0,
    ) -> None:
        super().__init__(engine, keep=keep)
        self._clock = clock
        self._turn = Turn(lock_timeout)
        # A memory database has no readers while it is written: there none should read for longer.
        in_memory = re.search(":memory:|memdb|mode=memory", str(engine.url))
        self._is_file = bool(engine.url.database) and not in_memory

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
        new_types = connection.new_types if isinstance(connection, Work) else {}
        with self._turn_of(connection), self._transaction(connection) as cursor:
            receipts = self._written(cursor, writes, key, recorded_at, new_types)
            if erase:
                _erase(cursor, receipts[0])
        if new_types and connection is None:  # else a rollback may yet take their ids back
            self._type_ids.update(new_types)
        return receipts

    def _written(
        self,
        cursor: Any,
        writes: Sequence[Write],
        key: str | None,
        recorded_at: int | None,
        new_types: dict[EventType, int],
    ) -> tuple[Receipt, ...]:
        if key is not None:
            first = self._first_receipts(cursor, key, writes)
            if first is not None:
                return first
        now = self._clock() if recorded_at is None else recorded_at
        if len(writes) == 1 and key is None:
            return (self._append(cursor, writes[0], now, new_types),)
        if len(writes) > 1:
            names = self.list_value(write.stream for write in writes)
            now = max(now, cursor.execute(_LATEST, (names,)).fetchone()[0] or 0)
        receipts = tuple([self._append(cursor, write, now, new_types) for write in writes])
        if key is not None:
            cursor.execute(_CLAIM, (key,))
            self._keep_receipts(cursor, key, receipts)
        return receipts

    def _write_together(self, requests: Sequence[Request]) -> None:
        new_types: dict[EventType, int] = {}
        try:
            with self._turn, self._transaction(None) as cursor:
                for request in requests:
                    added = dict(new_types)
                    try:
                        with _NO_SAVEPOINT if request.is_simple else savepoint(cursor):
                            request.receipts = self._written(
                                cursor, request.writes, request.key, request.recorded_at, added
                            )
                        new_types = added
                    except EventStoreError as error:
                        request.error = error
        except LogError as error:
            if type(error) is not LogError:
                raise
            # One of them is at fault, and nothing is written: each for itself, then.
            for request in requests:
                request.receipts = request.error = None
        else:
            self._type_ids.update(new_types)

    def _append(
        self, cursor: Any, write: Write, now: int, new_types: dict[EventType, int]
    ) -> Receipt:
        stream, new, expected = write
        count = len(new)
        if not count:
            self._refuse(cursor, write)
            head = self._row(cursor, "head", name=stream)
            return Receipt(stream, head[1], 0, head[2]) if head else Receipt(stream, 0, 0, now)
        if expected.__class__ is int and expected:
            cursor.execute(_HEAD_AT, (count, now, stream, expected))
        else:
            values = {"name": stream, "category": category_of(stream), "count": count, "now": now}
            cursor.execute(_HEADS[expected], values)
        head = cursor.fetchone()
        if head is None:
            self._refuse(cursor, write)
            raise LogError(f"stream {stream!r} changed while this connection held the write lock")
        stream_id, version, moment = head
        known = self._type_ids
        if count > 1:
            self._insert(cursor, new[:-1], (stream_id, moment), version - count + 1, new_types)
        type, data, id, metadata = new[-1]
        type_id = known.get(type) or self._type_id(cursor, type, new_types)
        cursor.execute(_EVENT, (stream_id, version, type_id, moment, id, data, metadata))
        return Receipt(stream, version, cursor.lastrowid, moment)

    def _insert(
        self,
        cursor: Any,
        new: Sequence[NewEvent],
        common: tuple[int, int],
        version: int,
        new_types: dict[EventType, int],
    ) -> None:
        """Write events, the first at a version; `common` is their stream's id and their time."""
        known = self._type_ids
        done = 0
        while len(new) - done >= _BLOCK:
            block: list[Any] = [*common, version + done]
            for type, data, id, metadata in new[done : done + _BLOCK]:
                type_id = known.get(type) or self._type_id(cursor, type, new_types)
                block += (type_id, id, data, metadata)
            cursor.execute(_EVENTS, block)
            done += _BLOCK
        stream_id, moment = common
        rows = []
        for number, (type, data, id, metadata) in enumerate(new[done:], version + done):
            type_id = known.get(type) or self._type_id(cursor, type, new_types)
            rows.append((stream_id, number, type_id, moment, id, data, metadata))
        if rows:
            cursor.executemany(_EVENT, rows)

    def _type_id(self, cursor: Any, type: EventType, new_types: dict[EventType, int]) -> int:
        if type not in new_types:
            found = cursor.execute(_TYPE, type).fetchone()
            new_types[type] = found[0] if found else cursor.execute(_NEW_TYPE, type).lastrowid
        return new_types[type]

    # --- reading -------------------------------------------------------------------------------

    def _read_on(self, statement: Any, values: dict[str, Any], whole: bool) -> Generator[Rows]:
        if self._is_file and has_idle_core():
            count = 0
            for page in self._paged(statement, values):
                yield page
                count += len(page)
                if count >= _FIRST_ROWS:
                    break
            else:
                return
            yield from self._read_ahead(statement, values, whole)
        yield from self._paged(statement, values)  # what is left

    def _read_ahead(self, statement: Any, values: dict[str, Any], whole: bool) -> Generator[Rows]:
        text = block_of(statement.text, whole)

        def read(after: int, rows: int) -> Any:
            parameters = statement.parameters({**values, "after": after, "limit": rows})
            with self._reading() as cursor:
                return cursor.execute(text, parameters).fetchone()

        pages: Any = read_ahead(read, values["after"], values["limit"], whole)
        with contextlib.closing(pages):
            for page in pages:
                values["after"] = page[-1][0]
                yield page

    def settled(self, timeout: float, *, connection: Connection | None = None) -> int:
        with self._reading(connection) as cursor:
            return cursor.execute("SELECT max(position) FROM eventstore_events").fetchone()[0] or 0

    def frontier(self) -> Frontier:
        return Frontier(self.settled(0), ())  # the order of commits is that of positions

    def describe(self, writers: Iterable[str]) -> tuple[str, ...]:
        return tuple(writers)

    def one_of(self, column: Any, parameter: str) -> Any:
        return column.in_(
            select(func.json_each(bindparam(parameter, type_=Text())).table_valued("value").c.value)
        )

    def list_value(self, values: Iterable[str | int]) -> str:
        return json.dumps(list(values))

    @contextlib.contextmanager
    def transaction(self, connection: Connection | None = None) -> Generator[Connection]:
        with self._turn, super().transaction(connection) as joined:
            yield joined

    def watch(self) -> SqliteWatch:
        return SqliteWatch(self.engine, self.signal)

    # --- connections ---------------------------------------------------------------------------

    def checkout(self) -> Any:
        try:
            return self.engine.raw_connection()
        except (DBAPIError, PoolTimeoutError, sqlite3.Error) as error:
            cause = error.orig if isinstance(error, DBAPIError) else error
            raise translated(cause, "not written") or LogError(str(cause)) from cause

    def checkin(self, pooled: Any) -> None:
        pooled.close()

    def is_dropped(self, _raw: Any, /) -> bool:
        return False

    def join(self, connection: Connection) -> Any:
        check_dialect(connection, "sqlite")
        if _is_autocommit(connection):
            raise InvalidArgumentError(
                "connection", connection, "it is in AUTOCOMMIT, so it has no transaction to join"
            )
        if not connection.in_transaction():
            connection.begin()
        raw = driver_connection(connection)
        if not raw.in_transaction:
            # A driver in its default mode begins before a write by itself, but then not
            # before our reads, and in autocommit mode not at all.
            try:
                self.cursor(raw).execute("BEGIN IMMEDIATE").close()
            except sqlite3.Error as error:
                raise translated(error, "not written") or LogError(str(error)) from error
        return raw

    def cursor(self, raw: Any) -> Any:
        if isinstance(raw, sqlite3.Connection):
            return raw.cursor()
        return AwaitedCursor(await_(raw.cursor()))  # a caller's, of aiosqlite

    def tidy(self, seat: Seat, /) -> None:
        seat.cursor.close()  # it might hold a read lock, and a new one costs nothing
        seat.cursor = seat.raw.cursor()

    @contextlib.contextmanager
    def _storing(self, connection: Connection | None) -> Generator[Any]:
        # A single statement would not be committed by a caller's engine, in the driver's default
        # mode.
        with self._turn_of(connection), self._transaction(connection) as cursor:
            yield cursor

    def _turn_of(self, connection: Joinable | None) -> contextlib.AbstractContextManager[None]:
        return self._turn if connection is None else _NO_TURN

    def failed(self, error: BaseException, borrowed: Borrowed) -> BaseException | None:
        seat = borrowed.seat
        committing = False
        if seat.pooled is not None:
            # After a COMMIT that failed, SQLite says by itself whether the transaction still is.
            # After another statement that failed it may have rolled back by itself.
            committing = getattr(borrowed, "is_committing", False) and not seat.raw.in_transaction
            try:
                seat.raw.rollback()
                self.give(seat)
            except sqlite3.Error:
                seat.pooled.invalidate()
        if isinstance(error, sqlite3.Error):
            if self._closed:
                return StoreClosedError()
            return translated(error, "unknown" if committing else "not written")
        return None


def _is_autocommit(connection: Connection) -> bool:
    return connection.get_execution_options().get("isolation_level") == "AUTOCOMMIT"


def _erase(cursor: Any, tombstone: Receipt) -> None:
    stream_id = "(SELECT id FROM eventstore_streams WHERE name = ?)"
    cursor.execute("UPDATE eventstore_streams SET deleted = 1 WHERE name = ?", tombstone[:1])
    # What is erased may be folded into kept states.
    cursor.execute(
        "DELETE FROM eventstore_folds WHERE position >= "
        f"(SELECT min(position) FROM eventstore_events WHERE stream_id = {stream_id})",
        tombstone[:1],
    )
    cursor.execute(
        f"DELETE FROM eventstore_events WHERE stream_id = {stream_id} AND version < ?",
        tombstone[:2],
    )
    cursor.execute(f"DELETE FROM eventstore_snapshots WHERE stream_id = {stream_id}", tombstone[:1])


_HEADS: Final[dict[Any, str]] = {
    0: _HEAD_NEW,
    NO_STREAM: _HEAD_NEW,
    ANY: _HEAD_ANY,
    STREAM_EXISTS: _HEAD_EXISTS,
}


def translated(
    error: BaseException | None, outcome: Literal["not written", "unknown"]
) -> EventStoreError | None:
    """The library's error for one of the driver's; None for any other."""
    if isinstance(error, PoolTimeoutError):
        return LogUnavailableError(f"no connection came free in the pool: {error}", "not written")
    if not isinstance(error, sqlite3.Error):
        return None
    code = getattr(error, "sqlite_errorcode", 0) & 0xFF
    if code in (sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED):
        return LogLockedError(
            f"SQLite: {error}: another connection held the lock for the whole lock_timeout, or "
            "this transaction had read before another one wrote; nothing was written, roll back "
            "and retry"
        )
    if code == sqlite3.SQLITE_READONLY:
        return LogReadOnlyError(f"SQLite: {error}: open a file that this process may write to")
    if code in (
        sqlite3.SQLITE_CANTOPEN,
        sqlite3.SQLITE_NOTADB,
        sqlite3.SQLITE_CORRUPT,
        sqlite3.SQLITE_FULL,  # a commit did not fit, so there is none
    ):
        return LogUnavailableError(f"SQLite: {error}", "not written")
    if code == sqlite3.SQLITE_IOERR:
        return LogUnavailableError(f"SQLite: {error}", outcome)
    return LogError(f"SQLite: {error}")


def open_sqlite(
    url: URL, *, durability: Durability = "full", lock_timeout: float = 5.0
) -> tuple[Engine, Callable[[], None]]:
    """An engine for a SQLite URL, and what to call when it is no longer needed.

    "full" makes each commit durable before it is acknowledged (synchronous=FULL); "relaxed" may
    lose the last commits, never more and never in part, when the machine loses power
    (synchronous=NORMAL). A memory database lives as long as the engine.
    """
    if sqlite3.sqlite_version_info < (3, 36):
        raise LogError(
            f"SQLite {sqlite3.sqlite_version} is too old: 3.36 (2021) or later is needed"
        )
    anchor: sqlite3.Connection | None = None
    if url.database in (None, "", ":memory:"):
        # A named memory database, so that each pooled connection sees the same one; it is there
        # until the last connection to it closes.
        name = f"file:/eventstore-{uuid.uuid4().hex}?vfs=memdb"
        anchor = sqlite3.connect(name, uri=True, check_same_thread=False)
        url = url.set(database=name, query={"uri": "true"})
    engine = create_engine(
        url,
        poolclass=QueuePool,
        max_overflow=10 + KEPT,
        connect_args={"timeout": lock_timeout, "check_same_thread": False},
    )

    @event.listens_for(engine, "connect")
    def connected(raw: Any, _record: Any) -> None:
        raw.isolation_level = None  # transactions are ours to begin: see "begin" below
        if anchor is None:
            # So that readers and the writer do not wait for each other. The file remembers it;
            # one that is read-only, or in use at this moment, stays as it is.
            with contextlib.suppress(sqlite3.OperationalError):
                raw.execute("PRAGMA journal_mode = WAL")
        raw.execute(f"PRAGMA synchronous = {'FULL' if durability == 'full' else 'NORMAL'}")

    @event.listens_for(engine, "begin")
    def begun(connection: Connection) -> None:
        if not _is_autocommit(connection):
            connection.exec_driver_sql("BEGIN")

    def close() -> None:
        engine.dispose()
        if anchor is not None:
            anchor.close()

    return engine, close
