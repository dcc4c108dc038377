"""Hints between processes on PostgreSQL: few from who is busy, and enough for who listens."""

from __future__ import annotations

import time
from collections.abc import Callable

import psycopg

from eventstore import EventStore
from eventstore.log.notifying import CHANNEL, LONGEST, Notifier


def test_a_busy_process_announces_ever_longer_rests(postgres_url: str) -> None:
    with (
        psycopg.connect(postgres_url, autocommit=True) as listener,
        EventStore(postgres_url, notify=False) as store,
    ):
        listener.execute(f"LISTEN {CHANNEL}")
        notifier = Notifier(store.engine)
        announced: list[str] = []

        def at_the_longest() -> bool:
            for _ in range(10):
                notifier.nudge()
            announced.extend(n.payload for n in [*listener.notifies(timeout=0.001)])
            return bool(announced) and announced[-1] == f"{LONGEST * 1000:.0f}"

        try:
            eventually(at_the_longest)
        finally:
            notifier.close()
        rests = [int(text or 0) for text in announced]
        assert rests == sorted(rests)


def test_a_process_that_appends_now_and_then_announces_nothing(postgres_url: str) -> None:
    with (
        psycopg.connect(postgres_url, autocommit=True) as listener,
        EventStore(postgres_url, notify=False) as store,
    ):
        listener.execute(f"LISTEN {CHANNEL}")
        notifier = Notifier(store.engine)
        try:
            for _ in range(5):
                notifier.nudge()
                assert [n.payload for n in [*listener.notifies(timeout=20, stop_after=1)]] == [""]
        finally:
            notifier.close()


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


def eventually(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 20
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.01)
