"""The runner in one process: leases, errors, rebuilds and what is parked."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor

import pytest
from payments import Paid, owners
from sqlalchemy import Column, Integer, String, Table, select, update
from sqlalchemy.event import listen
from waiting import PATIENCE, eventually

from eventstore import (
    EventHandler,
    EventStore,
    InvalidArgumentError,
    ProjectionOutdatedError,
    RecordedEvent,
    StoreClosedError,
    TableProjection,
    on,
)
from eventstore.log.followers import Followers
from eventstore.log.tables import followers as follower_rows


@pytest.fixture(params=["sqlite", "postgres", "pgbouncer"])
def url(request: pytest.FixtureRequest) -> str:
    found: str = request.getfixturevalue(f"{request.param}_url")
    return found


@pytest.fixture
def store(url: str) -> Iterator[EventStore]:
    # Several processes write to one file, on a machine that may be busy.
    with EventStore(url, lock_timeout=30) as opened:
        yield opened


class Notes(EventHandler, name="runner-notes", attempts=1):
    """Keeps what it was given in memory."""

    def __init__(self, act: Callable[[RecordedEvent], None] = lambda record: None) -> None:
        self.act = act
        self.seen: list[int] = []

    @on(Paid)
    def _paid(self, event: Paid, record: RecordedEvent) -> None:
        self.act(record)
        self.seen.append(event.amount)


class Unmakeable(EventHandler, name="runner-unmakeable"):
    def __init__(self, needed: object) -> None:
        self.needed = needed

    @on(Paid)
    def _paid(self, event: Paid) -> None:
        raise AssertionError("nobody can make it")


def pay(store: EventStore, *amounts: int, stream: str = "account/1") -> None:
    store.append(stream, [Paid(amount=amount) for amount in amounts])


def test_stop_ends_run_from_any_thread_and_frees_the_leases(store: EventStore) -> None:
    notes = Notes()
    runner = store.runner(notes, lease=3600)
    with ThreadPoolExecutor(1) as threads:
        running = threads.submit(runner.run)
        pay(store, 1, 2)
        store.wait_for(notes)
        assert owners(store, "runner-notes") == {os.getpid(): 1}
        runner.stop()
        running.result(PATIENCE)
    assert owners(store, "runner-notes") == {0: 1}
    assert notes.seen == [1, 2]


def test_an_error_in_one_follower_does_not_stop_another(store: EventStore) -> None:
    notes = Notes()
    with store.runner(Unmakeable, notes, lease=1):
        pay(store, 1)
        store.wait_for(notes)
    assert notes.seen == [1]
    assert owners(store, "runner-unmakeable") == {0: 1}


def test_a_lease_goes_on_while_a_handler_takes_long(store: EventStore) -> None:
    working, finish = threading.Event(), threading.Event()

    def act(record: RecordedEvent) -> None:
        working.set()
        assert finish.wait(PATIENCE)

    ours, theirs = Notes(act), Notes(act)
    with store.runner(ours, lease=0.4), store.runner(theirs, lease=0.4):
        pay(store, 1)
        assert working.wait(PATIENCE)
        for _ in range(3):  # past its end, if it were not renewed
            ends = expiry(store)
            eventually(lambda ends=ends: expiry(store) > ends + 400_000)
        finish.set()
        store.wait_for(Notes, timeout=PATIENCE)
    assert ours.seen + theirs.seen == [1]


def expiry(store: EventStore, follower: str = "runner-notes") -> int:
    """When its lease ends, if it is not renewed."""
    with store.engine.connect() as connection:
        query = select(follower_rows.c.expires_at).where(follower_rows.c.name == follower)
        return int(connection.execute(query).scalar_one())


def test_a_lease_goes_on_while_the_end_is_waited_for(store: EventStore) -> None:
    working, finish = threading.Event(), threading.Event()

    def act(record: RecordedEvent) -> None:
        working.set()
        assert finish.wait(PATIENCE)

    notes = Notes(act)
    runner = store.runner(notes, lease=0.4)
    runner.start()
    pay(store, 1)
    assert working.wait(PATIENCE)
    runner.stop()
    ends = expiry(store)
    eventually(lambda: expiry(store) > ends + 400_000)
    finish.set()
    runner.join()
    assert notes.seen == [1]
    assert owners(store, "runner-notes") == {0: 1}


class Slow(TableProjection, name="runner-slow"):
    payments = Table(
        "runner_slow",
        TableProjection.metadata,
        Column("position", Integer, primary_key=True),
    )

    @on(Paid)
    def _paid(self, event: Paid, record: RecordedEvent) -> None:
        time.sleep(0.02)
        self.insert(self.payments, position=record.position)


def test_batches_are_smaller_where_handlers_are_slow(store: EventStore) -> None:
    # All at once they would take longer than the server lets a transaction be silent.
    pay(store, *range(100))
    with store.runner(Slow, lease=1):
        store.wait_for(Slow, timeout=PATIENCE)
    with store.engine.connect() as connection:
        assert len(connection.execute(select(Slow.payments)).all()) == 100


def counting(number: int, shards_: int = 1) -> type[TableProjection]:
    """One projection, as programs of several versions declare it."""

    class Counting(TableProjection, name="runner-counting", shards=shards_):
        version = number
        counts = Table(
            "runner_counting",
            TableProjection.metadata,
            Column("stream", String, primary_key=True),
            Column("count", Integer, nullable=False),
        )

        @on(Paid)
        def _paid(self, event: Paid, record: RecordedEvent) -> None:
            if event.amount == 13:
                raise ValueError("unlucky")
            found = self.get(self.counts, record.stream)
            self.put(
                self.counts,
                stream=record.stream,
                count=self.version + (found or {"count": 0})["count"],
            )

    return Counting


def counts(store: EventStore) -> dict[str, int]:
    with store.engine.connect() as connection:
        rows = connection.exec_driver_sql("SELECT stream, count FROM runner_counting")
        return {row.stream: row.count for row in rows}


def test_after_a_rebuild_the_work_goes_on_with_the_new_tables(store: EventStore) -> None:
    cls = counting(1)
    with store.runner(cls, lease=3600) as runner:
        pay(store, 1, 2)
        store.wait_for(cls)
        store.rebuild(cls)
        pay(store, 3)
        store.wait_for(cls, timeout=PATIENCE)
        assert counts(store) == {"account/1": 3}
        assert not runner.given_up


def test_a_superseded_version_is_given_up_and_the_rest_goes_on(store: EventStore) -> None:
    old, notes = counting(1), Notes()
    with store.runner(old, notes, lease=1) as runner:
        pay(store, 1, 2)
        store.wait_for(old)
        store.rebuild(counting(2))
        pay(store, 3)
        eventually(lambda: runner.given_up)
        assert isinstance(runner.given_up["runner-counting"], ProjectionOutdatedError)
        pay(store, 4)
        store.wait_for(notes, timeout=PATIENCE)
        assert counts(store) == {"account/1": 4}  # nothing of the old code is in the new tables
        store.catch_up(counting(2))
        assert counts(store) == {"account/1": 8}


def test_who_takes_a_shard_just_after_a_rebuild_by_newer_code_gives_it_back(
    store: EventStore,
) -> None:
    old = counting(1)
    store.catch_up(old)
    (seen,) = store._followers.find("runner-counting")
    store.rebuild(counting(2))
    with pytest.raises(ProjectionOutdatedError):
        store._claimed(old, seen, "somebody", 3600)
    assert owners(store, "runner-counting") == {0: 1}


def test_run_raises_when_all_are_given_up(store: EventStore) -> None:
    old = counting(1)
    with ThreadPoolExecutor(1) as threads:
        running = threads.submit(store.run, old, lease=1)
        pay(store, 1)
        eventually(lambda: any(row.follower == "runner-counting" for row in store.status()))
        store.rebuild(counting(2))
        with pytest.raises(ProjectionOutdatedError):
            running.result(PATIENCE)


def test_code_of_another_python_is_left_alone(store: EventStore) -> None:
    # Two programs that took the projection from each other in turns would never get anywhere.
    cls = counting(1)
    with store.runner(cls, lease=0.4):
        pay(store, 1)
        store.wait_for(cls)
        with store.engine.begin() as connection:
            connection.execute(
                update(follower_rows)
                .where(follower_rows.c.name == "runner-counting")
                .values(fingerprint="cpython-309:00")
            )
        for _ in range(3):
            ends = expiry(store, "runner-counting")
            pay(store, 2)
            store.wait_for(cls)
            eventually(lambda ends=ends: expiry(store, "runner-counting") > ends)
        with store.engine.connect() as connection:
            assert set(connection.scalars(select(follower_rows.c.fingerprint))) == {
                "cpython-309:00"
            }


@pytest.mark.parametrize("url", ["sqlite", "postgres"], indirect=True)
def test_projections_that_run_in_step_are_passed_over(url: str, store: EventStore) -> None:
    cls, notes = counting(1), Notes()
    with EventStore(url, in_step=[cls]) as writer:
        pay(writer, 1)
        with writer.runner(cls, notes, lease=0.4) as runner:
            pay(writer, 2)
            writer.wait_for(notes, timeout=PATIENCE)
            assert owners(writer, "runner-counting") == {0: 1}
            writer.leave_step(cls)
            eventually(lambda: owners(writer, "runner-counting") == {os.getpid(): 1})
            pay(writer, 3)
            writer.wait_for(cls, timeout=PATIENCE)
            assert counts(writer) == {"account/1": 3}
            assert not runner.given_up


def test_what_is_parked_does_not_make_the_others_slow(store: EventStore) -> None:
    broken = counting(1)
    store.catch_up(broken)
    pay(store, 13, stream="account/13")
    store.catch_up(broken)
    assert [row.stream for row in store.parked(broken)] == ["account/13"]
    savepoints: list[object] = []
    listen(store.engine, "savepoint", lambda *given: savepoints.append(given))
    for number in range(20):
        pay(store, 1, stream=f"account/{number}")
    store.catch_up(broken)
    assert savepoints == []  # which events have that are tried one by one
    assert counts(store) == {f"account/{number}": 1 for number in range(20) if number != 13}
    assert [row.attempts for row in store.parked(broken)] == [2, 0]


def test_what_is_parked_is_tried_again_when_asked_for(store: EventStore) -> None:
    broken = True

    def act(record: RecordedEvent) -> None:
        if broken and record.stream == "account/1":
            raise ValueError("no")

    notes = Notes(act)
    with store.runner(notes, lease=3600):
        pay(store, 1, 2)
        pay(store, 3, stream="account/2")
        store.wait_for(notes)
        assert [(row.attempts, row.error) for row in store.parked(notes)] == [
            (1, "ValueError: no"),
            (0, None),
        ]
        assert notes.seen == [3]
        broken = False
        store.retry(notes)
        eventually(lambda: not store.parked(notes))
    assert notes.seen == [3, 1, 2]


def test_a_closed_store_ends_the_runner(store: EventStore, monkeypatch: pytest.MonkeyPatch) -> None:
    def closed(*_: object) -> None:
        raise StoreClosedError

    # To really close it would leave connections open that are in use at that very moment.
    runner = store.runner(Notes(), lease=0.4)
    runner.start()
    eventually(lambda: owners(store, "runner-notes") == {os.getpid(): 1})
    monkeypatch.setattr(Followers, "heartbeat", closed)
    runner.join()
    assert owners(store, "runner-notes") == {0: 1}


@pytest.mark.parametrize("url", ["postgres", "pgbouncer"], indirect=True)
def test_nobody_waits_for_a_row_that_somebody_else_has_locked(store: EventStore) -> None:
    locked, free = Notes(), counting(1)
    store.catch_up(locked)
    with store.engine.begin() as connection:
        row = select(follower_rows).where(follower_rows.c.name == "runner-notes")
        connection.execute(row.with_for_update()).all()
        with store.runner(locked, free, lease=1):
            pay(store, 1)
            store.wait_for(free)
            assert owners(store, "runner-notes") == {0: 1}
            connection.rollback()
            store.wait_for(locked, timeout=PATIENCE)


@pytest.mark.parametrize("lease", [0, -1])
def test_a_lease_takes_some_time(store: EventStore, lease: float) -> None:
    with pytest.raises(InvalidArgumentError):
        store.runner(Notes, lease=lease)


def test_the_same_follower_twice_is_refused(store: EventStore) -> None:
    with pytest.raises(InvalidArgumentError, match="twice"):
        store.runner(Notes(), Notes())
    with pytest.raises(InvalidArgumentError, match="at least one"):
        store.runner()
