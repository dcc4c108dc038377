"""Messages: a request's body as events of the log, and events as the bytes of a response.

Messages are kept to the letter. A JSON message that has the shape of an event of ours is an event
of that type, so that an aggregate can be folded from it (`codec.ENVELOPED`). Others are an event
together, as they came in one request: of the type `$json` for one message, `$batch` for the array
of several, `$bytes` for a piece of a stream of bytes. What the application has written itself is
put in an envelope when it is read.
"""

from __future__ import annotations

import enum
from collections.abc import Callable, Iterable, Sequence
from typing import Any, Final, TypeVar
from uuid import UUID

import msgspec

from eventstore.codec import ENVELOPED
from eventstore.http.problems import Problem
from eventstore.ids import new_ids
from eventstore.log.base import MESSAGE, EventType, NewEvent, Row

T = TypeVar("T")

JSON: Final = "application/json"
BYTES: Final = "application/octet-stream"

_BATCH: Final = EventType("$batch", 1)
_PIECE: Final = EventType("$bytes", 1)

#: Bytes past which an array without events is kept as it is.
_LARGE: Final = 256 * 1024
#: Events of one request, and commas in its body, at the most.
_MOST_EVENTS: Final = 100_000
_MOST_PARTS: Final = 1_000_000

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


def events_of(body: bytes, media: str) -> list[NewEvent]:
    """The events that a body becomes; none, for an empty one. Raises Problem (400, 413)."""
    if not body:
        return []
    if media != JSON:
        return [NewEvent(_PIECE, body, new_ids(1)[0])]
    text = body.strip(b" \t\r\n")
    if b'"type"' in text and b'"data"' in text:
        return _events(text)
    if len(text) > _LARGE and text[:1] == b"[" and text[1:].lstrip(b" \t\r\n")[:1] != b"]":
        _checked(_element, text)  # not taken apart: of millions of messages that takes seconds
        return [NewEvent(_BATCH, text, new_ids(1)[0])]
    return batch(json_messages(text), text)


def json_messages(text: bytes) -> Sequence[msgspec.Raw]:
    """The messages of a JSON text: those of an array, one level deep. Raises Problem (400)."""
    if text.lstrip(b" \t\r\n")[:1] == b"[":
        return _checked(_elements, text)
    return [_checked(_element, text)] if text else []


def _checked(decode: Callable[[bytes], T], text: bytes) -> T:
    try:
        if not text.isascii():
            text.decode("utf-8")
        return decode(text)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise Problem(400, f"the body is not valid JSON: {error}") from None


def _events(text: bytes) -> list[NewEvent]:
    """Messages of which some may be events, an event each."""
    # There are no more messages than commas, and one.
    if text.count(b",") < _MOST_PARTS:
        messages = json_messages(text)
        if len(messages) <= _MOST_EVENTS:
            ids = new_ids(len(messages))
            return [_event(bytes(one), id) for one, id in zip(messages, ids, strict=True)]
    raise Problem(413, f"post at most {_MOST_EVENTS} events at once")


def batch(messages: Sequence[msgspec.Raw | bytes], text: bytes | None = None) -> list[NewEvent]:
    """One event for messages that are none themselves. `text` is their array, where it is known."""
    if not messages:
        return []
    (id,) = new_ids(1)
    if len(messages) == 1:
        return [NewEvent(MESSAGE, bytes(messages[0]), id)]
    return [NewEvent(_BATCH, text or b"[%b]" % b",".join(map(bytes, messages)), id)]


def messages_of(data: bytes, stored: EventType) -> Sequence[msgspec.Raw | bytes]:
    """The messages that one event of a JSON stream holds."""
    return _elements(data) if stored.name == _BATCH.name else [data]


def _event(data: bytes, id: bytes) -> NewEvent:
    """A message as the event that it is, or as a mere message."""
    try:
        found = _envelope(data)
    except (msgspec.MsgspecError, RecursionError):
        return NewEvent(MESSAGE, data, id)
    if not 0 < len(found.type) <= 255 or not found.type.isprintable() or found.type[0] == "$":
        return NewEvent(MESSAGE, data, id)
    given = bytes(found.metadata)
    metadata = given if given[:1] == b"{" else None
    return NewEvent(EventType(found.type, ENVELOPED), data, _uuid(found.id) or id, metadata)


def _uuid(text: object) -> bytes | None:
    try:
        return UUID(text).bytes if isinstance(text, str) else None
    except ValueError:
        return None


class Form(enum.Enum):
    """How an event's data become messages of a response."""

    MESSAGE = "as they are"
    BATCH = "without the brackets of their array"
    EVENT = "in an envelope"


def form_of(stored: EventType) -> Form:
    """The form of events of a type."""
    if stored.name == _BATCH.name:
        return Form.BATCH
    if stored.version == ENVELOPED or stored.name in (MESSAGE.name, _PIECE.name):
        return Form.MESSAGE
    return Form.EVENT


def enveloped(row: Row, stored: EventType) -> bytes:
    """An event that the application has written, as a message."""
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
