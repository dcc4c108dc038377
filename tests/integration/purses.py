"""Purses that money is put into, and letters: the aggregates of several tests here."""

from __future__ import annotations

from eventstore import Aggregate, Event, EventStore, on


class Deposited(Event, name="store-deposited"):
    amount: int


class Noted(Event, name="store-noted"):
    text: str


class Purse(Aggregate, stream="store-purse/{id}", snapshot_every=3):
    balance: int = 0
    notes: list[str] = []  # noqa: RUF012 (each instance has its own copy)

    def deposit(self, amount: int, *, times: int = 1) -> int:
        if amount <= 0:
            raise ValueError("a deposit must be positive")
        for _ in range(times):
            self.record(Deposited(amount))
        return self.balance

    def note(self, text: str) -> None:
        self.record(Noted(text))

    def look(self) -> int:
        return self.balance

    @on(Deposited)
    def _deposited(self, event: Deposited) -> None:
        self.balance += event.amount

    @on(Noted)
    def _noted(self, event: Noted) -> None:
        self.notes.append(event.text)


class Letter(Aggregate, stream="store-letters/{id}/events"):
    text: str = ""

    @on(Noted)
    def _noted(self, event: Noted) -> None:
        self.text = event.text


def purse(id: str, *amounts: int) -> Purse:
    made = Purse(id)
    for amount in amounts:
        made.deposit(amount)
    return made


def amounts(store: EventStore, stream: str) -> list[int]:
    return [r.event.amount for r in store.read(stream) if isinstance(r.event, Deposited)]
