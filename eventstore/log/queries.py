"""The statements that both SQL backends share, written with SQLAlchemy Core.

Each is made once for each shape of a call, and is then text: see `eventstore.log.sql`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from operator import itemgetter
from typing import Any, Final, NamedTuple, TypeAlias

from sqlalchemy import (
    BigInteger,
    Dialect,
    Executable,
    Integer,
    Text,
    and_,
    bindparam,
    case,
    cast,
    delete,
    func,
    literal_column,
    null,
    or_,
    select,
    union_all,
    update,
)

from eventstore.log.base import Bounds
from eventstore.log.tables import appends, events, snapshots, streams, types

#: Rows a page, where the log itself pages.
PAGE: Final = 1024

#: A Select, whose row type SQLAlchemy's annotations lose on the way.
Query: TypeAlias = Any

#: Which of the three bounds of a read are given.
Mask: TypeAlias = tuple[bool, bool, bool]
UNBOUNDED: Final[Mask] = (False, False, False)


class Shape(NamedTuple):
    """Which conditions a read of the whole log has."""

    types: bool
    categories: bool
    shard: bool


_LIMIT: Final = bindparam("limit", type_=Integer())
#: The same where a planner cannot see it. PostgreSQL then takes a plan that is quick to begin,
#: along the positions. One that sees a limit above what it expects of a range sorts the rest of the
#: log for each page, and of a table without statistics it expects little: four times slower.
_HIDDEN_LIMIT: Final = select(_LIMIT).scalar_subquery()
_ONE: Final = literal_column("1", Integer())
_BOUNDS: Final = tuple(f"until_{name}" for name in Bounds._fields)


def mask_of(until: Bounds) -> Mask:
    """Which bounds are given."""
    return (until.version is not None, until.position is not None, until.recorded_at is not None)


def given(until: Bounds) -> dict[str, int]:
    """The given bounds as parameters of a statement."""
    values = zip(_BOUNDS, until, strict=True)
    return {name: value for name, value in values if value is not None}


class Statement:
    """A Core statement as the text and the parameters that the driver takes."""

    __slots__ = ("_pick", "text")

    def __init__(self, statement: Executable, dialect: Dialect) -> None:
        compiled = statement.compile(dialect=dialect)  # type: ignore[attr-defined]
        self.text: str = str(compiled)
        names: Sequence[str] | None = compiled.positiontup
        self._pick = None if names is None else _picking(names)

    def parameters(self, values: Mapping[str, Any]) -> Any:
        return values if self._pick is None else self._pick(values)


def _picking(names: Sequence[str]) -> Callable[[Mapping[str, Any]], Sequence[Any]]:
    """What gives the values of so many names, in order; of two or more in a third of the time."""
    if len(names) < 2:
        return lambda values: [values[name] for name in names]
    return itemgetter(*names)


class Queries:
    """The statements, by name; the shape of a call decides which conditions one has."""

    def __init__(self, one_of: Callable[[Any, str], Any], insert: Any) -> None:
        """What differs by dialect: the condition `column is in a list`, and the `insert`."""
        self._one_of = one_of
        self._insert = insert

    def head(self) -> Query:
        c = streams.c
        return select(c.name, c.version, c.recorded_at, c.deleted).where(c.name == _text("name"))

    def streams(self, of_category: bool) -> Query:
        c = streams.c
        query = select(c.name, c.version, c.recorded_at, c.deleted)
        query = _limited(query.where(c.name > _text("after")).order_by(c.name))
        return query.where(c.category == _text("category")) if of_category else query

    def types(self) -> Query:
        return select(types.c.id, types.c.name, types.c.version)

    def receipts(self) -> Query:
        return select(appends.c.receipts).where(appends.c.key == _text("key"))

    def fold(self, mask: Mask) -> Query:
        c = events.c
        query = select(c.type_id, c.data).where(
            c.stream_id == _stream_id(), c.version > _int("after")
        )
        within = [c.version <= limit for limit in _last_versions(mask)]
        return _limited(query.where(*within).order_by(c.version))

    def fold_from_snapshot(self, mask: Mask) -> Query:
        """The same, and before it the latest snapshot, if there is one: it has no type."""
        s, c = snapshots.c, events.c
        limits = _last_versions(mask)
        query = select(s.version, s.state, s.position, s.recorded_at).where(
            s.stream_id == _stream_id(),
            s.fingerprint == bindparam("fingerprint", type_=s.fingerprint.type),
            s.version > _int("after"),
            *(s.version <= limit for limit in limits),
        )
        found = _limited(query.order_by(s.version.desc()), _ONE).cte("latest")
        after = func.coalesce(select(found.c.version).scalar_subquery(), _int("after"))
        nothing = cast(null(), BigInteger)
        tail = select(c.version, c.type_id, c.data, nothing.label("position"), nothing).where(
            c.stream_id == _stream_id(),
            c.version > after,
            *(c.version <= limit for limit in limits),
        )
        tail = _limited(tail.order_by(c.version)).subquery()
        latest = found.c
        first = select(
            latest.version, cast(null(), Integer), latest.state, latest.position, latest.recorded_at
        )
        both = union_all(first, select(tail))
        return both.order_by(both.selected_columns.version)

    def read(self, mask: Mask, backwards: bool, of_types: bool) -> Query:
        query = self._rows(of_types).where(events.c.stream_id == _stream_id())
        version = events.c.version
        query = _within(query, events.c, mask).where(version > _int("after"))
        return _limited(query.order_by(version.desc() if backwards else version))

    def read_all(self, mask: Mask, backwards: bool, shape: Shape) -> Query:
        query = self._wanted(self._rows(shape.types), shape)
        position = events.c.position
        query = _within(query, events.c, mask).where(position > _int("after"))
        return _paged(query.order_by(position.desc() if backwards else position), shape)

    def scan(self, mask: Mask, shape: Shape, whole: bool) -> Query:
        c = events.c
        query = select(c.position, c.type_id, c.data)
        if whole:
            query = select(
                c.position,
                c.stream_id,
                c.version,
                c.type_id,
                c.data,
                c.metadata,
                c.id,
                c.recorded_at,
            )
        if shape.categories:
            query = query.join(streams, streams.c.id == c.stream_id)
        query = self._wanted(self._of_types(query, shape.types), shape)
        query = _within(query, c, mask).where(c.position > _int("after"))
        return _paged(query.order_by(c.position), shape)

    def stream_names(self) -> Query:
        c = streams.c
        return select(c.id, c.name).where(self._one_of(c.id, "keys"))

    def sizes(self) -> Query:
        c = events.c
        query = select(func.length(c.data)).where(c.stream_id == _stream_id())
        query = query.where(c.version > _int("after"), c.version <= _int("until"))
        return _limited(query.order_by(c.version))

    def moved(self) -> Query:
        c = events.c
        query = select(streams.c.name, func.max(c.version)).join(
            streams, streams.c.id == c.stream_id
        )
        query = query.where(c.position > _int("after"), c.position <= _int("until"))
        return query.group_by(streams.c.name)

    def fork_head(self) -> Query:
        c = events.c
        names = ("target", "category")
        source = select(*map(_text, names), c.version, c.recorded_at).where(
            c.stream_id == _stream_id(), c.version == _int("version")
        )
        columns = ["name", "category", "version", "recorded_at"]
        insert = self._insert(streams).from_select(columns, source)
        return insert.on_conflict_do_nothing().returning(streams.c.id, streams.c.recorded_at)

    def fork_events(self) -> Query:
        c = events.c
        source = (
            select(
                _int("target"),
                c.version,
                c.type_id,
                c.recorded_at,
                c.id,
                c.data,
                c.metadata,
            )
            .where(c.stream_id == _stream_id(), c.version <= _int("version"))
            .order_by(c.version)
        )
        names = ["stream_id", "version", "type_id", "recorded_at", "id", "data", "metadata"]
        return self._insert(events).from_select(names, source)

    def position(self) -> Query:
        c = events.c
        return select(c.position).where(c.stream_id == _stream_id(), c.version == _int("version"))

    def _wanted(self, query: Query, shape: Shape) -> Query:
        if shape.categories:
            query = query.where(self._one_of(streams.c.category, "categories"))
        if shape.shard:
            query = query.where(events.c.stream_id % _int("shards") == _int("shard"))
        return query

    def _rows(self, of_types: bool) -> Query:
        c = events.c
        query = select(
            c.position,
            streams.c.name,
            c.version,
            c.type_id,
            c.data,
            c.metadata,
            c.id,
            c.recorded_at,
        ).join(streams, streams.c.id == c.stream_id)
        return self._of_types(query, of_types)

    def _of_types(self, query: Query, of_types: bool) -> Query:
        if of_types:
            wanted = select(types.c.id).where(self._one_of(types.c.name, "types"))
            query = query.where(events.c.type_id.in_(wanted))
        return query

    def save_snapshot(self) -> Query:
        c = snapshots.c
        names = ("fingerprint", "version", "position", "recorded_at", "state")
        values = [bindparam(name, type_=c[name].type) for name in names]
        # Locked (where rows can be), so that a deletion does not miss the snapshot.
        source = (
            select(streams.c.id, *values)
            .where(streams.c.name == _text("stream"), ~streams.c.deleted)
            .with_for_update(read=True)
        )
        insert = self._insert(snapshots).from_select(["stream_id", *names], source)
        # The same state at the same version again: there is nothing to lose in passing it over.
        return insert.on_conflict_do_nothing()

    def delete_snapshots(self, of_stream: bool) -> Executable:
        query = delete(snapshots)
        return query.where(snapshots.c.stream_id == _stream_id()) if of_stream else query

    def set_receipts(self) -> Executable:
        return (
            update(appends)
            .where(appends.c.key == _text("key"))
            .values(
                receipts=bindparam("receipts", type_=appends.c.receipts.type),
                recorded_at=_int("recorded_at"),
            )
        )


def _text(name: str) -> Any:
    return bindparam(name, type_=Text())


def _int(name: str) -> Any:
    return bindparam(name, type_=BigInteger())


def _limited(query: Query, limit: Any = _LIMIT) -> Query:
    # SQLAlchemy gives SQLite an offset anyhow, and as a parameter if it is not spelled out.
    return query.limit(limit).offset(literal_column("0"))


def _paged(query: Query, shape: Shape) -> Query:
    # Of a rare category, what begins quickly along the positions would look at the whole log.
    return _limited(query, _LIMIT if shape.categories else _HIDDEN_LIMIT)


def _stream_id() -> Any:
    return select(streams.c.id).where(streams.c.name == _text("stream")).scalar_subquery()


def _last_versions(mask: Mask) -> list[Any]:
    """The versions of a stream of which none may be passed."""
    limits = [_int("until_version")] if mask[0] else []
    return [*limits, _latest_within(mask)] if mask[1:] != (False, False) else limits


def _latest_within(mask: Mask) -> Any:
    """The last version of a stream that lies within the bounds of position and time.

    Both rise with the version, so it is found by halving: what has happened since is not read.
    """
    s, e = streams.c, events.c
    low = cast(_int("after"), BigInteger)
    start = select(s.id, low.label("low"), s.version.label("high")).where(s.name == _text("stream"))
    search = start.cte("search", recursive=True)
    c = search.c
    middle = (c.low + c.high + _ONE) // literal_column("2", Integer())
    bounds = zip((e.position, e.recorded_at), mask[1:], strict=True)
    bounded = (column <= _int(f"until_{column.name}") for column, given in bounds if given)
    # Of a deleted stream only the tombstone is left: what is not there is passed over.
    within = or_(e.version.is_(None), and_(*bounded))
    step = (
        select(
            c.id,
            case((within, middle), else_=c.low),
            case((within, c.high), else_=middle - _ONE),
        )
        .outerjoin_from(search, events, and_(e.stream_id == c.id, e.version == middle))
        .where(c.low < c.high)
    )
    found = search.union_all(step).c
    return select(found.low).where(found.low == found.high).scalar_subquery()


def _within(query: Query, c: Any, mask: Mask) -> Query:
    for column, bounded in zip((c.version, c.position, c.recorded_at), mask, strict=True):
        if bounded:
            query = query.where(column <= _int(f"until_{column.name}"))
    return query
