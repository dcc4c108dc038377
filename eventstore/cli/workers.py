"""Several worker processes, started again when they die, and ended together."""

from __future__ import annotations

import contextlib
import logging
import multiprocessing
import os
import signal
import socket
import sys
import threading
import time
from collections.abc import Generator, Sequence
from multiprocessing import connection
from multiprocessing.process import BaseProcess
from types import FrameType
from typing import Any, Final

from eventstore import EventStore, EventStoreError, LogError
from eventstore.cli.output import complain, log_to_stderr
from eventstore.cli.targets import find

logger = logging.getLogger(__name__)

#: The exit status of a worker that cannot work, and of one that might another time.
_REFUSED: Final = 1
_LATER: Final = 75
#: Pauses, in seconds, before a worker that has died is replaced. One that has lived for longer
#: than the longest begins anew with the first.
_FIRST_PAUSE: Final = 0.5
_LONGEST_PAUSE: Final = 30.0


class _Seat:
    """The place of one worker: the process that has it, or when there will be another."""

    def __init__(self) -> None:
        self.process: BaseProcess | None = None
        self.began_at = 0.0
        self.again_at = 0.0
        self.pause = _FIRST_PAUSE / 2


class Workers:
    """So many processes that all run the same followers, until SIGTERM or SIGINT arrives.

    The first signal ends them after the events at hand, a second one at once. They end by
    themselves when this process has died.
    """

    def __init__(self, count: int, targets: Sequence[str], url: str, lease: float) -> None:
        # A fresh interpreter each: a fork would share connections and locks. Arguments go through
        # a pipe, so that no other user sees a password among them.
        self._context = multiprocessing.get_context("spawn")
        self._arguments = (list(targets), url, lease)
        self._seats = [_Seat() for _ in range(count)]
        self._stopping = False
        self._status = 0

    def run(self) -> int:
        """Work until told to stop; the exit status."""
        with self._woken_by_signals() as woken:
            while True:
                for seat in self._seats:
                    if seat.process is None and not self._stopping:
                        self._seat(seat)
                living = [seat.process for seat in self._seats if seat.process is not None]
                if self._stopping and not living:
                    return self._status
                sentinels = [process.sentinel for process in living]
                connection.wait([woken, *sentinels], self._until_next())
                with contextlib.suppress(BlockingIOError):
                    woken.recv(100)
                for seat in self._seats:
                    if seat.process is not None and seat.process.exitcode is not None:
                        self._ended(seat, seat.process)

    def _until_next(self) -> float | None:
        if self._stopping:
            return None
        due = [seat.again_at for seat in self._seats if seat.process is None]
        return max(0.0, min(due) - time.monotonic()) if due else None

    def _seat(self, seat: _Seat) -> None:
        now = time.monotonic()
        if now < seat.again_at:
            return
        process: Any = self._context.Process(target=_work, args=self._arguments)
        process.start()
        seat.process, seat.began_at = process, now
        if self._stopping:  # a signal came before it was known
            process.terminate()

    def _ended(self, seat: _Seat, process: BaseProcess) -> None:
        status, pid = process.exitcode, process.pid
        seat.process = None
        process.close()
        if self._stopping:
            # One that was still starting has died of the signal itself.
            if status not in (0, -signal.SIGTERM):
                logger.warning("worker %d ended with status %s", pid, status)
                self._status = 1
            return
        if status == _REFUSED:  # it has told why; so would the next one
            self._status = 1
            self._stop()
            return
        now = time.monotonic()
        lived = now - seat.began_at
        seat.pause = min(seat.pause * 2, _LONGEST_PAUSE) if lived < _LONGEST_PAUSE else _FIRST_PAUSE
        seat.again_at = now + seat.pause
        logger.error(
            "worker %d has died (status %s), and is replaced in %.1f s", pid, status, seat.pause
        )

    def _stop(self) -> None:
        self._stopping = True
        for seat in self._seats:
            if seat.process is not None:
                seat.process.terminate()

    @contextlib.contextmanager
    def _woken_by_signals(self) -> Generator[socket.socket]:
        woken, waker = socket.socketpair()
        woken.setblocking(False)
        waker.setblocking(False)

        def stop(_number: int, _frame: FrameType | None) -> None:
            self._stop()
            with contextlib.suppress(BlockingIOError):
                waker.send(b"x")

        before = {number: signal.signal(number, stop) for number in (signal.SIGTERM, signal.SIGINT)}
        try:
            yield woken
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)
            woken.close()
            waker.close()


def _work(targets: list[str], url: str, lease: float) -> None:
    """One worker, from its first moment to its exit status."""
    # Ctrl-C goes to all processes of a terminal; what counts here is what the parent passes on.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    threading.Thread(target=_outlive_nobody, name="eventstore parent", daemon=True).start()
    log_to_stderr()
    try:
        followers = [find(target) for target in targets]
        with EventStore(url) as store:
            store.run(*followers, lease=lease)
    except LogError as error:  # the database is away, for instance
        complain(error)
        sys.exit(_LATER)
    except EventStoreError as error:
        complain(error)
        sys.exit(_REFUSED)


def _outlive_nobody() -> None:
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os.kill(os.getpid(), signal.SIGTERM)
