"""The runner: followers kept up to date, by threads, processes and machines sharing the work."""

from __future__ import annotations

import logging
import signal
import threading
import time
from collections.abc import Sequence
from types import FrameType, TracebackType
from typing import TYPE_CHECKING, Any, Final, Self

from eventstore.errors import EventStoreError, FollowerError, InvalidArgumentError, LeaseLostError
from eventstore.followers.follower import Follower
from eventstore.followers.owner import new_owner
from eventstore.log.followers import Checkpoint
from eventstore.subscriptions import Tail

if TYPE_CHECKING:
    from eventstore.following_store import Following, FollowingStore

logger = logging.getLogger(__name__)

#: The longest, in seconds, that a worker waits for events before it looks for retries.
_IDLE: Final = 1.0
#: Pauses, in seconds, before a shard is tried again after an error.
_FIRST_PAUSE: Final = 0.1
_LONGEST_PAUSE: Final = 10.0


class _Shard(threading.Thread):
    """One shard at work, in a thread of its own, until it is stopped or fails."""

    def __init__(self, runner: Runner, follower: Follower) -> None:
        row = follower.lease
        super().__init__(name=f"eventstore {row.name} {row.shard}", daemon=True)
        self._tail = Tail(runner._store.log)
        self.follower = follower
        self.failure: Exception | None = None

    def run(self) -> None:
        follower = self.follower
        try:
            with self._tail:
                while not follower.stopping.is_set():
                    end = self._tail.certain()
                    follower.step(end)
                    while follower.position < end and not follower.stopping.is_set():
                        follower.step(end)
                    self._tail.wait(end, _IDLE)
            follower.release()
        except Exception as error:
            self.failure = error

    def stop(self) -> None:
        """Ask for an end before the next event."""
        self.follower.stop()
        self._tail.stop()


class Runner:
    """Keeps followers up to date until it is stopped.

        with store.runner(Balances, Welcome()):
            ...

    Each shard of each follower is a thread here, or in another process: whoever runs the same
    followers on the same database takes a fair share of their shards, and takes over those
    of a worker that has died, at once on the same machine and else when its lease has run out. A
    worker that was stopped for longer than its lease cannot write when it comes back.

    An error that may pass is tried again after a pause; a projection whose version another program
    has raised is given up, and `run` then raises what was wrong.
    """

    def __init__(
        self, store: FollowingStore, followers: Sequence[Following], *, lease: float
    ) -> None:
        if not followers:
            raise InvalidArgumentError("followers", followers, "give at least one to run")
        if lease <= 0:
            raise InvalidArgumentError("lease", lease, "use seconds above 0")
        self._store = store
        self._followers = list(followers)
        self._lease = lease
        self._owner = new_owner()
        self._stopping = threading.Event()
        self._work: dict[tuple[str, int], _Shard] = {}
        self._not_before: dict[tuple[str, int], tuple[float, float]] = {}
        self._given_up: dict[str, Exception] = {}
        self._supervisor: threading.Thread | None = None

    # --- starting and stopping -------------------------------------------------------------------

    def run(self) -> None:
        """Work until `stop` is called, or SIGTERM or SIGINT arrives (in the main thread).

        Raises what stands in the way of starting (ProjectionChangedError and others), and the
        reason when every follower had to be given up.
        """
        with _stopped_by_signals(self):
            self._register()
            try:
                self._supervise()
            finally:
                self._end()
        if self._given_up and len(self._given_up) == len(self._followers):
            raise next(iter(self._given_up.values()))

    def start(self) -> None:
        """Work in the background. Raises what stands in the way of starting."""
        self._register()
        self._supervisor = threading.Thread(target=self._background, name="eventstore runner")
        self._supervisor.daemon = True
        self._supervisor.start()

    def stop(self) -> None:
        """End after the events at hand, and give the leases back. From any thread."""
        self._stopping.set()

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

    # --- supervising ---------------------------------------------------------------------------

    def _register(self) -> None:
        for follower in self._followers:
            self._store._registered(follower).register()

    def _background(self) -> None:
        try:
            self._supervise()
        finally:
            self._end()

    def _supervise(self) -> None:
        while not self._stopping.is_set():
            for follower in self._followers:
                try:
                    self._look_after(follower)
                except FollowerError as error:
                    self._give_up(error)
                except EventStoreError:
                    logger.warning("cannot look after followers; trying again", exc_info=True)
            if len(self._given_up) == len(self._followers):
                return
            self._stopping.wait(min(self._lease / 4, _IDLE))

    def _look_after(self, follower: Following) -> None:
        """Renew what is ours, take what is free, and leave to others what is theirs."""
        registration = self._store._registered(follower)
        name = registration.name
        if name in self._given_up:
            return
        shards = registration.register()
        if all(row.in_step for row in shards):
            return
        mine = self._renewed(name)
        ready = self._store._followers.enlist(name, self._owner, 3 * self._lease)
        share = -(-len(shards) // ready)
        for work in mine[share:]:
            work.stop()
        for row in shards:
            if len(mine) >= share:
                break
            taken = None if (name, row.shard) in self._work else self._taken(follower, row)
            if taken is not None:
                mine.append(taken)

    def _renewed(self, name: str) -> list[_Shard]:
        """What works here for a follower, with its lease renewed; what has ended is let go."""
        mine = []
        for place, work in list(self._work.items()):
            if place[0] != name:
                continue
            if not work.is_alive():
                self._let_go(place, work)
                continue
            try:
                work.follower.renew()
            except LeaseLostError:
                work.stop()
            mine.append(work)
        return mine

    def _taken(self, follower: Following, row: Checkpoint) -> _Shard | None:
        place = (row.name, row.shard)
        if time.monotonic() < self._not_before.get(place, (0.0, 0.0))[0]:
            return None
        claimed = self._store._claimed(follower, row, self._owner, self._lease)
        if claimed is None:
            return None
        work = self._work[place] = _Shard(self, claimed)
        work.start()
        return work

    def _let_go(self, place: tuple[str, int], work: _Shard) -> None:
        """After the end of a thread: note what went wrong, and when to try again."""
        del self._work[place]
        error = work.failure
        if error is None or isinstance(error, LeaseLostError):
            self._not_before.pop(place, None)
            return
        _, last = self._not_before.get(place, (0.0, _FIRST_PAUSE / 2))
        pause = min(last * 2, _LONGEST_PAUSE)
        self._not_before[place] = (time.monotonic() + pause, pause)
        logger.warning(
            "shard %d of %r failed; trying again in %.1f s",
            place[1],
            place[0],
            pause,
            exc_info=error,
        )

    def _give_up(self, error: FollowerError) -> None:
        logger.error("%r is given up: %s", error.follower, error)
        self._given_up[error.follower] = error
        for (name, _), work in self._work.items():
            if name == error.follower:
                work.stop()

    def _end(self) -> None:
        for work in self._work.values():
            work.stop()
        for work in self._work.values():
            work.join()
        self._work.clear()
        try:
            self._store._followers.retire(self._owner)
        except EventStoreError:
            logger.warning("this worker could not sign off; it will be forgotten", exc_info=True)


class _stopped_by_signals:
    """SIGTERM and SIGINT stop a runner in the block, where they can be listened to."""

    def __init__(self, runner: Runner) -> None:
        self._runner = runner
        self._before: dict[int, Any] = {}

    def __enter__(self) -> None:
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGTERM, signal.SIGINT):
                self._before[number] = signal.signal(number, self._stop)

    def __exit__(self, *_: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _stop(self, _number: int, _frame: FrameType | None) -> None:
        self._runner.stop()
