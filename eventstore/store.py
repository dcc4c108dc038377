"""EventStore: aggregates and streams on a durable log, now and at any past moment."""

from __future__ import annotations

import contextlib
import copy
import logging
import random
import time
from collections.abc import Callable, Iterable, Iterator
from datetime import datetime
from typing import Concatenate, ParamSpec, TypedDict, TypeVar

from sqlalchemy import URL, Connection, Engine

from eventstore import metadata
from eventstore.aggregate import Aggregate, blank
from eventstore.errors import (
    IdempotencyKeyReusedError,
    InvalidArgumentError,
    LogError,
    StreamDeletedError,
    StreamNotFoundError,
    WrongExpectedVersionError,
)
from eventstore.fold import Fold
from eventstore.following_store import FollowingStore
from eventstore.log import base
from eventstore.log.base import ANY, Bounds, Expected, Log
from eventstore.log.opening import Durability
from eventstore.names import StreamPattern, check_idempotency_key
from eventstore.numbers import check_whole
from eventstore.projections.table_projection import TableProjection
from eventstore.snapshots import AggregateCache, crosses, state_codec
from eventstore.state import state_fields
from eventstore.stream_store import (
    EVERYTHING,
    PAGE,
    Joinable,
    bounds_at,
    joined_connection,
    micros_of,
)
from eventstore.streams import Cut, Step

S = TypeVar("S", bound=Aggregate)
P = ParamSpec("P")
R = TypeVar("R")

logger = logging.getLogger(__name__)


class StoreOptions(TypedDict, total=False):
    """The options of an EventStore: see there."""

    durability: Durability
    lock_timeout: float
    read_timeout: float
    cache: int
    max_event_bytes: int
    max_attempts: int
    clock: Callable[[], datetime] | None
    notify: bool
    group_commit: bool
    in_step: Iterable[type[TableProjection]]
    migrate: bool | None


class EventStore(FollowingStore):
    """Aggregates and streams on a durable log. Safe for threads; open one per database.

    `target` is a URL (`sqlite:///file.db`, `sqlite://` for memory, `postgresql://...`), a
    SQLAlchemy engine, which stays the caller's, or any `eventstore.log.base.Log`.

    - `durability`: "full" acknowledges nothing that a power failure could take back; "relaxed"
      may lose the last moments of commits, whole ones and from the end only.
    - `lock_timeout`: seconds that a write waits for SQLite's one writer.
    - `read_timeout`: seconds that a read of the whole log waits for open transactions that
      could still commit below its end (PostgreSQL only).
    - `cache`: how many aggregates to keep in memory, so that a load reads newer events only, and
      `transact` none unless others have appended to the stream meanwhile. It may then run the
      command once more.
    - `max_event_bytes`: the most bytes that a payload, or metadata, may take.
    - `max_attempts`: how often `transact` tries before it gives a conflict to its caller.
    - `clock`: the source of `recorded_at`, for tests; the machine's (SQLite) or the server's
      (PostgreSQL) by default.
    - `group_commit`: whether appends that many threads make at once share transactions. Each has
      an outcome of its own, and returns when it is committed; a lone one does not wait. An
      AsyncEventStore does so by default, and shares the queries of loads as well.
    - `in_step`: projections that run in the transaction of each append, so that their tables
      are never behind. Every program that appends has to open the store with them.
    - `migrate`: whether to bring the tables up to date. By default a SQLite file migrates itself,
      and PostgreSQL is refused until `eventstore migrate URL` has been run.
    - `notify`: whether to tell readers that wait in other processes when something was appended
      (PostgreSQL only). Without it they look twice a second.

    An operation with `connection=` joins the caller's transaction: it is the caller who commits
    or rolls back. Raises SchemaError, LogError, InvalidArgumentError.
    """

    def __init__(
        self,
        target: str | URL | Engine | Log,
        *,
        durability: Durability = "full",
        lock_timeout: float = 5.0,
        read_timeout: float = 10.0,
        cache: int = 0,
        max_event_bytes: int = 1_048_576,
        max_attempts: int = 10,
        clock: Callable[[], datetime] | None = None,
        migrate: bool | None = None,
        notify: bool = True,
        group_commit: bool = False,
        in_step: Iterable[type[TableProjection]] = (),
    ) -> None:
        if max_attempts < 1:
            raise InvalidArgumentError("max_attempts", max_attempts, "use a whole number from 1")
        super().__init__(
            target,
            durability=durability,
            lock_timeout=lock_timeout,
            read_timeout=read_timeout,
            max_event_bytes=max_event_bytes,
            clock=clock,
            migrate=migrate,
            notify=notify,
        )
        self._max_attempts = max_attempts
        self._group_commit = group_commit
        self._follow(list(in_step))
        if group_commit:
            self.log.group_commits()
        self._folds: dict[type[Aggregate], Fold] = {}
        self._cache = AggregateCache(cache) if cache > 0 else None

    # --- write ---------------------------------------------------------------------

    def save(
        self,
        *aggregates: Aggregate,
        idempotency_key: str | None = None,
        recorded_at: datetime | None = None,
        connection: Joinable | None = None,
    ) -> None:
        """Append the new events of all the aggregates, or of none.

        Each stream must be at the version that its aggregate was loaded at. After an error the
        aggregates keep their new events. `recorded_at` is for imports: see `append`. With
        `idempotency_key`, saving the same aggregates once more writes nothing, so a save whose
        acknowledgement was lost can be repeated; the aggregates are then as the first save left
        them. After a rollback of `connection`, load again.

        Raises WrongExpectedVersionError, StreamDeletedError, EventTooLargeError, LogError.
        """
        if idempotency_key is not None:
            check_idempotency_key(idempotency_key)
        self._save(aggregates, idempotency_key, recorded_at, joined_connection(connection))

    def _save(
        self,
        aggregates: Iterable[Aggregate],
        key: str | None,
        recorded_at: datetime | None,
        joined: Connection | None,
    ) -> bool:
        """Save; False if it had been done already under the key."""
        changed: list[Aggregate] = []
        writes: list[base.Write] = []
        carried = metadata.current()
        for aggregate in aggregates:
            if aggregate._pending:
                stream = aggregate.__stream__.stream(aggregate.id)
                new = self._codec.new_events(aggregate._pending, carried)
                writes.append(base.Write(stream, new, aggregate.version))
                changed.append(aggregate)
        if not changed:
            return True
        receipts = self._append(
            writes, key=key, recorded_at=micros_of(recorded_at), connection=joined
        )
        if key is not None and not self._is_ours(writes[0], receipts[0], joined):
            for aggregate, receipt in zip(changed, receipts, strict=True):
                self._rewind(aggregate, receipt.version, joined)
            return False
        for aggregate, receipt in zip(changed, receipts, strict=True):
            before, aggregate.version = aggregate.version, receipt.version
            aggregate._pending.clear()
            every = aggregate.__snapshot_every__
            if every is not None and crosses(every, before, receipt.version):
                self._keep_snapshot(aggregate, receipt.position, receipt.recorded_at, joined)
            if self._cache is not None and joined is None:
                self._cache.put(aggregate)
        return True

    def _is_ours(self, write: base.Write, receipt: base.Receipt, joined: Connection | None) -> bool:
        """Whether a keyed append wrote these events, or gave the receipt of an earlier one."""
        bounds = Bounds(version=receipt.version)
        rows = self.log.read(write.stream, receipt.version - 1, bounds, limit=1, connection=joined)
        return bool(rows) and rows[0].id == write.events[-1].id

    def _rewind(self, aggregate: Aggregate, version: int, joined: Connection | None) -> None:
        """Make an aggregate what it was at a version."""
        aggregate._pending.clear()
        aggregate.version = version
        with contextlib.suppress(StreamDeletedError):
            found = self.load(type(aggregate), aggregate.id, version=version, connection=joined)
            for field in state_fields(type(aggregate)):
                setattr(aggregate, field, getattr(found, field))

    def transact(
        self,
        cls: type[S],
        id: str,
        command: Callable[Concatenate[S, P], R],
        /,
        *args: P.args,
        **kwargs: P.kwargs,
    ) -> R:
        """Load an aggregate, call `command` on it, and save; what the command returned.

        On a conflict with another writer it starts again, at most `max_attempts` times in all,
        after a short random pause; so a command must have no other effect. Nothing else is
        retried. Raises what the command raises, and what `load` and `save` do.
        """
        return self._transact(None, cls, id, lambda found: command(found, *args, **kwargs))[0]

    def transact_once(
        self,
        idempotency_key: str,
        cls: type[S],
        id: str,
        command: Callable[Concatenate[S, P], R],
        /,
        *args: P.args,
        **kwargs: P.kwargs,
    ) -> R | None:
        """`transact`, unless that was done already under the key: then None, and no effect.

        A command that records nothing leaves the key unused. Raises IdempotencyKeyReusedError for
        a key that was used for another aggregate.
        """
        first = self.log.receipts(check_idempotency_key(idempotency_key))
        if first is not None:
            stream = cls.__stream__.stream(id)
            streams = tuple(receipt.stream for receipt in first)
            if streams != (stream,):
                raise IdempotencyKeyReusedError(idempotency_key, (stream,), streams)
            return None
        result, written = self._transact(
            idempotency_key, cls, id, lambda found: command(found, *args, **kwargs)
        )
        return result if written else None

    def _transact(
        self, key: str | None, cls: type[S], id: str, command: Callable[[S], R]
    ) -> tuple[R, bool]:
        aggregate = self._cached(cls, id)
        if aggregate is not None:
            done = self._guess(key, aggregate, command)
            if done is not None:
                return done
        attempt = 1
        while True:
            aggregate = self.load(cls, id)
            result = command(aggregate)
            try:
                return result, self._save((aggregate,), key, None, None)
            except WrongExpectedVersionError:
                if attempt == self._max_attempts:
                    raise
            time.sleep(random.uniform(0, min(0.1, 0.001 * 2**attempt)))
            attempt += 1

    def _guess(
        self, key: str | None, aggregate: S, command: Callable[[S], R]
    ) -> tuple[R, bool] | None:
        """A command on an aggregate that nobody may have changed meanwhile, without a look.

        Only a save can tell. None if there is none, or if it finds another version: the command's
        outcome does not count then, nor does its error.
        """
        try:
            result = command(aggregate)
        except Exception:
            return None
        if not aggregate._pending:
            return None
        try:
            return result, self._save((aggregate,), key, None, None)
        except WrongExpectedVersionError:
            return None

    def _may_share(self, cls: type[Aggregate], *, appends: bool) -> bool:
        """Whether operations may be done for several callers at once: see eventstore.together."""
        if not self._group_commit or cls.__snapshot_every__ or self._cache is not None:
            return False
        return not (appends and self._in_step.is_needed)

    def delete(self, cls: type[Aggregate], id: str, *, expected: Expected = ANY) -> None:
        """Delete an aggregate's stream: see `delete_stream`."""
        self.delete_stream(cls.__stream__.stream(id), expected=expected)
        if self._cache is not None:
            self._cache.drop(cls, id)

    def fork(
        self,
        cls: type[S],
        id: str,
        new_id: str,
        *,
        at: datetime | Cut | None = None,
        version: int | None = None,
        connection: Joinable | None = None,
    ) -> S:
        """Branch an aggregate's history: a new one that begins with its events so far.

            what_if = store.fork(Order, "o-1", "o-1-what-if", at=yesterday)

        With `at` a moment (inclusive) or a `version`, it begins with those up to there. The copies
        keep their ids, times and metadata, and have positions of their own, so projections see
        another aggregate. From then on neither knows of the other: what is appended to one,
        or deleted, leaves the other as it is.

        Raises WrongExpectedVersionError if `new_id` has a history of its own, StreamDeletedError
        if it had one, InvalidNameError, and what `load` does.
        """
        joined = joined_connection(connection)
        source, target = cls.__stream__.stream(id), cls.__stream__.stream(new_id)
        found = self.load(cls, id, at=at, version=version, connection=joined)
        self._fork(source, found.version, target, joined)
        return self.load(cls, new_id, connection=joined)

    # --- read ----------------------------------------------------------------------

    def load(
        self,
        cls: type[S],
        id: str,
        *,
        at: datetime | Cut | None = None,
        version: int | None = None,
        connection: Joinable | None = None,
    ) -> S:
        """The aggregate as it is, as it was `at` a moment (inclusive), or at a `version`.

        Costs the latest usable snapshot and the events after it. With `connection`, it sees
        what that transaction has written.

        Raises StreamNotFoundError (`at` a moment before the first event too), StreamDeletedError,
        StoredEventError, InvalidTimeError, InvalidArgumentError for a version that is not there.
        """
        stream = cls.__stream__.stream(id)
        until = bounds_at(at, version)
        joined = joined_connection(connection)
        whole = until == EVERYTHING and joined is None
        aggregate = self._cached(cls, id) if whole else None
        if aggregate is None:
            aggregate = blank(cls, id)
        started = aggregate.version
        codec = state_codec(cls) if cls.__snapshot_every__ and not started else None
        snapshot, pages = self.log.fold(
            stream,
            started,
            until,
            fingerprint=codec.fingerprint if codec else None,
            connection=joined,
        )
        if snapshot is not None and codec is not None:
            if codec.restore(aggregate, snapshot.state):
                started = aggregate.version = snapshot.version
            else:
                _, pages = self.log.fold(stream, 0, until, connection=joined)
        fold = self._fold(cls) if joined is None else Fold(self.log, cls, joined)
        for page in pages:
            if page:
                fold.apply(aggregate, page)
            del page  # before the next one is fetched
        self._check_found(aggregate, stream, at, version, joined)
        if whole and aggregate.version != started:
            self._keep(aggregate, started)
        return aggregate

    def exists(self, cls: type[Aggregate], id: str, *, connection: Joinable | None = None) -> bool:
        """Whether the aggregate has events, and was not deleted."""
        head = self.log.stream(cls.__stream__.stream(id), connection=joined_connection(connection))
        return head is not None and head.version > 0 and not head.deleted

    def history(
        self, cls: type[S], id: str, *, after: int = 0, until: int | None = None
    ) -> Iterator[Step[S]]:
        """Each event of an aggregate with the state that it led to, oldest first.

        `after` (exclusive) and `until` (inclusive) are versions. Each state is independent.
        Raises StreamNotFoundError, StreamDeletedError, StoredEventError.
        """
        stream = cls.__stream__.stream(id)
        if until is not None:
            check_whole("until", until)
        aggregate = self.load(cls, id, version=after) if after else blank(cls, id)
        if not after and not self.exists(cls, id):
            self._check_found(aggregate, stream, None, None, None)
        return self._steps(aggregate, stream, until)

    def _steps(self, aggregate: S, stream: str, until: int | None) -> Iterator[Step[S]]:
        fold = self._fold(type(aggregate))
        bounds = Bounds(version=until)
        while rows := self.log.read(stream, aggregate.version, bounds, limit=PAGE):
            for row in rows:
                fold.apply(aggregate, ((row.type, row.data),))
                yield Step(self._codec.record(row), copy.deepcopy(aggregate))

    def ids(self, cls: type[Aggregate]) -> Iterator[str]:
        """The id of every aggregate of a class that was not deleted, in order of stream name."""
        pattern: StreamPattern = cls.__stream__
        for head in self._heads(pattern.category):
            id = pattern.id(head.name)
            if id is not None and head.version > 0 and not head.deleted:
                yield id

    def load_all(self, cls: type[S], *, at: datetime | Cut | None = None) -> Iterator[S]:
        """Every aggregate of a class, in order of stream name; with `at`, as of that moment.

        A moment is resolved to a cut of the log once, so that all are of the same instant. What
        was not there yet, or has been deleted since, is left out.
        """
        cut = at if at is None or isinstance(at, Cut) else self.cut(at)
        return self._load_all(cls, cut)

    def _load_all(self, cls: type[S], cut: Cut | None) -> Iterator[S]:
        for id in self.ids(cls):
            try:
                yield self.load(cls, id, at=cut)
            except (StreamNotFoundError, StreamDeletedError):
                continue

    # --- snapshots -----------------------------------------------------------------------------

    def delete_snapshots(self, cls: type[Aggregate] | None = None, id: str | None = None) -> int:
        """Throw away every snapshot, or one aggregate's; how many. Only speed changes."""
        if (cls is None) is not (id is None):
            raise InvalidArgumentError("id", id, "give a class and an id, or neither")
        if cls is None or id is None:
            return self.log.delete_snapshots()
        return self.log.delete_snapshots(cls.__stream__.stream(id))

    def _fold(self, cls: type[Aggregate]) -> Fold:
        fold = self._folds.get(cls)
        if fold is None:
            fold = self._folds[cls] = Fold(self.log, cls)
        return fold

    def _cached(self, cls: type[S], id: str) -> S | None:
        return None if self._cache is None else self._cache.get(cls, id)

    def _check_found(
        self,
        aggregate: Aggregate,
        stream: str,
        at: datetime | Cut | None,
        version: int | None,
        joined: Connection | None,
    ) -> None:
        if aggregate.version and (version is None or aggregate.version == version):
            return
        head = self.log.stream(stream, connection=joined)
        if head is not None and head.deleted:
            raise StreamDeletedError(stream)
        if head is None or not head.version or version is None:
            raise StreamNotFoundError(stream, at.at if isinstance(at, Cut) else at)
        raise InvalidArgumentError(
            "version", version, f"stream {stream!r} has {head.version} events"
        )

    def _keep(self, aggregate: Aggregate, started: int) -> None:
        """After a load that replayed: spare the next one the work."""
        if self._cache is not None:
            self._cache.put(aggregate)
        every = aggregate.__snapshot_every__
        if every is None or aggregate.version - started < every:
            return
        version = aggregate.version
        stream = type(aggregate).__stream__.stream(aggregate.id)
        for row in self.log.read(stream, version - 1, Bounds(version=version), limit=1):
            self._keep_snapshot(aggregate, row.position, row.recorded_at, None)

    def _keep_snapshot(
        self, aggregate: Aggregate, position: int, recorded_at: int, joined: Connection | None
    ) -> None:
        codec = state_codec(type(aggregate))
        state = codec.encode(aggregate)
        if state is None:
            return
        stream = type(aggregate).__stream__.stream(aggregate.id)
        snapshot = base.Snapshot(aggregate.version, position, recorded_at, state)
        try:
            self.log.save_snapshot(stream, codec.fingerprint, snapshot, connection=joined)
        except LogError:
            if joined is not None:
                raise  # the caller's transaction may be lost with it
            # The events are safe and a snapshot is only a cache: the save has succeeded.
            logger.warning(
                "the snapshot of %r was not saved",
                aggregate,
                exc_info=True,
                extra={
                    "eventstore.class": type(aggregate).__qualname__,
                    "eventstore.stream": stream,
                    "eventstore.version": aggregate.version,
                },
            )
