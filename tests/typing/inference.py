"""What a type checker must infer, and what it must report.

mypy and pyright both read this file; nothing runs it. Every `type: ignore` is needed by both: it
stands where each of them must report a mistake.
"""

# pyright: strict, reportUnnecessaryTypeIgnoreComment=true, reportPrivateUsage=false

from collections.abc import AsyncIterator
from datetime import datetime
from typing import assert_type

from eventstore import (
    Aggregate,
    Cut,
    Event,
    EventHandler,
    EventStore,
    Projection,
    Receipt,
    RecordedEvent,
    Step,
    TableProjection,
    on,
)
from eventstore.aio import AsyncEventStore, AsyncSubscription
from eventstore.testing import Given, Outcome, ReadModel, given, project, when


class ParcelSent(Event):
    weight: int


class ParcelLost(Event):
    reason: str


# --- declarations --------------------------------------------------------------------------------


class Parcel(Aggregate, snapshot_every=10):
    weight: int = 0

    @classmethod
    def post(cls, id: str, *, weight: int) -> "Parcel":
        parcel = cls(id)
        parcel.send(weight)
        return parcel

    def send(self, weight: int) -> str:
        self.record(ParcelSent(weight=weight))
        return "sent"

    @on(ParcelSent)
    def _sent(self, event: ParcelSent) -> None:
        self.weight = event.weight

    @on(ParcelLost)  # type: ignore[arg-type]
    def _lost(self, event: ParcelSent) -> None: ...


class Fine(Aggregate):
    @on(ParcelSent)
    @on(ParcelLost)
    def _either(self, event: ParcelSent | ParcelLost) -> None: ...

    @on(ParcelSent)
    def _with_record(self, event: ParcelSent, record: RecordedEvent) -> None: ...

    @on(ParcelSent)
    def _of_any(self, event: Event) -> None: ...


class Totals(Projection):
    weight: int = 0

    @on(ParcelSent)
    def _sent(self, event: ParcelSent, record: RecordedEvent) -> None:
        self.weight += event.weight

    @on(ParcelLost)  # type: ignore[arg-type]
    def _lost(self, event: ParcelSent) -> None: ...

    @on(ParcelLost)  # type: ignore[arg-type]
    def _lost_with_record(self, event: ParcelSent, record: RecordedEvent) -> None: ...


class Parcels(TableProjection):
    @on(ParcelSent)
    def _sent(self, event: ParcelSent) -> None: ...

    @on(ParcelSent, side_effect=True)
    def _tell(self, event: ParcelSent, record: RecordedEvent) -> None: ...

    @on(ParcelLost)  # type: ignore[arg-type]
    def _lost(self, event: ParcelSent) -> None: ...

    @on(ParcelLost, side_effect=True)  # type: ignore[arg-type]
    def _tell_of_another(self, event: ParcelSent, record: RecordedEvent) -> None: ...


class Search(EventHandler):
    @on(ParcelSent)
    def _sent(self, event: ParcelSent, record: RecordedEvent) -> None:
        assert_type(self.store, EventStore)

    @on(ParcelLost)  # type: ignore[arg-type]
    def _lost(self, event: ParcelSent, record: RecordedEvent) -> None: ...


def events() -> None:
    assert_type(ParcelSent(weight=3), ParcelSent)
    assert_type(ParcelSent(weight=3).weight, int)
    ParcelSent(weight="heavy")  # type: ignore[arg-type]
    ParcelSent()  # type: ignore[call-arg]
    ParcelSent(weight=3, colour="red")  # type: ignore[call-arg]
    ParcelSent(weight=3).weight = 4  # type: ignore[misc]


# --- the store -----------------------------------------------------------------------------------


def inferred(store: EventStore, then: datetime, cut: Cut) -> None:
    assert_type(store.load(Parcel, "x"), Parcel)
    assert_type(store.load(Parcel, "x").weight, int)
    assert_type(store.load(Parcel, "x", at=then), Parcel)
    assert_type(store.load(Parcel, "x", at=cut), Parcel)
    assert_type(store.fork(Parcel, "x", "y", at=then), Parcel)
    assert_type(store.transact(Parcel, "x", Parcel.send, 3), str)
    assert_type(store.transact(Parcel, "x", Parcel.send, weight=3), str)
    assert_type(store.transact(Parcel, "x", lambda parcel: parcel.weight), int)
    assert_type(store.transact_once("key", Parcel, "x", Parcel.send, 3), str | None)
    assert_type(next(store.history(Parcel, "x")), Step[Parcel])
    assert_type(next(store.load_all(Parcel)), Parcel)
    assert_type(next(store.read("parcel/x")), RecordedEvent)
    assert_type(store.append("parcel/x", ParcelSent(weight=3)), Receipt)
    assert_type(store.project(Totals), Totals)
    assert_type(store.project(Totals, at=then).weight, int)


def reported(store: EventStore) -> None:
    store.transact(Parcel, "x", Parcel.send, "heavy")  # type: ignore[arg-type]
    store.transact(Parcel, "x", Parcel.send, weight="heavy")  # type: ignore[arg-type]
    store.transact(Parcel, "x", Parcel.send)  # type: ignore[call-arg]
    store.transact(Parcel, "x", Parcel.send, 3, colour="red")  # type: ignore[call-arg]
    store.transact(Fine, "x", Parcel.send, 3)  # type: ignore[misc]
    store.transact_once("key", Parcel, "x", Parcel.send, "heavy")  # type: ignore[arg-type]
    store.load(ParcelSent, "x")  # type: ignore[type-var]
    store.load(Parcel, "x", at="yesterday")  # type: ignore[arg-type]
    store.project(Parcel)  # type: ignore[type-var]


# --- the same, awaited ---------------------------------------------------------------------------


async def awaited(store: AsyncEventStore, then: datetime) -> None:
    assert_type(await store.load(Parcel, "x"), Parcel)
    assert_type(await store.fork(Parcel, "x", "y", version=3), Parcel)
    assert_type((await store.load(Parcel, "x", at=then)).weight, int)
    assert_type(await store.transact(Parcel, "x", Parcel.send, 3), str)
    assert_type(await store.transact(Parcel, "x", Parcel.send, weight=3), str)
    assert_type(await store.transact_once("key", Parcel, "x", Parcel.send, 3), str | None)
    assert_type(await store.append("parcel/x", ParcelSent(weight=3)), Receipt)
    assert_type(await store.project(Totals), Totals)
    assert_type(store.read("parcel/x"), AsyncIterator[RecordedEvent])
    async for record in store.read("parcel/x", backwards=True):
        assert_type(record, RecordedEvent)
    async for parcel in store.load_all(Parcel, at=then):
        assert_type(parcel, Parcel)
    async for step in store.history(Parcel, "x"):
        assert_type(step, Step[Parcel])
    async with store.subscribe(after=3, types=[ParcelSent]) as subscription:
        assert_type(subscription, AsyncSubscription)
        async for record in subscription:
            assert_type(record, RecordedEvent)
    async with AsyncEventStore("sqlite://", threads=2, cache=10) as opened:
        assert_type(opened, AsyncEventStore)


async def reported_when_awaited(store: AsyncEventStore) -> None:
    await store.transact(Parcel, "x", Parcel.send, "heavy")  # type: ignore[arg-type]
    await store.transact(Parcel, "x", Parcel.send, weight="heavy")  # type: ignore[arg-type]
    await store.transact(Parcel, "x", Parcel.send)  # type: ignore[call-arg]
    await store.transact(Fine, "x", Parcel.send, 3)  # type: ignore[misc]
    await store.load(ParcelSent, "x")  # type: ignore[type-var]
    await store.load(Parcel, "x", at="yesterday")  # type: ignore[arg-type]
    await store.project(Parcel)  # type: ignore[type-var]
    await store.read("parcel/x")  # type: ignore[misc]
    for _ in store.read("parcel/x"):  # type: ignore[attr-defined]
        pass
    store.subscribe(after=1.5)  # type: ignore[arg-type]
    AsyncEventStore("sqlite://", colour="red")  # type: ignore[call-arg]


# --- the testing kit -----------------------------------------------------------------------------


def in_tests() -> None:
    assert_type(given(Parcel, ParcelSent(weight=3)), Given[Parcel])
    assert_type(given(Parcel).when(Parcel.send, 3), Outcome[Parcel, str])
    assert_type(given(Parcel).when(Parcel.send, 3).result, str)
    assert_type(given(Parcel).when(Parcel.send, weight=3).then().aggregate, Parcel)
    assert_type(when(Parcel.post, "x", weight=3).aggregate, Parcel)
    assert_type(when(Parcel.post, "x", weight=3).result, Parcel)
    assert_type(project(Totals, ParcelSent(weight=3)), Totals)
    assert_type(project(Totals, ("parcel/x", ParcelSent(weight=3))).weight, int)
    assert_type(project(Parcels, ParcelSent(weight=3)), ReadModel)


def reported_in_tests() -> None:
    given(ParcelSent)  # type: ignore[type-var]
    given(Parcel, Parcel("x"))  # type: ignore[arg-type]
    given(Parcel).when(Parcel.send, "heavy")  # type: ignore[arg-type]
    given(Parcel).when(Parcel.send, weight="heavy")  # type: ignore[arg-type]
    given(Parcel).when(Parcel.send)  # type: ignore[call-arg]
    given(Fine).when(Parcel.send, 3)  # type: ignore[arg-type]
    given(Parcel).when(Parcel.send, 3).then("sent")  # type: ignore[arg-type]
    given(Parcel).when(Parcel.send, 3).raises("too heavy")  # type: ignore[arg-type]
    when(Parcel.post, "x", weight="heavy")  # type: ignore[arg-type]
    when(Parcel.post, "x")  # type: ignore[call-arg]
    project(Totals, Parcel("x"))  # type: ignore[call-overload]
    project(Parcel, ParcelSent(weight=3))  # type: ignore[type-var]
