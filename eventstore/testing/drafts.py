"""Short ways to write to a log, and to look at what is in it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from eventstore.ids import new_ids
from eventstore.log.base import (
    ANY,
    Bounds,
    EventType,
    Expected,
    Log,
    NewEvent,
    Receipt,
    Row,
    Snapshot,
    Write,
)

EVERYTHING = Bounds()


def drafts(count: int = 1, type: str = "happened", data: bytes | None = None) -> list[NewEvent]:
    """New events of one type. Their data are their numbers, unless given."""
    return [
        NewEvent(EventType(type, 1), b"%d" % number if data is None else data, id)
        for number, id in enumerate(new_ids(count))
    ]


def add(
    log: Log,
    stream: str,
    count: int = 1,
    *,
    expected: Expected = ANY,
    type: str = "happened",
    key: str | None = None,
    recorded_at: int | None = None,
) -> Receipt:
    """Append that many events to one stream."""
    write = Write(stream, drafts(count, type), expected)
    return log.append([write], key=key, recorded_at=recorded_at)[0]


def rows(log: Log, stream: str, until: Bounds = EVERYTHING) -> Sequence[Row]:
    """The first thousands of rows of a stream."""
    return log.read(stream, 0, until, limit=10_000)


def all_rows(log: Log, until: Bounds = EVERYTHING) -> Sequence[Row]:
    """The first thousands of rows of the log."""
    return log.read_all(0, until, limit=10_000)


def folded(
    log: Log,
    stream: str,
    after: int = 0,
    until: Bounds = EVERYTHING,
    fingerprint: bytes | None = None,
) -> tuple[Snapshot | None, list[bytes]]:
    """What a load reads, with its pages put together."""
    snapshot, pages = log.fold(stream, after, until, fingerprint=fingerprint)
    return snapshot, [data for page in pages for _, data in page]


def abandon(pages: Iterator[object]) -> None:
    """Close an iterator that is not used up."""
    close = getattr(pages, "close", None)
    if close is not None:
        close()
