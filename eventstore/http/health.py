"""Whether a server lives, and whether it is ready: outside the streams, for whoever asks."""

from __future__ import annotations

import asyncio
import time
from typing import Final

from eventstore.aio.hops import Hops
from eventstore.errors import EventStoreError
from eventstore.http.responses import Answer
from eventstore.store import EventStore

#: Seconds for which an answer of the database is good, and that one may take.
_GOOD: Final = 1.0
_PATIENCE: Final = 5.0
_HEADERS: Final = {"Content-Type": "text/plain", "Cache-Control": "no-store"}


class Health:
    """Answers at `/healthz` and `/readyz`."""

    def __init__(self, store: EventStore) -> None:
        self._store = store
        self._hops = Hops(1)
        self._asked_at = -_GOOD
        self._asking: asyncio.Task[bool] | None = None
        self.is_stopping = False

    async def answer(self, path: str) -> Answer | None:
        """The answer at a path; None if it is not one of these."""
        if path == "/healthz":
            return Answer(200, _HEADERS, b"alive\n")
        if path != "/readyz":
            return None
        if self.is_stopping:
            return Answer(503, _HEADERS, b"stopping\n")
        if await self._is_there():
            return Answer(200, _HEADERS, b"ready\n")
        return Answer(503, _HEADERS, b"the database does not answer\n")

    async def _is_there(self) -> bool:
        """Whether the database answers; it is asked once for all who want to know."""
        asking = self._asking
        is_old = time.monotonic() - self._asked_at >= _GOOD
        if asking is None or (asking.done() and is_old):
            self._asked_at = time.monotonic()
            asking = self._asking = asyncio.create_task(self._ask())
        try:
            async with asyncio.timeout(_PATIENCE):
                return await asyncio.shield(asking)
        except TimeoutError:
            return False

    async def _ask(self) -> bool:
        try:
            await self._hops.run(self._store.version, "readyz")
        except EventStoreError:
            return False
        return True

    async def aclose(self) -> None:
        """End its thread."""
        await asyncio.get_running_loop().run_in_executor(None, self._hops.close)
