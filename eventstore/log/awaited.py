"""A cursor of an async driver, for hot statements in a caller's async transaction.

SQLAlchemy runs a sync function inside an async transaction in a greenlet (`run_sync`), from which
the driver can be awaited.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, Self

from sqlalchemy import Connection
from sqlalchemy.util import await_


class AwaitedCursor:
    """What the log needs of a driver's cursor, on an async one of psycopg or aiosqlite.

    SQLAlchemy's own adapter would not let us ask for binary results, nor for a prepared statement.
    """

    __slots__ = ("_cursor",)

    def __init__(self, cursor: Any) -> None:
        self._cursor = cursor

    def execute(self, query: str, parameters: Any = (), /, **options: Any) -> Self:
        await_(self._cursor.execute(query, parameters, **options))
        return self

    def executemany(self, query: str, parameters: Iterable[Any], /) -> Self:
        await_(self._cursor.executemany(query, parameters))
        return self

    def fetchone(self) -> Any:
        return await_(self._cursor.fetchone())

    def fetchall(self) -> Any:
        return await_(self._cursor.fetchall())

    def close(self) -> None:
        await_(self._cursor.close())

    @property
    def rowcount(self) -> int:
        count: int = self._cursor.rowcount
        return count

    @property
    def lastrowid(self) -> Any:
        return self._cursor.lastrowid


def driver_connection(connection: Connection) -> Any:
    """The driver's own connection: a sync one, or the async one that SQLAlchemy has adapted."""
    pooled: Any = connection.connection
    return pooled.driver_connection
