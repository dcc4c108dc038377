"""The fold: stored events into state, through one class's handlers. The hot path of a load."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, Final

import msgspec

from eventstore.aggregate import Aggregate, recorded_in_handler
from eventstore.codec import corrupt, decode_as, stored_names
from eventstore.errors import StoredEventError, StreamDeletedError, UnknownEventError
from eventstore.event import Event, event_class
from eventstore.log.base import DELETED, Bounds, EventType, Log

if TYPE_CHECKING:
    from sqlalchemy import Connection

Step = tuple[Callable[[bytes], Any], Callable[[Any, Any], None]]


def _skip(_data: bytes) -> None:
    return None


def _ignore(_state: object, _event: object) -> None:
    return None


def _refuse(aggregate: Aggregate, _event: object) -> None:
    raise StreamDeletedError(type(aggregate).__stream__.stream(aggregate.id))


_PASS_OVER: Final[Step] = (_skip, _ignore)
_TOMBSTONE: Final[Step] = (_skip, _refuse)


class Fold(dict[int, Step]):
    """By type key: how a payload is decoded, and what it is handed to.

    Filled as types are met. An event that the class does not handle is passed over without being
    decoded; one that no class is known for is an error.
    """

    def __init__(self, log: Log, cls: type[Aggregate], connection: Connection | None = None):
        super().__init__()
        self._log = log
        self._connection = connection
        self._handlers = cls.__handlers__
        # The class's own events first: a registry of names may have seen another since.
        self._classes = {
            name: event_type
            for event_type in self._handlers.declared
            for name in stored_names(event_type)
        }

    def __missing__(self, key: int) -> Step:
        stored = self._log.event_type(key, self._connection)
        step = self[key] = self._step(stored)
        return step

    def _step(self, stored: EventType) -> Step:
        if stored.name == DELETED:
            return _TOMBSTONE
        cls: type[Event] | None = self._classes.get(stored.name) or event_class(stored.name)
        if cls is None:
            raise UnknownEventError(stored.name)
        handler = self._handlers.find(cls)
        return _PASS_OVER if handler is None else (decode_as(cls, stored), handler)

    def apply(self, aggregate: Aggregate, page: Sequence[tuple[int, bytes]]) -> None:
        """Apply the events that follow the aggregate's version, and raise that version.

        Raises StoredEventError, which says where the event is; an exception of a handler passes
        through with a note that does.
        """
        rows = iter(page)
        try:
            for key, data in rows:
                decode, handler = self[key]
                handler(aggregate, decode(data))
        except Exception as error:
            index = len(page) - sum(1 for _ in rows) - 1
            located = self._located(error, aggregate, page[index][0], index)
            raise located from located.__cause__
        if aggregate._pending:
            event, _ = aggregate._pending[0]
            raise recorded_in_handler(aggregate, type(event))
        aggregate.version += len(page)

    def _located(self, error: Exception, aggregate: Aggregate, key: int, index: int) -> Exception:
        if isinstance(error, StreamDeletedError):
            return error
        stream = type(aggregate).__stream__.stream(aggregate.id)
        version = aggregate.version + index + 1
        stored = self._log.event_type(key, self._connection)
        if isinstance(error, (msgspec.MsgspecError, UnicodeDecodeError)):
            cause, error = error, corrupt(stored, error)
            error.__cause__ = cause
        if isinstance(error, StoredEventError):
            found = self._log.read(
                stream, version - 1, Bounds(version=version), limit=1, connection=self._connection
            )
            error.locate(stream, version, found[0].position if found else None)
        else:
            error.add_note(f"while applying {stored.name}, version {version} of {stream!r}")
        return error
