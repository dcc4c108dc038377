"""Group commit: appends of many threads at once share a transaction, each with its own outcome.

There is no thread for it and nobody waits for company: an append that finds a free place commits at
once. What arrives while all places are taken is committed together by the first of those that
wait, as soon as a place comes free. So the busier it is, the more share the cost of a commit.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Sequence
from typing import Final

from eventstore.errors import EventStoreError, copied
from eventstore.log.base import Receipt, Write

#: Appends in one transaction, at the most.
MOST: Final = 128


class Request:
    """An append of one caller, and what became of it."""

    __slots__ = ("error", "key", "leads", "receipts", "recorded_at", "turn", "writes")

    def __init__(self, writes: Sequence[Write], key: str | None, recorded_at: int | None) -> None:
        self.writes = writes
        self.key = key
        self.recorded_at = recorded_at
        self.receipts: tuple[Receipt, ...] | None = None
        self.error: BaseException | None = None
        self.leads = False
        #: Held while the request waits.
        self.turn: threading.Lock | None = None

    @property
    def is_simple(self) -> bool:
        """Whether one statement decides it, and leaves nothing behind if it is refused."""
        return len(self.writes) == 1 and self.key is None and bool(self.writes[0].events)

    def outcome(self) -> tuple[Receipt, ...]:
        if self.error is not None:
            raise self.error
        assert self.receipts is not None
        return self.receipts


class GroupCommit:
    """Commits appends, several together where several are waiting."""

    def __init__(
        self,
        places: int,
        alone: Callable[[Sequence[Write], str | None, int | None], tuple[Receipt, ...]],
        together: Callable[[Sequence[Request]], None],
    ) -> None:
        """`places` is how many transactions may be under way at once.

        `alone` appends in a transaction of its own. `together` sets the outcome of requests in one
        transaction, of all or of some; those that it leaves open are done alone. If it raises, it
        has done nothing, or nobody knows: that is then the outcome of all.
        """
        self._places = places
        self._alone = alone
        self._together = together
        self._guard = threading.Lock()
        self._waiting: deque[Request] = deque()

    def append(
        self, writes: Sequence[Write], key: str | None, recorded_at: int | None
    ) -> tuple[Receipt, ...]:
        """Append; when this returns, it is committed."""
        with self._guard:
            request = None
            if self._places:
                self._places -= 1
            else:
                request = Request(writes, key, recorded_at)
                request.turn = threading.Lock()
                request.turn.acquire()
                self._waiting.append(request)
        if request is None:
            try:
                return self._alone(writes, key, recorded_at)
            finally:
                self._pass_on()
        assert request.turn is not None
        request.turn.acquire()
        if request.leads:
            self._lead(request)
        return request.outcome()

    def _lead(self, request: Request) -> None:
        """Commit everything that waits, this one first."""
        with self._guard:
            group = [request]
            while self._waiting and len(group) < MOST:
                group.append(self._waiting.popleft())
        try:
            self.commit(group)
        finally:
            self._pass_on()
            for other in group[1:]:
                assert other.turn is not None
                other.turn.release()

    def _pass_on(self) -> None:
        """Give the place to the first that waits, or free it."""
        with self._guard:
            if not self._waiting:
                self._places += 1
                return
            first = self._waiting.popleft()
        first.leads = True
        assert first.turn is not None
        first.turn.release()

    def commit(self, group: Sequence[Request]) -> None:
        """Commit these together, now; each has its outcome then."""
        if len(group) > 1:
            try:
                self._together(group)
            except BaseException as error:
                for request in group:
                    request.error, request.receipts = copied(error), None
                if not isinstance(error, EventStoreError):
                    raise
                return
        for request in group:
            if request.receipts is None and request.error is None:
                try:
                    request.receipts = self._alone(request.writes, request.key, request.recorded_at)
                except BaseException as error:
                    request.error = error
