"""A read model's changes as a stream: durable, exactly once, and adding up to the tables."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from datetime import UTC, date, datetime
from decimal import Decimal
from random import Random
from typing import Any
from uuid import UUID

import pytest
from seats import STREAM, Booked, Freed, Poison, Seats, agrees, brief, folded, messages, stored
from sqlalchemy import (
    JSON,
    Boolean,
    Column,
    Date,
    DateTime,
    Float,
    ForeignKey,
    Integer,
    LargeBinary,
    MetaData,
    Numeric,
    String,
    Table,
    Uuid,
    delete,
    insert,
    select,
    text,
    update,
)

from eventstore import (
    DefinitionError,
    Event,
    EventStore,
    InvalidArgumentError,
    RecordedEvent,
    StreamDeletedError,
    TableProjection,
    on,
)
from eventstore.followers.follower import TableFollower
from eventstore.projections.changes import key_text


@pytest.fixture
def file_store(sqlite_url: str) -> Iterator[EventStore]:
    """For what is the same on each database."""
    with EventStore(sqlite_url) as opened:
        yield opened


# --- following -----------------------------------------------------------------------------------


def test_each_changed_row_of_a_transaction_is_told_once(store: EventStore) -> None:
    store.append("told/red", [Booked(1, "Ann"), Booked(2, "Bob"), Booked(1, "Eve"), Freed(2)])
    last = store.append("told/blue", Booked(7, "Zoe"))
    store.catch_up(Seats)
    # Its first batch is of one event.
    first = [("insert", "told_halls", "red", "red", 1)]
    first += [("insert", "told_seats", '["red",1]', "red", 1, "Ann")]
    assert brief(store)[:2] == first
    assert brief(store)[2:] == [
        ("insert", "told_halls", "blue", "blue", 1),
        ("insert", "told_seats", '["blue",7]', "blue", 7, "Zoe"),
        ("update", "told_seats", '["red",1]', "red", 1, "Eve"),
    ]
    assert agrees(store)
    headers = messages(store)[-1]["headers"]
    event = next(store.read("told/blue"))
    assert headers["txid"] == str(last.position)
    assert datetime.fromisoformat(headers["timestamp"]) == event.recorded_at
    record = next(store.read(STREAM))
    assert (record.type, record.schema_version) == ("$json", 1)


def test_rows_go_before_those_that_they_refer_to_and_come_after_them(
    file_store: EventStore,
) -> None:
    store = file_store
    store.append("told/red", Booked(1, "Ann"))
    store.catch_up(Seats)
    store.delete_stream("told/red")
    store.catch_up(Seats)
    assert brief(store)[2:] == [
        ("delete", "told_seats", '["red",1]'),
        ("delete", "told_halls", "red"),
    ]
    assert agrees(store)


def test_what_comes_to_nothing_is_not_told(file_store: EventStore) -> None:
    store = file_store
    store.append("told/red", [Booked(1, "Ann")])
    store.catch_up(Seats)
    told = store.version(STREAM)
    store.append("told/red", [Booked(1, "Ann"), Booked(1, "Ann")])  # the row stays as it is
    store.append("told/red", [Booked(2, "Bob"), Freed(2)])
    store.catch_up(Seats)
    # Batches grow from one event, so the visit may have been seen; its end then was too.
    assert agrees(store)
    assert {key for _, _, key, *_ in brief(store, after=told)} <= {"red", '["red",2]'}
    store.append("told/red", Booked(1, "Ann"))
    told = store.version(STREAM)
    store.catch_up(Seats)
    assert store.version(STREAM) == told


def test_a_log_that_is_quiet_stays_quiet(store: EventStore) -> None:
    with store.runner(Seats):
        for seat in range(5):
            receipt = store.append("told/red", Booked(seat, "Ann"))
        store.wait_for(Seats, receipt.position)
        head = store.head()
        store.wait_for(Seats, head)  # past its own messages
        assert store.head() == head
    assert store.catch_up(Seats) == store.head() == head
    assert agrees(store)


def test_a_reader_of_the_log_follows_the_changes_live(file_store: EventStore) -> None:
    store = file_store
    with store.subscribe(categories=["projections"]) as subscription, store.runner(Seats):
        store.append("told/red", Booked(1, "Ann"))
        record = next(subscription)
    assert json.loads(record.data)["value"] == {"hall": "red", "taken": 1}


def test_what_is_not_committed_is_not_told(
    store: EventStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    store.append("told/red", Booked(1, "Ann"))
    advance = TableFollower._advance

    def fail(self: TableFollower, *args: Any, **options: Any) -> Any:
        advance(self, *args, **options)
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(TableFollower, "_advance", fail)
        with pytest.raises(KeyboardInterrupt):
            store.catch_up(Seats)
    assert (store.version(STREAM), stored(store)) == (0, {})
    store.catch_up(Seats)
    assert store.version(STREAM) == 2
    assert agrees(store)


def test_an_event_that_is_parked_is_told_when_it_is_retried(
    store: EventStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    store.append("told/red", [Booked(1, "Ann"), Poison(), Booked(2, "Bob")])
    store.append("told/blue", [Booked(1, "Eve"), Booked(3, "Eve")])
    store.catch_up(Seats)
    assert len(store.parked(Seats)) == 2
    assert agrees(store)
    assert stored(store)["told_halls", "red"]["taken"] == 1
    monkeypatch.setattr(Seats, "poisonous", False)
    store.retry(Seats)
    store.catch_up(Seats)
    assert store.parked(Seats) == []
    assert stored(store)["told_halls", "red"]["taken"] == 100
    assert agrees(store)


class Counts(TableProjection, name="told-counts", shards=3, changes="projections/told-counts"):
    counts = Table(
        "told_counts",
        TableProjection.metadata,
        Column("name", String, primary_key=True),
        Column("events", Integer, nullable=False),
    )

    @on(Booked)
    def _booked(self, event: Booked, record: RecordedEvent) -> None:
        self.put(self.counts, name=record.aggregate_id, events=record.version)
        if self.get(self.counts, "all") is not None:  # a row that all shards change
            self.add(self.counts, "all", events=1)


def test_shards_share_the_stream_and_each_row_stays_in_order(store: EventStore) -> None:
    store.catch_up(Counts)
    with store.engine.begin() as db:
        db.execute(insert(Counts.counts).values(name="all", events=0))
    store.accept(Counts)  # of which the stream learns too
    with store.runner(Counts):
        for number in range(30):
            receipt = store.append(f"told/{number % 5}", Booked(number, "Ann"))
        store.wait_for(Counts, receipt.position)
    rows = folded(store, "projections/told-counts")
    assert rows == stored(store, Counts.counts)
    assert rows["told_counts", "all"] == {"name": "all", "events": 30}


def test_in_step_changes_are_told_in_the_transaction_of_the_append(
    database_url: str, store: EventStore
) -> None:
    store.append("told/old", Booked(1, "Ann"))
    target = store.engine if database_url == "sqlite://" else database_url
    with EventStore(target, in_step=[Seats]) as store:
        receipt = store.append("told/red", [Booked(1, "Ann"), Booked(1, "Eve")])
        assert messages(store)[-1]["headers"]["txid"] == str(receipt.position)
        told = brief(store)[-2:]
        assert told == [
            ("insert", "told_halls", "red", "red", 1),
            ("insert", "told_seats", '["red",1]', "red", 1, "Eve"),
        ]
        with store.engine.connect() as db:
            store.append("told/red", Booked(2, "Bob"), connection=db)
            db.rollback()
            store.append("told/red", Booked(3, "Bob"), connection=db)
            db.execute(text("SELECT 1 -- not a handler's: UPDATE told_seats"))
            db.commit()
        store.delete_stream("told/old")
        store.rebuild(Seats)
        assert agrees(store)
        assert store.version(STREAM) == 8


def test_appends_in_step_of_many_threads_are_told_in_order(database_url: str) -> None:
    with EventStore(database_url, in_step=[Seats]) as store:

        def book(first: int) -> None:
            for seat in range(first, first + 5):
                store.append("told/red", Booked(seat, "Ann"))

        threads = [threading.Thread(target=book, args=(n * 5,)) for n in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert stored(store)["told_halls", "red"]["taken"] == 20
        assert agrees(store)


class Does(Event, name="told-does"):
    """What a handler is to do, with which row."""

    do: list[tuple[str, str, int]]


class Anything(TableProjection, name="told-anything", changes="projections/told-anything"):
    rows = Table(
        "told_anything",
        TableProjection.metadata,
        Column("id", String, primary_key=True),
        Column("n", Integer, nullable=False, server_default="7"),
        Column("m", Integer),
    )

    @on(Does)
    def _does(self, event: Does) -> None:
        for verb, id, n in event.do:
            if verb == "insert":
                self.insert(self.rows, id=id, m=n)
            elif verb == "put":
                self.put(self.rows, id=id, n=n, m=n)
            elif verb == "add":
                self.add(self.rows, id, n=n)
            elif verb == "update":
                self.update(self.rows, id, m=n)
            elif verb == "delete":
                self.delete(self.rows, id)
            elif verb == "look":
                self.get(self.rows, id)
            else:
                self.db.execute(select(self.rows.c.m))


@pytest.mark.parametrize("seed", range(4))
def test_the_stream_adds_up_to_the_tables_whatever_handlers_do(seed: int) -> None:
    chosen = Random(seed)
    verbs = ["insert", "put", "put", "add", "update", "delete", "look", "read"]
    with EventStore("sqlite://") as store:
        for number in range(4):
            for _ in range(chosen.randrange(1, 12)):  # many of which fail, and are parked
                do = [
                    (chosen.choice(verbs), chosen.choice("abc"), chosen.randrange(3))
                    for _ in range(chosen.randrange(1, 6))
                ]
                store.append(f"told/{chosen.randrange(20)}-{number}", Does(do))
            store.catch_up(Anything)
            stream = "projections/told-anything"
            assert folded(store, stream) == stored(store, Anything.rows)


# --- what is refused -----------------------------------------------------------------------------


def test_a_stream_that_is_not_its_own_is_refused(file_store: EventStore) -> None:
    store = file_store
    store.append(STREAM, Booked(1, "Ann"))
    with pytest.raises(InvalidArgumentError, match="told-booked"):
        store.catch_up(Seats)
    assert store.status() == []


def test_a_stream_that_was_deleted_stops_it_until_it_has_another(file_store: EventStore) -> None:
    store = file_store
    store.append("told/red", Booked(1, "Ann"))
    store.catch_up(Seats)
    store.delete_stream(STREAM)
    store.append("told/red", Booked(2, "Bob"))
    with pytest.raises(StreamDeletedError):
        store.catch_up(Seats)
    assert store.parked(Seats) == []
    assert stored(store)["told_halls", "red"]["taken"] == 1


OTHERS = Table("told_others", MetaData(), Column("id", Integer))


class Direct(TableProjection, name="told-direct", changes="projections/told-direct"):
    rows = Table(
        "told_direct",
        TableProjection.metadata,
        Column("id", Integer, primary_key=True),
        Column("note", String),
    )

    @on(Booked)
    def _booked(self, event: Booked) -> None:
        self.put(self.rows, id=event.seat, note="'; UPDATE told_direct SET")
        assert self.db.scalar(select(self.rows.c.note).with_for_update()) is not None
        self.db.execute(text("SELECT 'DELETE FROM told_direct' -- INSERT INTO told_direct"))
        self.db.execute(insert(OTHERS).from_select(["id"], select(self.rows.c.id)))
        if event.guest == "core":
            self.db.execute(update(self.rows).values(note="x"))
        elif event.guest == "text":
            self.db.execute(text('DELETE  FROM "told_direct"'))
        elif event.guest == "cte" and self.db.dialect.name == "postgresql":
            gone = delete(self.rows).returning(self.rows.c.id).cte()
            self.db.execute(select(gone.c.id))
        elif event.guest != "Ann":
            self.db.exec_driver_sql("INSERT INTO told_direct (id, note) VALUES (8, 'x')")


def test_statements_of_its_own_may_not_change_what_is_told(store: EventStore) -> None:
    with store.engine.begin() as db:
        OTHERS.create(db)
    for guest in ("core", "text", "cte", "driver"):
        store.append(f"told/{guest}", Booked(1, guest))
    store.append("told/good", Booked(2, "Ann"))
    store.catch_up(Direct)
    parked = store.parked(Direct)
    assert [each.stream for each in parked] == ["told/core", "told/text", "told/cte", "told/driver"]
    for each in parked:
        assert each.error is not None
        assert "use insert, put, add, update and delete" in each.error
    assert [m["key"] for m in messages(store, "projections/told-direct")] == ["2"]


def test_what_could_not_be_told_is_refused_when_the_class_is_made() -> None:
    def columns(**options: Any) -> list[Column[Any]]:
        return [Column("id", Integer, **options), Column("up", Integer)]

    def projection(name: str, stream: str, *tables: Table) -> None:
        members: dict[str, Any] = {f"t{i}": table for i, table in enumerate(tables)}
        type(TableProjection)(name, (TableProjection,), members, name=name, changes=stream)

    keyless = Table("told_keyless", TableProjection.metadata, *columns())
    with pytest.raises(DefinitionError, match="primary key"):
        projection("told-keyless", "projections/told-keyless", keyless)
    parent = Table("told_parent", TableProjection.metadata, *columns(primary_key=True))
    child = Table(
        "told_child",
        TableProjection.metadata,
        Column("id", ForeignKey("told_parent.id", ondelete="CASCADE"), primary_key=True),
    )
    with pytest.raises(DefinitionError, match="CASCADE of a foreign key"):
        projection("told-cascade", "projections/told-cascade", parent, child)
    with pytest.raises(DefinitionError, match="control characters"):
        projection("told-name", "projections/\n")
    with pytest.raises(DefinitionError, match="belongs to"):
        projection("told-taken", STREAM)


# --- what is told --------------------------------------------------------------------------------


class Typed(TableProjection, name="told-typed", changes="projections/told-typed"):
    things = Table(
        "told_things",
        TableProjection.metadata,
        Column("id", Uuid, primary_key=True),
        Column("price", Numeric(10, 2)),
        Column("weight", Float),
        Column("made", DateTime(timezone=True)),
        Column("day", Date),
        Column("picture", LargeBinary),
        Column("ready", Boolean),
        Column("more", JSON),
        Column("state", String, server_default="new"),
        Column("unset", String),
    )

    @on(Booked)
    def _booked(self, event: Booked) -> None:
        self.insert(
            self.things,
            id=UUID(int=event.seat),
            price=Decimal("1.5"),
            weight=0.25,
            made=datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC),
            day=date(2026, 1, 2),
            picture=b"\xff\x00",
            ready=True,
            more={"a": [1, None]},
        )


def test_a_row_is_told_as_json(store: EventStore) -> None:
    store.append("told/red", Booked(5, "Ann"))
    store.catch_up(Typed)
    (message,) = messages(store, "projections/told-typed")
    made = message["value"].pop("made")
    assert datetime.fromisoformat(made).replace(tzinfo=UTC) == datetime(2026, 1, 2, 3, 4, 5, 0, UTC)
    assert (message["type"], message["key"]) == ("told_things", str(UUID(int=5)))
    assert message["value"] == {
        "id": str(UUID(int=5)),
        "price": "1.50",
        "weight": 0.25,
        "day": "2026-01-02",
        "picture": "/wA=",
        "ready": True,
        "more": {"a": [1, None]},
        "state": "new",
        "unset": None,
    }
    store.rebuild(Typed)
    assert store.version("projections/told-typed") == 1


def test_no_two_keys_have_the_same_text() -> None:
    assert key_text(["a"]) == "a"
    assert key_text([5]) == "5"
    assert key_text(["a", 1]) == '["a",1]'
    assert key_text(["é", "b"]) == '["é","b"]'
    assert key_text([UUID(int=1)]) == str(UUID(int=1))
    assert key_text([""]) == '""'
    assert key_text(['""']) == r'"\"\""'
    assert key_text(['a","b']) == 'a","b'
    assert key_text(["a,b", "c"]) != key_text(["a", "b,c"])
