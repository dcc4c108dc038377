"""A few of the pool's connections, kept checked out from one operation to the next.

The bookkeeping of a checkout costs 11 us, which is a third of an append to SQLite; taking one from
here costs less than one. Only an engine that the store made itself is used so: on a caller's
engine, each checkout is the pool's, with its pings, limits and events.
"""

from __future__ import annotations

from typing import Any, Final

from sqlalchemy import Engine, event

#: How many are kept at most. The engine's pool is made larger by as many.
KEPT: Final = 4


class Kept:
    """A stack of idle connections. Safe for threads: the list's own operations are atomic."""

    def __init__(self, engine: Engine, most: int) -> None:
        self._idle: list[Any] = []
        self._most = most
        if most:
            event.listen(engine, "engine_disposed", self._disposed)

    def take(self) -> Any | None:
        """The connection that was used last, as it was given; None if there is none."""
        try:
            return self._idle.pop() if self._idle else None
        except IndexError:  # another thread was quicker
            return None

    def give(self, pooled: Any) -> bool:
        """Keep an idle connection, if there is room."""
        room = len(self._idle) < self._most
        if room:
            self._idle.append(pooled)
        return room

    def close(self) -> None:
        """Give all back to their pool, and keep none from now on."""
        self._most = 0
        self._give_back()

    def _give_back(self) -> None:
        while pooled := self.take():
            pooled.close()

    def _disposed(self, _engine: Engine) -> None:
        # The application wants fresh connections, perhaps since it is a forked process.
        self._give_back()
