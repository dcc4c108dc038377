"""Watching for what other processes write, while somebody in this one waits for it."""

from __future__ import annotations

import contextlib
import logging
import sqlite3
import threading
import time
from abc import ABC, abstractmethod
from typing import Final

from sqlalchemy import Engine

from eventstore.log.background import PATIENCE, can_connect_apart, connect_apart
from eventstore.log.signal import Signal

logger = logging.getLogger(__name__)

# Seconds. A commit of another process is seen after the first on average; looking takes 5 us.
_OFTEN: Final = 0.001
_SELDOM: Final = 0.02
_QUIET: Final = 1.0
#: Seconds until what failed is tried again.
RETRY: Final = 0.5


class Watch(ABC):
    """A context manager: while at least one block is in it, a thread watches and fires the signal.

    Nothing that goes wrong in the thread is an error to anybody: readers poll anyway, and more
    often when they get no hints.
    """

    #: Seconds after which a reader that waits looks by itself: while it is hinted, and if not.
    poll_hinted: float = 0.5
    poll_alone: float = 0.05

    def __init__(self, engine: Engine, signal: Signal) -> None:
        self._engine = engine
        self._signal = signal
        self._count = 0
        self._thread: threading.Thread | None = None
        self._guard = threading.Lock()
        self._stop = threading.Event()
        self._hinted = False

    @property
    def poll_interval(self) -> float:
        return self.poll_hinted if self._hinted else self.poll_alone

    def __enter__(self) -> None:
        with self._guard:
            self._count += 1
            # The thread of a parent is not there in a forked process.
            if self._thread is None or not self._thread.is_alive():
                self._stop = stop = threading.Event()
                thread = threading.Thread(
                    target=self._run, args=(stop,), name="eventstore-watch", daemon=True
                )
                with contextlib.suppress(RuntimeError):  # no more threads: then by polling
                    thread.start()
                    self._thread = thread

    def __exit__(self, *_error: object) -> None:
        with self._guard:
            self._count -= 1
            if not self._count:
                self._end()

    def close(self) -> None:
        """End the thread, whoever is still in a block."""
        with self._guard:
            self._end()

    def _end(self) -> None:
        thread, self._thread = self._thread, None
        self._stop.set()
        self.interrupt()
        if thread is not None and thread.is_alive():
            thread.join(PATIENCE)

    def _run(self, stop: threading.Event) -> None:
        while can_connect_apart(self._engine) and not stop.is_set():
            try:
                if not self.watch(stop):
                    return
            except Exception as error:
                logger.debug(
                    "watching was interrupted: %s",
                    error,
                    extra={"eventstore.error": type(error).__name__},
                )
            finally:
                self._hinted = False
            stop.wait(RETRY)

    def ready(self) -> None:
        """From now on there are hints; what was written before may have been missed."""
        self._hinted = True
        self._signal.fire()

    @abstractmethod
    def interrupt(self) -> None:
        """Wake the thread, if it waits for something else than its event."""

    @abstractmethod
    def watch(self, stop: threading.Event) -> bool:
        """Watch until told to stop; False if there is nothing to watch. May raise anything."""


class SqliteWatch(Watch):
    """Asks a connection of its own whether another one has committed."""

    def interrupt(self) -> None:
        """It waits for its event only."""

    def watch(self, stop: threading.Event) -> bool:
        raw = connect_apart(self._engine)
        try:
            return self._is_file(raw) and self._poll(raw, stop)
        finally:
            raw.close()

    def _is_file(self, raw: sqlite3.Connection) -> bool:
        # A memory database is of this process, whose writers fire the signal themselves.
        (_, _, path), *_ = raw.execute("PRAGMA database_list").fetchall()
        return bool(path) and "vfs=memdb" not in str(self._engine.url.database)

    def _poll(self, raw: sqlite3.Connection, stop: threading.Event) -> bool:
        seen = _data_version(raw)
        self.ready()
        moved = time.monotonic()
        pause = _OFTEN
        while not stop.wait(pause):
            version = _data_version(raw)
            if version != seen:
                seen = version
                moved = time.monotonic()
                pause = _OFTEN
                self._signal.fire()
            elif pause < _SELDOM and time.monotonic() - moved > _QUIET:
                pause = _SELDOM
        return True


def _data_version(raw: sqlite3.Connection) -> int:
    version: int = raw.execute("PRAGMA data_version").fetchone()[0]
    return version
