"""What readers of a stream of changes know, brought to what the tables say.

Tables that were built anew, by other code perhaps, have no history in the stream. So the stream is
folded, and what differs from the tables is told: that is right whatever the old tables were.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final

import msgspec
from sqlalchemy import Connection

from eventstore import moments
from eventstore.errors import InvalidArgumentError, StreamDeletedError
from eventstore.log.base import DELETED, MESSAGE, Bounds, Log, Write
from eventstore.projections.changes import (
    ChangeStream,
    Messages,
    Operation,
    Recorder,
    ToldRow,
    ToldTable,
)
from eventstore.projections.statements import Key

#: Messages, and rows, at a time.
_PAGE: Final = 5000


class _Headers(msgspec.Struct):
    operation: Operation


class _Message(msgspec.Struct):
    type: str
    key: str
    headers: _Headers
    value: msgspec.Raw = msgspec.Raw()


_decode: Final = msgspec.json.Decoder(_Message).decode


class Told:
    """The rows that the messages of a stream add up to.

    Of the values, hashes: there may be millions, of which only that they differ is of interest.
    """

    def __init__(self, log: Log, declared: ChangeStream) -> None:
        self._log = log
        self.declared: Final = declared
        self._version = 0
        #: By type and key: what has been told.
        self._known: dict[str, dict[str, int]] = {}
        #: By table and key: what the tables hold; and where, if that was news when it was seen.
        self._found: dict[str, dict[str, int]] = {}
        self._places: dict[str, dict[str, Key]] = {}

    def read(self, connection: Connection | None = None) -> None:
        """Read what has been told since the last time.

        Raises InvalidArgumentError for a stream that has other events, StreamDeletedError.
        """
        log, name = self._log, self.declared.name
        while page := log.read(name, self._version, Bounds(), limit=_PAGE, connection=connection):
            for row in page:
                type = log.event_type(row.type, connection).name
                if type == DELETED:
                    raise StreamDeletedError(name)
                if type != MESSAGE.name:
                    raise self._refused(f"events of the type {type!r}")
                try:
                    self._fold(_decode(row.data))
                except msgspec.MsgspecError as error:
                    raise self._refused(f"messages that tell no change ({error})") from error
            self._version = page[-1].version

    def _refused(self, others: str) -> InvalidArgumentError:
        name = self.declared.name
        return InvalidArgumentError("changes", name, f"the stream has {others}: use another name")

    def _fold(self, message: _Message) -> None:
        rows = self._known.setdefault(message.type, {})
        if message.headers.operation == "delete":
            rows.pop(message.key, None)
        else:
            rows[message.key] = hash(bytes(message.value))

    def survey(self, connection: Connection) -> None:
        """See what is in the tables, all of it."""
        self._found, self._places = {}, {}
        for told in self.declared.tables.values():
            known, places = self._known.get(told.name, {}), self._places.setdefault(told.name, {})
            found = self._found[told.name] = {}
            for at, key, value in told.every(connection, _PAGE):
                found[key] = seen = hash(value)
                if known.get(key) != seen:
                    places[key] = at

    def bring(
        self, connection: Connection, position: int, recorder: Recorder | None = None
    ) -> None:
        """Tell what differs between the stream, of which all has been read, and the tables.

        Nobody else may write to the tables. `position` is where they are. `recorder` has recorded
        what was written to them since a survey; without one they are looked at whole.
        """
        if recorder is None:
            self.survey(connection)
        else:
            self._refresh(connection, recorder)
        messages = Messages(position, moments.now())
        for type, known in reversed(self._known.items()):
            found = self._found.get(type, {})
            for key in known:
                if key not in found:
                    messages.add("delete", type, key)
        for told in self.declared.tables.values():
            known = self._known.get(told.name, {})
            for _, key, value in self._news(connection, told):
                messages.add("update" if key in known else "insert", told.name, key, value)
                if len(messages) >= _PAGE:
                    self._append(connection, messages)
        self._append(connection, messages)

    def _refresh(self, connection: Connection, recorder: Recorder) -> None:
        for told, before, rows in recorder.touched(connection):
            found, places = self._found[told.name], self._places[told.name]
            for key in before:
                found.pop(key, None)
            for at, key, value in rows:
                found[key], places[key] = hash(value), at

    def _news(self, connection: Connection, told: ToldTable) -> Iterator[ToldRow]:
        known, places = self._known.get(told.name, {}), self._places[told.name]
        found = self._found[told.name]
        news = [key for key, seen in found.items() if known.get(key) != seen]
        if len(news) <= len(found) // 2 and all(key in places for key in news):
            yield from told.find(connection, [places[key] for key in news])
        else:
            new = set(news)
            yield from (row for row in told.every(connection, _PAGE) if row.key in new)

    def _append(self, connection: Connection, messages: Messages) -> None:
        events = messages.take()
        for start in range(0, len(events), _PAGE):
            page = events[start : start + _PAGE]
            self._log.append([Write(self.declared.name, page)], connection=connection)
