"""Growth: what an append and a load cost in a log of 10,000 events and in one of ten million.

    python benchmarks/growth.py         # QUICK=1 for a first look

And what a past state costs, of a stream of a thousand events and of one of a hundred thousand, with
snapshots each 100 events. GROWTH=1000000 in the environment makes the largest log another one.
All sizes stand side by side and take turns.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from datetime import UTC, datetime, timedelta
from math import log
from pathlib import Path
from random import Random
from statistics import median
from typing import Final

import harness
import msgspec
from harness import Curve, Result, Run, Workload, emit, spread
from sqlalchemy import text
from workload import Account, WatchedAccount, deposited

from eventstore import EventStore

LARGEST: Final = int(os.environ.get("GROWTH", "100000" if harness.QUICK else "10000000"))
SIZES: Final = sorted({size for size in (10_000, 100_000, 1_000_000) if size < LARGEST} | {LARGEST})
#: Aggregates whose events the database holds in memory, which is what makes them busy. Those of any
#: one are on a page each, as a log in which streams take turns has them, and are fetched.
BUSY: Final = 3
#: Events a stream, where the logs differ in how many streams they have.
LENGTH: Final = 100
STREAMS: Final = (1_000, 10_000) if harness.QUICK else (1_000, 10_000, 100_000)
TIMES: Final = harness.sized(100)
ROUNDS: Final = harness.ROUNDS
DAWN: Final = datetime(2024, 1, 1, tzinfo=UTC)


def main() -> None:
    print(harness.machine(ROUNDS))
    results = []
    with harness.folder() as folder, ExitStack() as stack:
        results += growing("SQLite NORMAL", lambda: sqlite(folder, stack))
    with harness.postgres() as new_database, ExitStack() as stack:
        results += growing("PostgreSQL", lambda: postgres(new_database, stack))
    harness.report(f"The largest log ({LARGEST:,} events) to the smallest", results)


def sqlite(folder: Path, opened: ExitStack) -> EventStore:
    path = folder / f"{len(list(folder.iterdir()))}.db"
    return opened.enter_context(EventStore(f"sqlite:///{path}", durability="relaxed"))


def postgres(new_database: Callable[[], str], opened: ExitStack) -> EventStore:
    return opened.enter_context(EventStore(new_database(), migrate=True))


def growing(database: str, new: Callable[[], EventStore]) -> list[Result]:
    """Logs of all sizes, and long streams in one more."""
    stores = {size: new() for size in SIZES}
    for size, store in stores.items():
        fill(store, size // LENGTH)
    appends = {f"{size:,}": appending(store, size) for size, store in stores.items()}
    busy = {f"{size:,}": loading(store, BUSY) for size, store in stores.items()}
    any_ = {f"{size:,}": loading(store, size // LENGTH) for size, store in stores.items()}
    load = f"{database}, load {LENGTH} events"
    results = [
        measured("append", f"{database}, append one event", appends, 0.90),
        measured("load", f"{load} of a busy aggregate", busy, 0.90),
        measured("load", f"{load} of any aggregate", any_, None),
    ]
    pasts(database, new())
    return results


def measured(plot: str, name: str, runs: dict[str, Run], goal: float | None) -> Result:
    """Of the largest size to the smallest: level is 1.00. The plot has all sizes."""
    last = list(runs)[-1]
    ordered = {n: runs[n] for n in (next(iter(runs)), last, *runs)}
    result = harness.measure(Workload(name, TIMES, ordered, goal, rounds=ROUNDS))
    costs = [min(result.seconds[n]) / TIMES * 1e6 for n in runs]  # of the fastest rounds
    emit(Curve(f"growth-{plot}", name, "events in the log", "microseconds", list(SIZES), costs))
    # The sizes between are for the plot only.
    shown = {n: result.seconds[n] for n in (next(iter(runs)), last)}
    workload = Workload(name, TIMES, {n: runs[n] for n in shown}, goal, rounds=ROUNDS)
    return Result(workload, shown)


def appending(store: EventStore, size: int) -> Run:
    """Saves of aggregates all over the log, one event each."""
    numbers = Random(1).sample(range(1, size // LENGTH + 1), min(size // LENGTH, TIMES))
    accounts = [store.load(Account, f"f-{number}") for number in numbers]

    def run() -> None:
        for number in range(TIMES):
            account = accounts[number % len(accounts)]
            account.deposit(1)
            store.save(account)

    return run


def loading(store: EventStore, streams: int) -> Run:
    """Loads of so many aggregates, in no order."""
    random = Random(2)

    def run() -> None:
        for _ in range(TIMES):
            store.load(Account, f"f-{random.randrange(streams) + 1}", version=LENGTH)

    return run


def fill(store: EventStore, streams: int) -> None:
    """So many streams of LENGTH deposits, side by side, made by the database itself."""
    store.append("account/first", deposited(1))
    payload = msgspec.json.encode(deposited(1))
    numbers = _numbers(store)
    with store.engine.begin() as db:
        db.execute(
            text(
                "INSERT INTO eventstore_streams (name, category, version, recorded_at, deleted) "
                f"SELECT 'account/f-' || n, 'account', :length, 0, false FROM ({numbers}) numbers"
            ),
            {"most": streams, "length": LENGTH},
        )
        db.execute(
            text(
                "INSERT INTO eventstore_events "
                "(stream_id, version, type_id, recorded_at, id, data) "
                f"SELECT s.id, n, (SELECT min(id) FROM eventstore_types), 0, :id, :data "
                f"FROM ({numbers}) numbers, eventstore_streams s "
                "WHERE s.name LIKE 'account/f-%' ORDER BY n, s.id"
            ),
            {"most": LENGTH, "id": bytes(16), "data": payload},
        )
    with store.engine.connect().execution_options(isolation_level="AUTOCOMMIT") as db:
        if store.engine.name == "postgresql":
            db.execute(text("VACUUM ANALYZE"))
            db.execute(text("CHECKPOINT"))
        else:
            db.execute(text("PRAGMA wal_checkpoint(TRUNCATE)"))


def _numbers(store: EventStore) -> str:
    if store.engine.name == "postgresql":
        return "SELECT generate_series(1, :most) AS n"
    return (
        "WITH RECURSIVE counted(n) AS "
        "(SELECT 1 UNION ALL SELECT n + 1 FROM counted WHERE n < :most) SELECT n FROM counted"
    )


def pasts(database: str, store: EventStore) -> None:
    """States at moments all over streams of several lengths."""
    name = f"{database}, a past state"
    runs: dict[str, Run] = {}
    for length in STREAMS:
        account = WatchedAccount(f"past-{length}")
        account.open()
        for second in range(length // 100):
            for _ in range(100 if second else 99):
                account.deposit(1)
            store.save(account, recorded_at=DAWN + timedelta(seconds=second))
        runs[f"{length:,}"] = looking_back(store, account.id, length // 100)
    result = harness.measure(Workload(name, TIMES, runs, rounds=ROUNDS))
    first, *_, last = runs
    emit(
        spread(
            f"{name}: a stream of {last} events to one of {first}",
            _times(result.seconds[last], result.seconds[first]),
            "times the cost",
            best=min(result.seconds[last]) / min(result.seconds[first]),
            goal=round(log(STREAMS[-1]) / log(STREAMS[0]), 2),
            at_most=True,
            baseline=f"{median(result.seconds[first]) / TIMES * 1e6:,.0f} us",
            ours=f"{median(result.seconds[last]) / TIMES * 1e6:,.0f} us",
        ),
        Curve(
            "growth-past",
            name,
            "events in the stream",
            "microseconds",
            list(STREAMS),
            [min(result.seconds[n]) / TIMES * 1e6 for n in runs],
        ),
    )
    cost = [f"{median(result.seconds[n]) / TIMES * 1e6:,.0f} us" for n in runs]
    harness.print_table([["events in the stream", *runs], [name, *cost]])


def _times(seconds: Sequence[float], to: Sequence[float]) -> list[float]:
    return [own / others for own, others in zip(seconds, to, strict=True)]


def looking_back(store: EventStore, id: str, seconds: int) -> Run:
    random = Random(3)

    def run() -> None:
        for _ in range(TIMES):
            moment = DAWN + timedelta(seconds=random.randrange(seconds) + 0.5)
            store.load(WatchedAccount, id, at=moment)

    return run


if __name__ == "__main__":
    main()
