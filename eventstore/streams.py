"""What goes to a stream and what comes back: writes, receipts, heads, cuts of the log."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from datetime import datetime
from typing import Generic, TypeVar

from eventstore.aggregate import Aggregate
from eventstore.event import Event, RecordedEvent
from eventstore.log.base import ANY, Expected

S = TypeVar("S", bound=Aggregate)


@dataclass(frozen=True, slots=True)
class Write:
    """Events for one stream of an append that covers several, and what is required of it.

    Without events it only requires: the append is refused if the stream is not as expected.
    """

    stream: str
    events: Event | Iterable[Event]
    expected: Expected = ANY


@dataclass(frozen=True, slots=True)
class Receipt:
    """What an append did to one stream.

    `version` is the stream's version now, `position` that of the last new event (0 where there
    was none), `recorded_at` the moment that all events of the append bear.
    """

    stream: str
    version: int
    position: int
    recorded_at: datetime


@dataclass(frozen=True, slots=True)
class StreamInfo:
    """The head of a stream: its version, and when its last event was recorded."""

    name: str
    version: int
    recorded_at: datetime
    deleted: bool


@dataclass(frozen=True, slots=True)
class Cut:
    """The whole log at a moment: what was recorded up to `position` and not after `at`.

    Reading at the same cut always gives the same answer, whatever is appended meanwhile. The
    position alone would not do: an import brings older times to later positions, and writers to
    PostgreSQL do not commit in the order of their clocks.
    """

    position: int
    at: datetime | None = None


@dataclass(frozen=True, slots=True)
class Step(Generic[S]):
    """One event of an aggregate's history, and its state when that event had been applied."""

    record: RecordedEvent
    state: S
