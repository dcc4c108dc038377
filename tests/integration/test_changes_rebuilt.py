"""What a rebuild changes is told; the past, and a rebuild that fails, tell nothing."""

from __future__ import annotations

from typing import Any

import pytest
from seats import STREAM, Booked, Freed, Seats, agrees, brief, folded, messages, stored
from sqlalchemy import Column, Integer, String, Table, delete, insert, select, update

from eventstore import EventStore, ProjectionChangedError, RecordedEvent, TableProjection, on
from eventstore.followers.rebuild import Rebuild


def test_the_past_tells_nothing(store: EventStore) -> None:
    store.append("told/red", Booked(1, "Ann"))
    store.catch_up(Seats)
    told = store.version(STREAM)
    store.append("told/red", Booked(2, "Bob"))
    with store.as_of(Seats) as db:
        assert db.scalar(select(Seats.halls.c.taken)) == 2
    assert store.version(STREAM) == told


def test_a_rebuild_tells_what_it_changes(store: EventStore) -> None:
    store.append("told/red", [Booked(1, "Ann"), Booked(2, "Bob")])
    store.append("told/blue", Booked(1, "Eve"))
    store.catch_up(Seats)
    told = store.version(STREAM)
    store.rebuild(Seats, verify=True)
    assert store.version(STREAM) == told  # nothing has changed
    with store.engine.begin() as db:  # behind its back, as a handler with a mistake would
        db.execute(update(Seats.seats).where(Seats.seats.c.guest == "Ann").values(guest="Zoe"))
        db.execute(delete(Seats.seats).where(Seats.seats.c.guest == "Bob"))
        db.execute(insert(Seats.halls).values(hall="green", taken=5))
    store.accept(Seats)
    assert agrees(store)
    told = store.version(STREAM)
    store.append("told/red", Booked(3, "Max"))
    progress = store.rebuild(Seats)
    assert sorted(brief(store, after=told)) == [
        ("delete", "told_halls", "green"),
        ("insert", "told_seats", '["red",2]', "red", 2, "Bob"),
        ("insert", "told_seats", '["red",3]', "red", 3, "Max"),
        ("update", "told_halls", "red", "red", 3),
        ("update", "told_seats", '["red",1]', "red", 1, "Ann"),
    ]
    assert messages(store)[-1]["headers"]["txid"] == str(progress.position)
    assert agrees(store)


def test_what_is_appended_during_a_rebuild_is_told_too(
    store: EventStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    store.append("told/red", [Booked(1, "Ann"), Booked(2, "Bob"), Booked(3, "Eve")])
    store.append("told/blue", Booked(1, "Ann"))
    store.catch_up(Seats)
    with store.engine.begin() as db:
        db.execute(update(Seats.seats).where(Seats.seats.c.guest == "Ann").values(guest="Zoe"))
    store.accept(Seats)
    survey, finish = Rebuild._survey, Rebuild._finish

    def surveyed(self: Rebuild, *args: Any) -> None:
        survey(self, *args)
        store.append("told/red", [Freed(2), Booked(3, "Max"), Booked(4, "Kim")])
        store.catch_up(Seats)
        store.append("told/blue", [Freed(1), Booked(2, "Lea")])

    def finished(self: Rebuild, *args: Any) -> Any:
        store.append("told/red", [Freed(3), Booked(5, "Ann")])
        store.catch_up(Seats)  # the new tables must not be behind
        return finish(self, *args)

    monkeypatch.setattr(Rebuild, "_survey", surveyed)
    monkeypatch.setattr(Rebuild, "_finish", finished)
    store.rebuild(Seats)
    assert agrees(store)
    rows = folded(store)
    assert [row["guest"] for (_, key), row in sorted(rows.items()) if key[0] == "["] == [
        "Lea",
        "Ann",
        "Kim",
        "Ann",
    ]


def test_a_rebuild_that_fails_tells_nothing(store: EventStore) -> None:
    store.append("told/red", [Booked(1, "Ann")])
    store.catch_up(Seats)
    with store.engine.begin() as db:
        db.execute(update(Seats.seats).values(guest="Zoe"))
    told, head = store.version(STREAM), store.head()
    with pytest.raises(Exception, match="told_seats"):
        store.rebuild(Seats, verify=True)
    assert (store.version(STREAM), store.head()) == (told, head)


def evolving(version: int, *, changes: str | None, columns: list[Column[Any]]) -> Any:
    """The same projection with other code."""

    def handle(self: Any, event: Booked, record: RecordedEvent) -> None:
        values = {"guest": event.guest, "seat": event.seat, "note": "new"}
        known = {name: values[name] for name in values if name in table.c}
        self.put(table, **known)

    handle.__annotations__ = {"event": Booked, "record": RecordedEvent, "return": None}
    table = Table(f"told_guests_{len(columns)}", TableProjection.metadata, *columns)
    members = {"version": version, "guests": table, "_booked": on(Booked)(handle)}
    members["__module__"] = __name__
    return type(TableProjection)(
        "Evolving", (TableProjection,), members, name="told-evolving", changes=changes
    )


def test_a_rebuild_leads_from_any_tables_to_the_new_ones(store: EventStore) -> None:
    stream = "projections/told-evolving"
    store.append("told/red", [Booked(1, "Ann"), Booked(2, "Bob")])

    def columns(*more: Column[Any]) -> list[Column[Any]]:
        return [Column("guest", String, primary_key=True), Column("seat", Integer), *more]

    store.catch_up(evolving(1, changes=None, columns=columns()))
    # It begins to tell: that is refused until the stream can be whole.
    told = evolving(1, changes=stream, columns=columns())
    with pytest.raises(ProjectionChangedError):
        store.catch_up(told)
    store.accept(told)
    assert folded(store, stream) == stored(store, told.guests)
    assert len(folded(store, stream)) == 2
    # Another table in the place of the old one.
    wider = evolving(2, changes=stream, columns=columns(Column("note", String)))
    store.rebuild(wider)
    assert folded(store, stream) == stored(store, wider.guests)
    store.append("told/red", Booked(3, "Eve"))
    store.catch_up(wider)
    assert folded(store, stream) == stored(store, wider.guests)
    # A stream of another name, for readers that begin anew.
    renamed = evolving(3, changes=f"{stream}-3", columns=columns(Column("note", String)))
    store.rebuild(renamed)
    assert folded(store, f"{stream}-3") == stored(store, renamed.guests)
    assert len(folded(store, f"{stream}-3")) == 3


def test_many_rows_are_told_page_by_page(
    store: EventStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("eventstore.projections.told._PAGE", 3)
    store.append("told/red", [Booked(seat, "Ann") for seat in range(10)])
    store.catch_up(Seats)
    with store.engine.begin() as db:
        db.execute(delete(Seats.seats).where(Seats.seats.c.seat < 5))
    store.accept(Seats)
    assert agrees(store)
    store.rebuild(Seats)
    assert agrees(store)
    assert len(folded(store)) == 11
