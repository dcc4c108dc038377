"""The runner: followers kept up to date, by threads, processes and machines sharing the work."""

from __future__ import annotations

import contextlib
import logging
import signal
import threading
import time
from collections.abc import Callable, Generator, Mapping, Sequence
from types import FrameType, MappingProxyType, TracebackType
from typing import TYPE_CHECKING, Any, Final, Self

from eventstore.errors import (
    EventStoreError,
    FollowerError,
    InvalidArgumentError,
    LeaseLostError,
    ProjectionChangedError,
    ProjectionOutdatedError,
    ShardsChangedError,
    StoreClosedError,
)
from eventstore.fingerprint import comparable
from eventstore.followers.follower import Follower
from eventstore.followers.owner import has_died, new_owner
from eventstore.followers.shares import share
from eventstore.log.followers import Checkpoint
from eventstore.log.signal import Signal
from eventstore.subscriptions import Tail

if TYPE_CHECKING:
    from eventstore.followers.registration import Registration
    from eventstore.following_store import Following, FollowingStore

logger = logging.getLogger(__name__)

#: The longest, in seconds, that a worker waits for events before it looks for retries.
_IDLE: Final = 1.0
#: The parts of the time within which a worker is replaced: for so long a lease is held, and so
#: often it is renewed, and others look for leases that have run out.
_HELD: Final = 0.75
_BEAT: Final = 0.125
#: The longest, in seconds, from one look to the next.
_LONGEST_BEAT: Final = 1.0
#: Pauses, in seconds, before a shard is tried again after an error.
_FIRST_PAUSE: Final = 0.1
_LONGEST_PAUSE: Final = 10.0

#: A follower's name, and the number of a shard of it.
_Place = tuple[str, int]


class _Work(threading.Thread):
    """One shard at work, in a thread of its own, until it is stopped or fails."""

    def __init__(self, store: FollowingStore, follower: Follower, ended: Signal) -> None:
        lease = follower.lease
        super().__init__(name=f"eventstore {lease.name} {lease.shard}", daemon=True)
        self._tail = Tail(store.log)
        self._tell = ended
        self._began_at = lease.position
        self.follower = follower
        self.failure: Exception | None = None
        self.has_ended = False

    @property
    def lease(self) -> Checkpoint:
        return self.follower.lease

    @property
    def is_stopping(self) -> bool:
        return self.follower.stopping.is_set()

    @property
    def has_moved(self) -> bool:
        """Whether it has got anywhere since it was begun."""
        return self.follower.position > self._began_at

    def run(self) -> None:
        try:
            self._follow()
        except Exception as error:
            self.failure = error
        finally:
            # Not on its own account, but so that nobody has to wait for the lease to run out.
            with contextlib.suppress(Exception):
                self.follower.release()
            self.has_ended = True
            self._tell.fire()

    def _follow(self) -> None:
        follower = self.follower
        with self._tail:
            while not follower.stopping.is_set():
                # Before each batch: a server that crashed meanwhile may have lost what was seen.
                end = self._tail.certain()
                follower.step(end)
                if follower.position >= end:
                    self._tail.wait(end, _IDLE)

    def stop(self) -> None:
        """Ask for an end before the next event."""
        self.follower.stop()
        self._tail.stop()


class Runner:
    """Keeps followers up to date until it is stopped.

        with store.runner(Balances, Welcome()):
            ...

    Each shard of each follower is a thread here, or in another process: whoever runs the same
    followers on the same database takes a fair share of their shards. Those of a worker that has
    died, or stalls, are taken over by the others within `lease` seconds, and at once if it has
    died on the same machine. A worker that was stopped for longer cannot write when it comes back.

    An error that may pass is tried again after a pause, and other shards go on meanwhile. A
    follower whose code has been superseded is given up here (`given_up`): its tables were rebuilt
    for another version, say. A projection that runs in step with appends is left alone.

    The first SIGTERM or SIGINT stops `run`; another one of its kind ends the process at once.
    """

    def __init__(
        self, store: FollowingStore, followers: Sequence[Following], *, lease: float
    ) -> None:
        if not followers:
            raise InvalidArgumentError("followers", followers, "give at least one to run")
        if lease <= 0:
            raise InvalidArgumentError("lease", lease, "use seconds above 0")
        self._store = store
        self._followers = store._followers
        self._registrations: dict[str, tuple[Following, Registration]] = {}
        for follower in followers:
            registration = store._registered(follower)
            if registration.name in self._registrations:
                raise InvalidArgumentError("followers", registration.name, "it is there twice")
            self._registrations[registration.name] = follower, registration
        self._held = lease * _HELD
        self._beat_every = min(lease * _BEAT, _LONGEST_BEAT)
        self._owner = ""
        self._stopped = False
        self._signal = Signal()  # to stop, or to look since a thread has ended
        self._work: dict[_Place, _Work] = {}
        #: After a failure: when to try again, and how long that pause is.
        self._pauses: dict[_Place, tuple[float, float]] = {}
        self._given_up: dict[str, FollowerError] = {}
        self._failing = False
        self._supervisor: threading.Thread | None = None

    @property
    def given_up(self) -> Mapping[str, FollowerError]:
        """The followers that are not run here any more, by name, and why."""
        return MappingProxyType(self._given_up)

    # --- starting and stopping -------------------------------------------------------------------

    def run(self) -> None:
        """Work until `stop` is called, or SIGTERM or SIGINT arrives (in the main thread).

        Raises what stands in the way of starting (ProjectionChangedError and others), and the
        reason when every follower had to be given up.
        """
        with _signals_call(self.stop):
            self._register()
            self._supervise()
        if self._all_given_up():
            raise next(iter(self._given_up.values()))

    def start(self) -> None:
        """Work in the background. Raises what stands in the way of starting."""
        self._register()
        self._supervisor = threading.Thread(
            target=self._supervise, name="eventstore runner", daemon=True
        )
        self._supervisor.start()

    def stop(self) -> None:
        """End after the events at hand, and give the leases back.

        For good. From any thread or signal handler.
        """
        self._stopped = True
        self._signal.fire()

    def join(self) -> None:
        """Wait for the end of what `start` began."""
        if self._supervisor is not None:
            self._supervisor.join()

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.stop()
        self.join()

    def _register(self) -> None:
        self._owner = new_owner()  # here, since it names the process
        for _, registration in self._registrations.values():
            registration.register()
        logger.info(
            "running %s as %s",
            ", ".join(self._registrations),
            self._owner,
            extra={
                "eventstore.followers": list(self._registrations),
                "eventstore.owner": self._owner,
            },
        )

    # --- supervising ---------------------------------------------------------------------------

    def _supervise(self) -> None:
        try:
            while not self._stopped and not self._all_given_up():
                seen = self._signal.count
                self._beat()
                if not self._stopped:
                    self._signal.wait(seen, self._until_next())
        finally:
            self._end()

    def _all_given_up(self) -> bool:
        return len(self._given_up) == len(self._registrations)

    def _until_next(self) -> float:
        now = time.monotonic()
        due = [at - now for at, _ in self._pauses.values() if at > now]
        return max(0.001, min([self._beat_every, *due]))

    def _beat(self) -> None:
        """Renew what is ours, take what is free, and leave to others what is theirs."""
        self._let_go_of_ended()
        names = [name for name in self._registrations if name not in self._given_up]
        try:
            self._followers.heartbeat(self._owner, names, self._held)
            ready = self._followers.ready(names)
            found, now = self._followers.look(names)
        except StoreClosedError:
            self._store_is_closed()
            return
        except Exception as error:
            if not self._failing:
                logger.warning(
                    "no heartbeat, trying again: %s",
                    error,
                    exc_info=error,
                    extra={
                        "eventstore.owner": self._owner,
                        "eventstore.error": type(error).__name__,
                    },
                )
            self._failing = True
            return
        if self._failing:
            logger.info("heartbeats again", extra={"eventstore.owner": self._owner})
        self._failing = False
        for name in names:
            try:
                self._look_after(name, found[name], ready[name], now)
            except FollowerError as error:
                self._give_up(name, error)
            except Exception as error:
                # A class that cannot be made, the database gone away: the others go on.
                self._pause((name, -1), error)

    def _look_after(self, name: str, rows: list[Checkpoint], ready: list[str], now: int) -> None:
        follower, registration = self._registrations[name]
        if self._rests((name, -1)):
            return
        rows = rows or registration.register()
        if all(row.in_step for row in rows):
            return
        _check(registration, rows)
        working = self._still_ours(name, rows)
        workers = {worker for worker in ready if not has_died(worker)} | {self._owner}
        mine = share(name, len(rows), workers, self._owner)
        for work in working[mine:]:
            _log("handing over", work.lease)
            work.stop()
        missing = mine - len(working)
        for row in rows:
            if missing <= 0 or self._stopped:
                break
            if self._is_free(row, now) and self._take(follower, row):
                missing -= 1
        self._pauses.pop((name, -1), None)

    def _still_ours(self, name: str, rows: list[Checkpoint]) -> list[_Work]:
        """What works here, and is not ending; what another one has taken is told to end."""
        working = []
        for row in rows:
            work = self._work.get((name, row.shard))
            if work is None:
                continue
            if (row.owner, row.epoch) != (self._owner, work.lease.epoch):
                work.stop()  # it will find out by itself, but perhaps waits for something
            elif not work.is_stopping:
                working.append(work)
        return working

    def _is_free(self, row: Checkpoint, now: int) -> bool:
        place = (row.name, row.shard)
        if place in self._work or self._rests(place):
            return False
        if row.owner is None or row.owner == self._owner or row.expires_at < now:
            return True
        return has_died(row.owner)

    def _rests(self, place: _Place) -> bool:
        return place in self._pauses and time.monotonic() < self._pauses[place][0]

    def _take(self, follower: Following, row: Checkpoint) -> bool:
        try:
            claimed = self._store._claimed(follower, row, self._owner, self._held)
            if claimed is None:
                return False
            work = _Work(self._store, claimed, self._signal)
            work.start()
        except Exception:
            self._give_back(row.name)
            raise
        self._work[row.name, row.shard] = work
        if row.owner not in (None, self._owner):
            _log("taken over from a worker that is not heard of", row, level=logging.WARNING)
        _log("taken", claimed.lease)
        return True

    def _give_back(self, name: str) -> None:
        """Release what is ours in the database and nothing works on here."""
        with contextlib.suppress(EventStoreError):  # or it ends by itself
            for row in self._followers.find(name):
                if row.owner == self._owner and (name, row.shard) not in self._work:
                    self._followers.release(row)

    # --- what has ended --------------------------------------------------------------------------

    def _let_go_of_ended(self) -> None:
        for place, work in list(self._work.items()):
            if not work.has_ended:
                continue
            work.join()
            del self._work[place]
            error = work.failure
            if work.has_moved or error is None:
                self._pauses.pop(place, None)
            if error is None:
                _log("given back", work.lease)
            elif isinstance(error, LeaseLostError):
                _log("lost", work.lease, level=logging.WARNING)
            elif isinstance(error, StoreClosedError):
                self._store_is_closed()
            else:
                self._pause(place, error)

    def _pause(self, place: _Place, error: Exception) -> None:
        """Note when to try again, later each time."""
        _, last = self._pauses.get(place, (0.0, _FIRST_PAUSE / 2))
        pause = min(last * 2, _LONGEST_PAUSE)
        self._pauses[place] = (time.monotonic() + pause, pause)
        name, shard = place
        logger.warning(
            "%r%s failed, trying again in %.1f s: %s",
            name,
            f" shard {shard}" if shard >= 0 else "",
            pause,
            error,
            exc_info=error,
            extra={
                "eventstore.follower": name,
                "eventstore.shard": shard,
                "eventstore.seconds": pause,
                "eventstore.error": type(error).__name__,
            },
        )

    def _give_up(self, name: str, error: FollowerError) -> None:
        logger.error(
            "%r is given up: %s",
            name,
            error,
            extra={"eventstore.follower": name, "eventstore.error": type(error).__name__},
        )
        self._given_up[name] = error
        for (follower, _), work in self._work.items():
            if follower == name:
                work.stop()
        with contextlib.suppress(EventStoreError):  # or it is forgotten after a while
            self._followers.retire(self._owner, name)

    def _store_is_closed(self) -> None:
        if not self._stopped:
            logger.error(
                "the store was closed, so nothing is run any more",
                extra={"eventstore.owner": self._owner},
            )
        self.stop()

    def _end(self) -> None:
        """Wait for what is at hand; others take their larger share already."""
        with contextlib.suppress(EventStoreError):  # or it is forgotten after a while
            self._followers.retire(self._owner)
        for work in self._work.values():
            work.stop()
        while True:
            seen = self._signal.count
            self._let_go_of_ended()
            if not self._work:
                break
            self._signal.wait(seen, self._beat_every)
            with contextlib.suppress(EventStoreError):
                self._followers.heartbeat(self._owner, (), self._held)
        for name in self._registrations:
            self._give_back(name)
        logger.info("stopped", extra={"eventstore.owner": self._owner})


def _check(registration: Registration, rows: Sequence[Checkpoint]) -> None:
    """Raise if a follower, which was this program's when it began, is now that of another one.

    Unlike `register` it changes nothing: two programs would take it from each other in turns.
    """
    name, found = registration.name, rows[0]
    if found.version != registration.version:
        raise ProjectionOutdatedError(name, found.version, registration.version)
    own = registration.row(found.shard)
    if len(rows) != own.shards:
        raise ShardsChangedError(name, len(rows), own.shards)
    if found.fingerprint != own.fingerprint and comparable(found.fingerprint, own.fingerprint):
        raise ProjectionChangedError(name, found.version)


def _log(what: str, lease: Checkpoint, level: int = logging.INFO) -> None:
    logger.log(
        level,
        "%r shard %d of %d at position %d: %s",
        lease.name,
        lease.shard,
        lease.shards,
        lease.position,
        what,
        extra={
            "eventstore.follower": lease.name,
            "eventstore.shard": lease.shard,
            "eventstore.position": lease.position,
            "eventstore.owner": lease.owner,
            "eventstore.epoch": lease.epoch,
        },
    )


@contextlib.contextmanager
def _signals_call(stop: Callable[[], None]) -> Generator[None]:
    """In the block, the first SIGTERM and the first SIGINT stop; not outside the main thread."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    before: dict[int, Any] = {}

    def restore(number: int) -> None:
        # None where it was not Python that had set it.
        signal.signal(number, before[number] or signal.SIG_DFL)

    def called(number: int, _frame: FrameType | None) -> None:
        restore(number)
        stop()

    for number in map(int, (signal.SIGTERM, signal.SIGINT)):
        before[number] = signal.signal(number, called)
    try:
        yield
    finally:
        for number in before:
            restore(number)
