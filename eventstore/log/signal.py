"""Wake-ups within a process. They are hints: whoever waits looks by itself now and then."""

from __future__ import annotations

import itertools
import threading


class Signal:
    """Wakes all that wait, from any thread or signal handler: nobody holds a lock meanwhile.

    A wake-up that comes between a look and `wait` is not lost, if `count` was read before the look:

        seen = signal.count
        look()
        signal.wait(seen, timeout)
    """

    __slots__ = ("_numbers", "_waiting", "count")

    def __init__(self) -> None:
        #: Another one after each `fire`; it does not always go up.
        self.count = 0
        self._numbers = itertools.count(1)
        # A held lock for each that waits. Single operations on a dict are atomic.
        self._waiting: dict[threading.Lock, None] = {}

    def fire(self) -> None:
        """Wake all that wait; cheap when nobody does."""
        # Each number is stored once, so that no two threads can make a wake-up look like none.
        self.count = next(self._numbers)
        if self._waiting:
            self._wake()

    def wait(self, seen: int, timeout: float | None) -> int:
        """Wait until `count` is not `seen`, or so many seconds; the count."""
        if self.count == seen and (timeout is None or timeout > 0):
            lock = threading.Lock()
            lock.acquire()
            self._waiting[lock] = None
            try:
                if self.count == seen:
                    lock.acquire(timeout=-1 if timeout is None else timeout)
            finally:
                self._waiting.pop(lock, None)
        return self.count

    def _wake(self) -> None:
        while self._waiting:
            try:
                lock, _ = self._waiting.popitem()
            except KeyError:  # another thread was quicker
                return
            lock.release()
