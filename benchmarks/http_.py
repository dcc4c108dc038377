"""HTTP: `eventstore serve` and the reference server of Durable Streams, asked the same.

Each server is a process of its own, and the load comes from this one. Ours is durable: SQLite in
WAL with synchronous=FULL, PostgreSQL with synchronous_commit on. The reference server is measured
in memory, and with its file store, which flushes as well.

(The file is not named http.py, as it would stand in for the standard library's `http` in every
benchmark beside it.)
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from functools import partial
from pathlib import Path
from statistics import median
from typing import Final, NamedTuple

import harness
from harness import (
    QUICK,
    Row,
    Waiting,
    Workload,
    emit,
    folder,
    measure,
    note,
    postgres,
    report,
    report_waits,
    spread,
)
from http_load import Load
from peers import durable_streams_

ROUNDS: Final = 1 if QUICK else 5
BATCH: Final = 100
MESSAGES: Final = 10_000 if QUICK else 100_000
SINGLY: Final = 1_000 if QUICK else 20_000
IDLE: Final = 500 if QUICK else 5_000

FILE: Final = "reference, files"
MEMORY: Final = "reference, memory"
SQLITE: Final = "ours, SQLite"
POSTGRES: Final = "ours, PostgreSQL"
_ADDRESS: Final = re.compile(r"http://127\.0\.0\.1:(\d+)")


def message(number: int) -> bytes:
    return json.dumps(
        {"kind": "deposited", "n": number, "amount": 12.5, "note": "x" * 100}
    ).encode()


ONE: Final = message(1)
MANY: Final = b"[" + b",".join(message(number) for number in range(BATCH)) + b"]"
MARK: Final = b'"kind":'


class Server(NamedTuple):
    """A server under load."""

    load: Load
    process: subprocess.Popen[bytes]

    def cpu(self) -> float:
        """Seconds of processor time that it has had."""
        fields = Path(f"/proc/{self.process.pid}/stat").read_text().rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")

    def held(self) -> tuple[float, int]:
        """MiB of memory, and threads, that it has now."""
        lines = Path(f"/proc/{self.process.pid}/status").read_text().splitlines()
        status = {line.partition(":")[0]: line.split()[1] for line in lines if line.split()[1:]}
        return int(status["VmRSS"]) / 1024, int(status["Threads"])


def main() -> None:
    with ExitStack() as stack:
        place = stack.enter_context(folder())
        new_database = stack.enter_context(postgres())
        servers = {
            name: stack.enter_context(running(command, place / f"{number}.log"))
            for number, (name, command) in enumerate(commands(place, new_database()).items())
        }
        note(harness.machine(ROUNDS))
        note("SQLite over HTTP: WAL, synchronous=FULL; PostgreSQL: synchronous_commit on")
        if MEMORY not in servers:
            note("the reference server is left out: it needs Node, and npm install in peers/")
        results = [measure(workload) for workload in workloads(servers)]
        report("Over HTTP", results)
        report_waits("Over HTTP, from append to reader", [fan_out(servers)])
        processor_time(servers)
        idle_readers(servers)


def commands(place: Path, database: str) -> dict[str, list[str]]:
    """How each server is started, by its name."""
    found: dict[str, list[str] | None] = {
        FILE: durable_streams_.command(place / "reference"),
        MEMORY: durable_streams_.command(None),
        SQLITE: ours(f"sqlite:///{place / 'log.db'}"),
        POSTGRES: ours(database),
    }
    return {name: command for name, command in found.items() if command is not None}


def ours(url: str) -> list[str]:
    options = ["--port", "0", "--no-access-log", "--migrate"]
    return [sys.executable, "-m", "eventstore", "serve", url, *options]


@contextmanager
def running(command: list[str], log: Path) -> Iterator[Server]:
    """A server, from when it says its address until the end of the block."""
    with log.open("w") as output:
        process = subprocess.Popen(command, stdout=output, stderr=output)
    try:
        while not (address := _ADDRESS.search(log.read_text())):
            if process.poll() is not None:
                raise RuntimeError(f"the server did not start: {log.read_text()}")
        load = Load(int(address[1]))
        yield Server(load, process)
        load.close()
    finally:
        process.terminate()
        process.wait()


def workloads(servers: Mapping[str, Server]) -> Iterator[Workload]:
    """What is asked. The file store gets through less."""
    for connections, streams in ((1, 1), (64, 1), (64, 64)):
        posts = sized(6_000 if connections > 1 else 1_200)
        yield appends(servers, FILE, ONE, 1, connections, streams, posts)
    for connections in (1, 64):
        yield appends(servers, MEMORY, MANY, BATCH, connections, 1, sized(1_500))
    for posts, body, how in ((MESSAGES // BATCH, MANY, "in hundreds"), (SINGLY, ONE, "singly")):
        yield catching_up(servers, posts, body, how)
    yield tails(servers)


def ordered(servers: Mapping[str, Server], baseline: str) -> list[str]:
    """The servers: first the baseline, then ours."""
    first = [baseline] if baseline in servers else [POSTGRES]
    return list(dict.fromkeys([*first, SQLITE, *servers]))


def appends(
    servers: Mapping[str, Server],
    baseline: str,
    body: bytes,
    messages: int,
    connections: int,
    streams: int,
    posts: int,
) -> Workload:
    few = max(posts // 24, 64)
    counts = {name: few if name == FILE else posts for name in servers}
    what = "POST of one" if messages == 1 else f"POST of {messages}"
    where = f"{connections} connections" if connections > 1 else "1 connection"
    return Workload(
        f"{what}, {where}, {streams} stream{'s' * (streams > 1)}",
        posts * messages,
        {
            name: partial(servers[name].load.appends, connections, streams, body, counts[name])
            for name in ordered(servers, baseline)
        },
        goal=(5.0 if connections > 1 else None) if baseline == FILE else 1.0,
        sizes={name: count * messages for name, count in counts.items()},
        rounds=ROUNDS,
    )


def catching_up(servers: Mapping[str, Server], posts: int, body: bytes, how: str) -> Workload:
    messages = body.count(MARK) * posts
    names = [name for name in ordered(servers, MEMORY) if not (name == FILE and body is ONE)]
    paths = {name: servers[name].load.filled(body, posts) for name in names}
    return Workload(
        f"catch-up of {messages:,} messages that came {how}",
        messages,
        {name: partial(servers[name].load.catch_up, paths[name], MARK, messages) for name in names},
        goal=1.0,
        rounds=ROUNDS,
    )


def tails(servers: Mapping[str, Server]) -> Workload:
    reads = sized(3_000)
    paths = {name: server.load.filled(ONE, 1) for name, server in servers.items()}
    return Workload(
        "GET at the tail, 64 connections",
        reads,
        {
            name: partial(servers[name].load.at_tail, paths[name], 64, reads)
            for name in ordered(servers, MEMORY)
        },
        rounds=ROUNDS,
    )


def fan_out(servers: Mapping[str, Server]) -> harness.Waits:
    messages = 20 if QUICK else 100
    runs = {
        name: partial(servers[name].load.fan_out, 50, messages, 0.01)
        for name in ordered(servers, MEMORY)
    }
    return harness.wait(Waiting("append to 50 readers of events", runs, goal=1.0), ROUNDS)


def processor_time(servers: Mapping[str, Server]) -> None:
    """What a request costs each server's process: that hardly depends on what else there is."""
    paths = {name: server.load.filled(ONE, 1) for name, server in servers.items()}
    costs: dict[str, dict[str, list[float]]] = {}
    for _ in range(1 if QUICK else 3):
        for name, server in servers.items():
            for what, requests, run in asked(server.load, paths[name], name == FILE):
                before = server.cpu()
                run()
                microseconds = (server.cpu() - before) / requests * 1_000_000
                costs.setdefault(what, {}).setdefault(name, []).append(microseconds)
    print("\nMicroseconds of processor time a request\n")
    rows = [[name, *(f"{median(costs[what][name]):,.0f}" for what in costs)] for name in servers]
    harness.print_table([["", *costs], *rows])
    for what, found in costs.items():
        own, theirs = found[SQLITE], found.get(MEMORY, found[POSTGRES])
        emit(
            spread(
                f"{what}, processor time",
                [one / other for one, other in zip(own, theirs, strict=True)],
                f"times {MEMORY if MEMORY in found else POSTGRES}",
                baseline=f"{median(theirs):,.0f} us",
                ours=f"{median(own):,.0f} us",
            )
        )


def asked(load: Load, path: str, is_slow: bool) -> Iterator[tuple[str, int, Callable[[], None]]]:
    """Requests of one kind: what they are, how many, and the run."""
    reads, posts = sized(3_000), sized(600 if is_slow else 3_000)
    yield "POST of one, 1 connection", posts, partial(load.appends, 1, 1, ONE, posts)
    yield "POST of one, 64", posts, partial(load.appends, 64, 1, ONE, posts)
    yield f"POST of {BATCH}, 64", posts, partial(load.appends, 64, 1, MANY, posts)
    yield "GET at the tail, 64", reads, partial(load.at_tail, path, 64, reads)


def idle_readers(servers: Mapping[str, Server]) -> None:
    """What readers that wait for events cost each server: memory, and no thread each."""
    rows = [["", "KiB a reader", "threads"]]
    for name, server in servers.items():
        before, _ = server.held()
        with server.load.idle(IDLE):
            after, threads = server.held()
        rows.append([name, f"{(after - before) * 1024 / IDLE:,.1f}", str(threads)])
        if name in (SQLITE, POSTGRES):
            what = f"{name}: {IDLE:,} idle readers of events"
            more = after - before
            emit(
                Row(what, more, more, more, "MiB more"),
                Row(what, threads, threads, threads, "threads in all", goal=32, at_most=True),
            )
    print(f"\n{IDLE:,} idle readers of events\n")
    harness.print_table(rows)


def sized(requests: int) -> int:
    """How many requests are made: a tenth when in a hurry."""
    return requests // 10 if QUICK else requests


if __name__ == "__main__":
    main()
