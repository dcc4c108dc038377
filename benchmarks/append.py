"""Appending: an aggregate that was loaded records new events and is saved, over and over.

    python benchmarks/append.py         # QUICK=1 for a first look

One commit a save. Every contender has a database of its own, of one kind and one durability.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import contenders
import harness
import raw
from harness import Result, Run, Workload
from workload import Account

from eventstore import EventStore
from eventstore.log.opening import Durability


def main() -> None:
    print(harness.machine())
    results = []
    with harness.folder() as folder:
        results += sqlite(folder, "full", goals=(0.85, 0.90))
        results += sqlite(folder, "relaxed", goals=(0.80, None))
    with harness.postgres() as new_database:
        results += postgres(new_database)
    harness.report("Events appended", results)


def sqlite(folder: Path, durability: Durability, goals: tuple[float, float | None]) -> list[Result]:
    """In one file each, WAL mode, synchronous=FULL or NORMAL for all."""
    synchronous = "FULL" if durability == "full" else "NORMAL"
    with ExitStack() as opened:
        hand, store = contenders.sqlite(folder, durability, opened)
        peer = contenders.sqlite_peer(folder, durability, opened)
        one, many = (300, 10) if durability == "full" else (1_000, 15)
        return appends(f"SQLite {synchronous}", hand, store, peer, one, many, goals)


def postgres(new_database: Callable[[], str]) -> list[Result]:
    """In one database each, on one server."""
    with ExitStack() as opened:
        hand, store = contenders.postgres(new_database, opened)
        peer = contenders.postgres_peer(new_database, opened)
        return appends("PostgreSQL", hand, store, peer, 200, 8, (0.90, 0.90))


def appends(
    database: str,
    hand: raw.Sqlite | raw.Postgres,
    store: EventStore,
    peer: Any,
    one: int,
    many: int,
    goals: tuple[float, float | None],
) -> list[Result]:
    """So many commits of one event, and so many of 100."""
    results = []
    for (events, commits), goal in zip(((1, one), (100, many)), goals, strict=True):
        commits = harness.sized(commits)
        accounts: dict[str, tuple[Any, Callable[[Any], object]]] = {
            "raw": (raw.Account(f"of-{events}"), hand.save),
            "ours": (Account(f"of-{events}"), store.save),
        }
        if peer is not None:
            accounts[peer.name] = (peer.new(), peer.save)
        runs = {
            name: appending(account, save, commits, events)
            for name, (account, save) in accounts.items()
        }
        name = f"{database}, {events} event{'s' * (events > 1)} a commit"
        results.append(harness.measure(Workload(name, commits * events, runs, goal)))
    return results


def appending(account: Any, save: Callable[[Any], object], commits: int, events: int) -> Run:
    """So many commits of so many events each."""
    account.open()
    save(account)

    def run() -> None:
        for _ in range(commits):
            for _ in range(events):
                account.deposit(1)
            save(account)

    return run


if __name__ == "__main__":
    main()
