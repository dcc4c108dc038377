"""Following the log: the part of the store about projections and event handlers."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Generator, Sequence
from datetime import datetime
from typing import TYPE_CHECKING, TypeAlias, TypeVar

from sqlalchemy import Connection

from eventstore.errors import (
    DefinitionError,
    InvalidArgumentError,
    LeaseLostError,
    NotCaughtUpError,
)
from eventstore.followers.event_handler import EventHandler
from eventstore.followers.follower import Follower, HandlerFollower, TableFollower
from eventstore.followers.in_step import InStep
from eventstore.followers.owner import has_died, new_owner
from eventstore.followers.rebuild import Progress, Rebuild
from eventstore.followers.registration import Registration
from eventstore.followers.status import FollowerStatus, Parked, shown, statuses
from eventstore.log import base
from eventstore.log.base import Bounds
from eventstore.log.folds import Folds
from eventstore.log.followers import Checkpoint, Followers
from eventstore.log.parked import ParkedEvents
from eventstore.names import check_follower_name, check_stream_name
from eventstore.numbers import check_whole
from eventstore.projections.declared import owner_of
from eventstore.projections.past import as_of
from eventstore.projections.projecting import kept_name, project
from eventstore.projections.projection import Projection
from eventstore.projections.table_projection import TableProjection
from eventstore.stream_store import StreamStore, bounds_at
from eventstore.streams import Cut

if TYPE_CHECKING:
    from eventstore.followers.runner import Runner

P = TypeVar("P", bound=Projection)
R = TypeVar("R", bound=Rebuild)

#: Whatever follows the log under a name: a class, or an instance of an EventHandler.
Following: TypeAlias = "type[TableProjection] | type[EventHandler] | EventHandler"

#: Seconds for which a lease is held without being renewed, where nothing else is said.
LEASE = 10.0


class FollowingStore(StreamStore):
    """Projections and event handlers of a store."""

    _followers: Followers
    _parked: ParkedEvents
    _in_step: InStep

    def _follow(self, in_step: Sequence[type[TableProjection]]) -> None:
        """Set up what following takes, and let projections run in step with appends."""
        self._followers = Followers(self.log)
        self._parked = ParkedEvents(self.log)
        self._in_step = InStep(self.log, self._followers, self._parked, in_step)
        for cls in in_step:
            self.catch_up(cls)
            self._in_step.enter(cls, self._read_timeout)

    # --- pure projections ----------------------------------------------------------------------

    def project(self, cls: type[P], *, at: datetime | Cut | None = None) -> P:
        """The log folded into a projection: now, or as it was `at` a moment (inclusive).

        Covers every append that was acknowledged before the call. Costs the events that the class
        handles and, with `snapshot_every`, only those after the latest state that was kept.
        Raises StoredEventError, LogStalledError, InvalidTimeError.
        """
        return project(self.log, cls, self._bounds(at))

    def forget(self, cls: type[Projection] | None = None) -> int:
        """Throw away the kept states of a projection, or of all; how many. Only speed changes."""
        return Folds.forget(self.log, None if cls is None else kept_name(cls))

    # --- read models ---------------------------------------------------------------------------

    def catch_up(self, follower: Following) -> int:
        """Bring a projection or an event handler up to date; the position that it has reached.

        It has then handled every append that was acknowledged before the call. Its tables are made
        the first time. Where a worker holds it, that one is waited for. Raises
        ProjectionChangedError, ProjectionOutdatedError, TableTakenError, LogError.
        """
        head = self.head()
        while True:
            shards = self._registered(follower).register()
            if all(row.in_step for row in shards):
                return head
            owner = new_owner()
            try:
                for row in shards:
                    self._catch_up(follower, row, head, owner)
            except LeaseLostError:  # to a rebuild, most likely: go on with the new tables
                continue
            return min(self._followers.positions(shards[0].name))

    def _catch_up(self, follower: Following, row: Checkpoint, head: int, owner: str) -> None:
        pause = 0.002
        while True:
            working = self._claimed(follower, row, owner, LEASE)
            if working is not None:
                try:
                    working.step(head)
                    while working.position < head:
                        working.step(head)
                finally:
                    with contextlib.suppress(Exception):  # the lease ends by itself
                        working.release()
                return
            now = self._followers.find(row.name)
            if len(now) != row.shards:
                raise LeaseLostError(row.name, row.shard, row.epoch)
            if now[row.shard].position >= head:
                return
            time.sleep(pause)
            pause = min(pause * 2, 0.1)

    def _claimed(
        self, follower: Following, row: Checkpoint, owner: str, seconds: float
    ) -> Follower | None:
        """A shard at work, if its lease was to be had."""
        shards = self._followers.find(row.name)
        owners = (shard.owner for shard in shards if shard.shard == row.shard)
        dead = next((each for each in owners if each and has_died(each)), None)
        lease = self._followers.claim(row.name, row.shard, owner, seconds, dead=dead)
        if lease is None:
            return None
        parts = (self.log, self._followers, self._parked)
        if isinstance(follower, type) and issubclass(follower, TableProjection):
            return TableFollower(*parts, follower(), lease, seconds)
        handler = follower() if isinstance(follower, type) else follower
        assert isinstance(handler, EventHandler)
        handler.store = self  # type: ignore[assignment]
        return HandlerFollower(*parts, handler, lease, seconds)

    def wait_for(
        self, follower: Following, position: int | None = None, *, timeout: float = 10.0
    ) -> int:
        """Wait until a follower has handled everything up to a position (by default, all so far).

        `Receipt.position` is such a position. Returns where the follower is; raises
        NotCaughtUpError after `timeout` seconds. Somebody has to run it meanwhile.
        """
        waiting = self._waiting(follower, position, timeout)
        while True:
            try:
                time.sleep(next(waiting))
            except StopIteration as end:
                reached: int = end.value
                return reached

    def _waiting(
        self, follower: Following, position: int | None, timeout: float
    ) -> Generator[float, None, int]:
        """`wait_for`, which leaves it to its caller to sleep for the seconds that it gives."""
        name = _class(follower).__follower__
        wanted = self.head() if position is None else check_whole("position", position)
        deadline = time.monotonic() + timeout
        pause = 0.001
        while True:
            rows = self._followers.find(name)
            if rows and all(row.in_step for row in rows):
                return max(wanted, rows[0].position)
            reached = min((row.position for row in rows), default=0)
            if reached >= wanted:
                return reached
            if time.monotonic() >= deadline:
                raise NotCaughtUpError(name, reached, wanted, timeout)
            yield pause
            pause = min(pause * 2, 0.02)

    def rebuild(
        self,
        cls: type[TableProjection],
        *,
        verify: bool = False,
        progress: Callable[[Progress], None] | None = None,
    ) -> Progress:
        """Build a projection's tables anew from the log, beside the living ones, and swap them.

        Readers see the old tables whole, then the new ones whole. Events that it does not handle
        are not read, and handlers marked as side effects do not run. With `verify` the new tables
        are compared with the living ones at the same position first, and not swapped where a row
        differs. `progress` is called after each batch. An interrupted rebuild leaves the living
        tables as they are; the next one goes on from there (PostgreSQL) or begins anew.

        Raises HandlerError for an event that a handler fails on, RebuildDiffersError,
        RebuildRunningError, LogError: the living tables are then untouched.
        """
        return self._rebuilding(Rebuild, cls, verify, progress).run()

    def accept(self, cls: type[TableProjection]) -> None:
        """Take a projection's present code for that which has built its tables.

        For a change of handlers that makes no difference to any row. Workers start anew.
        """
        self._registered(cls).accept()

    @contextlib.contextmanager
    def as_of(
        self, cls: type[TableProjection], *, at: datetime | Cut | None = None
    ) -> Generator[Connection]:
        """A connection on which the projection's tables are those of a past moment (inclusive).

            with store.as_of(Balances, at=then) as db:
                db.execute(select(Balances.accounts))

        They are built from the log in scratch tables; the living ones are not touched. What is
        written on the connection is rolled back. Raises HandlerError, and what `project` does.
        """
        with as_of(self.log, cls, self._bounds(at)) as connection:
            yield connection

    def leave_step(self, cls: type[TableProjection]) -> None:
        """Let a projection that ran in step with appends follow the log again."""
        self._in_step.leave(cls.__follower__, self._read_timeout)

    # --- workers -------------------------------------------------------------------------------

    def runner(self, *followers: Following, lease: float = LEASE) -> Runner:
        """What keeps followers up to date in threads of this process: `with store.runner(P):`.

        See `eventstore.followers.runner.Runner`. `lease` is for how many seconds a shard stays
        this process's when nothing is heard of it.
        """
        from eventstore.followers.runner import Runner

        return Runner(self, followers, lease=lease)

    def run(self, *followers: Following, lease: float = LEASE) -> None:
        """Keep followers up to date until `Runner.stop` is called, SIGTERM or Ctrl-C arrives."""
        self.runner(*followers, lease=lease).run()

    def status(self) -> list[FollowerStatus]:
        """How every follower of this log is doing, by name and shard."""
        return list(statuses(self.log, self._followers, self._parked))

    def parked(self, follower: Following | str, stream: str | None = None) -> list[Parked]:
        """The events that a follower has set aside, by position."""
        return [shown(row) for row in self._parked.find(_name(follower), _stream(stream))]

    def retry(self, follower: Following | str, stream: str | None = None) -> int:
        """Ask that parked events be tried again, of one stream or of all; how many they are.

        The worker that holds the follower does it, or the next `catch_up`.
        """
        return self._parked.mark(_name(follower), _stream(stream))

    def discard(self, follower: Following | str, position: int) -> bool:
        """Give up a parked event for ever; what stands behind it in its stream is tried again.

        False if no such event is parked.
        """
        return self._parked.discard(_name(follower), check_whole("position", position))

    # --- plumbing ------------------------------------------------------------------------------

    def _append(
        self,
        writes: Sequence[base.Write],
        *,
        key: str | None,
        recorded_at: int | None,
        connection: Connection | None,
    ) -> tuple[base.Receipt, ...]:
        return self._in_step.append(writes, key=key, recorded_at=recorded_at, connection=connection)

    def _delete(self, stream: str, expected: base.Expected) -> base.Receipt:
        return self._in_step.delete(stream, expected)

    def _fork(
        self, source: str, version: int, target: str, connection: Connection | None
    ) -> base.Receipt:
        return self._in_step.fork(source, version, target, connection=connection)

    def _bounds(self, at: datetime | Cut | None) -> Bounds:
        """Up to where to read the whole log, which is final there."""
        bounds = bounds_at(at, None)
        return bounds if bounds.position is not None else bounds._replace(position=self.head())

    def _rebuilding(
        self,
        kind: type[R],
        cls: type[TableProjection],
        verify: bool,
        progress: Callable[[Progress], None] | None,
    ) -> R:
        """A rebuild of that kind, to be run."""
        return kind(
            self.log,
            self._followers,
            self._parked,
            self._registered(cls),
            cls,
            owner=new_owner(),
            read_timeout=self._read_timeout,
            verify=verify,
            progress=progress,
        )

    def _registered(self, follower: Following) -> Registration:
        return Registration(self.log, self._followers, self._parked, _class(follower))


def _class(follower: Following) -> type[TableProjection] | type[EventHandler]:
    cls = follower if isinstance(follower, type) else type(follower)
    if not issubclass(cls, (TableProjection, EventHandler)):  # pyright: ignore[reportUnnecessaryIsInstance]
        raise InvalidArgumentError(
            "follower", follower, "give a TableProjection or an EventHandler"
        )
    if not cls.__handlers__.declared:
        raise DefinitionError(owner_of(cls), "it handles no event: declare a handler with @on")
    return cls


def _name(follower: Following | str) -> str:
    if isinstance(follower, str):
        return check_follower_name(follower)
    return _class(follower).__follower__


def _stream(name: str | None) -> str | None:
    return None if name is None else check_stream_name(name)
