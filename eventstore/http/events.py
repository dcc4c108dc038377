"""Server-sent events: what a live reader is sent. PROTOCOL.md, section 5.8.

Each batch of messages is a `data` event, with a `control` event right after it. A line break in a
payload, of whatever kind, begins another `data:` line, so that no payload can end an event.
"""

from __future__ import annotations

import base64
import re
from collections.abc import Sequence
from typing import Final

import msgspec

from eventstore.http.messages import is_text, joined

_LINE_BREAK: Final = re.compile(rb"\r\n|\r|\n")


def data_event(messages: Sequence[bytes], media: str) -> bytes:
    """The event that carries messages."""
    payload = joined(messages, media)
    if not is_text(media):
        payload = base64.b64encode(payload)
    elif b"\n" in payload or b"\r" in payload:
        payload = _LINE_BREAK.sub(b"\ndata:", payload)
    return b"event: data\ndata:" + payload + b"\n\n"


def control_event(
    offset: str, *, cursor: str | None = None, up_to_date: bool = False, closed: bool = False
) -> bytes:
    """The event that says where the reader is."""
    control: dict[str, str | bool] = {"streamNextOffset": offset}
    if cursor is not None:
        control["streamCursor"] = cursor
    if up_to_date:
        control["upToDate"] = True
    if closed:
        control["streamClosed"] = True
    return b"event: control\ndata:" + msgspec.json.encode(control) + b"\n\n"


def headers(media: str) -> list[tuple[bytes, bytes]]:
    """The headers of a response that is a stream of events."""
    found = [
        (b"content-type", b"text/event-stream"),
        (b"cache-control", b"no-cache"),
        (b"x-accel-buffering", b"no"),
    ]
    if not is_text(media):
        found.append((b"stream-sse-data-encoding", b"base64"))
    return found
