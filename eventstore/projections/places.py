"""Where a projection's tables are made: the living ones, shadows beside them, scratch tables.

Handlers never know: everywhere the tables have the same names, and what a name means depends on
the connection. On PostgreSQL shadows are in a schema of their own that comes first in the
search_path of their transactions, so that a swap moves each table to the schema of the living one,
where its indexes, constraints and sequences keep their names. SQLite has no such thing, but
temporary tables hide others of the same name: there shadows are temporary, which also keeps the
log's one writer free until the swap copies them. Scratch tables are temporary on both.
"""

from __future__ import annotations

import contextlib
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from typing import Any, Final

from sqlalchemy import Connection, MetaData, Table, func, inspect, literal, select, text
from sqlalchemy.schema import CheckFirst, CreateIndex, CreateTable, DropTable

from eventstore.errors import TableTakenError
from eventstore.log.base import Log
from eventstore.log.transactions import lock_name, own_errors
from eventstore.projections.differences import Difference, differences

#: PostgreSQL's schema for shadows, which a migration has made.
SHADOW: Final = "eventstore_shadow"
#: How long, in milliseconds, a swap waits for readers before it steps back and lets others pass.
_PATIENCE: Final = 1000


def make(connection: Connection, tables: Sequence[Table], *, temporary: bool = False) -> None:
    """Make tables with their indexes, where the connection makes tables."""
    copies = MetaData()
    for table in tables:
        copy = table.to_metadata(copies)
        if temporary:
            copy._prefixes = ["TEMPORARY"]
            if connection.dialect.name == "postgresql":
                copy.dialect_kwargs.update({"postgresql_on_commit": "DROP"})
    # Whether a table is there is not asked: the living one would be seen.
    copies.create_all(connection, checkfirst=CheckFirst.TYPES)


def make_living(connection: Connection, follower: str, tables: Sequence[Table]) -> None:
    """Make a projection's own tables. Raises TableTakenError."""
    inspector = inspect(connection)
    for table in tables:
        if inspector.has_table(table.name):
            raise TableTakenError(follower, table.name)
    make(connection, tables)


def drop(connection: Connection, names: Sequence[str], schema: str | None = None) -> None:
    """Drop tables, in the reverse of the order in which they were made."""
    for name in reversed(names):
        connection.execute(DropTable(Table(name, MetaData(), schema=schema), if_exists=True))


@contextlib.contextmanager
def scratch(log: Log, tables: Sequence[Table]) -> Iterator[Connection]:
    """A connection on which the names of the tables mean empty scratch tables, for one block."""
    with own_errors(log.engine), log.engine.connect() as connection:
        if connection.dialect.name == "postgresql":
            connection.execution_options(isolation_level="READ COMMITTED")
        make(connection, tables, temporary=True)
        try:
            yield connection
        finally:
            connection.rollback()
            if connection.dialect.name == "sqlite":  # which keeps them, should the block commit
                drop(connection, [table.name for table in tables], "temp")
                connection.commit()


class Shadow(ABC):
    """A projection's tables as they are built anew beside the living ones."""

    def __init__(self, log: Log, tables: Sequence[Table]) -> None:
        self._log = log
        self._tables = tables

    #: Whether what is built outlives the process, so that a rebuild can be resumed.
    durable: bool

    @abstractmethod
    def make(self, connection: Connection, leftover: Sequence[str]) -> None:
        """Make them, empty; drop what an interrupted rebuild has left."""

    @abstractmethod
    def transaction(self) -> contextlib.AbstractContextManager[Connection]:
        """A transaction in which the tables' names mean the shadows."""

    @abstractmethod
    def finishing(
        self, lock: str, living: Sequence[str]
    ) -> contextlib.AbstractContextManager[Connection]:
        """The same for the last steps: nobody else writes to the living tables meanwhile."""

    @abstractmethod
    def differences(self, connection: Connection, limit: int) -> list[Difference]:
        """Rows in which the shadows differ from the living tables, at most `limit` a table."""

    @abstractmethod
    def swap(self, connection: Connection, living: Sequence[str]) -> None:
        """Put them in the place of the living tables."""

    @abstractmethod
    def drop(self) -> None:
        """Drop them, if they are there."""

    @abstractmethod
    def close(self) -> None:
        """Give back what building them took."""


class PostgresShadow(Shadow):
    """Shadows in a schema of their own."""

    durable = True

    def make(self, connection: Connection, leftover: Sequence[str]) -> None:
        drop(connection, leftover, SHADOW)
        drop(connection, [table.name for table in self._tables], SHADOW)
        _search_shadows_first(connection)
        make(connection, self._tables)

    @contextlib.contextmanager
    def transaction(self) -> Iterator[Connection]:
        with self._log.transaction() as connection:
            _search_shadows_first(connection)
            yield connection

    @contextlib.contextmanager
    def finishing(self, lock: str, living: Sequence[str]) -> Iterator[Connection]:
        with self._log.transaction() as connection:
            _set_locally(connection, "lock_timeout", f"{_PATIENCE}ms")
            # The lock by name before tables, as appends in step take it; tables before checkpoints,
            # as workers do.
            lock_name(connection, lock)
            for name in sorted(living):
                connection.execute(
                    text(f"LOCK TABLE {_quoted(connection, name)} IN SHARE ROW EXCLUSIVE MODE")
                )
            _search_shadows_first(connection)
            yield connection

    def differences(self, connection: Connection, limit: int) -> list[Difference]:
        schema = _schema_of_living(connection, self._tables[0].name)
        return differences(connection, self._tables, SHADOW, schema, limit)

    def swap(self, connection: Connection, living: Sequence[str]) -> None:
        schema = _schema_of_living(connection, living[0] if living else self._tables[0].name)
        place = f"{_quoted(connection, schema)}."
        if living:
            names = ", ".join(place + _quoted(connection, name) for name in sorted(living))
            connection.execute(text(f"LOCK TABLE {names} IN ACCESS EXCLUSIVE MODE"))
        grants = {name: _grants(connection, schema, name) for name in living}
        drop(connection, living, schema)
        for table in self._tables:
            name = _quoted(connection, table.name)
            connection.execute(text(f"ALTER TABLE {SHADOW}.{name} SET SCHEMA {place[:-1]}"))
            for grant in grants.get(table.name, ()):
                connection.execute(text(grant.format(table=place + name)))

    def drop(self) -> None:
        with self._log.transaction() as connection:
            drop(connection, [table.name for table in self._tables], SHADOW)

    def close(self) -> None:
        """Nothing is held."""


def _search_shadows_first(connection: Connection) -> None:
    path = literal(f"{SHADOW}, ").concat(func.current_setting("search_path"))
    connection.execute(select(func.set_config("search_path", path, True)))


def _set_locally(connection: Connection, setting: str, value: str) -> None:
    connection.execute(select(func.set_config(setting, value, True)))


def _schema_of_living(connection: Connection, name: str) -> str:
    """The schema in which the living tables are: the first of the path beside the shadows'."""
    schemas: Sequence[str] = connection.execute(select(func.current_schemas(False))).scalar_one()
    inspector = inspect(connection)
    others = [schema for schema in schemas if schema != SHADOW]
    return next((s for s in others if inspector.has_table(name, schema=s)), others[0])


def _grants(connection: Connection, schema: str, name: str) -> list[str]:
    """What gives the privileges on a table again, to whoever had them."""
    query = text("""
        SELECT a.privilege_type, pg_get_userbyid(a.grantee), a.grantee = 0, a.is_grantable
          FROM pg_class c, aclexplode(c.relacl) a
         WHERE c.relname = :name AND c.relnamespace = to_regnamespace(:schema)
           AND a.grantee <> c.relowner""")
    values = {"name": name, "schema": _quoted(connection, schema)}
    return [
        f"GRANT {privilege} ON {{table}} TO "
        f"{'PUBLIC' if public else _quoted(connection, role).replace('{', '{{').replace('}', '}}')}"
        f"{' WITH GRANT OPTION' if grantable else ''}"
        for privilege, role, public, grantable in connection.execute(query, values)
    ]


def _quoted(connection: Connection, name: str) -> str:
    return connection.dialect.identifier_preparer.quote(name)


class SqliteShadow(Shadow):
    """Shadows as temporary tables of one connection, which is kept until the end."""

    durable = False

    def __init__(self, log: Log, tables: Sequence[Table]) -> None:
        super().__init__(log, tables)
        self._connection = log.engine.connect()

    def make(self, connection: Connection, leftover: Sequence[str]) -> None:
        with self.transaction() as own:
            make(own, self._tables, temporary=True)

    @contextlib.contextmanager
    def transaction(self) -> Iterator[Connection]:
        with own_errors(self._connection), self._connection.begin():
            yield self._connection

    @contextlib.contextmanager
    def finishing(self, lock: str, living: Sequence[str]) -> Iterator[Connection]:
        # Tables are dropped and made again: what refers to them finds them by name.
        raw: Any = self._connection.connection.dbapi_connection
        (enforced,) = raw.execute("PRAGMA foreign_keys").fetchone()
        raw.execute("PRAGMA foreign_keys = OFF")
        try:
            with self._log.transaction(self._connection) as connection:
                yield connection
        finally:
            raw.execute(f"PRAGMA foreign_keys = {enforced}")

    def differences(self, connection: Connection, limit: int) -> list[Difference]:
        return differences(connection, self._tables, "temp", "main", limit)

    def swap(self, connection: Connection, living: Sequence[str]) -> None:
        drop(connection, living, "main")
        for table in self._tables:
            copy = table.to_metadata(MetaData(), schema="main")
            connection.execute(CreateTable(copy))
            names = [c.name for c in table.columns if c.computed is None]
            shadow = Table(
                table.name, MetaData(), *(c._copy() for c in table.columns), schema="temp"
            )
            rows = select(*(shadow.c[name] for name in names))
            connection.execute(copy.insert().from_select(names, rows, include_defaults=False))
            for index in sorted(copy.indexes, key=lambda index: str(index.name)):
                connection.execute(CreateIndex(index))
        drop(connection, [table.name for table in self._tables], "temp")

    def drop(self) -> None:
        self._connection.rollback()
        with self.transaction() as own:
            drop(own, [table.name for table in self._tables], "temp")

    def close(self) -> None:
        # With its temporary tables, should any be left.
        self._connection.invalidate()
        self._connection.close()


def shadow(log: Log, tables: Sequence[Table]) -> Shadow:
    """The shadows of a projection's tables, as the log's database can have them."""
    kind = PostgresShadow if log.engine.dialect.name == "postgresql" else SqliteShadow
    return kind(log, tables)
