"""A projection's changes, followed by the published StreamDB of `@durable-streams/state`."""

from __future__ import annotations

import contextlib
import json
import threading
import time
from collections.abc import Iterator
from typing import Any

import uvicorn
from nodejs import PACKAGES, PATIENCE, Node
from sqlalchemy import Column, ForeignKey, Integer, PrimaryKeyConstraint, String, Table, select

from eventstore import Event, EventStore, RecordedEvent, StreamDeleted, TableProjection, on
from eventstore.http import DurableStreams
from eventstore.projections.changes import key_text


class Booked(Event, name="http-booked"):
    seat: int
    guest: str


class Freed(Event, name="http-freed"):
    seat: int


class Seats(TableProjection, name="http-seats", changes="projections/seats"):
    halls = Table(
        "http_halls",
        TableProjection.metadata,
        Column("hall", String, primary_key=True),
        Column("taken", Integer, nullable=False),
    )
    seats = Table(
        "http_seats",
        TableProjection.metadata,
        Column("hall", ForeignKey(halls.c.hall), nullable=False),
        Column("seat", Integer, nullable=False),
        Column("guest", String, nullable=False),
        PrimaryKeyConstraint("hall", "seat"),
    )

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

    @on(StreamDeleted)
    def _deleted(self, event: StreamDeleted, record: RecordedEvent) -> None:
        rows = select(self.seats.c.seat).where(self.seats.c.hall == record.aggregate_id)
        for seat in self.db.scalars(rows).all():
            self.delete(self.seats, (record.aggregate_id, seat))
        self.delete(self.halls, record.aggregate_id)


Rows = list[dict[str, Any]]


def tables(store: EventStore) -> dict[str, Rows]:
    """What the reader is to say."""
    with store.connect() as db:
        halls = [dict(row) for row in db.execute(select(Seats.halls)).mappings()]
        seats = [dict(row) for row in db.execute(select(Seats.seats)).mappings()]
    for row in seats:
        row["key"] = key_text([row["hall"], row["seat"]])
    return {"halls": ordered(halls), "seats": ordered(seats)}


def told(line: str) -> dict[str, Rows]:
    try:
        return {name: ordered(rows) for name, rows in json.loads(line).items()}
    except ValueError:
        raise AssertionError(f"the client failed: {line}") from None


def ordered(rows: Rows) -> Rows:
    return sorted(rows, key=lambda row: (row["hall"], row.get("seat")))


@contextlib.contextmanager
def served(store: EventStore) -> Iterator[str]:
    """The store's streams over HTTP, from a thread; the address."""
    app = DurableStreams(store)
    config = uvicorn.Config(app, port=0, log_level="error", timeout_graceful_shutdown=1)
    server = uvicorn.Server(config)
    thread = threading.Thread(target=server.run)
    thread.start()
    try:
        while not server.started and thread.is_alive():
            time.sleep(0.01)
        yield f"http://127.0.0.1:{server.servers[0].sockets[0].getsockname()[1]}"
    finally:
        app.drain()
        server.should_exit = True
        thread.join()


def test_a_stream_db_is_what_the_tables_are_through_a_whole_life(
    node: Node, sqlite_url: str
) -> None:
    with EventStore(sqlite_url) as store, served(store) as server:
        store.catch_up(Seats)
        url = f"{server}/v1/stream/projections/seats"
        run = node.start("changes.mjs", url, cwd=PACKAGES)
        overdue = threading.Timer(PATIENCE, run.kill)
        overdue.start()
        try:

            def seen() -> None:
                """Wait until the reader has the tables as they are."""
                wanted = tables(store)
                assert run.stdout is not None
                assert any(told(line) == wanted for line in run.stdout), "the reader ended"

            seen()  # there is nothing yet
            store.append("hall/red", [Booked(1, "Ann"), Booked(2, "Bob"), Booked(2, "Eve")])
            store.catch_up(Seats)
            seen()
            store.append("hall/red", [Freed(2), Booked(3, "Max")])
            store.append("hall/blue", [Booked(1, "Zoe")])
            store.catch_up(Seats)
            seen()
            store.delete_stream("hall/red")  # its events are gone, so a rebuild has less to go by
            store.append("hall/blue", [Booked(1, "Zoé"), Booked(9, "Kim")])
            store.catch_up(Seats)
            seen()
            with store.engine.begin() as db:
                db.execute(Seats.seats.update().values(guest="nobody"))
                db.execute(Seats.halls.insert().values(hall="green", taken=1))
            store.accept(Seats)
            seen()
            store.rebuild(Seats)
            seen()
        finally:
            overdue.cancel()
            run.kill()
            run.communicate(timeout=PATIENCE)
