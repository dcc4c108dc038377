"""Every error of the library. Each says what to do and carries its data as attributes.

EventStoreError
├── DefinitionError              a class of yours is declared wrongly; raised when it is made
│   └── EventNameTakenError      two event classes claim one stored name
├── InvalidEventError            an event holds a value that its annotations do not allow
│   └── EventTooLargeError       its payload or metadata is over the limit
├── InvalidNameError             an aggregate id or a stream's name cannot be one
├── InvalidTimeError             a moment that is naive, or no moment at all
├── InvalidArgumentError         an argument of a call makes no sense
├── StreamError                  about one stream
│   ├── WrongExpectedVersionError   somebody else appended first; load again and retry
│   ├── StreamNotFoundError         no such stream (at that moment)
│   └── StreamDeletedError          it was deleted; its name stays closed
├── IdempotencyKeyReusedError    a key came back with a request for other streams
├── StoredEventError             what is in the log cannot become an event
│   ├── CorruptEventError           the bytes are not a payload of its type
│   ├── UnknownEventError           no class has that stored name
│   └── NewerEventError             it was written by a later version of its class
├── RowNotFoundError             a projection changed a row that is not there
├── SchemaError                  the database's tables are not those of this library
│   ├── SchemaMissingError
│   ├── SchemaOutdatedError
│   └── SchemaTooNewError
├── LogError                     the database refused or failed
│   ├── LogLockedError              a lock was not had in time; nothing was written
│   ├── LogReadOnlyError            it cannot be written to; nothing was written
│   ├── LogUnavailableError         it went away; `.outcome` says what became of the append
│   ├── LogStalledError             a reader waits for a writer that does not end
│   └── CheckpointAheadError        a checkpoint is not of this log, or lies beyond its end
├── FollowerError                about one follower of the log: a projection or an event handler
│   ├── ProjectionChangedError      its code changed and its version did not
│   ├── ProjectionOutdatedError     its tables are those of another version: rebuild it
│   ├── ShardsChangedError          it was split in another way, and is in the middle of the log
│   ├── TableTakenError             a table of that name is there, and is not its own
│   ├── HandlerError                a handler failed on an event
│   ├── ParkedEventsError           it has parked events, which have to be dealt with first
│   ├── NotInStepError              an append would pass by a projection that runs in step
│   ├── LeaseLostError              another worker has taken over; nothing was written
│   ├── NotCaughtUpError            it did not reach a position in time
│   ├── RebuildRunningError         somebody else rebuilds it at this moment
│   └── RebuildDiffersError         rebuilt tables are not what the living ones are
└── StoreClosedError             the store was closed
"""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import is_dataclass
from datetime import date, time, timedelta
from decimal import Decimal
from enum import Enum
from types import NoneType
from typing import Any, Final, Literal, TypeVar
from uuid import UUID


class EventStoreError(Exception):
    """The root of every error that this library raises."""

    def __reduce__(self) -> tuple[Any, ...]:
        # Errors cross process borders (multiprocessing, task queues): rebuild one from its
        # text and data, whatever arguments its class takes.
        data = {name: _portable(value) for name, value in self.__dict__.items()}
        return _rebuilt, (type(self), self.args, data)


def _portable(value: object) -> object:
    """A value as another process can have it: plain data as it is, anything else in words."""
    if isinstance(value, (tuple, list)):
        return tuple(map(_portable, value))
    if isinstance(value, Mapping):
        return {str(key): _portable(each) for key, each in value.items()}
    if isinstance(value, _PLAIN):
        return value
    if is_dataclass(value) and type(value).__module__.partition(".")[0] == __package__:
        return value
    return repr(value)


#: Types of data; besides the dataclasses of this library itself.
_PLAIN: Final = (str, bytes, int, float, Decimal, date, time, timedelta, UUID, Enum, NoneType)


def _rebuilt(
    cls: type[EventStoreError], args: tuple[Any, ...], data: dict[str, Any]
) -> EventStoreError:
    error = cls.__new__(cls)
    error.args = args
    error.__dict__.update(data)
    return error


class DefinitionError(EventStoreError, TypeError):
    """A class is declared wrongly: `.owner` is the class, `.member` its method or attribute."""

    def __init__(self, owner: str, problem: str, *, member: str | None = None) -> None:
        self.owner = owner
        self.member = member
        super().__init__(f"{owner}.{member}: {problem}" if member else f"{owner}: {problem}")


class EventNameTakenError(DefinitionError):
    """Two event classes claim one stored name: give one of them another with `name=`."""

    def __init__(self, owner: str, name: str, holder: str) -> None:
        self.name = name
        self.holder = holder
        super().__init__(
            owner,
            f"the stored name {name!r} belongs to {holder}; give this class another one: "
            f'class {owner.rsplit(".", 1)[-1]}(Event, name="...")',
        )


class InvalidEventError(EventStoreError, ValueError):
    """An event holds a value that its annotations do not allow; nothing was recorded."""

    def __init__(self, event_type: str, reason: str) -> None:
        self.event_type = event_type
        self.reason = reason
        super().__init__(f"{event_type} cannot be recorded: {reason}")


class EventTooLargeError(InvalidEventError):
    """An event is over the store's limit. Sizes are in bytes."""

    def __init__(self, event_type: str, size: int, limit: int) -> None:
        self.size = size
        self.limit = limit
        super().__init__(
            event_type,
            f"it takes {size:,} bytes and the limit is {limit:,}; keep large data elsewhere and "
            "record where it is, or raise the limit: EventStore(..., max_event_bytes=...)",
        )


class InvalidNameError(EventStoreError, ValueError):
    """An aggregate id or a stream's name cannot be one."""

    def __init__(self, kind: str, name: object, reason: str) -> None:
        self.name = name
        self.reason = reason
        shown = repr(name)
        if len(shown) > 80:
            shown = f"{shown[:77]}..."
        super().__init__(f"{shown} cannot be {kind}: {reason}")


class InvalidTimeError(EventStoreError, ValueError):
    """A moment that the library cannot place in time."""

    def __init__(self, value: object, reason: str) -> None:
        self.value = value
        super().__init__(f"{value!r} {reason}")


class InvalidArgumentError(EventStoreError, ValueError):
    """An argument of a call makes no sense."""

    def __init__(self, argument: str, value: object, reason: str) -> None:
        self.argument = argument
        self.value = value
        super().__init__(f"{argument}={value!r}: {reason}")


class StreamError(EventStoreError):
    """About the stream `.stream`."""

    stream: str


class WrongExpectedVersionError(StreamError):
    """The stream is not at the version that the append required; nothing was written.

    `.expected` is what was required, `.actual` the stream's version (0: there is no such stream).
    """

    def __init__(self, stream: str, expected: object, actual: int) -> None:
        self.stream = stream
        self.expected = expected
        self.actual = actual
        super().__init__(
            f"stream {stream!r} is at version {actual}, not at the expected {expected}: "
            "somebody else appended first; load it again and retry (transact does so)"
        )


class StreamNotFoundError(StreamError, LookupError):
    """There is no such stream, or there was none at that moment (`.when`)."""

    def __init__(self, stream: str, when: object = None) -> None:
        self.stream = stream
        self.when = when
        moment = "" if when is None else f" at {when}"
        super().__init__(f"there is no stream {stream!r}{moment}")


class StreamDeletedError(StreamError):
    """The stream was deleted; its name stays closed."""

    def __init__(self, stream: str) -> None:
        self.stream = stream
        super().__init__(f"stream {stream!r} was deleted, and its name stays closed: use another")


class IdempotencyKeyReusedError(EventStoreError):
    """An idempotency key came back with a request for other streams; nothing was written."""

    def __init__(self, key: str, streams: tuple[str, ...], first: tuple[str, ...]) -> None:
        self.key = key
        self.streams = streams
        self.first = first
        super().__init__(
            f"idempotency key {key!r} was used to append to {', '.join(first)} and cannot be "
            f"used for {', '.join(streams)}: take a new key for each request"
        )


class StoredEventError(EventStoreError):
    """What is in the log cannot become an event. Other streams are not affected.

    `.stream`, `.version` and `.position` say where it is (None where that is not known).
    """

    stream: str | None = None
    version: int | None = None
    position: int | None = None

    def __init__(self, event_type: str, problem: str) -> None:
        self.event_type = event_type
        self.problem = problem
        super().__init__(problem)

    def locate(self, stream: str, version: int, position: int | None) -> None:
        """Say where in the log the event stands."""
        self.stream, self.version, self.position = stream, version, position
        place = "" if position is None else f" (position {position})"
        self.args = (f"stream {stream!r}, version {version}{place}: {self.problem}",)


class CorruptEventError(StoredEventError):
    """The stored bytes are not a payload of their type."""


class UnknownEventError(StoredEventError):
    """No event class has that stored name."""

    def __init__(self, event_type: str) -> None:
        super().__init__(
            event_type,
            f"no event class is stored as {event_type!r}: import the module that defines it, or, "
            f"if it was renamed, declare class NewName(Event, aliases=[{event_type!r}])",
        )


class NewerEventError(StoredEventError):
    """The event was written by a later version of its class than this program has."""

    def __init__(self, event_type: str, stored: int, known: int) -> None:
        self.stored = stored
        self.known = known
        super().__init__(
            event_type,
            f"{event_type!r} was written at schema version {stored}, and this program knows "
            f"{known}: deploy the newer code before its events reach this program",
        )


class RowNotFoundError(EventStoreError, LookupError):
    """A projection changed a row that is not there: `.key` of `.table` (the table's name)."""

    def __init__(self, table: str, key: object) -> None:
        self.table = table
        self.key = key
        super().__init__(
            f"table {table!r} has no row {key!r} to update or add to: insert or put it first"
        )


class SchemaError(EventStoreError):
    """The database's tables are not those of this library.

    `.found` and `.required` are the revisions (None: no tables).
    """

    def __init__(self, found: str | None, required: str, problem: str) -> None:
        self.found = found
        self.required = required
        super().__init__(problem)


class SchemaMissingError(SchemaError):
    """The database has no tables of this library."""


class SchemaOutdatedError(SchemaError):
    """The database's tables are those of an earlier version of this library."""


class SchemaTooNewError(SchemaError):
    """The database's tables are those of a later version of this library."""


class LogError(EventStoreError):
    """The database refused or failed; the driver's own error is the cause (`__cause__`)."""


class LogLockedError(LogError):
    """A lock was not had in time; nothing was written and a retry is safe."""


class LogReadOnlyError(LogError):
    """The database cannot be written to; nothing was written."""


class LogUnavailableError(LogError):
    """The database could not be reached, or went away.

    `.outcome` is what became of an append: "not written" (retry freely) or "unknown" (it may or
    may not be in the log: retry with the same idempotency key, or read before you retry).
    """

    def __init__(self, problem: str, outcome: Literal["not written", "unknown"]) -> None:
        self.outcome = outcome
        advice = (
            "nothing was written, a retry is safe"
            if outcome == "not written"
            else "whether an append was written is unknown: retry with the same idempotency_key, "
            "or read the stream before you retry"
        )
        super().__init__(f"{problem}; {advice}")


class LogStalledError(LogError):
    """A reader of the whole log waits for writers that do not end. Nothing was skipped.

    `.position` is the last position that is certain, `.writers` says who is waited for.
    """

    def __init__(self, position: int, writers: tuple[str, ...], seconds: float) -> None:
        self.position = position
        self.writers = writers
        super().__init__(
            f"after {seconds:g} s the log past position {position} is still uncertain, because "
            f"of open transactions that append: {'; '.join(writers)}. End them, or read again "
            "with a longer read_timeout"
        )


class CheckpointAheadError(LogError):
    """A checkpoint lies beyond what is left of the log that it was made from.

    An older log was restored, or it is another one: going on would skip what is appended next.
    `.position` is the checkpoint, `.head` the log's last position. `.is_replaced` says that the
    log has grown again, so that another event stands there.
    """

    def __init__(self, position: int, head: int, *, is_replaced: bool = False) -> None:
        self.position = position
        self.head = head
        self.is_replaced = is_replaced
        problem = (
            f"the event at position {position} is not the one that the checkpoint was made from"
            if is_replaced
            else f"position {position} lies beyond the end of the log ({head})"
        )
        super().__init__(
            f"{problem}: was an older log restored? Begin again from a position that was there "
            "before the backup (a projection: rebuild it)"
        )


class FollowerError(EventStoreError):
    """About the follower of the log that is called `.follower`."""

    follower: str


class ProjectionChangedError(FollowerError):
    """A projection's handlers or tables changed, and its version did not. Nothing was written.

    `.version` is the version that both bear.
    """

    def __init__(self, follower: str, version: int) -> None:
        self.follower = follower
        self.version = version
        super().__init__(
            f"the handlers or tables of projection {follower!r} are not those that have built its "
            f"tables, and both are version {version}: raise its `version` and rebuild it "
            "(store.rebuild); or, if the change makes no difference to any row, say so "
            "(store.accept)"
        )


class ProjectionOutdatedError(FollowerError):
    """The tables of a projection are those of another version than the code's.

    `.found` is the version of the tables, `.required` that of the code.
    """

    def __init__(self, follower: str, found: int, required: int) -> None:
        self.follower = follower
        self.found = found
        self.required = required
        advice = (
            "rebuild it: store.rebuild, or the command eventstore rebuild"
            if found < required
            else "newer code has rebuilt it: deploy that code here too"
        )
        super().__init__(
            f"the tables of projection {follower!r} are of version {found} and this program has "
            f"version {required}: {advice}"
        )


class ShardsChangedError(FollowerError):
    """A follower's shards were changed while it was in the middle of the log.

    `.found` is how many there are, `.required` how many the class declares.
    """

    def __init__(self, follower: str, found: int, required: int) -> None:
        self.follower = follower
        self.found = found
        self.required = required
        super().__init__(
            f"{follower!r} has {found} shards at different positions and its class declares "
            f"{required}: stop its workers, bring it up to date once with shards={found} "
            "(store.catch_up), then change the number; or rebuild it"
        )


class TableTakenError(FollowerError):
    """A table of the name `.table` is there, and no projection has made it."""

    def __init__(self, follower: str, table: str) -> None:
        self.follower = follower
        self.table = table
        super().__init__(
            f"projection {follower!r} cannot make its table {table!r}: there is one of that name "
            "which it does not own; rename either, or drop that one if it is a leftover"
        )


class HandlerError(FollowerError):
    """A handler failed on an event; its own exception is the cause (`__cause__`).

    `.stream`, `.version`, `.position` and `.event_type` say which event it was.
    """

    def __init__(
        self, follower: str, stream: str, version: int, position: int, event_type: str, reason: str
    ) -> None:
        self.follower = follower
        self.stream = stream
        self.version = version
        self.position = position
        self.event_type = event_type
        super().__init__(
            f"{follower!r} failed on {event_type}, version {version} of {stream!r} "
            f"(position {position}): {reason}"
        )


class ParkedEventsError(FollowerError):
    """The follower has parked events, which have to be retried or discarded first."""

    def __init__(self, follower: str) -> None:
        self.follower = follower
        super().__init__(
            f"{follower!r} has parked events (store.parked): retry or discard them, then bring it "
            "up to date, before it can run in step with appends"
        )


class NotInStepError(FollowerError):
    """A projection runs in step with appends, and not in this store. Nothing was written."""

    def __init__(self, follower: str) -> None:
        self.follower = follower
        super().__init__(
            f"projection {follower!r} runs in step with appends, and this program appends without "
            "it: open the store with EventStore(..., in_step=[...]), or let it follow the log "
            "again (store.leave_step)"
        )


class LeaseLostError(FollowerError):
    """Another worker has taken over the shard; nothing was written. `.epoch` is the lost one."""

    def __init__(self, follower: str, shard: int, epoch: int) -> None:
        self.follower = follower
        self.shard = shard
        self.epoch = epoch
        super().__init__(
            f"shard {shard} of {follower!r} is no longer this worker's (its epoch was {epoch}): "
            "the lease ran out, or a rebuild has replaced the tables; nothing was written"
        )


class NotCaughtUpError(FollowerError, TimeoutError):
    """A follower did not reach a position in time. `.position` is where it is."""

    def __init__(self, follower: str, position: int, wanted: int, seconds: float) -> None:
        self.follower = follower
        self.position = position
        self.wanted = wanted
        super().__init__(
            f"after {seconds:g} s {follower!r} is at position {position} and not yet at {wanted}: "
            "is a worker running (store.run, or store.catch_up)? store.status tells"
        )


class RebuildRunningError(FollowerError):
    """Somebody else rebuilds the projection at this moment: `.owner`."""

    def __init__(self, follower: str, owner: str) -> None:
        self.follower = follower
        self.owner = owner
        super().__init__(
            f"projection {follower!r} is being rebuilt by {owner}: wait for it; if that process "
            "has died, its lease ends by itself, and another rebuild goes on from there"
        )


class RebuildDiffersError(FollowerError):
    """Rebuilt tables are not what the living ones are; these stay as they are.

    `.differences` is a sequence of rows: see `eventstore.projections.Difference`.
    """

    def __init__(self, follower: str, differences: tuple[Any, ...], more: bool) -> None:
        self.follower = follower
        self.differences = differences
        self.more = more
        shown = "; ".join(str(difference) for difference in differences[:3])
        count = f"more than {len(differences)}" if more else str(len(differences))
        super().__init__(
            f"{count} rows of projection {follower!r} would change, so its tables were left as "
            f"they are: {shown}; rebuild without verify to accept the new rows"
        )


class StoreClosedError(EventStoreError):
    """The store was closed; open a new one."""

    def __init__(self) -> None:
        super().__init__("this store is closed; open a new EventStore")


E = TypeVar("E", bound=BaseException)


def copied(error: E) -> E:
    """One more of the same, with its cause: raising an exception writes to it, and several may."""
    one = copy.copy(error)
    one.__cause__ = error.__cause__
    return one
