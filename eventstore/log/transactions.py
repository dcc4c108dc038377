"""Transactions on SQLAlchemy's connections: for what is not hot, and for a follower's tables."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any, Literal

from sqlalchemy import Connection, Engine
from sqlalchemy.exc import DBAPIError
from sqlalchemy.exc import TimeoutError as PoolTimeoutError

from eventstore.errors import EventStoreError, LogError, LogUnavailableError

Outcome = Literal["not written", "unknown"]


@contextlib.contextmanager
def transaction(engine: Engine) -> Iterator[Connection]:
    """A transaction that writes; the end of the block commits, an error in it rolls back.

    Raises LogError for what the driver raises; `outcome` is "unknown" where the commit failed.
    """
    with own_errors(engine), engine.connect() as connection:
        if engine.dialect.name == "postgresql":
            # An engine in autocommit mode would commit each statement.
            connection.execution_options(isolation_level="READ COMMITTED")
        begin_writing(connection)
        yield connection
        with own_errors(connection, "unknown"):
            connection.commit()


def begin_writing(connection: Connection) -> None:
    """Begin a transaction; on SQLite one that has the lock for writing from the start.

    What the driver has begun by itself depends on its mode: a transaction without that lock, or
    none at all.
    """
    connection.begin()
    if connection.dialect.name != "sqlite":
        return
    raw: Any = connection.connection.dbapi_connection
    if raw.in_transaction:
        connection.exec_driver_sql("ROLLBACK")
    connection.exec_driver_sql("BEGIN IMMEDIATE")


@contextlib.contextmanager
def own_errors(bind: Engine | Connection, outcome: Outcome = "not written") -> Iterator[None]:
    """Turn the driver's errors into those of this library, with the driver's as the cause."""
    try:
        yield
    except PoolTimeoutError as error:
        raise LogUnavailableError("no connection came free in the pool", "not written") from error
    except DBAPIError as error:
        raise translated(error, bind.dialect.name, outcome) from error.orig


def translated(
    error: DBAPIError, dialect: str, outcome: Outcome = "not written"
) -> EventStoreError:
    """The library's error for one of the driver's that SQLAlchemy has wrapped."""
    cause: Any = error.orig
    if dialect == "sqlite":
        from eventstore.log import sqlite

        return sqlite.translated(cause, outcome) or LogError(str(cause))
    from eventstore.log import postgres

    # Without the server's own code for it, it is the connection that failed.
    lost = error.connection_invalidated or cause.sqlstate is None
    return postgres.translated(cause, lost, outcome)
