"""Transactions on SQLAlchemy's connections: for what is not hot, and for a follower's tables."""

from __future__ import annotations

import contextlib
import hashlib
from collections.abc import Generator
from typing import Any, Literal

from sqlalchemy import BigInteger, Connection, Engine, func, literal, select
from sqlalchemy.exc import DBAPIError
from sqlalchemy.exc import TimeoutError as PoolTimeoutError

from eventstore.errors import EventStoreError, LogError, LogUnavailableError

Outcome = Literal["not written", "unknown"]


@contextlib.contextmanager
def transaction(target: Engine | Connection) -> Generator[Connection]:
    """A transaction that writes; the end of the block commits, an error in it rolls back.

    Raises LogError for what the driver raises; `outcome` is "unknown" where the commit failed.
    """
    with contextlib.ExitStack() as stack:
        stack.enter_context(own_errors(target))
        connection = stack.enter_context(target.connect()) if isinstance(target, Engine) else target
        if target.dialect.name == "postgresql":
            # An engine in autocommit mode would commit each statement.
            connection.execution_options(isolation_level="READ COMMITTED")
        begin_writing(connection)
        try:
            yield connection
        except BaseException:
            connection.rollback()
            raise
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
def own_errors(bind: Engine | Connection, outcome: Outcome = "not written") -> Generator[None]:
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


@contextlib.contextmanager
def reading(engine: Engine) -> Generator[Connection]:
    """A connection on which each statement stands for itself. Raises LogError."""
    with own_errors(engine), engine.connect() as connection:
        yield connection.execution_options(isolation_level="AUTOCOMMIT")


def lock_name(connection: Connection, name: str, *, shared: bool = False) -> None:
    """Hold a name until the transaction ends: alone, or with others that share it.

    On SQLite a transaction that writes is alone anyhow.
    """
    if connection.dialect.name == "postgresql":
        key = int.from_bytes(hashlib.blake2b(name.encode(), digest_size=8).digest(), signed=True)
        lock = func.pg_advisory_xact_lock_shared if shared else func.pg_advisory_xact_lock
        connection.execute(select(lock(literal(key, BigInteger))))
