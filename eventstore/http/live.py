"""Live readers: who waits for which stream, and how news reach them.

A reader that waits is a future on the event loop, no more. What this server commits wakes the
readers of just the streams concerned; what others commit to the same log (the application, another
server) is noticed by one thread, which asks the log which streams have moved. Whatever wakes
readers of a stream, the first of them reads what is new, for all.
"""

from __future__ import annotations

import asyncio
import logging
import threading
import time
from collections.abc import Callable, Generator, Iterable, Mapping
from contextlib import contextmanager
from typing import Final

from eventstore import moments
from eventstore.aio.hops import Hops
from eventstore.errors import (
    EventStoreError,
    LogError,
    LogLockedError,
    LogUnavailableError,
    StoreClosedError,
)
from eventstore.http.reading import Found, Page, Reader
from eventstore.http.transaction import not_found
from eventstore.log.base import Log
from eventstore.log.resources import Resources
from eventstore.subscriptions import Tail

logger = logging.getLogger(__name__)

#: Seconds between two looks at which streams have been closed or deleted by other servers.
_ENDED: Final = 0.25
#: Seconds for which the watching goes on without a reader.
_LINGER: Final = 5.0
#: Streams that are looked up at once there.
_MANY: Final = 500
#: Seconds until the log is tried again while the database is away.
_AWAY: Final = 0.5


class Feed:
    """The live readers of one stream."""

    def __init__(self, stream: str) -> None:
        self.stream = stream
        #: How many readers there are.
        self.readers = 0
        #: Goes up with all news.
        self.count = 0
        #: The highest version of which all readers were told. What one of them has read counts
        #: for nothing here: the others may not have.
        self.version = 0
        self._waiting: set[asyncio.Future[None]] = set()
        #: Reads under way, by the version past which they read and the count when they began, and
        #: who waits for each.
        self._reads: dict[
            tuple[int, int], tuple[asyncio.Future[Page], list[asyncio.Future[Page]]]
        ] = {}

    def news(self) -> None:
        """Wake all that wait."""
        self.count += 1
        waiting, self._waiting = self._waiting, set()
        for future in waiting:
            if not future.done():
                future.set_result(None)

    def wait(self, seen: int) -> asyncio.Future[None]:
        """Done when there is news since `count` was `seen`. To be given back to `leave`."""
        future: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        if self.count != seen:
            future.set_result(None)
        else:
            self._waiting.add(future)
        return future

    def leave(self, future: asyncio.Future[None]) -> None:
        """Nobody waits for it any more."""
        self._waiting.discard(future)

    async def read(self, start: int, read: Callable[[], asyncio.Future[Page]]) -> Page:
        """The page past a version, read after the last news: once for all that ask meanwhile."""
        key = (start, self.count)  # what began before the last news may not have seen it
        under_way = self._reads.get(key)
        if under_way is None:
            under_way = self._reads[key] = read(), []
            under_way[0].add_done_callback(lambda _: self._done(key))
        # Its own future for each, as who goes away must not take the read along; `shield` would do
        # the same, and take a quarter of a reader's time.
        waiter: asyncio.Future[Page] = asyncio.get_running_loop().create_future()
        under_way[1].append(waiter)
        return await waiter

    def _done(self, key: tuple[int, int]) -> None:
        found, waiting = self._reads.pop(key)
        error = LogError("the read was ended") if found.cancelled() else found.exception()
        for waiter in waiting:
            if waiter.done():
                continue
            if error is None:
                waiter.set_result(found.result())
            else:
                waiter.set_exception(error)


class Hub:
    """The feeds of one log on one event loop."""

    def __init__(self, log: Log, hops: Hops, reader: Reader) -> None:
        self._log = log
        self._hops = hops
        self._reader = reader
        self._loop = asyncio.get_running_loop()
        self._feeds: dict[str, Feed] = {}
        self._listeners: list[Callable[[Mapping[str, int]], object]] = []
        self._watcher: _Watcher | None = None
        self.is_draining = False

    def listen(self, listener: Callable[[Mapping[str, int]], object]) -> None:
        """Have a function called on the loop with the log streams that have moved, and how far.

        An empty mapping says that anything may have moved.
        """
        self._listeners.append(listener)
        self._watch()

    def ignore(self, listener: Callable[[Mapping[str, int]], object]) -> None:
        """Do not call that function any more."""
        self._listeners.remove(listener)
        if not self._feeds and not self._listeners:
            self._loop.call_later(_LINGER, self._rest)

    @contextmanager
    def feed(self, stream: str) -> Generator[Feed]:
        """The feed of a log stream, for a reader that is in the block."""
        feed = self._feeds.get(stream)
        if feed is None:
            feed = self._feeds[stream] = Feed(stream)
        feed.readers += 1
        self._watch()
        try:
            yield feed
        finally:
            feed.readers -= 1
            if not feed.readers and self._feeds.get(stream) is feed:
                del self._feeds[stream]
                if not self._feeds and not self._listeners:
                    self._loop.call_later(_LINGER, self._rest)

    async def page(self, feed: Feed, path: str, start: int) -> Page:
        """The stream and its messages past a version, as they are now. Raises Problem."""

        def read() -> asyncio.Future[Page]:
            return asyncio.ensure_future(self._hops.run(self._page, path, feed.stream, start))

        return await feed.read(start, read)

    def _page(self, path: str, stream: str, start: int) -> Page:
        found: Found = self._reader.find(path, moments.now())
        if found.resource.stream != stream:
            raise not_found(path)  # deleted, and made anew: not what the client reads
        return self._reader.page(found, start)

    # --- news ----------------------------------------------------------------------------------

    def moved(self, streams: Mapping[str, int]) -> None:
        """These log streams have moved: up to a version, or to their end. On the loop."""
        for stream, version in streams.items():
            feed = self._feeds.get(stream)
            if feed is not None:
                feed.version = max(feed.version, version)
                feed.news()
        for listener in self._listeners:
            listener(streams)

    def drain(self) -> None:
        """Send all readers away: they reconnect, elsewhere or later."""
        self.is_draining = True
        for feed in list(self._feeds.values()):
            feed.news()

    def close(self) -> threading.Thread | None:
        """End the watching; the thread, to be joined."""
        self.drain()
        watcher, self._watcher = self._watcher, None
        return None if watcher is None else watcher.stop()

    def _watch(self) -> None:
        if self._watcher is None and not self.is_draining:
            self._watcher = _Watcher(self._log, self._loop, self)

    def _rest(self) -> None:
        """With nobody to tell, end the watching: it costs every commit something."""
        if not self._feeds and not self._listeners and self._watcher is not None:
            self._watcher.stop()
            self._watcher = None

    def _heard(self, streams: Mapping[str, int]) -> None:
        """What the thread has heard of: much of it is known already."""
        news = {
            stream: version
            for stream, version in streams.items()
            if (feed := self._feeds.get(stream)) is None or feed.version < version
        }
        if news:
            self.moved(news)

    def _ended(self, streams: Iterable[str]) -> None:
        """These have been closed or deleted, once: whoever waits has not heard of it yet."""
        for stream in streams:
            feed = self._feeds.get(stream)
            if feed is not None:
                feed.news()

    def _anything(self) -> None:
        for feed in list(self._feeds.values()):
            feed.news()
        for listener in self._listeners:
            listener({})

    def _awaited(self) -> list[str]:
        return list(self._feeds)


class _Watcher:
    """The thread that notices what others commit."""

    def __init__(self, log: Log, loop: asyncio.AbstractEventLoop, hub: Hub) -> None:
        self._log = log
        self._resources = Resources(log)
        self._loop = loop
        self._hub = hub
        self._tail = Tail(log)
        self._looked = time.monotonic()
        self._known = -1
        self._thread = threading.Thread(target=self._run, name="eventstore-http", daemon=True)
        self._thread.start()

    def stop(self) -> threading.Thread:
        self._tail.stop()
        return self._thread

    def _run(self) -> None:
        position = -1
        with self._tail as tail:
            while not tail.stopped:
                try:
                    position = self._step(tail, position)
                except StoreClosedError:
                    return
                except EventStoreError as error:
                    if not isinstance(error, (LogUnavailableError, LogLockedError)):
                        logger.warning(
                            "for a moment live readers only hear of what this server commits: %s",
                            error,
                            extra={"eventstore.error": type(error).__name__},
                        )
                    tail.rest(_AWAY)
                    position = -1  # afterwards, everybody looks

    def _step(self, tail: Tail, position: int) -> int:
        end = tail.certain()
        if position < 0:
            self._post(self._hub._anything)
        elif end > position:
            self._post(self._hub._heard, dict(self._log.moved(position, end)))
        tail.wait(end, self._look_for_ends())
        return end

    def _look_for_ends(self) -> float | None:
        """Find streams that have ended, which no event tells; seconds until it is due again.

        Not at every commit, but soon after any.
        """
        commits = self._log.signal.count
        if commits == self._known:
            return None
        early = self._looked + _ENDED - time.monotonic()
        if early > 0:
            return early
        self._known, self._looked = commits, time.monotonic()
        names = self._hub._awaited()
        for start in range(0, len(names), _MANY):
            ended = self._resources.ended(names[start : start + _MANY])
            if ended:
                self._post(self._hub._ended, ended)
        return None

    def _post(self, call: Callable[..., object], *arguments: object) -> None:
        try:
            self._loop.call_soon_threadsafe(call, *arguments)
        except RuntimeError:  # the loop is closed
            self._tail.stop()
