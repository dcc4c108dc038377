"""The clients of a campaign: each a process that works until it is told to end, or killed."""

from __future__ import annotations

import contextlib
import random
import signal
import threading
import time
from collections.abc import Callable, Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, Final, Literal, NamedTuple

import psycopg  # noqa: F401  so that each of the forked has it already
from operations import Recorder, Scan, entry
from sheet import Echo, Parts, Sheet
from writing import PAUSE, Writer

import eventstore.followers.rebuild
import eventstore.followers.runner
import eventstore.log.postgres
import eventstore.log.sqlite  # noqa: F401
from eventstore import EventStore
from eventstore.errors import (
    CheckpointAheadError,
    LeaseLostError,
    LogError,
    LogLockedError,
    LogUnavailableError,
    RebuildRunningError,
)
from eventstore.subscriptions import Subscription

PROJECTIONS: Final = (Sheet, Parts)
FOLLOWERS: Final = (Sheet, Parts, Echo)


class Place(NamedTuple):
    """Where a client works, and with what luck."""

    url: str
    durability: Literal["full", "relaxed"]
    streams: Sequence[str]
    #: The file that it writes its journal to.
    journal: Path
    seed: str
    #: Whether its clock steps back now and then.
    clock: bool = False
    #: Where a follower begins, and the checkpoint from which it goes on, if it had begun before.
    after: int = 0
    checkpoint: str = ""


class Stop:
    """SIGTERM asks a client to end after what it has begun."""

    def __init__(self) -> None:
        self.asked = threading.Event()
        self._calls: list[Callable[[], None]] = []
        signal.signal(signal.SIGTERM, self._called)

    def then(self, call: Callable[[], None]) -> None:
        self._calls.append(call)
        if self.asked.is_set():
            call()

    def wait(self, goes_on: Callable[[], bool] = lambda: True) -> None:
        """Wait until an end is asked for, in the main thread.

        It looks now and then: a signal that the system has given to another thread wakes nobody.
        """
        while goes_on() and not self.asked.wait(0.05):
            pass

    def _called(self, *_: object) -> None:
        self.asked.set()
        for call in self._calls:
            call()


class SteppingClock:
    """A clock that goes back by up to an hour, again and again."""

    def __init__(self, seed: str) -> None:
        self._chance = random.Random(seed)
        self._behind = timedelta(0)

    def __call__(self) -> datetime:
        if self._chance.random() < 0.05:
            self._behind = timedelta(seconds=self._chance.choice((0, 0.001, 1, 3600)))
        return datetime.now(UTC) - self._behind


def opened(place: Place, **options: Any) -> EventStore:
    """A store, as soon as the database can be reached."""
    clock = SteppingClock(place.seed) if place.clock else None
    while True:
        try:
            return EventStore(
                place.url, durability=place.durability, clock=clock, migrate=False, **options
            )
        except (LogUnavailableError, LogLockedError):
            time.sleep(PAUSE)


# --- writers -------------------------------------------------------------------------------------


def write(place: Place, stop: Stop) -> None:
    recorder = Recorder(place.journal)
    with opened(place, group_commit=random.Random(place.seed).random() < 0.5) as store:
        name, after = place.journal.name, place.after
        writers = [
            Writer(store, place.streams, recorder, f"{name}-{n}", place.seed, after)
            for n in range(3)
        ]
        threads = [_Thread(writer.work, lambda: not stop.asked.is_set()) for writer in writers]
        for thread in threads:
            thread.start()
        stop.wait(lambda: all(thread.is_alive() for thread in threads))
        for thread in threads:
            thread.finish()


class _Thread(threading.Thread):
    """A thread whose error is that of who waits for it."""

    def __init__(self, work: Callable[..., None], *arguments: Any) -> None:
        super().__init__(daemon=True)
        self._work = work, arguments
        self._error: BaseException | None = None

    def run(self) -> None:
        work, arguments = self._work
        try:
            work(*arguments)
        except BaseException as error:
            self._error = error

    def finish(self) -> None:
        self.join()
        if self._error is not None:
            raise self._error


# --- followers -----------------------------------------------------------------------------------


def follow(place: Place, stop: Stop) -> None:
    """Read the whole log and what comes, and keep its place in a file of its own.

    When it is told that the log has gone back, it begins again.
    """
    recorder = Recorder(place.journal)
    begin: int | str = place.checkpoint or place.after
    with opened(place) as store:
        while not stop.asked.is_set():
            after = int(str(begin).partition(":")[0])
            with (
                contextlib.suppress(CheckpointAheadError),
                _subscribed(store, begin) as subscription,
            ):
                stop.then(subscription.stop)
                for record in subscription:
                    now = time.monotonic_ns()
                    seen = [entry(record)]
                    recorder.seen(Scan(after, seen, now, now, False, record.checkpoint))
                    after = record.position
            begin = place.after


def _subscribed(store: EventStore, after: int | str) -> Subscription:
    while True:
        try:
            return store.subscribe(after)
        except LogUnavailableError:
            time.sleep(PAUSE)


def run(place: Place, stop: Stop) -> None:
    """Keep the projections and the handler up to date."""
    with opened(place) as store:
        runner = store.runner(*FOLLOWERS, lease=2.0)
        stop.then(runner.stop)
        while not stop.asked.is_set():
            try:
                runner.start()
                break
            except LogError:
                time.sleep(PAUSE)
        stop.wait()
        runner.join()
        if runner.given_up:
            raise next(iter(runner.given_up.values()))


def rebuild(place: Place, stop: Stop) -> None:
    """Rebuild the projections, in turns."""
    chance = random.Random(place.seed)
    with opened(place, notify=False) as store:
        while not stop.asked.wait(chance.uniform(0, 0.2)):
            with contextlib.suppress(LogError, RebuildRunningError, LeaseLostError):
                store.rebuild(chance.choice(PROJECTIONS))


WORK: Final[dict[str, Callable[[Place, Stop], None]]] = {
    "writer": write,
    "follower": follow,
    "runner": run,
    "rebuild": rebuild,
}
