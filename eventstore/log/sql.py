"""What the two SQL backends share beside reading: appends, snapshots, idempotency keys."""

from __future__ import annotations

import contextlib
from abc import abstractmethod
from collections.abc import Generator, Mapping, Sequence
from typing import Any, ClassVar, Final

import msgspec
from sqlalchemy import Connection, Engine

from eventstore.errors import (
    IdempotencyKeyReusedError,
    InvalidArgumentError,
    LogLockedError,
    StreamDeletedError,
    StreamNotFoundError,
    WrongExpectedVersionError,
)
from eventstore.ids import new_ids
from eventstore.log.base import (
    ANY,
    DELETED,
    NO_STREAM,
    STREAM_EXISTS,
    EventType,
    Expectation,
    Expected,
    NewEvent,
    Receipt,
    Snapshot,
    Write,
)
from eventstore.log.borrowing import Transaction
from eventstore.log.grouping import GroupCommit, Request
from eventstore.log.hints import Hints, Notifies
from eventstore.log.queries import Statement
from eventstore.log.reading import ReadingLog
from eventstore.log.transactions import transaction
from eventstore.log.watching import Watch
from eventstore.log.work import Joinable, Work
from eventstore.names import category_of
from eventstore.numbers import LARGEST

_receipts = msgspec.json.Decoder(tuple[Receipt, ...])
_tombstone: Final = EventType(DELETED, 1)


class SqlLog(ReadingLog):
    """The part of a log that SQLite and PostgreSQL have in common."""

    def __init__(self, engine: Engine, *, keep: int = 0, notifier: Notifies | None = None) -> None:
        super().__init__(engine, keep)
        self._hints = Hints(engine, notifier)
        self._hints.outlived_by(self)
        self.signal = self._hints.signal
        self._watch = self.watch()
        self._group: GroupCommit | None = None
        self._type_ids: dict[EventType, int] = {}

    # --- what a backend adds -------------------------------------------------------------------

    #: How many transactions of appends it pays to have under way before they are put together.
    places: ClassVar[int]

    @abstractmethod
    def watch(self) -> Watch:
        """What watches for the commits of other processes."""

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
        if len(writes) > 1 and len({write.stream for write in writes}) != len(writes):
            names = [write.stream for write in writes]
            raise InvalidArgumentError("writes", names, "a stream may occur once in an append")
        for write in writes:
            _check_expected(write.expected)
        if not writes:
            self._check_open()
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
            self._group = self._new_group()

    def _new_group(self) -> GroupCommit:
        def alone(
            writes: Sequence[Write], key: str | None, recorded_at: int | None
        ) -> tuple[Receipt, ...]:
            return self._write(writes, key, recorded_at, None)

        return GroupCommit(self.places, alone, self._write_together)

    def append_together(self, requests: Sequence[Request]) -> None:
        self._check_open()
        (self._group or self._new_group()).commit(requests)
        self._hints.appended(None)

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

    # --- following -----------------------------------------------------------------------------

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
        if work.has_news:
            self._hints.committed()

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
        self._keep = 0
        self._let_go()


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
