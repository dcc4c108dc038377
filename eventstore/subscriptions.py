"""Following the whole log: what is there, then what comes, each event once and in order."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from types import TracebackType
from typing import Final, Self

from eventstore.checkpoints import Mark, check_mark, mark
from eventstore.codec import Codec
from eventstore.errors import LogLockedError, LogUnavailableError
from eventstore.event import RecordedEvent
from eventstore.log.base import Bounds, Frontier, Log, Row, Wanted
from eventstore.log.signal import Signal

logger = logging.getLogger(__name__)

PAGE: Final = 1000

# Seconds: between looks while open transactions hold the log's end back, and between attempts
# while the database is away.
_HELD: Final = (0.001, 0.05)
_AWAY: Final = (0.05, 2.0)


@dataclass(frozen=True, slots=True)
class Stall:
    """The log is final up to `position`, and past it only when these writers have ended."""

    position: int
    writers: tuple[str, ...]


class Tail:
    """The moving end of a log, for one thread that reads up to it.

    `stop` may be called from any thread or signal handler.
    """

    def __init__(self, log: Log) -> None:
        self._log = log
        self._seen = log.signal.count
        self._found = Frontier(0, ())
        self._doubts = log.doubts
        self._held = 0  # looks in a row that got no further because of writers
        self._stopped = False
        self._stopping = Signal()
        self._watching: contextlib.ExitStack | None = None

    def certain(self) -> int:
        """The position up to which the log is final. It does not wait. Raises LogError."""
        self._seen = self._log.signal.count  # first, so that nothing after the look is missed
        found = self._log.frontier()
        no_further = found.writers and found.position <= self._found.position
        self._held = self._held + 1 if no_further else 0
        self._found = found
        return found.position

    def has_doubts(self) -> bool:
        """Whether, since this was last asked, the log may have gone back behind what was read."""
        before, self._doubts = self._doubts, self._log.doubts
        return before != self._doubts

    def wait(self, beyond: int, timeout: float | None = None) -> bool:
        """Wait until the log may have moved past `beyond`, or so many seconds.

        At once if the last look has gone past it. False when stopped.
        """
        if not self._stopped and self._found.position <= beyond:
            if self._found.writers:
                # Until they end, no news helps.
                first, longest = _HELD
                pause = min(first * 2 ** min(self._held, 9), longest)
                self.rest(pause if timeout is None else min(pause, timeout))
            else:
                poll = self._log.poll_interval
                self._log.signal.wait(self._seen, poll if timeout is None else min(poll, timeout))
        return not self._stopped

    def rest(self, seconds: float) -> bool:
        """Wait so many seconds; False when stopped."""
        if not self._stopped:
            self._stopping.wait(0, seconds)
        return not self._stopped

    def stop(self) -> None:
        """End all waiting, for good."""
        self._stopped = True
        self._stopping.fire()
        self._log.signal.fire()

    @property
    def stopped(self) -> bool:
        return self._stopped

    def why_stalled(self) -> Stall | None:
        """Who holds the reader back, if anybody did at its last looks. Raises LogError."""
        found = self._found
        if self._held < 2 or self._stopped:  # it takes a moment to commit
            return None
        return Stall(found.position, self._log.describe(found.writers))

    def start(self) -> None:
        """Have other processes' commits end the waiting. Raises StoreClosedError."""
        if self._watching is None:
            stack = contextlib.ExitStack()
            stack.enter_context(self._log.watching())
            self._watching = stack

    def close(self) -> None:
        """The end of `start`, which may come again."""
        stack, self._watching = self._watching, None
        if stack is not None:
            stack.close()

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()


class Subscription(Iterator[RecordedEvent]):
    """Everything past a position in the log's order, then what is appended, until stopped.

    Nothing is missed, repeated or out of order, whoever writes at the same time. While the database
    is away the iteration waits for it; if it comes back without what was read last, that is told by
    CheckpointAheadError. Use it as a context manager, so that what watches for other processes'
    commits ends with it. Only `stop`, `position` and `why_stalled` are for other threads than the
    one that iterates.
    """

    def __init__(self, log: Log, codec: Codec, after: int | str, wanted: Wanted) -> None:
        """Raises InvalidArgumentError, CheckpointAheadError, LogError."""
        self._mark = mark(after)
        check_mark(log, self._mark)
        self._log = log
        self._codec = codec
        self._wanted = wanted
        self._tail = Tail(log)
        self._position = self._mark.position
        self._rows: Sequence[Row] = ()
        self._next = 0  # of the rows
        self._read = self._position  # up to here, nothing is wanted but the rows
        self._failures = 0
        self._was_away = False

    @property
    def position(self) -> int:
        """The last position that was given, or passed over: where to resume, as `after`."""
        return self._position

    @property
    def checkpoint(self) -> str:
        """Where to resume, as `after`: the last event that was given, in this very log.

        Unlike a position it is noticed when an older log was restored in between.
        """
        return str(self._mark)

    def stop(self) -> None:
        """End the iteration, now or when its next event is asked for.

        From any thread or signal handler.
        """
        self._tail.stop()

    def why_stalled(self) -> Stall | None:
        """The open transactions that hold the iteration back at this moment, if there are any.

        Raises LogError.
        """
        return self._tail.why_stalled()

    def __iter__(self) -> Self:
        return self

    def __next__(self) -> RecordedEvent:
        try:
            self._tail.start()
            while not self._tail.stopped:
                event = self._tried()
                if event is not None:
                    return event
        except BaseException:
            self._tail.close()
            raise
        self._tail.close()
        raise StopIteration

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._tail.stop()
        self._tail.close()

    def _tried(self) -> RecordedEvent | None:
        """A step, or a pause if the database is away."""
        try:
            event = self._step()
        except (LogUnavailableError, LogLockedError) as error:
            if isinstance(error, LogUnavailableError):
                # What was read and not given yet may be lost: it is read again.
                self._was_away, self._rows, self._next = True, (), 0
            first, longest = _AWAY
            pause = min(first * 2 ** min(self._failures, 9), longest)
            self._failures += 1
            logger.warning(
                "a subscription tries again in %g s: %s",
                pause,
                error,
                extra={"eventstore.seconds": pause, "eventstore.error": type(error).__name__},
            )
            self._tail.rest(pause)
            return None
        self._failures = 0
        return event

    def _step(self) -> RecordedEvent | None:
        """The next event; None after some progress towards it, or some waiting."""
        if self._next < len(self._rows):
            row = self._rows[self._next]
            event = self._codec.record(row)
            self._next += 1
            self._position = row.position
            self._mark = Mark(row.position, row.id)
            return event
        if self._was_away:
            # It may have come back as it was earlier: begin again where that can be told.
            check_mark(self._log, self._mark)
            self._read = self._mark.position
            self._was_away = False
        self._position = self._read
        until = self._tail.certain()
        if self._tail.has_doubts():
            self._was_away = True
            return None
        if until <= self._position:
            self._tail.wait(self._position)
            return None
        rows = self._log.read_all(
            self._position, Bounds(position=until), limit=PAGE, wanted=self._wanted
        )
        self._rows, self._next = rows, 0
        self._read = until if len(rows) < PAGE else rows[-1].position
        return None
