"""A client that waits: until there is news, until its time is over, or until it goes away."""

from __future__ import annotations

import asyncio
from types import TracebackType
from typing import Self

from eventstore.http.live import Feed
from eventstore.http.responses import Receive


class Waiting:
    """One client's patience. A context manager: the end of the block ends the watching for it."""

    def __init__(self, receive: Receive, seconds: float) -> None:
        self._receive = receive
        self._loop = asyncio.get_running_loop()
        self._deadline = self._loop.time() + seconds
        self._future: asyncio.Future[None] | None = None
        self._watching: asyncio.Task[None] | None = None
        self._timer: asyncio.TimerHandle | None = None
        self._is_over = False

    async def news(self, feed: Feed, seen: int) -> bool:
        """Wait for news of a stream since its count was `seen`; False if the waiting is over."""
        if self._watching is None:
            self._watching = self._loop.create_task(self._watch())
            self._timer = self._loop.call_at(self._deadline, self._end)
        if self._is_over:
            return False
        self._future = feed.wait(seen)
        try:
            await self._future
        finally:
            feed.leave(self._future)
            self._future = None
        return not self._is_over

    async def _watch(self) -> None:
        """Notice that the client is gone."""
        while True:
            message = await self._receive()
            if message["type"] == "http.disconnect":
                self._end()
                return

    def _end(self) -> None:
        self._is_over = True
        if self._future is not None and not self._future.done():
            self._future.set_result(None)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._watching is not None:
            self._watching.cancel()
        if self._timer is not None:
            self._timer.cancel()
