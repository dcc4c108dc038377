"""Wake-ups are cheap, safe from anywhere, and never lost between a look and a wait."""

from __future__ import annotations

import contextlib
import signal
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import pytest

from eventstore.log.signal import Signal

LONG = 60.0


@contextlib.contextmanager
def waiting(on: Signal, threads: int) -> Iterator[list[int]]:
    """So many threads that wait; after the block, what each of them got."""
    got: list[int] = []
    with ThreadPoolExecutor(threads) as pool:
        results = [pool.submit(on.wait, on.count, LONG) for _ in range(threads)]
        while len(on._waiting) < threads:
            pass
        yield got
        got += [result.result() for result in results]


def test_everybody_that_waits_is_woken() -> None:
    fired = Signal()
    with waiting(fired, 5) as got:
        fired.fire()
    assert got == [fired.count] * 5
    assert not fired._waiting


def test_a_wake_up_before_the_wait_is_not_lost() -> None:
    fired = Signal()
    seen = fired.count
    fired.fire()
    assert fired.wait(seen, LONG) != seen


@pytest.mark.parametrize("timeout", [0, -1, 0.001])
def test_a_wait_in_vain_ends_with_the_same_count(timeout: float) -> None:
    fired = Signal()
    assert fired.wait(fired.count, timeout) == fired.count
    assert not fired._waiting


def test_a_signal_handler_wakes_the_thread_that_it_interrupts() -> None:
    fired = Signal()
    before = signal.signal(signal.SIGUSR1, lambda *_: fired.fire())

    def interrupt() -> None:
        while not fired._waiting:
            pass
        # Again and again: one that comes just before the thread falls asleep is handled by Python
        # when it awakes. Whoever waits in earnest looks by himself now and then.
        while not fired.count:
            signal.pthread_kill(threading.main_thread().ident or 0, signal.SIGUSR1)
            time.sleep(0.01)

    try:
        with ThreadPoolExecutor(1) as pool:
            interrupted = pool.submit(interrupt)
            assert fired.wait(fired.count, LONG) == 1
            interrupted.result()
    finally:
        signal.signal(signal.SIGUSR1, before)


def test_no_count_comes_twice_however_many_fire() -> None:
    fired = Signal()
    done = threading.Event()

    def follow() -> int:
        seen, woken = fired.count, 0
        while not done.is_set():
            now = fired.wait(seen, LONG)
            woken += now != seen
            seen = now
        return woken

    with ThreadPoolExecutor(8) as pool:
        follower = pool.submit(follow)
        for writer in [pool.submit(lambda: [fired.fire() for _ in range(500)]) for _ in range(4)]:
            writer.result()
        done.set()
        fired.fire()
        assert follower.result() > 0
    assert next(fired._numbers) == 4 * 500 + 2
