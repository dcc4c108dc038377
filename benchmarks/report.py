"""Runs the benchmarks and writes what they found to docs/benchmarks.md, with plots beside it.

python benchmarks/report.py [NAME ...]     # QUICK=1 for a first look; all files by default

What each file found is kept in docs/benchmarks/NAME.jsonl, so that one can be run again by itself:
the page shows the last run of each. Only what stands between the two marks of the page is written
anew; the rest is by hand.
"""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Final

import harness
import msgspec
from plots import draw
from records import Curve, Note, Peer, Ran, Record, Row, collected

#: The benchmarks, in the order of the table: each is a file beside this one.
FILES: Final = (
    "append",
    "load",
    "writers",
    "subscription",
    "async_",
    "replay",
    "projection",
    "http_",
    "growth",
    "footprint",
)

HERE: Final = Path(__file__).parent
PAGE: Final = HERE.parent / "docs" / "benchmarks.md"
FOUND: Final = PAGE.parent / "benchmarks"
MARKS: Final = ("<!-- measured: from here -->\n", "<!-- measured: to here -->\n")
COLUMNS: Final = (
    "workload",
    "baseline",
    "ours",
    "measured",
    "lowest to highest",
    "fastest rounds",
    "goal",
    "verdict",
    "ours is, to peers",
)
_TITLES: Final = {"async_": "asyncio", "http_": "HTTP"}


def main(names: Sequence[str]) -> int:
    """Run them; 1 if one of them failed."""
    failed = False
    FOUND.mkdir(exist_ok=True)
    there = [name for name in FILES if (HERE / f"{name}.py").exists()]
    with harness.server() as url:
        for name in names or there:
            failed |= run(name, url)
    write()
    return failed


def run(name: str, url: str) -> bool:
    """Run one, and keep what it found; whether it failed."""
    print(f"\n=== {name}", flush=True)
    path = FOUND / f"{name}.jsonl.new"
    path.write_bytes(b"")
    started = time.monotonic()
    environment = os.environ | {"BENCH_RECORDS": str(path), "EVENTSTORE_TEST_POSTGRES": url}
    code = subprocess.run([sys.executable, str(HERE / f"{name}.py")], env=environment).returncode
    ran = Ran(
        date=f"{datetime.now(UTC):%Y-%m-%d %H:%M}",
        minutes=(time.monotonic() - started) / 60,
        quick=harness.QUICK,
        failed=code != 0,
        with_=versions(),
    )
    with path.open("ab") as file:
        file.write(msgspec.json.encode(ran) + b"\n")
    path.replace(
        FOUND / f"{name}.jsonl"
    )  # only now, so that a run that is broken off loses nothing
    return ran.failed


def write() -> None:
    """Put all that was found between the marks of the page, and the plots beside it."""
    paths = [FOUND / f"{name}.jsonl" for name in FILES]
    found = {path.stem: collected(path) for path in paths if path.exists()}
    text = "\n".join(measured(found))
    before, _, rest = PAGE.read_text().partition(MARKS[0])
    after = rest.partition(MARKS[1])[2]
    PAGE.write_text(f"{before}{MARKS[0]}\n{text}\n{MARKS[1]}{after}")
    draw([r for records in found.values() for r in records if isinstance(r, Curve)], FOUND)
    print(f"\nwritten: {PAGE.relative_to(HERE.parent)}")


# --- the page ----------------------------------------------------------------------------------


def measured(found: Mapping[str, list[Record]]) -> Iterator[str]:
    """The lines of what was measured."""
    records = [record for records in found.values() for record in records]
    notes = [r.text for r in records if isinstance(r, Note)]
    notes += [r.with_ for r in records if isinstance(r, Ran)]
    for text in dict.fromkeys(notes):
        yield f"- {text}"
    for name, records in found.items():
        rows = [record for record in records if isinstance(record, Row)]
        if rows:
            yield f"\n### {_TITLES.get(name, name.capitalize())}\n"
            yield f"{_how(records[-1])}\n"
            yield f"| {' | '.join(COLUMNS)} |"
            yield "|---" * len(COLUMNS) + "|"
            for row in rows:
                yield f"| {' | '.join(cells(row))} |"
        for plot in dict.fromkeys(r.plot for r in records if isinstance(r, Curve)):
            yield f"\n![{plot}](benchmarks/{plot}.svg)"


def _how(ran: Record) -> str:
    if not isinstance(ran, Ran):
        return "Not run to its end."
    how = ", QUICK=1: a first look only" if ran.quick else ""
    failed = " **It failed, so rows may be missing.**" if ran.failed else ""
    return f"Run at {ran.date} UTC in {ran.minutes:.1f} minutes{how}.{failed}"


def cells(row: Row) -> list[str]:
    goal = "" if row.goal is None else f"{'at most' if row.at_most else 'at least'} {row.goal:g}"
    return [
        row.workload,
        row.baseline,
        row.ours,
        f"{_figure(row.figure)} {row.of}",
        f"{_figure(row.low)} to {_figure(row.high)}",
        "" if row.best is None else _figure(row.best),
        goal,
        verdict(row),
        ", ".join(map(_compared, row.peers)),
    ]


def verdict(row: Row) -> str:
    """Whether the goals are met: that for the baseline, and those for peers."""
    missed = [] if row.goal is None or _met(row) else [row.of]
    missed += [p.name for p in row.peers if p.goal is not None and p.times < p.goal]
    goals = row.goal is not None or any(peer.goal is not None for peer in row.peers)
    if missed:
        return f"**behind: {', '.join(missed)}**"
    return "met" if goals else ""


def _met(row: Row) -> bool:
    assert row.goal is not None
    return row.figure <= row.goal if row.at_most else row.figure >= row.goal


def _compared(peer: Peer) -> str:
    goal = "" if peer.goal is None else f" (goal {peer.goal:g})"
    return f"{peer.name} {peer.times:.1f} times{goal}"


def _figure(value: float) -> str:
    return f"{value:,.0f}" if value >= 100 else f"{value:.1f}" if value >= 10 else f"{value:.2f}"


def versions() -> str:
    """What the figures were made with."""
    packages = ("sqlalchemy", "msgspec", "psycopg", "asyncpg", "eventsourcing", "umadb")
    found = [f"{name} {at}" for name in packages if (at := _version(name))]
    return f"{harness.machine().partition(';')[0]}; {', '.join(found)}"


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
