"""In step: projections that run in the transaction of the append, so that a save is read at once.

Appends share a lock on the projection's name until they commit; whoever changes how it is run, or
swaps its tables, takes it alone, and so knows that no append is half-way.
"""

from __future__ import annotations

import contextlib
from collections.abc import Generator, Sequence
from typing import Final

from sqlalchemy import Connection, false, update

from eventstore.codec import recorded, stored_names
from eventstore.errors import EventStoreError, HandlerError, NotInStepError, ParkedEventsError
from eventstore.event import event_classes
from eventstore.followers.follower import BATCH, shard_of
from eventstore.followers.registration import check_code, lock_of
from eventstore.log.base import Bounds, Expected, Log, Receipt, Row, Write
from eventstore.log.followers import Followers
from eventstore.log.parked import ParkedEvents
from eventstore.log.tables import followers
from eventstore.log.transactions import lock_name, own_errors
from eventstore.names import category_of
from eventstore.projections.applying import Applier, described
from eventstore.projections.changes import Recorder, tell
from eventstore.projections.feed import Feed
from eventstore.projections.table_projection import TableProjection

_TOMBSTONE: Final = "$deleted"


class _Member:
    """One projection that runs in step."""

    def __init__(self, log: Log, cls: type[TableProjection]) -> None:
        self.cls = cls
        self.name = cls.__follower__
        self.feed = Feed(log, cls.__handlers__, effects=True)
        self.categories = cls.__categories__
        self._known: dict[str, bool] = {}

    def wants(self, stream: str, types: Sequence[str]) -> bool:
        """Whether one of these events of a stream is handled."""
        if self.categories is not None and category_of(stream) not in self.categories:
            return False
        return any(self._handles(name) for name in types)

    def _handles(self, name: str) -> bool:
        found = self._known.get(name)
        if found is None:
            handlers = self.cls.__handlers__
            found = self._known[name] = any(
                name in stored_names(cls)
                and (handlers.find(cls) is not None or handlers.effect(cls) is not None)
                for cls in event_classes()
            )
        return found


class InStep:
    """Appends of one store, together with the projections that run in step with them."""

    def __init__(
        self,
        log: Log,
        followers: Followers,
        parked: ParkedEvents,
        classes: Sequence[type[TableProjection]],
    ) -> None:
        self._log = log
        self._followers = followers
        self._parked = parked
        self._members = [_Member(log, cls) for cls in classes]
        self._checked = False

    # --- entering and leaving --------------------------------------------------------------------

    def enter(self, cls: type[TableProjection], read_timeout: float) -> None:
        """From now on a projection runs in step. It has been brought nearly up to date before.

        Raises ParkedEventsError.
        """
        name = cls.__follower__
        with self._log.transaction() as connection:
            lock_name(connection, lock_of(name))
            rows = self._followers.lock(connection, name)
            if all(row.in_step for row in rows):
                return
            if self._parked.any(connection, name):
                raise ParkedEventsError(name)
            head = self._log.settled(read_timeout, connection=connection)
            for row in rows:
                feed = Feed(
                    self._log,
                    cls.__handlers__,
                    categories=cls.__categories__,
                    shard=shard_of(row),
                    effects=True,
                )
                applier, after, until = Applier(cls(), feed), row.position, Bounds(position=head)
                with applier.telling(self._log, connection):
                    while page := feed.page(after, until, BATCH, connection=connection):
                        applier.together(connection, page)
                        after = page[-1][0]
            self._followers.set(connection, name, in_step=True, position=head)

    def leave(self, name: str, read_timeout: float) -> None:
        """From now on a projection follows the log."""
        with self._log.transaction() as connection:
            lock_name(connection, lock_of(name))
            if all(row.in_step for row in self._followers.lock(connection, name)):
                head = self._log.settled(read_timeout, connection=connection)
                self._followers.set(connection, name, in_step=False, position=head)
        self._members = [member for member in self._members if member.name != name]

    # --- appending -----------------------------------------------------------------------------

    @property
    def is_needed(self) -> bool:
        """Whether an append has to ask here: it has not been looked yet, or there are members."""
        return not self._checked or bool(self._members)

    def append(
        self,
        writes: Sequence[Write],
        *,
        key: str | None,
        recorded_at: int | None,
        connection: Connection | None,
    ) -> tuple[Receipt, ...]:
        """`Log.append`, with the handlers of the projections in its transaction.

        Raises HandlerError, with nothing written, where one of them fails.
        """
        if not self.is_needed:
            return self._log.append(writes, key=key, recorded_at=recorded_at, connection=connection)
        if connection is not None and not self._checked:
            _begin_writing(connection)
        self._check(connection)
        wanted = [
            member
            for member in self._members
            if any(member.wants(w.stream, [e.type.name for e in w.events]) for w in writes)
        ]
        if not wanted:
            return self._log.append(writes, key=key, recorded_at=recorded_at, connection=connection)
        with self._joined(connection) as joined:
            active = self._hold(joined, wanted)
            receipts = self._log.append(writes, key=key, recorded_at=recorded_at, connection=joined)
            rows: list[Row] = []
            for write, receipt in zip(writes, receipts, strict=True):
                rows += self._written(joined, write, receipt)
            self._apply(joined, active, rows)
        return receipts

    def delete(self, stream: str, expected: Expected) -> Receipt:
        """`Log.delete`, with the handlers of StreamDeleted in its transaction."""
        self._check(None)
        wanted = [member for member in self._members if member.wants(stream, [_TOMBSTONE])]
        if not wanted:
            return self._log.delete(stream, expected)
        with self._log.transaction() as connection:
            active = self._hold(connection, wanted)
            receipt = self._log.delete(stream, expected, connection=connection)
            bounds = Bounds(version=receipt.version)
            rows = self._log.read(
                stream, receipt.version - 1, bounds, limit=1, connection=connection
            )
            self._apply(connection, active, rows)
        return receipt

    def fork(
        self, source: str, version: int, target: str, *, connection: Connection | None
    ) -> Receipt:
        """`Log.fork`, with the handlers of the projections in its transaction."""
        if connection is not None and not self._checked:
            _begin_writing(connection)
        self._check(connection)
        if not self._members:
            return self._log.fork(source, version, target, connection=connection)
        with self._joined(connection) as joined:
            active = self._hold(joined, self._members)
            receipt = self._log.fork(source, version, target, connection=joined)
            after = 0
            bounds = Bounds(version=version)
            while rows := self._log.read(target, after, bounds, limit=BATCH, connection=joined):
                self._apply(joined, active, rows)
                after = rows[-1].version
        return receipt

    def _check(self, connection: Connection | None) -> None:
        """Once: no append of this program may pass by a projection that runs in step."""
        if not self._checked:
            known = {member.name for member in self._members}
            for name in sorted(self._followers.in_step(connection).keys() - known):
                raise NotInStepError(name)
            self._checked = True

    @contextlib.contextmanager
    def _joined(self, connection: Connection | None) -> Generator[Connection]:
        if connection is None:
            with self._log.transaction() as own:
                yield own
        else:  # whose transaction is to go on after an error
            # Before the savepoint: SQLite would take one outside of a transaction for the
            # transaction itself, and commit at its end.
            _begin_writing(connection)
            with connection.begin_nested():
                yield connection

    def _hold(self, connection: Connection, members: Sequence[_Member]) -> list[_Member]:
        """Hold the names until the transaction ends; those that do run in step at this moment."""
        for name in sorted(member.name for member in members):
            lock_name(connection, lock_of(name), shared=True)
        active = self._followers.in_step(connection)
        holding = [member for member in members if member.name in active]
        for member in holding:
            # Other code may have rebuilt the tables since this store was opened.
            check_code(member.cls, *active[member.name])
        return holding

    def _written(self, connection: Connection, write: Write, receipt: Receipt) -> list[Row]:
        """The new events as stored; none where an idempotency key says that they were before."""
        count = len(write.events)
        if not count:
            return []
        bounds = Bounds(version=receipt.version)
        rows = self._log.read(
            write.stream, receipt.version - count, bounds, limit=count, connection=connection
        )
        return list(rows) if [row.id for row in rows] == [e.id for e in write.events] else []

    def _apply(
        self, connection: Connection, members: Sequence[_Member], rows: Sequence[Row]
    ) -> None:
        records = [
            recorded(row, self._log.event_type(row.type, connection)) for row in sorted(rows)
        ]
        recorders: list[Recorder] = []
        for member in members:
            wanted = [record for record in records if member.wants(record.stream, [record.type])]
            handled = recorder = None
            if wanted and member.cls.__changes__ is not None:
                recorder = Recorder(member.cls.__changes__)
                recorder.position = wanted[-1].position
                recorders.append(recorder)
            try:
                with member.cls()._writing(connection, recorder) as projection:
                    for handled in wanted:
                        member.feed.hand(projection, handled)
            except Exception as error:
                if handled is None or isinstance(error, EventStoreError):
                    raise
                raise HandlerError(
                    member.name,
                    handled.stream,
                    handled.version,
                    handled.position,
                    handled.type,
                    described(error),
                ) from error
        tell(self._log, connection, recorders)


def _begin_writing(connection: Connection) -> None:
    """Take SQLite's lock for writing before anything is read in a caller's transaction.

    One that has read must not write any more once another one has.
    """
    if connection.dialect.name == "sqlite":
        with own_errors(connection):
            connection.execute(update(followers).where(false()).values(epoch=0))
