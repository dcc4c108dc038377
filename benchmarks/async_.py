"""The cost of each colour: the sync store, AsyncEventStore, and async drivers by hand.

One operation is: load an aggregate of 20 events, one command, save; each on a stream not used
before. The sync store does them in one thread, one after the other; the others share them out
among so many concurrent tasks. Ratios are to the sync store and to the raw drivers: 1.00 is level.

python benchmarks/async_.py         # QUICK=1 for a first look
"""

from __future__ import annotations

import asyncio
import importlib.util
from collections.abc import Awaitable, Callable, Iterator
from contextlib import AsyncExitStack
from itertools import islice
from statistics import median
from typing import Any, Final

import harness
import psycopg
import raw_async
from harness import Peer, Result, Row, Run, Workload, emit, spread
from load import fill
from workload import Account

from eventstore import EventStore
from eventstore.aio import AsyncEventStore
from eventstore.log.opening import Durability

#: How many tasks there are at once, and how many operations a run has.
TASKS: Final = ((1, 300), (16, 768), (256, 768))
ROUNDS: Final = min(9, harness.ROUNDS)

#: Load, one command, save, for one id.
Command = Callable[[str], Awaitable[object]]


def main() -> None:
    print(harness.machine(ROUNDS))
    results: list[Result] = []
    with asyncio.Runner() as runner, harness.folder() as folder:
        for durability in ("full", "relaxed"):
            url = f"sqlite:///{folder / durability}.db"
            results += sqlite(url, durability, runner)
        with harness.postgres() as new_database:
            results += postgres(new_database(), runner)
    report(results)


def sqlite(url: str, durability: Durability, runner: asyncio.Runner) -> list[Result]:
    """All contenders write to one file, each to streams of its own."""
    synchronous = "FULL" if durability == "full" else "NORMAL"
    path = url.removeprefix("sqlite:///")
    with EventStore(url, durability=durability) as store, Opened(runner) as opened:
        ours = opened.enter(AsyncEventStore(url, durability=durability))
        hand = opened.enter(raw_async.Sqlite(path, synchronous=synchronous))
        commands = {"raw": hand.command, "ours": commanding(ours)}
        return workloads(f"SQLite {synchronous}", store, commands, runner)


def postgres(url: str, runner: asyncio.Runner) -> list[Result]:
    """All contenders write to one database, each to streams of its own."""
    with EventStore(url, migrate=True) as store, Opened(runner) as opened:
        hands = {"raw psycopg": opened.enter(raw_async.Psycopg(url)).command}
        if importlib.util.find_spec("asyncpg"):
            hands["raw asyncpg"] = opened.enter(raw_async.Asyncpg(url)).command
        else:
            print("Without asyncpg: it is not installed")
        commands = {**hands, "ours": commanding(opened.enter(AsyncEventStore(url)))}
        return workloads("PostgreSQL", store, commands, runner, vacuumed(url))


class Opened:
    """Async contenders, opened and closed on one loop."""

    def __init__(self, runner: asyncio.Runner) -> None:
        self._runner = runner
        self._stack = AsyncExitStack()

    def enter(self, contender: Any) -> Any:
        async def enter() -> Any:
            return await self._stack.enter_async_context(contender)

        return self._runner.run(enter())

    def __enter__(self) -> Opened:
        return self

    def __exit__(self, *_: object) -> None:
        self._runner.run(self._stack.aclose())


def workloads(
    database: str,
    store: EventStore,
    commands: dict[str, Command],
    runner: asyncio.Runner,
    filled: Callable[[], None] = lambda: None,
) -> list[Result]:
    """One workload for each number of tasks."""
    results = []
    for tasks, size in TASKS:
        size = max(tasks, harness.sized(size))
        names = ["sync", *commands]
        total = size * (ROUNDS + 1)
        ids = {name: [f"{name}-{tasks}-{number}" for number in range(total)] for name in names}
        for name in names:
            fill(store, ids[name], 20)
        filled()
        runs: dict[str, Run] = {"sync": in_turn(store, iter(ids["sync"]), size)}
        for name, command in commands.items():
            runs[name] = at_once(command, iter(ids[name]), size, tasks, runner)
        name = f"{database}, {tasks} task{'s' if tasks > 1 else ''}"
        results.append(harness.measure(Workload(name, size, runs, rounds=ROUNDS)))
    return results


def vacuumed(url: str) -> Callable[[], None]:
    """What has the server know its tables before it is measured, and not in between."""

    def vacuum() -> None:
        with psycopg.connect(url, autocommit=True) as admin:
            admin.execute("VACUUM ANALYZE")

    return vacuum


# --- runs --------------------------------------------------------------------------------------


def commanding(store: AsyncEventStore) -> Command:
    """Ours: a load, a command and a save as one operation."""

    async def command(id: str) -> None:
        await store.transact(Account, id, Account.deposit, 1)

    return command


def in_turn(store: EventStore, ids: Iterator[str], size: int) -> Run:
    def run() -> None:
        for id in islice(ids, size):
            store.transact(Account, id, Account.deposit, 1)

    return run


def at_once(
    command: Command, ids: Iterator[str], size: int, tasks: int, runner: asyncio.Runner
) -> Run:
    """The tasks take ids off one iterator until there are none left."""

    async def work(mine: Iterator[str]) -> None:
        for id in mine:
            await command(id)

    async def all_at_once() -> None:
        mine = islice(ids, size)
        await asyncio.gather(*(work(mine) for _ in range(tasks)))

    return lambda: runner.run(all_at_once())


# --- the table ---------------------------------------------------------------------------------


def report(results: list[Result]) -> None:
    """Print how many a second each contender does, and beside it the ratios."""
    for result in results:
        print(f"\n{result.workload.name}\n")
        hands = [name for name in result.workload.contenders if name.startswith("raw")]
        rows = [["contender", "a second", "to sync", "min-max", *(f"to {hand}" for hand in hands)]]
        for name in result.workload.contenders:
            to_sync = result.ratios(name, "sync")
            rows.append(
                [
                    name,
                    f"{result.rate(name):,.0f}",
                    f"{median(to_sync):.2f}",
                    f"{to_sync[0]:.2f}-{to_sync[-1]:.2f}",
                    *(f"{median(result.ratios(name, hand)):.2f}" for hand in hands),
                ]
            )
        harness.print_table(rows)
        emit(row_of(result, max(hands, key=result.rate)))


def row_of(result: Result, hand: str) -> Row:
    """Ours to the best driver by hand; the sync store stands beside it."""
    name = result.workload.name
    return spread(
        f"{name}, load 20, command, save",
        result.ratios("ours", hand),
        f"of {hand}",
        goal=None if name.endswith(" 1 task") else 0.80,
        baseline=f"{result.rate(hand):,.0f}/s",
        ours=f"{result.rate('ours'):,.0f}/s",
        best=result.best("ours", hand),
        peers=[
            Peer(other, median(result.ratios("ours", other)))
            for other in result.workload.contenders
            if other not in ("ours", hand)
        ],
    )


if __name__ == "__main__":
    main()
