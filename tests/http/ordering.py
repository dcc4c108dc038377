"""The orders of the tests here: aggregates whose streams are read and written over HTTP."""

from __future__ import annotations

from eventstore import Aggregate, Event, on


class OrderCreated(Event):
    customer: str


class ItemAdded(Event):
    sku: str
    quantity: int


class OrderPaid(Event):
    pass


class Order(Aggregate, stream="orders/{id}/events"):
    customer: str = ""
    items: dict[str, int] = {}  # noqa: RUF012 (each order has a copy)
    paid: bool = False

    def create(self, customer: str) -> None:
        self.record(OrderCreated(customer=customer))

    def add(self, sku: str, quantity: int) -> None:
        self.record(ItemAdded(sku=sku, quantity=quantity))

    def pay(self) -> None:
        self.record(OrderPaid())

    @on(OrderCreated)
    def _created(self, event: OrderCreated) -> None:
        self.customer = event.customer

    @on(ItemAdded)
    def _added(self, event: ItemAdded) -> None:
        self.items[event.sku] = self.items.get(event.sku, 0) + event.quantity

    @on(OrderPaid)
    def _paid(self, event: OrderPaid) -> None:
        self.paid = True
