"""Between stored events and event classes: names to classes, bytes to events, old to present."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Final, TypeVar

import msgspec

from eventstore.errors import (
    CorruptEventError,
    EventTooLargeError,
    NewerEventError,
    UnknownEventError,
)
from eventstore.event import Event, RecordedEvent, decoder, event_class
from eventstore.ids import new_ids
from eventstore.log.base import EventType, Log, NewEvent, Row
from eventstore.metadata import Metadata
from eventstore.names import aggregate_id

if TYPE_CHECKING:
    from sqlalchemy import Connection

E = TypeVar("E", bound=Event)

#: The schema version of an event that came as a whole JSON message, and is kept to the letter: its
#: payload, of schema version 1, is the message's member `data`.
ENVELOPED: Final = 0


class _Envelope(msgspec.Struct):
    data: msgspec.Raw


_opened: Final = msgspec.json.Decoder(_Envelope).decode


def stored_names(cls: type[Event]) -> tuple[str, ...]:
    """Every name that events of a class may be stored under: its own, then its aliases."""
    return (cls.__event_name__, *cls.__event_aliases__)


def decode_as(cls: type[E], stored: EventType) -> Callable[[bytes], E]:
    """How payloads of a stored type become events of `cls`, at its present schema version.

    Raises NewerEventError. What it returns raises CorruptEventError, or msgspec's own errors
    (`corrupt` turns them into that), since wrapping each call would slow every load.
    """
    present = cls.__event_version__
    if stored.version == present:
        return decoder(cls).decode
    if stored.version > present:
        raise NewerEventError(stored.name, stored.version, present)
    if stored.version == ENVELOPED:
        inner = decode_as(cls, EventType(stored.name, 1))
        return lambda message: inner(_opened(message).data)
    steps = [cls.__upcasters__[version] for version in range(stored.version, present)]

    def upcast(data: bytes) -> E:
        payload = msgspec.json.decode(data)
        for version, step in enumerate(steps, stored.version):
            try:
                payload = step(payload)
            except Exception as error:
                raise CorruptEventError(
                    stored.name,
                    f"the upcaster of {cls.__name__} from version {version} failed on a payload "
                    f"of {stored.name!r}: {error!r}",
                ) from error
        return msgspec.convert(payload, cls)

    return upcast


def corrupt(stored: EventType, error: Exception) -> CorruptEventError:
    """The error for bytes that could not be decoded."""
    return CorruptEventError(
        stored.name,
        f"the payload of {stored.name!r} (schema version {stored.version}) cannot be decoded: "
        f"{error}",
    )


class _StoredTypes(dict[type[Event], EventType]):
    """By event class: the type that its new events are stored as."""

    def __missing__(self, cls: type[Event]) -> EventType:
        stored = self[cls] = EventType(cls.__event_name__, cls.__event_version__)
        return stored


class Codec:
    """The events of one log: encodes new ones, and decodes those read back by stored name."""

    def __init__(self, log: Log, max_event_bytes: int) -> None:
        self._log = log
        self._max_bytes = max_event_bytes
        self._types = _StoredTypes()

    def new_events(
        self, sealed: Sequence[tuple[Event, bytes]], metadata: Metadata
    ) -> list[NewEvent]:
        """What the log is given for events and their payloads. Raises EventTooLargeError."""
        encoded = metadata.encoded
        limit = self._max_bytes
        if encoded is not None and len(encoded) > limit:
            raise EventTooLargeError("metadata", len(encoded), limit)
        types = self._types
        new = []
        for (event, data), id in zip(sealed, new_ids(len(sealed)), strict=True):
            if len(data) > limit:
                raise EventTooLargeError(type(event).__event_name__, len(data), limit)
            new.append(NewEvent(types[type(event)], data, id, encoded))
        return new

    def record(self, row: Row, connection: Connection | None = None) -> RecordedEvent:
        """A row as its reader sees it; `connection` is the one that it was read on, if joined."""
        return recorded(row, self._log.event_type(row.type, connection))


def recorded(row: Row, stored: EventType, event: Event | None = None) -> RecordedEvent:
    """A row as its reader sees it, with its event where that is decoded already."""
    position, stream, version, _, data, metadata, id, recorded_at = row
    return RecordedEvent(
        stream,
        version,
        position,
        stored.name,
        stored.version,
        data,
        aggregate_id(stream),
        id,
        recorded_at,
        metadata,
        decode_record,
        event,
    )


def decode_record(record: RecordedEvent) -> Event:
    """What a record calls for its event, if it was made without."""
    stored = EventType(record.type, record.schema_version)
    error: UnknownEventError | NewerEventError | CorruptEventError
    try:
        cls = event_class(stored.name)
        if cls is None:
            raise UnknownEventError(stored.name)
        return decode_as(cls, stored)(record.data)
    except (UnknownEventError, NewerEventError, CorruptEventError) as found:
        error, cause = found, found.__cause__
    except (msgspec.MsgspecError, ValueError) as found:
        error, cause = corrupt(stored, found), found
    error.locate(record.stream, record.version, record.position)
    raise error from cause
