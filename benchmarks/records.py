"""What a benchmark found, as lines of JSON that `report.py` collects into docs/benchmarks.md.

Lines go to the file that BENCH_RECORDS names, and nowhere without it: a benchmark that is run by
itself only prints.
"""

from __future__ import annotations

import os
from pathlib import Path
from statistics import median

import msgspec


class Peer(msgspec.Struct):
    """Another library on the same workload: how many times as fast as it ours is."""

    name: str
    times: float
    #: The least that is aimed at; None for one that is there to compare with only.
    goal: float | None = None


class Row(msgspec.Struct, tag=True):
    """A line of the table: a figure, and what was aimed at."""

    workload: str
    #: The median of the rounds, the lowest and the highest.
    figure: float
    low: float
    high: float
    #: What the figure says: "of raw", "times the full replay", "MiB", "ms".
    of: str
    goal: float | None = None
    #: Whether the goal is the most that is allowed, and not the least.
    at_most: bool = False
    #: The two that the figure compares, in words: "5,482/s", "1.5 ms".
    baseline: str = ""
    ours: str = ""
    #: The figure of the fastest round of each: on a busy machine it says more than the median.
    best: float | None = None
    peers: list[Peer] = []


class Curve(msgspec.Struct, tag=True):
    """A line of a plot: `ys` over `xs`. Curves of one plot share its axes."""

    plot: str
    name: str
    x: str
    y: str
    xs: list[float]
    ys: list[float]
    #: Whether the axis of x is logarithmic.
    log: bool = True


class Note(msgspec.Struct, tag=True):
    """Something to know about all figures, such as a version or how durable commits are."""

    text: str


class Ran(msgspec.Struct, tag=True):
    """When and how a file of benchmarks was run."""

    date: str
    minutes: float
    quick: bool
    failed: bool
    with_: str


Record = Row | Curve | Note | Ran


def emit(*records: Record) -> None:
    """Add records to those that the report will show."""
    path = os.environ.get("BENCH_RECORDS")
    if path:
        with Path(path).open("ab") as file:
            file.write(b"".join(msgspec.json.encode(record) + b"\n" for record in records))


def note(text: str) -> None:
    """Print it, and have the report say it once."""
    print(text)
    emit(Note(text))


def spread(workload: str, figures: list[float], of: str, **more: object) -> Row:
    """A row from the figures of several rounds."""
    row = {"figure": median(figures), "low": min(figures), "high": max(figures), **more}
    return msgspec.convert({"workload": workload, "of": of, **row}, Row, from_attributes=True)


def collected(path: Path) -> list[Record]:
    """What benchmarks have emitted."""
    decode = msgspec.json.Decoder(Record).decode
    return [decode(line) for line in path.read_bytes().splitlines()]
