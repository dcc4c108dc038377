"""Threads that a log works with in the background, and connections of their own."""

from __future__ import annotations

import contextlib
import os
import threading
import weakref
from collections.abc import Callable
from typing import Any, Final

from sqlalchemy import Engine, SingletonThreadPool, StaticPool

from eventstore.log.signal import Signal

#: Seconds that a thread may take to end. One that hangs in the network is left to itself.
PATIENCE: Final = 5.0


class Background:
    """A daemon thread that works each time it is woken.

    It starts at the first need, and once more in a forked process, which inherits no threads.
    """

    def __init__(
        self, name: str, work: Callable[[], object], forked: Callable[[], object] | None = None
    ) -> None:
        """`forked` is called in a forked process, before anything else is."""
        self._name = name
        self._work = work
        self._forked = forked
        self._closed = False
        self._reset()
        _all.add(self)

    def _reset(self) -> None:
        self._signal = Signal()
        self._thread: threading.Thread | None = None
        self._starting = threading.Lock()
        self._closing = threading.Event()
        if self._closed:
            self._closing.set()

    def wake(self) -> None:
        """Have the work done, soon."""
        self._signal.fire()
        if self._thread is None:
            self._start()

    def pause(self, seconds: float) -> None:
        """Let the worker rest, but not keep whoever closes it waiting."""
        self._closing.wait(seconds)

    @property
    def is_closing(self) -> bool:
        return self._closing.is_set()

    def close(self, *, join: bool = True) -> None:
        """End the thread, after a last turn at its work."""
        self._closed = True
        self._closing.set()
        self._signal.fire()
        thread = self._thread
        if join and thread is not None and thread is not threading.current_thread():
            thread.join(PATIENCE)

    def after_fork(self) -> None:
        """Start afresh in a forked process."""
        if self._forked is not None:
            self._forked()
        self._reset()

    def _start(self) -> None:
        with self._starting:
            if self._thread is not None or self._closed:
                return
            thread = threading.Thread(target=self._run, name=self._name, daemon=True)
            # Where there can be no more threads, there are no hints, and readers poll.
            with contextlib.suppress(RuntimeError):
                thread.start()
                self._thread = thread

    def _run(self) -> None:
        seen = 0
        while True:
            seen = self._signal.wait(seen, None)
            last = self._closing.is_set()
            self._work()
            if last:
                return


_all: Final[weakref.WeakSet[Background]] = weakref.WeakSet()


def _after_fork() -> None:
    for background in list(_all):
        background.after_fork()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork)


def can_connect_apart(engine: Engine) -> bool:
    """Whether a connection beside those of the pool would be another one, to the same database."""
    return not isinstance(engine.pool, (StaticPool, SingletonThreadPool))


def connect_apart(engine: Engine) -> Any:
    """A driver's connection that is made as the engine makes its own, and is not of its pool.

    A pool may be small, and all of it in use; who waits for an event must not wait for that.
    """
    pooled = engine.pool.recreate().connect()
    pooled.detach()
    return pooled.dbapi_connection
