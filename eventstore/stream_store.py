"""Streams and the whole log: the half of the store that knows no aggregate."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from datetime import datetime
from types import TracebackType
from typing import TYPE_CHECKING, Final, Self, TypeAlias

from sqlalchemy import URL, Connection, Engine

from eventstore import metadata, schema
from eventstore.aggregate import Aggregate
from eventstore.codec import Codec, stored_names
from eventstore.errors import (
    InvalidArgumentError,
    StreamNotFoundError,
    WrongExpectedVersionError,
)
from eventstore.event import Event, RecordedEvent, seal
from eventstore.log import base, opening
from eventstore.log.base import ANY, Bounds, Expected, Log, Wanted
from eventstore.log.opening import Durability
from eventstore.moments import from_micros, to_micros
from eventstore.names import (
    check_category,
    check_idempotency_key,
    check_stream_name,
    check_type_name,
)
from eventstore.numbers import check_whole
from eventstore.streams import Cut, Receipt, StreamInfo, Write
from eventstore.subscriptions import Subscription

if TYPE_CHECKING:
    from sqlalchemy.ext.asyncio import AsyncConnection, AsyncSession
    from sqlalchemy.orm import Session, scoped_session

#: A caller's open transaction that an operation joins; an async one, that of an AsyncEventStore.
Joinable: TypeAlias = (
    "Connection | Session | scoped_session[Session] | AsyncConnection | AsyncSession"
)

PAGE: Final = 1000


class StreamStore:
    """Streams on a durable log. Its options and those of `EventStore` are told there."""

    def __init__(
        self,
        target: str | URL | Engine | Log,
        *,
        durability: Durability = "full",
        lock_timeout: float = 5.0,
        read_timeout: float = 10.0,
        max_event_bytes: int = 1_048_576,
        clock: Callable[[], datetime] | None = None,
        migrate: bool | None = None,
        notify: bool = True,
    ) -> None:
        micros = None if clock is None else lambda: to_micros(clock())
        self.log, self._close = opening.open_log(
            target,
            durability=durability,
            lock_timeout=lock_timeout,
            clock=micros,
            notify=notify,
        )
        self._read_timeout = read_timeout
        self._codec = Codec(self.log, max_event_bytes)
        try:
            if isinstance(target, (str, URL, Engine)):
                schema.prepare(self.log.engine, migrate)
        except BaseException:
            self.close()
            raise

    # --- streams -------------------------------------------------------------------------------

    def append(
        self,
        stream: str,
        events: Event | Iterable[Event],
        *,
        expected: Expected = ANY,
        idempotency_key: str | None = None,
        recorded_at: datetime | None = None,
        connection: Joinable | None = None,
    ) -> Receipt:
        """Append events to one stream, all or none.

        `recorded_at` keeps an import's original time; one that is earlier than the stream's last
        event is raised to that event's (the receipt tells). With `idempotency_key`, a repetition
        returns the first receipt and writes nothing.

        Raises WrongExpectedVersionError, StreamDeletedError, IdempotencyKeyReusedError,
        InvalidEventError, InvalidNameError, LogError.
        """
        receipts = self.append_all(
            [Write(stream, events, expected)],
            idempotency_key=idempotency_key,
            recorded_at=recorded_at,
            connection=connection,
        )
        return receipts[0]

    def append_all(
        self,
        writes: Iterable[Write],
        *,
        idempotency_key: str | None = None,
        recorded_at: datetime | None = None,
        connection: Joinable | None = None,
    ) -> tuple[Receipt, ...]:
        """Append to several streams, all or none, at one moment; a receipt a write, in order."""
        if idempotency_key is not None:
            check_idempotency_key(idempotency_key)
        carried = metadata.current()
        receipts = self._append(
            [
                base.Write(
                    check_stream_name(write.stream),
                    self._codec.new_events([seal(e) for e in _listed(write.events)], carried),
                    write.expected,
                )
                for write in writes
            ],
            key=idempotency_key,
            recorded_at=micros_of(recorded_at),
            connection=joined_connection(connection),
        )
        return tuple(map(_receipt, receipts))

    def delete_stream(self, stream: str, *, expected: Expected = ANY) -> Receipt:
        """Erase a stream's events for ever, and close its name with a tombstone.

        The tombstone, a StreamDeleted event, is what readers of the log see of it. Raises
        WrongExpectedVersionError, StreamNotFoundError, StreamDeletedError, LogError.
        """
        try:
            receipt = self._delete(check_stream_name(stream), expected)
        except WrongExpectedVersionError as error:
            if error.actual == 0:
                raise StreamNotFoundError(stream) from error
            raise
        return _receipt(receipt)

    def _append(
        self,
        writes: Sequence[base.Write],
        *,
        key: str | None,
        recorded_at: int | None,
        connection: Connection | None,
    ) -> tuple[base.Receipt, ...]:
        return self.log.append(writes, key=key, recorded_at=recorded_at, connection=connection)

    def _delete(self, stream: str, expected: Expected) -> base.Receipt:
        return self.log.delete(stream, expected)

    def read(
        self,
        stream: str,
        *,
        after: int = 0,
        until: int | None = None,
        at: datetime | Cut | None = None,
        limit: int | None = None,
        backwards: bool = False,
        types: Iterable[type[Event] | str] | None = None,
        connection: Joinable | None = None,
    ) -> Iterator[RecordedEvent]:
        """The events of a stream by version, past `after` and up to `until` (inclusive).

        `backwards` gives the same events, last first. A stream that does not exist has none; of
        a deleted one there is the tombstone. `types` leaves out all others.
        """
        check_stream_name(stream)
        check_whole("after", after)
        if until is not None:
            check_whole("until", until)
        joined = joined_connection(connection)
        names = _type_names(types)

        def page(after: int, bounds: Bounds, limit: int) -> Sequence[base.Row]:
            return self.log.read(
                stream,
                after,
                bounds,
                limit=limit,
                backwards=backwards,
                types=names,
                connection=joined,
            )

        bounds = bounds_at(at, None)._replace(version=until)
        return self._records(page, "version", after, bounds, limit, backwards, joined)

    def read_all(
        self,
        *,
        after: int = 0,
        until: int | None = None,
        at: datetime | Cut | None = None,
        limit: int | None = None,
        backwards: bool = False,
        categories: Iterable[type[Aggregate] | str] | None = None,
        types: Iterable[type[Event] | str] | None = None,
    ) -> Iterator[RecordedEvent]:
        """The events of all streams by position, past `after` and up to `until` (inclusive).

        What this call gives never changes: no event appears later below one that it gave. It
        covers every append that was acknowledged before the call. Raises LogStalledError when
        an open transaction keeps the end uncertain for longer than `read_timeout`.
        """
        check_whole("after", after)
        if until is not None:
            check_whole("until", until)
        wanted = wanted_events(types, categories)
        bounds = bounds_at(at, None)
        end = self.head() if bounds.position is None else bounds.position
        bounds = bounds._replace(position=end if until is None else min(end, until))

        def page(after: int, bounds: Bounds, limit: int) -> Sequence[base.Row]:
            return self.log.read_all(after, bounds, limit=limit, backwards=backwards, wanted=wanted)

        return self._records(page, "position", after, bounds, limit, backwards)

    def subscribe(
        self,
        after: int | str = 0,
        *,
        categories: Iterable[type[Aggregate] | str] | None = None,
        types: Iterable[type[Event] | str] | None = None,
    ) -> Subscription:
        """The events of all streams past a position, and then those that come, until stopped.

            with store.subscribe(after=checkpoint) as subscription:
                for event in subscription:
                    ...
                    checkpoint = event.checkpoint

        A checkpoint, unlike a position, tells when an older log was restored in the meantime.

        Unlike `read_all` it never raises LogStalledError: it goes on when the open transactions
        have ended, and `why_stalled` names them meanwhile. Raises CheckpointAheadError, LogError.
        """
        return Subscription(self.log, self._codec, after, wanted_events(types, categories))

    def _records(
        self,
        page: Callable[[int, Bounds, int], Sequence[base.Row]],
        place: str,
        after: int,
        bounds: Bounds,
        limit: int | None,
        backwards: bool,
        joined: Connection | None = None,
    ) -> Iterator[RecordedEvent]:
        if limit is not None and check_whole("limit", limit) < 0:
            raise InvalidArgumentError("limit", limit, "use a whole number from 0, or None")

        def records(after: int, bounds: Bounds) -> Iterator[RecordedEvent]:
            left = limit
            while left is None or left > 0:
                size = PAGE if left is None else min(left, PAGE)
                rows = page(after, bounds, size)
                for row in rows:
                    yield self._codec.record(row, joined)
                if len(rows) < size:
                    return
                left = None if left is None else left - size
                last = getattr(rows[-1], place)
                if backwards:
                    bounds = bounds._replace(**{place: last - 1})
                else:
                    after = last

        return records(after, bounds)

    def version(self, stream: str) -> int:
        """A stream's version: its event count; 0 if there is no such stream."""
        head = self.log.stream(check_stream_name(stream))
        return 0 if head is None else head.version

    def streams(self, category: type[Aggregate] | str | None = None) -> Iterator[StreamInfo]:
        """The head of every stream, deleted ones too, by name in the order of code points."""
        for head in self._heads(None if category is None else _category(category)):
            if head.version:
                yield StreamInfo(
                    head.name, head.version, from_micros(head.recorded_at), head.deleted
                )

    def _heads(self, category: str | None) -> Iterator[base.StreamInfo]:
        after = ""
        while heads := self.log.streams(category, after, PAGE):
            yield from heads
            after = heads[-1].name

    # --- the whole log -------------------------------------------------------------------------

    def head(self) -> int:
        """The log's last position (0: it is empty). Nothing will appear at or below it later.

        Raises LogStalledError: see `read_all`.
        """
        return self.log.settled(self._read_timeout)

    def cut(self, at: datetime | None = None) -> Cut:
        """The whole log at a moment, or now: to read several things at the same instant."""
        micros_of(at)
        return Cut(self.head(), at)

    @property
    def engine(self) -> Engine:
        """SQLAlchemy's engine, for your own tables in the same database."""
        return self.log.engine

    def connect(self) -> Connection:
        """A connection of that engine, to be used as a context manager."""
        return self.log.engine.connect()

    def close(self) -> None:
        """Close the connections that the store opened. Later calls raise StoreClosedError."""
        self.log.close()
        self._close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()


EVERYTHING: Final = Bounds()


def bounds_at(at: datetime | Cut | None, version: int | None) -> Bounds:
    """Up to where to read. Raises InvalidArgumentError, InvalidTimeError."""
    if at is None and version is None:
        return EVERYTHING
    if version is not None:
        if at is not None:
            raise InvalidArgumentError("version", version, "give at= or version=, not both")
        if check_whole("version", version) < 1:
            raise InvalidArgumentError("version", version, "versions are whole numbers from 1")
        return Bounds(version=version)
    if isinstance(at, Cut):
        return Bounds(position=check_whole("at", at.position), recorded_at=micros_of(at.at))
    return Bounds(recorded_at=micros_of(at))


def micros_of(moment: datetime | None) -> int | None:
    """A moment as the log has it, or None. Raises InvalidTimeError."""
    return None if moment is None else to_micros(moment)


def joined_connection(connection: Joinable | None) -> Connection | None:
    """The connection of the transaction to join, if there is one."""
    if connection is None or isinstance(connection, Connection):
        return connection
    if hasattr(connection, "run_sync"):
        raise InvalidArgumentError(
            "connection",
            connection,
            "it is an async one: give it to an AsyncEventStore, or use its run_sync",
        )
    joined = connection.connection()  # of an ORM session: the connection of its transaction
    assert isinstance(joined, Connection)
    return joined


def _receipt(receipt: base.Receipt) -> Receipt:
    return Receipt(
        receipt.stream, receipt.version, receipt.position, from_micros(receipt.recorded_at)
    )


def _listed(events: Event | Iterable[Event]) -> Iterable[Event]:
    return (events,) if isinstance(events, Event) else events


def _type_names(types: Iterable[type[Event] | str] | None) -> list[str] | None:
    if types is None:
        return None
    names: list[str] = []
    for wanted in types:
        names += (check_type_name(wanted),) if isinstance(wanted, str) else stored_names(wanted)
    return names


def wanted_events(
    types: Iterable[type[Event] | str] | None, categories: Iterable[type[Aggregate] | str] | None
) -> Wanted:
    """Which events a reader of the whole log wants, as the log has it."""
    wanted = None if categories is None else [_category(c) for c in categories]
    return Wanted(_type_names(types), wanted)


def _category(category: type[Aggregate] | str) -> str:
    return check_category(category) if isinstance(category, str) else category.__stream__.category
