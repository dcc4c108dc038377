"""What the two SQL backends share: reading, the tables of names, snapshots, idempotency keys.

Hot statements are made once with SQLAlchemy Core and then run as text on a cursor of the pooled
DBAPI connection: Core at every call would cost more than the database does (docs/decisions.md).
"""

from __future__ import annotations

import contextlib
from abc import ABC, abstractmethod
from collections.abc import Generator, Iterable, Iterator, Mapping, Sequence
from functools import cache
from types import TracebackType
from typing import Any, ClassVar, Final, TypeAlias

import msgspec
from sqlalchemy import Connection, Engine, NullPool, QueuePool

from eventstore.errors import (
    IdempotencyKeyReusedError,
    InvalidArgumentError,
    LogError,
    LogLockedError,
    StoreClosedError,
    StreamDeletedError,
    StreamNotFoundError,
    WrongExpectedVersionError,
)
from eventstore.ids import new_ids
from eventstore.log.base import (
    ANY,
    DELETED,
    EVERY_EVENT,
    NO_STREAM,
    STREAM_EXISTS,
    Bounds,
    EventType,
    Expectation,
    Expected,
    Keyed,
    NewEvent,
    Receipt,
    Row,
    Slim,
    Snapshot,
    StreamInfo,
    Wanted,
    Write,
)
from eventstore.log.grouping import GroupCommit, Request
from eventstore.log.hints import Hints, Notifies
from eventstore.log.kept import Kept, Seat
from eventstore.log.queries import PAGE, UNBOUNDED, Mask, Queries, Shape, Statement, given, mask_of
from eventstore.log.transactions import transaction
from eventstore.log.watching import Watch
from eventstore.log.work import Joinable, Work
from eventstore.names import category_of
from eventstore.numbers import LARGEST

#: A page of the whole log.
Rows: TypeAlias = Sequence[Slim] | Sequence[Keyed] | Sequence[Row]
#: (type key, data) of events in order.
Page: TypeAlias = Sequence[tuple[int, bytes]]

_receipts = msgspec.json.Decoder(tuple[Receipt, ...])
_tombstone: Final = EventType(DELETED, 1)
_EVERYTHING: Final = Bounds()


class Borrowed:
    """A cursor on a pooled connection, or on the caller's, for one block.

    Errors of the driver leave the block as the library's own.
    """

    __slots__ = ("_log", "cursor", "seat", "writes")

    def __init__(self, log: SqlLog, connection: Joinable | None, *, writes: bool) -> None:
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

    def __init__(self, log: SqlLog) -> None:
        super().__init__(log, None, writes=True)

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


class SqlLog(ABC):
    """The part of a log that SQLite and PostgreSQL have in common."""

    def __init__(self, engine: Engine, *, keep: int = 0, notifier: Notifies | None = None) -> None:
        self.engine = engine
        self._hints = Hints(engine, notifier)
        self._hints.outlived_by(self)
        self.signal = self._hints.signal
        self._watch = self.watch()
        self._kept = Kept(engine, keep, self._leave)
        self._closed = False
        self._group: GroupCommit | None = None
        self._types: dict[int, EventType] = {}
        self._type_ids: dict[EventType, int] = {}
        self._statement = cache(self._compiled)

    # --- what a backend adds -------------------------------------------------------------------

    #: The dialect's `insert`, which knows ON CONFLICT.
    insert: Any
    #: The statement that begins a transaction that writes.
    begin: ClassVar[str]
    #: How many transactions of appends it pays to have under way before they are put together.
    places: ClassVar[int]

    @abstractmethod
    def watch(self) -> Watch:
        """What watches for the commits of other processes."""

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

    @abstractmethod
    def one_of(self, column: Any, parameter: str) -> Any:
        """The condition that a column's value is in the list that is given as `parameter`."""

    @abstractmethod
    def list_value(self, values: Iterable[str | int]) -> Any:
        """A list as the value of such a parameter."""

    @abstractmethod
    def _write(
        self,
        writes: Sequence[Write],
        key: str | None,
        recorded_at: int | None,
        connection: Joinable | None,
        *,
        erase: bool = False,
    ) -> tuple[Receipt, ...]:
        """Append in one transaction; with `erase`, leave only the new events."""

    @abstractmethod
    def _write_together(self, requests: Sequence[Request]) -> None:
        """Append for several callers in one transaction: see GroupCommit."""

    @abstractmethod
    def _storing(self, connection: Connection | None) -> contextlib.AbstractContextManager[Any]:
        """A cursor for one statement that writes, and is committed by the end of the block."""

    # --- appending -----------------------------------------------------------------------------

    def append(
        self,
        writes: Sequence[Write],
        *,
        key: str | None = None,
        recorded_at: int | None = None,
        connection: Joinable | None = None,
    ) -> tuple[Receipt, ...]:
        self._check_open()
        if len(writes) > 1 and len({write.stream for write in writes}) != len(writes):
            names = [write.stream for write in writes]
            raise InvalidArgumentError("writes", names, "a stream may occur once in an append")
        for write in writes:
            _check_expected(write.expected)
        if not writes:
            return ()
        if connection is None and self._group is not None:
            receipts = self._group.append(writes, key, recorded_at)
        else:
            receipts = self._write(writes, key, recorded_at, connection)
        self._hints.appended(connection)
        return receipts

    def group_commits(self) -> None:
        """From now on, appends that come at once share transactions."""
        if self._group is None:

            def alone(
                writes: Sequence[Write], key: str | None, recorded_at: int | None
            ) -> tuple[Receipt, ...]:
                return self._write(writes, key, recorded_at, None)

            self._group = GroupCommit(self.places, alone, self._write_together)

    def delete(
        self, stream: str, expected: Expected = ANY, *, connection: Joinable | None = None
    ) -> Receipt:
        self._check_open()
        _check_expected(expected)
        if expected in (0, NO_STREAM):
            raise InvalidArgumentError("expected", expected, "there must be a stream to delete")
        tombstone = NewEvent(_tombstone, b"{}", new_ids(1)[0])
        write = Write(stream, [tombstone], STREAM_EXISTS if expected is ANY else expected)
        try:
            (receipt,) = self._write([write], None, None, connection, erase=True)
        except WrongExpectedVersionError as error:
            if expected is ANY:
                raise StreamNotFoundError(stream) from error
            raise
        self._hints.appended(connection)
        return receipt

    def fork(
        self, source: str, version: int, target: str, *, connection: Joinable | None = None
    ) -> Receipt:
        values = {"stream": source, "version": version, "target": target}
        with self._turn_of(connection), self._transaction(connection) as cursor:
            self._refuse_fork(self._row(cursor, "head", name=source), source, version)
            values["category"] = category_of(target)
            head = self._row(cursor, "fork_head", **values)
            if head is None:
                self._refuse(cursor, Write(target, (), NO_STREAM))
                raise LogLockedError(
                    f"stream {target!r} or {source!r} changed during the fork; nothing was "
                    "written, a retry is safe"
                )
            values["target"] = head[0]
            self._execute(cursor, self._statement("fork_events"), values)
            if cursor.rowcount != version:
                raise StreamDeletedError(source)  # by another, meanwhile
            position = self._row(cursor, "position", stream=target, version=version)[0]
        self._hints.appended(connection)
        return Receipt(target, version, position, head[1])

    def _refuse_fork(self, head: Any, source: str, version: int) -> None:
        if head is None:
            raise StreamNotFoundError(source)
        if head[3]:
            raise StreamDeletedError(source)
        if not 0 < version <= head[1]:
            raise WrongExpectedVersionError(source, version, head[1])

    def _turn_of(self, _connection: Joinable | None) -> contextlib.AbstractContextManager[None]:
        """The right to write, where writers of one process queue for it."""
        return contextlib.nullcontext()

    def _refuse(self, cursor: Any, write: Write) -> None:
        """Raise for what keeps a write out; return if nothing does."""
        found = self._row(cursor, "head", name=write.stream)
        refuse(write, *((found[1], found[3]) if found else (0, False)))

    # --- idempotency keys ----------------------------------------------------------------------

    def receipts(self, key: str) -> tuple[Receipt, ...] | None:
        with self._reading() as cursor:
            row = self._row(cursor, "receipts", key=key)
        return _receipts.decode(row[0]) if row else None

    def _keep_receipts(self, cursor: Any, key: str, receipts: tuple[Receipt, ...]) -> None:
        values = {
            "key": key,
            "receipts": msgspec.json.encode(receipts),
            "recorded_at": max(receipt.recorded_at for receipt in receipts),
        }
        self._execute(cursor, self._statement("set_receipts"), values)

    def _first_receipts(
        self, cursor: Any, key: str, writes: Sequence[Write]
    ) -> tuple[Receipt, ...] | None:
        row = self._row(cursor, "receipts", key=key)
        if row is None:
            return None
        first = _receipts.decode(row[0])
        asked = tuple(write.stream for write in writes)
        if tuple(receipt.stream for receipt in first) != asked:
            raise IdempotencyKeyReusedError(key, asked, tuple(r.stream for r in first))
        return first

    # --- reading -------------------------------------------------------------------------------

    def fold(
        self,
        stream: str,
        after: int = 0,
        until: Bounds = Bounds(),  # noqa: B008 (immutable)
        *,
        fingerprint: bytes | None = None,
        connection: Connection | None = None,
    ) -> tuple[Snapshot | None, Iterator[Page]]:
        values: dict[str, Any] = {"stream": stream, "after": after, "limit": PAGE}
        mask = UNBOUNDED
        if until != _EVERYTHING:
            mask = mask_of(until)
            values |= given(until)
        name = "fold"
        if fingerprint is not None:
            name, values["fingerprint"] = "fold_from_snapshot", fingerprint
        with self._reading(connection) as cursor:
            self._execute(cursor, self._statement(name, mask), values)
            page = cursor.fetchall()
        snapshot = None
        if fingerprint is not None:
            snapshot, page = _parted(page)
            if snapshot is not None:
                values["after"] = snapshot.version
        if len(page) < PAGE:
            return snapshot, iter((page,))
        return snapshot, self._pages(page, mask, values, connection)

    def _pages(
        self, first: Page, mask: Mask, values: dict[str, Any], connection: Connection | None
    ) -> Iterator[Page]:
        # A query a page. A result left open would keep a connection while events are applied, be a
        # read lock in SQLite, and in psycopg a lock that the pool's clean-up would wait for.
        yield first
        del first  # so that there is one page in memory, and not two
        statement = self._statement("fold", mask)
        full = True
        while full:
            values["after"] += PAGE  # a stream's versions have no gaps
            with self._reading(connection) as cursor:
                self._execute(cursor, statement, values)
                page = cursor.fetchall()
            full = len(page) == PAGE
            yield page
            del page

    def read(
        self,
        stream: str,
        after: int,
        until: Bounds,
        *,
        limit: int,
        backwards: bool = False,
        types: Iterable[str] | None = None,
        connection: Joinable | None = None,
    ) -> Sequence[Row]:
        values = {"stream": stream, "after": after, "limit": limit, **given(until)}
        if types is not None:
            values["types"] = self.list_value(types)
        statement = self._statement("read", mask_of(until), backwards, types is not None)
        with self._reading(connection) as cursor:
            self._execute(cursor, statement, values)
            return list(map(Row._make, cursor.fetchall()))

    def sizes(self, stream: str, after: int, until: int, limit: int) -> Sequence[int]:
        values = {"stream": stream, "after": after, "until": until, "limit": limit}
        with self._reading() as cursor:
            self._execute(cursor, self._statement("sizes"), values)
            return [size for (size,) in cursor.fetchall()]

    def read_all(
        self,
        after: int,
        until: Bounds,
        *,
        limit: int,
        backwards: bool = False,
        wanted: Wanted = EVERY_EVENT,
        connection: Connection | None = None,
    ) -> Sequence[Row]:
        shape, values = self._shaped(after, until, limit, wanted)
        statement = self._statement("read_all", mask_of(until), backwards, shape)
        with self._reading(connection) as cursor:
            self._execute(cursor, statement, values)
            return list(map(Row._make, cursor.fetchall()))

    def scan(
        self,
        after: int,
        until: Bounds,
        *,
        limit: int,
        wanted: Wanted = EVERY_EVENT,
        connection: Connection | None = None,
    ) -> Sequence[Slim]:
        shape, values = self._shaped(after, until, limit, wanted)
        statement = self._statement("scan", mask_of(until), shape, False)
        with self._reading(connection) as cursor:
            self._execute(cursor, statement, values)
            found: Sequence[Slim] = cursor.fetchall()  # plain tuples: a name costs a tenth
            return found

    def pages(
        self,
        after: int,
        until: Bounds,
        *,
        size: int,
        wanted: Wanted = EVERY_EVENT,
        whole: bool = False,
    ) -> Generator[Rows]:
        self._check_open()
        shape, values = self._shaped(after, until, size, self._narrowed(wanted, until))
        if self.reads_aside:
            statement = self._statement("scan", mask_of(until), shape, whole)
            return self._read_on(statement, values, whole)
        if whole:
            return self._paged(self._statement("read_all", mask_of(until), False, shape), values)
        return self._paged(self._statement("scan", mask_of(until), shape, False), values)

    @property
    def reads_aside(self) -> bool:
        # One for the transaction, one for the pages, and one for what is looked up on the way.
        pool = self.engine.pool
        if isinstance(pool, QueuePool):
            return pool.size() >= 3 or pool.size() == 0  # which is no limit
        return isinstance(pool, NullPool)

    def _read_on(
        self, statement: Statement, values: dict[str, Any], whole: bool
    ) -> Generator[Rows]:
        """The pages of a scan, in the quickest way that the database has."""
        return self._paged(statement, values)

    def _paged(self, statement: Statement, values: dict[str, Any]) -> Generator[Rows]:
        # A query a page: between pages there is no read lock, which would keep a memory database
        # from being written, and the write-ahead log of a file from being emptied.
        full = True
        while full:
            with self._reading() as cursor:
                self._execute(cursor, statement, values)
                page = cursor.fetchall()
            full = len(page) == values["limit"]
            if page:
                values["after"] = page[-1][0]
                yield page

    def _narrowed(self, wanted: Wanted, until: Bounds) -> Wanted:
        """Without its types, where the log has no others: a tenth less time for each row."""
        if wanted.types is None or until.position is None:
            return wanted
        # Types of events up to a final position are there already.
        with self._reading() as cursor:
            self._execute(cursor, self._statement("types"), {})
            others = {name for _, name, _ in cursor.fetchall()}.difference(wanted.types)
        return wanted if others else wanted._replace(types=None)

    def stream_names(self, keys: Iterable[int]) -> dict[int, str]:
        with self._reading() as cursor:
            values = {"keys": self.list_value(keys)}
            self._execute(cursor, self._statement("stream_names"), values)
            return dict(cursor.fetchall())

    def _shaped(
        self, after: int, until: Bounds, limit: int, wanted: Wanted
    ) -> tuple[Shape, dict[str, Any]]:
        """Which conditions a read of the whole log has, and all its parameters."""
        types, categories, shard = wanted
        values: dict[str, Any] = {"after": after, "limit": limit, **given(until)}
        if types is not None:
            values["types"] = self.list_value(types)
        if categories is not None:
            values["categories"] = self.list_value(categories)
        if shard is not None:
            values["shard"], values["shards"] = shard
        return Shape(types is not None, categories is not None, shard is not None), values

    def moved(self, after: int, until: int) -> Sequence[tuple[str, int]]:
        with self._reading() as cursor:
            self._execute(cursor, self._statement("moved"), {"after": after, "until": until})
            found: Sequence[tuple[str, int]] = cursor.fetchall()
            return found

    def event_type(self, key: int, connection: Joinable | None = None) -> EventType:
        found = self._types.get(key)
        if found is None:
            with self._reading(connection) as cursor:
                self._execute(cursor, self._statement("types"), {})
                known = {id: EventType(name, version) for id, name, version in cursor.fetchall()}
            if key not in known:
                raise LogError(f"the log has no event type with the key {key}")
            found = known[key]
            if connection is None:  # what a caller's transaction added may yet be rolled back
                self._types.update(known)
        return found

    def stream(self, name: str, *, connection: Joinable | None = None) -> StreamInfo | None:
        with self._reading(connection) as cursor:
            row = self._row(cursor, "head", name=name)
        return None if row is None else StreamInfo(row[0], row[1], row[2], bool(row[3]))

    def streams(self, category: str | None, after: str, limit: int) -> Sequence[StreamInfo]:
        values = {"category": category, "after": after, "limit": limit}
        with self._reading() as cursor:
            self._execute(cursor, self._statement("streams", category is not None), values)
            return [
                StreamInfo(name, version, recorded_at, bool(deleted))
                for name, version, recorded_at, deleted in cursor.fetchall()
            ]

    # --- following -----------------------------------------------------------------------------

    def announce(self) -> None:
        self._hints.committed()

    def watching(self) -> contextlib.AbstractContextManager[None]:
        self._check_open()
        return self._watch

    @property
    def doubts(self) -> int:
        return 0

    @property
    def poll_interval(self) -> float:
        return self._watch.poll_interval

    # --- snapshots -----------------------------------------------------------------------------

    def save_snapshot(
        self,
        stream: str,
        fingerprint: bytes,
        snapshot: Snapshot,
        *,
        connection: Connection | None = None,
    ) -> None:
        values = {"stream": stream, "fingerprint": fingerprint, **snapshot._asdict()}
        with self._storing(connection) as cursor:
            self._execute(cursor, self._statement("save_snapshot"), values)

    def delete_snapshots(self, stream: str | None = None) -> int:
        statement = self._statement("delete_snapshots", stream is not None)
        with self._storing(None) as cursor:
            self._execute(cursor, statement, {"stream": stream})
            return int(cursor.rowcount)

    @contextlib.contextmanager
    def transaction(self, connection: Connection | None = None) -> Generator[Connection]:
        self._check_open()
        committed = False
        joined = None
        try:
            with transaction(self.engine if connection is None else connection) as joined:
                self._hints.begun(joined)
                yield joined
            committed = True
        finally:
            if joined is not None:
                self._hints.ended(joined, committed=committed)

    @contextlib.contextmanager
    def work(self) -> Generator[Work]:
        self._check_open()
        with self._turn_of(None), Transaction(self) as cursor:
            work = Work(cursor)
            yield work
        self._type_ids.update(work.new_types)
        if work.has_appended:
            self._hints.committed()

    def query(
        self, statement: Statement, values: Mapping[str, Any], work: Work | None = None
    ) -> Sequence[Any]:
        with self._reading(work) as cursor:
            self._execute(cursor, statement, values)
            found: Sequence[Any] = cursor.fetchall()
            return found

    def change(self, statement: Statement, values: Sequence[Mapping[str, Any]], work: Work) -> int:
        with self._writing(work) as cursor:
            if len(values) == 1:
                self._execute(cursor, statement, values[0])
            else:
                cursor.executemany(statement.text, list(map(statement.parameters, values)))
            return int(cursor.rowcount)

    # --- plumbing ------------------------------------------------------------------------------

    def close(self) -> None:
        self._closed = True
        self._watch.close()
        self._hints.close()
        self._kept.close()

    def _check_open(self) -> None:
        if self._closed:
            raise StoreClosedError

    def take(self) -> Seat:
        """A seat on a pooled connection: one that was kept, or else a new one."""
        while seat := self._kept.take():
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
        if not self._kept.give(seat):
            self._leave(seat)
        elif self._closed:  # meanwhile
            self._kept.close()

    def _leave(self, seat: Seat) -> None:
        seat.cursor.close()
        self.checkin(seat.pooled)

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

    def _execute(self, cursor: Any, statement: Statement, values: Mapping[str, Any]) -> None:
        cursor.execute(statement.text, statement.parameters(values))

    def _row(self, cursor: Any, query: str, /, *shape: Any, **values: Any) -> Any:
        self._execute(cursor, self._statement(query, *shape), values)
        return cursor.fetchone()

    def _compiled(self, name: str, *shape: Any) -> Statement:
        return Statement(
            getattr(Queries(self.one_of, self.insert), name)(*shape), self.engine.dialect
        )


def _parted(rows: Sequence[Any]) -> tuple[Snapshot | None, Page]:
    """The rows of `fold_from_snapshot`."""
    events = [(type, data) for _, type, data, _, _ in rows]
    if not events or events[0][0] is not None:
        return None, events
    version, _, state, position, recorded_at = rows[0]
    return Snapshot(version, position, recorded_at, state), events[1:]


def refuse(write: Write, version: int, deleted: bool) -> None:
    """Raise for what keeps a write out of a stream at that version; return if nothing does."""
    if deleted:
        raise StreamDeletedError(write.stream)
    expected = write.expected
    if expected is ANY or (isinstance(expected, int) and expected == version):
        return
    if (version > 0) is not (expected is NO_STREAM) and not isinstance(expected, int):
        return
    raise WrongExpectedVersionError(write.stream, expected, version)


def _check_expected(expected: Expected) -> None:
    # Not isinstance: a bool is no version.
    if expected.__class__ is Expectation or (
        expected.__class__ is int and 0 <= expected <= LARGEST  # pyright: ignore[reportOperatorIssue]
    ):
        return
    raise InvalidArgumentError(
        "expected", expected, "use a version from 0, ANY, NO_STREAM or STREAM_EXISTS"
    )


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
