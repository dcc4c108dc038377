"""SQLite: a disk that is full, a backup, and a machine that loses its power."""

from __future__ import annotations

import contextlib
import resource
import shutil
import sqlite3
import struct
import time
from pathlib import Path
from typing import Any

from campaign import Campaign, Running
from checking import Crash
from operations import History

#: Of SQLite's write-ahead log, in bytes: its header, and that of each frame.
_HEADER, _FRAME = 32, 24
#: Below this, in bytes, lies what a client writes beside: its journal.
_LEAST = 400_000


class SqliteCampaign(Campaign):
    """One file. A loss of power takes away what SQLite had not yet flushed, or a part of it."""

    def __init__(self, *arguments: Any) -> None:
        super().__init__(*arguments)
        self._file = self.folder / "events.db"
        self._full: list[Running] = []
        self._image: Path | None = None

    def url(self, *, proxied: bool = False) -> str:
        return f"sqlite:///{self._file}"

    def prepare(self) -> None:
        """It has all it needs."""

    def look(self) -> None:
        """A file cannot die."""

    def strike(self) -> None:
        if self._full:
            self._make_room()
            return
        # Some way into the write-ahead log, so that it is a transaction's middle.
        log = self._beside(self._file, "wal")
        size = log.stat().st_size if log.exists() else 0
        limit = max(size, _LEAST) + self.chance.randint(0, 20_000)
        self._full = self.chance.sample(self.running, min(3, len(self.running)))
        for running in self._full:
            running.process.limit(limit)
        self.note("full disk")

    def kill(self, running: Running) -> None:
        if running in self._full:
            self._full.remove(running)
        super().kill(running)

    def _make_room(self) -> None:
        for running in self._full:
            running.process.limit(resource.RLIM_INFINITY)
        self._full = []

    def back_up(self) -> None:
        self.backed_up = time.monotonic_ns()
        self._remove(self._backup)
        with (
            contextlib.closing(sqlite3.connect(self._file)) as source,
            contextlib.closing(sqlite3.connect(self._backup)) as copy,
        ):
            source.backup(copy)

    @property
    def _backup(self) -> Path:
        return self.folder / "backup.db"

    def settle(self) -> None:
        self._make_room()
        # Before anybody opens the file again, which would make it whole.
        self._image = self._cut() if self.all_killed else None

    def afterwards(self, history: History) -> None:
        if self._image is not None:
            self._put(self._image)
            crash = Crash(time.monotonic_ns(), may_lose=self.durability == "relaxed")
            self.compare(history, crash, "loss of power")
            self.note("loss of power")
        elif self.backed_up is not None:
            self._put(self._backup)
            self.compare_restored(history)

    # --- files -----------------------------------------------------------------------------------

    def _cut(self) -> Path | None:
        """The file as a machine that had lost its power would find it.

        Safe is what SQLite has flushed: of the write-ahead log, what was moved into the database;
        and where each commit is flushed before it is acknowledged, all commits.
        """
        log, index = self._beside(self._file, "wal"), self._beside(self._file, "shm")
        if not log.exists() or log.stat().st_size <= _HEADER:
            return None
        image = self.folder / "image.db"
        self._remove(image)
        shutil.copyfile(self._file, image)
        shutil.copyfile(log, self._beside(image, "wal"))
        state = index.read_bytes()
        page, frames = struct.unpack_from("=HI", state, 14)
        (moved,) = struct.unpack_from("=I", state, 128)
        flushed = frames if self.durability == "full" else moved
        safe = _HEADER + flushed * (_FRAME + (65536 if page == 1 else page))
        with self._beside(image, "wal").open("r+b") as file:
            size = file.seek(0, 2)
            cut = self.chance.randint(min(safe, size), size)
            file.truncate(cut)
            if self.chance.random() < 0.5:  # or what stood there on the disk before
                file.seek(cut)
                file.write(self.chance.randbytes(size - cut))
        return image

    def _put(self, database: Path) -> None:
        """Have this be the database from now on."""
        self._remove(self._file)
        for kind in ("", "wal"):
            if self._beside(database, kind).exists():
                self._beside(database, kind).rename(self._beside(self._file, kind))

    def _remove(self, database: Path) -> None:
        for kind in ("", "wal", "shm"):
            self._beside(database, kind).unlink(missing_ok=True)

    def _beside(self, database: Path, kind: str) -> Path:
        return Path(f"{database}-{kind}") if kind else database
