"""What is in a database beside the log, and who works with it."""

from __future__ import annotations

import re
import time
from typing import Any, Final

from sqlalchemy import Connection, Table, make_url, select, text

from eventstore import EventStore
from eventstore.log.base import Log
from eventstore.projections.places import SHADOW

#: How the server knows the sessions of those that are killed.
MORTAL: Final = "eventstore-mortal"
#: Seconds that a server may take to notice that a client is dead.
PATIENCE: Final = 60.0


def rows(connection: Connection, table: Table) -> list[tuple[Any, ...]]:
    return sorted(tuple(row) for row in connection.execute(select(table)))


_SQLITE = """
    SELECT type, name, tbl_name, sql FROM sqlite_master
     WHERE tbl_name NOT LIKE 'eventstore%'"""
_POSTGRES = """
    SELECT c.relname, c.relkind::text, pg_get_indexdef(i.indexrelid), '', i.indisvalid
      FROM pg_class c LEFT JOIN pg_index i ON i.indexrelid = c.oid
     WHERE c.relnamespace = 'public'::regnamespace AND c.relname NOT LIKE 'eventstore%'
    UNION ALL
    SELECT conrelid::regclass::text, conname, contype::text, pg_get_constraintdef(oid),
           convalidated
      FROM pg_constraint
     WHERE connamespace = 'public'::regnamespace AND conname NOT LIKE 'eventstore%'
    UNION ALL
    SELECT table_name, column_name, data_type, ordinal_position::text, is_nullable = 'YES'
      FROM information_schema.columns
     WHERE table_schema = 'public' AND table_name NOT LIKE 'eventstore%'"""


def described(store: EventStore) -> list[str]:
    """Every table that is not the library's own, with its columns, indexes and constraints."""
    query = _SQLITE if is_sqlite(store.log) else _POSTGRES
    with store.connect() as connection:
        found = connection.execute(text(query)).all()
    # A copy of a table may have its constraints in another order.
    return sorted(str([sorted(re.split(r",? *\n", str(part))) for part in row]) for row in found)


def shadows(connection: Connection) -> list[str]:
    """What is left of rebuilds."""
    if connection.dialect.name == "sqlite":
        return []  # described() has seen that nothing is there
    query = f"SELECT relname FROM pg_class WHERE relnamespace = '{SHADOW}'::regnamespace"
    return list(connection.exec_driver_sql(query).scalars())


def buried(store: EventStore) -> None:
    """Wait until the server has noticed every death, so that nothing is written any more."""
    query = f"""
        SELECT count(*) FROM pg_stat_activity
         WHERE datname = current_database() AND application_name = '{MORTAL}'"""
    deadline = time.monotonic() + PATIENCE
    with store.connect() as connection:
        connection = connection.execution_options(isolation_level="AUTOCOMMIT")
        while connection.exec_driver_sql(query).scalar_one():
            assert time.monotonic() < deadline, "the server holds on to a session of the dead"
            time.sleep(0.001)


def is_sqlite(log: Log) -> bool:
    return log.engine.dialect.name == "sqlite"


def mortal(url: str) -> str:
    """The same database, for sessions that can be told from those of the test itself."""
    if url.startswith("sqlite"):
        return url
    named = make_url(url).update_query_dict({"application_name": MORTAL})
    return named.render_as_string(hide_password=False)
