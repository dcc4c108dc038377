"""The frontier of PostgreSQL's log: it never waits, never skips, and always gets on."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from sqlalchemy import Connection, text

from eventstore.log.base import Log, Receipt, Write
from eventstore.log.frontier import Barrier
from eventstore.testing.drafts import add, drafts

OpenLogs = Callable[..., Log]


@pytest.fixture
def log(open_logs: OpenLogs, postgres_url: str) -> Log:
    return open_logs(postgres_url)


def append(log: Log, stream: str, connection: Connection) -> Receipt:
    return log.append([Write(stream, drafts())], connection=connection)[0]


def test_an_open_append_holds_the_frontier_back_and_is_named(log: Log) -> None:
    first = add(log, "a/1")
    with log.engine.connect() as slow:
        slow.execute(text("SET application_name = 'slow importer'"))
        append(log, "slow/1", slow)
        last = add(log, "a/1")
        frontier = log.frontier()
        assert frontier.position == first.position
        (words,) = log.describe(frontier.writers)
        assert "slow importer" in words
        assert log.frontier() == frontier
        slow.commit()
    assert log.frontier() == (last.position, ())


def test_an_open_append_with_nothing_beyond_it_is_not_known(log: Log) -> None:
    first = add(log, "a/1")
    with log.engine.connect() as slow:
        append(log, "slow/1", slow)
        assert log.frontier() == (first.position, ())


def test_the_frontier_gets_on_though_somebody_always_writes(log: Log) -> None:
    add(log, "a/1")
    reached = [log.frontier().position]
    holder = log.engine.connect()
    append(log, "slow/1", holder)
    for _ in range(5):
        last = add(log, "a/1")
        assert log.frontier().position == reached[-1]
        successor = log.engine.connect()
        append(log, f"slow/{last.position}", successor)
        holder.commit()
        holder.close()
        holder = successor
        reached.append(log.frontier().position)
        assert reached[-1] >= last.position
    holder.close()


def test_settled_covers_what_came_after_a_pending_barrier(log: Log) -> None:
    with log.engine.connect() as first, log.engine.connect() as second:
        append(log, "slow/1", first)
        add(log, "a/1")
        assert log.frontier().writers  # the barrier that is kept
        append(log, "slow/2", second)
        last = add(log, "a/1")
        first.commit()
        second.commit()
    assert log.settled(0) == last.position


def test_a_transaction_does_not_wait_for_itself(log: Log) -> None:
    with log.engine.connect() as gone:
        append(log, "gone/1", gone)
    with log.engine.connect() as own:
        receipt = append(log, "a/1", own)
        assert log.settled(0, connection=own) == receipt.position
        assert log.frontier().position == 0
        own.commit()
    assert log.frontier().position == receipt.position


def test_a_barrier_waits_for_a_writer_that_was_prepared_meanwhile() -> None:
    barrier = Barrier(7, frozenset({"3/15 100", "4/2 200"}))
    left = barrier.left({"3/15 100", "9/9 300"})
    assert left == Barrier(7, frozenset({"3/15 100"}))
    left = left.left({"-1/753 0", "9/9 300"})
    assert left == Barrier(7, frozenset({"-1/753 0"}))
    assert left.left({"-1/754 0"}) == Barrier(7, frozenset())  # another one, later
