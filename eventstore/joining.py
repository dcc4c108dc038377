"""Joining a transaction that another library has begun on its own psycopg connection."""

from __future__ import annotations

import contextlib
import copy
from collections.abc import Callable, Generator
from typing import TYPE_CHECKING, Any

from sqlalchemy import Connection, Engine, StaticPool

from eventstore.errors import InvalidArgumentError
from eventstore.log.sql import SqlLog

if TYPE_CHECKING:
    from eventstore.log.guest import Guest
    from eventstore.stream_store import StreamStore


@contextlib.contextmanager
def joining(
    store: StreamStore,
    raw: Any,
    *,
    on_commit: Callable[[Callable[[], None]], object] | None = None,
) -> Generator[Connection]:
    """Somebody else's open psycopg 3 connection, for `connection=`; theirs is the transaction.

        with transaction.atomic():
            with joining(store, connection.connection, on_commit=transaction.on_commit) as db:
                store.save(account, connection=db)

    Nothing here commits it, rolls it back or closes it: the events are committed or not with
    whatever else is done on that connection, and its savepoints hold for them too. `commit` and
    `rollback` of what is given raise InvalidArgumentError. Do not use it after the block.

    `on_commit` takes a function to be called after the commit; it wakes subscribers, which else
    see the events at their next look. Raises InvalidArgumentError for a connection that is not of
    psycopg 3, or in autocommit, and for a store that is not in PostgreSQL.
    """
    log = store.log
    guest = _guest(log.engine, raw)
    if on_commit is not None and isinstance(log, SqlLog):
        on_commit(log._hints.committed)
    dialect = copy.copy(log.engine.dialect)
    vars(dialect).update(get_driver_connection=_driver_connection)
    engine = Engine(StaticPool(lambda: guest, dialect=dialect), dialect, log.engine.url)
    with engine.connect() as connection:
        connection.begin()
        try:
            yield connection
        finally:
            guest.leave()


def _guest(engine: Engine, raw: Any) -> Guest:
    if engine.dialect.name != "postgresql":
        raise InvalidArgumentError(
            "store", engine.dialect.name, "only one in PostgreSQL can join a psycopg connection"
        )
    from eventstore.log.guest import Guest

    return Guest(engine, raw)


def _driver_connection(guest: Guest) -> Any:
    return guest.raw
