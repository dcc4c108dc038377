"""Runs every benchmark and writes what they found to docs/benchmarks.md, with plots beside it.

python benchmarks/report.py [NAME ...]     # QUICK=1 for a first look; all files by default

Only what stands between the two marks of the page is written anew; the rest is by hand. With names
it prints the table and leaves the page alone.
"""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Final

import harness
from plots import draw
from records import Curve, Note, Peer, Record, Row, collected

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
PLOTS: Final = PAGE.parent / "benchmarks"
MARKS: Final = ("<!-- measured: from here -->\n", "<!-- measured: to here -->\n")
COLUMNS: Final = (
    "workload",
    "baseline",
    "ours",
    "measured",
    "lowest to highest",
    "goal",
    "verdict",
    "ours is, to peers",
)
_TITLES: Final = {"async_": "asyncio", "http_": "HTTP"}


def main(names: Sequence[str]) -> int:
    """Run them; 1 if one of them failed."""
    failed = []
    sections: list[tuple[str, list[Record]]] = []
    started = time.monotonic()
    with harness.folder() as folder, harness.server() as url:
        for name in names or [name for name in FILES if (HERE / f"{name}.py").exists()]:
            path = folder / f"{name}.jsonl"
            path.touch()
            environment = os.environ | {"BENCH_RECORDS": str(path), "EVENTSTORE_TEST_POSTGRES": url}
            print(f"\n=== {name}", flush=True)
            run = subprocess.run([sys.executable, str(HERE / f"{name}.py")], env=environment)
            sections.append((name, collected(path)))
            if run.returncode:
                failed.append(name)
    minutes = (time.monotonic() - started) / 60
    text = "\n".join(measured(sections, failed, minutes))
    if names:
        print(f"\n{text}")
    else:
        write(text, [r for _, records in sections for r in records if isinstance(r, Curve)])
    return bool(failed)


def write(text: str, curves: list[Curve]) -> None:
    """Put the text between the marks of the page, and the plots beside it."""
    before, _, rest = PAGE.read_text().partition(MARKS[0])
    after = rest.partition(MARKS[1])[2]
    PAGE.write_text(f"{before}{MARKS[0]}\n{text}\n{MARKS[1]}{after}")
    draw(curves, PLOTS)
    print(f"\nwritten: {PAGE.relative_to(HERE.parent)}")


# --- the page ----------------------------------------------------------------------------------


def measured(
    sections: list[tuple[str, list[Record]]], failed: list[str], minutes: float
) -> Iterator[str]:
    """The lines of what was measured."""
    records = [record for _, found in sections for record in found]
    how = "QUICK=1, so a first look only" if harness.QUICK else "medians, with the rounds' spread"
    yield f"Run on {datetime.now(UTC):%Y-%m-%d} in {minutes:.0f} minutes: {how}."
    yield ""
    for text in dict.fromkeys([versions(), *(r.text for r in records if isinstance(r, Note))]):
        yield f"- {text}"
    for name in failed:
        yield f"- **{name}.py failed**: rows of it may be missing."
    for name, found in sections:
        rows = [record for record in found if isinstance(record, Row)]
        if rows:
            yield f"\n### {_TITLES.get(name, name.capitalize())}\n"
            yield f"| {' | '.join(COLUMNS)} |"
            yield "|---" * len(COLUMNS) + "|"
            for row in rows:
                yield f"| {' | '.join(cells(row))} |"
    plots = dict.fromkeys(record.plot for record in records if isinstance(record, Curve))
    for plot in plots:
        yield f"\n![{plot}](benchmarks/{plot}.svg)"


def cells(row: Row) -> list[str]:
    goal = "" if row.goal is None else f"{'at most' if row.at_most else 'at least'} {row.goal:g}"
    return [
        row.workload,
        row.baseline,
        row.ours,
        f"{_figure(row.figure)} {row.of}",
        f"{_figure(row.low)} to {_figure(row.high)}",
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
    return f"{harness.machine()}; {', '.join(found)}"


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
