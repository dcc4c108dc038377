"""What each hot operation costs, counted and not timed: statements, round trips, calls, memory.

Who makes one of these numbers higher should know why; who makes it lower writes the new one here.
"""

from __future__ import annotations

import asyncio
import gc
import subprocess
import sys
import tempfile
import time
import tracemalloc
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, LiteralString

import psycopg
import pytest
from sqlalchemy import BigInteger, Column, Engine, String, Table, event

from eventstore import (
    Aggregate,
    Event,
    EventStore,
    Projection,
    RecordedEvent,
    TableProjection,
    on,
)
from eventstore.aio import AsyncEventStore

Operation = Callable[[], object]


class Counted(Event, name="costs-counted"):
    amount: int
    note: str = ""


class Plain(Aggregate, stream="costs-plain/{id}"):
    total: int = 0

    def count(self, amount: int = 1) -> None:
        self.record(Counted(amount=amount))

    @on(Counted)
    def _counted(self, event: Counted) -> None:
        self.total += event.amount


class Kept(Plain, stream="costs-kept/{id}", snapshot_every=100):
    """The same with snapshots."""


class Replayed(Projection):
    """A replay and nothing else."""

    @on(Counted)
    def _counted(self, event: Counted) -> None:
        pass


class Noticed(Projection):
    @on(Counted)
    def _counted(self, event: Counted, record: RecordedEvent) -> None:
        pass


class Sums(TableProjection, name="costs-sums"):
    accounts = Table(
        "costs_accounts",
        TableProjection.metadata,
        Column("account", String, primary_key=True),
        Column("amount", BigInteger, nullable=False),
        Column("count", BigInteger, nullable=False),
    )

    @on(Counted)
    def _counted(self, event: Counted, record: RecordedEvent) -> None:
        if record.version == 1:
            self.insert(self.accounts, account=record.aggregate_id, amount=0, count=0)
        self.add(self.accounts, record.aggregate_id, amount=event.amount, count=1)


class Meter:
    """What goes to the database from connections that are made while this is open."""

    def __init__(self) -> None:
        self._traces: list[Any] = []
        self._statements: list[str] = []

    def connected(self, raw: Any, _record: Any) -> None:
        if hasattr(raw, "set_trace_callback"):
            raw.set_trace_callback(self._statements.append)
        else:  # libpq writes down each message; a Sync or a Query is answered before we go on
            trace = tempfile.TemporaryFile()  # noqa: SIM115 (closed with the meter)
            raw.pgconn.trace(trace.fileno())
            self._traces.append(trace)

    def take(self) -> int:
        """How many statements (SQLite) or round trips (PostgreSQL) there were since last time."""
        trips = len(self._statements)
        self._statements.clear()
        for trace in self._traces:
            trace.seek(0)
            lines = trace.read().decode(errors="replace").splitlines()
            trips += sum(line.split("\t")[-1] == "Sync" for line in lines if "\tF\t" in line)
            trips += sum("\tQuery\t" in line for line in lines if "\tF\t" in line)
            trace.seek(0)
            trace.truncate()
        return trips

    def close(self) -> None:
        for trace in self._traces:
            trace.close()


@contextmanager
def metered() -> Iterator[Meter]:
    meter = Meter()
    event.listen(Engine, "connect", meter.connected)
    try:
        yield meter
    finally:
        event.remove(Engine, "connect", meter.connected)
        meter.close()


@pytest.fixture
def opened(url: str) -> Iterator[tuple[EventStore, Meter]]:
    """A store without threads, and what it sends."""
    with metered() as meter, EventStore(url, notify=False, cache=0) as store:
        yield store, meter


def filled(store: EventStore, cls: type[Plain], id: str, length: int) -> Plain:
    account = cls(id)
    for _ in range(length):
        account.count()
    store.save(account)
    return account


def trips(meter: Meter, operation: Operation) -> int:
    """Of the operation in its steady state: statements are prepared by then, types are known."""
    for _ in range(3):
        operation()
    meter.take()
    operation()
    return meter.take()


def spread(store: EventStore, length: int, *, streams: int = 10) -> None:
    """So many events in all, in so many streams."""
    for number in range(streams):
        events = [Counted(amount=1, note="a note of some length" * 10)] * (length // streams)
        store.append(f"costs-plain/{number}", events)


def saving(store: EventStore, account: Plain, events: int) -> Operation:
    def save() -> None:
        for _ in range(events):
            account.count()
        store.save(account)

    return save


# --- what the database does ---------------------------------------------------------------------


def test_a_replay_reads_each_event_once_even_where_the_planner_knows_nothing(
    empty_postgres_url: str,
) -> None:
    """As in a log that was restored, or filled a moment ago: nobody has run ANALYZE."""
    count = 30_000
    with EventStore(empty_postgres_url, migrate=True, notify=False) as store:
        spread(store, count)
        assert store.project(Replayed).position == count
        with store.connect() as connection:
            # What sorts a range for each page reads what lies behind the page over and over.
            connection.exec_driver_sql("SELECT pg_stat_force_next_flush()")
    query = "SELECT idx_tup_read FROM pg_stat_user_indexes WHERE indexrelname = %s"
    with psycopg.connect(empty_postgres_url, autocommit=True) as admin:
        deadline = time.monotonic() + 20
        while (read := _one(admin, query, "eventstore_events_pkey")) < count:
            assert time.monotonic() < deadline, "the statistics never came"
            time.sleep(0.05)
    assert read < count * 1.1


def _one(connection: psycopg.Connection[Any], query: LiteralString, *values: object) -> Any:
    row = connection.execute(query, values).fetchone()
    assert row is not None
    return row[0]


# --- statements and round trips ----------------------------------------------------------------

#: SQLite begins and commits around the head and the events; PostgreSQL does all in one statement.
APPEND = {"sqlite": 4, "postgresql": 1}


def test_an_event_is_appended_in_one_trip(opened: tuple[EventStore, Meter]) -> None:
    store, meter = opened
    account = filled(store, Plain, "a", 1)
    assert trips(meter, saving(store, account, 1)) == APPEND[store.engine.name]


def test_a_new_stream_costs_no_more_than_an_old_one(opened: tuple[EventStore, Meter]) -> None:
    store, meter = opened
    ids = iter("abcdefgh")
    assert trips(meter, lambda: filled(store, Plain, next(ids), 1)) == APPEND[store.engine.name]


def test_a_hundred_events_are_appended_in_one_trip(opened: tuple[EventStore, Meter]) -> None:
    store, meter = opened
    account = filled(store, Plain, "a", 1)
    found = trips(meter, saving(store, account, 100))
    if store.engine.name == "postgresql":
        assert found == 1
    else:  # nothing leaves the process: an insert an event at the most
        assert found <= 3 + 100


@pytest.mark.parametrize("length", [10, 999])
def test_a_load_is_one_query(opened: tuple[EventStore, Meter], length: int) -> None:
    store, meter = opened
    filled(store, Plain, "a", length)
    assert trips(meter, lambda: store.load(Plain, "a")) == 1


def test_a_longer_load_is_a_query_for_each_thousand_events_or_streams_the_rest(
    opened: tuple[EventStore, Meter],
) -> None:
    store, meter = opened
    filled(store, Plain, "a", 4_000)
    expected = {"sqlite": 4, "postgresql": 2}[store.engine.name]
    assert trips(meter, lambda: store.load(Plain, "a")) == expected


def test_what_many_tasks_ask_for_at_once_shares_trips(postgres_url: str) -> None:
    count = 64

    async def asked(store: AsyncEventStore, meter: Meter) -> int:
        commands = [store.transact(Plain, str(n), Plain.count) for n in range(count)]
        await asyncio.gather(*commands)
        return meter.take()

    async def measured() -> list[int]:
        with metered() as meter:
            async with AsyncEventStore(postgres_url, notify=False) as store:
                spread(store.sync, 10 * count, streams=count)
                return [await asked(store, meter) for _ in range(3)]

    # A load and an append each would be twice as many as there are.
    assert min(asyncio.run(measured())) < count / 2


def test_a_snapshot_and_what_follows_it_are_one_query(opened: tuple[EventStore, Meter]) -> None:
    store, meter = opened
    filled(store, Kept, "a", 250)
    assert trips(meter, lambda: store.load(Kept, "a")) == 1
    assert trips(meter, lambda: store.load(Kept, "a", version=120)) == 1


def test_a_past_state_is_one_query_however_much_has_happened_since(
    opened: tuple[EventStore, Meter],
) -> None:
    store, meter = opened
    account = filled(store, Kept, "a", 150)
    (then,) = (record.recorded_at for record in store.read("costs-kept/a", limit=1))
    saving(store, account, 2_000)()
    assert store.load(Kept, "a", at=then).version == 150
    assert trips(meter, lambda: store.load(Kept, "a", at=then)) == 1


def test_a_command_is_a_load_and_an_append(opened: tuple[EventStore, Meter]) -> None:
    store, meter = opened
    filled(store, Plain, "a", 20)
    found = trips(meter, lambda: store.transact(Plain, "a", Plain.count))
    assert found == 1 + APPEND[store.engine.name]


def test_a_command_on_a_cached_aggregate_is_an_append(url: str) -> None:
    with metered() as meter, EventStore(url, notify=False, cache=5) as store:
        filled(store, Plain, "a", 20)
        found = trips(meter, lambda: store.transact(Plain, "a", Plain.count))
        assert found == APPEND[store.engine.name]
        assert store.load(Plain, "a").total == 24


def test_a_replay_is_a_query_a_page_or_streams_of_them(
    opened: tuple[EventStore, Meter],
) -> None:
    store, meter = opened
    spread(store, 1_000)
    short = trips(meter, lambda: store.project(Replayed))
    spread(store, 5_000)
    # SQLite: a page has 500 events. PostgreSQL: the first stream has 1,000, the second 4,000.
    more = {"sqlite": 10, "postgresql": 1}[store.engine.name]
    assert trips(meter, lambda: store.project(Replayed)) - short == more


def test_a_rebuild_writes_a_row_once_however_often_it_was_changed(
    opened: tuple[EventStore, Meter],
) -> None:
    store, meter = opened
    spread(store, 1_000)
    short = trips(meter, lambda: store.rebuild(Sums))
    spread(store, 5_000)
    more = {"sqlite": 10, "postgresql": 1}[store.engine.name]  # for reading, as above
    assert trips(meter, lambda: store.rebuild(Sums)) - short == more
    assert short <= 63  # the new tables, the page, the flush, the swap


# --- a command on a cached aggregate -----------------------------------------------------------


def test_a_cached_command_that_another_writer_has_overtaken_is_done_again(url: str) -> None:
    with EventStore(url, cache=5) as store, EventStore(url) as other:
        filled(store, Plain, "a", 1)
        other.transact(Plain, "a", Plain.count, 10)
        seen = []

        def double(account: Plain) -> int:
            seen.append(account.total)
            account.count(account.total)
            return account.total

        assert store.transact(Plain, "a", double) == 22
        assert seen == [1, 11]


def test_what_is_cached_refuses_no_command_that_the_present_state_allows(url: str) -> None:
    with EventStore(url, cache=5) as store, EventStore(url) as other:
        filled(store, Plain, "a", 1)
        other.transact(Plain, "a", Plain.count, 10)

        def spend(account: Plain) -> int:
            if account.total < 5:
                raise ValueError("too little")
            account.count(-5)
            return account.total

        assert store.transact(Plain, "a", spend) == 6
        assert store.transact(Plain, "a", spend) == 1
        with pytest.raises(ValueError, match="too little"):
            store.transact(Plain, "a", spend)


def test_a_command_that_only_looks_sees_the_present_state(url: str) -> None:
    with EventStore(url, cache=5) as store, EventStore(url) as other:
        filled(store, Plain, "a", 1)
        other.transact(Plain, "a", Plain.count, 10)
        assert store.transact(Plain, "a", lambda account: account.total) == 11


# --- Python's own work -------------------------------------------------------------------------


def calls(operation: Operation) -> int:
    """How many functions written in Python an operation calls, in its steady state."""
    for _ in range(3):
        operation()
    found = 0

    def noted(_frame: object, what: str, _argument: object) -> None:
        nonlocal found
        found += what == "call"

    gc.disable()  # what it finalizes would be counted
    sys.setprofile(noted)
    try:
        operation()
    finally:
        sys.setprofile(None)
        gc.enable()
    return found


@pytest.fixture
def in_process(sqlite_url: str) -> Iterator[EventStore]:
    """A store whose driver is all C, so that only our own calls are counted."""
    with EventStore(sqlite_url) as store:
        yield store


def test_a_load_calls_the_handler_for_each_event_and_nothing_else(in_process: EventStore) -> None:
    filled(in_process, Plain, "ten", 10)
    filled(in_process, Plain, "more", 110)
    few = calls(lambda: in_process.load(Plain, "ten"))
    assert calls(lambda: in_process.load(Plain, "more")) - few == 100
    assert few - 10 <= 29


def test_a_save_calls_little_for_each_event(in_process: EventStore) -> None:
    account = filled(in_process, Plain, "a", 1)

    def calls_of(events: int) -> int:
        def save() -> None:
            account._pending = list(pending[:events])
            in_process.save(account)

        return calls(save)

    for _ in range(110):
        account.count()
    pending = account._pending
    one = calls_of(1)
    assert one <= 39
    assert calls_of(101) - one <= 102


def test_recording_calls_little_beside_the_handler(in_process: EventStore) -> None:
    account = filled(in_process, Plain, "a", 1)
    assert calls(account.count) <= 6


@pytest.mark.parametrize(
    ("replay", "for_each"),
    [
        (lambda store: store.project(Replayed), 1),  # the handler
        (lambda store: store.project(Noticed), 1),
        (lambda store: store.rebuild(Sums), 3),  # the handler, and what it calls: add, and merge
    ],
)
def test_a_replay_calls_the_handler_for_each_event_and_nothing_else(
    in_process: EventStore, replay: Callable[[EventStore], object], for_each: int
) -> None:
    spread(in_process, 250)
    few = calls(lambda: replay(in_process))
    spread(in_process, 200)  # still one page
    assert calls(lambda: replay(in_process)) - few == 200 * for_each


def peak(operation: Operation) -> int:
    """The most bytes that Python held at once for an operation."""
    operation()
    tracemalloc.start()
    try:
        operation()
        return tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


def test_a_load_holds_a_page_of_rows(opened: tuple[EventStore, Meter]) -> None:
    store, _ = opened
    for id, length in (("page", 900), ("long", 5_000)):
        words = [Counted(amount=1, note="a note of some length" * 10)] * length
        store.append(f"costs-plain/{id}", words)
    a_page = peak(lambda: store.load(Plain, "page"))
    assert peak(lambda: store.load(Plain, "long")) < 1.5 * a_page


def test_a_replay_and_a_rebuild_hold_a_page_of_rows(opened: tuple[EventStore, Meter]) -> None:
    store, _ = opened

    def peaks() -> tuple[int, int]:
        return peak(lambda: store.project(Replayed)), peak(lambda: store.rebuild(Sums))

    spread(store, 2_000)  # several pages, of which few are there at once
    short = peaks()
    spread(store, 6_000)
    for few, many in zip(short, peaks(), strict=True):
        assert many < 1.2 * few


def test_an_operation_leaves_nothing_behind(opened: tuple[EventStore, Meter]) -> None:
    store, meter = opened
    filled(store, Kept, "a", 150)

    def operation() -> None:
        store.transact(Kept, "a", Kept.count)
        meter.take()

    for _ in range(50):
        operation()
    gc.collect()
    before = sys.getallocatedblocks()
    for _ in range(30):
        operation()
    gc.collect()
    assert sys.getallocatedblocks() - before < 100


# --- importing ---------------------------------------------------------------------------------


def test_importing_adds_few_modules_to_those_of_sqlalchemy_and_msgspec() -> None:
    script = """if True:
        import sqlalchemy, msgspec, sys
        there = set(sys.modules)
        import eventstore
        print(*sorted(sys.modules.keys() - there))
    """
    ran = subprocess.run(
        [sys.executable, "-W", "error", "-c", script],
        capture_output=True,
        text=True,
        check=True,
        env={"PYTHONPATH": str(Path(__file__).parents[2])},
    )
    added = ran.stdout.split()
    others = [name for name in added if not name.startswith("eventstore")]
    assert not [name for name in others if name.startswith("sqlalchemy.dialects.postgresql")]
    assert len(others) <= 10, others
    assert len(added) - len(others) <= 90
