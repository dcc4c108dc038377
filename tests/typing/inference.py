"""What a type checker must infer, and what it must report: every `type: ignore` here is needed."""

from typing import assert_type

from eventstore import Aggregate, Event, EventStore, RecordedEvent, Step, on


class ParcelSent(Event):
    weight: int


class ParcelLost(Event):
    reason: str


class Parcel(Aggregate, snapshot_every=10):
    weight: int = 0

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


def inferred(store: EventStore) -> None:
    assert_type(store.load(Parcel, "x"), Parcel)
    assert_type(store.load(Parcel, "x").weight, int)
    assert_type(store.transact(Parcel, "x", Parcel.send, 3), str)
    assert_type(store.transact(Parcel, "x", Parcel.send, weight=3), str)
    assert_type(store.transact_once("key", Parcel, "x", Parcel.send, 3), str | None)
    assert_type(next(store.history(Parcel, "x")), Step[Parcel])
    assert_type(next(store.load_all(Parcel)), Parcel)


def reported(store: EventStore) -> None:
    store.transact(Parcel, "x", Parcel.send, "heavy")  # type: ignore[arg-type]
    store.transact(Parcel, "x", Parcel.send)  # type: ignore[call-arg]
    ParcelSent(weight="heavy")  # type: ignore[arg-type]
    ParcelSent()  # type: ignore[call-arg]
