"""Subscriptions made over HTTP as the database knows them. `eventstore.http.subscriptions` decides.

Whoever changes the state of one has its row locked, from the reading until the end of a short
transaction. What runs for longer (a delivery, a worker's lease) is a time in the row, by the clock
of the database, and no lock: any server may take up what another has left.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from typing import Any, Final, NamedTuple

from sqlalchemy import (
    BigInteger,
    Connection,
    and_,
    bindparam,
    case,
    delete,
    func,
    insert,
    literal,
    literal_column,
    or_,
    select,
    update,
)
from sqlalchemy.dialects import postgresql, sqlite

from eventstore import moments
from eventstore.log.base import Log
from eventstore.log.tables import PRESENT, links, resources, signing_keys, streams, subscriptions
from eventstore.log.transactions import lock_name, reading

_c = subscriptions.c
_l = links.c
_r = resources.c
_s = streams.c
_k = signing_keys.c
_INSERT: Final[dict[str, Any]] = {"postgresql": postgresql.insert, "sqlite": sqlite.insert}
#: Rows that are read at once, and paths that are named in one query.
PAGE: Final = 1000
#: What sorts after every path.
_END: Final = "\U0010ffff"


class Subscription(NamedTuple):
    """What was asked for, and what state it is in: the last eight fields. Times in microseconds."""

    id: str
    type: str
    pattern: str | None
    streams: str
    url: str | None
    wake_stream: str | None
    lease_ttl: int
    description: str | None
    digest: bytes
    base_url: str
    local: bool
    created_at: int
    deleted: bool
    generation: int
    phase: int
    wake_id: str | None
    holder: str | None
    lease_until: int | None
    due_at: int | None
    attempt: int
    failures: int


class Tail(NamedTuple):
    """The end of a stream that there is."""

    path: str
    incarnation: int
    version: int


class Link(NamedTuple):
    """A stream of a subscription. `tail` is -1 while there is no such stream."""

    subscription: str
    path: str
    explicit: bool
    matched: bool
    incarnation: int
    acked: int
    tail_incarnation: int
    tail: int


class Interest(NamedTuple):
    """What is to be known of a subscription when streams move."""

    id: str
    pattern: str | None
    wake_stream: str | None


_is_over: Final = or_(_r.gone != PRESENT, func.coalesce(_r.due_at, 2**62) <= bindparam("now"))
_tail_incarnation: Final = func.coalesce(_r.incarnation, 0)
_tail: Final = case(
    (and_(_r.path.is_not(None), _is_over), -1),
    (_s.deleted, -1),
    (and_(_r.path.is_(None), func.coalesce(_s.version, 0) == 0), -1),
    else_=func.coalesce(_s.version, 0),
)
_pending: Final = and_(
    _tail > 0,
    or_(
        _tail_incarnation > _l.incarnation,
        and_(_tail_incarnation == _l.incarnation, _tail > _l.acked),
    ),
)
_linked: Final = (
    select(
        _l.subscription,
        _l.path,
        _l.explicit,
        _l.matched,
        _l.incarnation,
        _l.acked,
        _tail_incarnation,
        _tail,
    )
    .outerjoin(resources, _r.path == _l.path)
    .outerjoin(streams, _s.name == func.coalesce(_r.stream, _l.path))
)


class Wakes:
    """The subscriptions of one log. What takes no connection reads or writes alone."""

    def __init__(self, log: Log) -> None:
        self._log = log
        self._is_postgres = log.engine.dialect.name == "postgresql"
        self._insert = _INSERT[log.engine.dialect.name]
        self._state = Subscription._fields[-8:]

    def transaction(self) -> AbstractContextManager[Connection]:
        """A transaction that writes."""
        return self._log.transaction()

    def now(self, connection: Connection | None = None) -> int:
        """The clock that all servers go by, in microseconds since the epoch."""
        if not self._is_postgres:
            return moments.now()
        clock: Any = literal_column("(extract(epoch FROM clock_timestamp()) * 1000000)::bigint")
        return int(self._scalars(select(clock), connection)[0])

    # --- subscriptions -------------------------------------------------------------------------

    def find(self, id: str) -> Subscription | None:
        """One that there is."""
        rows = self._rows(select(subscriptions).where(_c.id == id, ~_c.deleted))
        return Subscription(*rows[0]) if rows else None

    def lock(self, connection: Connection, id: str) -> Subscription | None:
        """The row of one, deleted or not, which nobody changes until the transaction ends."""
        query = select(subscriptions).where(_c.id == id).with_for_update()
        row = connection.execute(query).first()
        return None if row is None else Subscription(*row)

    def add(self, connection: Connection, new: Subscription) -> bool:
        """Write one whose id was never used; False if another was quicker."""
        statement = self._insert(subscriptions).values(new._asdict()).on_conflict_do_nothing()
        return connection.execute(statement.returning(_c.id)).first() is not None

    def replace(self, connection: Connection, new: Subscription) -> None:
        """Write all of one that is locked."""
        connection.execute(update(subscriptions).where(_c.id == new.id).values(new._asdict()))

    def put(self, connection: Connection, id: str, state: Iterable[Any]) -> None:
        """Write the state of one that is locked."""
        values = dict(zip(self._state, state, strict=True))
        connection.execute(update(subscriptions).where(_c.id == id).values(values))

    def interests(self) -> list[Interest]:
        """What all subscriptions look for."""
        query = select(_c.id, _c.pattern, _c.wake_stream).where(~_c.deleted)
        return [Interest(*row) for row in self._rows(query)]

    def due(self, limit: int) -> list[str]:
        """Those that somebody has to look at now; the longest due first."""
        query = select(_c.id).where(_c.due_at <= self.now(), ~_c.deleted)
        return self._scalars(query.order_by(_c.due_at).limit(limit))

    def next_due(self) -> int | None:
        """Microseconds until the next is due; None for never."""
        query = select(func.min(_c.due_at)).where(_c.due_at.is_not(None), ~_c.deleted)
        found = self._scalars(query)[0]
        return None if found is None else found - self.now()

    # --- their streams -------------------------------------------------------------------------

    def link(
        self,
        connection: Connection,
        id: str,
        tails: Iterable[Tail],
        matches: Callable[[str], bool],
        *,
        explicit: bool,
    ) -> None:
        """Link streams, acknowledged up to what is said; one that is linked stays where it is.

        `matches` tells whether the pattern has a path.
        """
        kind = "explicit" if explicit else "matched"
        row = {"subscription": id, "explicit": explicit}
        rows = [
            {**row, "path": path, "matched": matches(path), "incarnation": i, "acked": version}
            for path, i, version in sorted(tails)
        ]
        if rows:
            statement = self._insert(links)
            statement = statement.on_conflict_do_update(
                index_elements=["subscription", "path"], set_={kind: True}
            )
            connection.execute(statement, rows)

    def unlink(self, connection: Connection, id: str, path: str | None = None) -> None:
        """Remove an explicit link, but for what the pattern matches; or all links."""
        mine = _l.subscription == id
        if path is None:
            connection.execute(delete(links).where(mine))
            return
        one = and_(mine, _l.path == path)
        connection.execute(delete(links).where(one, ~_l.matched))
        connection.execute(update(links).where(one).values(explicit=False))

    def gone(self, limit: int) -> list[tuple[str, str]]:
        """Links by a pattern to streams that there are no more, as (subscription, path)."""
        query = _linked.where(~_l.explicit, _tail == -1).limit(limit)
        return [(row[0], row[1]) for row in self._rows(query, now=moments.now())]

    def drop(self, connection: Connection, gone: Iterable[tuple[str, str]]) -> None:
        """Remove links by a pattern."""
        statement = delete(links).where(
            _l.subscription == bindparam("_id"), _l.path == bindparam("_path"), ~_l.explicit
        )
        connection.execute(statement, [{"_id": id, "_path": path} for id, path in gone])

    def links(self, id: str, limit: int) -> list[Link]:
        """The streams of a subscription, by path."""
        query = _linked.where(_l.subscription == id).order_by(_l.path).limit(limit)
        return [Link(*row) for row in self._rows(query, now=moments.now())]

    def linked(self, id: str, paths: Sequence[str]) -> set[str]:
        """Which of these streams are linked."""
        query = select(_l.path).where(_l.subscription == id, _l.path.in_(paths))
        return set(self._scalars(query))

    def links_of(
        self, id: str, paths: Iterable[str], connection: Connection | None = None
    ) -> dict[str, Link]:
        """Some of them."""
        found: dict[str, Link] = {}
        query = _linked.where(
            _l.subscription == id, _l.path.in_(bindparam("paths", expanding=True))
        )
        for some in _parts(paths):
            rows = self._rows(query, connection, now=moments.now(), paths=some)
            found.update({row[1]: Link(*row) for row in rows})
        return found

    def pending(self, id: str, limit: int) -> list[Link]:
        """Those of its streams that are not acknowledged up to their end, by path."""
        query = _linked.where(_l.subscription == id, _pending).order_by(_l.path).limit(limit)
        return [Link(*row) for row in self._rows(query, now=moments.now())]

    def is_pending(self, id: str) -> bool:
        """Whether there is one."""
        query = _linked.where(_l.subscription == id, _pending).limit(1)
        return bool(self._rows(query, now=moments.now()))

    def acknowledge(
        self, connection: Connection, id: str, places: Mapping[str, tuple[int, int]]
    ) -> None:
        """Move what is acknowledged, for ever forwards."""
        _i: Any = bindparam("_incarnation")
        _v: Any = bindparam("_version")
        forwards = or_(_l.incarnation < _i, and_(_l.incarnation == _i, _l.acked < _v))
        statement = (
            update(links)
            .where(_l.subscription == id, _l.path == bindparam("_path"), forwards)
            .values(incarnation=_i, acked=_v)
        )
        rows = [{"_path": p, "_incarnation": i, "_version": v} for p, (i, v) in places.items()]
        if rows:
            connection.execute(statement, rows)

    # --- streams that move ---------------------------------------------------------------------

    def linking(self, paths: Iterable[str]) -> dict[tuple[str, str], bool]:
        """Who has these streams, as (subscription, path): whether it is idle and has to wake."""
        found: dict[tuple[str, str], bool] = {}
        query = (
            _linked.add_columns(and_(_c.phase == 0, _pending))
            .join(subscriptions, _c.id == _l.subscription)
            .where(_l.path.in_(bindparam("paths", expanding=True)), ~_c.deleted)
        )
        for some in _parts(paths):
            for row in self._rows(query, now=moments.now(), paths=some):
                found[row[0], row[1]] = bool(row[-1])
        return found

    def waking(self) -> list[str]:
        """The idle ones that have something pending: a look at every stream of theirs."""
        mine = _linked.where(_l.subscription == _c.id, _pending).correlate(subscriptions).exists()
        query = select(_c.id).where(~_c.deleted, _c.phase == 0, mine)
        return [row[0] for row in self._rows(query, now=moments.now())]

    def tails(self, paths: Iterable[str], connection: Connection | None = None) -> dict[str, Tail]:
        """Of these streams, those that there are."""
        found: dict[str, Tail] = {}
        made, written = self._existing(
            lambda column: column.in_(bindparam("paths", expanding=True))
        )
        for some in _parts(paths):
            for query in (made, written):
                rows = self._rows(query, connection, now=moments.now(), paths=some)
                found.update({row[0]: Tail(*row) for row in rows})
        return found

    def every_tail(self, prefix: str) -> Iterator[Tail]:
        """All streams that there are at or below a path; of all, with "".

        Others whose names sort between these may be among them.
        """
        end = f"{prefix}/{_END}" if prefix else _END
        for query, name in zip(
            self._existing(lambda column: and_(column > bindparam("after"), column < end)),
            (_r.path, _s.name),
            strict=True,
        ):
            page = query.order_by(name).limit(PAGE)
            after = prefix
            while True:
                rows = self._rows(page, now=moments.now(), after=after)
                yield from (Tail(*row) for row in rows)
                if len(rows) < PAGE:
                    break
                after = rows[-1][0]
        yield from self.tails([prefix] if prefix else []).values()

    def _existing(self, wanted: Callable[[Any], Any]) -> tuple[Any, Any]:
        """Streams made over HTTP, and those that only the application writes."""
        made = (
            select(_r.path, _r.incarnation, func.coalesce(_s.version, 0))
            .outerjoin(streams, _s.name == _r.stream)
            .where(wanted(_r.path), ~_is_over)
        )
        no_resource = ~select(_r.path).where(_r.path == _s.name).exists()
        written = select(_s.name, literal(0, BigInteger), _s.version).where(
            wanted(_s.name), ~_s.deleted, _s.version > 0, ~_s.name.contains("\\"), no_resource
        )
        return made, written

    # --- keys ----------------------------------------------------------------------------------

    def keys(self, kind: str) -> list[bytes]:
        """The secrets of a kind, the one in use first."""
        query = select(_k.secret).where(_k.kind == kind).order_by(_k.created_at.desc(), _k.id)
        return [bytes(secret) for secret in self._scalars(query)]

    def make_key(self, kind: str, make: Callable[[], tuple[str, bytes]]) -> list[bytes]:
        """The same; if there is none, the id and secret of one are made, once for all servers."""
        with self.transaction() as connection:
            lock_name(connection, f"eventstore signing key: {kind}")
            known = select(_k.id).where(_k.kind == kind).limit(1)
            if not self._rows(known, connection):
                id, secret = make()
                row = {"id": id, "kind": kind, "secret": secret, "created_at": moments.now()}
                connection.execute(insert(signing_keys).values(row))
        return self.keys(kind)

    # --- plumbing ------------------------------------------------------------------------------

    def _rows(
        self, query: Any, connection: Connection | None = None, **values: Any
    ) -> Sequence[Any]:
        if connection is not None:
            return connection.execute(query, values).all()
        with reading(self._log.engine) as own:
            return own.execute(query, values).all()

    def _scalars(self, query: Any, connection: Connection | None = None) -> list[Any]:
        return [row[0] for row in self._rows(query, connection)]


def _parts(items: Iterable[str]) -> Iterator[list[str]]:
    every = list(items)
    for start in range(0, len(every), PAGE):
        yield every[start : start + PAGE]
