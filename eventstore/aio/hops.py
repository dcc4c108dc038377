"""Hops: a whole operation of the sync store in a worker thread, awaited on an event loop.

Going to another thread and back costs as much as a query or two, so an operation hops once, however
many queries it makes. What the context variables hold (correlation, causation) goes along.
"""

from __future__ import annotations

import asyncio
import contextvars
import threading
from collections import deque
from collections.abc import Callable
from functools import partial
from queue import SimpleQueue
from typing import Any, ParamSpec, TypeVar

from eventstore.errors import StoreClosedError

P = ParamSpec("P")
R = TypeVar("R")


class Awaited:
    """What a task awaits on its loop, and a worker thread finds."""

    __slots__ = ("error", "future", "landing", "result")

    def __init__(self, landing: _Landing) -> None:
        self.landing = landing
        self.future: asyncio.Future[Any] = landing.loop.create_future()
        self.result: Any = None
        self.error: BaseException | None = None

    def settle(self) -> None:
        """Tell whoever awaits it. On the loop's own thread."""
        future = self.future
        if future.done():  # cancelled meanwhile
            return
        if self.error is None:
            future.set_result(self.result)
        else:
            # A StopIteration cannot be raised into a coroutine.
            future.set_exception(
                RuntimeError("the operation raised StopIteration")
                if isinstance(self.error, StopIteration)
                else self.error
            )


class _Job(Awaited):
    """One operation under way."""

    __slots__ = ("call", "context")

    def __init__(self, call: Callable[[], Any], landing: _Landing) -> None:
        super().__init__(landing)
        self.call = call
        self.context = contextvars.copy_context()

    def run(self) -> None:
        if self.future.cancelled():  # before it has begun: nothing was done
            return
        try:
            self.result = self.context.run(self.call)
        except BaseException as error:
            self.error = error
        self.landing.land(self)


class _Landing:
    """Where what was found comes back to a loop: much at once wakes it once."""

    __slots__ = ("_landed", "_woken", "loop")

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self.loop = loop
        self._landed: deque[Awaited] = deque()
        self._woken = False

    def land(self, found: Awaited) -> None:
        """From a worker thread: it has its result, or its error."""
        self._landed.append(found)
        if self._woken:
            return
        self._woken = True
        try:
            self.loop.call_soon_threadsafe(self._settle)
        except RuntimeError:  # the loop is closed: nobody waits any more
            self._landed.clear()

    def _settle(self) -> None:
        self._woken = False  # first: what lands from now on wakes the loop again
        while self._landed:
            self._landed.popleft().settle()


class Hops:
    """Worker threads, started as they are needed, at most so many."""

    def __init__(self, threads: int) -> None:
        self._most = threads
        self._queue: SimpleQueue[Callable[[], None] | None] = SimpleQueue()
        self._threads: list[threading.Thread] = []
        self._starting = threading.Lock()
        self._closed = False
        self._landings: dict[asyncio.AbstractEventLoop, _Landing] = {}

    async def run(self, function: Callable[P, R], /, *args: P.args, **kwargs: P.kwargs) -> R:
        """Call the function in a worker thread; what it returned or raised.

        Cancelled before it has begun, it is not called; afterwards it goes on to its end, and
        nobody is told of its outcome.
        """
        job = _Job(partial(function, *args, **kwargs), self._landing())
        if not self.put(job.run):
            raise StoreClosedError
        result: R = await job.future
        return result

    def awaited(self) -> Awaited:
        """Something that the running task is going to await. Raises StoreClosedError."""
        if self._closed:
            raise StoreClosedError
        return Awaited(self._landing())

    def put(self, work: Callable[[], None]) -> bool:
        """Have a worker thread do it, which must not raise; False if the threads are ending."""
        if self._closed:
            return False
        self._queue.put(work)
        if len(self._threads) < self._most and (not self._threads or self._queue.qsize()):
            self._start()
        return True

    def _landing(self) -> _Landing:
        loop = asyncio.get_running_loop()
        found = self._landings.get(loop)
        if found is None:
            for other in [each for each in self._landings if each.is_closed()]:
                del self._landings[other]
            found = self._landings[loop] = _Landing(loop)
        return found

    def _start(self) -> None:
        with self._starting:
            if len(self._threads) < self._most and not self._closed:
                name = f"eventstore-aio-{len(self._threads)}"
                thread = threading.Thread(target=self._work, name=name, daemon=True)
                self._threads.append(thread)
                thread.start()

    def _work(self) -> None:
        while True:
            work = self._queue.get()
            if work is None:
                return
            work()
            del work

    def close(self) -> None:
        """End the threads when they have done what was asked for."""
        with self._starting:
            self._closed = True
            for _ in self._threads:
                self._queue.put(None)
        for thread in self._threads:
            if thread is not threading.current_thread():
                thread.join()
