"""Databases that are used again: making one takes PostgreSQL as long as a whole test does.

A test gets one that nobody can tell from a new one: what the last test has left is removed, and
where that is more than rows and tables, the database is not used again.
"""

from __future__ import annotations

import uuid
from collections.abc import Iterator
from contextlib import contextmanager

import psycopg
from psycopg import sql
from sqlalchemy import URL

from eventstore.log.tables import VERSION_TABLE, metadata

_OURS = [table.name for table in metadata.sorted_tables]
_OBJECTS = """
    SELECT n.nspname, c.relname, c.relkind::text, c.relnatts, c.relhasrules, c.relhastriggers,
           c.reloptions::text, c.relacl::text, c.relowner
      FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace
     WHERE n.nspname NOT LIKE 'pg\\_%' AND n.nspname <> 'information_schema'
     ORDER BY 1, 2"""
_OTHERS = """
    SELECT (SELECT count(*) FROM pg_namespace),
           (SELECT max(nspacl::text) FROM pg_namespace WHERE nspname = 'public'),
           (SELECT count(*) FROM pg_proc),
           (SELECT count(*) FROM pg_type WHERE typtype IN ('e', 'd')),
           (SELECT count(*) FROM pg_db_role_setting s JOIN pg_database d ON d.oid = s.setdatabase
             WHERE d.datname = current_database())"""


class Databases:
    """Copies of a template on one server."""

    def __init__(self, server: URL, template: str, admin: psycopg.Connection) -> None:
        self._server = server
        self._template = template
        self._admin = admin
        self._free: list[str] = []
        with self._connect(template) as connection:
            self._state = _state(connection)
            self._emptying = _emptying(connection)

    @contextmanager
    def one(self) -> Iterator[str]:
        """The URL of a database that is as new, for the block."""
        name = self._free.pop() if self._free else self._made()
        try:
            yield self._url(name)
        finally:
            if self._cleaned(name):
                self._free.append(name)
            else:
                self._drop(name)

    def close(self) -> None:
        """Drop those that are free."""
        while self._free:
            self._drop(self._free.pop())

    def _made(self) -> str:
        name = f"eventstore_{uuid.uuid4().hex[:12]}"
        statement = "CREATE DATABASE {} TEMPLATE {} STRATEGY file_copy"
        self._admin.execute(
            sql.SQL(statement).format(sql.Identifier(name), sql.Identifier(self._template))
        )
        return name

    def _drop(self, name: str) -> None:
        self._admin.execute(sql.SQL("DROP DATABASE {} WITH (FORCE)").format(sql.Identifier(name)))

    def _cleaned(self, name: str) -> bool:
        """Remove what a test has left; False where it may have left more than can be removed."""
        self._admin.execute(
            "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = %s", [name]
        )
        try:
            with self._connect(name) as connection:
                connection.execute(self._emptying)
                if _state(connection) == self._state:
                    return True
                _drop_tables(connection, {row[:2] for row in self._state[0]})
                return _state(connection) == self._state
        except psycopg.Error:
            return False

    def _connect(self, name: str) -> psycopg.Connection:
        return psycopg.connect(self._url(name), autocommit=True)

    def _url(self, name: str) -> str:
        return self._server.set(database=name).render_as_string(hide_password=False)


def _state(connection: psycopg.Connection) -> tuple[list[tuple[object, ...]], object, object]:
    """Everything by which a database could be told from a new one, but for rows."""
    version = sql.SQL("SELECT version_num FROM {}").format(sql.Identifier(VERSION_TABLE))
    with connection.pipeline():
        found = [connection.execute(query) for query in (_OBJECTS, _OTHERS, version)]
    objects, others, revision = (cursor.fetchall() for cursor in found)
    return objects, others, revision


def _drop_tables(connection: psycopg.Connection, kept: set[tuple[object, ...]]) -> None:
    """Drop tables that are not ours, as the application's are, with what depends on them."""
    more = [
        sql.Identifier(str(row[0]), str(row[1]))
        for row in connection.execute(_OBJECTS).fetchall()
        if row[:2] not in kept and row[2] in ("r", "p")
    ]
    if more:
        connection.execute(sql.SQL("DROP TABLE {} CASCADE").format(sql.SQL(", ").join(more)))


def _emptying(connection: psycopg.Connection) -> sql.Composable:
    """What leaves no rows in our tables, and has their numbers start again."""
    statements = [sql.SQL("DELETE FROM {}").format(sql.Identifier(name)) for name in _OURS]
    query = "SELECT c.oid::regclass::text FROM pg_class c WHERE c.relkind = 'S'"
    for (sequence,) in connection.execute(query).fetchall():
        statements.append(sql.SQL("ALTER SEQUENCE {} RESTART").format(sql.SQL(sequence)))
    return sql.SQL("; ").join(statements)
