"""Footprint: the memory of a load however long the stream is, and the time of an import.

    python benchmarks/footprint.py      # QUICK=1 for a first look

Memory is what a process of its own holds at its peak (VmHWM of Linux) above what it held before;
on SQLite the pages of the file that a connection keeps are in it, 2 MiB by default. The import's
time is the processor's, since it waits for nothing.
"""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import Final

import harness
from harness import Curve, emit, spread
from workload import Account, deposited, opened

from eventstore import EventStore

LENGTHS: Final = (1_000, 10_000) if harness.QUICK else (1_000, 10_000, 100_000)
ROUNDS: Final = min(7, harness.ROUNDS)
IMPORTS: Final = 3 if harness.QUICK else 15

_IMPORT: Final = """
import time
import sqlalchemy, msgspec
started = time.process_time()
import eventstore
print((time.process_time() - started) * 1000)
"""


def main() -> None:
    print(harness.machine(ROUNDS))
    with harness.folder() as folder:
        memory("SQLite", f"sqlite:///{folder / 'events.db'}")
    with harness.postgres() as new_database:
        url = new_database()
        EventStore(url, migrate=True).close()
        memory("PostgreSQL", url)
    importing()


def memory(database: str, url: str) -> None:
    """Of loads of several lengths. One page of 1,000 rows of this workload is a third of a MiB."""
    with EventStore(url) as store:
        for length in LENGTHS:
            for version in range(0, length, 1_000):
                events = [deposited(1) if version + n else opened() for n in range(1_000)]
                store.append(f"account/of-{length}", events)
    peaks = {
        length: [harness.peak(loading, url, length) for _ in range(ROUNDS)] for length in LENGTHS
    }
    last = LENGTHS[-1]
    row = spread(
        f"{database}, memory of a load of {last:,}", peaks[last], "MiB", goal=3.0, at_most=True
    )
    middles = [sorted(peaks[length])[ROUNDS // 2] for length in LENGTHS]
    emit(
        row,
        Curve(
            "memory-load",
            database,
            "events in the stream",
            "MiB above the rest",
            list(LENGTHS),
            middles,
        ),
    )
    harness.print_table(
        [
            ["events loaded", *(f"{length:,}" for length in LENGTHS)],
            [f"{database}, MiB", *(f"{middle:.2f}" for middle in middles)],
        ]
    )


def loading(url: str, length: int) -> Callable[[], object]:
    """A store that has loaded one event, and what it does then."""
    opened = ExitStack()
    store = opened.enter_context(EventStore(url))
    store.load(Account, f"of-{LENGTHS[0]}", version=1)
    return lambda: store.load(Account, f"of-{length}")


def importing() -> None:
    """What `import eventstore` takes where its two libraries are imported already."""
    root = str(Path(__file__).parent.parent)
    times = [
        float(subprocess.check_output([sys.executable, "-c", _IMPORT], cwd=root, text=True))
        for _ in range(IMPORTS + 1)
    ][1:]
    emit(
        spread(
            "import eventstore, after sqlalchemy and msgspec", times, "ms", goal=60, at_most=True
        )
    )
    print(f"import eventstore: {sorted(times)[IMPORTS // 2]:.0f} ms")


if __name__ == "__main__":
    main()
