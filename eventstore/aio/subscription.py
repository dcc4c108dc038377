"""Live readers on an event loop: thousands of them share one reader of the log."""

from __future__ import annotations

import asyncio
import threading
from collections import deque
from collections.abc import AsyncIterator, Iterable
from types import TracebackType
from typing import TYPE_CHECKING, Final, Self

from eventstore.checkpoints import Mark, check_mark, mark
from eventstore.codec import recorded
from eventstore.errors import (
    EventStoreError,
    LogLockedError,
    LogUnavailableError,
    StoreClosedError,
)
from eventstore.event import RecordedEvent
from eventstore.log.base import Bounds, Log, Wanted
from eventstore.names import category_of
from eventstore.subscriptions import Stall, Tail

if TYPE_CHECKING:
    from eventstore.aio.store import AsyncEventStore

#: How many of the latest events are kept for readers that are nearly up to date.
RECENT: Final = 2_000
#: Events a page, where a reader has to catch up.
_PAGE: Final = 500
#: Seconds after which the reader of the log looks whether anybody still waits.
_BREATH: Final = 1.0
#: Seconds until the log is tried again while the database is away.
_AWAY: Final = 0.5


class Live:
    """The moving end of one log for one event loop: read once, for all that wait.

    A thread reads what is new and hands it over, while there is anybody to hand it to. Everything
    but that thread is the loop's own.
    """

    def __init__(self, log: Log, loop: asyncio.AbstractEventLoop) -> None:
        self._log = log
        self._loop = loop
        self._thread: threading.Thread | None = None
        self._tail = Tail(log)
        self._waiting: set[asyncio.Future[None]] = set()
        self._readers = 0
        self._events: deque[RecordedEvent] = deque()
        self._was_away = False
        #: All events past `floor` and up to `end` are among those that are kept.
        self.floor = 0
        self.end = 0
        self.failure: EventStoreError | None = None

    def enter(self) -> None:
        """One more reader."""
        if isinstance(self.failure, StoreClosedError):
            raise self.failure
        self._readers += 1
        if self._thread is None:
            self._tail = Tail(self._log)
            self.failure = None
            self._events.clear()
            self.floor = self.end = -1  # not known yet
            self._thread = threading.Thread(
                target=self._follow, args=(self._tail,), name="eventstore-live", daemon=True
            )
            self._thread.start()

    def leave(self) -> None:
        """One reader less; after the last one the thread ends."""
        self._readers -= 1
        if not self._readers:
            self.stop()

    def close(self) -> threading.Thread | None:
        """End it for good: those that wait get StoreClosedError. The thread, to be joined."""
        self.failure = StoreClosedError()
        return self.stop()

    def stop(self) -> threading.Thread | None:
        """Have the thread end, and wake all that wait; the thread, to be joined."""
        thread, self._thread = self._thread, None
        self._tail.stop()
        self.wake()
        return thread

    @property
    def is_known(self) -> bool:
        """Whether the end of the log has been looked up."""
        return self.end >= 0

    def since(self, position: int) -> list[RecordedEvent]:
        """The kept events past a position, which is not below the floor."""
        found = []
        for record in reversed(self._events):
            if record.position <= position:
                break
            found.append(record)
        return found[::-1]

    async def news(self) -> None:
        """Wait until something has changed. Raises what ended the reading of the log."""
        self._check()
        waiter: asyncio.Future[None] = self._loop.create_future()
        self._waiting.add(waiter)
        try:
            await waiter
        finally:
            self._waiting.discard(waiter)
        self._check()

    def _check(self) -> None:
        if self.failure is not None:
            raise self.failure

    def why_stalled(self) -> Stall | None:
        return self._tail.why_stalled()

    def wake(self) -> None:
        """Have all that wait look again."""
        for waiter in self._waiting:
            if not waiter.done():
                waiter.set_result(None)

    # --- the thread ----------------------------------------------------------------------------

    def _follow(self, tail: Tail) -> None:
        try:
            with tail:
                place = Mark(-1)
                while not tail.stopped:
                    place = self._step(tail, place)
        except EventStoreError as error:
            self._post(self._failed, tail, error)

    def _step(self, tail: Tail, place: Mark) -> Mark:
        try:
            if self._was_away:  # it may have come back as it was earlier
                check_mark(self._log, place)
                self._was_away = False
            end = tail.certain()
            if tail.has_doubts():
                self._was_away = True
                return place
            if place.position < 0 or end - place.position > 10 * RECENT:
                # Nothing is kept of what is long past: readers catch up by themselves.
                last = self._log.read_all(0, Bounds(position=end), limit=1, backwards=True)
                self._post(self._moved, tail, end, end, [])
                return Mark(end, last[0].id if last else None)
            while place.position < end:
                bounds = Bounds(position=end)
                rows = self._log.read_all(place.position, bounds, limit=RECENT)
                records = [recorded(row, self._log.event_type(row.type)) for row in rows]
                position = end if len(rows) < RECENT else rows[-1].position
                self._post(self._moved, tail, None, position, records)
                place = Mark(position, rows[-1].id if rows else place.id)
            tail.wait(end, _BREATH)
        except (LogUnavailableError, LogLockedError) as error:
            self._was_away = self._was_away or isinstance(error, LogUnavailableError)
            tail.rest(_AWAY)
        return place

    def _post(self, call: object, *arguments: object) -> None:
        try:
            self._loop.call_soon_threadsafe(call, *arguments)  # type: ignore[arg-type]
        except RuntimeError:  # the loop is closed
            self._tail.stop()

    # --- on the loop ---------------------------------------------------------------------------

    def _moved(
        self, tail: Tail, floor: int | None, end: int, records: Iterable[RecordedEvent]
    ) -> None:
        if tail is not self._tail:  # the news of a reader that has been ended
            return
        if floor is not None:
            self._events.clear()
            self.floor = floor
        self._events.extend(records)
        while len(self._events) > RECENT:
            self.floor = self._events.popleft().position
        self.end = end
        self.wake()

    def _failed(self, tail: Tail, error: EventStoreError) -> None:
        if tail is self._tail:
            self.failure = error
            self.wake()


class AsyncSubscription(AsyncIterator[RecordedEvent]):
    """Everything past a position in the log's order, then what is appended, until stopped.

        async with store.subscribe(after=checkpoint) as subscription:
            async for record in subscription:
                ...

    Nothing is missed, repeated or out of order. A reader that waits holds no thread and no
    connection: all readers of a store share one that reads each event once. Leaving the block, or
    `stop`, ends the iteration.
    """

    def __init__(self, store: AsyncEventStore, after: int | str, wanted: Wanted) -> None:
        self._store = store
        self._wanted = wanted
        self._types = None if wanted.types is None else frozenset(wanted.types)
        self._categories = None if wanted.categories is None else frozenset(wanted.categories)
        self._records: deque[RecordedEvent] = deque()
        self._mark = mark(after)
        self._position = self._read = self._mark.position
        self._was_away = False
        self._live: Live | None = None
        self._stopped = False

    @property
    def position(self) -> int:
        """The last position that was given, or passed over: where to resume, as `after`."""
        return self._position

    @property
    def checkpoint(self) -> str:
        """Where to resume, as `after`: the last event that was given, in this very log."""
        return str(self._mark)

    def stop(self) -> None:
        """End the iteration. On the loop's own thread."""
        if self._stopped:
            return
        self._stopped = True
        if self._live is not None:
            self._live.wake()
            self._live.leave()

    async def why_stalled(self) -> Stall | None:
        """The open transactions that hold the iteration back at this moment, if there are any."""
        live = self._live
        return None if live is None else await self._store._hops.run(live.why_stalled)

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> RecordedEvent:
        live = await self._begin()
        while not self._stopped:
            if self._records:
                record = self._records.popleft()
                self._position = record.position
                self._mark = Mark(record.position, record._id)
                return record
            self._position = self._read
            await self._progress(live)
        raise StopAsyncIteration

    async def _begin(self) -> Live:
        if self._live is None:
            store = await self._store._opened()
            await self._store._hops.run(check_mark, store.log, self._mark)
            self._live = self._store._followed(store)
            self._live.enter()
        return self._live

    async def _progress(self, live: Live) -> None:
        """Get further events, or wait for some."""
        if not live.is_known or live.end <= self._read:
            await live.news()
        elif self._read >= live.floor:
            end = live.end
            self._records.extend(r for r in live.since(self._read) if self._wants(r))
            self._read = end
        else:
            end = live.end
            try:
                records = await self._store._hops.run(self._page, end)
            except (LogUnavailableError, LogLockedError) as error:
                self._was_away = self._was_away or isinstance(error, LogUnavailableError)
                await asyncio.sleep(_AWAY)
                return
            self._records.extend(records)
            self._read = end if len(records) < _PAGE else records[-1].position

    def _page(self, end: int) -> list[RecordedEvent]:
        log, bounds = self._store.sync.log, Bounds(position=end)
        if self._was_away:
            check_mark(log, self._mark)
            self._read = self._mark.position
            self._was_away = False
        rows = log.read_all(self._read, bounds, limit=_PAGE, wanted=self._wanted)
        return [recorded(row, log.event_type(row.type)) for row in rows]

    def _wants(self, record: RecordedEvent) -> bool:
        return (self._types is None or record.type in self._types) and (
            self._categories is None or category_of(record.stream) in self._categories
        )

    async def __aenter__(self) -> Self:
        await self._begin()
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.stop()
