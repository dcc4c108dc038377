"""Who is told when something was appended: hints, within this process and to others."""

from __future__ import annotations

import weakref
from typing import Protocol

from sqlalchemy import Connection, Engine

from eventstore.log.commits import Commits
from eventstore.log.signal import Signal
from eventstore.log.work import Joinable, Work


class Notifies(Protocol):
    """Tells other processes."""

    def nudge(self) -> None: ...

    def close(self, *, join: bool = True) -> None: ...


class Hints:
    """Fires the signal and nudges the notifier, once there is something to be seen."""

    def __init__(self, engine: Engine, notifier: Notifies | None = None) -> None:
        self.signal = Signal()
        self._notifier = notifier
        self._commits = Commits(engine, self.committed)
        #: Connections in transactions of the log's own, and whether those have appended.
        self._own: dict[Connection, bool] = {}

    def appended(self, connection: Joinable | None) -> None:
        """An append is done; it is seen now, or when the caller's transaction has committed."""
        if connection is None:
            self.committed()
        elif isinstance(connection, Work):
            connection.has_news = True
        elif connection in self._own:
            self._own[connection] = True
        else:
            self._commits.expect(connection)

    def begun(self, connection: Connection) -> None:
        """A transaction begins whose end will be told by `ended`: nobody need look out for it."""
        self._own[connection] = False

    def ended(self, connection: Connection, *, committed: bool) -> None:
        """That transaction has ended."""
        if self._own.pop(connection, False) and committed:
            self.committed()

    def committed(self) -> None:
        self.signal.fire()
        if self._notifier is not None:
            self._notifier.nudge()

    def close(self, *, join: bool = True) -> None:
        """Tell what is due, end the threads, and wake all that wait."""
        self._commits.close(join=join)
        if self._notifier is not None:
            self._notifier.close(join=join)
        self.signal.fire()

    def outlived_by(self, log: object) -> None:
        """End the threads when the log is no more, though nobody has closed it."""
        weakref.finalize(log, self.close, join=False).atexit = False
