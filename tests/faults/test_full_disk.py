"""A disk that is full takes nothing, says so, loses nothing, and takes again what then fits."""

from __future__ import annotations

import contextlib
import os
import subprocess
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from operations import Put
from sqlalchemy import Engine, event

from eventstore import EventStore
from eventstore.errors import LogUnavailableError
from eventstore.log.opening import open_engine


class Disk(NamedTuple):
    """A small one, with a database on it."""

    engine: Engine
    enlarge: Callable[[], None]


@contextlib.contextmanager
def _few_pages() -> Iterator[Disk]:
    """SQLite's own limit, which anybody may set."""
    pages = [60]
    with tempfile.TemporaryDirectory() as folder:
        engine, close = open_engine(f"sqlite:///{folder}/events.db")

        @event.listens_for(engine, "connect")
        def _connected(raw: Any, _record: Any) -> None:
            raw.execute(f"PRAGMA max_page_count = {pages[0]}")

        def enlarge() -> None:
            pages[0] = 1000
            engine.dispose()

        yield Disk(engine, enlarge)
        close()


@contextlib.contextmanager
def _small_file_system() -> Iterator[Disk]:
    with tempfile.TemporaryDirectory() as folder:
        subprocess.run(["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", folder], check=True)
        try:
            filler = Path(folder) / "filler"
            filler.write_bytes(bytes(500_000))
            engine, close = open_engine(f"sqlite:///{folder}/events.db")
            yield Disk(engine, filler.unlink)
            close()
        finally:
            subprocess.run(["umount", folder], check=True)


def _can_mount() -> bool:
    if os.geteuid():
        return False
    with tempfile.TemporaryDirectory() as folder:
        command = ["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", folder]
        if subprocess.run(command, capture_output=True, check=False).returncode:
            return False  # not root enough, in a container
        subprocess.run(["umount", folder], check=True)
        return True


@pytest.mark.parametrize("small", [_few_pages, *([_small_file_system] if _can_mount() else [])])
def test_a_full_disk_loses_nothing_that_was_acknowledged(
    small: Callable[[], contextlib.AbstractContextManager[Disk]],
) -> None:
    pad = "x" * 5000
    with small() as disk, EventStore(disk.engine) as store:
        acknowledged = _until_full(store, pad)
        assert acknowledged > 3
        for _ in range(2):  # it stays so, and all can be read
            with pytest.raises(LogUnavailableError) as caught:
                store.append("a/1", [Put(op="lost", n=part, pad=pad) for part in range(30)])
            assert caught.value.outcome == "not written"
            ops = [record.event.op for record in store.read("a/1")]
            assert ops == [f"{n}" for n in range(acknowledged) for _ in range(3)]
        disk.enlarge()
        receipt = store.append("a/1", Put(op="then", n=0))
        assert receipt.version == 3 * acknowledged + 1
        assert [record.version for record in store.read_all()] == list(
            range(1, receipt.version + 1)
        )


def _until_full(store: EventStore, pad: str) -> int:
    """Append until the disk is full: so often it was acknowledged."""
    for n in range(1000):
        try:
            store.append("a/1", [Put(op=f"{n}", n=part, pad=pad) for part in range(3)])
        except LogUnavailableError:
            return n
    pytest.fail("the disk did not get full")
