"""Messages: a request's body as events of the log, and events as the bytes of a response.

A message is kept to the letter, as one event. A JSON message that has the shape of an event of ours
is an event of that type, so that an aggregate can be folded from it (`codec.ENVELOPED`); any other
has the type `$json`, and a piece of a stream of bytes `$bytes`. What the application has written
itself is wrapped in an envelope when it is read.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any, Final
from uuid import UUID

import msgspec

from eventstore.codec import ENVELOPED
from eventstore.http.problems import Problem
from eventstore.ids import new_ids
from eventstore.log.base import EventType, NewEvent, Row

JSON: Final = "application/json"
BYTES: Final = "application/octet-stream"

_JSON_MESSAGE: Final = EventType("$json", 1)
_PIECE: Final = EventType("$bytes", 1)
_VERBATIM: Final = frozenset({_JSON_MESSAGE.name, _PIECE.name})

_elements: Final = msgspec.json.Decoder(list[msgspec.Raw]).decode
_element: Final = msgspec.json.Decoder(msgspec.Raw).decode


class Envelope(msgspec.Struct, forbid_unknown_fields=True):
    """The shape of an event. `timestamp` is in milliseconds since the epoch."""

    type: str
    data: msgspec.Raw
    id: Any = None
    version: int | None = None
    timestamp: float | None = None
    metadata: msgspec.Raw = msgspec.Raw(b"null")


_envelope: Final = msgspec.json.Decoder(Envelope).decode


def media_type(content_type: str) -> str:
    """A content type without its parameters, in lower case: what must match (section 5.2)."""
    return content_type.partition(";")[0].strip().lower()


def is_text(media: str) -> bool:
    """Whether SSE carries it as it is, and not in base64 (section 5.8)."""
    return media == JSON or media.startswith("text/")


def split(body: bytes, media: str) -> list[bytes]:
    """The messages of a body; of JSON, those of an array, one level deep. Raises Problem (400)."""
    if media != JSON or not body:
        return [body] if body else []
    try:
        if not body.isascii():
            body.decode("utf-8")
        if body.lstrip(b" \t\r\n")[:1] == b"[":
            return list(map(bytes, _elements(body)))
        return [bytes(_element(body)).strip(b" \t\r\n")]
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise Problem(400, f"the body is not valid JSON: {error}") from None


def new_events(messages: Sequence[bytes], media: str) -> list[NewEvent]:
    """The events that messages become."""
    ids = new_ids(len(messages))
    if media != JSON:
        return [NewEvent(_PIECE, data, id) for data, id in zip(messages, ids, strict=True)]
    return [
        _enveloped(data, id)
        if b'"type"' in data and b'"data"' in data
        else NewEvent(_JSON_MESSAGE, data, id)
        for data, id in zip(messages, ids, strict=True)
    ]


def _enveloped(data: bytes, id: bytes) -> NewEvent:
    try:
        found = _envelope(data)
    except (msgspec.MsgspecError, RecursionError):
        return NewEvent(_JSON_MESSAGE, data, id)
    if not 0 < len(found.type) <= 255 or not found.type.isprintable() or found.type[0] == "$":
        return NewEvent(_JSON_MESSAGE, data, id)
    given = bytes(found.metadata)
    metadata = given if given[:1] == b"{" else None
    return NewEvent(EventType(found.type, ENVELOPED), data, _uuid(found.id) or id, metadata)


def _uuid(text: object) -> bytes | None:
    try:
        return UUID(text).bytes if isinstance(text, str) else None
    except ValueError:
        return None


def is_verbatim(stored: EventType) -> bool:
    """Whether an event's data are the message itself."""
    return stored.version == ENVELOPED or stored.name in _VERBATIM


def wrapped(row: Row, stored: EventType) -> bytes:
    """An event that the application has written, as a message."""
    if is_verbatim(stored):
        return row.data
    return b'{"type":%b,"id":"%b","version":%d,"timestamp":%d,"data":%b,"metadata":%b}' % (
        msgspec.json.encode(stored.name),
        str(UUID(bytes=row.id)).encode(),
        row.version,
        row.recorded_at // 1000,
        row.data,
        row.metadata or b"{}",
    )


def joined(messages: Iterable[bytes], media: str) -> bytes:
    """The body of a response with these messages."""
    return b"[" + b",".join(messages) + b"]" if media == JSON else b"".join(messages)
