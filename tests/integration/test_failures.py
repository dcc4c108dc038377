"""What becomes of a log whose database is locked, read-only, or gone."""

from __future__ import annotations

import gc
import sqlite3
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, contextmanager
from pathlib import Path

import psycopg
import pytest
from sqlalchemy import text

from eventstore import EventStore
from eventstore.errors import (
    LogError,
    LogLockedError,
    LogReadOnlyError,
    LogUnavailableError,
    SchemaMissingError,
)
from eventstore.log.base import Log, Snapshot, Write
from eventstore.log.opening import open_log
from eventstore.testing.drafts import add, all_rows, drafts, folded, rows

OpenLogs = Callable[..., Log]


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "events.db"


# --- SQLite ------------------------------------------------------------------------------------


@contextmanager
def locked(path: Path) -> Iterator[sqlite3.Connection]:
    with closing(sqlite3.connect(path, isolation_level=None, check_same_thread=False)) as other:
        other.execute("BEGIN IMMEDIATE")
        yield other


def test_a_locked_file_is_waited_for_and_then_an_error_says_so(
    open_logs: OpenLogs, sqlite_url: str, path: Path
) -> None:
    log = open_logs(sqlite_url, lock_timeout=0.4)
    add(log, "a/1")
    with locked(path):
        began = time.monotonic()
        with pytest.raises(LogLockedError) as caught:
            add(log, "a/1")
        assert 0.3 < time.monotonic() - began < 3
        assert isinstance(caught.value.__cause__, sqlite3.OperationalError)
        assert len(rows(log, "a/1")) == 1  # readers do not wait
    assert add(log, "a/1", expected=1).version == 2


def test_a_lock_that_ends_in_time_goes_unnoticed(
    open_logs: OpenLogs, sqlite_url: str, path: Path
) -> None:
    log = open_logs(sqlite_url, lock_timeout=10)
    with locked(path) as other:
        threading.Timer(0.3, other.rollback).start()
        assert add(log, "a/1").version == 1


def test_a_thread_that_writes_for_too_long_is_reported(
    open_logs: OpenLogs, sqlite_url: str, path: Path
) -> None:
    log = open_logs(sqlite_url, lock_timeout=0.4)
    with locked(path), ThreadPoolExecutor(8) as threads:
        errors = list(threads.map(lambda _: type(failure(log)), range(8)))
    assert set(errors) == {LogLockedError}


def failure(log: Log) -> Exception:
    with pytest.raises(LogError) as caught:
        add(log, "a/1")
    return caught.value


def test_a_joined_transaction_that_read_an_older_state_is_told_to_start_again(
    open_logs: OpenLogs, sqlite_url: str
) -> None:
    log = open_logs(sqlite_url, lock_timeout=0.4)
    add(log, "a/1")
    with log.engine.connect() as connection:
        connection.execute(text("SELECT * FROM eventstore_events")).all()
        add(log, "a/1")
        with pytest.raises(LogLockedError):
            log.append([Write("b/1", drafts())], connection=connection)
        connection.rollback()
        log.append([Write("b/1", drafts())], connection=connection)
        connection.commit()
    assert len(all_rows(log)) == 3


def test_a_read_only_file_is_read_and_not_written(
    open_logs: OpenLogs, sqlite_url: str, path: Path
) -> None:
    log = open_logs(sqlite_url)
    receipt = add(log, "a/1", 3)
    before = all_rows(log)
    read_only = open_logs(f"sqlite:///file:{path}?mode=ro&uri=true")
    assert all_rows(read_only) == before
    assert len(folded(read_only, "a/1")[1]) == 3
    assert read_only.settled(1) == receipt.position
    snapshot = Snapshot(3, receipt.position, receipt.recorded_at, b"")
    for write in (
        lambda: add(read_only, "a/1"),
        lambda: add(read_only, "a/1", key="k"),
        lambda: read_only.delete("a/1"),
        lambda: read_only.save_snapshot("a/1", b"f" * 16, snapshot),
        lambda: read_only.delete_snapshots(),
    ):
        with pytest.raises(LogReadOnlyError) as caught:
            write()
        assert isinstance(caught.value.__cause__, sqlite3.Error)
    assert all_rows(log) == before


def test_a_file_that_is_no_database_is_an_error_of_the_library(path: Path) -> None:
    path.write_bytes(b"not a database" * 100)
    log, close = open_log(f"sqlite:///{path}")
    with pytest.raises(LogUnavailableError) as caught:
        add(log, "a/1")
    assert caught.value.outcome == "not written"
    assert isinstance(caught.value.__cause__, sqlite3.DatabaseError)
    log.close()
    close()


def test_a_folder_that_is_not_there_is_an_error_of_the_library(tmp_path: Path) -> None:
    log, close = open_log(f"sqlite:///{tmp_path / 'none' / 'events.db'}")
    with pytest.raises(LogUnavailableError) as caught:
        all_rows(log)
    assert caught.value.outcome == "not written"
    log.close()
    close()


@pytest.mark.parametrize("durability", ["full", "relaxed"])
def test_durability_is_the_connections_setting(
    open_logs: OpenLogs, sqlite_url: str, postgres_url: str, durability: str
) -> None:
    for url, setting, values in (
        (sqlite_url, "PRAGMA synchronous", {"full": 2, "relaxed": 1}),
        (sqlite_url, "PRAGMA journal_mode", {"full": "wal", "relaxed": "wal"}),
        (postgres_url, "SHOW synchronous_commit", {"full": "on", "relaxed": "off"}),
    ):
        log = open_logs(url, durability=durability)
        add(log, "a/1")
        with log.engine.connect() as connection:
            assert connection.scalar(text(setting)) == values[durability]


# --- PostgreSQL --------------------------------------------------------------------------------


@pytest.fixture
def admin(postgres_url: str) -> Iterator[psycopg.Connection]:
    with psycopg.connect(postgres_url, autocommit=True) as connection:
        yield connection


def kill(admin: psycopg.Connection, condition: str = "true") -> int:
    """End the other connections to this database of which that is true; how many there were."""
    ended = admin.execute(
        f"""SELECT pg_terminate_backend(pid, 5000) FROM pg_stat_activity
             WHERE datname = current_database() AND pid <> pg_backend_pid()
               AND backend_type = 'client backend' AND {condition}"""
    ).fetchall()
    return len(ended)


WAITS = "wait_event_type = 'Lock'"


def kill_waiting(admin: psycopg.Connection) -> None:
    deadline = time.monotonic() + 10
    while not kill(admin, WAITS):
        assert time.monotonic() < deadline, "nobody waited for a lock"
        time.sleep(0.01)


def test_connections_that_the_server_dropped_between_appends_go_unnoticed(
    open_logs: OpenLogs, postgres_url: str, admin: psycopg.Connection
) -> None:
    log = open_logs(postgres_url)
    for version in range(1, 4):
        assert add(log, "a/1", expected=version - 1).version == version
        assert kill(admin) == 1
        assert len(rows(log, "a/1")) == version
        assert kill(admin) == 1


def test_many_dropped_connections_go_unnoticed(
    open_logs: OpenLogs, postgres_url: str, admin: psycopg.Connection
) -> None:
    log = open_logs(postgres_url)
    connections = [log.engine.connect() for _ in range(5)]
    for connection in connections:
        connection.scalar(text("SELECT 1"))
        connection.close()
    assert kill(admin) == 5
    with ThreadPoolExecutor(5) as threads:
        receipts = list(threads.map(lambda _: add(log, "a/1"), range(20)))
    assert sorted(receipt.version for receipt in receipts) == list(range(1, 21))


@pytest.mark.parametrize("key", [None, "k"])
def test_a_connection_lost_in_the_middle_of_an_append_leaves_its_outcome_open(
    open_logs: OpenLogs, postgres_url: str, admin: psycopg.Connection, key: str | None
) -> None:
    log = open_logs(postgres_url)
    add(log, "a/1")
    with log.engine.connect() as blocker, ThreadPoolExecutor(1) as thread:
        log.append([Write("a/1", drafts())], connection=blocker)
        appending = thread.submit(add, log, "a/1", 1, key=key)
        kill_waiting(admin)
        error = appending.exception(10)
        blocker.rollback()
    assert isinstance(error, LogUnavailableError)
    assert error.outcome == "unknown"
    assert isinstance(error.__cause__, psycopg.Error)
    first = add(log, "a/1", key=key)
    assert (first.version, len(rows(log, "a/1"))) == (2, 2)
    if key:
        assert add(log, "a/1", key=key) == first


def test_a_retry_with_the_key_writes_once_where_the_first_had_committed(
    open_logs: OpenLogs, postgres_url: str, admin: psycopg.Connection
) -> None:
    log = open_logs(postgres_url)
    first = add(log, "a/1", 2, expected=0, key="k")
    kill(admin)  # as if the acknowledgement had been lost on the way
    assert add(log, "a/1", 2, expected=0, key="k") == first
    assert len(all_rows(log)) == 2


def test_a_transaction_of_the_caller_that_is_lost_was_not_written(
    open_logs: OpenLogs, postgres_url: str, admin: psycopg.Connection
) -> None:
    log = open_logs(postgres_url)
    with log.engine.connect() as connection:
        log.append([Write("a/1", drafts())], connection=connection)
        kill(admin)
        with pytest.raises(LogUnavailableError) as caught:
            log.append([Write("a/1", drafts())], connection=connection)
        connection.invalidate()
    assert caught.value.outcome == "not written"
    assert log.stream("a/1") is None


def test_a_connection_lost_between_the_pages_of_a_fold_goes_unnoticed(
    open_logs: OpenLogs, postgres_url: str, admin: psycopg.Connection
) -> None:
    log = open_logs(postgres_url)
    # More than a connection's buffers hold.
    log.append([Write("a/1", drafts(3_500, data=b"." * 4_000))])
    _, pages = log.fold("a/1")
    count = len(next(pages)) + len(next(pages))
    assert kill(admin) == 1
    assert count + sum(len(page) for page in pages) == 3_500


def test_a_fold_that_outlives_its_store_leaves_no_connection_behind(postgres_url: str) -> None:
    with EventStore(postgres_url, notify=False) as store:
        add(store.log, "a/1", 3_500)
        _, pages = store.log.fold("a/1")
        next(pages), next(pages)
    del pages
    gc.collect()  # a connection that is still open would warn, which is an error here


def test_a_lock_timeout_of_the_server_is_reported(open_logs: OpenLogs, postgres_url: str) -> None:
    separator = "&" if "?" in postgres_url else "?"
    log = open_logs(f"{postgres_url}{separator}options=-c%20lock_timeout%3D100")
    with log.engine.connect() as blocker:
        log.append([Write("a/1", drafts())], connection=blocker)
        with pytest.raises(LogLockedError) as caught:
            add(log, "a/1")
        assert isinstance(caught.value.__cause__, psycopg.errors.LockNotAvailable)
        blocker.commit()
    assert add(log, "a/1").version == 2


def test_a_read_only_server_is_read_and_not_written(open_logs: OpenLogs, postgres_url: str) -> None:
    add(open_logs(postgres_url), "a/1")
    separator = "&" if "?" in postgres_url else "?"
    options = "options=-c%20default_transaction_read_only%3Don"
    log = open_logs(f"{postgres_url}{separator}{options}")
    assert len(all_rows(log)) == 1
    assert log.settled(1) == 1
    for type in ("happened", "new"):
        with pytest.raises(LogReadOnlyError) as caught:
            add(log, "a/1", type=type)
        assert isinstance(caught.value.__cause__, psycopg.errors.ReadOnlySqlTransaction)


def test_a_server_that_is_not_there_is_reported_without_the_password() -> None:
    log, close = open_log("postgresql://somebody:s3cret@127.0.0.1:1/none?connect_timeout=2")
    with pytest.raises(LogUnavailableError) as caught:
        add(log, "a/1")
    error: BaseException | None = caught.value
    assert caught.value.outcome == "not written"
    assert isinstance(caught.value.__cause__, psycopg.OperationalError)
    while error is not None:
        assert "s3cret" not in str(error)
        error = error.__cause__
    log.close()
    close()


def test_a_database_without_our_tables_is_reported(empty_postgres_url: str) -> None:
    log, close = open_log(empty_postgres_url)
    with pytest.raises(SchemaMissingError) as caught:
        all_rows(log)
    assert isinstance(caught.value.__cause__, psycopg.errors.UndefinedTable)
    assert "eventstore migrate" in str(caught.value)
    log.close()
    close()
