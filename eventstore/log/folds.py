"""Kept folds of pure projections as the database knows them. A cache, as snapshots are."""

from __future__ import annotations

from typing import NamedTuple

from sqlalchemy import delete, func, insert, select

from eventstore.log.base import Bounds, Log
from eventstore.log.tables import events, folds
from eventstore.log.transactions import reading

_c = folds.c


class Kept(NamedTuple):
    """A state, and the position up to which events are folded in."""

    position: int
    state: bytes


class Folds:
    """The kept states of one projection, at one version, as code of one fingerprint makes them."""

    def __init__(self, log: Log, projection: str, fingerprint: bytes) -> None:
        self._log = log
        self._projection = projection
        self._fingerprint = fingerprint

    def latest(self, until: Bounds) -> Kept | None:
        """The latest state into which nothing is folded that lies beyond the bounds."""
        query = select(_c.position, _c.state).where(
            _c.projection == self._projection, _c.fingerprint == self._fingerprint
        )
        if until.position is not None:
            query = query.where(_c.position <= until.position)
        if until.recorded_at is not None:
            query = query.where(_c.recorded_at <= until.recorded_at)
        with reading(self._log.engine) as connection:
            row = connection.execute(query.order_by(_c.position.desc()).limit(1)).first()
        return None if row is None else Kept(*row)

    def keep(self, position: int, state: bytes) -> None:
        """Keep a state. Keeping one for the same position again changes nothing."""
        here = (_c.projection == self._projection) & (_c.fingerprint == self._fingerprint)
        with self._log.transaction() as connection:
            before = connection.execute(
                select(_c.position, _c.recorded_at)
                .where(here, _c.position <= position)
                .order_by(_c.position.desc())
                .limit(1)
            ).first()
            if before is not None and before.position == position:
                return
            # Of all events, those that are not handled too: a bound that errs on one side only.
            latest = connection.execute(
                select(func.max(events.c.recorded_at)).where(
                    events.c.position > (0 if before is None else before.position),
                    events.c.position <= position,
                )
            ).scalar()
            moments = [moment for moment in (latest, before and before.recorded_at) if moment]
            connection.execute(
                insert(folds).values(
                    projection=self._projection,
                    fingerprint=self._fingerprint,
                    position=position,
                    recorded_at=max(moments, default=0),
                    state=state,
                )
            )

    @staticmethod
    def forget(log: Log, projection: str | None) -> int:
        """Throw away the kept states of a projection, or of all; how many there were."""
        statement = delete(folds)
        if projection is not None:
            statement = statement.where(_c.projection == projection)
        with log.transaction() as connection:
            return int(connection.execute(statement).rowcount)
