"""A replay by hand: every event of the log in order, decoded and handed to a function by its type.

One query; the rows come as they are asked for, so no more than one is held.
"""

from __future__ import annotations

import sqlite3
from typing import Any, Final

import psycopg
from raw_projection import decoders
from workload import AccountOpened, MoneyDeposited, MoneyWithdrawn


class Nothing:
    """A method for each event, which does nothing."""

    def opened(self, event: AccountOpened) -> None:
        pass

    def deposited(self, event: MoneyDeposited) -> None:
        pass

    def withdrawn(self, event: MoneyWithdrawn) -> None:
        pass


HANDLERS: Final[dict[str, Any]] = {
    "AccountOpened": Nothing.opened,
    "MoneyDeposited": Nothing.deposited,
    "MoneyWithdrawn": Nothing.withdrawn,
}


class Sqlite:
    """On sqlite3."""

    def __init__(self, path: str) -> None:
        self._db = sqlite3.connect(path, isolation_level=None)
        self.close = self._db.close

    def replay(self) -> int:
        """The position of the last event."""
        types = self._db.execute(_TYPES).fetchall()
        decode, owner, position = decoders(types), Nothing(), 0
        handlers = {id: HANDLERS[name] for id, name in types}
        for position, type_id, data in self._db.execute(_EVENTS):  # noqa: B007 (returned)
            handlers[type_id](owner, decode[type_id](data))
        return position


class Postgres:
    """On psycopg 3: rows streamed in chunks, in binary, which is by far the fastest way."""

    def __init__(self, url: str) -> None:
        self._db = psycopg.connect(url, autocommit=True)
        self.close = self._db.close

    def replay(self) -> int:
        """The position of the last event."""
        types: Any = self._db.execute(_TYPES).fetchall()
        decode, owner, position = decoders(types), Nothing(), 0
        handlers = {id: HANDLERS[name] for id, name in types}
        rows = self._db.cursor().stream(_EVENTS, binary=True, size=500)
        for position, type_id, data in rows:  # noqa: B007 (returned)
            handlers[type_id](owner, decode[type_id](data))
        return position


_TYPES: Final = "SELECT id, name FROM eventstore_types"
_EVENTS: Final = "SELECT position, type_id, data FROM eventstore_events ORDER BY position"
