"""A few of the pool's connections, kept checked out from one operation to the next.

The bookkeeping of a checkout costs 11 us, which is a third of an append to SQLite; taking one from
here costs less than one. Only an engine that the store made itself is used so: on a caller's
engine, each checkout is the pool's, with its pings, limits and events.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final

from sqlalchemy import Engine, event

#: How many are kept at most: as many as were ever needed at once, up to the threads of an
#: AsyncEventStore, else these would open connections anew all the time. The engine's pool is made
#: larger by as many.
KEPT: Final = 16


class Seat:
    """A driver's connection with a cursor: one of the pool's, or (`pooled` is None) a caller's."""

    __slots__ = ("cursor", "pooled", "raw")

    def __init__(self, raw: Any, cursor: Any, pooled: Any) -> None:
        self.raw = raw
        self.cursor = cursor
        self.pooled = pooled


class Kept:
    """A stack of idle seats. Safe for threads: the list's own operations are atomic."""

    def __init__(self, engine: Engine, most: int, leave: Callable[[Seat], None]) -> None:
        """`leave` gives the connection of a seat back to its pool."""
        self._idle: list[Seat] = []
        self._most = most
        self._leave = leave
        if most:
            event.listen(engine, "engine_disposed", self._disposed)

    def take(self) -> Seat | None:
        """The seat that was used last; None if there is none."""
        try:
            return self._idle.pop() if self._idle else None
        except IndexError:  # another thread was quicker
            return None

    def give(self, seat: Seat) -> bool:
        """Keep an idle seat, if there is room."""
        room = len(self._idle) < self._most
        if room:
            self._idle.append(seat)
        return room

    def close(self) -> None:
        """Let all go, and keep none from now on."""
        self._most = 0
        self._let_go()

    def _let_go(self) -> None:
        while seat := self.take():
            self._leave(seat)

    def _disposed(self, _engine: Engine) -> None:
        # The application wants fresh connections, perhaps since it is a forked process.
        self._let_go()
