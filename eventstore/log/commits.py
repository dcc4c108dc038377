"""When a caller's transaction, that an append has joined, has been committed."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable
from typing import Any, Final
from weakref import WeakKeyDictionary

from sqlalchemy import Connection, Engine, event

from eventstore.log.background import Background

#: Seconds after which a commit that is still under way is no longer waited for.
_LONG: Final = 30.0


class Commits:
    """Calls `told` after the commit of each transaction that it was told to expect.

    SQLAlchemy's "commit" event comes just before the commit. So a thread of ours looks until it has
    happened. A rollback leaves nothing behind.
    """

    def __init__(self, engine: Engine, told: Callable[[], object]) -> None:
        """`engine` is where most of the connections will come from."""
        self._told = told
        self._under_way: deque[tuple[Any, float]] = deque()
        self._background = Background("eventstore-commits", self._await, self._under_way.clear)
        _listen(engine)

    def expect(self, connection: Connection) -> None:
        """Its present transaction has appended to the log."""
        _listen(connection.engine)
        _appended.setdefault(connection, set()).add(self)

    def begun(self, connection: Connection) -> None:
        """The commit is about to begin."""
        self._under_way.append((connection.get_transaction(), time.monotonic() + _LONG))
        self._background.wake()

    def close(self, *, join: bool = True) -> None:
        self._background.close(join=join)

    def _await(self) -> None:
        pause = 0.0005
        while self._under_way and not self._background.is_closing:
            for _ in range(len(self._under_way)):
                transaction, deadline = self._under_way.popleft()
                if transaction is None or not transaction.is_active:
                    self._told()
                elif time.monotonic() < deadline:
                    self._under_way.append((transaction, deadline))
            if self._under_way:
                self._background.pause(pause)
                pause = min(pause * 1.5, 0.05)


#: Whose present transaction has appended, and who is to be told.
_appended: Final[WeakKeyDictionary[Connection, set[Commits]]] = WeakKeyDictionary()


def _listen(engine: Engine) -> None:
    # Once for an engine, however many stores it has; a listener a connection would cost 50 us.
    if not event.contains(engine, "commit", _committing):
        event.listen(engine, "commit", _committing)
        event.listen(engine, "rollback", _rolled_back)


def _committing(connection: Connection) -> None:
    for commits in _appended.pop(connection, ()):
        commits.begun(connection)


def _rolled_back(connection: Connection) -> None:
    _appended.pop(connection, None)
