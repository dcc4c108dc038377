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


class _Job:
    """One operation under way."""

    __slots__ = ("call", "context", "error", "future", "landing", "result")

    def __init__(self, call: Callable[[], Any], landing: _Landing) -> None:
        self.call = call
        self.context = contextvars.copy_context()
        self.landing = landing
        self.future: asyncio.Future[Any] = landing.loop.create_future()
        self.result: Any = None
        self.error: BaseException | None = None

    def run(self) -> None:
        if self.future.cancelled():  # before it has begun: nothing was done
            return
        try:
            self.result = self.context.run(self.call)
        except BaseException as error:
            self.error = error
        self.landing.land(self)

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


class _Landing:
    """Where finished jobs come back to a loop: many at once wake it once."""

    __slots__ = ("_landed", "_woken", "loop")

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self.loop = loop
        self._landed: deque[_Job] = deque()
        self._woken = False

    def land(self, job: _Job) -> None:
        """From a worker thread: the job is done."""
        self._landed.append(job)
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
        self._queue: SimpleQueue[_Job | None] = SimpleQueue()
        self._threads: list[threading.Thread] = []
        self._starting = threading.Lock()
        self._closed = False
        self._landings: dict[asyncio.AbstractEventLoop, _Landing] = {}

    async def run(self, function: Callable[P, R], /, *args: P.args, **kwargs: P.kwargs) -> R:
        """Call the function in a worker thread; what it returned or raised.

        Cancelled before it has begun, it is not called; afterwards it goes on to its end, and
        nobody is told of its outcome.
        """
        if self._closed:
            raise StoreClosedError
        job = _Job(partial(function, *args, **kwargs), self._landing())
        self._queue.put(job)
        if len(self._threads) < self._most and (not self._threads or self._queue.qsize()):
            self._start()
        result: R = await job.future
        return result

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
            job = self._queue.get()
            if job is None:
                return
            job.run()
            del job

    def close(self) -> None:
        """End the threads when they have done what was asked for."""
        with self._starting:
            self._closed = True
            for _ in self._threads:
                self._queue.put(None)
        for thread in self._threads:
            if thread is not threading.current_thread():
                thread.join()
