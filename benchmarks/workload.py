"""The workload: the events of a bank account, about 200 bytes of JSON each, and their aggregate.

Every contender writes these events and ends up with this state.
"""

from __future__ import annotations

from collections.abc import Iterator
from random import Random
from typing import Final

from eventstore import Aggregate, Event, on


class AccountOpened(Event):
    owner: str
    iban: str
    currency: str


class MoneyDeposited(Event):
    amount: int
    currency: str
    payer: str
    channel: str
    reference: str
    note: str


class MoneyWithdrawn(Event):
    amount: int
    currency: str
    payee: str
    channel: str
    reference: str
    note: str


#: What every deposit says beside its amount.
DEPOSIT: Final = {
    "currency": "EUR",
    "payer": "DE89 3704 0044 0532 0130 00",
    "channel": "instant transfer",
    "reference": "INV-2024-000417",
    "note": "Invoice of 14 March, second reminder, thank you",
}


def deposited(amount: int) -> MoneyDeposited:
    return MoneyDeposited(amount=amount, **DEPOSIT)


def opened() -> AccountOpened:
    return AccountOpened(owner="Alice Example", iban="GB82 WEST 1234 5698 7654 32", currency="EUR")


#: How many events an account gets at a time.
VISIT: Final = 5


def turns(accounts: int, length: int) -> Iterator[tuple[int, list[int]]]:
    """How so many accounts are filled side by side: turn by turn, their version before it, and
    their numbers in the order in which they are visited, which is always another one."""
    order = Random(1)
    for version in range(0, length, VISIT):
        yield version, order.sample(range(accounts), accounts)


def visit(version: int) -> list[Event]:
    """What is new on a visit to an account that is at that version."""
    first = deposited(1) if version else opened()
    return [first, *(deposited(1) for _ in range(VISIT - 1))]


class Account(Aggregate):
    owner: str = ""
    balance: int = 0
    entries: int = 0

    def open(self) -> None:
        self.record(opened())

    def deposit(self, amount: int) -> None:
        if amount <= 0:
            raise ValueError("a deposit must be positive")
        self.record(deposited(amount))

    @on(AccountOpened)
    def _opened(self, event: AccountOpened) -> None:
        self.owner = event.owner

    @on(MoneyDeposited)
    def _deposited(self, event: MoneyDeposited) -> None:
        self.balance += event.amount
        self.entries += 1

    @on(MoneyWithdrawn)
    def _withdrawn(self, event: MoneyWithdrawn) -> None:
        self.balance -= event.amount
        self.entries += 1


class WatchedAccount(Account, snapshot_every=100):
    """The same with snapshots."""
