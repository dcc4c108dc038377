"""What the killed processes work on: accounts, their read models, and a plain model of all that."""

from __future__ import annotations

import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any, NamedTuple

from sqlalchemy import Column, ForeignKey, Index, Integer, String, Table, UniqueConstraint

from eventstore import (
    Aggregate,
    Event,
    EventHandler,
    Projection,
    RecordedEvent,
    StreamDeleted,
    TableProjection,
    on,
)

ACCOUNTS = "fault-account"
NOTES = "fault-note"
KINDS = ("cash", "debt", "gold")


class Opened(Event, name="fault-opened"):
    kind: str


class Added(Event, name="fault-added"):
    kind: str
    amount: int


class Flagged(Event, name="fault-flagged"):
    reason: str


class Noted(Event, name="fault-noted"):
    source: str


class Notebook(Aggregate, stream="fault-note/{id}"):
    sources: int = 0

    def note(self, source: str) -> None:
        self.record(Noted(source=source))

    @on(Noted)
    def _noted(self, event: Noted) -> None:
        self.sources += 1


class Marks:
    """Lines in a file, which outlive whoever writes them: what was done outside of the database."""

    def __init__(self, path: Path) -> None:
        self._path = path
        path.touch()

    def add(self, *words: object) -> None:
        file = os.open(self._path, os.O_WRONLY | os.O_APPEND)
        os.write(file, " ".join(map(str, words)).encode() + b"\n")
        os.close(file)

    def all(self) -> list[list[str]]:
        return [line.split() for line in self._path.read_text().splitlines()]


class Ledger(TableProjection, name="fault-ledger", categories=[ACCOUNTS]):
    """Two tables that refer to each other, with indexes and constraints that have names."""

    kinds = Table(
        "fault_kinds",
        TableProjection.metadata,
        Column("kind", String(20), primary_key=True),
        Column("amount", Integer, nullable=False, default=0),
        Column("events", Integer, nullable=False, default=0),
    )
    accounts = Table(
        "fault_accounts",
        TableProjection.metadata,
        Column("account", String(40), primary_key=True),
        Column("kind", ForeignKey("fault_kinds.kind", name="fault_fk"), nullable=False),
        Column("amount", Integer, nullable=False),
        Column("events", Integer, nullable=False),
        Column("opened_at", Integer, nullable=False, index=True),
        UniqueConstraint("opened_at", name="fault_opened_once"),
        Index("fault_by_kind", "kind", "amount"),
    )
    marks: Marks

    @on(Opened)
    def _opened(self, event: Opened, record: RecordedEvent) -> None:
        self.put(self.kinds, kind=event.kind)
        self.add(self.kinds, event.kind, events=1)
        self.insert(
            self.accounts,
            account=record.aggregate_id,
            kind=event.kind,
            amount=0,
            events=1,
            opened_at=record.position,
        )

    @on(Added)
    def _added(self, event: Added, record: RecordedEvent) -> None:
        self.add(self.kinds, event.kind, amount=event.amount, events=1)
        self.add(self.accounts, record.aggregate_id, amount=event.amount, events=1)

    @on(StreamDeleted)
    def _deleted(self, event: StreamDeleted, record: RecordedEvent) -> None:
        account = self.get(self.accounts, record.aggregate_id)
        if account is None:  # its events were erased before they were read
            return
        self.add(self.kinds, account["kind"], amount=-account["amount"], events=-account["events"])
        self.delete(self.accounts, record.aggregate_id)

    @on(Added, side_effect=True)
    def _mark(self, event: Added, record: RecordedEvent) -> None:
        self.marks.add("effect", record.id)


class Shares(TableProjection, name="fault-shares", categories=[ACCOUNTS], shards=3):
    """Worked on in three parts, each of which adds to the same few rows."""

    totals = Table(
        "fault_totals",
        TableProjection.metadata,
        Column("kind", String(20), primary_key=True),
        Column("amount", Integer, nullable=False, default=0),
        Column("events", Integer, nullable=False, default=0),
    )
    holders = Table(
        "fault_holders",
        TableProjection.metadata,
        Column("account", String(40), primary_key=True),
        Column("kind", String(20), nullable=False, index=True),
        Column("amount", Integer, nullable=False),
        Column("events", Integer, nullable=False),
    )

    @on(Opened)
    def _opened(self, event: Opened, record: RecordedEvent) -> None:
        self.put(self.totals, kind=event.kind)
        self.add(self.totals, event.kind, events=1)
        self.insert(self.holders, account=record.aggregate_id, kind=event.kind, amount=0, events=1)

    @on(Added)
    def _added(self, event: Added, record: RecordedEvent) -> None:
        self.add(self.totals, event.kind, amount=event.amount, events=1)
        self.add(self.holders, record.aggregate_id, amount=event.amount, events=1)

    @on(StreamDeleted)
    def _deleted(self, event: StreamDeleted, record: RecordedEvent) -> None:
        holder = self.get(self.holders, record.aggregate_id)
        if holder is None:
            return
        self.add(self.totals, holder["kind"], amount=-holder["amount"], events=-holder["events"])
        self.delete(self.holders, record.aggregate_id)


class Tally(TableProjection, name="fault-tally", categories=[ACCOUNTS]):
    """Runs in step with appends, where it runs at all."""

    entries = Table(
        "fault_entries",
        TableProjection.metadata,
        Column("account", String(40), primary_key=True),
        Column("kind", String(20), nullable=False, index=True),
        Column("amount", Integer, nullable=False),
        Column("events", Integer, nullable=False),
    )

    @on(Opened)
    def _opened(self, event: Opened, record: RecordedEvent) -> None:
        self.insert(self.entries, account=record.aggregate_id, kind=event.kind, amount=0, events=1)

    @on(Added)
    def _added(self, event: Added, record: RecordedEvent) -> None:
        self.add(self.entries, record.aggregate_id, amount=event.amount, events=1)

    @on(StreamDeleted)
    def _deleted(self, event: StreamDeleted, record: RecordedEvent) -> None:
        self.delete(self.entries, record.aggregate_id)


class Notes(EventHandler, name="fault-notes", categories=[ACCOUNTS]):
    """Is called at least once for each event, and has its effect exactly once."""

    marks: Marks

    @on(Opened)
    def _opened(self, event: Opened, record: RecordedEvent) -> None:
        self.marks.add("call", record.id)
        source = str(record.id)
        stream = f"{NOTES}/{record.aggregate_id}"
        self.store.append(stream, Noted(source=source), idempotency_key=f"note {source}")

    @on(Flagged)
    def _flagged(self, event: Flagged, record: RecordedEvent) -> None:
        self.marks.add("call", record.id)
        source, id = str(record.id), record.aggregate_id
        self.store.transact_once(f"note {source}", Notebook, id, Notebook.note, source)


class Totals(Projection, name="fault-totals", categories=[ACCOUNTS], snapshot_every=40):
    amounts: dict[str, int] = {}  # noqa: RUF012  each instance has its own

    @on(Opened)
    def _opened(self, event: Opened, record: RecordedEvent) -> None:
        self.amounts[record.aggregate_id] = 0

    @on(Added)
    def _added(self, event: Added, record: RecordedEvent) -> None:
        self.amounts[record.aggregate_id] += event.amount

    @on(StreamDeleted)
    def _deleted(self, event: StreamDeleted, record: RecordedEvent) -> None:
        self.amounts.pop(record.aggregate_id, None)


class Model(NamedTuple):
    """What the log adds up to, by plain Python."""

    #: kind, amount and count of events of each account, and the position that opened it.
    accounts: dict[str, tuple[str, int, int, int]]
    #: amount and count of events.
    kinds: dict[str, tuple[int, int]]
    #: The ids of the events that ask for a note, and of those that have one.
    to_note: list[str]
    noted: list[str]
    #: Position and id of each amount.
    added: list[tuple[int, str]]


def modelled(records: Iterable[RecordedEvent]) -> Model:
    """The fold of the whole log. Nothing of the library folds here."""
    accounts: dict[str, tuple[str, int, int, int]] = {}
    to_note: list[str] = []
    noted: list[str] = []
    added: list[tuple[int, str]] = []
    for record in records:
        category, _, id = record.stream.partition("/")
        event: Any = record.event
        if category == NOTES:
            noted.append(event.source)
        elif record.type == "fault-opened":
            accounts[id] = (event.kind, 0, 1, record.position)
            to_note.append(str(record.id))
        elif record.type == "fault-added":
            kind, amount, events, opened = accounts[id]
            accounts[id] = (kind, amount + event.amount, events + 1, opened)
            added.append((record.position, str(record.id)))
        elif record.type == "fault-flagged":
            to_note.append(str(record.id))
        elif record.type == "$deleted":
            assert id not in accounts  # its events are erased with it
    kinds = {}
    for name in KINDS:
        of_kind = [entry for entry in accounts.values() if entry[0] == name]
        kinds[name] = (sum(entry[1] for entry in of_kind), sum(entry[2] for entry in of_kind))
    return Model(accounts, kinds, to_note, noted, added)
