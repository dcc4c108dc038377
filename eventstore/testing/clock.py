"""A clock that stands still until a test moves it."""

from __future__ import annotations

import threading
from datetime import UTC, datetime, timedelta

from eventstore.errors import InvalidArgumentError
from eventstore.moments import from_micros, to_micros

#: When a frozen clock, and what `project` is given, begin where a test does not say.
START = datetime(2026, 1, 1, tzinfo=UTC)


class FrozenClock:
    """The time of a test: it moves only when it is told to. Safe for threads.

        clock = FrozenClock()
        store = memory_store(clock=clock)
        store.save(account)
        clock.advance(timedelta(days=30))

    It is what `EventStore(clock=...)` takes: called, it gives the moment, in UTC and with
    microseconds. It never goes back, unless `set` is told that this is meant.
    """

    def __init__(self, start: datetime = START) -> None:
        """Raises InvalidTimeError for a naive datetime."""
        self._lock = threading.Lock()
        self._micros = to_micros(start)

    def __call__(self) -> datetime:
        return from_micros(self._micros)

    @property
    def now(self) -> datetime:
        """The moment at which it stands."""
        return from_micros(self._micros)

    def advance(self, by: timedelta | float) -> datetime:
        """Move on by a duration, or by seconds; the moment it then shows.

        Raises InvalidArgumentError for a negative one.
        """
        duration = by if isinstance(by, timedelta) else timedelta(seconds=by)
        if duration < timedelta(0):
            raise InvalidArgumentError(
                "by", by, "a clock does not go back: set(moment, backwards=True) if you mean it to"
            )
        with self._lock:
            self._micros += duration // timedelta(microseconds=1)
            return from_micros(self._micros)

    def set(self, moment: datetime, *, backwards: bool = False) -> datetime:
        """Show another moment; with `backwards`, it may be an earlier one, as real clocks do.

        Raises InvalidArgumentError for an earlier one without, InvalidTimeError for a naive one.
        """
        micros = to_micros(moment)
        with self._lock:
            if micros < self._micros and not backwards:
                raise InvalidArgumentError(
                    "moment",
                    moment,
                    f"the clock shows {from_micros(self._micros)} already: give backwards=True "
                    "if it is to go back",
                )
            self._micros = micros
        return from_micros(micros)

    def __repr__(self) -> str:
        return f"<FrozenClock {self.now.isoformat()}>"
