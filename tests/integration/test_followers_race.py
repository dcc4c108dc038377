"""Live followers of PostgreSQL's log miss nothing, whatever the writers do at the same time."""

from __future__ import annotations

import contextlib
import random
import threading
import time
from concurrent.futures import ThreadPoolExecutor

from sqlalchemy import text

from eventstore import Event, EventStore, Receipt, Subscription, Write

SECONDS = 4.0
WRITERS = 8
HOT = [f"hot/{number}" for number in range(6)]

Place = tuple[str, int, int]


class Raced(Event, name="followers-raced"):
    pass


class Race:
    """Writers until the time is up."""

    def __init__(self, store: EventStore) -> None:
        self.store = store
        self.acknowledged: list[Place] = []
        self.deadline = time.monotonic() + SECONDS

    def note(self, receipts: tuple[Receipt, ...]) -> None:
        self.acknowledged += [(r.stream, r.version, r.position) for r in receipts]

    def writing(self) -> bool:
        return time.monotonic() < self.deadline

    def normal(self, seed: int) -> None:
        chance = random.Random(seed)
        while self.writing():
            streams = chance.sample(HOT, chance.choice((1, 1, 1, 2)))
            events = [Raced() for _ in range(chance.randint(1, 3))]
            self.note(self.store.append_all([Write(stream, events) for stream in streams]))

    def joined(self, *, early: float = 0, late: float = 0, rollback: bool = False) -> None:
        """Transactions that linger before they append, with an id, or after they did."""
        while self.writing():
            with self.store.connect() as connection:
                if early:
                    connection.execute(text("SELECT pg_current_xact_id()"))
                    time.sleep(early)
                writes = [Write(stream, [Raced(), Raced()]) for stream in ("slow/1", "hot/0")]
                receipts = self.store.append_all(writes, connection=connection)
                time.sleep(late)
                if rollback:
                    connection.rollback()
                    continue
                connection.commit()
            self.note(receipts)
            time.sleep(0.02)


def follow(subscription: Subscription) -> list[Place]:
    return [(record.stream, record.version, record.position) for record in subscription]


def test_live_followers_miss_nothing_while_transactions_race(
    postgres_url: str, pgbouncer_url: str
) -> None:
    with contextlib.ExitStack() as stack:
        threads = stack.enter_context(ThreadPoolExecutor(WRITERS + 6))
        store = stack.enter_context(EventStore(postgres_url))
        # In the writers' process, in another one as it were, and by polling.
        stores = [
            store,
            stack.enter_context(EventStore(postgres_url)),
            stack.enter_context(EventStore(pgbouncer_url)),
        ]
        subscriptions = [stack.enter_context(each.subscribe()) for each in stores]
        following = [threads.submit(follow, subscription) for subscription in subscriptions]
        race = Race(store)
        writing = [threads.submit(race.normal, seed) for seed in range(WRITERS)]
        writing += [
            threads.submit(race.joined, late=0.2),
            threads.submit(race.joined, late=0.15, rollback=True),
            threads.submit(race.joined, early=0.1, late=0.02),
        ]
        guard = threading.Timer(60, lambda: [each.stop() for each in subscriptions])
        guard.start()
        stack.callback(guard.join)
        stack.callback(guard.cancel)
        for writer in writing:
            writer.result()
        head = store.head()
        for subscription, follower in zip(subscriptions, following, strict=True):
            while subscription.position < head and not follower.done():
                time.sleep(0.001)
            subscription.stop()
        results = [follower.result() for follower in following]
        everything = [(r.stream, r.version, r.position) for r in store.read_all()]
    for read in results:
        assert read == everything  # none missed, none twice, in the order of positions
    by_stream: dict[str, int] = {}
    for stream, version, _ in everything:
        assert version == by_stream.get(stream, 0) + 1
        by_stream[stream] = version
    assert len(race.acknowledged) > 200
    assert set(race.acknowledged) <= set(everything)
    assert len(everything) < head  # rollbacks left holes, so there was something to wait for
