"""Up to where the log in PostgreSQL is final.

Positions of different streams may commit out of order. What makes that safe to read: every
transaction that appends holds a RowExclusiveLock on the events table, from before it draws its
first position until it ends, and `pg_locks` shows who does. So when a position has been seen, and
every transaction that held that lock afterwards has ended, nothing will appear below.

What was found is true as long as the event at that position is there. A crash of the server may
lose it with the last commits (synchronous_commit=off), and then its position is given once more; so
each look begins with it. Of positions below one that is there, none is given again.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterable
from contextlib import AbstractContextManager
from typing import Any, Final, NamedTuple, TypeAlias

from sqlalchemy import Connection

from eventstore.errors import LogStalledError
from eventstore.log.base import Frontier

_WRITERS: Final = """
    SELECT virtualtransaction || ' ' || COALESCE(pid, 0)
      FROM pg_locks
     WHERE locktype = 'relation' AND mode = 'RowExclusiveLock' AND granted
       AND relation = 'eventstore_events'::regclass
       AND database = (SELECT oid FROM pg_database WHERE datname = current_database())
       AND pid IS DISTINCT FROM pg_backend_pid()"""
_AHEAD: Final = """
    SELECT position, id FROM eventstore_events
     WHERE position >= %(position)s ORDER BY position LIMIT 1002"""
_FAR: Final = 1000
# The head is of the statement's snapshot, and pg_locks is read after that was taken.
_HEAD_AND_WRITERS: Final = f"""
    SELECT head.position, head.id, ARRAY({_WRITERS})
      FROM (SELECT) AS one LEFT JOIN
           (SELECT position, id FROM eventstore_events ORDER BY position DESC LIMIT 1) AS head
           ON true"""
_STANDS_AND_WRITERS: Final = f"""
    SELECT EXISTS (SELECT FROM eventstore_events WHERE position = %(position)s AND id = %(id)b),
           ARRAY({_WRITERS})"""
_DESCRIBE: Final = """
    SELECT format('process %%s (%%s, %%s, in a transaction since %%s)', pid,
                  COALESCE(NULLIF(application_name, ''), 'no application_name'), state, xact_start)
      FROM pg_stat_activity WHERE pid = ANY(%(pids)s)"""

#: Gives a cursor for one block, on the caller's connection or on one of the log's.
Reading: TypeAlias = Callable[[Connection | None], AbstractContextManager[Any]]


class Known(NamedTuple):
    """A position up to which the log is final, and the id of the event there."""

    position: int
    id: bytes


_NOTHING: Final = Known(0, b"")


class Barrier(NamedTuple):
    """A fact: once these writers have ended, nothing will appear at or below the head.

    `id` is that of the event there.
    """

    head: int
    writers: frozenset[str]
    id: bytes = b""

    def left(self, open: Iterable[str]) -> Barrier:
        """What it still waits for, as these are the writers that are open now.

        A writer that is gone may have been prepared for a two-phase commit, which changes its id,
        so the prepared ones take its place. That happens once for each, so the wait ends.
        """
        now = frozenset(open)
        heirs: frozenset[str] = frozenset()
        if not all(map(_is_prepared, self.writers - now)):
            heirs = frozenset(filter(_is_prepared, now))
        return self._replace(writers=(self.writers & now) | heirs)


class Frontiers:
    """Looks for the frontier of one log, and remembers what was found. Safe for threads."""

    def __init__(self, reading: Reading) -> None:
        self._reading = reading
        self._guard = threading.Lock()
        self._known = _NOTHING
        self._pending: Barrier | None = None
        #: See `Log.doubts`.
        self.doubts = 0

    def frontier(self) -> Frontier:
        """See `Log.frontier`.

        A barrier is kept from one call to the next until its writers have ended. New ones at each
        call would always find somebody writing, under constant load, and never get anywhere.
        """
        with self._reading(None) as cursor:
            certain, final = self._contiguous(cursor)
            if final:
                return Frontier(certain, ())
            # Taken before the writers are listed: a list from before the barrier proves nothing
            # about the writers in it.
            pending = self._pending
            if pending is not None and not _stands(cursor, pending)[0]:
                self._forget(pending)
                pending = None
            fresh = _barrier(cursor)
        return self._settle(pending, fresh)

    def settled(self, timeout: float, connection: Connection | None) -> int:
        """See `Log.settled`.

        What was acknowledged before the call may lie beyond the pending barrier, so this one waits
        for a barrier of its own. What a caller's transaction sees may include what it has appended
        itself: that is final for nobody else, and is not remembered.
        """
        joined = connection is not None
        with self._reading(connection) as cursor:
            certain, final = self._contiguous(cursor, joined)
            if final:
                return certain
            barrier = _barrier(cursor)
        if barrier.writers:
            began = time.monotonic()
            if not self._await(barrier, certain, timeout, joined):
                return self.settled(timeout - (time.monotonic() - began), connection)
        if not joined:
            self._advance(Known(barrier.head, barrier.id))
        return barrier.head

    def describe(self, writers: Iterable[str]) -> tuple[str, ...]:
        """Who they are, in words; as they are where the server knows no more."""
        writers = tuple(writers)
        with self._reading(None) as cursor:
            return _described(cursor, writers)

    def _contiguous(self, cursor: Any, joined: bool = False) -> tuple[int, bool]:
        """How far positions have no hole, and whether that is all there is."""
        known = self._known
        cursor.execute(_AHEAD, {"position": known.position}, prepare=True)
        ahead = list(map(Known._make, cursor.fetchall()))
        if known.position:
            if not ahead or ahead[0] != known:
                self._forget(known)  # a crash has lost it, or its stream was deleted
                return 0, False
            del ahead[0]
        whole = next(
            (n for n, found in enumerate(ahead, 1) if found.position != known.position + n),
            len(ahead) + 1,
        )
        certain = ahead[whole - 2] if whole > 1 else known
        if not joined:
            self._advance(certain)
        return certain.position, whole - 1 == len(ahead) <= _FAR

    def _settle(self, pending: Barrier | None, fresh: Barrier) -> Frontier:
        """Bring what was pending up to date with what has been seen after it."""
        left = fresh if pending is None else pending.left(fresh.writers)
        if pending is None or not left.writers or fresh.writers <= left.writers:
            reached, left = left, fresh  # the later head, for no more writers
        else:
            reached = left
        with self._guard:
            for barrier in (reached, left):
                if not barrier.writers:
                    self._known = max(self._known, Known(barrier.head, barrier.id))
            # Another thread may have put a newer one there, which is as good.
            if self._pending is pending:
                self._pending = left if left.writers else None
            return Frontier(self._known.position, tuple(sorted(left.writers)))

    def _advance(self, known: Known) -> None:
        with self._guard:
            self._known = max(self._known, known)

    def _forget(self, what: Known | Barrier) -> None:
        """What was found by an event that is there no longer has to be found again."""
        with self._guard:
            self.doubts += 1
            if self._known is what:
                self._known = _NOTHING
            elif self._pending is what:
                self._pending = None

    def _await(self, barrier: Barrier, certain: int, timeout: float, joined: bool) -> bool:
        """Wait until the writers of a barrier have ended; False if its event has gone meanwhile.

        That of a caller's transaction may be seen by nobody else, and goes with its connection.
        """
        deadline = time.monotonic() + timeout
        pause = 0.0005
        while True:
            with self._reading(None) as cursor:
                stands, writers = _stands(cursor, barrier)
                if not (stands or joined):
                    return False
                barrier = barrier.left(writers)
                if not barrier.writers:
                    return True
                if time.monotonic() >= deadline:
                    named = _described(cursor, tuple(sorted(barrier.writers)))
                    raise LogStalledError(certain, named, timeout)
            time.sleep(pause)
            pause = min(pause * 2, 0.02)


def _barrier(cursor: Any) -> Barrier:
    cursor.execute(_HEAD_AND_WRITERS, prepare=True)
    head, id, writers = cursor.fetchone()
    return Barrier(head or 0, frozenset(writers), id or b"")


def _stands(cursor: Any, barrier: Barrier) -> tuple[bool, list[str]]:
    """Whether the event at the head of a barrier is there, and who writes now."""
    values = {"position": barrier.head, "id": barrier.id}
    cursor.execute(_STANDS_AND_WRITERS, values, prepare=True)
    there, writers = cursor.fetchone()
    return there or not barrier.head, writers


def _described(cursor: Any, writers: tuple[str, ...]) -> tuple[str, ...]:
    cursor.execute(_DESCRIBE, {"pids": [_process(writer) for writer in writers]})
    named = tuple(row[0] for row in cursor.fetchall())
    return named or writers


def _process(writer: str) -> int:
    return int(writer.split()[1])


def _is_prepared(writer: str) -> bool:
    return _process(writer) == 0  # it belongs to no process any more
