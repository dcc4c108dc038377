"""Joining a transaction that another library has begun on its own psycopg connection."""

from __future__ import annotations

import contextlib
import copy
from collections.abc import Callable, Generator
from typing import TYPE_CHECKING, Any, Final
from weakref import WeakKeyDictionary

from sqlalchemy import Connection, Dialect, Engine, StaticPool
from sqlalchemy.util import LRUCache

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
    guest: Any = _guest(log.engine, raw)
    if on_commit is not None and isinstance(log, SqlLog):
        on_commit(log._hints.committed)
    dialect, compiled = _known.get(log.engine) or _know(log.engine)
    engine = Engine(StaticPool(lambda: guest, dialect=dialect), dialect, log.engine.url)
    engine.update_execution_options(compiled_cache=compiled)
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


#: For each store's engine the dialect of its guests, and statements that were compiled for them.
_known: Final[WeakKeyDictionary[Engine, tuple[Dialect, LRUCache[Any, Any]]]] = WeakKeyDictionary()


def _know(engine: Engine) -> tuple[Dialect, LRUCache[Any, Any]]:
    dialect = copy.copy(engine.dialect)
    vars(dialect).update(get_driver_connection=_driver_connection)
    return _known.setdefault(engine, (dialect, LRUCache(500)))


def _driver_connection(guest: Guest) -> Any:
    return guest.raw
