"""The public API, end to end.

python tour.py                      # embedded: a SQLite file in a temporary folder
python tour.py postgresql+psycopg://user@host/db      # after: eventstore migrate URL
"""

import sys
import tempfile
from datetime import UTC, datetime
from pathlib import Path
from typing import Self

from eventstore import (
    Aggregate,
    Event,
    EventStore,
    WrongExpectedVersionError,
    on,
)

# --- events: immutable facts, named in the past tense --------------------------------------


class AccountOpened(Event):
    owner: str


class MoneyDeposited(Event):
    amount: int


class MoneyWithdrawn(Event):
    amount: int


# --- an aggregate: annotated attributes are its state, methods are its commands -------------


class Account(Aggregate, snapshot_every=100):
    owner: str = ""
    balance: int = 0

    @classmethod
    def open(cls, id: str, owner: str) -> Self:
        account = cls(id)
        account.record(AccountOpened(owner=owner))
        return account

    def deposit(self, amount: int) -> None:
        if amount <= 0:
            raise ValueError("a deposit must be positive")
        self.record(MoneyDeposited(amount=amount))

    def withdraw(self, amount: int) -> None:
        if amount > self.balance:
            raise ValueError(f"balance is {self.balance}, cannot withdraw {amount}")
        self.record(MoneyWithdrawn(amount=amount))

    @on(AccountOpened)
    def _opened(self, event: AccountOpened) -> None:
        self.owner = event.owner

    @on(MoneyDeposited)
    def _deposited(self, event: MoneyDeposited) -> None:
        self.balance += event.amount

    @on(MoneyWithdrawn)
    def _withdrawn(self, event: MoneyWithdrawn) -> None:
        self.balance -= event.amount


def main(url: str) -> None:
    with EventStore(url) as store:
        # write: whole aggregates, with optimistic concurrency
        alice = Account.open("alice", owner="Alice")
        alice.deposit(100)
        store.save(alice)

        stale = store.load(Account, "alice")
        store.transact(Account, "alice", Account.deposit, 50)  # load, decide, append, retry
        stale.deposit(1)
        try:
            store.save(stale)
        except WrongExpectedVersionError as conflict:
            print(f"conflict on {conflict.stream}: {conflict.expected} is not {conflict.actual}")

        # query state at a past timestamp, or at a version
        then = datetime.now(UTC)
        store.transact(Account, "alice", Account.withdraw, 30)
        assert store.load(Account, "alice").balance == 120
        assert store.load(Account, "alice", at=then).balance == 150
        assert store.load(Account, "alice", version=2).balance == 100
        for step in store.history(Account, "alice"):
            record, account = step.record, step.state
            print(record.version, record.recorded_at, record.event, account.balance)

        # the log itself: one stream, or every stream in one order
        assert [r.version for r in store.read("account/alice")] == [1, 2, 3, 4]
        positions = [r.position for r in store.read_all(categories=["account"])]
        assert positions == sorted(positions)

        # share one transaction with your own tables
        with store.engine.connect() as db:
            bob = Account.open("bob", owner="Bob")
            bob.deposit(5)
            store.save(bob, connection=db)
            db.rollback()
        assert not store.exists(Account, "bob")
    print("tour complete")


if __name__ == "__main__":
    if len(sys.argv) > 1:
        main(sys.argv[1])
    else:
        with tempfile.TemporaryDirectory() as folder:
            main(f"sqlite:///{Path(folder) / 'bank.db'}")
