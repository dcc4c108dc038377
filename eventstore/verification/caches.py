"""Snapshots and kept folds: caches, which must be what a replay comes to."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any, Final, TypeVar

from sqlalchemy import Table, and_, delete, func, select

from eventstore.aggregate import Aggregate, blank
from eventstore.errors import DefinitionError
from eventstore.fold import Fold
from eventstore.log.base import Bounds, Log
from eventstore.log.tables import events, folds, snapshots, streams
from eventstore.projections.feed import Feed
from eventstore.projections.projecting import kept_name
from eventstore.projections.projection import Projection
from eventstore.snapshots import StateCodec, state_codec
from eventstore.state import Stateful, state_fields
from eventstore.verification.findings import Finding, Report, Tally, Walked
from eventstore.verification.reading import pages

S = TypeVar("S", bound=Stateful)

_s, _e, _n, _f = streams.c, events.c, snapshots.c, folds.c
#: States may be large.
_FEW: Final = 50
_PAGE: Final = 1000


class Caches:
    """Looks at all that is kept to save time. What is wrong in it may be deleted."""

    def __init__(self, log: Log, report: Report, *, repair: bool) -> None:
        self._log = log
        self._report = report
        self._repair = repair
        self._tally = Tally()

    def findings(self) -> Iterator[Finding]:
        """What is wrong with snapshots, then with folds; then what could not be compared."""
        yield from self._snapshots()
        yield from self._folds()
        yield from self._tally.findings()

    # --- snapshots of aggregates ---------------------------------------------------------------

    def _snapshots(self) -> Iterator[Finding]:
        key = (_n.stream_id, _n.fingerprint, _n.version)
        there = and_(_e.stream_id == _n.stream_id, _e.version == _n.version)
        query = (
            select(
                *key,
                _n.state,
                _s.name,
                _s.deleted,
                _e.position,
                _e.recorded_at,
                and_(_e.position == _n.position, _e.recorded_at == _n.recorded_at).label("fits"),
            )
            .outerjoin(streams, _s.id == _n.stream_id)
            .outerjoin(events, there)
        )
        replays = _Replays(self._log)
        done = 0
        for page in pages(self._log.engine, query, *key, size=_FEW):
            for row in page:
                problem = _misplaced(row) or self._compared(replays, row)
                if problem is not None:
                    place = f"the snapshot at version {row.version} of {_named(row)} {problem}"
                    finding = Finding("snapshot", place, stream=row.name, version=row.version)
                    yield self._mended(finding, snapshots, tuple(row[: len(key)]))
            done += len(page)
            self._report(Walked("snapshots", done, done, done))

    def _compared(self, replays: _Replays, row: Any) -> str | None:
        """What is wrong with the state of a snapshot, if that can be told here."""
        try:
            same = replays.agree(row.stream_id, row.name, row.fingerprint, row.version, row.state)
        except Exception as error:  # of a handler, or of an event that is told elsewhere
            self._note(f"snapshots could not be compared: {type(error).__name__}: {error}")
            return None
        if same is None:
            self._note("snapshots of classes or code not known here were not compared")
        return "differs from a replay" if same is False else None

    # --- folds of pure projections -------------------------------------------------------------

    def _folds(self) -> Iterator[Finding]:
        key = (_f.projection, _f.fingerprint, _f.position)
        head = select(func.max(_e.position)).scalar_subquery()
        query = select(*key, _f.state, (_f.position <= func.coalesce(head, 0)).label("fits"))
        again = _Folding(self._log)
        for page in pages(self._log.engine, query, *key, size=_FEW):
            for row in page:
                problem = None if row.fits else "lies beyond the end of the log"
                problem = problem or self._folded(again, row)
                if problem is not None:
                    text = f"the state of {row.projection!r} at position {row.position} {problem}"
                    finding = Finding("fold", text, position=row.position, follower=row.projection)
                    yield self._mended(finding, folds, tuple(row[: len(key)]))

    def _folded(self, again: _Folding, row: Any) -> str | None:
        try:
            same = again.agrees(row.projection, row.fingerprint, row.position, row.state)
        except Exception as error:
            self._note(f"kept folds could not be compared: {type(error).__name__}: {error}")
            return None
        if same is None:
            self._note("kept folds of classes or code not known here were not compared")
        return "differs from a fold of the log" if same is False else None

    # --- both ----------------------------------------------------------------------------------

    def _note(self, text: str) -> None:
        self._tally.add(Finding("uncompared", text, is_error=False))

    def _mended(self, finding: Finding, table: Table, key: tuple[Any, ...]) -> Finding:
        if not self._repair:
            return finding
        columns = zip(table.primary_key.columns, key, strict=True)
        with self._log.transaction() as connection:
            connection.execute(delete(table).where(*(column == value for column, value in columns)))
        return finding.repaired()


def _named(row: Any) -> str:
    return f"stream_id {row.stream_id}" if row.name is None else repr(row.name)


def _misplaced(row: Any) -> str | None:
    if row.name is None:
        return "belongs to no stream"
    if row.deleted:
        return "belongs to a deleted stream"
    if row.position is None:
        return "stands at no event"
    return None if row.fits else "has not the position and time of its event"


class _Replays:
    """Replays streams from the beginning, each once for all of its snapshots of one code."""

    def __init__(self, log: Log) -> None:
        self._log = log
        self._classes = _by_fingerprint(Aggregate)
        self._last: tuple[Any, Aggregate] | None = None

    def agree(
        self, stream_id: int, stream: str, fingerprint: bytes, version: int, state: bytes
    ) -> bool | None:
        """Whether a state is what a replay comes to; None if no class is known for it."""
        for cls in self._classes.get(fingerprint, ()):
            id = cls.__stream__.id(stream)
            if id is not None:
                aggregate = self._replayed((stream_id, cls), blank(cls, id), stream, version)
                return _same(aggregate, blank(cls, id), state)
        return None

    def _replayed(self, key: Any, fresh: Aggregate, stream: str, version: int) -> Aggregate:
        aggregate = self._last[1] if self._last and self._last[0] == key else fresh
        self._last = None  # of no more use if a handler fails half-way
        _, pages = self._log.fold(stream, aggregate.version, Bounds(version=version))
        fold = Fold(self._log, type(aggregate))
        for page in pages:
            if page:
                fold.apply(aggregate, page)
        self._last = key, aggregate
        return aggregate


class _Folding:
    """Folds the log from the beginning, once for all kept states of one code."""

    def __init__(self, log: Log) -> None:
        self._log = log
        self._classes = _by_fingerprint(Projection)
        self._last: tuple[Any, Projection, Feed] | None = None

    def agrees(
        self, projection: str, fingerprint: bytes, position: int, state: bytes
    ) -> bool | None:
        """Whether a state is what a fold comes to; None if no class is known for it."""
        for cls in self._classes.get(fingerprint, ()):
            if kept_name(cls) == projection:
                return _same(self._folded(cls, position), cls(), state)
        return None

    def _folded(self, cls: type[Projection], position: int) -> Projection:
        if self._last is not None and self._last[0] is cls:
            _, folded, feed = self._last
        else:
            folded = cls()
            feed = Feed(self._log, cls.__handlers__, categories=cls.__categories__)
        self._last = None
        while page := feed.page(folded.position, Bounds(position=position), _PAGE):
            feed.apply(folded, page)
            folded.position = page[-1][0]
        self._last = cls, folded, feed
        return folded


def _same(replayed: S, blank: S, state: bytes) -> bool:
    codec: StateCodec = state_codec(type(replayed))
    if codec.encode(replayed) == state:
        return True
    return codec.restore(blank, state) and all(
        getattr(replayed, field) == getattr(blank, field) for field in state_fields(type(replayed))
    )


def _by_fingerprint(base: type[S]) -> dict[bytes, list[type[S]]]:
    """Every class that keeps states, by the fingerprint of its code."""
    found: dict[bytes, list[type[S]]] = {}
    for cls in _derived(base):
        if getattr(cls, "__snapshot_every__", None) is None:
            continue
        try:
            found.setdefault(state_codec(cls).fingerprint, []).append(cls)
        except DefinitionError:  # it cannot have kept any
            continue
    return found


def _derived(base: type[S]) -> Iterable[type[S]]:
    for cls in base.__subclasses__():
        yield cls
        yield from _derived(cls)
