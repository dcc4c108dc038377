"""Events that come over HTTP for an aggregate: each is checked against its class."""

from __future__ import annotations

from typing import Any
from uuid import UUID

import msgspec

from eventstore.aggregate import Aggregate
from eventstore.codec import stored_names
from eventstore.errors import InvalidEventError
from eventstore.event import decoder, seal
from eventstore.http.messages import json_messages
from eventstore.http.problems import Problem
from eventstore.ids import new_ids
from eventstore.log.base import EventType, NewEvent


class _Posted(msgspec.Struct):
    """What a client sends. Version and time are the server's to give."""

    type: str
    data: msgspec.Raw
    id: UUID | None = None
    metadata: dict[str, Any] | None = None


_posted = msgspec.json.Decoder(_Posted).decode


def validated(cls: type[Aggregate], body: bytes) -> list[NewEvent]:
    """The events that a body becomes, stored as if Python had recorded them.

    Raises Problem (400) for the first that is none, with the reason.
    """
    classes = {name: event for event in cls.__handlers__.declared for name in stored_names(event)}
    messages = json_messages(body)
    new = []
    for number, (message, id) in enumerate(zip(messages, new_ids(len(messages)), strict=True)):
        try:
            posted = _posted(message)
            event_class = classes.get(posted.type)
            if event_class is None:
                names = ", ".join(sorted(classes))
                raise ValueError(f"{cls.__name__} has no event {posted.type!r}: it has {names}")
            _, data = seal(decoder(event_class).decode(posted.data))
        except (msgspec.MsgspecError, InvalidEventError, ValueError, RecursionError) as error:
            raise Problem(400, f"message {number}: {error}") from None
        metadata = None if posted.metadata is None else msgspec.json.encode(posted.metadata)
        stored = EventType(event_class.__event_name__, event_class.__event_version__)
        new.append(NewEvent(stored, data, posted.id.bytes if posted.id else id, metadata))
    return new
