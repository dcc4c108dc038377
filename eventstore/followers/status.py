"""How the followers of a log are doing."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Final

from sqlalchemy import func, select

from eventstore import moments
from eventstore.log.base import Bounds, Log
from eventstore.log.followers import Checkpoint, Followers
from eventstore.log.parked import ParkedEvents, ParkedRow
from eventstore.log.tables import REBUILD, events
from eventstore.log.transactions import reading

#: Further behind than so many events, a follower's lag is not counted.
MOST: Final = 100_000
#: For how many seconds after it has moved a checkpoint's rate stands.
_FRESH: Final = 10


@dataclass(frozen=True, slots=True)
class FollowerStatus:
    """One shard of a follower, or a rebuild that is under way.

    `behind` counts the events between the checkpoint and the end of the log, whether it handles
    them or not, at most 100,000; `lag` is the age of the first of them. `rate` is in events a
    second, of late. `owner` is the worker that holds it; `parked` counts the whole follower's
    events that are set aside.
    """

    follower: str
    shard: int
    shards: int
    version: int
    rebuild: bool
    in_step: bool
    position: int
    behind: int
    lag: timedelta
    handled: int
    rate: float
    owner: str | None
    parked: int


@dataclass(frozen=True, slots=True)
class Parked:
    """An event that a follower has set aside: one that failed, or stands behind one that did."""

    follower: str
    position: int
    stream: str
    version: int
    type: str
    #: How often it was tried: 0 for one that stands behind another.
    attempts: int
    #: The exception of the last attempt, in one line.
    error: str | None
    parked_at: datetime
    #: Whether a retry has been asked for, and is still to come.
    retry: bool


def statuses(log: Log, followers: Followers, parked: ParkedEvents) -> Iterator[FollowerStatus]:
    """The status of every shard of every follower, by name."""
    counts = parked.count()
    now = moments.now()
    for row in followers.every():
        behind, lag = (0, timedelta()) if row.in_step else _lag(log, row, now)
        fresh = now - row.advanced_at < _FRESH * 1_000_000
        held = row.owner is not None and row.expires_at >= now
        yield FollowerStatus(
            follower=row.name,
            shard=row.shard,
            shards=row.shards,
            version=row.version,
            rebuild=row.shard == REBUILD,
            in_step=row.in_step,
            position=row.position,
            behind=behind,
            lag=lag,
            handled=row.handled,
            rate=row.rate if fresh else 0.0,
            owner=row.owner if held else None,
            parked=0 if row.shard == REBUILD else counts.get(row.name, 0),
        )


def _lag(log: Log, row: Checkpoint, now: int) -> tuple[int, timedelta]:
    first = log.read_all(row.position, Bounds(), limit=1)
    if not first:
        return 0, timedelta()
    age = timedelta(microseconds=max(0, now - first[0].recorded_at))
    beyond = select(events.c.position).where(events.c.position > row.position).limit(MOST)
    with reading(log.engine) as connection:
        count = connection.execute(select(func.count()).select_from(beyond.subquery()))
        return count.scalar_one(), age


def shown(row: ParkedRow) -> Parked:
    """A parked event as the public sees it."""
    return Parked(
        follower=row.follower,
        position=row.position,
        stream=row.stream,
        version=row.version,
        type=row.type,
        attempts=row.attempts,
        error=row.error,
        parked_at=moments.from_micros(row.parked_at),
        retry=row.retry,
    )
