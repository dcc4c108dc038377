"""Company: loads, saves and transactions that many tasks ask for at once are done together.

One that comes while few are under way goes ahead by itself. What comes while as many as pay are
under way waits, and is then taken along by the next thread that is free, all of it together. So
the busier the store is, the more share a query, a commit, and the way to a thread and back.
"""

from __future__ import annotations

import asyncio
import threading
import time
from collections import deque
from collections.abc import Sequence
from functools import partial
from typing import Any, Final

from eventstore.aio.hops import Awaited, Hops
from eventstore.errors import StoreClosedError
from eventstore.store import EventStore
from eventstore.together import Operation, do_together

#: How many threads it pays to have at it: one decides while the database works for another.
PLACES: Final = 2
#: Operations that are done together, at the most.
MOST: Final = 64
#: Seconds after which what waits has one more thread: some command is slow, or waits for another.
PATIENCE: Final = 0.1


class _Call:
    """An operation that waits, or is under way."""

    __slots__ = ("awaited", "operation", "since")

    def __init__(self, awaited: Awaited, operation: Operation) -> None:
        self.awaited = awaited
        self.operation = operation
        self.since = time.monotonic()

    def land(self) -> None:
        """Tell whoever awaits it what became of it."""
        self.awaited.result, self.awaited.error = self.operation.result, self.operation.error
        self.awaited.landing.land(self.awaited)


class Company:
    """The operations of one AsyncEventStore."""

    def __init__(self, hops: Hops) -> None:
        self._hops = hops
        self._waiting: deque[_Call] = deque()
        self._guard = threading.Lock()
        self._leading = 0
        self._watched = False

    async def join(self, store: EventStore, operation: Operation) -> Any:
        """What the operation gives or raises."""
        call = _Call(self._hops.awaited(), operation)
        with self._guard:
            self._waiting.append(call)
            leads = self._leading < PLACES
            if leads:
                self._leading += 1
        if not leads:
            self._watch(store, call.awaited.landing.loop)
        elif not self._hops.put(partial(self._lead, store)):
            with self._guard:
                self._leading -= 1
                self._waiting.remove(call)
            raise StoreClosedError
        return await call.awaited.future

    def _watch(self, store: EventStore, loop: asyncio.AbstractEventLoop) -> None:
        if not self._watched:
            self._watched = True
            loop.call_later(PATIENCE, self._help, store, loop)

    def _help(self, store: EventStore, loop: asyncio.AbstractEventLoop) -> None:
        self._watched = False
        with self._guard:
            if not self._waiting:
                return
            overdue = time.monotonic() - self._waiting[0].since >= PATIENCE
            if overdue:
                self._leading += 1
        if overdue:
            self._hops.put(partial(self._lead, store))
        self._watch(store, loop)

    def _lead(self, store: EventStore) -> None:
        """In a worker thread: do what waits, and see that what comes meanwhile is done."""
        goes_on = True
        while goes_on:
            with self._guard:
                group = [self._waiting.popleft() for _ in range(min(MOST, len(self._waiting)))]
            self._do(store, [call for call in group if not call.awaited.future.cancelled()])
            with self._guard:
                goes_on = bool(self._waiting) and self._leading <= PLACES
                if not goes_on:
                    self._leading -= 1
            if goes_on and self._hops.put(partial(self._lead, store)):
                return  # behind other operations that wait for a thread

    def _do(self, store: EventStore, group: Sequence[_Call]) -> None:
        try:
            do_together(store, [call.operation for call in group])
        except BaseException as error:  # a defect, and of nobody in particular
            for call in group:
                if not call.operation.done:
                    call.operation.error, call.operation.done = error, True
        # What is left open: side by side, but what concerns one aggregate in turns.
        left: dict[tuple[type, str], list[_Call]] = {}
        for call in group:
            if call.operation.done:
                call.land()
            else:
                left.setdefault((call.operation.cls, call.operation.id), []).append(call)
        while left:
            alone = partial(_alone, store, left.popitem()[1])
            if not left or not self._hops.put(alone):
                alone()


def _alone(store: EventStore, calls: Sequence[_Call]) -> None:
    for call in calls:
        call.operation.alone(store)
        call.land()
