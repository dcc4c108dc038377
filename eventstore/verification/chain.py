"""The chain: hashes by which an auditor can tell that the past of a log was not rewritten.

Each event's hash covers the event and the hash of the one before it in its stream. Each seal covers
an event's hash and the seal before it in the log, so that the seal at a position stands for
everything up to there. Whoever may write to the database can compute all of it anew; so seals have
to be kept where he cannot: they are the anchors.

The chain is made from the log, not by those who append: nobody can pass by it, appends cost the
same, and a lock keeps only one sealing from the next. See docs/guarantees.md for how to compute it.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable, Iterator, Sequence
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from sqlalchemy import Connection, and_, func, insert, select

from eventstore.errors import InvalidArgumentError
from eventstore.log.base import Log
from eventstore.log.queries import Query
from eventstore.log.tables import chain, events, streams, types
from eventstore.log.transactions import lock_name, reading
from eventstore.verification.findings import Finding, Report, Walked
from eventstore.verification.reading import end_of_page, stretches

if TYPE_CHECKING:
    from eventstore.store import EventStore

_c, _e, _s, _t = chain.c, events.c, streams.c, types.c
#: What comes before the first event of a stream, and before the first of the log.
NOTHING: Final = bytes(32)
#: Events that are sealed in one transaction.
_BATCH: Final = 500
_LOCK: Final = "eventstore chain"
_WRITTEN: Final = re.compile(r"([1-9][0-9]{0,18}):([0-9a-f]{64})", re.ASCII)


class Anchor(NamedTuple):
    """The seal at a position: it stands for all events of the log up to there.

    As text, `position:seal`, it is to be kept outside of the database.
    """

    position: int
    seal: bytes

    def __str__(self) -> str:
        return f"{self.position}:{self.seal.hex()}"

    @classmethod
    def parse(cls, text: str) -> Anchor:
        """The anchor that was written as this text. Raises InvalidArgumentError."""
        written = _WRITTEN.fullmatch(text)
        if written is None:
            raise InvalidArgumentError("anchor", text, "an anchor is a position, :, 64 hex digits")
        return cls(int(written[1]), bytes.fromhex(written[2]))


class Sealable(NamedTuple):
    """What the hash of an event covers, beside the one before it."""

    stream: str
    version: int
    type: str
    schema_version: int
    recorded_at: int
    id: bytes
    data: bytes
    metadata: bytes | None


def hash_of(event: Sealable, previous: bytes) -> bytes:
    """The hash of an event, given that of the event before it in its stream: SHA-256."""
    parts = [previous]
    for value in event:
        if value is None:
            parts.append(b"\xff" * 8)
            continue
        field = value if isinstance(value, bytes) else str(value).encode("utf-8", "surrogatepass")
        parts += (len(field).to_bytes(8, "big"), field)
    return hashlib.sha256(b"".join(parts)).digest()


def seal_of(position: int, hash: bytes, previous: bytes) -> bytes:
    """The seal at a position, given the hash of its event and the seal before it: SHA-256."""
    return hashlib.sha256(previous + position.to_bytes(8, "big") + hash).digest()


# --- sealing ---------------------------------------------------------------------------------


def seal(store: EventStore, *, progress: Report | None = None) -> Anchor | None:
    """Extend the chain to the end of the log; the anchor there, None for an empty log.

    It covers every append that was acknowledged before the call. Several may seal at once. Raises
    LogStalledError, LogError.
    """
    log, head = store.log, store.head()
    done = 0
    while True:
        with log.transaction() as connection:
            lock_name(connection, _LOCK)
            last = latest(connection)
            sealed = _sealed(connection, last, head)
            if sealed:
                connection.execute(insert(chain), sealed)
        if len(sealed) < _BATCH:
            return Anchor(sealed[-1]["position"], sealed[-1]["seal"]) if sealed else last
        done += len(sealed)
        if progress is not None:
            progress(Walked("sealing", sealed[-1]["position"], head, done))


def latest(connection: Connection) -> Anchor | None:
    """The last anchor of the chain; None if it was never begun."""
    query = select(_c.position, _c.seal).order_by(_c.position.desc()).limit(1)
    row = connection.execute(query).first()
    return None if row is None else Anchor(*row)


def _sealed(connection: Connection, last: Anchor | None, head: int) -> list[dict[str, Any]]:
    """The next rows of the chain."""
    after, seal = last or Anchor(0, NOTHING)
    until = end_of_page(connection, _e.position, after, head, _BATCH)
    before = chain.alias()
    query = (
        select(_e.position, _e.stream_id, *sealable(), before.c.hash.label("previous"))
        .join(streams, _s.id == _e.stream_id)
        .join(types, _t.id == _e.type_id)
        .outerjoin(before, and_(*is_before(before.c)))
        .where(_e.position > after, _e.position <= until)
        .order_by(_e.position)
    )
    rows: list[dict[str, Any]] = []
    hashes: dict[tuple[int, int], bytes] = {}
    for position, stream_id, *fields, previous in connection.execute(query):
        event = Sealable(*fields)
        previous = hashes.get((stream_id, event.version - 1), previous) or NOTHING
        hash = hashes[stream_id, event.version] = hash_of(event, previous)
        seal = seal_of(position, hash, seal)
        values = (position, stream_id, event.version, hash, seal)
        rows.append(dict(zip(chain.c.keys(), values, strict=True)))
    return rows


def sealable() -> list[Any]:
    """The columns of a Sealable, of streams, types and events."""
    renamed = {"stream": _s.name, "type": _t.name, "schema_version": _t.version}
    return [renamed[name] if name in renamed else _e[name] for name in Sealable._fields]


def is_before(before: Any) -> tuple[Any, Any]:
    """The conditions that a row of the chain is that of an event's predecessor in its stream."""
    return before.stream_id == _e.stream_id, before.version == _e.version - 1


# --- checking ----------------------------------------------------------------------------------


class ChainCheck:
    """Compares a log with its chain, and the chain with anchors from outside."""

    def __init__(self, log: Log, anchors: Iterable[Anchor], report: Report) -> None:
        self._log = log
        self._anchors = sorted(anchors)
        self._report = report

    def findings(self) -> Iterator[Finding]:
        """What was altered, removed or put in since it was sealed."""
        with reading(self._log.engine) as connection:
            last = latest(connection)
        if last is not None:
            yield from self._events(last)
            yield from self._links(last)
        yield from self._kept_outside()

    def _events(self, last: Anchor) -> Iterator[Finding]:
        """Whether each event up to the last seal has the hash that the chain has of it."""
        before = chain.alias()
        query = (
            select(_e.position, _c.hash, before.c.hash.label("previous"), *sealable())
            .join(streams, _s.id == _e.stream_id)
            .join(types, _t.id == _e.type_id)
            .outerjoin(chain, _c.position == _e.position)
            .outerjoin(before, and_(*is_before(before.c)))
            .order_by(_e.position)
        )
        done = 0
        for page in self._pages(query, _e.position, last):
            for position, hash, previous, *fields in page:
                event = Sealable(*fields)
                if hash is None:
                    yield _found(event, position, "unsealed", "was put in after it was sealed")
                elif hash_of(event, previous or NOTHING) != hash:
                    yield _found(event, position, "altered", "was altered since it was sealed")
            done += len(page)
            self._report(Walked("chain: events", done, last.position, done))

    def _links(self, last: Anchor) -> Iterator[Finding]:
        """Whether seals follow from each other, and each has its event unless that was erased."""
        query = (
            select(
                _c.position,
                _c.version,
                _c.hash,
                _c.seal,
                _s.name,
                (_e.stream_id == _c.stream_id).label("fits"),
                func.coalesce(and_(_s.deleted, _s.version > _c.version), False).label("erased"),
            )
            .outerjoin(streams, _s.id == _c.stream_id)
            .outerjoin(events, and_(_e.position == _c.position, _e.version == _c.version))
            .order_by(_c.position)
        )
        seal, done = NOTHING, 0
        for page in self._pages(query, _c.position, last):
            for row in page:
                if not row.fits and not row.erased:
                    where = f"version {row.version} of {row.name!r} (position {row.position})"
                    text = f"{where} was sealed and is not there any more"
                    yield Finding("removed", text, True, row.name, row.version, row.position)
                if seal_of(row.position, row.hash, seal) != row.seal:
                    text = (
                        f"the seal at position {row.position} does not follow from the one before"
                    )
                    yield Finding("seal", text, position=row.position)
                seal = row.seal
            done += len(page)
            self._report(Walked("chain: seals", done, last.position, done))

    def _pages(self, query: Query, position: Any, last: Anchor) -> Iterator[Sequence[Any]]:
        for after, until in stretches(self._log.engine, position, last.position):
            with reading(self._log.engine) as connection:
                page = query.where(position > after, position <= until)
                rows = connection.execute(page).all()
            yield rows

    def _kept_outside(self) -> Iterator[Finding]:
        for anchor in self._anchors:
            query = select(_c.seal).where(_c.position == anchor.position)
            with reading(self._log.engine) as connection:
                found = connection.execute(query).scalar()
            if found != anchor.seal:
                what = "there is no seal" if found is None else "another seal stands"
                text = f"{what} at position {anchor.position}: this is not the past of the anchor"
                yield Finding("anchor", text, position=anchor.position)


def _found(event: Sealable, position: int, kind: str, what: str) -> Finding:
    text = f"version {event.version} of {event.stream!r} (position {position}) {what}"
    return Finding(kind, text, stream=event.stream, version=event.version, position=position)
