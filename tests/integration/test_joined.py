"""Appends that join a caller's transaction, on every database."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from sqlalchemy import Connection, create_engine, make_url, text

from eventstore.errors import (
    IdempotencyKeyReusedError,
    InvalidArgumentError,
    LogLockedError,
    StreamDeletedError,
    WrongExpectedVersionError,
)
from eventstore.log.base import Bounds, EventType, Log, Receipt, Snapshot, Write
from eventstore.log.opening import open_log
from eventstore.testing.drafts import add, all_rows, drafts, folded, rows

OpenLogs = Callable[..., Log]


@pytest.fixture
def log(open_logs: OpenLogs, database_url: str) -> Log:
    log = open_logs(database_url)
    with log.engine.begin() as connection:
        connection.execute(text("CREATE TABLE orders (id INTEGER PRIMARY KEY)"))
    return log


def order(connection: Connection, id: int) -> None:
    connection.execute(text("INSERT INTO orders VALUES (:id)"), {"id": id})


def orders(log: Log) -> list[int]:
    with log.engine.connect() as connection:
        return list(connection.scalars(text("SELECT id FROM orders ORDER BY id")))


def append(
    log: Log, connection: Connection, *streams: str, expected: int = 0, key: str | None = None
) -> tuple[Receipt, ...]:
    writes = [Write(stream, drafts(2), expected) for stream in streams]
    return log.append(writes, key=key, connection=connection)


def test_a_commit_keeps_what_was_appended(log: Log) -> None:
    with log.engine.connect() as connection:
        order(connection, 1)
        (receipt,) = append(log, connection, "a/1")
        connection.commit()
    assert [row.position for row in rows(log, "a/1")][-1] == receipt.position
    assert orders(log) == [1]
    assert add(log, "a/1", expected=2).version == 3


def test_a_rollback_leaves_no_trace(log: Log) -> None:
    with log.engine.connect() as connection:
        order(connection, 1)
        append(log, connection, "a/1", "b/1", key="k")
        log.save_snapshot("a/1", b"f" * 16, Snapshot(2, 2, 2, b""), connection=connection)
        connection.rollback()
    assert not all_rows(log)
    assert log.streams(None, "", 9) == []
    assert log.receipts("k") is None
    assert log.delete_snapshots() == 0
    assert orders(log) == []
    assert add(log, "a/1", expected=0, key="k").version == 1


def test_the_log_begins_the_transaction_that_it_joins_and_the_caller_ends_it(log: Log) -> None:
    with log.engine.connect() as connection:
        append(log, connection, "a/1")
        assert connection.in_transaction()
    assert log.stream("a/1") is None
    with log.engine.begin() as connection:
        append(log, connection, "a/1")
    assert log.stream("a/1") is not None


def test_what_was_appended_is_read_in_the_same_transaction(log: Log) -> None:
    with log.engine.connect() as connection:
        append(log, connection, "a/1")
        head = log.stream("a/1", connection=connection)
        assert head is not None
        assert head.version == 2
        read = log.read("a/1", 0, Bounds(), limit=9, connection=connection)
        assert [row.version for row in read] == [1, 2]
        assert log.event_type(read[0].type, connection) == EventType("happened", 1)
        _, pages = log.fold("a/1", connection=connection)
        assert sum(len(page) for page in pages) == 2


def test_a_long_stream_is_folded_in_the_callers_transaction(log: Log) -> None:
    with log.engine.connect() as connection:
        log.append([Write("a/1", drafts(2_500))], connection=connection)
        _, pages = log.fold("a/1", connection=connection)
        assert sum(len(page) for page in pages) == 2_500
        _, pages = log.fold("a/1", connection=connection)
        next(pages)
        pages.close()  # type: ignore[attr-defined]
        append(log, connection, "a/1", expected=2_500)
        connection.commit()
    assert len(folded(log, "a/1")[1]) == 2_502


def test_nobody_else_sees_it_before_the_commit(
    sqlite_url: str, postgres_url: str, open_logs: OpenLogs
) -> None:
    for log in (open_logs(sqlite_url), open_logs(postgres_url)):
        with log.engine.connect() as connection:
            append(log, connection, "a/1")
            assert log.stream("a/1") is None
            assert not all_rows(log)
            connection.commit()
        assert len(all_rows(log)) == 2


def test_readers_of_a_memory_database_wait_for_its_writer(open_logs: OpenLogs) -> None:
    log = open_logs("sqlite://", lock_timeout=0.3)
    with log.engine.connect() as connection:
        append(log, connection, "a/1")
        with pytest.raises(LogLockedError):
            all_rows(log)
        connection.commit()
    assert len(all_rows(log)) == 2


@pytest.mark.parametrize("key", [None, "k"])
def test_a_refused_append_leaves_the_rest_of_the_transaction_alone(
    log: Log, key: str | None
) -> None:
    with log.engine.connect() as connection:
        order(connection, 1)
        append(log, connection, "kept/1")
        with pytest.raises(WrongExpectedVersionError):
            append(log, connection, "a/1", "b/1", "kept/1", key=key)
        with pytest.raises(WrongExpectedVersionError):
            append(log, connection, "kept/1", expected=7, key=key)
        order(connection, 2)
        connection.commit()
    assert {row.stream for row in all_rows(log)} == {"kept/1"}
    assert [info.name for info in log.streams(None, "", 9)] == ["kept/1"]
    assert orders(log) == [1, 2]
    assert log.receipts("k") is None
    assert add(log, "a/1", expected=0, key=key).version == 1


def test_a_key_counts_within_its_own_transaction(log: Log) -> None:
    with log.engine.connect() as connection:
        first = append(log, connection, "a/1", key="k")
        assert append(log, connection, "a/1", key="k") == first
        with pytest.raises(IdempotencyKeyReusedError):
            append(log, connection, "b/1", key="k")
        connection.commit()
    assert log.receipts("k") == first
    assert len(all_rows(log)) == 2


def test_a_deletion_can_be_rolled_back(log: Log) -> None:
    add(log, "a/1", 3)
    with log.engine.connect() as connection:
        log.delete("a/1", connection=connection)
        with pytest.raises(StreamDeletedError):
            append(log, connection, "a/1", expected=3)
        connection.rollback()
    assert len(rows(log, "a/1")) == 3
    assert add(log, "a/1", expected=3).version == 4


def test_new_types_of_a_rolled_back_transaction_do_not_haunt_the_log(log: Log) -> None:
    def append_types(connection: Connection, *names: str) -> list[str]:
        events = [drafts(1, type=name)[0] for name in names]
        log.append([Write("a/1", events)], connection=connection)
        read = log.read("a/1", 0, Bounds(), limit=9, connection=connection)
        return [log.event_type(row.type, connection).name for row in read]

    with log.engine.connect() as connection:
        assert append_types(connection, "first", "second") == ["first", "second"]
        connection.rollback()
        assert append_types(connection, "third", "second") == ["third", "second"]
        connection.rollback()
    for type in ("second", "fourth", "first", "third"):
        add(log, "a/1", type=type)
    names = [log.event_type(row.type).name for row in rows(log, "a/1")]
    assert names == ["second", "fourth", "first", "third"]


def test_new_types_of_a_refused_append_do_not_haunt_the_log(log: Log) -> None:
    with pytest.raises(WrongExpectedVersionError):
        log.append([Write("a/1", drafts(1, "first")), Write("b/1", [], 3)])
    with log.engine.connect() as connection:
        with pytest.raises(WrongExpectedVersionError):
            log.append(
                [Write("a/1", drafts(1, "first")), Write("b/1", [], 3)], connection=connection
            )
        log.append([Write("a/1", drafts(1, "second"))], connection=connection)
        connection.commit()
    add(log, "a/1", type="first")
    names = [log.event_type(row.type).name for row in rows(log, "a/1")]
    assert names == ["second", "first"]


def test_a_connection_in_autocommit_is_refused(log: Log) -> None:
    with log.engine.connect() as connection:
        autocommit = connection.execution_options(isolation_level="AUTOCOMMIT")
        with pytest.raises(InvalidArgumentError) as caught:
            append(log, autocommit, "a/1")
    assert caught.value.argument == "connection"
    assert not all_rows(log)


def test_the_log_works_on_after_somebody_used_autocommit(log: Log) -> None:
    with log.engine.connect() as connection:
        autocommit = connection.execution_options(isolation_level="AUTOCOMMIT")
        order(autocommit, 1)
    receipt = add(log, "a/1", 2)
    log.save_snapshot("a/1", b"f" * 16, Snapshot(2, receipt.position, 1, b""))
    with log.engine.connect() as connection:
        order(connection, 2)
        append(log, connection, "b/1")
        connection.rollback()
    assert orders(log) == [1]
    assert log.stream("b/1") is None
    assert log.delete_snapshots() == 1


def test_a_connection_to_another_kind_of_database_is_refused(
    log: Log, open_logs: OpenLogs, postgres_url: str
) -> None:
    url = postgres_url if log.engine.dialect.name == "sqlite" else "sqlite://"
    other = open_logs(url)
    with other.engine.connect() as connection, pytest.raises(InvalidArgumentError) as caught:
        append(log, connection, "a/1")
    assert caught.value.argument == "connection"
    assert not all_rows(log)


def test_the_engine_stays_transactional_for_its_other_users(log: Log) -> None:
    for _ in range(3):
        add(log, "a/1")
        with log.engine.connect() as connection:
            order(connection, 1)
            connection.rollback()
    assert orders(log) == []


# --- an engine that the caller made ------------------------------------------------------------


@pytest.mark.parametrize("level", [None, "AUTOCOMMIT"])
def test_a_log_on_the_callers_own_engine(
    sqlite_url: str, postgres_url: str, open_logs: OpenLogs, level: str | None
) -> None:
    options = {"isolation_level": level} if level else {}
    for url in (sqlite_url, postgres_url):
        open_logs(url)
        parsed = make_url(url)
        if parsed.drivername == "postgresql":
            parsed = parsed.set(drivername="postgresql+psycopg")
        engine = create_engine(parsed, **options)  # type: ignore[arg-type]
        log, _ = open_log(engine)
        receipt = add(log, "a/1", 3)
        log.save_snapshot("a/1", b"f" * 16, Snapshot(3, receipt.position, 0, b""))
        with engine.connect() as connection:
            connection.execute(text("CREATE TABLE mine (id INTEGER)"))
            if not level:
                append(log, connection, "b/1")
                connection.commit()
        engine.dispose()
        again = open_logs(url)
        assert len(all_rows(again)) == (3 if level else 5)
        assert again.delete_snapshots() == 1
        with again.engine.connect() as connection:
            assert connection.scalar(text("SELECT count(*) FROM mine")) == 0


def test_the_callers_own_engine_can_be_joined_and_rolled_back(
    sqlite_url: str, open_logs: OpenLogs
) -> None:
    log = open_logs(sqlite_url)
    engine = create_engine(sqlite_url)  # the driver begins by itself, but not before a read
    with engine.connect() as connection:
        append(log, connection, "a/1")
        connection.rollback()
        append(log, connection, "a/1")
        append(log, connection, "b/1")
        connection.commit()
        append(log, connection, "c/1")
    engine.dispose()
    assert [row.stream for row in all_rows(log)] == ["a/1", "a/1", "b/1", "b/1"]
