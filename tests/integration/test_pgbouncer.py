"""All of it works behind PgBouncer in transaction mode, where nothing of a session lasts."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor

import pytest

from eventstore import Event, EventStore, InvalidArgumentError
from eventstore.log.base import Bounds, Log, Receipt, Row, Write
from eventstore.log.opening import open_log
from eventstore.log.postgres import PostgresLog
from eventstore.testing import LogContract
from eventstore.testing.drafts import add, all_rows, drafts

OpenLogs = Callable[..., Log]

WRITERS = 8


class Noted(Event, name="pgbouncer-noted"):
    number: int


class TestThroughPgBouncer(LogContract):
    @pytest.fixture
    def log(self, pgbouncer_url: str) -> Iterator[Log]:
        log, close = open_log(pgbouncer_url)
        yield log
        log.close()
        close()


def test_no_statement_is_prepared(open_logs: OpenLogs, pgbouncer_url: str) -> None:
    log = open_logs(pgbouncer_url)
    for _ in range(10):
        add(log, "a/1")
        assert log.settled(5) == log.frontier().position
    assert isinstance(log, PostgresLog)
    seat = log.take()
    assert seat.raw.prepare_threshold is None
    assert seat.raw.execute("SELECT count(*) FROM pg_prepared_statements").fetchone() == (0,)
    log.give(seat)


def test_directly_they_are(open_logs: OpenLogs, postgres_url: str) -> None:
    log = open_logs(postgres_url)
    assert isinstance(log, PostgresLog)
    seat = log.take()
    assert seat.raw.prepare_threshold is not None
    log.give(seat)


def test_relaxed_durability_is_refused_with_the_way_to_have_it(
    pgbouncer_url: str, postgres_url: str
) -> None:
    with pytest.raises(InvalidArgumentError, match="ALTER DATABASE") as caught:
        EventStore(pgbouncer_url, durability="relaxed")
    assert caught.value.argument == "durability"
    with EventStore(postgres_url, durability="relaxed") as store:
        store.append("a/1", Noted(number=1))


def test_there_is_nothing_to_listen_to_so_readers_poll_more_often(
    open_logs: OpenLogs, pgbouncer_url: str
) -> None:
    log = open_logs(pgbouncer_url, notify=True)
    with log.watching():
        assert log.poll_interval < 0.1
        add(log, "a/1")
        assert log.poll_interval < 0.1


def test_a_subscription_goes_on_by_polling(pgbouncer_url: str) -> None:
    with EventStore(pgbouncer_url) as reader, EventStore(pgbouncer_url, notify=False) as writer:
        writer.append("a/1", Noted(number=0))
        with reader.subscribe() as subscription:
            for number, record in enumerate(subscription):
                assert record.event == Noted(number=number)
                if number == 20:
                    break
                writer.append("a/1", Noted(number=number + 1))


def test_readers_miss_nothing_while_transactions_race(
    open_logs: OpenLogs, pgbouncer_url: str
) -> None:
    log = open_logs(pgbouncer_url)
    readers = [open_logs(pgbouncer_url) for _ in range(2)]
    acknowledged: list[Receipt] = []

    def write(seed: int) -> None:
        chance = random.Random(seed)
        for number in range(60):
            names = chance.sample([f"hot/{n}" for n in range(6)], chance.choice((1, 1, 2)))
            writes = [Write(name, drafts(chance.randint(1, 3))) for name in names]
            if number % 6:
                acknowledged.extend(log.append(writes))
                continue
            with log.engine.connect() as connection:
                receipts = log.append(writes, connection=connection)
                if chance.random() < 0.5:
                    connection.rollback()
                    continue
                connection.commit()
            acknowledged.extend(receipts)

    def follow(reader: Log, done: Callable[[], bool]) -> list[Row]:
        read: list[Row] = []
        while True:
            finished = done()
            until = Bounds(position=reader.settled(30) if finished else reader.frontier().position)
            while page := reader.read_all(read[-1].position if read else 0, until, limit=100):
                read += page
            if finished:
                return read

    with ThreadPoolExecutor(WRITERS + len(readers)) as threads:
        writing = [threads.submit(write, seed) for seed in range(WRITERS)]

        def done() -> bool:
            return all(writer.done() for writer in writing)

        reading = [threads.submit(follow, reader, done) for reader in readers]
        for writer in writing:
            writer.result()
        results = [reader.result() for reader in reading]
    everything = all_rows(log)
    assert results == [everything] * len(readers)
    stored = {(row.stream, row.version, row.position) for row in everything}
    assert {(r.stream, r.version, r.position) for r in acknowledged} <= stored
