"""Rebuilding a read model: a row an account, with its owner, balance and number of entries.

    python benchmarks/projection.py     # QUICK=1 for a first look

By hand and ours read one log, in which the accounts' events are mixed; the peers have the same
events in their own. All write to the database of the log, with full durability. By hand there are
two: with transactions of 5,000 events, and with as many as ours. What has a statement for every
event is slow, and gets fewer accounts of the same length; so does the peer by page.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import ExitStack, closing
from pathlib import Path
from typing import Any, Final

import contenders
import harness
import raw_projection
from harness import Result, Run, Workload
from read_models import Balances, ExecutedBalances
from sqlalchemy import Table, func, select
from workload import turns, visit

from eventstore import EventStore, Write

LENGTH: Final = 100
ACCOUNTS: Final = 1_000 if harness.QUICK else 10_000
SOME: Final = 100 if harness.QUICK else 1_000
FEW: Final = 5 if harness.QUICK else 20
ROUNDS: Final = 1 if harness.QUICK else 7

Sums = tuple[int, int, int]


def main() -> None:
    print(harness.machine(ROUNDS))
    results = []
    with harness.folder() as folder, ExitStack() as stack:
        results.append(sqlite(folder, stack))
    with harness.postgres() as new_database, ExitStack() as stack:
        results.append(postgres(new_database, stack))
    print(
        f"By hand and ours: {ACCOUNTS * LENGTH:,} events; by page: {SOME * LENGTH:,}; "
        f"a transaction an event: {FEW * LENGTH:,}"
    )
    harness.report("Read models rebuilt (events a second)", results)


def sqlite(folder: Path, opened: ExitStack) -> Result:
    """WAL mode, synchronous=FULL for all."""
    path, other = folder / "log.db", folder / "few.db"
    stores = [opened.enter_context(EventStore(f"sqlite:///{file}")) for file in (path, other)]
    hand = opened.enter_context(closing(raw_projection.Sqlite(str(path))))
    peer = contenders.sqlite_read_models(folder, opened)
    emmett = contenders.emmett("sqlite", str(folder / "emmett.db"), opened)
    return rebuilds("SQLite FULL", hand, stores, peer, emmett, times=2.5)


def postgres(new_database: Callable[[], str], opened: ExitStack) -> Result:
    """One server, its defaults for all."""
    urls = new_database(), new_database()
    stores = [opened.enter_context(EventStore(url, migrate=True)) for url in urls]
    hand = opened.enter_context(closing(raw_projection.Postgres(urls[0])))
    peer = contenders.postgres_read_models(new_database, opened)
    emmett = contenders.emmett("postgres", new_database(), opened)
    return rebuilds("PostgreSQL", hand, stores, peer, emmett, times=1.5)


def rebuilds(
    database: str,
    hand: raw_projection.Sqlite | raw_projection.Postgres,
    stores: list[EventStore],
    peer: Any,
    emmett: Any,
    *,
    times: float,
) -> Result:
    """`stores` are of all accounts and of few; `peer` is a pair of read models, of some and of few.

    Ours is to be so many `times` as fast as a peer.
    """
    store, other = stores
    ahead: dict[str, float] = {}
    fill(store, ACCOUNTS)
    fill(other, FEW)
    many, some, few = ACCOUNTS * LENGTH, SOME * LENGTH, FEW * LENGTH
    runs: dict[str, tuple[Run, Callable[[], Sums], int]] = {
        "raw": (hand.rebuild, hand.rows, many),
        "ours": (lambda: store.rebuild(Balances), sums_of(store, Balances.accounts), many),
        "raw, large batches": (lambda: hand.rebuild(raw_projection.LARGE), hand.rows, many),
        "ours, executing": (
            lambda: other.rebuild(ExecutedBalances),
            sums_of(other, ExecutedBalances.accounts),
            few,
        ),
    }
    if peer is not None:
        by_page, by_event = peer
        by_page.fill_in_turns(SOME, LENGTH)
        by_event.fill_in_turns(FEW, LENGTH)
        runs[by_event.name] = (by_event.rebuild, by_event.rows, few)
        runs[f"{by_page.name}, by page"] = (by_page.rebuild_by_page, by_page.rows, some)
        ahead = dict.fromkeys((by_event.name, f"{by_page.name}, by page"), times)
    if emmett is not None:
        emmett.fill_in_turns(FEW, LENGTH)
        runs[emmett.name] = (emmett.rebuild, emmett.rows, few)
        ahead[emmett.name] = times
    check(runs)
    return harness.measure(
        Workload(
            f"{database}, a read model rebuilt",
            many,
            {name: run for name, (run, _, _) in runs.items()},
            goal=0.80,
            ahead=ahead,
            sizes={name: size for name, (_, _, size) in runs.items()},
            rounds=ROUNDS,
        )
    )


def fill(store: EventStore, accounts: int) -> None:
    for version, numbers in turns(accounts, LENGTH):
        for start in range(0, accounts, 500):
            some = numbers[start : start + 500]
            store.append_all(Write(f"account/{number}", visit(version)) for number in some)


def sums_of(store: EventStore, table: Table) -> Callable[[], Sums]:
    columns = func.count(), func.sum(table.c.balance), func.sum(table.c.entries)

    def sums() -> Sums:
        with store.connect() as db:
            count, balance, entries = db.execute(select(*columns).select_from(table)).one()
        return count, int(balance), int(entries)

    return sums


def check(runs: Mapping[str, tuple[Run, Callable[[], Sums], int]]) -> None:
    """Each makes the right read model, and makes it again."""
    for name, (run, sums, size) in runs.items():
        accounts = size // LENGTH
        expected = accounts, size - accounts, size - accounts
        for _ in range(2):
            run()
            if sums() != expected:
                raise AssertionError(f"{name} made {sums()}, not {expected}")


if __name__ == "__main__":
    main()
