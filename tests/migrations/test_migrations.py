"""The tables have one definition, however a database came by them."""

from __future__ import annotations

import sqlite3
import subprocess
import sys
import threading
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest
from alembic import command
from alembic.autogenerate import compare_metadata
from alembic.config import Config
from alembic.migration import MigrationContext
from alembic.script import ScriptDirectory
from sqlalchemy import (
    Column,
    Engine,
    Integer,
    MetaData,
    Table,
    create_engine,
    inspect,
    make_url,
    text,
)

from eventstore import (
    Event,
    EventStore,
    LogLockedError,
    LogReadOnlyError,
    SchemaMissingError,
    SchemaTooNewError,
    schema,
)
from eventstore.log.opening import open_engine
from eventstore.log.tables import REVISION, VERSION_TABLE, metadata
from eventstore.urls import parse

ROOT = Path(__file__).parents[2]


class TableLaid(Event):
    name: str


@pytest.fixture(params=["sqlite", "postgres"])
def empty_url(request: pytest.FixtureRequest) -> str:
    name = "sqlite_url" if request.param == "sqlite" else "empty_postgres_url"
    url: str = request.getfixturevalue(name)
    return url


@pytest.fixture
def engine(empty_url: str) -> Iterator[Engine]:
    engine, close = open_engine(empty_url)
    yield engine
    close()


def described(engine: Engine) -> dict[str, Any]:
    """What the database itself says of our tables."""
    found = {}
    inspector = inspect(engine)
    for table in inspector.get_table_names():
        if table == VERSION_TABLE or not schema.is_ours(table):
            continue
        columns = [
            {key: str(value) for key, value in column.items() if key != "comment"}
            for column in inspector.get_columns(table)
        ]
        found[table] = {
            "columns": columns,
            "primary key": inspector.get_pk_constraint(table),
            "unique": sorted(map(str, inspector.get_unique_constraints(table))),
            "indexes": sorted(map(str, inspector.get_indexes(table))),
            "foreign keys": inspector.get_foreign_keys(table),
        }
    return found


def differences(engine: Engine) -> list[Any]:
    opts = {
        "compare_type": True,
        # On SQLite Alembic takes an identity for a default; there `described` sees the defaults.
        "compare_server_default": engine.dialect.name == "postgresql",
        "version_table": VERSION_TABLE,
    }
    with engine.connect() as connection:
        context = MigrationContext.configure(connection, opts=opts)
        return list(compare_metadata(context, metadata))


def test_the_migrated_schema_is_that_of_the_tables(engine: Engine) -> None:
    schema.migrate(engine)
    assert differences(engine) == []
    migrated = described(engine)
    assert len(migrated) == 15
    with engine.begin() as connection:
        metadata.drop_all(connection)
        metadata.create_all(connection)
    assert described(engine) == migrated


def test_a_difference_would_be_seen(engine: Engine) -> None:
    schema.migrate(engine)
    with engine.begin() as connection:
        connection.execute(text("ALTER TABLE eventstore_events ADD COLUMN surprise INTEGER"))
    assert differences(engine) != []


def test_the_revision_in_the_code_is_the_last_migration() -> None:
    config = Config()
    config.set_main_option("script_location", str(schema.script_location()))
    assert ScriptDirectory.from_config(config).get_heads() == [REVISION]


def test_a_fresh_sqlite_file_has_what_migrating_leads_to(tmp_path: Path) -> None:
    EventStore(f"sqlite:///{tmp_path / 'opened.db'}").close()
    schema.migrate(f"sqlite:///{tmp_path / 'migrated.db'}")
    seen = []
    for name in ("opened", "migrated"):
        engine, close = open_engine(f"sqlite:///{tmp_path / name}.db")
        with engine.connect() as connection:
            seen.append((described(engine), schema.revision(connection)))
            inspector = inspect(connection)
            seen[-1][0][VERSION_TABLE] = {
                "columns": list(map(str, inspector.get_columns(VERSION_TABLE))),
                "primary key": inspector.get_pk_constraint(VERSION_TABLE),
            }
        close()
    assert seen[0] == seen[1]


def test_followers_learn_the_event_at_their_checkpoint(engine: Engine) -> None:
    config = Config(attributes={"connection": None})
    config.set_main_option("script_location", str(schema.script_location()))
    rows = "SELECT name, event FROM eventstore_followers ORDER BY name"
    with engine.begin() as connection:
        config.attributes["connection"] = connection
        command.upgrade(config, "0004")
        for position in (3, 7):
            connection.execute(
                text(
                    "INSERT INTO eventstore_events (position, stream_id, version, type_id, "
                    "recorded_at, id, data) "
                    f"{'OVERRIDING SYSTEM VALUE' if engine.dialect.name == 'postgresql' else ''} "
                    "VALUES (:position, 1, :position, 1, 0, :id, :id)"
                ),
                {"position": position, "id": bytes([position]) * 16},
            )
        for name, position in (("a", 0), ("b", 5), ("c", 7)):
            connection.execute(
                text(
                    "INSERT INTO eventstore_followers VALUES (:name, 0, 1, 1, '', '[]', false, "
                    ":position, 0, 0, 0, 0, NULL, 0)"
                ),
                {"name": name, "position": position},
            )
        schema.migrate(connection)
        found = [(name, event and bytes(event)) for name, event in connection.execute(text(rows))]
    assert found == [("a", None), ("b", b"\x03" * 16), ("c", b"\x07" * 16)]


def test_migrating_twice_changes_nothing(engine: Engine) -> None:
    schema.migrate(engine)
    before = described(engine)
    schema.migrate(engine)
    assert described(engine) == before


def test_migrating_in_the_callers_transaction_can_be_rolled_back(engine: Engine) -> None:
    with engine.connect() as connection:
        connection.begin()
        schema.migrate(connection)
        assert schema.revision(connection) == REVISION
        connection.rollback()
        assert schema.revision(connection) is None


def test_postgresql_is_refused_until_it_is_migrated(empty_postgres_url: str) -> None:
    with pytest.raises(SchemaMissingError, match="eventstore migrate URL") as caught:
        EventStore(empty_postgres_url)
    assert (caught.value.found, caught.value.required) == (None, REVISION)
    with EventStore(empty_postgres_url, migrate=True) as store:
        store.append("tables/one", TableLaid(name="x"))
    with EventStore(empty_postgres_url) as store:
        assert store.version("tables/one") == 1


def test_sqlite_can_be_told_not_to_migrate(sqlite_url: str) -> None:
    with pytest.raises(SchemaMissingError):
        EventStore(sqlite_url, migrate=False)


def test_tables_of_a_later_version_are_refused(engine: Engine, empty_url: str) -> None:
    schema.migrate(engine)
    with engine.begin() as connection:
        connection.execute(text(f"UPDATE {VERSION_TABLE} SET version_num = '9999'"))
    for migrate in (None, True, False):
        with pytest.raises(SchemaTooNewError, match="9999") as caught:
            EventStore(empty_url, migrate=migrate)
        assert caught.value.found == "9999"
    with pytest.raises(SchemaTooNewError):
        schema.migrate(engine)


def test_a_schema_that_is_only_read_opens_read_only(sqlite_url: str) -> None:
    EventStore(sqlite_url).close()
    path = make_url(sqlite_url).database
    with EventStore(f"sqlite:///file:{path}?mode=ro&uri=true") as store:
        assert store.head() == 0
        with pytest.raises(LogReadOnlyError):
            store.append("tables/one", TableLaid(name="x"))


def test_a_fresh_file_that_cannot_be_written_is_told_so(tmp_path: Path) -> None:
    (tmp_path / "empty.db").touch()
    with pytest.raises(LogReadOnlyError) as caught:
        EventStore(f"sqlite:///file:{tmp_path / 'empty.db'}?mode=ro&uri=true")
    assert isinstance(caught.value.__cause__, sqlite3.OperationalError)


def test_a_locked_file_is_waited_for_and_then_told(sqlite_url: str) -> None:
    other = sqlite3.connect(make_url(sqlite_url).database or "", isolation_level=None)
    other.execute("BEGIN IMMEDIATE")
    with pytest.raises(LogLockedError):
        EventStore(sqlite_url, lock_timeout=0.05)
    other.close()
    EventStore(sqlite_url).close()


def test_a_role_without_rights_is_told_so(empty_postgres_url: str) -> None:
    engine, close = open_engine(empty_postgres_url)
    role = f"guest_{uuid4().hex[:8]}"
    try:
        with engine.begin() as connection:
            connection.execute(text(f"CREATE ROLE {role}"))
            connection.execute(text(f"SET LOCAL ROLE {role}"))
            with pytest.raises(LogReadOnlyError, match="permission denied"):
                schema.migrate(connection)
            connection.rollback()
    finally:
        close()


@pytest.mark.parametrize("options", [{}, {"isolation_level": "AUTOCOMMIT"}])
def test_the_callers_own_engine_migrates_as_one_transaction(
    empty_url: str, options: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    engine = create_engine(parse(empty_url), **options)
    try:
        with monkeypatch.context() as patched:
            patched.setattr(command, "upgrade", _upgrade_and_fail)
            with pytest.raises(ZeroDivisionError):
                schema.migrate(engine)
        assert inspect(engine).get_table_names() == []
        assert schema.migrate(engine) is None
        assert schema.migrate(engine) == REVISION
        schema.prepare(engine, migrate=False)
    finally:
        engine.dispose()


def _upgrade_and_fail(config: Config, revision: str) -> None:
    config.attributes["connection"].execute(text("CREATE TABLE eventstore_half (id INTEGER)"))
    raise ZeroDivisionError


def test_many_may_open_a_fresh_file_at_once(sqlite_url: str) -> None:
    program = (
        "import sys; from eventstore import EventStore\n"
        "with EventStore(sys.argv[1]) as store: print(store.head())"
    )
    opening = [
        subprocess.Popen(
            [sys.executable, "-c", program, sqlite_url],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for _ in range(4)
    ]
    for process in opening:
        out, err = process.communicate(timeout=60)
        assert (out, process.returncode) == ("0\n", 0), err


def test_two_may_migrate_at_once(empty_url: str) -> None:
    failures: list[BaseException] = []

    def migrate() -> None:
        try:
            schema.migrate(empty_url)
        except BaseException as error:
            failures.append(error)

    threads = [threading.Thread(target=migrate) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert failures == []
    EventStore(empty_url, migrate=False).close()


HOST_ENV = """
from alembic import context
from sqlalchemy import Column, Integer, MetaData, Table
from eventstore import schema
target = MetaData()
Table("host_orders", target, Column("id", Integer, primary_key=True))
context.configure(
    connection=context.config.attributes["connection"],
    target_metadata=target,
    include_object=schema.include_object,
)
with context.begin_transaction():
    context.run_migrations()
"""
HOST_REVISION = """
import sqlalchemy as sa
from alembic import op
revision, down_revision = "host1", None
def upgrade():
    op.create_table("host_orders", sa.Column("id", sa.Integer, primary_key=True))
"""


def test_the_hosts_own_alembic_and_ours_share_a_database(engine: Engine, tmp_path: Path) -> None:
    (tmp_path / "host" / "versions").mkdir(parents=True)
    (tmp_path / "host" / "env.py").write_text(HOST_ENV)
    (tmp_path / "host" / "versions" / "host1.py").write_text(HOST_REVISION)
    schema.migrate(engine)
    config = Config()
    config.set_main_option("script_location", str(tmp_path / "host"))
    with engine.begin() as connection:
        config.attributes["connection"] = connection
        command.upgrade(config, "head")
    with engine.begin() as connection:
        config.attributes["connection"] = connection
        command.check(config)  # raises if autogenerate would change anything
    schema.migrate(engine)
    with engine.connect() as connection:
        assert connection.scalar(text("SELECT version_num FROM alembic_version")) == "host1"
        assert schema.revision(connection) == REVISION


def test_without_our_hook_the_hosts_alembic_would_drop_our_tables(engine: Engine) -> None:
    host = MetaData()
    Table("host_orders", host, Column("id", Integer, primary_key=True))
    schema.migrate(engine)
    with engine.connect() as connection:
        host.create_all(connection)
        bare = compare_metadata(MigrationContext.configure(connection), host)
        hook = {"include_object": schema.include_object}
        guarded = compare_metadata(MigrationContext.configure(connection, opts=hook), host)
    assert any(change[0] == "remove_table" for change in bare)
    assert guarded == []


def run(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-W", "error", "-m", "eventstore", *arguments],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


def test_the_command_migrates(empty_url: str) -> None:
    before = run("migrate", "--check", empty_url)
    assert before.returncode == 1
    assert "eventstore migrate URL" in before.stderr
    assert run("migrate", empty_url).returncode == 0
    after = run("migrate", "--check", empty_url)
    assert (after.returncode, after.stdout) == (0, f"the tables are at revision {REVISION}\n")


def test_the_command_tells_errors_in_a_line_and_keeps_secrets() -> None:
    done = run("migrate", "postgresql://ann:hunter2@127.0.0.1:1/nowhere")
    assert done.returncode == 1
    assert done.stderr.startswith("eventstore: ")
    assert "Traceback" not in done.stderr
    assert "hunter2" not in done.stderr
    for bad in ("mysql://ann:hunter2@host/db", "::hunter2::"):
        done = run("migrate", bad)
        assert done.returncode == 1
        assert "hunter2" not in done.stderr
        assert "sqlite://" in done.stderr


def test_the_wheel_carries_the_migrations(tmp_path: Path) -> None:
    build = "import sys; from hatchling.builders.wheel import WheelBuilder; "
    build += "print(next(WheelBuilder(sys.argv[1]).build(directory=sys.argv[2])))"
    done = subprocess.run(
        [sys.executable, "-c", build, str(ROOT), str(tmp_path)],
        capture_output=True,
        text=True,
        timeout=120,
        check=True,
    )
    with zipfile.ZipFile(done.stdout.strip().splitlines()[-1]) as wheel:
        names = set(wheel.namelist())
    assert "eventstore/migrations/env.py" in names
    assert "eventstore/migrations/versions/0001_log.py" in names
    assert "eventstore/py.typed" in names


def test_a_plain_postgresql_url_means_psycopg_3(postgres_url: str) -> None:
    plain = make_url(postgres_url).set(drivername="postgres").render_as_string(hide_password=False)
    with EventStore(plain) as store:
        assert store.engine.dialect.driver == "psycopg"
