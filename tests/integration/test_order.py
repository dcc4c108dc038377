"""On PostgreSQL a reader of the whole log misses nothing, whatever the writers do."""

from __future__ import annotations

import random
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager

import pytest
from sqlalchemy import Connection, create_engine, make_url, text

from eventstore.errors import LogStalledError
from eventstore.log.base import Bounds, Log, Receipt, Row, Write
from eventstore.testing.drafts import add, all_rows, drafts

OpenLogs = Callable[..., Log]

SECONDS = 4.0
HOT = [f"hot/{number}" for number in range(6)]


def append(log: Log, stream: str, connection: Connection, count: int = 1) -> Receipt:
    return log.append([Write(stream, drafts(count))], connection=connection)[0]


def take_transaction_id(connection: Connection) -> int:
    return int(connection.scalar(text("SELECT pg_current_xact_id()::text")))


def pid(connection: Connection) -> int:
    return int(connection.scalar(text("SELECT pg_backend_pid()")))


@pytest.fixture
def log(open_logs: OpenLogs, postgres_url: str) -> Log:
    return open_logs(postgres_url)


@contextmanager
def transaction_in(url: str, application: str = "elsewhere") -> Iterator[Connection]:
    engine = create_engine(make_url(url).set(drivername="postgresql+psycopg"))
    with engine.connect() as connection:
        connection.execute(
            text("SELECT set_config('application_name', :name, false)"), {"name": application}
        )
        connection.commit()
        yield connection
    engine.dispose()


@pytest.fixture
def neighbour(log: Log, postgres_url: str) -> Iterator[str]:
    """Another database of the cluster, with the same tables under the same object ids."""
    log.engine.dispose()  # a database that is in use cannot be copied
    name = make_url(postgres_url).database
    admin = create_engine(
        make_url(postgres_url).set(drivername="postgresql+psycopg", database="postgres"),
        isolation_level="AUTOCOMMIT",
    )
    with admin.connect() as connection:
        connection.execute(text(f"CREATE DATABASE {name}_too TEMPLATE {name}"))
        yield make_url(postgres_url).set(database=f"{name}_too").render_as_string(False)
        connection.execute(text(f"DROP DATABASE {name}_too WITH (FORCE)"))
    admin.dispose()


# --- racing ------------------------------------------------------------------------------------


class Race:
    """Writers until the time is up; readers until they have what the writers left."""

    def __init__(self, log: Log) -> None:
        self.log = log
        self.acknowledged: list[tuple[str, int, int]] = []
        self.deadline = time.monotonic() + SECONDS
        self.written = threading.Event()

    def note(self, receipt: Receipt) -> None:
        self.acknowledged.append((receipt.stream, receipt.version, receipt.position))

    def writing(self) -> bool:
        return time.monotonic() < self.deadline

    def normal(self, seed: int) -> None:
        chance = random.Random(seed)
        while self.writing():
            streams = chance.sample(HOT, chance.choice((1, 1, 1, 2)))
            writes = [Write(stream, drafts(chance.randint(1, 3))) for stream in streams]
            for receipt in self.log.append(writes):
                self.note(receipt)

    def joined(self, *, early: float = 0, late: float = 0, rollback: bool = False) -> None:
        """Transactions that linger before they append, with an id, or after they did."""
        while self.writing():
            with self.log.engine.connect() as connection:
                if early:
                    take_transaction_id(connection)
                    time.sleep(early)
                receipts = [append(self.log, s, connection, 2) for s in ("slow/1", "hot/0")]
                time.sleep(late)
                if rollback:
                    connection.rollback()
                    continue
                connection.commit()
            for receipt in receipts:
                self.note(receipt)
            time.sleep(0.02)

    def read(self, log: Log) -> list[Row]:
        read: list[Row] = []
        after = 0
        while True:
            finished = self.written.is_set()
            position = log.settled(30)
            while page := log.read_all(after, Bounds(position=position), limit=100):
                read += page
                after = page[-1].position
            after = max(after, position)
            if finished:
                return read


def test_readers_miss_nothing_while_transactions_race(
    log: Log, open_logs: OpenLogs, postgres_url: str, neighbour: str
) -> None:
    race = Race(log)
    other = open_logs(neighbour)
    readers = [open_logs(postgres_url) for _ in range(3)]
    with transaction_in(neighbour) as elsewhere, ThreadPoolExecutor(20) as threads:
        append(other, "other/1", elsewhere)  # stays open all the while
        reading = [threads.submit(race.read, reader) for reader in readers]
        writing = [threads.submit(race.normal, seed) for seed in range(8)]
        writing += [
            threads.submit(race.joined, late=0.2),
            threads.submit(race.joined, late=0.15, rollback=True),
            threads.submit(race.joined, early=0.1, late=0.02),
        ]
        for writer in writing:
            writer.result()
        race.written.set()
        results = [reader.result() for reader in reading]
    everything = all_rows_of(log)
    for read in results:
        assert read == everything  # none missed, none twice, in the order of positions
    by_stream: dict[str, int] = {}
    for row in everything:
        assert row.version == by_stream.get(row.stream, 0) + 1
        by_stream[row.stream] = row.version
    stored = {(row.stream, row.version, row.position) for row in everything}
    assert len(race.acknowledged) > 200
    assert set(race.acknowledged) <= stored
    holes = everything[-1].position - len(everything)
    assert holes > 0  # the rollbacks left some, so there was something to wait for


def all_rows_of(log: Log) -> list[Row]:
    everything: list[Row] = []
    while page := log.read_all(everything[-1].position if everything else 0, Bounds(), limit=5_000):
        everything += page
    return everything


# --- one case at a time ------------------------------------------------------------------------


def test_an_open_append_below_a_committed_one_holds_the_reader_back(log: Log) -> None:
    first = add(log, "a/1")
    with log.engine.connect() as slow:
        hidden = append(log, "b/1", slow)
        seen = add(log, "c/1")
        assert seen.position > hidden.position
        with pytest.raises(LogStalledError) as caught:
            log.settled(0.1)
        assert caught.value.position == first.position
        slow.commit()
    assert log.settled(0) == seen.position
    assert [row.stream for row in all_rows(log)] == ["a/1", "b/1", "c/1"]


def test_a_reader_goes_on_as_soon_as_the_writer_has_ended(log: Log) -> None:
    for end in ("commit", "rollback"):
        with log.engine.connect() as slow, ThreadPoolExecutor(1) as thread:
            append(log, f"slow/{end}", slow)
            seen = add(log, "fast/1")
            waiting = thread.submit(log.settled, 30)
            time.sleep(0.1)
            assert not waiting.done()
            getattr(slow, end)()
            assert waiting.result(5) == seen.position
    assert [row.stream for row in all_rows(log)] == ["slow/commit", "fast/1", "fast/1"]


def test_writers_that_began_later_are_not_waited_for(log: Log) -> None:
    with (
        log.engine.connect() as first,
        log.engine.connect() as second,
        ThreadPoolExecutor(1) as thread,
    ):
        append(log, "a/1", first)
        seen = add(log, "b/1")
        waiting = thread.submit(log.settled, 30)
        time.sleep(0.1)
        append(log, "c/1", second)
        first.commit()
        assert waiting.result(5) == seen.position
        second.rollback()


def test_a_stalled_reader_says_who_it_waits_for_and_skips_nothing(
    log: Log, postgres_url: str
) -> None:
    add(log, "a/1", 3)
    with transaction_in(postgres_url, "slow importer") as slow:
        writer = pid(slow)
        append(log, "slow/1", slow)
        last = add(log, "b/1")
        began = time.monotonic()
        with pytest.raises(LogStalledError) as caught:
            log.settled(0.3)
        assert 0.3 <= time.monotonic() - began < 3
        error = caught.value
        (description,) = error.writers
        assert "slow importer" in description
        assert str(writer) in description
        assert [row.stream for row in all_rows(log, Bounds(position=error.position))] == ["a/1"] * 3
        slow.commit()
    assert log.settled(0.3) == last.position
    assert [row.stream for row in all_rows(log)][3:] == ["slow/1", "b/1"]


def test_an_open_transaction_without_an_append_is_not_waited_for(log: Log) -> None:
    with log.engine.connect() as idle:
        take_transaction_id(idle)
        append(log, "gone/1", idle)
        idle.rollback()
        take_transaction_id(idle)
        idle.execute(text("SELECT count(*) FROM eventstore_events"))
        last = add(log, "a/1")
        assert log.settled(0) == last.position


def test_a_writer_in_another_database_is_not_waited_for(
    log: Log, open_logs: OpenLogs, neighbour: str
) -> None:
    other = open_logs(neighbour)
    with transaction_in(neighbour) as elsewhere:
        append(other, "other/1", elsewhere)
        append(other, "other/2", elsewhere)
        with log.engine.connect() as gone:
            append(log, "gone/1", gone)
            gone.rollback()
        last = add(log, "a/1")
        assert last.position > 1  # behind a hole
        assert log.settled(0) == last.position


def test_a_long_gap_free_log_is_settled_by_a_reader_that_starts_afresh(
    log: Log, open_logs: OpenLogs, postgres_url: str
) -> None:
    last = add(log, "a/1", 2_500)
    fresh = open_logs(postgres_url)
    assert fresh.settled(0) == last.position
    assert fresh.settled(0) == last.position


# --- why the log asks for locks and not for snapshots --------------------------------------------


class Overtaken:
    """Transaction ids M < U < T. T draws a position, M the next one and commits; then U ends.

    A reader that meets the hole of T's position and notes pg_snapshot_xmax gets one above M's id
    and not above T's: xmax follows what has *completed*. When U ends, pg_snapshot_xmin passes what
    was noted, while T is still open. Waiting for xmin proves nothing about the hole.
    """

    def __init__(self, log: Log) -> None:
        self.m, self.u, self.t, self.reader = (log.engine.connect() for _ in range(4))
        self.reader = self.reader.execution_options(isolation_level="AUTOCOMMIT")
        take_transaction_id(self.m)
        take_transaction_id(self.u)
        self.hidden = append(log, "t/1", self.t)
        self.id = take_transaction_id(self.t)
        self.seen = append(log, "m/1", self.m)
        self.m.commit()
        self.noted = self.snapshot("xmax")
        self.u.commit()

    def snapshot(self, bound: str) -> int:
        query = text(f"SELECT pg_snapshot_{bound}(pg_current_snapshot())::text")
        return int(self.reader.scalar(query))

    def close(self) -> None:
        for connection in (self.m, self.u, self.t, self.reader):
            connection.close()


@pytest.fixture
def overtaken(log: Log) -> Iterator[Overtaken]:
    # Any other transaction of the cluster that completes meanwhile (a vacuum) hides the effect.
    log.settled(1)
    add(log, "a/1")
    for _ in range(10):
        case = Overtaken(log)
        if case.noted <= case.id:
            break
        case.close()
    yield case
    case.close()


def test_xmin_passes_the_noted_xmax_while_a_hole_below_is_open(overtaken: Overtaken) -> None:
    assert overtaken.seen.position == overtaken.hidden.position + 1
    assert overtaken.noted <= overtaken.id
    assert overtaken.snapshot("xmin") > overtaken.noted


def test_settled_waits_for_the_hole_that_xmin_would_pass(log: Log, overtaken: Overtaken) -> None:
    assert overtaken.snapshot("xmin") > overtaken.noted
    with pytest.raises(LogStalledError) as caught:
        log.settled(0.2)
    assert caught.value.position < overtaken.hidden.position
    overtaken.t.commit()
    assert log.settled(1) == overtaken.seen.position
    read = log.read_all(caught.value.position, Bounds(position=overtaken.seen.position), limit=9)
    assert [row.stream for row in read] == ["t/1", "m/1"]
