"""What both SQL backends share of reading: streams, the whole log, and the tables of names.

Hot statements are made once with SQLAlchemy Core and then run as text on a cursor of the pooled
DBAPI connection: Core at every call would cost more than the database does (docs/decisions.md).
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Generator, Iterable, Iterator, Mapping, Sequence
from functools import cache
from typing import Any, Final, TypeAlias

from sqlalchemy import Connection, Engine, NullPool, QueuePool

from eventstore.errors import LogError
from eventstore.log.base import (
    EVERY_EVENT,
    Bounds,
    EventType,
    Keyed,
    Row,
    Slim,
    Snapshot,
    StreamInfo,
    Wanted,
)
from eventstore.log.borrowing import Connections
from eventstore.log.queries import PAGE, UNBOUNDED, Mask, Queries, Shape, Statement, given, mask_of
from eventstore.log.work import Joinable

#: A page of the whole log.
Rows: TypeAlias = Sequence[Slim] | Sequence[Keyed] | Sequence[Row]
#: (type key, data) of events in order.
Page: TypeAlias = Sequence[tuple[int, bytes]]

_EVERYTHING: Final = Bounds()


class ReadingLog(Connections):
    """The part of a log that reads."""

    #: The dialect's `insert`, which knows ON CONFLICT.
    insert: Any

    def __init__(self, engine: Engine, keep: int) -> None:
        super().__init__(engine, keep)
        self._types: dict[int, EventType] = {}
        self._statement = cache(self._compiled)

    @abstractmethod
    def one_of(self, column: Any, parameter: str) -> Any:
        """The condition that a column's value is in the list that is given as `parameter`."""

    @abstractmethod
    def list_value(self, values: Iterable[str | int]) -> Any:
        """A list as the value of such a parameter."""

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
            page = self.query(statement, values, connection)
            full = len(page) == PAGE
            yield page
            del page

    def fold_together(self, streams: Sequence[str]) -> Sequence[Page | None]:
        pages: list[Page | None] = []
        statement = self._statement("fold", UNBOUNDED)
        for stream in streams:
            page = self.query(statement, {"stream": stream, "after": 0, "limit": PAGE})
            pages.append(page if len(page) < PAGE else None)
        return pages

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
        return list(map(Row._make, self.query(statement, values, connection)))

    def sizes(self, stream: str, after: int, until: int, limit: int) -> Sequence[int]:
        values = {"stream": stream, "after": after, "until": until, "limit": limit}
        return [size for (size,) in self.query(self._statement("sizes"), values)]

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
        return list(map(Row._make, self.query(statement, values, connection)))

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
        return self.query(statement, values, connection)  # plain tuples: a name costs a tenth

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
            page = self.query(statement, values)
            full = len(page) == values["limit"]
            if page:
                values["after"] = page[-1][0]
                yield page

    def _narrowed(self, wanted: Wanted, until: Bounds) -> Wanted:
        """Without its types, where the log has no others: a tenth less time for each row."""
        if wanted.types is None or until.position is None:
            return wanted
        # Types of events up to a final position are there already.
        types = self.query(self._statement("types"), {})
        others = {name for _, name, _ in types}.difference(wanted.types)
        return wanted if others else wanted._replace(types=None)

    def stream_names(self, keys: Iterable[int]) -> dict[int, str]:
        return dict(self.query(self._statement("stream_names"), {"keys": self.list_value(keys)}))

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
        return self.query(self._statement("moved"), {"after": after, "until": until})

    def event_type(self, key: int, connection: Joinable | None = None) -> EventType:
        found = self._types.get(key)
        if found is None:
            types = self.query(self._statement("types"), {}, connection)
            known = {id: EventType(name, version) for id, name, version in types}
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
        return [
            StreamInfo(name, version, recorded_at, bool(deleted))
            for name, version, recorded_at, deleted in self.query(
                self._statement("streams", category is not None), values
            )
        ]

    # --- statements ----------------------------------------------------------------------------

    def query(
        self, statement: Statement, values: Mapping[str, Any], connection: Joinable | None = None
    ) -> Sequence[Any]:
        with self._reading(connection) as cursor:
            self._execute(cursor, statement, values)
            found: Sequence[Any] = cursor.fetchall()
            return found

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
