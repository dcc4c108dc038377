"""Group commit: the commands of many requests share transactions, each with its own answer.

There is a lane or several, and a stream is always in the same one. What arrives while a lane
commits is committed together as soon as it is done: the busier it is, the more share the cost of a
commit, and an idle server answers at once.
"""

from __future__ import annotations

import asyncio
import time
import zlib
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from typing import Final

from eventstore import moments
from eventstore.aio.hops import Hops
from eventstore.errors import EventStoreError, LogError, LogLockedError, LogUnavailableError
from eventstore.http.commands import Command
from eventstore.http.problems import Problem
from eventstore.http.responses import Answer
from eventstore.http.transaction import Interfered, Unit
from eventstore.log.base import Log
from eventstore.log.resources import Resources

#: Commands of a transaction, at the most.
MOST: Final = 256
#: Lanes: SQLite has one writer; on PostgreSQL the commits of several connections overlap.
_LANES: Final = {"sqlite": 1, "postgresql": 4}
#: How often a transaction is tried in which other writers interfere.
_ATTEMPTS: Final = 20
#: How often before the application's appends are kept out meanwhile.
_TRUSTING: Final = 2

_Waiting = tuple[Command, "asyncio.Future[Answer]"]
_Outcomes = tuple[list[Answer | Problem | EventStoreError], Mapping[str, int]]


class Committer:
    """Commits commands. To be used on one event loop."""

    def __init__(self, log: Log, hops: Hops, moved: Callable[[Mapping[str, int]], object]) -> None:
        """`moved` is told, on the loop, which log streams have changed, with their versions."""
        self._log = log
        self._resources = Resources(log)
        self._hops = hops
        self._moved = moved
        self._lanes = [_Lane(self) for _ in range(_LANES[log.engine.dialect.name])]

    async def commit(self, command: Command) -> Answer:
        """The answer to a command, when it is committed. Raises Problem, LogError.

        Cancelling leaves the command where it is: it may be committed all the same.
        """
        lanes = self._lanes
        lane = lanes[0]
        if len(lanes) > 1:
            lane = lanes[zlib.crc32(command.path.encode()) % len(lanes)]
        return await lane.commit(command)

    async def finish(self) -> None:
        """Wait until everything that was asked for is committed."""
        for lane in self._lanes:
            await lane.finish()

    async def run(self, commands: Sequence[Command]) -> list[Answer | Problem | EventStoreError]:
        """Commit commands in one transaction if that can be; what became of each."""
        outcomes, moved = await self._hops.run(self._together, commands)
        if moved:
            self._moved(moved)
        return outcomes

    # --- in a worker thread ----------------------------------------------------------------------

    def _together(self, commands: Sequence[Command]) -> _Outcomes:
        try:
            return self._transacted(commands)
        except LogUnavailableError as error:
            return [error] * len(commands), {}
        except EventStoreError as error:
            if len(commands) == 1:
                return [error], {}
        # One of them is at fault, and nothing is written: each for itself, then.
        answers: list[Answer | Problem | EventStoreError] = []
        all_moved: dict[str, int] = {}
        for command in commands:
            outcomes, moved = self._together([command])
            answers += outcomes
            all_moved.update(moved)
        return answers, all_moved

    def _transacted(self, commands: Sequence[Command]) -> _Outcomes:
        attempt = 1
        while True:
            try:
                with self._log.work() as work:
                    now = moments.now()
                    unit = Unit(self._log, self._resources, work, now, firm=attempt > _TRUSTING)
                    answers: list[Answer | Problem | EventStoreError] = [*unit.run(commands)]
                return answers, unit.moved
            except (Interfered, LogLockedError) as error:
                if attempt == _ATTEMPTS:
                    raise LogLockedError(
                        f"other writers interfered {attempt} times; nothing was written, retry"
                    ) from error
            time.sleep(0.001 * attempt)
            attempt += 1


class _Lane:
    """Commands that are committed one transaction after the other."""

    def __init__(self, committer: Committer) -> None:
        self._committer = committer
        self._waiting: deque[_Waiting] = deque()
        self._working: asyncio.Task[None] | None = None

    async def commit(self, command: Command) -> Answer:
        future: asyncio.Future[Answer] = asyncio.get_running_loop().create_future()
        self._waiting.append((command, future))
        if self._working is None:
            self._working = asyncio.create_task(self._work())
        return await future

    async def finish(self) -> None:
        while self._working is not None:
            await asyncio.wait([self._working])

    async def _work(self) -> None:
        try:
            while self._waiting:
                count = min(len(self._waiting), MOST)
                batch = [self._waiting.popleft() for _ in range(count)]
                await self._commit(batch)
        finally:
            self._working = None

    async def _commit(self, batch: Sequence[_Waiting]) -> None:
        try:
            outcomes = await self._committer.run([command for command, _ in batch])
        except BaseException as error:
            for _, future in batch:
                if not future.done():
                    future.set_exception(
                        error
                        if isinstance(error, EventStoreError)
                        else LogError(f"the request could not be committed: {error!r}")
                    )
            if not isinstance(error, Exception):
                raise
            return
        for (_, future), outcome in zip(batch, outcomes, strict=True):
            if future.done():  # the client has gone
                continue
            if isinstance(outcome, EventStoreError):
                future.set_exception(outcome)
            else:
                future.set_result(outcome)
