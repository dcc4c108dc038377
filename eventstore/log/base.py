"""The port: what the store needs of a database. `eventstore.testing.LogContract` checks one."""

from __future__ import annotations

import enum
from collections.abc import Generator, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from typing import TYPE_CHECKING, Any, Final, NamedTuple, Protocol, TypeAlias

if TYPE_CHECKING:
    from sqlalchemy import Connection, Engine

    from eventstore.log.grouping import Request
    from eventstore.log.queries import Statement
    from eventstore.log.signal import Signal
    from eventstore.log.work import Joinable, Work


class Expectation(enum.Enum):
    """What an append requires of its stream, where that is not a version."""

    ANY = "any version"
    NO_STREAM = "no stream"
    STREAM_EXISTS = "a stream"

    def __str__(self) -> str:
        return self.value


ANY: Final = Expectation.ANY
NO_STREAM: Final = Expectation.NO_STREAM
STREAM_EXISTS: Final = Expectation.STREAM_EXISTS

#: The version that an append requires: an int (0 is NO_STREAM), or one of the three.
Expected: TypeAlias = int | Expectation

#: The name of the tombstone's type. The log writes it itself.
DELETED: Final = "$deleted"


class EventType(NamedTuple):
    """A type as stored: its name, and the version of its schema."""

    name: str
    version: int


#: The type of a JSON message that is no event: its payload is the message itself.
MESSAGE: Final = EventType("$json", 1)


class NewEvent(NamedTuple):
    """An event to be written. `id` is 16 bytes."""

    type: EventType
    data: bytes
    id: bytes
    metadata: bytes | None = None


class Write(NamedTuple):
    """Events for one stream, and what is required of it. One stream occurs once in an append."""

    stream: str
    events: Sequence[NewEvent]
    expected: Expected = ANY


class Receipt(NamedTuple):
    """What an append did to one stream."""

    stream: str
    #: The stream's version, now that its new events are in: its event count.
    version: int
    #: The position of the last new event.
    position: int
    #: When they were recorded, in microseconds since the epoch.
    recorded_at: int


class Row(NamedTuple):
    """An event as stored. `type` is a key of the log's own: see `Log.event_type`."""

    position: int
    stream: str
    version: int
    type: int
    data: bytes
    metadata: bytes | None
    id: bytes
    recorded_at: int


class StreamInfo(NamedTuple):
    """The head of a stream. `recorded_at` is that of its last event."""

    name: str
    version: int
    recorded_at: int
    deleted: bool


class Slim(NamedTuple):
    """What a fold needs of an event. `type` is a key of the log's own: see `Log.event_type`."""

    position: int
    type: int
    data: bytes


class Keyed(NamedTuple):
    """A Row whose stream, as its type, is a key of the log's own: see `Log.stream_names`."""

    position: int
    stream: int
    version: int
    type: int
    data: bytes
    metadata: bytes | None
    id: bytes
    recorded_at: int


class Shard(NamedTuple):
    """A part of the log: the streams of which `number` is the turn, out of `of`.

    A stream is in the same shard for ever, for any one `of`.
    """

    number: int
    of: int


class Wanted(NamedTuple):
    """Which events of the whole log are wanted: None leaves none out."""

    types: Iterable[str] | None = None
    categories: Iterable[str] | None = None
    shard: Shard | None = None


class Bounds(NamedTuple):
    """Up to where to read: every bound is inclusive, and None is none."""

    version: int | None = None
    position: int | None = None
    recorded_at: int | None = None


class Frontier(NamedTuple):
    """Up to where the log is final now, and who keeps what lies beyond uncertain.

    `writers` are ids for `Log.describe`, of open transactions; with none of them, nothing is known
    beyond the position.
    """

    position: int
    writers: tuple[str, ...]


#: For `Wanted`: all of the log.
EVERY_EVENT: Final = Wanted()


class Snapshot(NamedTuple):
    """State at a version. `position` and `recorded_at` are those of the event at that version."""

    version: int
    position: int
    recorded_at: int
    state: bytes


class Log(Protocol):
    """A durable log of streams.

    `connection`, where a method takes it, is a caller's connection with its own transaction: the
    log then works inside it, and never commits or rolls back. Some take one of `work` as well.
    """

    engine: Engine
    #: Fires when something was committed: by this log, and while it is `watching`, by others. It is
    #: a hint, which may come late, in vain or never.
    signal: Signal

    def append(
        self,
        writes: Sequence[Write],
        *,
        key: str | None = None,
        recorded_at: int | None = None,
        connection: Joinable | None = None,
    ) -> tuple[Receipt, ...]:
        """Append to all the streams or to none; a receipt a write, in their order.

        `recorded_at` is the time of the events (the clock's by default), raised where needed to
        that of the latest event of any of the streams. With `key`, a repetition returns the
        first receipts and writes nothing. A write without events checks its stream only.

        Raises WrongExpectedVersionError, StreamDeletedError, IdempotencyKeyReusedError, LogError.
        """
        ...

    def append_together(self, requests: Sequence[Request]) -> None:
        """Append for several callers, in one transaction where that is possible.

        Sets the outcome of each: its receipts or its error. Raises StoreClosedError only.
        """

    def group_commits(self) -> None:
        """From now on, appends that threads make at once may share a transaction.

        Each keeps its own outcome: a conflict of one is not the failure of another. None returns
        before it is committed.
        """

    def delete(
        self, stream: str, expected: Expected = ANY, *, connection: Joinable | None = None
    ) -> Receipt:
        """Erase a stream's events and snapshots, and append the tombstone, as one.

        Raises StreamNotFoundError if there is no such stream and ANY was expected, and else what
        `append` does.
        """
        ...

    def fork(
        self, source: str, version: int, target: str, *, connection: Joinable | None = None
    ) -> Receipt:
        """Copy the first `version` events of a stream to a new one, as one.

        The copies have the ids, times and metadata of the originals, and positions of their own.

        Raises WrongExpectedVersionError if there is a stream of that name, or if the source has
        fewer events; StreamNotFoundError, StreamDeletedError, LogError.
        """
        ...

    def receipts(self, key: str) -> tuple[Receipt, ...] | None:
        """The receipts of the append that had this idempotency key."""

    def event_type(self, key: int, connection: Joinable | None = None) -> EventType:
        """The type behind the key in a row. A key means the same type for ever."""
        ...

    def fold(
        self,
        stream: str,
        after: int = 0,
        until: Bounds = Bounds(),  # noqa: B008 (immutable)
        *,
        fingerprint: bytes | None = None,
        connection: Connection | None = None,
    ) -> tuple[Snapshot | None, Iterator[Sequence[tuple[int, bytes]]]]:
        """What a load reads: (type key, data) of a stream's events in order, in pages.

        With `fingerprint`, the latest snapshot of that fingerprint within the bounds comes
        first, and only the events after it follow. The pages must be used up or closed.
        """
        ...

    def fold_together(self, streams: Sequence[str]) -> Sequence[Sequence[tuple[int, bytes]] | None]:
        """What `fold` gives of each of the streams, whole, in one trip where that is possible.

        Nothing of a stream that is not there; None for one that is too long, and has to be folded
        by itself. Raises LogError.
        """
        ...

    def read(
        self,
        stream: str,
        after: int,
        until: Bounds,
        *,
        limit: int,
        backwards: bool = False,
        types: Iterable[str] | None = None,
        connection: Joinable | None = None,
    ) -> Sequence[Row]:
        """At most `limit` rows of a stream with versions past `after`, by version.

        Backwards: the last ones first.
        """
        ...

    def sizes(self, stream: str, after: int, until: int, limit: int) -> Sequence[int]:
        """The bytes that the payloads of a stream's events have, by version.

        Of at most `limit` events past the version `after`, up to `until`: to know what a read of
        them would take.
        """
        ...

    def read_all(
        self,
        after: int,
        until: Bounds,
        *,
        limit: int,
        backwards: bool = False,
        wanted: Wanted = EVERY_EVENT,
        connection: Connection | None = None,
    ) -> Sequence[Row]:
        """At most `limit` rows of the whole log with positions past `after`, by position.

        The caller bounds `until.position` by `settled()`; past it, rows may be missing.
        """
        ...

    def scan(
        self,
        after: int,
        until: Bounds,
        *,
        limit: int,
        wanted: Wanted = EVERY_EVENT,
        connection: Connection | None = None,
    ) -> Sequence[Slim]:
        """`read_all`, forwards, of what a fold needs only."""
        ...

    def moved(self, after: int, until: int) -> Sequence[tuple[str, int]]:
        """The streams that have events past a position, each with its last version there.

        Up to `until`, inclusive, which the caller takes from `frontier`.
        """
        ...

    def pages(
        self,
        after: int,
        until: Bounds,
        *,
        size: int,
        wanted: Wanted = EVERY_EVENT,
        whole: bool = False,
    ) -> Generator[Sequence[Slim] | Sequence[Keyed] | Sequence[Row]]:
        """What `scan` gives, or with `whole` what `read_all` does, to the end of the bounds.

        In pages of at most `size` rows, none of them empty, for who reads all of them: a
        connection may be taken until the pages are used up or closed. `until.position` is final.
        Whole rows have keys for their streams if the log `reads_aside`.
        """
        ...

    @property
    def reads_aside(self) -> bool:
        """Whether the log can read while a transaction of its own is open."""
        ...

    def stream_names(self, keys: Iterable[int]) -> dict[int, str]:
        """The streams behind the keys in rows. A key means the same stream for ever."""
        ...

    def settled(self, timeout: float, *, connection: Connection | None = None) -> int:
        """A position up to which the log is final: what commits later has a higher one.

        It covers every append that was acknowledged before the call, which waits at most
        `timeout` seconds for open transactions that could still commit below it; then raises
        LogStalledError. With no such transactions it does not wait.
        """
        ...

    def frontier(self) -> Frontier:
        """The position up to which the log is final now. It does not wait.

        Unlike `settled` it may be behind what was acknowledged before the call. Called again and
        again it gets there, since it waits for nobody who began to write later. It goes back only
        when the event there has gone: lost in a crash, or deleted with its stream.
        """
        ...

    @property
    def doubts(self) -> int:
        """How often `frontier` has found that the event which it had reached is gone.

        Its stream was deleted, or the log has gone back: readers have to look (`check_mark`).
        """
        ...

    def describe(self, writers: Iterable[str]) -> tuple[str, ...]:
        """Who the writers of a frontier are, in words, as far as that is known."""
        ...

    def watching(self) -> AbstractContextManager[None]:
        """In the block, the signal fires for other processes' commits too."""
        ...

    @property
    def poll_interval(self) -> float:
        """Seconds after which whoever waits for the signal should look all the same."""
        ...

    def stream(self, name: str, *, connection: Joinable | None = None) -> StreamInfo | None:
        """The head of a stream; None if there never was one."""

    def streams(self, category: str | None, after: str, limit: int) -> Sequence[StreamInfo]:
        """Heads by name, in the order of code points, past the name `after`."""
        ...

    def save_snapshot(
        self,
        stream: str,
        fingerprint: bytes,
        snapshot: Snapshot,
        *,
        connection: Connection | None = None,
    ) -> None:
        """Keep a snapshot beside the others. Saving the same one again changes nothing."""

    def delete_snapshots(self, stream: str | None = None) -> int:
        """Throw away the snapshots of a stream, or all; how many there were."""
        ...

    def transaction(
        self, connection: Connection | None = None
    ) -> AbstractContextManager[Connection]:
        """A transaction that writes, for tables beside the log's own.

        On a new connection, or on one that has no transaction yet. The end of the block commits; an
        error in it rolls back. The driver's own failures leave it as LogError, with their cause;
        any other error as it is.
        """
        ...

    def close(self) -> None:
        """Give back what the log itself opened. Later calls of any method fail."""

    def work(self) -> AbstractContextManager[Work]:
        """The same on the driver's own cursor, which costs a fifth; for `query` and `change`."""
        ...

    def query(
        self, statement: Statement, values: Mapping[str, Any], connection: Joinable | None = None
    ) -> Sequence[Any]:
        """The rows that a statement finds. Raises LogError."""
        ...

    def change(self, statement: Statement, values: Sequence[Mapping[str, Any]], work: Work) -> int:
        """Run a statement once for each; how many rows that concerned in all. Raises LogError."""
        ...

    @property
    def insert(self) -> Any:
        """The dialect's `insert`, which knows ON CONFLICT."""
        ...

    def one_of(self, column: Any, parameter: str) -> Any:
        """The condition that a column's value is in the list that is given as `parameter`."""
        ...

    def list_value(self, values: Iterable[str | int]) -> Any:
        """A list as the value of such a parameter."""
        ...
