"""Hints between processes on PostgreSQL: few from who is busy, and enough for who listens."""

from __future__ import annotations

from collections.abc import Iterator

import psycopg
import pytest
from waiting import eventually

from eventstore import EventStore
from eventstore.log.notifying import CHANNEL, LONGEST, Notifier


@pytest.fixture
def listener(postgres_url: str) -> Iterator[psycopg.Connection]:
    with psycopg.connect(postgres_url, autocommit=True) as connection:
        connection.execute(f"LISTEN {CHANNEL}")
        yield connection


@pytest.fixture
def notifier(postgres_url: str) -> Iterator[Notifier]:
    with EventStore(postgres_url, notify=False) as store:
        notifier = Notifier(store.engine)
        yield notifier
        notifier.close()


def test_a_busy_process_announces_ever_longer_rests(
    listener: psycopg.Connection, notifier: Notifier
) -> None:
    announced: list[str] = []

    def at_the_longest() -> bool:
        for _ in range(10):
            notifier.nudge()
        announced.extend(n.payload for n in [*listener.notifies(timeout=0.001)])
        return bool(announced) and announced[-1] == f"{LONGEST * 1000:.0f}"

    eventually(at_the_longest)
    rests = [int(text or 0) for text in announced]
    assert rests == sorted(rests)


def test_a_process_that_appends_now_and_then_announces_nothing(
    listener: psycopg.Connection, notifier: Notifier
) -> None:
    for _ in range(5):
        notifier.nudge()
        assert [n.payload for n in [*listener.notifies(timeout=20, stop_after=1)]] == [""]


def test_who_listens_looks_by_itself_as_long_as_a_busy_process_rests(postgres_url: str) -> None:
    with (
        psycopg.connect(postgres_url, autocommit=True) as other,
        EventStore(postgres_url, notify=False) as store,
        store.log.watching(),
    ):
        signal = store.log.signal
        # A notification that comes before it listens is lost: until one has come, then.
        before = signal.count

        def looked() -> bool:
            other.execute("SELECT pg_notify(%s, '60')", (CHANNEL,))
            return signal.count > before + 5

        eventually(looked)

        def calm() -> bool:
            seen = signal.count
            return signal.wait(seen, 0.3) == seen

        eventually(calm)
