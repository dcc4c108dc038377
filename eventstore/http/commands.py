"""What a request asks of a stream, once it has been read and found well-formed."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeAlias

from eventstore.http.requests import Producing
from eventstore.log.base import NewEvent


@dataclass(frozen=True, slots=True)
class Source:
    """What a fork is made of: a stream, and where in it the fork leaves."""

    path: str
    offset: tuple[int, int] | None
    sub: int


@dataclass(frozen=True, slots=True)
class Create:
    """PUT. For a fork the content type may be left open, and then the body is still unread."""

    path: str
    content_type: str | None
    ttl: int | None
    expires_at: int | None
    closed: bool
    body: bytes
    events: Sequence[NewEvent] = ()
    source: Source | None = None
    #: Whether a stream of the application's becomes one that is written over HTTP too.
    adopts: bool = False


@dataclass(frozen=True, slots=True)
class Append:
    """POST: messages, the end of the stream, or both."""

    path: str
    media: str | None
    events: Sequence[NewEvent]
    closes: bool
    seq: bytes | None = None
    producer: Producing | None = None
    expected: int | None = None
    adopts: bool = False


@dataclass(frozen=True, slots=True)
class Delete:
    """DELETE."""

    path: str


@dataclass(frozen=True, slots=True)
class Touch:
    """A read has begun: the time to live starts anew."""

    path: str


@dataclass(frozen=True, slots=True)
class Expire:
    """The time to live may be over."""

    path: str


Command: TypeAlias = Create | Append | Delete | Touch | Expire
