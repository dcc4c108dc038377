"""A read model by hand: rows in order, decoded, folded in memory, written once a batch.

For each batch of events there is one transaction, in which the checkpoint moves too. An account's
events of one batch become one row to insert or one to update, so larger batches write less. 5,000
is what is usual; 200,000 is what a rebuild of ours has, and about the best for this workload.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Callable, Iterable
from itertools import islice
from typing import Any, Final

import msgspec
import psycopg
from workload import AccountOpened, MoneyDeposited, MoneyWithdrawn

BATCH: Final = 5_000
LARGE: Final = 200_000

#: By type id, how a payload is decoded.
Decoders = dict[int, Callable[[bytes], Any]]


class Batch:
    """What a batch of events does to the accounts, by the id of the account's stream."""

    def __init__(self, rows: Iterable[tuple[int, int, int, bytes]], decode: Decoders) -> None:
        self.position = 0
        self.new: dict[int, list[Any]] = {}  # owner, balance, entries
        self.changed: dict[int, list[int]] = {}  # balance, entries
        new, changed = self.new, self.changed
        for self.position, stream_id, type_id, data in rows:
            event = decode[type_id](data)
            cls = type(event)
            if cls is AccountOpened:
                new[stream_id] = [event.owner, 0, 0]
                continue
            amount = event.amount if cls is MoneyDeposited else -event.amount
            if stream_id in new:
                account = new[stream_id]
                account[1] += amount
                account[2] += 1
            elif stream_id in changed:
                change = changed[stream_id]
                change[0] += amount
                change[1] += 1
            else:
                changed[stream_id] = [amount, 1]


def decoders(types: Iterable[tuple[int, str]]) -> Decoders:
    classes = {cls.__name__: cls for cls in (AccountOpened, MoneyDeposited, MoneyWithdrawn)}
    return {id: msgspec.json.Decoder(classes[name]).decode for id, name in types}


class Sqlite:
    """By hand on sqlite3, in the file of the log, with full durability."""

    def __init__(self, path: str) -> None:
        self._db = sqlite3.connect(path, isolation_level=None)
        self._db.execute("PRAGMA synchronous = FULL")
        self._cursor, self._reader = self._db.cursor(), self._db.cursor()

    def rebuild(self, size: int = BATCH) -> None:
        cursor = self._cursor
        decode = decoders(cursor.execute("SELECT id, name FROM eventstore_types"))
        names = dict(cursor.execute(_NAMES).fetchall())
        cursor.executescript(_TABLES)
        position = 0
        while (batch := Batch(self._reader.execute(_PAGE, (position, size)), decode)).position:
            position = batch.position
            new = [(names[id], *values) for id, values in batch.new.items()]
            changed = [(*values, names[id]) for id, values in batch.changed.items()]
            cursor.execute("BEGIN IMMEDIATE")
            cursor.executemany(_INSERT, new)
            cursor.executemany(_UPDATE, changed)
            cursor.execute("UPDATE checkpoint_by_hand SET position = ?", (position,))
            cursor.execute("COMMIT")

    def rows(self) -> tuple[int, int, int]:
        found: tuple[int, int, int] = self._cursor.execute(_SUMS).fetchone()
        return found

    def close(self) -> None:
        self._db.close()


_TABLES: Final = """
    DROP TABLE IF EXISTS accounts_by_hand;
    DROP TABLE IF EXISTS checkpoint_by_hand;
    CREATE TABLE accounts_by_hand (
        account TEXT PRIMARY KEY, owner TEXT NOT NULL, balance BIGINT NOT NULL,
        entries BIGINT NOT NULL);
    CREATE TABLE checkpoint_by_hand (position BIGINT NOT NULL);
    INSERT INTO checkpoint_by_hand VALUES (0)"""
_NAMES: Final = "SELECT id, substr(name, 9) FROM eventstore_streams WHERE category = 'account'"
_PAGE: Final = """
    SELECT position, stream_id, type_id, data FROM eventstore_events
     WHERE position > ? ORDER BY position LIMIT ?"""
_INSERT: Final = "INSERT INTO accounts_by_hand VALUES (?, ?, ?, ?)"
_UPDATE: Final = """
    UPDATE accounts_by_hand SET balance = balance + ?, entries = entries + ? WHERE account = ?"""
_SUMS: Final = "SELECT count(*), sum(balance), sum(entries) FROM accounts_by_hand"


class Postgres:
    """By hand on psycopg 3: rows streamed on one connection, batches written on another."""

    def __init__(self, url: str) -> None:
        self._reader = psycopg.connect(url, autocommit=True)
        self._db = psycopg.connect(url, autocommit=True)

    def rebuild(self, size: int = BATCH) -> None:
        db = self._db
        decode = decoders(db.execute("SELECT id, name FROM eventstore_types"))  # type: ignore[arg-type]
        names: dict[int, str] = dict(db.execute(_NAMES).fetchall())
        db.execute(_TABLES)
        rows = self._reader.cursor().stream(_STREAM, binary=True, size=500)
        while (batch := Batch(islice(rows, size), decode)).position:
            new, changed = batch.new, batch.changed
            with db.transaction(), db.cursor() as cursor:
                if new:
                    columns = ([names[id] for id in new], *_columns(new))
                    cursor.execute(_PG_INSERT, columns, prepare=True)
                if changed:
                    columns = ([names[id] for id in changed], *_columns(changed))
                    cursor.execute(_PG_UPDATE, columns, prepare=True)
                cursor.execute(_PG_CHECKPOINT, (batch.position,), prepare=True)

    def rows(self) -> tuple[int, int, int]:
        found: Any = self._db.execute(_SUMS).fetchone()
        return tuple(map(int, found))  # type: ignore[return-value]

    def close(self) -> None:
        self._reader.close()
        self._db.close()


def _columns(rows: dict[int, list[Any]]) -> list[list[Any]]:
    return [list(column) for column in zip(*rows.values(), strict=True)]


_STREAM: Final = """
    SELECT position, stream_id, type_id, data FROM eventstore_events ORDER BY position"""
_PG_INSERT: Final = """
    INSERT INTO accounts_by_hand
    SELECT * FROM unnest(%b::text[], %b::text[], %b::bigint[], %b::bigint[])"""
_PG_UPDATE: Final = """
    UPDATE accounts_by_hand AS a
       SET balance = a.balance + d.balance, entries = a.entries + d.entries
      FROM unnest(%b::text[], %b::bigint[], %b::bigint[]) AS d (account, balance, entries)
     WHERE a.account = d.account"""
_PG_CHECKPOINT: Final = "UPDATE checkpoint_by_hand SET position = %s"
