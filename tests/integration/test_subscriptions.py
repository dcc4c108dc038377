"""Following the log: what is there, then what comes, on every database and across processes."""

from __future__ import annotations

import contextlib
import signal
import subprocess
import sys
import textwrap
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import psycopg
import pytest
from sqlalchemy import text
from waiting import eventually

from eventstore import (
    CheckpointAheadError,
    Event,
    EventStore,
    InvalidArgumentError,
    LogLockedError,
    LogUnavailableError,
    RecordedEvent,
    Stall,
    StoreClosedError,
    Subscription,
    UnknownEventError,
)
from eventstore.ids import new_ids
from eventstore.log.base import EventType, NewEvent, Write

NEVER = 3600.0


class Counted(Event, name="subscription-counted"):
    number: int


class Other(Event, name="subscription-other"):
    pass


@pytest.fixture
def opened() -> Iterator[Callable[..., EventStore]]:
    """A function that opens a store, on migrated tables, and closes it after the test."""
    with contextlib.ExitStack() as stack:

        def open(url: str, **options: Any) -> EventStore:
            return stack.enter_context(EventStore(url, **options))

        yield open


@pytest.fixture
def store(opened: Callable[..., EventStore], database_url: str) -> EventStore:
    return opened(database_url)


@contextlib.contextmanager
def followed(subscription: Subscription) -> Iterator[Subscription]:
    """Stops the subscription when it has got stuck, so that the test fails and does not hang."""
    guard = threading.Timer(60, subscription.stop)
    guard.start()
    try:
        with subscription:
            yield subscription
    finally:
        guard.cancel()
        guard.join()


def unpolled(store: EventStore) -> EventStore:
    """The store, whose waiting readers look again when they are woken, and else never."""
    watch = store.log._watch  # type: ignore[attr-defined]
    watch.poll_hinted = watch.poll_alone = NEVER
    return store


def count(store: EventStore, first: int, last: int, stream: str = "count/1") -> None:
    store.append(stream, [Counted(number=number) for number in range(first, last + 1)])


def numbers(records: list[RecordedEvent]) -> list[int]:
    return [record.event.number for record in records if isinstance(record.event, Counted)]


def identity(record: RecordedEvent) -> tuple[Any, ...]:
    return (record.position, record.stream, record.version, record.id, record.recorded_at)


def take(subscription: Subscription, many: int) -> list[int]:
    return numbers([next(subscription) for _ in range(many)])


# --- what is given -----------------------------------------------------------------------------


def test_what_is_there_and_then_what_comes(store: EventStore) -> None:
    count(store, 1, 2_300)
    with followed(store.subscribe()) as subscription:
        assert take(subscription, 2_300) == list(range(1, 2_301))
        with ThreadPoolExecutor(1) as thread:
            coming = thread.submit(take, subscription, 30)
            for number in range(2_301, 2_331):
                count(store, number, number)
            assert coming.result() == list(range(2_301, 2_331))
    assert list(subscription) == []


def test_the_events_are_those_of_read_all(store: EventStore) -> None:
    for number in range(20):
        store.append(f"{'ab'[number % 2]}/1", Counted(number=number))
    store.delete_stream("b/1")
    everything = list(map(identity, store.read_all()))
    with followed(store.subscribe()) as subscription:
        assert [identity(next(subscription)) for _ in everything] == everything


def test_categories_and_types_leave_the_rest_out(store: EventStore) -> None:
    for number in range(1, 5):
        store.append("a/1", [Counted(number=number), Other()])
        store.append("b/1", Counted(number=-number))
    with followed(store.subscribe(categories=["a"], types=[Counted])) as subscription:
        assert take(subscription, 4) == [1, 2, 3, 4]
        store.append("b/1", Counted(number=-5))
        store.append("a/1", [Other(), Counted(number=5)])
        assert take(subscription, 1) == [5]


def test_a_reader_resumes_from_its_position(store: EventStore) -> None:
    count(store, 1, 10)
    with followed(store.subscribe()) as first:
        assert take(first, 4) == [1, 2, 3, 4]
    with followed(store.subscribe(after=first.position)) as second:
        assert take(second, 6) == [5, 6, 7, 8, 9, 10]


def test_what_is_left_out_is_passed_over_for_good(store: EventStore) -> None:
    count(store, 1, 3)
    store.append("other/1", [Other() for _ in range(1_500)])
    with followed(store.subscribe(types=[Counted])) as subscription, ThreadPoolExecutor(1) as pool:
        assert take(subscription, 3) == [1, 2, 3]
        coming = pool.submit(take, subscription, 1)
        eventually(lambda: subscription.position == store.head())
        count(store, 4, 4)
        assert coming.result() == [4]


def test_a_checkpoint_beyond_the_log_is_told_at_once(store: EventStore) -> None:
    count(store, 1, 3)
    head = store.head()
    with pytest.raises(CheckpointAheadError) as caught:
        store.subscribe(after=head + 1)
    assert (caught.value.position, caught.value.head) == (head + 1, head)
    store.subscribe(after=head)


@pytest.mark.parametrize("after", [-1, 1.5, None])
def test_a_checkpoint_that_is_none_is_refused(after: Any) -> None:
    with EventStore("sqlite://") as store, pytest.raises(InvalidArgumentError) as caught:
        store.subscribe(after=after)
    assert caught.value.argument == "after"


# --- its end -----------------------------------------------------------------------------------


def test_another_thread_stops_a_waiting_subscription(store: EventStore) -> None:
    unpolled(store)
    count(store, 1, 3)
    with followed(store.subscribe()) as subscription, ThreadPoolExecutor(1) as thread:
        got = thread.submit(list, subscription)
        eventually(lambda: subscription.position == store.head())
        subscription.stop()
        assert numbers(got.result()) == [1, 2, 3]
    assert subscription.why_stalled() is None


def test_a_stop_leaves_out_what_was_read_ahead(store: EventStore) -> None:
    count(store, 1, 100)
    with followed(store.subscribe()) as subscription:
        for record in subscription:
            if record.version == 10:
                subscription.stop()
    assert record.version == 10
    assert subscription.position == record.position


def test_a_signal_handler_stops_a_subscription(store: EventStore) -> None:
    unpolled(store)
    count(store, 1, 3)
    main = threading.main_thread().ident or 0
    with followed(store.subscribe()) as subscription:
        before = signal.signal(signal.SIGUSR1, lambda *_: subscription.stop())
        try:
            with ThreadPoolExecutor(1) as thread:

                def interrupt() -> None:
                    eventually(lambda: subscription.position > 0)
                    signal.pthread_kill(main, signal.SIGUSR1)

                interrupted = thread.submit(interrupt)
                assert len(list(subscription)) <= 3
                interrupted.result()
        finally:
            signal.signal(signal.SIGUSR1, before)


def test_closing_the_store_ends_it_with_an_error(
    opened: Callable[..., EventStore], database_url: str
) -> None:
    store = unpolled(opened(database_url))
    count(store, 1, 3)
    with followed(store.subscribe()) as subscription, ThreadPoolExecutor(1) as thread:
        got = thread.submit(list, subscription)
        eventually(lambda: subscription.position > 0)
        store.close()
        with pytest.raises(StoreClosedError):
            got.result()
        with pytest.raises(StoreClosedError):
            next(subscription)


def test_nothing_is_left_running(opened: Callable[..., EventStore], database_url: str) -> None:
    before = set(threading.enumerate())
    store = opened(database_url)
    count(store, 1, 3)
    with store.connect() as connection:
        store.append("a/1", Counted(number=4), connection=connection)
        connection.commit()
    with followed(store.subscribe()) as subscription:
        assert take(subscription, 4) == [1, 2, 3, 4]
    store.close()
    assert set(threading.enumerate()) <= before


# --- what wakes it -----------------------------------------------------------------------------


def test_a_joined_append_wakes_readers_after_the_commit(store: EventStore) -> None:
    unpolled(store)
    with followed(store.subscribe()) as subscription, ThreadPoolExecutor(1) as thread:
        for number in range(1, 20):
            coming = thread.submit(take, subscription, 1)
            with store.connect() as connection:
                store.append("a/1", Counted(number=number), connection=connection)
                connection.commit()
            assert coming.result() == [number]


def test_the_signal_fires_once_a_commit_and_never_for_a_rollback(
    opened: Callable[..., EventStore], database_url: str
) -> None:
    store = opened(database_url)
    fired = store.log.signal
    for number in (1, 2):
        with store.connect() as connection:
            seen = fired.count
            store.append("a/1", Counted(number=number), connection=connection)
            connection.rollback()
            connection.execute(text("SELECT 1"))
            connection.commit()
            store.append("a/1", [Counted(number=number)], connection=connection)
            store.append("b/1", [Counted(number=number)], connection=connection)
            assert fired.count == seen
            connection.commit()
        assert fired.wait(seen, 60) == seen + 1
    seen = fired.count
    store.append("a/1", Counted(number=3))
    store.delete_stream("a/1")
    assert fired.count == seen + 2


WRITER = """
    import sys
    from eventstore import Event, EventStore

    class Counted(Event, name="subscription-counted"):
        number: int

    store = EventStore(sys.argv[1])
    for line in sys.stdin:
        store.append("count/1", Counted(number=int(line)))
        print(line, end="", flush=True)
    store.close()
"""


@contextlib.contextmanager
def process(script: str, url: str) -> Iterator[subprocess.Popen[str]]:
    command = [sys.executable, "-c", textwrap.dedent(script), url]
    with subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as running:
        yield running
        assert running.stdin is not None
        running.stdin.close()
        assert running.wait(60) == 0


@pytest.mark.parametrize("database_url", ["sqlite", "postgres"], indirect=True)
def test_a_commit_of_another_process_wakes_a_reader(store: EventStore, database_url: str) -> None:
    unpolled(store)
    count(store, 0, 0)
    with (
        followed(store.subscribe()) as subscription,
        process(WRITER, database_url) as writer,
    ):
        assert take(subscription, 1) == [0]
        assert writer.stdin is not None
        for number in range(1, 20):
            writer.stdin.write(f"{number}\n")
            writer.stdin.flush()
            assert take(subscription, 1) == [number]


def test_a_commit_of_another_store_wakes_a_reader_on_postgres(
    opened: Callable[..., EventStore], postgres_url: str
) -> None:
    reader, writer = unpolled(opened(postgres_url)), opened(postgres_url)
    with followed(reader.subscribe()) as subscription:
        for number in range(1, 20):
            if number % 2:
                count(writer, number, number)
            else:
                with writer.connect() as connection:
                    writer.append("a/1", Counted(number=number), connection=connection)
                    connection.commit()
            assert take(subscription, 1) == [number]


def test_without_notifications_a_reader_polls(
    opened: Callable[..., EventStore], postgres_url: str
) -> None:
    reader, writer = opened(postgres_url), opened(postgres_url, notify=False)
    with followed(reader.subscribe()) as subscription:
        for number in range(1, 4):
            count(writer, number, number)
            assert take(subscription, 1) == [number]


FORKING = """
    import os, sys
    from eventstore import Event, EventStore

    class Counted(Event, name="subscription-counted"):
        number: int

    store = EventStore(sys.argv[1])
    store.append("count/1", Counted(number=1))
    child = os.fork()
    if not child:
        store.engine.dispose(close=False)
        store.append("count/1", Counted(number=2))
        store.close()
        os._exit(0)
    assert os.waitpid(child, 0)[1] == 0
    sys.stdin.readline()
    store.append("count/1", Counted(number=3))
    store.close()
"""


def test_a_forked_process_notifies_too(
    opened: Callable[..., EventStore], postgres_url: str
) -> None:
    store = unpolled(opened(postgres_url))
    with (
        followed(store.subscribe()) as subscription,
        process(FORKING, postgres_url) as writer,
    ):
        assert take(subscription, 2) == [1, 2]
        assert writer.stdin is not None
        writer.stdin.write("\n")
        writer.stdin.flush()
        assert take(subscription, 1) == [3]


# --- what holds it up --------------------------------------------------------------------------


def test_an_open_transaction_holds_it_back_and_is_named(
    opened: Callable[..., EventStore], postgres_url: str
) -> None:
    store = unpolled(opened(postgres_url))
    count(store, 1, 1)
    head = store.head()
    with (
        followed(store.subscribe()) as subscription,
        store.connect() as slow,
        ThreadPoolExecutor(1) as thread,
    ):
        assert subscription.why_stalled() is None
        slow.execute(text("SET LOCAL application_name = 'slow importer'"))
        store.append("slow/1", Counted(number=2), connection=slow)
        count(store, 3, 3)
        coming = thread.submit(take, subscription, 3)
        stall = eventually(subscription.why_stalled)
        assert isinstance(stall, Stall)
        assert stall.position == head
        (writer,) = stall.writers
        assert "slow importer" in writer
        slow.commit()
        assert coming.result() == [1, 2, 3]
    assert subscription.why_stalled() is None


def test_lost_connections_make_no_difference(
    opened: Callable[..., EventStore], postgres_url: str
) -> None:
    reader, writer = opened(postgres_url), opened(postgres_url)
    with (
        followed(reader.subscribe()) as subscription,
        psycopg.connect(postgres_url, autocommit=True) as admin,
        ThreadPoolExecutor(1) as thread,
    ):
        coming = thread.submit(take, subscription, 40)
        for number in range(1, 41):
            count(writer, number, number)
            if number % 8 == 0:
                admin.execute(
                    """SELECT pg_terminate_backend(pid, 5000) FROM pg_stat_activity
                        WHERE datname = current_database() AND pid <> pg_backend_pid()
                          AND backend_type = 'client backend'"""
                )
        assert coming.result() == list(range(1, 41))


def test_a_database_that_is_away_is_waited_for(
    store: EventStore, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    count(store, 1, 5)
    away = [LogUnavailableError("gone", "not written"), LogLockedError("locked")] * 2

    def flaky(method: Callable[..., Any]) -> Callable[..., Any]:
        def call(*args: Any, **options: Any) -> Any:
            if away:
                raise away.pop()
            return method(*args, **options)

        return call

    subscription = store.subscribe()
    for name in ("frontier", "read_all"):
        monkeypatch.setattr(store.log, name, flaky(getattr(store.log, name)))
    with followed(subscription):
        assert take(subscription, 5) == [1, 2, 3, 4, 5]
    assert not away
    assert len(caplog.records) == 4


def test_an_event_that_nobody_knows_is_given_and_not_passed_over(store: EventStore) -> None:
    count(store, 1, 1)
    unknown = NewEvent(EventType("subscription-nobodys", 1), b"{}", new_ids(1)[0])
    store.log.append([Write("count/1", [unknown])])
    count(store, 2, 2)
    with followed(store.subscribe()) as subscription:
        assert take(subscription, 1) == [1]
        record = next(subscription)
        with pytest.raises(UnknownEventError):
            _ = record.event
        assert subscription.position == record.position
        assert take(subscription, 1) == [2]


def test_what_was_read_before_the_database_was_away_is_read_again(
    store: EventStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A server that comes back may have lost it, and have something else there by now."""
    count(store, 1, 1)
    subscription = store.subscribe()

    def away(*_: Any) -> EventType:
        monkeypatch.undo()
        with store.engine.begin() as db:
            db.execute(text("UPDATE eventstore_events SET data = :data"), {"data": b'{"number":2}'})
        raise LogUnavailableError("the database is away", "not written")

    # As a page has been read, and before its first event is given.
    monkeypatch.setattr(store.log, "event_type", away)
    with followed(subscription):
        assert take(subscription, 1) == [2]
