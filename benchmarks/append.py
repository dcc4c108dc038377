"""Appending: an aggregate that was loaded records new events and is saved, over and over.

    python benchmarks/append.py         # QUICK=1 for a first look

One commit a save. Every contender has a database of its own, of one kind and one durability; UmaDB
has a file of its own, and a server. What is slow gets fewer commits a round.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import Any, Final

import contenders
import harness
import raw
from harness import Result, Run, Workload
from workload import Account

from eventstore import EventStore
from eventstore.log.opening import Durability

#: By how many times to be ahead of each peer.
AHEAD: Final = {"eventsourcing": 1.0, "Emmett": 1.0, "UmaDB": 1.0}


def main() -> None:
    print(harness.machine())
    results = []
    with harness.folder() as folder:
        results += sqlite(folder, "full", goals=(0.85, 0.90))
        results += sqlite(folder, "relaxed", goals=(0.80, None))
    with harness.folder() as folder, harness.postgres() as new_database:
        results += postgres(folder, new_database)
    harness.report("Events appended", results)


def sqlite(folder: Path, durability: Durability, goals: tuple[float, float | None]) -> list[Result]:
    """In one file each, WAL mode, synchronous=FULL or NORMAL for all but Emmett: FULL."""
    synchronous = "FULL" if durability == "full" else "NORMAL"
    with ExitStack() as opened:
        hand, store = contenders.sqlite(folder, durability, opened)
        peers = [contenders.sqlite_peer(folder, durability, opened)]
        emmett = None
        if durability == "full":
            emmett = contenders.emmett("sqlite", str(folder / "emmett.db"), opened)
            peers.append(contenders.umadb(folder, opened))
        one, many = (300, 10) if durability == "full" else (1_000, 15)
        sizes = ((1, one, goals[0]), (100, many, goals[1]))
        return [
            appends(f"SQLite {synchronous}", hand, store, peers, emmett, *size) for size in sizes
        ]


def postgres(folder: Path, new_database: Callable[[], str]) -> list[Result]:
    """In one database each, on one server."""
    with ExitStack() as opened:
        hand, store = contenders.postgres(new_database, opened)
        peers = [contenders.postgres_peer(new_database, opened), contenders.umadb(folder, opened)]
        emmett = contenders.emmett("postgres", new_database(), opened)
        sizes = ((1, 200, 0.90), (100, 8, 0.90))
        return [appends("PostgreSQL", hand, store, peers, emmett, *size) for size in sizes]


def appends(
    database: str,
    hand: raw.Sqlite | raw.Postgres,
    store: EventStore,
    peers: list[Any],
    emmett: Any,
    events: int,
    commits: int,
    goal: float | None,
) -> Result:
    """So many commits of so many events."""
    commits = harness.sized(commits)
    few = max(1, commits // 5)
    runs: dict[str, Run] = {
        "raw": appending(raw.Account(f"of-{events}"), hand.save, commits, events),
        "ours": appending(Account(f"of-{events}"), store.save, commits, events),
    }
    sizes: dict[str, int] = {}
    for peer in filter(None, peers):
        runs[peer.name] = appending(peer.new(), peer.save, few, events)
        sizes[peer.name] = few * events
    if emmett is not None:
        runs[emmett.name] = emmett.saving(few, events)
        sizes[emmett.name] = few * events
    name = f"{database}, {events} event{'s' * (events > 1)} a commit"
    return harness.measure(Workload(name, commits * events, runs, goal, aims(runs), sizes=sizes))


def aims(runs: Mapping[str, object]) -> dict[str, float]:
    return {name: times for name, times in AHEAD.items() if name in runs}


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
