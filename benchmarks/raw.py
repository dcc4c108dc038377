"""The raw drivers, sqlite3 and psycopg 3: what a competent engineer would write by hand.

They work on the library's own tables, one connection held open, every statement prepared. A save
checks the stream's version, keeps its head, gives each event an id and commits; a load decodes each
payload into the same event classes and applies it to the same state. What they leave out is what a
library adds: a pool, checks of names and types, metadata, errors that explain.
"""

from __future__ import annotations

import sqlite3
import time
from collections.abc import Callable, Iterable, Sequence
from datetime import datetime
from typing import Any, Final
from uuid import uuid4

import msgspec
import psycopg
from workload import AccountOpened, MoneyDeposited, MoneyWithdrawn, deposited, opened

from eventstore import Event


class ConflictError(Exception):
    """Another writer was first."""


class Account:
    """The state of `workload.Account`, in a plain class."""

    __slots__ = ("balance", "entries", "id", "new", "owner", "version")

    def __init__(self, id: str) -> None:
        self.id = id
        self.version = 0
        self.new: list[Event] = []
        self.owner = ""
        self.balance = 0
        self.entries = 0

    def open(self) -> None:
        self._record(opened())

    def deposit(self, amount: int) -> None:
        if amount <= 0:
            raise ValueError("a deposit must be positive")
        self._record(deposited(amount))

    def _record(self, event: Event) -> None:
        _APPLY[type(event)](self, event)
        self.new.append(event)


def _apply_opened(account: Account, event: AccountOpened) -> None:
    account.owner = event.owner


def _apply_deposited(account: Account, event: MoneyDeposited) -> None:
    account.balance += event.amount
    account.entries += 1


def _apply_withdrawn(account: Account, event: MoneyWithdrawn) -> None:
    account.balance -= event.amount
    account.entries += 1


_APPLY: Final[dict[type[Event], Callable[[Any, Any], None]]] = {
    AccountOpened: _apply_opened,
    MoneyDeposited: _apply_deposited,
    MoneyWithdrawn: _apply_withdrawn,
}
_encode: Final = msgspec.json.Encoder().encode

Step = tuple[Callable[[bytes], Any], Callable[[Any, Any], None]]


def _steps(types: Iterable[tuple[int, str]]) -> dict[int, Step]:
    """By type id: how a payload is decoded, and what it is applied with."""
    classes = {cls.__name__: cls for cls in _APPLY}
    return {
        id: (msgspec.json.Decoder(classes[name]).decode, _APPLY[classes[name]])
        for id, name in types
    }


def _replay(account: Account, steps: dict[int, Step], rows: Sequence[tuple[int, bytes]]) -> None:
    if not rows:
        raise LookupError(account.id)
    for type_id, data in rows:
        decode, apply = steps[type_id]
        apply(account, decode(data))
    account.version += len(rows)


def _replay_streamed(
    account: Account, steps: dict[int, Step], rows: Iterable[tuple[int, bytes]]
) -> None:
    version = account.version
    for type_id, data in rows:
        decode, apply = steps[type_id]
        apply(account, decode(data))
        version += 1
    if not version:
        raise LookupError(account.id)
    account.version = version


def _ids(steps: dict[int, Step]) -> dict[type[Event], int]:
    applied = {apply: cls for cls, apply in _APPLY.items()}
    return {applied[apply]: id for id, (_, apply) in steps.items()}


class Sqlite:
    """By hand on sqlite3."""

    def __init__(self, path: str, *, synchronous: str) -> None:
        self._db = sqlite3.connect(path, isolation_level=None)
        self._db.execute(f"PRAGMA synchronous = {synchronous}")
        assert self._db.execute("PRAGMA journal_mode").fetchone()[0] == "wal"
        self._cursor = self._db.cursor()
        self._add_types()
        self._steps = _steps(self._db.execute("SELECT id, name FROM eventstore_types"))
        self._ids = _ids(self._steps)

    def _add_types(self) -> None:
        self._db.executemany(
            "INSERT OR IGNORE INTO eventstore_types (name, version) VALUES (?, 1)",
            [(cls.__name__,) for cls in _APPLY],
        )

    def save(self, account: Account) -> None:
        cursor, new = self._cursor, account.new
        now = time.time_ns() // 1000
        cursor.execute("BEGIN IMMEDIATE")
        try:
            stream_id, version = self._head(account, len(new), now)
            type_ids = self._ids
            rows = [
                (stream_id, number, type_ids[type(e)], now, uuid4().bytes, _encode(e), None)
                for number, e in enumerate(new, account.version + 1)
            ]
            if len(rows) == 1:
                cursor.execute(_INSERT, rows[0])
            else:
                cursor.executemany(_INSERT, rows)
            cursor.execute("COMMIT")
        except BaseException:
            self._db.rollback()
            raise
        account.version = version
        new.clear()

    def _head(self, account: Account, count: int, now: int) -> tuple[int, int]:
        cursor, stream = self._cursor, f"account/{account.id}"
        if account.version:
            cursor.execute(_UPDATE_HEAD, (count, now, stream, account.version))
        else:
            cursor.execute(_INSERT_HEAD, (stream, "account", count, now))
        head: tuple[int, int] | None = cursor.fetchone()
        if head is None:
            raise ConflictError(stream)
        return head

    def load(self, id: str, at: datetime | None = None) -> Account:
        account = Account(id)
        stream = f"account/{id}"
        if at is None:
            rows = self._cursor.execute(_LOAD, (stream,))
        else:
            rows = self._cursor.execute(_LOAD_AT, (stream, _micros(at)))
        _replay(account, self._steps, rows.fetchall())
        return account

    def head(self) -> int:
        return int(self._cursor.execute(_HEAD).fetchone()[0])

    def close(self) -> None:
        self._db.close()


_HEAD: Final = "SELECT coalesce(max(position), 0) FROM eventstore_events"
_UPDATE_HEAD: Final = """
    UPDATE eventstore_streams SET version = version + ?, recorded_at = max(recorded_at, ?)
     WHERE name = ? AND version = ? AND NOT deleted RETURNING id, version"""
_INSERT_HEAD: Final = """
    INSERT INTO eventstore_streams (name, category, version, recorded_at, deleted)
    VALUES (?, ?, ?, ?, 0) ON CONFLICT (name) DO NOTHING RETURNING id, version"""
_INSERT: Final = """
    INSERT INTO eventstore_events (stream_id, version, type_id, recorded_at, id, data, metadata)
    VALUES (?, ?, ?, ?, ?, ?, ?)"""
_LOAD: Final = """
    SELECT type_id, data FROM eventstore_events
     WHERE stream_id = (SELECT id FROM eventstore_streams WHERE name = ?) ORDER BY version"""
_LOAD_AT: Final = """
    SELECT type_id, data FROM eventstore_events
     WHERE stream_id = (SELECT id FROM eventstore_streams WHERE name = ?) AND recorded_at <= ?
     ORDER BY version"""


class Postgres:
    """By hand on psycopg 3: one autocommit statement an append, binary parameters and results."""

    def __init__(self, url: str) -> None:
        self._db = psycopg.connect(url, autocommit=True)
        self._cursor = self._db.cursor(binary=True)
        self._db.execute(
            "INSERT INTO eventstore_types (name, version) SELECT unnest(%s::text[]), 1 "
            "ON CONFLICT DO NOTHING",
            ([cls.__name__ for cls in _APPLY],),
        )
        self._steps = _steps(self._db.execute("SELECT id, name FROM eventstore_types"))
        self._ids = _ids(self._steps)

    def save(self, account: Account) -> None:
        cursor, new = self._cursor, account.new
        stream, count = f"account/{account.id}", len(new)
        head: Sequence[object]
        if account.version:
            update, head = _PG_UPDATE_HEAD, (count, stream, account.version)
        else:
            update, head = _PG_INSERT_HEAD, (stream, count)
        if count == 1:
            event = new[0]
            values = (self._ids[type(event)], uuid4().bytes, _encode(event))
            cursor.execute(update + _PG_ONE, (*head, *values), prepare=True)
        else:
            types = [self._ids[type(event)] for event in new]
            ids = [uuid4().bytes for _ in new]
            payloads = [_encode(event) for event in new]
            cursor.execute(update + _PG_MANY, (*head, count, types, ids, payloads), prepare=True)
        row = cursor.fetchone()
        if row is None:
            raise ConflictError(stream)
        account.version = row[0]
        new.clear()

    def load(self, id: str, at: datetime | None = None) -> Account:
        account = Account(id)
        stream = f"account/{id}"
        if at is None:
            rows = self._cursor.execute(_PG_LOAD, (stream,), prepare=True)
        else:
            rows = self._cursor.execute(_PG_LOAD_AT, (stream, _micros(at)), prepare=True)
        _replay(account, self._steps, rows.fetchall())
        return account

    def stream(self, id: str) -> Account:
        """The same for a long stream: libpq hands over rows while the server makes more."""
        account = Account(id)
        rows = self._cursor.stream(_PG_LOAD, (f"account/{id}",), binary=True, size=500)
        _replay_streamed(account, self._steps, rows)
        return account

    def head(self) -> int:
        row: Any = self._cursor.execute(_HEAD).fetchone()
        return int(row[0])

    def notify(self, channel: str) -> None:
        self._db.execute(f"NOTIFY {channel}")

    def close(self) -> None:
        self._db.close()


_PG_NOW: Final = "(extract(epoch FROM clock_timestamp()) * 1000000)::bigint"
_PG_UPDATE_HEAD: Final = f"""
    WITH head AS (
        UPDATE eventstore_streams
           SET version = version + %s, recorded_at = greatest(recorded_at, {_PG_NOW})
         WHERE name = %s AND version = %s AND NOT deleted
        RETURNING id, version, recorded_at)"""
_PG_INSERT_HEAD: Final = f"""
    WITH head AS (
        INSERT INTO eventstore_streams (name, category, version, recorded_at)
        VALUES (%s, 'account', %s, {_PG_NOW}) ON CONFLICT (name) DO NOTHING
        RETURNING id, version, recorded_at)"""
_PG_ONE: Final = """, new AS (
        INSERT INTO eventstore_events (stream_id, version, type_id, recorded_at, id, data)
        SELECT head.id, head.version, %s, head.recorded_at, %b, %b FROM head)
    SELECT version FROM head"""
_PG_MANY: Final = """, new AS (
        INSERT INTO eventstore_events (stream_id, version, type_id, recorded_at, id, data)
        SELECT head.id, head.version - %s + n, e.type_id, head.recorded_at, e.id, e.data
          FROM head, unnest(%b::int[], %b::bytea[], %b::bytea[])
               WITH ORDINALITY AS e (type_id, id, data, n))
    SELECT version FROM head"""
_PG_LOAD: Final = _LOAD.replace("?", "%s")
_PG_LOAD_AT: Final = _LOAD_AT.replace("?", "%s")


def _micros(moment: datetime) -> int:
    return round(moment.timestamp() * 1_000_000)
