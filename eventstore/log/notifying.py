"""Hints between processes on PostgreSQL: who has appended notifies, who waits listens.

A notification costs about as much as an append. A process that goes on appending therefore says how
long it will be silent, and for as long those that listen look by themselves, now and then.
"""

from __future__ import annotations

import logging
import selectors
import socket
import threading
import time
from typing import Any, Final

import psycopg
from sqlalchemy import Engine

from eventstore.log.background import Background, can_connect_apart, connect_apart
from eventstore.log.signal import Signal
from eventstore.log.watching import RETRY, Watch

logger = logging.getLogger(__name__)

CHANNEL: Final = "eventstore"

#: The longest rest between two notifications that is not announced, in seconds; and of announced
#: ones, how often those that listen look meanwhile.
REST: Final = 0.005
#: How many times as long as the last one took it is, where that is less: a server that is busy is
#: left in peace, and one that is not tells readers of an append every other millisecond.
SHARE: Final = 8
#: The longest rest of all, which is announced.
LONGEST: Final = 0.1
#: Appends during a rest after which the next one is four times as long.
MANY: Final = 3

# Only to wake somebody up: not worth a flush of the disk. The setting is the transaction's, since a
# proxy may give the connection to somebody else afterwards. The text is the milliseconds of the
# rest that follows; none is a rest that nobody notices.
_NOTIFY: Final = f"SELECT set_config('synchronous_commit', 'off', true), pg_notify('{CHANNEL}', %s)"

#: Connections of a parent process, which it still uses: they must not be closed here.
_inherited: Final[list[Any]] = []


class Notifier:
    """Notifies after appends: at once, and then again after a rest.

    It does so outside of the appends' transactions, on a connection and in a thread of its own:
    every commit that notifies would queue behind one lock of the server's.
    """

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self._pending = False
        self._appends = 0  # since the last notification, about
        self._rest = REST
        self._next = 0.0  # when, at the earliest
        self._raw: Any = None
        self._background = Background("eventstore-notify", self._send, self._forked)

    def nudge(self) -> None:
        """Something was appended. Cheap, the more so when a notification is due anyway."""
        self._appends += 1
        if not self._pending:
            self._pending = True
            self._background.wake()

    def close(self, *, join: bool = True) -> None:
        """Send what is due, and end."""
        self._background.close(join=join)

    def _send(self) -> None:
        if self._pending:
            begun = time.monotonic()
            if self._next > begun:
                self._background.pause(self._next - begun)
                begun = time.monotonic()
            # Before it is sent: what is appended from now on has a notification of its own.
            self._pending = False
            self._rest = min(4 * self._rest, LONGEST) if self._appends >= MANY else REST
            self._appends = 0
            try:
                self._notify()
                done = time.monotonic()
                announced = self._rest > REST
                rest = self._rest if announced else min(REST, SHARE * (done - begun))
                self._next = done + rest
            except Exception as error:  # a hint less: readers poll
                logger.debug(
                    "a notification was not sent: %s",
                    error,
                    extra={"eventstore.error": type(error).__name__},
                )
                self._disconnect()
                self._next = time.monotonic() + RETRY
        if self._background.is_closing:
            self._disconnect()

    def _notify(self) -> None:
        if self._raw is None and can_connect_apart(self._engine):
            self._raw = connect_apart(self._engine)
            self._raw.autocommit = True
        if self._raw is not None:
            announced = f"{self._rest * 1000:.0f}" if self._rest > REST else ""
            self._raw.execute(_NOTIFY, (announced,))

    def _disconnect(self) -> None:
        raw, self._raw = self._raw, None
        if raw is not None:
            raw.close()

    def _forked(self) -> None:
        _inherited.append(self._raw)
        self._raw = None
        self._pending = False


class PostgresWatch(Watch):
    """Listens on a connection of its own; behind a proxy that would be in vain."""

    def __init__(self, engine: Engine, signal: Signal) -> None:
        super().__init__(engine, signal)
        self._waker: socket.socket | None = None

    def watch(self, stop: threading.Event) -> bool:
        raw = connect_apart(self._engine)
        waker, own = socket.socketpair()
        self._waker = own
        try:
            raw.autocommit = True
            if is_proxied(raw):
                return False
            raw.execute(f"LISTEN {CHANNEL}")
            self.ready()
            with selectors.DefaultSelector() as selector:
                selector.register(waker, selectors.EVENT_READ)
                selector.register(raw.fileno(), selectors.EVENT_READ)
                looking = 0.0  # until when, without being told
                while not stop.is_set():
                    now = time.monotonic()
                    selector.select(REST if now < looking else None)
                    rest = _notified(raw.pgconn)
                    if rest is not None:
                        looking = max(looking, time.monotonic() + rest)
                    if rest is not None or now < looking:
                        self._signal.fire()
            return True
        finally:
            for end in (waker, own, raw):
                end.close()

    def interrupt(self) -> None:
        waker = self._waker
        if waker is not None:
            try:
                waker.send(b"x")
            except OSError:  # it has just ended by itself
                return


def _notified(pgconn: psycopg.pq.abc.PGconn) -> float | None:
    """The longest rest, in seconds, of those that have notified; None if nobody has."""
    pgconn.consume_input()
    rest = None
    while notification := pgconn.notifies():
        announced = notification.extra
        rest = max(rest or 0.0, int(announced) / 1000 if announced.isdigit() else 0.0)
    return rest


def is_proxied(raw: Any) -> bool:
    """Whether a proxy such as PgBouncer is between: another process answers than was promised.

    Each transaction may then be another server process's, so nothing lasts that is prepared, set or
    listened to. `raw` is a connection in autocommit mode.
    """
    promised = raw.info.backend_pid
    return bool(raw.execute("SELECT pg_backend_pid()").fetchone()[0] != promised)
