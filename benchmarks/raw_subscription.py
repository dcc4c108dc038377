"""A live reader by hand: what came past a position, then a wait for a sign that there is more.

On SQLite the sign is `PRAGMA data_version`, looked at each millisecond; on PostgreSQL it is a
NOTIFY that the writer sends right after its commit. What comes is decoded into the event classes.
"""

from __future__ import annotations

import sqlite3
import time
from collections.abc import Iterator
from contextlib import closing
from typing import Any, Final

import psycopg
from raw_projection import decoders

CHANNEL: Final = "events_by_hand"

_PAST: Final = """
    SELECT position, type_id, data FROM eventstore_events WHERE position > ? ORDER BY position"""
_TYPES: Final = "SELECT id, name FROM eventstore_types"


def sqlite(path: str, after: int) -> Iterator[Any]:
    with closing(sqlite3.connect(path, isolation_level=None)) as db:
        decode = decoders(db.execute(_TYPES))
        seen = -1
        while True:
            (version,) = db.execute("PRAGMA data_version").fetchone()
            if version == seen:
                time.sleep(0.001)
                continue
            seen = version
            for position, type_id, data in db.execute(_PAST, (after,)).fetchall():
                after = position
                yield decode[type_id](data)


def postgres(url: str, after: int) -> Iterator[Any]:
    with psycopg.connect(url, autocommit=True) as db, db.cursor(binary=True) as cursor:
        decode = decoders(cursor.execute(_TYPES))
        db.execute(f"LISTEN {CHANNEL}")
        while True:
            cursor.execute(_PAST.replace("?", "%s"), (after,), prepare=True)
            for position, type_id, data in cursor.fetchall():
                after = position
                yield decode[type_id](data)
            for _ in db.notifies(timeout=1, stop_after=1):
                pass
