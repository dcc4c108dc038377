"""What the command shows: with rich where that is installed and somebody looks, else plain."""

from __future__ import annotations

import contextlib
import importlib.util
import logging
import sys
import time
from collections.abc import Callable, Generator, Sequence

from eventstore import FollowerStatus, Parked, Progress
from eventstore.verification import Finding, Walked

#: What stands for a number that was not counted any further.
_MANY = 100_000
#: Seconds between two plain lines about a progress.
_SELDOM = 1.0

_RIGHT = frozenset({"position", "behind", "lag", "rate", "handled", "parked", "version", "tries"})


def complain(error: Exception) -> None:
    """Tell an error, in one line."""
    print(f"eventstore: {one_line(str(error))}", file=sys.stderr, flush=True)


def one_line(text: str) -> str:
    """A text without line breaks, and nothing in it that a terminal would obey."""
    return "".join(c if c.isprintable() else "?" for c in " ".join(text.split()))


def log_to_stderr() -> None:
    """Let what the library logs be seen, with the process that did it."""
    logging.basicConfig(
        level=logging.INFO, format="%(asctime)s %(levelname)s %(process)d %(message)s"
    )


def show_status(rows: Sequence[FollowerStatus]) -> None:
    """A table of followers and their shards."""
    heads = ["follower", "shard", "position", "behind", "lag", "rate", "handled", "parked", "owner"]
    cells = []
    before = ""
    for row in rows:
        cells.append(
            [
                row.follower,
                "rebuild" if row.rebuild else f"{row.shard} of {row.shards}",
                f"{row.position:,}",
                "" if row.in_step else _counted(row.behind),
                "in step" if row.in_step else f"{row.lag.total_seconds():,.1f} s",
                f"{row.rate:,.0f}/s",
                f"{row.handled:,}",
                f"{row.parked:,}" if row.follower != before else "",  # it is of all shards
                _short(row.owner),
            ]
        )
        before = row.follower
    _show(heads, cells, "nothing follows this log yet")


def show_parked(rows: Sequence[Parked]) -> None:
    """A table of parked events."""
    heads = ["position", "stream", "version", "type", "tries", "retry", "error"]
    cells = [
        [
            str(row.position),
            row.stream,
            str(row.version),
            row.type,
            str(row.attempts),
            "asked for" if row.retry else "",
            "stands behind the one above" if row.error is None else row.error,
        ]
        for row in rows
    ]
    _show(heads, cells, "nothing is parked")


@contextlib.contextmanager
def show_progress(title: str) -> Generator[Callable[[Progress], None]]:
    """In the block, what is to be called with each progress."""
    if not _is_rich():
        yield _lines(title)
        return
    from rich.progress import BarColumn, TaskProgressColumn, TextColumn
    from rich.progress import Progress as Bars

    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        TaskProgressColumn(),
        TextColumn("{task.fields[told]}"),
    )
    with Bars(*columns) as bars:
        task = bars.add_task(title, total=None, told="")

        def show(progress: Progress) -> None:
            bars.update(
                task, completed=progress.position, total=progress.head, told=_told(progress)
            )

        yield show


def show_finding(finding: Finding) -> None:
    """A finding, in one line."""
    mark = "note" if not finding.is_error else "repaired" if finding.is_repaired else "error"
    print(f"{mark} ({finding.kind}): {one_line(finding.text)}", flush=True)


@contextlib.contextmanager
def show_walk(*, quiet: bool) -> Generator[Callable[[Walked], None] | None]:
    """In the block, what is to be called with the progress of a verification.

    It is told on stderr, and only where somebody looks: what is found is on stdout.
    """
    if quiet or not (sys.stderr.isatty() and importlib.util.find_spec("rich")):
        yield None
        return
    from rich.console import Console
    from rich.progress import BarColumn, TextColumn
    from rich.progress import Progress as Bars

    columns = (TextColumn("{task.description}"), BarColumn(), TextColumn("{task.fields[told]}"))
    with Bars(*columns, console=Console(stderr=True)) as bars:
        tasks = {}

        def show(walked: Walked) -> None:
            if walked.part not in tasks:
                tasks[walked.part] = bars.add_task(walked.part, total=None, told="")
            told = f"{walked.events:,} looked at"
            task = tasks[walked.part]
            bars.update(task, completed=walked.done, total=walked.total, told=told)

        yield show


def _lines(title: str) -> Callable[[Progress], None]:
    last = time.monotonic()

    def show(progress: Progress) -> None:
        nonlocal last
        now = time.monotonic()
        if now - last >= _SELDOM:
            last = now
            place = f"position {progress.position:,} of {progress.head:,}"
            print(f"{title}: {place}, {_told(progress)}", flush=True)

    return show


def _told(progress: Progress) -> str:
    left = progress.seconds_left
    return f"{progress.rate:,.0f} events/s" + ("" if left is None else f", {left:,.0f} s left")


def _counted(number: int) -> str:
    return f"{number:,}" + ("+" if number >= _MANY else "")


def _short(owner: str | None) -> str:
    """Of an owner, what says where to look for it: `host:pid`."""
    return "" if owner is None else owner.partition("@")[0].rpartition(":")[0]


def _is_rich() -> bool:
    return sys.stdout.isatty() and importlib.util.find_spec("rich") is not None


def _show(heads: Sequence[str], rows: Sequence[Sequence[str]], empty: str) -> None:
    rows = [[one_line(cell) for cell in row] for row in rows]
    if not rows:
        print(empty)
    elif _is_rich():
        from rich.console import Console
        from rich.table import Table
        from rich.text import Text

        table = Table()
        for head in heads:
            table.add_column(head, justify="right" if head in _RIGHT else "left")
        for row in rows:
            table.add_row(*(Text(cell) for cell in row))  # nobody's name is markup
        Console().print(table)
    else:
        widths = [max(map(len, column)) for column in zip(heads, *rows, strict=True)]
        for row in [heads, *rows]:
            cells = [
                cell.rjust(width) if head in _RIGHT else cell.ljust(width)
                for head, cell, width in zip(heads, row, widths, strict=True)
            ]
            print("  ".join(cells).rstrip())
