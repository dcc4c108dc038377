"""Reading for a verification: page by page, each of them of one instant."""

from __future__ import annotations

import contextlib
from collections.abc import Generator, Iterator
from typing import Any, Final

from sqlalchemy import Connection, Engine, func, select, tuple_

from eventstore.log.queries import Query
from eventstore.log.transactions import own_errors, reading

#: Rows a page.
PAGE: Final = 500


@contextlib.contextmanager
def snapshot(engine: Engine) -> Generator[Connection]:
    """A connection on which everything is as it was at one instant, for the block. Raises LogError.

    It writes nothing, and keeps nobody from writing (but in a memory database).
    """
    with own_errors(engine), engine.connect() as connection:
        if engine.dialect.name == "postgresql":
            connection.execution_options(
                isolation_level="REPEATABLE READ", postgresql_readonly=True
            )
        connection.begin()
        raw: Any = connection.connection.dbapi_connection
        if engine.dialect.name == "sqlite" and not raw.in_transaction:
            connection.exec_driver_sql("BEGIN")  # a driver that does not before it writes
        try:
            yield connection
        finally:
            connection.rollback()


def pages(engine: Engine, query: Query, *key: Any, size: int = PAGE) -> Iterator[list[Any]]:
    """The rows of a query by its key, a page at a time; the key's columns are its first ones.

    Each page is a statement of its own, so that no transaction is open in between. Raises LogError.
    """
    after: tuple[Any, ...] | None = None
    while True:
        page = query if after is None else query.where(tuple_(*key) > after)
        with reading(engine) as connection:
            rows = list(connection.execute(page.order_by(*key).limit(size)))
        if rows:
            yield rows
        if len(rows) < size:
            return
        after = tuple(rows[-1][: len(key)])


def end_of_page(connection: Connection, column: Any, after: int, until: int, size: int) -> int:
    """Up to where the next so many rows of a column go, past `after` and up to `until`."""
    page = select(column.label("it")).where(column > after, column <= until)
    end = select(func.max(page.order_by(column).limit(size).subquery().c.it))
    return connection.execute(end).scalar() or until


def stretches(
    engine: Engine, column: Any, until: int, size: int = PAGE
) -> Iterator[tuple[int, int]]:
    """The values of a column in stretches of so many rows: past which, and up to which.

    A page that is bounded before anything is joined to it costs the same wherever it is, whatever
    the database makes of a query with a limit.
    """
    after = 0
    while after < until:
        with reading(engine) as connection:
            end = end_of_page(connection, column, after, until, size)
        yield after, end
        after = end
