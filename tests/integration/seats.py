"""Seats in halls, whose changes are told; and the stream of them, as a reader has it."""

from __future__ import annotations

import json
from typing import Any

from sqlalchemy import Column, ForeignKey, Integer, PrimaryKeyConstraint, String, Table, select

from eventstore import Event, EventStore, RecordedEvent, StreamDeleted, TableProjection, on
from eventstore.projections.changes import key_text

STREAM = "projections/told-seats"


class Booked(Event, name="told-booked"):
    seat: int
    guest: str


class Freed(Event, name="told-freed"):
    seat: int


class Poison(Event, name="told-poison"):
    harmful: bool = True


class Seats(TableProjection, name="told-seats", changes=STREAM):
    halls = Table(
        "told_halls",
        TableProjection.metadata,
        Column("hall", String, primary_key=True),
        Column("taken", Integer, nullable=False),
    )
    seats = Table(
        "told_seats",
        TableProjection.metadata,
        Column("hall", ForeignKey(halls.c.hall), nullable=False),
        Column("seat", Integer, nullable=False),
        Column("guest", String, nullable=False),
        PrimaryKeyConstraint("hall", "seat"),
    )

    poisonous = True

    @on(Booked)
    def _booked(self, event: Booked, record: RecordedEvent) -> None:
        hall = record.aggregate_id
        if self.get(self.halls, hall) is None:
            self.insert(self.halls, hall=hall, taken=0)
        if self.get(self.seats, (hall, event.seat)) is None:
            self.add(self.halls, hall, taken=1)
        self.put(self.seats, hall=hall, seat=event.seat, guest=event.guest)

    @on(Freed)
    def _freed(self, event: Freed, record: RecordedEvent) -> None:
        self.delete(self.seats, (record.aggregate_id, event.seat))
        self.add(self.halls, record.aggregate_id, taken=-1)

    @on(Poison)
    def _poison(self, event: Poison, record: RecordedEvent) -> None:
        self.put(self.halls, hall=record.aggregate_id, taken=99)
        if self.poisonous:
            raise RuntimeError("poison")

    @on(StreamDeleted)
    def _deleted(self, event: StreamDeleted, record: RecordedEvent) -> None:
        hall = record.aggregate_id
        rows = select(self.seats.c.seat).where(self.seats.c.hall == hall)
        for seat in self.db.scalars(rows).all():
            self.delete(self.seats, (hall, seat))
        self.delete(self.halls, hall)


def messages(store: EventStore, stream: str = STREAM, after: int = 0) -> list[dict[str, Any]]:
    return [json.loads(record.data) for record in store.read(stream, after=after)]


def brief(store: EventStore, stream: str = STREAM, after: int = 0) -> list[tuple[Any, ...]]:
    return [
        (m["headers"]["operation"], m["type"], m["key"], *m.get("value", {}).values())
        for m in messages(store, stream, after)
    ]


def folded(store: EventStore, stream: str = STREAM) -> dict[tuple[str, str], Any]:
    """The rows as a reader of the stream has them. Each operation has to fit what was before."""
    rows: dict[tuple[str, str], Any] = {}
    for message in messages(store, stream):
        place, operation = (message["type"], message["key"]), message["headers"]["operation"]
        assert (place in rows) == (operation != "insert"), message
        if operation == "delete":
            assert "value" not in message
            del rows[place]
        else:
            assert rows.get(place) != message["value"], "nothing has changed"
            rows[place] = message["value"]
    return rows


def stored(store: EventStore, *tables: Table) -> dict[tuple[str, str], Any]:
    rows = {}
    with store.connect() as db:
        for table in tables or (Seats.halls, Seats.seats):
            for row in db.execute(select(table)).mappings():
                key = key_text([row[column.key] for column in table.primary_key])
                rows[table.name, key] = dict(row)
    return rows


def agrees(store: EventStore) -> bool:
    assert folded(store) == stored(store)
    return True
