"""The store in memory for tests: the same as any other, and cheap."""

from __future__ import annotations

import statistics
import time
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta

import pytest
from sqlalchemy import Column, Integer, MetaData, String, Table, select

from eventstore import (
    Aggregate,
    Event,
    EventStore,
    EventTooLargeError,
    InvalidArgumentError,
    RecordedEvent,
    StoreClosedError,
    TableProjection,
    on,
)
from eventstore.testing import FrozenClock, memory_store


class Added(Event, name="memory-added"):
    amount: int


class Tally(Aggregate, stream="memory-tally/{id}", snapshot_every=2):
    total: int = 0

    def add(self, amount: int) -> None:
        self.record(Added(amount=amount))

    @on(Added)
    def _added(self, event: Added) -> None:
        self.total += event.amount


class Sums(TableProjection, name="memory-sums"):
    sums = Table(
        "memory_sums",
        TableProjection.metadata,
        Column("tally", String, primary_key=True),
        Column("total", Integer, nullable=False),
    )

    @on(Added)
    def _added(self, event: Added, record: RecordedEvent) -> None:
        before = self.get(self.sums, record.aggregate_id) or {"total": 0}
        total = before["total"] + event.amount
        self.put(self.sums, tally=record.aggregate_id, total=total)


def schema_of(store: EventStore) -> list[tuple[object, ...]]:
    with store.connect() as db:
        query = "SELECT type, name, tbl_name, sql FROM sqlite_master ORDER BY name"
        return [tuple(row) for row in db.exec_driver_sql(query)]


def test_it_has_the_schema_of_any_other_store() -> None:
    with memory_store() as store, EventStore("sqlite://") as other:
        assert schema_of(store) == schema_of(other)
        assert len(schema_of(store)) > 5
        query = select(Table("eventstore_alembic", MetaData(), autoload_with=store.engine))
        with store.connect() as db, other.connect() as there:
            assert db.execute(query).all() == there.execute(query).all()


def test_it_does_what_a_store_does() -> None:
    with memory_store() as store:
        tally = Tally("a")
        tally.add(1)
        store.save(tally)
        store.transact(Tally, "a", Tally.add, 2)
        assert store.load(Tally, "a").total == 3
        store.catch_up(Sums)
        store.transact(Tally, "a", Tally.add, 4)
        store.rebuild(Sums)
        with store.connect() as db:
            assert db.scalar(select(Sums.sums.c.total)) == 7


def test_stores_share_nothing() -> None:
    with memory_store() as one, memory_store() as other:
        one.append("a/1", Added(amount=1))
        other.append("b/1", Added(amount=1))
        assert [s.name for s in one.streams()] == ["a/1"]
        assert [s.name for s in other.streams()] == ["b/1"]


def test_threads_open_stores_of_their_own() -> None:
    def life(number: int) -> int:
        with memory_store() as store:
            for _ in range(number % 5):
                store.append("a/1", Added(amount=1))
            return store.version("a/1")

    with ThreadPoolExecutor(8) as threads:
        assert list(threads.map(life, range(50))) == [number % 5 for number in range(50)]


def test_the_clock_is_the_one_given() -> None:
    clock = FrozenClock(datetime(2026, 3, 1, tzinfo=UTC))
    with memory_store(clock=clock) as store:
        store.append("a/1", Added(amount=1))
        clock.advance(timedelta(days=30))
        store.append("a/1", Added(amount=2))
        times = [record.recorded_at for record in store.read("a/1")]
    assert times == [datetime(2026, 3, day, tzinfo=UTC) for day in (1, 31)]


def test_other_options_are_those_of_a_store() -> None:
    with memory_store(max_event_bytes=20, cache=5, in_step=[Sums]) as store:
        with pytest.raises(EventTooLargeError):
            store.append("a/1", Added(amount=10**20))
        store.append("a/1", Added(amount=1))
        with store.connect() as db:
            assert db.scalar(select(Sums.sums.c.total)) == 1
    with pytest.raises(InvalidArgumentError):
        memory_store(max_attempts=0)


def test_a_closed_one_says_so_and_is_gone() -> None:
    store = memory_store()
    store.append("a/1", Added(amount=1))
    store.close()
    with pytest.raises(StoreClosedError):
        store.append("a/1", Added(amount=1))


def test_opening_takes_less_than_five_milliseconds() -> None:
    memory_store().close()  # the first one makes the tables
    times = []
    for _ in range(50):
        started = time.perf_counter()
        store = memory_store()
        times.append(time.perf_counter() - started)
        store.close()
    assert statistics.median(times) < 0.005
