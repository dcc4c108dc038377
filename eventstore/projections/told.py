"""What readers of a stream of changes know, brought to what the tables say.

Tables that were built anew, by other code perhaps, have no history in the stream. So the stream is
folded, and what differs from the tables is told: that is right whatever the old tables were.
"""

from __future__ import annotations

from hashlib import blake2b
from typing import Final

import msgspec
from sqlalchemy import Connection

from eventstore import moments
from eventstore.errors import InvalidArgumentError, StreamDeletedError
from eventstore.log.base import DELETED, JSON, Bounds, Log, Write
from eventstore.projections.changes import ChangeStream, Messages, Operation

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


def _digest(value: bytes | msgspec.Raw) -> bytes:
    # There may be millions, of which only that they differ is of interest.
    return blake2b(value, digest_size=16).digest()


class Told:
    """The rows that the messages of a stream add up to."""

    def __init__(self, log: Log, declared: ChangeStream) -> None:
        self._log = log
        self._declared = declared
        self._version = 0
        #: By type and key: a digest of the value.
        self._rows: dict[str, dict[str, bytes]] = {}

    def read(self, connection: Connection | None = None) -> None:
        """Read what has been told since the last time.

        Raises InvalidArgumentError for a stream that has other events, StreamDeletedError.
        """
        log, name = self._log, self._declared.name
        while page := log.read(name, self._version, Bounds(), limit=_PAGE, connection=connection):
            for row in page:
                type = log.event_type(row.type, connection).name
                if type == DELETED:
                    raise StreamDeletedError(name)
                if type != JSON:
                    raise self._refused(f"events of the type {type!r}")
                try:
                    self._fold(_decode(row.data))
                except msgspec.MsgspecError as error:
                    raise self._refused(f"messages that tell no change ({error})") from error
            self._version = page[-1].version

    def _refused(self, others: str) -> InvalidArgumentError:
        name = self._declared.name
        return InvalidArgumentError("changes", name, f"the stream has {others}: use another name")

    def _fold(self, message: _Message) -> None:
        rows = self._rows.setdefault(message.type, {})
        if message.headers.operation == "delete":
            rows.pop(message.key, None)
        else:
            rows[message.key] = _digest(message.value)

    def bring(self, connection: Connection, position: int) -> None:
        """Tell what differs from the tables, as the connection sees them; all has been read.

        Nobody else may write to the tables. `position` is where they are.
        """
        messages = Messages(position, moments.now())
        gone = {type: dict(rows) for type, rows in self._rows.items()}
        for told in self._declared.tables.values():
            known = gone.setdefault(told.name, {})
            for page in told.pages(connection, _PAGE):
                for key, value in page.items():
                    digest = known.pop(key, None)
                    if digest is None:
                        messages.add("insert", told.name, key, value)
                    elif digest != _digest(value):
                        messages.add("update", told.name, key, value)
                self._append(connection, messages)
        for type, keys in gone.items():
            for key in keys:
                messages.add("delete", type, key)
        self._append(connection, messages)

    def _append(self, connection: Connection, messages: Messages) -> None:
        events = messages.take()
        for start in range(0, len(events), _PAGE):
            page = events[start : start + _PAGE]
            self._log.append([Write(self._declared.name, page)], connection=connection)
