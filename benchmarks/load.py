"""Loading: aggregates of several lengths, a command on one, and the state at a past time.

python benchmarks/load.py           # QUICK=1 for a first look
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack
from datetime import UTC, datetime, timedelta
from functools import partial
from itertools import islice
from typing import Any, Final

import contenders
import harness
import raw
from harness import Result, Run, Workload
from workload import Account, WatchedAccount, deposited, opened

from eventstore import EventStore, Write

#: The lengths of the aggregates, how often one run loads each, and what is aimed at.
LENGTHS: Final = ((10, 600, 0.70), (100, 200, 0.85), (1_000, 30, 0.85), (10_000, 3, 0.90))
COMMANDS: Final = 300
DAWN: Final = datetime(2024, 1, 1, tzinfo=UTC)


def main() -> None:
    print(harness.machine())
    results = []
    with harness.folder() as folder, ExitStack() as stack:
        hand, store = contenders.sqlite(folder, "relaxed", stack)
        cached = stack.enter_context(
            EventStore(
                f"sqlite:///{folder / 'ours-relaxed.db'}", durability="relaxed", cache=10_000
            )
        )
        peers = [contenders.sqlite_peer(folder, "relaxed", stack)]
        emmett = contenders.emmett("sqlite", str(folder / "emmett.db"), stack)
        results += workloads("SQLite NORMAL", hand, hand.load, (store, cached), peers, emmett)
    with harness.folder() as folder, harness.postgres() as new_database, ExitStack() as stack:
        pg_hand, store = contenders.postgres(new_database, stack)
        cached = stack.enter_context(EventStore(store.engine.url, cache=10_000))
        peers = [contenders.postgres_peer(new_database, stack), contenders.umadb(folder, stack)]
        emmett = contenders.emmett("postgres", new_database(), stack)
        results += workloads("PostgreSQL", pg_hand, pg_hand.stream, (store, cached), peers, emmett)
    harness.report("Aggregates loaded (events a second; commands; states)", results)


def workloads(
    database: str,
    hand: raw.Sqlite | raw.Postgres,
    load_long: Callable[[str], raw.Account],
    stores: tuple[EventStore, EventStore],
    peers: list[Any],
    emmett: Any,
) -> list[Result]:
    """All of this file on one database; `load_long` is the better way for 10,000 events.

    `stores` are of one database, the second one with a cache.
    """
    peers = [peer for peer in peers if peer is not None]
    return [
        *(lengths(database, hand, load_long, stores[0], peers, emmett, *each) for each in LENGTHS),
        commands(database, hand, stores[0], peers, emmett),
        commands(f"{database}, cached", hand, stores[1], [], None),
        past(database, stores[0]),
    ]


def lengths(
    database: str,
    hand: raw.Sqlite | raw.Postgres,
    load_long: Callable[[str], raw.Account],
    store: EventStore,
    peers: list[Any],
    emmett: Any,
    length: int,
    times: int,
    goal: float,
) -> Result:
    """One aggregate of so many events, so many times."""
    times = harness.sized(times)
    few = max(1, times // 5)
    id = f"of-{length}"
    fill_by_hand(hand, [id], length)
    fill(store, [id], length)
    load = load_long if length == 10_000 else hand.load
    runs = {
        "raw": loading(load, id, times),
        "ours": loading(partial(store.load, Account), id, times),
    }
    sizes = {}
    for peer in peers:
        runs[peer.name] = loading(peer.load, peer.fill(1, length)[0], few)
        sizes[peer.name] = few * length
    if emmett is not None:
        runs[emmett.name] = partial(emmett.load, emmett.fill(1, length) * few)
        sizes[emmett.name] = few * length
    ahead = {"eventsourcing": 3.0} if "eventsourcing" in runs else {}
    name = f"{database}, load {length:,} events"
    return harness.measure(Workload(name, times * length, runs, goal, ahead, sizes))


def commands(
    database: str, hand: raw.Sqlite | raw.Postgres, store: EventStore, peers: list[Any], emmett: Any
) -> Result:
    """Load an aggregate of 20 events, one command, save: each on an aggregate not used before.

    A store with a cache has loaded each once.
    """
    size = harness.sized(COMMANDS)
    few = max(1, size // 5)
    ids = [f"{database}-{number}" for number in range(size * (harness.ROUNDS + 1))]
    fill_by_hand(hand, ids, 20)
    fill(store, ids, 20)
    runs = {
        "raw": commanding(hand.load, hand.save, iter(ids), size),
        "ours": transacting(store, iter(ids), size),
    }
    goal = 0.80
    if store._cache is not None:
        goal = 1.5
        others = [f"{id}-kept" for id in ids]
        fill_by_hand(hand, others, 20)
        kept = {id: hand.load(id) for id in others}
        runs["raw, kept"] = commanding(kept.__getitem__, hand.save, iter(others), size)
        for id in ids:
            store.load(Account, id)
    sizes = {}
    total = few * (harness.ROUNDS + 1)
    for peer in peers:
        runs[peer.name] = commanding(peer.load, peer.save, iter(peer.fill(total, 20)), few)
        sizes[peer.name] = few
    if emmett is not None:
        streams = iter(emmett.fill(total, 20))
        runs[emmett.name] = lambda: emmett.load(list(islice(streams, few)), command=True)
        sizes[emmett.name] = few
    ahead = dict.fromkeys(sizes, 1.0)
    return harness.measure(
        Workload(f"{database}, load 20, command, save", size, runs, goal, ahead, sizes)
    )


def past(database: str, store: EventStore) -> Result:
    """The state at moments around the middle of 10,000 events: with snapshots, and without."""
    moments = [DAWN + timedelta(seconds=490 + number) for number in range(20)]
    for cls in (Account, WatchedAccount):
        account = cls("past")
        account.open()
        for second in range(1, 1_001):
            for _ in range(10 if second > 1 else 9):
                account.deposit(1)
            store.save(account, recorded_at=DAWN + timedelta(seconds=second))
    watched = loading_at(partial(store.load, WatchedAccount, "past"), moments)
    replayed = loading_at(partial(store.load, Account, "past"), moments)
    name = f"{database}, a past state of 10,000"
    size = len(moments)
    runs = {"full replay": replayed, "ours": watched}
    return harness.measure(Workload(f"{name}, snapshots", size, runs, 20.0))


# --- runs --------------------------------------------------------------------------------------


def loading(load: Callable[[Any], Any], id: Any, times: int) -> Run:
    def run() -> None:
        for _ in range(times):
            load(id)

    return run


def loading_at(load: Callable[..., Any], moments: list[datetime]) -> Run:
    def run() -> None:
        for moment in moments:
            load(at=moment)

    return run


def commanding(
    load: Callable[[Any], Any], save: Callable[[Any], object], ids: Iterator[Any], times: int
) -> Run:
    def run() -> None:
        for id in islice(ids, times):
            account = load(id)
            account.deposit(1)
            save(account)

    return run


def transacting(store: EventStore, ids: Iterator[str], times: int) -> Run:
    def run() -> None:
        for id in islice(ids, times):
            store.transact(Account, id, Account.deposit, 1)

    return run


def fill(store: EventStore, ids: list[str], length: int) -> None:
    """Streams of one length: the account is opened, then deposits."""
    events = [opened(), *(deposited(1) for _ in range(length - 1))]
    for start in range(0, len(ids), 100):
        store.append_all(Write(f"account/{id}", events) for id in ids[start : start + 100])


def fill_by_hand(hand: raw.Sqlite | raw.Postgres, ids: list[str], length: int) -> None:
    for id in ids:
        account = raw.Account(id)
        account.open()
        for _ in range(length - 1):
            account.deposit(1)
        hand.save(account)


if __name__ == "__main__":
    main()
