"""The feed of a class with handlers: the events that it handles, read off the log and handed over.

The hot path of every projection. Where no handler asks for the RecordedEvent, only the columns that
a fold needs are read, and nothing is made of an event but the event itself.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Final, TypeAlias, cast

import msgspec

from eventstore.codec import corrupt, decode_as, decode_record, recorded, stored_names
from eventstore.errors import LogError, StoredEventError, UnknownEventError
from eventstore.event import Event, RecordedEvent, event_class, event_classes
from eventstore.log.base import Bounds, EventType, Keyed, Log, Row, Shard, Slim, Wanted
from eventstore.names import aggregate_id

if TYPE_CHECKING:
    from sqlalchemy import Connection

    from eventstore.handlers import Handlers

#: Events of a page: whole rows where a handler asks for the RecordedEvent.
Page: TypeAlias = "Sequence[Slim] | Sequence[Row] | Sequence[Keyed]"

#: How a payload is decoded, what it is handed to and, if that takes the RecordedEvent, the name
#: and the schema version of its type.
_Step = tuple[Callable[[bytes], Any], Callable[..., None], str | None, int]

#: Streams whose names are kept. Their rows come with keys: a name costs as much as two columns.
_NAMES: Final = 50_000


class Feed:
    """Reads pages of the events that a class handles, and applies them to an instance of it."""

    def __init__(
        self,
        log: Log,
        handlers: Handlers,
        *,
        categories: Iterable[str] | None = None,
        shard: Shard | None = None,
        effects: bool = False,
    ) -> None:
        """`effects` says whether handlers that are marked as side effects run too."""
        self._log = log
        self._handlers = handlers
        self._categories = None if categories is None else list(categories)
        self._shard = shard
        self._effects = effects and bool(handlers.effects)
        self.slim = not handlers.takes_record and not self._effects
        self._connection: Connection | None = None
        self._steps = _Steps(self)
        #: By key: a stream's name, and the id of its aggregate.
        self._streams: dict[Any, tuple[str, str]] = {}

    # --- reading -------------------------------------------------------------------------------

    @property
    def wanted(self) -> Wanted:
        """Which events are read: no others are even looked at."""
        names = [name for cls in self._classes() for name in stored_names(cls)]
        return Wanted(names, self._categories, self._shard)

    def page(
        self, after: int, until: Bounds, limit: int, *, connection: Connection | None = None
    ) -> Page:
        """The next events past a position, in the order of the log."""
        read = self._log.scan if self.slim else self._log.read_all
        return read(after, until, limit=limit, wanted=self.wanted, connection=connection)

    def pages(self, after: int, until: Bounds, size: int) -> Generator[Page]:
        """All events past a position, to a final one: to be used up or closed, as `Log.pages`."""
        return self._log.pages(after, until, size=size, wanted=self.wanted, whole=not self.slim)

    def rows(
        self, after: int, until: Bounds, limit: int, *, connection: Connection | None = None
    ) -> Sequence[Row]:
        """The same as whole rows, for who has to know their streams."""
        return self._log.read_all(
            after, until, limit=limit, wanted=self.wanted, connection=connection
        )

    def _classes(self) -> Iterable[type[Event]]:
        declared = dict.fromkeys(self._handlers.declared)
        if self._effects:
            declared |= dict.fromkeys(self._handlers.effects)
        if any(cls.__subclasses__() for cls in declared):
            # A handler of a base class takes what is derived from it, also what is made later.
            bases = tuple(declared)
            declared |= dict.fromkeys(c for c in event_classes() if issubclass(c, bases))
        return declared

    # --- applying ------------------------------------------------------------------------------

    def apply(self, owner: Any, page: Page, connection: Connection | None = None) -> None:
        """Hand the events of a page to the owner's handlers, in order.

        `connection` is the one that the handlers write on: in a memory database nothing else can
        be read meanwhile.

        Raises StoredEventError, which says where the event is; an exception of a handler passes
        through with a note that does.
        """
        if not page:
            return
        rows: Any = iter(page)
        slim = len(page[0]) == len(Slim._fields)
        streams = {} if slim else self._streams_of(page)
        self._connection = connection
        try:
            if slim:
                self._apply_slim(owner, rows)
            else:
                self._apply_whole(owner, rows, streams)
        except Exception as error:
            index = len(page) - sum(1 for _ in rows) - 1
            located = self._located(error, page[index])
            raise located from located.__cause__

    def _apply_slim(self, owner: Any, rows: Iterator[Slim]) -> None:
        steps = self._steps
        for _, key, data in rows:
            decode, handler, _, _ = steps[key]
            handler(owner, decode(data))

    def _apply_whole(
        self, owner: Any, rows: Iterator[Keyed], streams: Mapping[Any, tuple[str, str]]
    ) -> None:
        steps = self._steps
        for position, stream, version, key, data, metadata, id, recorded_at in rows:
            decode, handler, name, schema = steps[key]
            event = decode(data)
            if name is None:
                handler(owner, event)
            else:
                stream_name, aggregate = streams[stream]
                # As `recorded` does it; the call would cost as much again.
                record = RecordedEvent(
                    stream_name,
                    version,
                    position,
                    name,
                    schema,
                    data,
                    aggregate,
                    id,
                    recorded_at,
                    metadata,
                    decode_record,
                    event,
                )
                handler(owner, event, record)

    def _streams_of(self, page: Sequence[Any]) -> Mapping[Any, tuple[str, str]]:
        """By what stands for it in a page, the name of each stream and the id of its aggregate."""
        found = {row[1] for row in page}
        if isinstance(page[0][1], str):
            return {name: (name, aggregate_id(name)) for name in found}
        streams = self._streams
        new = found.difference(streams)
        if new:
            if len(streams) > _NAMES:
                streams.clear()
                new = found
            for key, name in self._log.stream_names(new).items():
                streams[key] = name, aggregate_id(name)
        return streams

    def hand(self, owner: Any, record: RecordedEvent) -> None:
        """Hand one event over to its handler and, after that, its side effect."""
        event = record.event
        for handler in self._functions(type(event)):
            if handler in self._handlers.takes_record:
                handler(owner, event, record)
            else:
                handler(owner, event)

    def record(self, row: Row) -> RecordedEvent:
        """A row as its handler sees it."""
        return recorded(row, self._log.event_type(row.type, self._connection))

    def _functions(self, cls: type[Event]) -> list[Callable[..., None]]:
        """The handlers of an event class, its side effect last."""
        found = [self._handlers.find(cls)]
        if self._effects:
            found.append(self._handlers.effect(cls))
        return [function for function in found if function is not None]

    def _step(
        self, key: int
    ) -> tuple[EventType, Callable[[bytes], Any], list[Callable[..., None]]]:
        stored = self._log.event_type(key, self._connection)
        cls = self._class(stored)
        return stored, decode_as(cls, stored), self._functions(cls)

    def _class(self, stored: EventType) -> type[Event]:
        # The classes of the handlers first: a registry of names may have seen another since.
        for cls in (*self._handlers.declared, *self._handlers.effects):
            if stored.name in stored_names(cls):
                return cls
        found = event_class(stored.name)
        if found is None:
            raise UnknownEventError(stored.name)
        return found

    def _located(self, error: Exception, row: Slim | Row | Keyed) -> Exception:
        found: Sequence[Any] = (row,)
        if not isinstance(row[1], str):
            found = ()
            with contextlib.suppress(LogError):  # on a connection that the error has spoilt
                found = self._log.read_all(
                    row[0] - 1, Bounds(position=row[0]), limit=1, connection=self._connection
                )
        if not found:
            return error
        position, stream, version, key, *_ = cast("Row", found[0])
        stored = self._log.event_type(key, self._connection)
        if isinstance(error, (msgspec.MsgspecError, UnicodeDecodeError)):
            cause, error = error, corrupt(stored, error)
            error.__cause__ = cause
        if isinstance(error, StoredEventError):
            error.locate(stream, version, position)
        else:
            error.add_note(
                f"while handling {stored.name}, version {version} of {stream!r} "
                f"(position {position})"
            )
        return error


class _Steps(dict[int, _Step]):
    """By type key. Filled as types are met."""

    def __init__(self, feed: Feed) -> None:
        super().__init__()
        self._feed = feed

    def __missing__(self, key: int) -> _Step:
        feed = self._feed
        stored, decode, functions = feed._step(key)
        handler = functions[0]
        name: str | None = stored.name
        if len(functions) > 1:

            def handler(owner: Any, _event: Event, record: RecordedEvent) -> None:
                feed.hand(owner, record)

        elif handler not in feed._handlers.takes_record:
            name = None
        step = self[key] = decode, handler, name, stored.version
        return step
