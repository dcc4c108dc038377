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
from typing import Final, NamedTuple

import harness
from harness import QUICK, Waiting, Workload, folder, measure, note, postgres, report, report_waits
from http_load import Load
from peers import durable_streams_

ROUNDS: Final = 5
BATCH: Final = 100
MESSAGES: Final = 100_000

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
        print_processor_time(servers)


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
        yield appends(servers, FILE, ONE, 1, connections, streams, harness.sized(6_000))
    for connections in (1, 64):
        yield appends(servers, MEMORY, MANY, BATCH, connections, 1, harness.sized(1_500))
    for posts, body, how in ((MESSAGES // BATCH, MANY, "in hundreds"), (20_000, ONE, "singly")):
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
    few = max(posts // 12, 64)
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
    reads = harness.sized(3_000)
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


def print_processor_time(servers: Mapping[str, Server]) -> None:
    """What a request costs each server's process: that hardly depends on what else there is."""
    print("\nMicroseconds of processor time a request\n")
    rows = [["", "POST of one", f"POST of {BATCH}", "GET at the tail"]]
    for name, server in servers.items():
        posts = 200 if name == FILE else 2_000
        path = server.load.filled(ONE, 1)
        asked: list[tuple[int, Callable[[], None]]] = [
            (posts, partial(server.load.appends, 64, 1, ONE, posts)),
            (posts, partial(server.load.appends, 64, 1, MANY, posts)),
            (2_000, partial(server.load.at_tail, path, 64, 2_000)),
        ]
        cells = []
        for number, run in asked:
            before = server.cpu()
            run()
            cells.append(f"{(server.cpu() - before) / number * 1_000_000:,.0f}")
        rows.append([name, *cells])
    harness.print_table(rows)


if __name__ == "__main__":
    main()
