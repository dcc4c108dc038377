"""A read model's changes as a stream of the log, in messages of the State Protocol.

What the changed rows were before a transaction is read before the first write to each, and what
they are after the last one: what differs is told. So it does not matter how often a row was written
in between, nor what was rolled back to a savepoint.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, Final, Literal, NamedTuple, TypeAlias

import msgspec
from sqlalchemy import Connection, Row, Table, bindparam, event, select, tuple_

from eventstore import moments
from eventstore.errors import DefinitionError, InvalidArgumentError, InvalidNameError
from eventstore.ids import new_ids
from eventstore.log.base import MESSAGE, Bounds, Log, NewEvent, Write
from eventstore.log.tables import followers
from eventstore.log.transactions import reading
from eventstore.names import check_stream_name, reserve
from eventstore.projections.buffer import WriteBuffer
from eventstore.projections.declared import claim, owner_of
from eventstore.projections.statements import Key

Operation: TypeAlias = Literal["insert", "update", "delete"]

#: How many values one query is given at the most: SQLite takes 32,766, PostgreSQL 65,535.
_VALUES: Final = 30_000


def _plain(value: Any) -> str:
    """What JSON has no form for: an address of a network, a range."""
    return str(value)


_encode: Final = msgspec.json.Encoder(enc_hook=_plain).encode


class ChangeStream:
    """What `changes=` declares: the stream's name, and how rows of the tables are told in it."""

    def __init__(self, cls: type, name: str, tables: Sequence[Table]) -> None:
        """Raises DefinitionError."""
        try:
            self.name: Final = check_stream_name(name)
        except InvalidNameError as error:
            raise DefinitionError(owner_of(cls), f"changes={name!r}: {error}") from None
        claim("stream of changes", name, cls)
        reserve(name)
        for table in tables:
            _check_table(cls, table)
        self.tables: Final = {table: ToldTable(table) for table in tables}
        names = sorted(table.name for table in tables)
        quoted = ", ".join('"' + name.replace('"', '""').replace("%", "%%") + '"' for name in names)
        self._lock: Final = f"LOCK TABLE {quoted} IN ROW EXCLUSIVE MODE"
        self._writes: Final = _writes_to(names)

    def lock(self, connection: Connection) -> None:
        """Take the locks of tables that writing takes, before anything is read.

        Else a swap, which keeps out those who write, would let these read and then wait for them,
        as they for it.
        """
        if connection.dialect.name == "postgresql" and self.tables:
            connection.exec_driver_sql(self._lock)

    def check_statement(self, statement: str) -> None:
        """Refuse one that changes the tables, of which nobody would be told."""
        if self._writes.search(_UNREAD.sub(" ", statement)):
            raise InvalidArgumentError(
                "statement",
                statement,
                f"the changes of this table are told in the stream {self.name!r}, and those of a "
                "statement of your own would not be: use insert, put, add, update and delete",
            )


def _check_table(cls: type, table: Table) -> None:
    if not table.primary_key:
        raise DefinitionError(
            owner_of(cls),
            "changes= tells rows by their primary key: give it one",
            member=table.name,
        )
    for key in table.foreign_key_constraints:
        for action in (key.ondelete, key.onupdate):
            if action is not None and action.upper() not in ("RESTRICT", "NO ACTION"):
                raise DefinitionError(
                    owner_of(cls),
                    f"with changes= no row may be changed by the database ({action} of a foreign "
                    "key), since nobody would be told: change it in a handler",
                    member=table.name,
                )


#: Literals and comments of SQL, in which no table is named.
_UNREAD: Final = re.compile(r"'(?:[^']|'')*'|--[^\n]*|/\*.*?\*/", re.DOTALL)


def _writes_to(names: Iterable[str]) -> re.Pattern[str]:
    """What finds, in a statement, that it writes to one of the tables."""
    names = [re.escape(name) for name in names]
    quoted = "|".join(name.replace('"', '""') for name in names)
    return re.compile(
        r"\b(?:into|update(?:\s+or\s+\w+)?|delete\s+from|truncate(?:\s+table)?|copy)\s+"
        r'(?:only\s+)?(?:(?:\w+|"[^"]*")\s*\.\s*)?'
        rf'(?:"(?:{quoted})"|(?:{"|".join(names)})\b)',
        re.IGNORECASE,
    )


class ToldRow(NamedTuple):
    """A row: its primary key, and its key and value as they are told."""

    at: Key
    key: str
    value: bytes


class ToldTable:
    """How the rows of one table are read and told."""

    def __init__(self, table: Table) -> None:
        self.name: Final = table.name
        self._names = table.c.keys()
        key = list(table.primary_key)
        self._key = [self._names.index(column.key) for column in key]
        self._one = key[0] if len(key) == 1 else tuple_(*key)
        self._all = select(*(column.label(column.key) for column in table.c)).order_by(*key)
        self._given = self._all.where(self._one.in_(bindparam("keys", expanding=True)))
        last = [bindparam(f"last_{i}", type_=column.type) for i, column in enumerate(key)]
        self._next = self._all.where(self._one > (last[0] if len(key) == 1 else tuple_(*last)))

    def find(
        self, connection: Connection, keys: Sequence[Key], *, lock: bool = False
    ) -> Iterator[ToldRow]:
        """The rows that have one of these primary keys; with `lock`, nobody else changes them."""
        query = self._given.with_for_update(key_share=True) if lock else self._given
        size = _VALUES // len(self._key)
        for start in range(0, len(keys), size):
            rows = connection.execute(query, {"keys": keys[start : start + size]}).all()
            yield from map(self._told, rows)

    def every(self, connection: Connection, size: int) -> Iterator[ToldRow]:
        """All rows, in the order of their keys, read so many at a time."""
        rows = connection.execute(self._all.limit(size)).all()
        while rows:
            yield from map(self._told, rows)
            if len(rows) < size:
                return
            last = {f"last_{i}": rows[-1][at] for i, at in enumerate(self._key)}
            rows = connection.execute(self._next.limit(size), last).all()

    def _told(self, row: Row[Any]) -> ToldRow:
        parts = [row[at] for at in self._key]
        value = _encode(dict(zip(self._names, row, strict=True)))
        return ToldRow(parts[0] if len(parts) == 1 else tuple(parts), key_text(parts), value)


def key_text(parts: Sequence[Any]) -> str:
    """A primary key as the messages have it: no two keys of a table have the same text.

    Of several columns it is the JSON list of their values; of one, its value. A text that is empty,
    which no key may be, or begins like a JSON string, is written as one.
    """
    plain: list[Any] = msgspec.to_builtins(list(parts), enc_hook=_plain)
    if len(plain) > 1:
        return _encode(plain).decode()
    (value,) = plain
    if isinstance(value, str) and value and not value.startswith('"'):
        return value
    return _encode(value).decode()


class Messages:
    """Messages of one transaction."""

    def __init__(self, position: int, recorded_at: int) -> None:
        """What they say of where they come from: see `TableProjection`."""
        self._rest = {"txid": str(position), "timestamp": moments.from_micros(recorded_at)}
        self._texts: list[bytes] = []

    def add(self, operation: Operation, table: str, key: str, value: bytes | None = None) -> None:
        message: dict[str, Any] = {"type": table, "key": key}
        if value is not None:
            message["value"] = msgspec.Raw(value)
        self._texts.append(_encode({**message, "headers": {"operation": operation, **self._rest}}))

    def __len__(self) -> int:
        return len(self._texts)

    def take(self) -> list[NewEvent]:
        """Those that were added since the last time, as the log takes them."""
        texts, self._texts = self._texts, []
        return [
            NewEvent(MESSAGE, text, id) for text, id in zip(texts, new_ids(len(texts)), strict=True)
        ]


class Recorder:
    """The changes that one transaction makes to the rows of a projection."""

    def __init__(self, declared: ChangeStream) -> None:
        self.declared: Final = declared
        #: The position of the last event that was applied.
        self.position = 0
        self._touched: dict[Table, dict[Key, None]] = {}
        self._before: dict[Table, dict[str, bytes]] = {}
        self._guarded: Connection | None = None
        self._flushing = False

    def buffer(self, connection: Connection) -> WriteBuffer:
        """A write buffer whose changes are recorded."""
        self.declared.lock(connection)
        return _WatchedBuffer(connection, self)

    def rest(self) -> None:
        """No handler runs any more."""
        if self._guarded is not None:
            event.remove(self._guarded, "before_cursor_execute", self._check)
            self._guarded = None

    def messages(self, log: Log, connection: Connection) -> list[NewEvent]:
        """What is to be told: at most one message a row, and none where it is as it was."""
        changed = [
            (told.name, before, {row.key: row.value for row in rows})
            for told, before, rows in self.touched(connection)
        ]
        if all(before == after for _, before, after in changed):
            return []
        bounds = Bounds(position=self.position)
        found = log.read_all(self.position - 1, bounds, limit=1, connection=connection)
        messages = Messages(self.position, found[0].recorded_at if found else moments.now())
        # Rows that refer to others go before them and come after them.
        for name, before, after in reversed(changed):
            for key in before:
                if key not in after:
                    messages.add("delete", name, key)
        for name, before, after in changed:
            for key, value in after.items():
                if key not in before:
                    messages.add("insert", name, key, value)
                elif before[key] != value:
                    messages.add("update", name, key, value)
        return messages.take()

    def touched(
        self, connection: Connection
    ) -> Iterator[tuple[ToldTable, dict[str, bytes], Iterator[ToldRow]]]:
        """Of each table, the rows that were written: as they were by key, and as they are."""
        for table, told in self.declared.tables.items():
            if table in self._touched:
                keys = list(self._touched[table])
                yield told, self._before[table], told.find(connection, keys)

    # --- what the buffer tells -----------------------------------------------------------------

    def touch(self, connection: Connection, table: Table, keys: Iterable[Key]) -> None:
        """Rows are about to be written."""
        told = self.declared.tables.get(table)
        if told is None:
            return
        touched = self._touched.setdefault(table, {})
        new = [key for key in keys if key not in touched]
        before = self._before.setdefault(table, {})
        # Locked, since a worker of another shard may be about to delete one of them.
        before.update((row.key, row.value) for row in told.find(connection, new, lock=True))
        touched.update(dict.fromkeys(new))

    def guard(self, connection: Connection) -> None:
        """A handler has got hold of the connection."""
        if self._guarded is None:
            event.listen(connection, "before_cursor_execute", self._check)
            self._guarded = connection

    def flushes(self, flushing: bool) -> None:
        """Whether statements are now the buffer's own."""
        self._flushing = flushing

    def _check(
        self, _connection: Connection, _cursor: Any, statement: str, *_details: object
    ) -> None:
        if not self._flushing:
            self.declared.check_statement(statement)


class _WatchedBuffer(WriteBuffer):
    """A write buffer that tells a recorder what it is about to write."""

    def __init__(self, connection: Connection, recorder: Recorder) -> None:
        super().__init__(connection, list(recorder.declared.tables))
        self._recorder = recorder

    def flush(self) -> None:
        if not self.pending:
            return
        recorder = self._recorder
        recorder.flushes(True)
        try:
            for table, rows in self._tables.items():
                if rows.pending:
                    recorder.touch(self._connection, table, rows.pending)
            super().flush()
        finally:
            recorder.flushes(False)

    def lend(self) -> Connection:
        connection = super().lend()
        self._recorder.guard(connection)
        return connection


def marked(fingerprint: str, declared: ChangeStream | None) -> str:
    """A projection's fingerprint, with its stream: a new one would not know of its tables' rows."""
    return fingerprint if declared is None else f"{fingerprint} {declared.name}"


def is_told(log: Log, stream: str) -> bool:
    """Whether a projection of this log tells its changes in a stream, which may have none yet."""
    with reading(log.engine) as connection:
        marks = connection.scalars(select(followers.c.fingerprint).distinct())
        return any(mark.partition(" ")[2] == stream for mark in marks)


def tell(log: Log, connection: Connection, recorders: Iterable[Recorder]) -> None:
    """Append what was recorded to the streams, in the transaction that has changed the rows."""
    writes = [
        Write(recorder.declared.name, messages)
        for recorder in recorders
        if (messages := recorder.messages(log, connection))
    ]
    if writes:
        log.append(writes, connection=connection)
