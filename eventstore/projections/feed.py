"""The feed of a class with handlers: the events that it handles, read off the log and handed over.

The hot path of every projection. Where no handler asks for the RecordedEvent, only the columns that
a fold needs are read, and nothing is made of an event but the event itself.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable, Sequence
from typing import TYPE_CHECKING, Any, Final, TypeAlias, cast

import msgspec

from eventstore.codec import corrupt, decode_as, recorded, stored_names
from eventstore.errors import LogError, StoredEventError, UnknownEventError
from eventstore.event import Event, RecordedEvent, event_class, event_classes
from eventstore.log.base import Bounds, EventType, Log, Row, Shard, Slim, Wanted

if TYPE_CHECKING:
    from sqlalchemy import Connection

    from eventstore.handlers import Handlers

#: Events of a page: whole rows where a handler asks for the RecordedEvent.
Page: TypeAlias = "Sequence[Slim] | Sequence[Row]"

# By number: by name each would cost as much as the decoding of a small payload.
_TYPE: Final = Row._fields.index("type")
_DATA: Final = Row._fields.index("data")

_SlimStep = tuple[Callable[[bytes], Any], Callable[[Any, Any], None]]
_RowStep = Callable[[Any, Row], None]


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
        self._slim_steps = _SlimSteps(self)
        self._row_steps = _RowSteps(self)

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
        rows: Any = iter(page)
        self._connection = connection
        try:
            if page and len(page[0]) == len(Slim._fields):
                steps = self._slim_steps
                for _, key, data in rows:
                    decode, handler = steps[key]
                    handler(owner, decode(data))
            else:
                row_steps = self._row_steps
                for row in rows:
                    row_steps[row[_TYPE]](owner, row)
        except Exception as error:
            index = len(page) - sum(1 for _ in rows) - 1
            located = self._located(error, page[index])
            raise located from located.__cause__

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

    def _located(self, error: Exception, row: Slim | Row) -> Exception:
        found: Sequence[Any] = (row,)
        if len(row) == len(Slim._fields):
            with contextlib.suppress(LogError):  # on a connection that the error has spoilt
                found = self._log.read_all(
                    row[0] - 1, Bounds(position=row[0]), limit=1, connection=self._connection
                )
        if not found or len(found[0]) == len(Slim._fields):
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


class _SlimSteps(dict[int, _SlimStep]):
    """By type key: how a payload is decoded, and what it is handed to. Filled as types are met."""

    def __init__(self, feed: Feed) -> None:
        super().__init__()
        self._feed = feed

    def __missing__(self, key: int) -> _SlimStep:
        _, decode, (handler,) = self._feed._step(key)
        step = self[key] = (decode, handler)
        return step


class _RowSteps(dict[int, _RowStep]):
    """The same for whole rows."""

    def __init__(self, feed: Feed) -> None:
        super().__init__()
        self._feed = feed

    def __missing__(self, key: int) -> _RowStep:
        feed = self._feed
        stored, decode, functions = feed._step(key)
        handler = functions[0]
        if len(functions) > 1:

            def step(owner: Any, row: Any) -> None:
                feed.hand(owner, recorded(row, stored, decode(row[_DATA])))

        elif handler in feed._handlers.takes_record:

            def step(owner: Any, row: Any) -> None:
                event = decode(row[_DATA])
                handler(owner, event, recorded(row, stored, event))

        else:

            def step(owner: Any, row: Any) -> None:
                handler(owner, decode(row[_DATA]))

        self[key] = step
        return step
