"""A ledger of accounts in tables, and what is read of it."""

from __future__ import annotations

from sqlalchemy import CheckConstraint, Column, Integer, String, Table, select, update

from eventstore import Event, EventStore, RecordedEvent, StreamDeleted, TableProjection, on


class Opened(Event, name="rows-opened"):
    owner: str


class Moved(Event, name="rows-moved"):
    amount: int


class Renamed(Event, name="rows-renamed"):
    owner: str


class Ignored(Event, name="rows-ignored"):
    """Nobody handles it."""


class Ledger(TableProjection, name="rows-ledger"):
    accounts = Table(
        "rows_accounts",
        TableProjection.metadata,
        Column("account", String, primary_key=True),
        Column("owner", String, nullable=False),
        Column("balance", Integer, CheckConstraint("balance >= 0"), nullable=False),
    )
    entries = Table(
        "rows_entries",
        TableProjection.metadata,
        Column("position", Integer, primary_key=True),
        Column("amount", Integer, nullable=False),
    )

    @on(Opened)
    def _opened(self, event: Opened, record: RecordedEvent) -> None:
        self.insert(self.accounts, account=record.aggregate_id, owner=event.owner, balance=0)

    @on(Moved)
    def _moved(self, event: Moved, record: RecordedEvent) -> None:
        self.add(self.accounts, record.aggregate_id, balance=event.amount)
        self.insert(self.entries, position=record.position, amount=event.amount)

    @on(Renamed)
    def _renamed(self, event: Renamed, record: RecordedEvent) -> None:
        if event.owner == "poison":
            raise RuntimeError("no such name")
        self.db.execute(
            update(self.accounts)
            .where(self.accounts.c.account == record.aggregate_id)
            .values(owner=event.owner)
        )

    @on(StreamDeleted)
    def _deleted(self, event: StreamDeleted, record: RecordedEvent) -> None:
        self.delete(self.accounts, record.aggregate_id)


def balances(store: EventStore) -> dict[str, int]:
    with store.connect() as db:
        c = Ledger.accounts.c
        return dict(map(tuple, db.execute(select(c.account, c.balance))))


def owners(store: EventStore) -> dict[str, str]:
    with store.connect() as db:
        c = Ledger.accounts.c
        return dict(map(tuple, db.execute(select(c.account, c.owner))))


def opened(store: EventStore, *ids: str) -> None:
    for id in ids:
        store.append(f"rows/{id}", Opened("Ann"))
