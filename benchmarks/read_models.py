"""The read model of the benchmarks, a row an account, as our projections: one written through the
buffered methods, one with a statement for every event."""

from __future__ import annotations

from sqlalchemy import BigInteger, Column, String, Table, insert, update
from workload import AccountOpened, MoneyDeposited, MoneyWithdrawn

from eventstore import RecordedEvent, TableProjection, on


def _table(name: str) -> Table:
    return Table(
        name,
        TableProjection.metadata,
        Column("account", String, primary_key=True),
        Column("owner", String, nullable=False),
        Column("balance", BigInteger, nullable=False),
        Column("entries", BigInteger, nullable=False),
    )


class Balances(TableProjection):
    """Its handlers say what is to be written; the library writes it once a batch."""

    version = 1
    accounts = _table("accounts_buffered")

    @on(AccountOpened)
    def _opened(self, event: AccountOpened, record: RecordedEvent) -> None:
        account = record.aggregate_id
        self.insert(self.accounts, account=account, owner=event.owner, balance=0, entries=0)

    @on(MoneyDeposited)
    def _deposited(self, event: MoneyDeposited, record: RecordedEvent) -> None:
        self.add(self.accounts, record.aggregate_id, balance=event.amount, entries=1)

    @on(MoneyWithdrawn)
    def _withdrawn(self, event: MoneyWithdrawn, record: RecordedEvent) -> None:
        self.add(self.accounts, record.aggregate_id, balance=-event.amount, entries=1)


class ExecutedBalances(TableProjection):
    """Its handlers execute SQL themselves."""

    version = 1
    accounts = _table("accounts_executed")

    @on(AccountOpened)
    def _opened(self, event: AccountOpened, record: RecordedEvent) -> None:
        row = {"account": record.aggregate_id, "owner": event.owner, "balance": 0, "entries": 0}
        self.db.execute(insert(self.accounts).values(row))

    @on(MoneyDeposited)
    def _deposited(self, event: MoneyDeposited, record: RecordedEvent) -> None:
        self._entry(record.aggregate_id, event.amount)

    @on(MoneyWithdrawn)
    def _withdrawn(self, event: MoneyWithdrawn, record: RecordedEvent) -> None:
        self._entry(record.aggregate_id, -event.amount)

    def _entry(self, account: str, amount: int) -> None:
        table = self.accounts
        self.db.execute(
            update(table)
            .where(table.c.account == account)
            .values(balance=table.c.balance + amount, entries=table.c.entries + 1)
        )
