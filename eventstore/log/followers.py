"""Followers as the database knows them: checkpoints, leases and who is ready to work.

A shard of a follower is a row. Whoever works on it holds a lease on that row, and each new lease
raises the row's epoch. A checkpoint moves only for the owner of the present epoch, in the same
transaction as the work; so a worker that was stopped for longer than its lease, and comes back,
cannot write. Nothing is held by a database session, so a pooling proxy may stand between.
"""

from __future__ import annotations

import contextlib
from collections.abc import Collection, Iterable, Sequence
from typing import Any, NamedTuple

from sqlalchemy import (
    BigInteger,
    Connection,
    Table,
    Update,
    bindparam,
    delete,
    insert,
    literal,
    literal_column,
    select,
    tuple_,
    update,
)

from eventstore import moments
from eventstore.errors import LeaseLostError
from eventstore.log.base import Log
from eventstore.log.tables import REBUILD, events, followers, parked, workers
from eventstore.log.transactions import reading

_c = followers.c


class Checkpoint(NamedTuple):
    """One shard of a follower as it is stored. Times are in microseconds since the epoch."""

    name: str
    shard: int
    shards: int
    version: int
    fingerprint: str
    tables: str
    in_step: bool
    position: int
    handled: int
    rate: float
    advanced_at: int
    epoch: int
    owner: str | None
    expires_at: int
    #: The id of the last event up to the position: set by whatever moves that.
    event: bytes | None = None


class Followers:
    """The followers of one log."""

    def __init__(self, log: Log) -> None:
        self._log = log
        self._is_postgres = log.engine.dialect.name == "postgresql"
        self._advance = _advance(self._now() if self._is_postgres else _given("now"))

    # --- what there is -------------------------------------------------------------------------

    def find(self, name: str, connection: Connection | None = None) -> list[Checkpoint]:
        """The shards of a follower, in order; none if nobody has started it yet."""
        query = select(followers).where(_c.name == name, _c.shard != REBUILD).order_by(_c.shard)
        return self._read(query, connection)

    def look(self, names: Collection[str]) -> tuple[dict[str, list[Checkpoint]], int]:
        """The shards of several followers, and the time by the clock that leases go by."""
        query = select(followers).where(_c.name.in_(names), _c.shard != REBUILD)
        found: dict[str, list[Checkpoint]] = {name: [] for name in names}
        with self._reading() as connection:
            now: int = connection.execute(select(self._now())).scalar_one()
            for row in self._read(query.order_by(_c.name, _c.shard), connection):
                found[row.name].append(row)
        return found, now

    def every(self) -> list[Checkpoint]:
        """All shards of all followers, and rebuilds that are under way."""
        return self._read(select(followers).order_by(_c.name, _c.shard), None)

    def in_step(self, connection: Connection | None = None) -> dict[str, tuple[int, str]]:
        """The projections that run in step with appends: their versions and fingerprints."""
        query = select(_c.name, _c.version, _c.fingerprint).where(_c.in_step)
        return {name: (version, code) for name, version, code in self._rows(query, connection)}

    def rebuild(self, name: str, connection: Connection | None = None) -> Checkpoint | None:
        """The rebuild of a projection that is under way, or was interrupted."""
        query = select(followers).where(_c.name == name, _c.shard == REBUILD)
        return next(iter(self._read(query, connection)), None)

    def positions(self, name: str, connection: Connection | None = None) -> list[int]:
        """How far each shard is, in order."""
        query = select(_c.position).where(_c.name == name, _c.shard != REBUILD).order_by(_c.shard)
        return [row[0] for row in self._rows(query, connection)]

    def add(self, connection: Connection, rows: Iterable[Checkpoint]) -> None:
        """Store new rows."""
        new = list(rows)
        connection.execute(insert(followers), [row._asdict() for row in new])
        names = {row.name for row in new if row.position and row.event is None}
        if names:
            reached = _event_at(_c.position)
            connection.execute(update(followers).where(_c.name.in_(names)).values(event=reached))

    def remove(self, connection: Connection, name: str, *, rebuild: bool = False) -> None:
        """Remove a follower's shards, or its rebuild, with what is parked there."""
        shard, parked_shard = _c.shard == REBUILD, parked.c.shard == REBUILD
        if not rebuild:
            shard, parked_shard = ~shard, ~parked_shard
        connection.execute(delete(followers).where(_c.name == name, shard))
        connection.execute(delete(parked).where(parked.c.follower == name, parked_shard))

    def lock(self, connection: Connection, name: str) -> list[Checkpoint]:
        """The shards of a follower, which nobody moves until the transaction ends."""
        query = select(followers).where(_c.name == name, _c.shard != REBUILD)
        query = query.order_by(_c.shard).with_for_update()
        return self._read(query, connection)

    def set(self, connection: Connection, name: str, **values: Any) -> None:
        """Set columns of all shards of a follower. Whoever holds a lease has lost it."""
        if "position" in values:
            values["event"] = _event_at(values["position"])
        connection.execute(
            update(followers)
            .where(_c.name == name, _c.shard != REBUILD)
            .values(epoch=_c.epoch + 1, owner=None, expires_at=0, **values)
        )

    # --- leases --------------------------------------------------------------------------------

    def claim(
        self,
        name: str,
        shard: int,
        owner: str,
        seconds: float,
        *,
        dead: str | None = None,
        connection: Connection | None = None,
    ) -> Checkpoint | None:
        """Take a shard that nobody holds, or whose lease has run out; None if it is held.

        It does not wait: a row that somebody has locked is not to be had. `dead` is an owner of
        whom it is known that he does not live any more.
        """
        free = (_c.owner.is_(None)) | (_c.owner.in_((owner, dead))) | (_c.expires_at < self._now())
        wanted = (_c.name == name) & (_c.shard == shard) & free
        statement = (
            update(followers)
            .where(wanted, self._unlocked(followers, wanted))
            .values(epoch=_c.epoch + 1, owner=owner, expires_at=self._in(seconds))
            .returning(followers)
        )
        with self._joined(connection) as joined:
            row = joined.execute(statement).first()
        return None if row is None else Checkpoint(*row)

    def renew(
        self, lease: Checkpoint, seconds: float, connection: Connection | None = None
    ) -> None:
        """Lengthen a lease. Raises LeaseLostError."""
        statement = update(followers).where(*_held(lease)).values(expires_at=self._in(seconds))
        with self._joined(connection) as joined:
            if joined.execute(statement).rowcount != 1:
                raise LeaseLostError(lease.name, lease.shard, lease.epoch)

    def release(self, lease: Checkpoint) -> None:
        """Give a lease back, if it is still held."""
        statement = update(followers).where(*_held(lease)).values(owner=None, expires_at=0)
        with self._alone() as connection:
            connection.execute(statement)

    def advance(
        self,
        connection: Connection,
        lease: Checkpoint,
        to: int,
        *,
        handled: int = 0,
        rate: float | None = None,
        seconds: float,
    ) -> Checkpoint:
        """Move a checkpoint in the transaction of the work that it stands for; the lease goes on.

        Raises LeaseLostError if the shard is no longer this owner's: then that work must not be
        committed.
        """
        rate = lease.rate if rate is None else rate
        moved = connection.execute(
            self._advance,
            {
                "its_name": lease.name,
                "its_shard": lease.shard,
                "its_epoch": lease.epoch,
                "its_owner": lease.owner,
                "its_position": lease.position,
                "to": to,
                "more": handled,
                "new_rate": rate,
                "lease": int(seconds * 1_000_000),
                **({} if self._is_postgres else {"now": moments.now()}),
            },
        )
        if moved.rowcount != 1:
            raise LeaseLostError(lease.name, lease.shard, lease.epoch)
        return lease._replace(position=to, handled=lease.handled + handled, rate=rate)

    # --- who is ready to work --------------------------------------------------------------------

    def heartbeat(self, worker: str, names: Collection[str], seconds: float) -> None:
        """Say that a worker is alive, and ready to take shards of these followers.

        All its leases go on, but for those of rows that are locked at this moment: it does not
        wait. Who has not been heard of for longer than it said is forgotten.
        """
        c = workers.c
        until = self._in(seconds)
        late = c.expires_at < self._now()
        mine = _c.owner == worker
        with self._alone() as connection:
            connection.execute(
                update(followers)
                .where(mine, self._unlocked(followers, mine))
                .values(expires_at=until)
            )
            known = set(connection.scalars(select(c.follower).where(c.worker == worker)))
            if known:
                connection.execute(
                    update(workers).where(c.worker == worker).values(expires_at=until)
                )
            for name in set(names) - known:
                values = {"follower": name, "worker": worker, "expires_at": until}
                connection.execute(insert(workers).values(values))
            connection.execute(delete(workers).where(late, self._unlocked(workers, late)))

    def ready(self, names: Collection[str]) -> dict[str, list[str]]:
        """The workers that are ready to take shards of these followers."""
        c = workers.c
        query = select(c.follower, c.worker).where(
            c.follower.in_(names), c.expires_at >= self._now()
        )
        found: dict[str, list[str]] = {name: [] for name in names}
        for name, worker in self._rows(query, None):
            found[name].append(worker)
        return found

    def retire(self, worker: str, name: str | None = None) -> None:
        """Say that a worker is ready no longer, for one follower or for all."""
        statement = delete(workers).where(workers.c.worker == worker)
        if name is not None:
            statement = statement.where(workers.c.follower == name)
        with self._alone() as connection:
            connection.execute(statement)

    # --- plumbing ------------------------------------------------------------------------------

    def _joined(
        self, connection: Connection | None
    ) -> contextlib.AbstractContextManager[Connection]:
        return self._alone() if connection is None else contextlib.nullcontext(connection)

    def _alone(self) -> contextlib.AbstractContextManager[Connection]:
        """A connection for statements that need no common transaction.

        On PostgreSQL each is its own: a worker that is stopped between two requests then leaves
        no row locked, for which all others would have to wait.
        """
        return self._reading() if self._is_postgres else self._log.transaction()

    def _reading(self) -> contextlib.AbstractContextManager[Connection]:
        self._log.watching()  # raises StoreClosedError; a closed engine would connect again
        return reading(self._log.engine)

    def _unlocked(self, table: Table, wanted: Any) -> Any:
        """A condition: the row is wanted, and nobody has locked it."""
        key = tuple_(*table.primary_key.columns)
        found = select(*table.primary_key.columns).where(wanted).with_for_update(skip_locked=True)
        return key.in_(found)

    def _now(self) -> Any:
        # The one clock that all machines share; on SQLite there is only this one.
        if self._is_postgres:
            return literal_column("(extract(epoch FROM clock_timestamp()) * 1000000)::bigint")
        return literal(moments.now(), BigInteger)

    def _in(self, seconds: float) -> Any:
        return self._now() + literal(int(seconds * 1_000_000), BigInteger)

    def _read(self, query: Any, connection: Connection | None) -> list[Checkpoint]:
        return [Checkpoint(*row) for row in self._rows(query, connection)]

    def _rows(self, query: Any, connection: Connection | None) -> Sequence[Any]:
        if connection is not None:
            return connection.execute(query).all()
        with self._reading() as own:
            return own.execute(query).all()


def _event_at(position: Any) -> Any:
    """The id of the last event up to a position: it tells this log from one that was restored."""
    query = select(events.c.id).where(events.c.position <= position)
    return query.order_by(events.c.position.desc()).limit(1).scalar_subquery()


def _advance(now: Any) -> Update:
    """The statement that moves a checkpoint: made once, since it runs for each event of a handler.

    To make it each time took longer than to run it.
    """
    held = [
        _c[name] == _given(f"its_{name}", _c[name].type)
        for name in ("name", "shard", "epoch", "owner", "position")
    ]
    to = _given("to")
    return (
        update(followers)
        .where(*held)
        .values(
            position=to,
            event=_event_at(to),
            handled=_c.handled + _given("more"),
            rate=_given("new_rate", _c.rate.type),
            advanced_at=now,
            expires_at=now + _given("lease"),
        )
    )


def _given(name: str, type: Any = BigInteger) -> Any:
    return bindparam(name, type_=type)


def _held(lease: Checkpoint) -> tuple[Any, ...]:
    return (
        _c.name == lease.name,
        _c.shard == lease.shard,
        _c.epoch == lease.epoch,
        _c.owner == lease.owner,
    )
