"""Eight processes append at once on PostgreSQL, each to a stream of its own.

    python benchmarks/writers.py        # QUICK=1 for a first look

One event a commit. By hand means without any order of the whole log; ours has it, and tells readers
in other processes. UmaDB has one server, as always.
"""

from __future__ import annotations

import multiprocessing
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, closing
from functools import partial
from multiprocessing.connection import Connection
from typing import Any, Final

import contenders
import harness
import raw
from harness import Run, Workload
from peers import emmett_
from workload import Account

from eventstore import EventStore

WRITERS: Final = 8
COMMITS: Final = harness.sized(300)
FEW: Final = max(1, COMMITS // 4)
ROUNDS: Final = 3 if harness.QUICK else 15

#: Opens a contender in a process of its own: a new account, and how it is saved.
Opening = Callable[[ExitStack], tuple[Any, Callable[[Any], object]]]


def main() -> None:
    print(harness.machine(ROUNDS))
    with harness.folder() as folder, harness.postgres() as new_database, ExitStack() as stack:
        urls = new_database(), new_database()
        for url in urls:
            EventStore(url, migrate=True).close()
        openings: dict[str, Opening] = {
            "raw": partial(by_hand, urls[0]),
            "ours": partial(ours, urls[1]),
        }
        peer, umadb = contenders.postgres_peer(new_database, stack), contenders.umadb(folder, stack)
        if peer is not None:
            openings[peer.name] = partial(eventsourcing, peer.env | {"CREATE_TABLE": "no"})
        if umadb is not None:
            openings[umadb.name] = partial(uma, umadb.url)
        runs: dict[str, Run] = {}
        sizes = {}
        for name, opening in openings.items():
            commits = COMMITS if name in ("raw", "ours") else FEW
            sizes[name] = WRITERS * commits
            runs[name] = stack.enter_context(closing(Writers(opening, commits)))
        if emmett_.is_installed("postgres"):
            url = new_database()
            runs["Emmett"] = stack.enter_context(closing(Nodes(url, FEW)))
            sizes["Emmett"] = WRITERS * FEW
        name = f"PostgreSQL, {WRITERS} processes, a stream each"
        ahead = {"eventsourcing": 3.0, "Emmett": 1.0, "UmaDB": 1.0}
        workload = Workload(
            name,
            WRITERS * COMMITS,
            runs,
            0.90,
            {peer: times for peer, times in ahead.items() if peer in runs},
            sizes,
            ROUNDS,
        )
        harness.report("Processes that append at once", [harness.measure(workload)])


# --- a process of each kind --------------------------------------------------------------------


def by_hand(url: str, opened: ExitStack) -> tuple[Any, Callable[[Any], object]]:
    hand = opened.enter_context(closing(raw.Postgres(url)))
    return raw.Account(name()), hand.save


def ours(url: str, opened: ExitStack) -> tuple[Any, Callable[[Any], object]]:
    return Account(name()), opened.enter_context(EventStore(url)).save


def eventsourcing(env: dict[str, str], opened: ExitStack) -> tuple[Any, Callable[[Any], object]]:
    from peers import eventsourcing_

    peer = opened.enter_context(closing(eventsourcing_.Peer(env)))
    return peer.new(), peer.save


def uma(url: str, opened: ExitStack) -> tuple[Any, Callable[[Any], object]]:
    from peers import umadb_

    peer = opened.enter_context(closing(umadb_.Peer(url)))
    return peer.new(), peer.save


def name() -> str:
    return f"of-{multiprocessing.current_process().name}"


class Writers:
    """Processes that begin together, each time this is called, and are waited for."""

    def __init__(self, opening: Opening, commits: int) -> None:
        context = multiprocessing.get_context("spawn")
        self._pipes = []
        self._processes = []
        for _ in range(WRITERS):
            here, there = multiprocessing.Pipe()
            process = context.Process(target=write, args=(opening, commits, there), daemon=True)
            process.start()
            self._pipes.append(here)
            self._processes.append(process)
        for pipe in self._pipes:
            pipe.recv()

    def __call__(self) -> None:
        for pipe in self._pipes:
            pipe.send(True)
        for pipe in self._pipes:
            pipe.recv()

    def close(self) -> None:
        for pipe in self._pipes:
            pipe.send(False)
        for process in self._processes:
            process.join(10)


def write(opening: Opening, commits: int, pipe: Connection) -> None:
    """What a process does: so many commits each time that it is told."""
    with ExitStack() as opened:
        account, save = opening(opened)
        account.open()
        save(account)
        pipe.send(None)
        while pipe.recv():
            for _ in range(commits):
                account.deposit(1)
                save(account)
            pipe.send(None)


class Nodes:
    """The same with Emmett; a thread waits for each."""

    def __init__(self, url: str, commits: int) -> None:
        self._peers = [emmett_.Emmett("postgres", url) for _ in range(WRITERS)]
        self._runs = [peer.saving(commits, 1) for peer in self._peers]
        self._threads = ThreadPoolExecutor(WRITERS)

    def __call__(self) -> None:
        for _ in self._threads.map(lambda run: run(), self._runs):
            pass

    def close(self) -> None:
        self._threads.shutdown()
        for peer in self._peers:
            peer.close()


if __name__ == "__main__":
    main()
