"""Parked events as the database knows them: set aside by a follower, until retried or discarded."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

from sqlalchemy import Connection, delete, func, insert, select, update

from eventstore import moments
from eventstore.log.base import Log, Row
from eventstore.log.tables import REBUILD, parked
from eventstore.log.transactions import reading

_c = parked.c


class ParkedRow(NamedTuple):
    """An event that is set aside. Without an error it only stands behind another of its stream."""

    follower: str
    shard: int
    position: int
    stream: str
    version: int
    type: str
    attempts: int
    error: str | None
    parked_at: int
    retry: bool


class ParkedEvents:
    """What the followers of one log have set aside."""

    def __init__(self, log: Log) -> None:
        self._log = log

    def park(
        self,
        connection: Connection,
        follower: str,
        shard: int,
        row: Row,
        *,
        attempts: int,
        error: str | None,
    ) -> None:
        """Set an event aside, in the transaction that moves the checkpoint past it."""
        connection.execute(
            insert(parked),
            ParkedRow(
                follower,
                shard,
                row.position,
                row.stream,
                row.version,
                self._log.event_type(row.type, connection).name,
                attempts,
                error,
                moments.now(),
                False,
            )._asdict(),
        )

    def streams(self, follower: str, shard: int) -> set[str]:
        """The streams of which something is parked: what follows in them has to wait as well."""
        query = select(_c.stream).where(_c.follower == follower, _c.shard == shard).distinct()
        with reading(self._log.engine) as connection:
            return set(connection.scalars(query))

    def any(self, connection: Connection, follower: str) -> bool:
        """Whether something is parked."""
        query = select(_c.position).where(_c.follower == follower, _c.shard != REBUILD).limit(1)
        return connection.execute(query).first() is not None

    def find(self, follower: str, stream: str | None = None) -> list[ParkedRow]:
        """What is parked, by position; of one stream, or of all."""
        query = select(parked).where(_c.follower == follower, _c.shard != REBUILD)
        if stream is not None:
            query = query.where(_c.stream == stream)
        with reading(self._log.engine) as connection:
            rows = connection.execute(query.order_by(_c.position)).all()
        return [ParkedRow(*row) for row in rows]

    def count(self) -> dict[str, int]:
        """How many events are parked, by follower."""
        query = select(_c.follower, func.count()).where(_c.shard != REBUILD).group_by(_c.follower)
        with reading(self._log.engine) as connection:
            return {name: number for name, number in connection.execute(query)}  # noqa: C416

    def to_retry(self, follower: str, shard: int) -> list[list[ParkedRow]]:
        """What is marked to be tried again: for each stream, all of it in order."""
        here = (_c.follower == follower) & (_c.shard == shard)
        marked = select(_c.stream).where(here, _c.retry)
        query = select(parked).where(here, _c.stream.in_(marked)).order_by(_c.position)
        with reading(self._log.engine) as connection:
            rows = [ParkedRow(*row) for row in connection.execute(query)]
        streams: dict[str, list[ParkedRow]] = {}
        for row in rows:
            streams.setdefault(row.stream, []).append(row)
        return list(streams.values())

    def mark(self, follower: str, stream: str | None) -> int:
        """Mark what is parked to be tried again; how many events that are."""
        statement = update(parked).where(_c.follower == follower, _c.shard != REBUILD)
        if stream is not None:
            statement = statement.where(_c.stream == stream)
        with self._log.transaction() as connection:
            return int(connection.execute(statement.values(retry=True)).rowcount)

    def discard(self, follower: str, position: int) -> bool:
        """Forget one event, and try again those that stand behind it; False if it is not there."""
        here = (_c.follower == follower) & (_c.shard != REBUILD)
        gone = delete(parked).where(here, _c.position == position).returning(_c.stream)
        with self._log.transaction() as connection:
            stream = connection.execute(gone).scalar()
            if stream is None:
                return False
            connection.execute(update(parked).where(here, _c.stream == stream).values(retry=True))
        return True

    def clear(self, connection: Connection, follower: str) -> None:
        """Forget all that a follower has parked."""
        connection.execute(delete(parked).where(_c.follower == follower, _c.shard != REBUILD))

    def settle(self, connection: Connection, row: ParkedRow) -> None:
        """Remove an event whose retry has succeeded, in the transaction of that."""
        connection.execute(delete(parked).where(*_is(row)))

    def fail(self, connection: Connection, row: ParkedRow, error: str) -> None:
        """Note that a retry has failed; nothing of its stream is tried again until asked for."""
        connection.execute(
            update(parked).where(*_is(row)).values(error=error, attempts=row.attempts + 1)
        )
        connection.execute(
            update(parked)
            .where(_c.follower == row.follower, _c.shard == row.shard, _c.stream == row.stream)
            .values(retry=False)
        )


def _is(row: ParkedRow) -> Sequence[Any]:
    return (
        _c.follower == row.follower,
        _c.shard == row.shard,
        _c.position == row.position,
    )
