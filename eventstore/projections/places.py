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
from collections.abc import Generator, Iterable, Sequence
from typing import Any, Final

from sqlalchemy import (
    Connection,
    MetaData,
    NestedTransaction,
    Table,
    column,
    func,
    insert,
    inspect,
    literal,
    select,
    table,
    text,
)
from sqlalchemy.schema import CheckFirst, CreateIndex, CreateTable, DropTable
from sqlalchemy.types import SchemaType

from eventstore.errors import TableTakenError
from eventstore.log.base import Log
from eventstore.log.transactions import lock_name, own_errors
from eventstore.projections.dependents import dependents, drop_all, restore, rights, run
from eventstore.projections.differences import Difference, differences

#: PostgreSQL's schema for shadows, which a migration has made.
SHADOW: Final = "eventstore_shadow"
#: How long, in milliseconds, a swap waits for a lock before it steps back and lets others pass:
#: less than a server waits until it looks for deadlocks, so that no reader is ended for one.
_PATIENCE: Final = 400
#: SQLite: the tables as they are declared are those of the file, not temporary ones.
_MAIN: Final = {"schema_translate_map": {None: "main"}}


def make(connection: Connection, tables: Sequence[Table], *, temporary: bool = False) -> None:
    """Make tables with their indexes, where the connection makes tables."""
    copies = MetaData()
    for each in tables:
        copy = each.to_metadata(copies)
        if temporary:
            copy._prefixes = ["TEMPORARY"]
            if connection.dialect.name == "postgresql":
                copy.dialect_kwargs.update({"postgresql_on_commit": "DROP"})
    # Whether a table is there is not asked: the living one would be seen.
    copies.create_all(connection, checkfirst=CheckFirst.TYPES)


def make_living(connection: Connection, follower: str, tables: Sequence[Table]) -> None:
    """Make a projection's own tables. Raises TableTakenError."""
    refuse_taken(connection, follower, [each.name for each in tables])
    make(connection, tables)


def refuse_taken(connection: Connection, follower: str, names: Iterable[str]) -> None:
    """Raise TableTakenError if a table is there that the projection has not made."""
    inspector = inspect(connection)
    for name in names:
        if inspector.has_table(name):
            raise TableTakenError(follower, name)


def drop(connection: Connection, names: Sequence[str], schema: str | None = None) -> None:
    """Drop tables, in the reverse of the order in which they were made."""
    for name in reversed(names):
        connection.execute(DropTable(Table(name, MetaData(), schema=schema), if_exists=True))


class Scratch(Connection):
    """A connection that holds on to its transaction, which is rolled back after all.

    A commit or a rollback in between would take scratch tables away, and their names would mean
    the living ones again. So, from `hold` to `end`, both concern only what is written meanwhile.
    """

    _since: NestedTransaction | None = None

    def hold(self) -> None:
        """From now on a rollback goes back to here."""
        self._since = self.begin_nested()

    def commit(self) -> None:
        if self._since is None:
            super().commit()
        else:
            self._since.commit()
            self.hold()

    def rollback(self) -> None:
        if self._since is None:
            super().rollback()
        else:
            self._since.rollback()
            self.hold()

    def end(self) -> None:
        """Roll everything back."""
        self._since = None
        self.rollback()


@contextlib.contextmanager
def scratch(log: Log, tables: Sequence[Table]) -> Generator[Scratch]:
    """A connection on which the names of the tables mean empty scratch tables, for one block."""
    with own_errors(log.engine):
        connection = Scratch(log.engine)
    with connection:
        with own_errors(connection):
            if connection.dialect.name == "postgresql":
                connection.execution_options(isolation_level="READ COMMITTED")
            _begin(connection)
            make(connection, tables, temporary=True)
        try:
            yield connection
        finally:
            connection.end()
            if connection.dialect.name == "sqlite":  # should somebody have sent a COMMIT
                drop(connection, [each.name for each in tables], "temp")
                connection.commit()


def _begin(connection: Connection) -> None:
    """Begin a transaction, also where the driver begins none before it makes tables."""
    connection.begin()
    raw: Any = connection.connection.dbapi_connection
    if connection.dialect.name == "sqlite" and not raw.in_transaction:
        connection.exec_driver_sql("BEGIN")


class Shadow(ABC):
    """A projection's tables as they are built anew beside the living ones.

    `living` are the names of those: an older version may have had others.
    """

    #: Whether what is built outlives the process, so that a rebuild can be resumed.
    durable: bool
    #: Whether foreign keys rest in `finishing`, so that no handler may run there.
    lenient = False

    def __init__(self, log: Log, tables: Sequence[Table]) -> None:
        self._log = log
        self._tables = tables
        self._names = [each.name for each in tables]

    def check(self, connection: Connection, follower: str, living: Sequence[str]) -> None:
        """Raise for what would keep them from being swapped: TableTakenError, LogError."""
        refuse_taken(connection, follower, [name for name in self._names if name not in living])

    @abstractmethod
    def make(self, connection: Connection, leftover: Sequence[str]) -> None:
        """Make them, empty; drop what an interrupted rebuild has left."""

    @abstractmethod
    def transaction(self) -> contextlib.AbstractContextManager[Connection]:
        """A transaction in which the tables' names mean the shadows."""

    @abstractmethod
    def analyze(self) -> None:
        """Let the database know what is in them, so that readers' queries are planned well."""

    @abstractmethod
    def finishing(
        self, lock: str, living: Sequence[str]
    ) -> contextlib.AbstractContextManager[Connection]:
        """The same for the last steps: nobody else writes to the living tables meanwhile.

        Raises LogLockedError where others are in the way.
        """

    @abstractmethod
    def differences(
        self, connection: Connection, living: Sequence[str], limit: int
    ) -> list[Difference]:
        """Rows in which the shadows differ from the living tables, at most `limit` a table."""

    @abstractmethod
    def swap(self, connection: Connection, living: Sequence[str]) -> None:
        """Put them in the place of the living tables."""

    @abstractmethod
    def drop(self, connection: Connection) -> None:
        """Drop them, in a transaction of the log's, if they would outlast `close`."""

    @abstractmethod
    def close(self) -> None:
        """Give back what building them took."""


class PostgresShadow(Shadow):
    """Shadows in a schema of their own.

    A reader whose transaction is REPEATABLE READ and older than the swap finds new tables, and in
    them only what its snapshot knows: PostgreSQL keeps no versions of a table's name.
    """

    durable = True

    def check(self, connection: Connection, follower: str, living: Sequence[str]) -> None:
        super().check(connection, follower, living)
        dependents(connection, list(_ids(connection, living).values()))

    def make(self, connection: Connection, leftover: Sequence[str]) -> None:
        drop(connection, leftover, SHADOW)
        self.drop(connection)
        for each in self._tables:
            for one in each.columns:
                if isinstance(one.type, SchemaType):  # it is not swapped, so not made beside
                    one.type.create(connection, checkfirst=True)
        _search_shadows_first(connection)
        make(connection, self._tables)

    @contextlib.contextmanager
    def transaction(self) -> Generator[Connection]:
        with self._log.transaction() as connection:
            _search_shadows_first(connection)
            yield connection

    def analyze(self) -> None:
        with self._log.transaction() as connection:
            for name in self._names:
                run(connection, f"ANALYZE {SHADOW}.{_quoted(name)}")

    @contextlib.contextmanager
    def finishing(self, lock: str, living: Sequence[str]) -> Generator[Connection]:
        with self._log.transaction() as connection:
            connection.execute(select(func.set_config("lock_timeout", f"{_PATIENCE}ms", True)))
            # The lock by name before tables, as appends in step take it; tables before checkpoints,
            # as workers do.
            lock_name(connection, lock)
            for name in sorted(living):
                run(connection, f"LOCK TABLE {_quoted(name)} IN SHARE ROW EXCLUSIVE MODE")
            _search_shadows_first(connection)
            yield connection

    def differences(
        self, connection: Connection, living: Sequence[str], limit: int
    ) -> list[Difference]:
        schema = _schema_of(connection, living)
        return differences(connection, self._tables, SHADOW, schema, limit)

    def swap(self, connection: Connection, living: Sequence[str]) -> None:
        schema = _schema_of(connection, living)
        old = _ids(connection, living, schema)
        found = dependents(connection, list(old.values()))
        qualified = [f"{_quoted(schema)}.{_quoted(name)}" for name in sorted(old)]
        again = [
            statement
            for each in self._tables
            if each.name in old
            for statement in rights(connection, old[each.name], [one.name for one in each.columns])
        ]
        for statement in found.removing:  # in the order in which readers lock: views, then tables
            run(connection, statement)
        if old:
            drop_all(connection, qualified)
        for name in self._names:
            run(connection, f"ALTER TABLE {SHADOW}.{_quoted(name)} SET SCHEMA {_quoted(schema)}")
        restore(connection, (*again, *found.restoring))

    def drop(self, connection: Connection) -> None:
        drop(connection, self._names, SHADOW)

    def close(self) -> None:
        """Nothing is held."""


def _search_shadows_first(connection: Connection) -> None:
    path = literal(f"{SHADOW}, ").concat(func.current_setting("search_path"))
    connection.execute(select(func.set_config("search_path", path, True)))


def _schema_of(connection: Connection, living: Sequence[str]) -> str:
    """The schema of the living tables: the first of the path beside the shadows', if none is."""
    schemas: Sequence[str] = connection.execute(select(func.current_schemas(False))).scalar_one()
    others = [schema for schema in schemas if schema != SHADOW]
    return next((s for s in others if _ids(connection, living, s)), others[0])


def _ids(
    connection: Connection, living: Sequence[str], schema: str | None = None
) -> dict[str, int]:
    """The ids of tables by name: in a schema, or of those that are found without one."""
    query = text("""
        SELECT c.relname, c.oid FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace
         WHERE c.relname = ANY(:names) AND c.relkind IN ('r', 'p')
           AND CASE WHEN CAST(:schema AS text) IS NULL THEN pg_table_is_visible(c.oid)
                    ELSE n.nspname = :schema END""")
    rows = connection.execute(query, {"names": list(living), "schema": schema})
    return {row.relname: row.oid for row in rows}


def _quoted(name: str) -> str:
    return '"' + name.replace('"', '""') + '"'


class SqliteShadow(Shadow):
    """Shadows as temporary tables of one connection, which is kept until the end.

    With them go triggers and indexes that others have put on the living tables; what refers to
    these finds the new ones by name.
    """

    durable = False

    def __init__(self, log: Log, tables: Sequence[Table]) -> None:
        super().__init__(log, tables)
        with own_errors(log.engine):
            self._connection = log.engine.connect()
        try:
            # Before there is a transaction of the log's, which a memory database would wait for.
            with self.transaction() as own:
                make(own, tables, temporary=True)
        except BaseException:
            self.close()
            raise

    def make(self, connection: Connection, leftover: Sequence[str]) -> None:
        """They were made with the connection, and nobody else can have left any."""

    @contextlib.contextmanager
    def transaction(self) -> Generator[Connection]:
        connection = self._connection
        with own_errors(connection):
            _begin(connection)
            try:
                yield connection
            except BaseException:
                connection.rollback()
                raise
            connection.commit()

    def analyze(self) -> None:
        """It plans without."""

    @contextlib.contextmanager
    def finishing(self, lock: str, living: Sequence[str]) -> Generator[Connection]:
        # Tables are dropped and made again. Foreign keys would see their rows go.
        raw: Any = self._connection.connection.dbapi_connection
        (enforced,) = raw.execute("PRAGMA foreign_keys").fetchone()
        self.lenient = bool(enforced)
        raw.execute("PRAGMA foreign_keys = OFF")
        try:
            with self._log.transaction(self._connection) as connection:
                yield connection
        finally:
            raw.execute(f"PRAGMA foreign_keys = {enforced}")

    def differences(
        self, connection: Connection, living: Sequence[str], limit: int
    ) -> list[Difference]:
        return differences(connection, self._tables, "temp", "main", limit)

    def swap(self, connection: Connection, living: Sequence[str]) -> None:
        drop(connection, living, "main")
        copies = MetaData()  # to the letter what `make` makes
        for each in [each.to_metadata(copies) for each in self._tables]:
            connection.execute(CreateTable(each), execution_options=_MAIN)
            columns = [c for c in each.columns if c.computed is None]
            rows = select(table(each.name, *(column(c.name) for c in columns), schema="temp"))
            into = insert(each).from_select(columns, rows, include_defaults=False)
            connection.execute(into, execution_options=_MAIN)
            for index in sorted(each.indexes, key=lambda index: str(index.name)):
                connection.execute(CreateIndex(index), execution_options=_MAIN)
        self._carry_counters(connection)
        drop(connection, self._names, "temp")

    def _carry_counters(self, connection: Connection) -> None:
        """Let AUTOINCREMENT go on from where it was: it gives no number twice."""
        for each in self._tables:
            if each.dialect_options["sqlite"]["autoincrement"]:
                for statement in (
                    "DELETE FROM main.sqlite_sequence WHERE name = :name",
                    "INSERT INTO main.sqlite_sequence "
                    "SELECT name, seq FROM temp.sqlite_sequence WHERE name = :name",
                ):
                    connection.execute(text(statement), {"name": each.name})

    def drop(self, connection: Connection) -> None:
        """They go with the connection."""

    def close(self) -> None:
        try:
            self._connection.rollback()
            with self.transaction() as own:
                drop(own, self._names, "temp")
        except Exception:
            self._connection.invalidate()
        self._connection.close()


def shadow(log: Log, tables: Sequence[Table]) -> Shadow:
    """The shadows of a projection's tables, as the log's database can have them."""
    kind = PostgresShadow if log.engine.dialect.name == "postgresql" else SqliteShadow
    return kind(log, tables)
