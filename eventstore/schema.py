"""The schema of the database: which revision it has, whether that will do, and how it gets there.

`log/tables.py` says what the tables are; the migrations, which are Alembic's, say how they came to
be so. They keep their revision in a table of their own, `eventstore_alembic`, so that the
application's Alembic can look after its tables in the same database. Tell that one to leave ours
alone:

    context.configure(..., include_object=eventstore.schema.include_object)

Alembic is imported only when there is something to migrate: that takes longer than all the rest.
"""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Generator
from pathlib import Path
from typing import Any, Final

from sqlalchemy import (
    URL,
    Column,
    Connection,
    Engine,
    MetaData,
    PrimaryKeyConstraint,
    String,
    Table,
    func,
    inspect,
    select,
)

from eventstore.errors import (
    SchemaMissingError,
    SchemaOutdatedError,
    SchemaTooNewError,
)
from eventstore.log import opening, tables
from eventstore.log.transactions import begin_writing, own_errors, transaction

#: The revisions that this version of the library can bring up to date. Any other one is newer.
_OLDER: Final = ("0001", "0002", "0003", "0004")

#: Whoever migrates a PostgreSQL database holds this advisory lock: "evntstor" in ASCII.
_ADVISORY_LOCK: Final = 0x65766E7473746F72

_version_table: Final = Table(
    tables.VERSION_TABLE,
    MetaData(),
    Column("version_num", String(32), nullable=False),
    PrimaryKeyConstraint("version_num", name=f"{tables.VERSION_TABLE}_pkc"),
)

# Alembic keeps the migration that runs in a global variable.
_one_migration: Final = threading.Lock()


def prepare(engine: Engine, migrate: bool | None = None) -> None:
    """See to it that the schema is the one of this version of the library.

    SQLite is migrated when that is needed, unless `migrate` is False; PostgreSQL is only checked,
    unless `migrate` is True. A read-only database that is up to date is fine. Raises
    SchemaMissingError, SchemaOutdatedError, SchemaTooNewError, LogError.
    """
    embedded = engine.dialect.name == "sqlite"
    if migrate is None:
        migrate = embedded
    try:
        check(engine)
    except SchemaMissingError:
        if not migrate:
            raise
        if embedded:
            _create(engine)
        else:
            _migrate(engine)
    except SchemaOutdatedError:
        if not migrate:
            raise
        _migrate(engine)
    else:
        return
    check(engine)


def check(engine: Engine) -> None:
    """Raise an error unless the schema is the one of this version of the library.

    Raises SchemaMissingError, SchemaOutdatedError, SchemaTooNewError, LogError.
    """
    with own_errors(engine), engine.connect() as connection:
        found = revision(connection)
    required = tables.REVISION
    if found is None:
        raise SchemaMissingError(
            found,
            required,
            "this database has no tables of eventstore: create them with: eventstore migrate URL",
        )
    _refuse_newer(found)
    if found != required:
        raise SchemaOutdatedError(
            found,
            required,
            f"this database's schema is at revision {found} and this version of eventstore needs "
            f"{required}: bring it up to date with: eventstore migrate URL",
        )


def migrate(target: str | URL | Engine | Connection) -> str | None:
    """Create the tables, or bring them up to date. Does nothing where they are.

    Several processes may do so at once: one of them migrates, and the others wait for it. All of
    it is one transaction; with a Connection it is the caller's, who commits it. Returns the
    revision that it found, None for no tables. Raises SchemaTooNewError, LogError,
    InvalidArgumentError.
    """
    if isinstance(target, Connection):
        with own_errors(target):
            return _upgrade(target)
    if isinstance(target, Engine):
        return _migrate(target)
    engine, close = opening.open_engine(target)
    try:
        return _migrate(engine)
    finally:
        close()


def revision(connection: Connection) -> str | None:
    """The revision of the database's schema; None if it has none."""
    if not inspect(connection).has_table(tables.VERSION_TABLE):
        return None
    found: str | None = connection.scalar(select(_version_table.c.version_num))
    return found


def script_location() -> Path:
    """The folder of the Alembic environment: inside the installed package, or in the checkout."""
    package = Path(__file__).parent
    installed = package / "migrations"
    return installed if installed.is_dir() else package.parent / "migrations"


def is_ours(table: str) -> bool:
    """Whether a table of that name belongs to this library."""
    return table.startswith(tables.PREFIX)


def include_object(_object: object, name: str | None, type_: str, *_: object) -> bool:
    """The hook of that name for the application's own Alembic: passes over our tables.

    Its autogenerate then proposes neither to drop nor to alter them.
    """
    return not (type_ == "table" and name is not None and is_ours(name))


def _refuse_newer(found: str | None) -> None:
    if found not in (None, tables.REVISION, *_OLDER):
        raise SchemaTooNewError(
            found,
            tables.REVISION,
            f"this database's schema is at revision {found}, and this version of eventstore knows "
            f"{tables.REVISION} at the latest: upgrade eventstore in this program",
        )


def _create(engine: Engine) -> None:
    """The tables of a fresh SQLite database, without Alembic.

    A test proves that the migrations come to the same.
    """
    with _transaction(engine) as connection:
        if revision(connection) is None:  # nobody else was quicker
            tables.metadata.create_all(connection, checkfirst=False)
            _version_table.create(connection)
            connection.execute(_version_table.insert().values(version_num=tables.REVISION))


def _migrate(engine: Engine) -> str | None:
    with _transaction(engine) as connection:
        return _upgrade(connection)


def _upgrade(connection: Connection) -> str | None:
    _lock(connection)
    found = revision(connection)
    _refuse_newer(found)
    if found == tables.REVISION:
        return found
    from alembic import command
    from alembic.config import Config

    config = Config(attributes={"connection": connection})
    # Of an interpolating parser, to which a per cent sign is not itself.
    config.set_main_option("script_location", str(script_location()).replace("%", "%%"))
    config.set_main_option("path_separator", "os")
    with _one_migration:
        command.upgrade(config, "head")
    return found


@contextlib.contextmanager
def _transaction(engine: Engine) -> Generator[Connection]:
    """A connection in a transaction that holds the database's lock for migrations."""
    with transaction(engine) as connection:
        _lock(connection)
        yield connection


def _lock(connection: Connection) -> None:
    """Wait until nobody else migrates, and keep it so until the transaction ends.

    On SQLite that takes the lock for writing before anything is read.
    """
    if not connection.in_transaction():
        begin_writing(connection)
    if connection.dialect.name == "postgresql":
        connection.execute(select(func.pg_advisory_xact_lock(_ADVISORY_LOCK)))
        return
    raw: Any = connection.connection.dbapi_connection
    if not raw.in_transaction:  # a driver that does not begin before it has to
        connection.exec_driver_sql("BEGIN IMMEDIATE")
