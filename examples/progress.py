"""How far a long task is: a bar on a terminal where `rich` is installed, plain lines elsewhere."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager


@contextmanager
def progress(total: int) -> Iterator[Callable[[], None]]:
    """Show how many of `total` commits are done; call what it gives once a commit."""
    if sys.stdout.isatty():
        try:
            from rich.progress import MofNCompleteColumn, Progress, TimeRemainingColumn
        except ImportError:
            pass
        else:
            columns = (*Progress.get_default_columns()[:3], MofNCompleteColumn())
            with Progress(*columns, TimeRemainingColumn()) as bar:
                task = bar.add_task("  commits", total=total)
                yield lambda: bar.advance(task)
            return
    yield _plain_progress(total)


def _plain_progress(total: int) -> Callable[[], None]:
    done = 0

    def advance() -> None:
        nonlocal done
        done += 1
        if done == total or done * 10 // total != (done - 1) * 10 // total:
            print(f"  {done:,} of {total:,} commits", flush=True)

    return advance
