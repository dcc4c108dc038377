"""Streams: whether heads, versions, positions, times and payloads fit together."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from typing import Any, Final, NamedTuple

import msgspec
from sqlalchemy import Connection, and_, func, select, tuple_, update

from eventstore.codec import decode_as
from eventstore.errors import CorruptEventError, NewerEventError
from eventstore.event import event_class
from eventstore.log.base import DELETED, EventType, Log
from eventstore.log.tables import events, streams, types
from eventstore.log.transactions import reading
from eventstore.names import category_of
from eventstore.verification.findings import Finding, Report, Tally, Walked
from eventstore.verification.reading import PAGE, snapshot

_s, _e = streams.c, events.c
#: Type names that the library keeps for itself have no class. These are of bytes of any kind.
_OWN: Final = "$"
_BYTES: Final = "$bytes"
_LAST: Final = 2**63 - 1


class Head(NamedTuple):
    """The head row of a stream."""

    id: int
    name: str
    category: str
    version: int
    recorded_at: int
    deleted: bool


class Entry(NamedTuple):
    """An event with the keys by which the database knows its stream and its type."""

    stream_id: int
    version: int
    position: int
    type_id: int
    recorded_at: int
    id: bytes
    data: bytes
    metadata: bytes | None


class Streams:
    """One walk through all streams and their events.

    What is there when it begins is looked at. A few hundred streams at a time are seen as of one
    instant, so that nothing that is written meanwhile can look like an error.
    """

    def __init__(self, log: Log, report: Report, *, repair: bool) -> None:
        self._log = log
        self._report = report
        self._repair = repair
        self._payloads = Payloads(log)
        self._events = 0

    def findings(self) -> Iterator[Finding]:
        """What is wrong, stream by stream, then what was counted."""
        query = select(func.max(_s.id), select(func.max(_e.stream_id)).scalar_subquery())
        with reading(self._log.engine) as connection:
            last = max(number or 0 for number in connection.execute(query).one())
        after = 0
        while after < last:
            broken: list[tuple[Head, Finding]] = []
            with snapshot(self._log.engine) as connection:
                heads = _heads(connection, after, last)
                until = max(heads) if len(heads) == PAGE else last
                yield from self._page(connection, heads, after, until, broken)
            for head, finding in broken:
                # Outside of the snapshot, which may keep a writer out.
                mended = self._repair and mend(self._log, head.id)
                yield finding.repaired() if mended else finding
            after = until
            self._report(Walked("streams", after, last, self._events))
        yield from self._payloads.findings()

    def _page(
        self,
        connection: Connection,
        heads: dict[int, Head],
        after: int,
        until: int,
        broken: list[tuple[Head, Finding]],
    ) -> Iterator[Finding]:
        silent = dict(heads)  # those of which no event has been met
        stream: _Stream | None = None
        for entry in self._entries(connection, after, until):
            if stream is None or stream.id != entry.stream_id:
                if stream is not None:
                    yield from stream.end(broken)
                silent.pop(entry.stream_id, None)
                stream = _Stream(entry.stream_id, heads.get(entry.stream_id))
            yield from stream.event(entry, self._payloads.name(entry.type_id) == DELETED)
            yield from self._contents(entry, stream.name)
        if stream is not None:
            yield from stream.end(broken)
        for head in silent.values():
            yield _missing(head, 0)

    def _entries(self, connection: Connection, after: int, until: int) -> Iterator[Entry]:
        key = tuple_(_e.stream_id, _e.version)
        columns = [_e[name] for name in Entry._fields]
        query = select(*columns).where(_e.stream_id <= until).order_by(*key).limit(PAGE)
        place = (after, _LAST)
        while True:
            rows = connection.execute(query.where(key > place)).all()
            self._events += len(rows)
            yield from map(Entry._make, rows)
            if len(rows) < PAGE:
                return
            place = (rows[-1].stream_id, rows[-1].version)
            self._report(Walked("streams", place[0] - 1, until, self._events))

    def _contents(self, entry: Entry, stream: str | None) -> Iterator[Finding]:
        found = partial(Finding, stream=stream, version=entry.version, position=entry.position)
        shown = f"version {entry.version} of {stream!r} (position {entry.position})"
        if len(entry.id) != 16:
            yield found("id", f"{shown} has an id of {len(entry.id)} bytes")
        if not _is_metadata(entry.metadata):
            yield found("metadata", f"{shown} has metadata that is no JSON object")
        problem = self._payloads.problem(entry)
        if problem is not None:
            yield found("payload", f"{shown} cannot be decoded: {problem}")


class _Stream:
    """One stream, its events in the order of their versions."""

    def __init__(self, id: int, head: Head | None) -> None:
        self.id = id
        self.name = None if head is None else head.name
        self._head = head
        self._version = 0
        self._position = 0
        self._recorded_at: int | None = None
        self._is_whole = True
        self._ended = False  # by a tombstone
        self._events = 0

    def event(self, entry: Entry, is_tombstone: bool) -> Iterator[Finding]:
        """Compare an event with the one before it."""
        version, name = entry.version, self.name
        if not self._events and is_tombstone:
            self._version = version - 1  # what was before it is erased
        if self._ended or (is_tombstone and self._events):
            self._is_whole = False
            yield self._at(entry, "deleted", "stands in a deleted stream beside its tombstone")
        elif version != self._version + 1:
            self._is_whole = False
            lost = f"{self._version + 1} to {version - 1}"
            text = f"stream {self._shown()} has no versions {lost}: these events are lost"
            yield Finding("hole", text, stream=name, version=self._version + 1)
        if entry.position <= self._position:
            yield self._at(entry, "order", f"stands before the last one ({self._position})")
        if self._recorded_at is not None and entry.recorded_at < self._recorded_at:
            yield self._at(entry, "time", "was recorded before the one that it follows")
        self._events += 1
        self._ended = self._ended or is_tombstone
        self._version, self._position = version, entry.position
        self._recorded_at = entry.recorded_at

    def end(self, broken: list[tuple[Head, Finding]]) -> Iterator[Finding]:
        """Compare the head with the last event; a head that can be mended goes to `broken`."""
        head = self._head
        if head is None:
            text = f"{self._events:,} events belong to no stream (stream_id {self.id})"
            yield Finding("orphan", text, position=self._position)
            return
        if head.version > self._version:
            yield _missing(head, self._version)
            return
        wanted = (self._version, self._recorded_at, self._ended, category_of(head.name))
        found = (head.version, head.recorded_at, bool(head.deleted), head.category)
        if wanted == found:
            return
        names = ("version", "recorded_at", "deleted", "category")
        told = ", ".join(
            f"{name} {had!r} instead of {should!r}"
            for name, had, should in zip(names, found, wanted, strict=True)
            if had != should
        )
        text = f"the head of {self._shown()} disagrees with its events: {told}"
        finding = Finding("head", text, stream=head.name, version=self._version)
        if self._is_whole:
            broken.append((head, finding))
        else:
            yield finding

    def _at(self, entry: Entry, kind: str, what: str) -> Finding:
        text = f"version {entry.version} of {self._shown()} (position {entry.position}) {what}"
        return Finding(kind, text, stream=self.name, version=entry.version, position=entry.position)

    def _shown(self) -> str:
        return f"stream_id {self.id}" if self.name is None else repr(self.name)


class Payloads:
    """Decodes payloads as their readers would, so far as the classes are known here."""

    def __init__(self, log: Log) -> None:
        self._log = log
        self._names: dict[int, EventType | None] = {}
        self._decoders: dict[int, Callable[[bytes], object] | None] = {}
        self._tally = Tally()

    def type(self, key: int) -> EventType | None:
        """The type with that key; None if there is none."""
        if key not in self._names:
            query = select(types.c.name, types.c.version).where(types.c.id == key)
            with reading(self._log.engine) as connection:
                row = connection.execute(query).first()
            self._names[key] = None if row is None else EventType(*row)
        return self._names[key]

    def name(self, key: int) -> str | None:
        """The stored name of a type."""
        found = self.type(key)
        return None if found is None else found.name

    def problem(self, entry: Entry) -> str | None:
        """Why a payload cannot be decoded; None if it can, or if that is only counted."""
        key = entry.type_id
        if key not in self._decoders:
            self._decoders[key] = self._decoder(key)
        decode = self._decoders[key]
        stored = self.type(key)
        if stored is None:
            self._count(entry, "type", f"no type has the id {key} that events name", error=True)
            return None
        if stored.name == _BYTES:
            return None
        if decode is None:
            if not stored.name.startswith(_OWN):
                self._count(entry, *self._why_not(stored), error=False)
            decode = msgspec.json.decode
        try:
            decode(entry.data)
        except (msgspec.MsgspecError, CorruptEventError, ValueError, RecursionError) as error:
            return f"{stored.name!r}, schema version {stored.version}: {error}"
        return None

    def findings(self) -> Iterator[Finding]:
        """What was counted."""
        yield from self._tally.findings()

    def _decoder(self, key: int) -> Callable[[bytes], object] | None:
        stored = self.type(key)
        cls = None if stored is None else event_class(stored.name)
        try:
            return None if cls is None or stored is None else decode_as(cls, stored)
        except NewerEventError:
            return None

    def _why_not(self, stored: EventType) -> tuple[str, str]:
        if event_class(stored.name) is None:
            return "unknown", f"no class is known for {stored.name!r}: its events were not decoded"
        return "newer", f"{stored.name!r}, schema version {stored.version}, is newer than its class"

    def _count(self, entry: Entry, kind: str, text: str, *, error: bool) -> None:
        self._tally.add(
            Finding(kind, text, is_error=error, version=entry.version, position=entry.position)
        )


def mend(log: Log, stream_id: int) -> bool:
    """Compute a head anew from its events, which have to be whole; whether it was.

    Nobody else writes to the stream meanwhile.
    """
    with log.transaction() as connection:
        query = select(_s.name).where(_s.id == stream_id).with_for_update()
        name = connection.execute(query).scalar()
        query = (
            select(_e.version, _e.recorded_at, types.c.name)
            .join(types, types.c.id == _e.type_id)
            .where(_e.stream_id == stream_id)
        )
        last = connection.execute(query.order_by(_e.version.desc()).limit(1)).first()
        count = select(func.count()).where(_e.stream_id == stream_id).scalar_subquery()
        if name is None or last is None:
            return False
        is_tombstone = last.name == DELETED
        whole = connection.execute(select(count)).scalar_one() == (1 if is_tombstone else last[0])
        if not whole:
            return False
        statement = update(streams).where(_s.id == stream_id, _s.version <= last.version)
        mended = connection.execute(
            statement.values(
                version=last.version,
                recorded_at=last.recorded_at,
                deleted=is_tombstone,
                category=category_of(name),
            )
        )
    return mended.rowcount == 1


def _heads(connection: Connection, after: int, last: int) -> dict[int, Head]:
    columns = [_s[name] for name in Head._fields]
    query = select(*columns).where(and_(_s.id > after, _s.id <= last))
    rows = connection.execute(query.order_by(_s.id).limit(PAGE))
    return {row.id: Head(*row) for row in rows}


def _missing(head: Head, found: int) -> Finding:
    text = (
        f"stream {head.name!r} is at version {head.version} and its events end at {found}: "
        f"{head.version - found:,} events are lost"
    )
    return Finding("lost", text, stream=head.name, version=found + 1)


def _is_metadata(encoded: bytes | None) -> bool:
    if encoded is None:
        return True
    try:
        msgspec.json.decode(encoded, type=dict[str, Any])
    except (msgspec.MsgspecError, ValueError, RecursionError):
        return False
    return True
