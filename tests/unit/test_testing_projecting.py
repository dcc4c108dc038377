"""Projections of given events: what they give, and the very text of what fails."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from textwrap import dedent

import pytest
from sqlalchemy import Column, Integer, String, Table

from eventstore import (
    Aggregate,
    DefinitionError,
    Event,
    HandlerError,
    InvalidArgumentError,
    InvalidEventError,
    InvalidNameError,
    InvalidTimeError,
    Projection,
    RecordedEvent,
    TableProjection,
    context,
    on,
)
from eventstore.testing import memory_store, project

NOON = datetime(2026, 3, 1, 12, tzinfo=UTC)
SECOND = timedelta(seconds=1)


class Added(Event, name="projecting-added"):
    amount: int


class Unhandled(Event, name="projecting-unhandled"):
    pass


class Counter(Aggregate, stream="projecting/{id}/events"):
    pass


class Totals(Projection, name="projecting-totals"):
    total: int = 0

    @on(Added)
    def _added(self, event: Added) -> None:
        self.total += event.amount


class OfCounters(Totals, name="projecting-of-counters", categories=[Counter]):
    pass


class Seen(Projection, name="projecting-seen"):
    records: list[tuple[str, int, int, str, datetime, object]] = []  # noqa: RUF012
    last: str = ""

    @on(Added)
    def _added(self, event: Added, record: RecordedEvent) -> None:
        assert record.event is event
        self.last = str(record.id)
        self.records.append(
            (
                record.stream,
                record.version,
                record.position,
                record.aggregate_id,
                record.recorded_at,
                record.metadata.get("user"),
            )
        )


class Sums(TableProjection, name="projecting-sums"):
    sums = Table(
        "projecting_sums",
        TableProjection.metadata,
        Column("counter", String, primary_key=True),
        Column("at", String, primary_key=True),
        Column("amount", Integer, nullable=False),
    )
    notes = Table("projecting_notes", TableProjection.metadata, Column("note", String))

    @on(Added)
    def _added(self, event: Added, record: RecordedEvent) -> None:
        if event.amount < 0:
            raise ValueError("too small")
        at = record.recorded_at.isoformat()
        self.put(self.sums, counter=record.aggregate_id, at=at, amount=event.amount)
        self.insert(self.notes, note=f"{event.amount}")

    @on(Added, side_effect=True)
    def _tell(self, event: Added) -> None:
        raise AssertionError("side effects do not run")


# --- pure projections ------------------------------------------------------------------------


def test_a_projection_folds_what_it_handles() -> None:
    totals = project(Totals, Added(amount=2), Unhandled(), ("a/b", Added(amount=3)))
    assert totals.total == 5
    assert totals.position == 3
    assert project(Totals).total == 0


def test_records_have_a_place_and_a_time() -> None:
    with context(user="ann"):
        seen = project(
            Seen,
            Added(amount=1),
            ("projecting/x/events", Added(amount=2)),
            ("projecting/x/events", Added(amount=3), NOON),
            ("projecting/x/events", Added(amount=4)),
        )
    start = datetime(2026, 1, 1, tzinfo=UTC)
    assert seen.records == [
        ("test/test", 1, 1, "test", start, "ann"),
        ("projecting/x/events", 1, 2, "x", start + SECOND, "ann"),
        ("projecting/x/events", 2, 3, "x", NOON, "ann"),
        ("projecting/x/events", 3, 4, "x", NOON + SECOND, "ann"),
    ]
    assert len(seen.last) == 36


def test_only_its_categories_are_read() -> None:
    events = [Added(amount=1), ("projecting/x/events", Added(amount=2))]
    assert project(OfCounters, *events).total == 2


@pytest.mark.parametrize("cls", [Totals, OfCounters, Seen])
def test_the_store_gives_the_same(cls: type[Projection]) -> None:
    events = [
        ("projecting/x/events", Added(amount=1), NOON),
        ("projecting/x/events", Added(amount=2), NOON - SECOND),  # raised to the one before
        ("other/y", Added(amount=4), NOON),
    ]
    found = project(cls, *events)
    with memory_store() as store:
        for stream, event, at in events:
            store.append(stream, event, recorded_at=at)
        stored = store.project(cls)
    names = [name for name in vars(cls)["__own_state__"] if name != "last"]
    assert [getattr(found, n) for n in names] == [getattr(stored, n) for n in names]
    assert found.position == stored.position


def test_an_error_of_a_handler_says_where_the_event_is() -> None:
    class Picky(Projection, name="projecting-picky"):
        @on(Added)
        def _added(self, event: Added) -> None:
            raise KeyError(event.amount)

    with pytest.raises(KeyError) as caught:
        project(Picky, Unhandled(), ("a/b", Added(amount=7)))
    assert caught.value.__notes__ == [
        "while handling projecting-added, version 1 of 'a/b' (position 2)"
    ]


def test_events_are_checked_as_a_log_does() -> None:
    with pytest.raises(InvalidEventError):
        project(Totals, Added(amount="1"))  # type: ignore[arg-type]
    with pytest.raises(InvalidNameError):
        project(Totals, ("", Added(amount=1)))
    with pytest.raises(InvalidTimeError):
        project(Totals, ("a", Added(amount=1), datetime(2026, 1, 1)))
    with pytest.raises(InvalidArgumentError, match=r"\(stream, event\)"):
        project(Totals, 5)  # type: ignore[arg-type]


def test_a_projection_that_handles_nothing_is_refused() -> None:
    class Idle(Projection, name="projecting-idle"):
        pass

    with pytest.raises(DefinitionError):
        project(Idle)


# --- tables ----------------------------------------------------------------------------------


def test_a_table_projection_gives_rows() -> None:
    model = project(
        Sums,
        ("projecting/b/events", Added(amount=2), NOON),
        ("projecting/a/events", Added(amount=1), NOON),
    )
    at = NOON.isoformat()
    rows = [
        {"counter": "a", "at": at, "amount": 1},
        {"counter": "b", "at": at, "amount": 2},
    ]
    assert model.rows(Sums.sums) == rows
    model.then(Sums.sums, *rows).then(Sums.sums, *reversed(rows))
    model.then(Sums.notes, {"note": "1"}, {"note": "2"})
    model.rows(Sums.sums).clear()
    assert len(model.rows(Sums.sums)) == 2
    assert repr(model) == "<ReadModel Sums projecting_sums: 2 rows, projecting_notes: 2 rows>"


def test_without_events_tables_are_empty() -> None:
    assert project(Sums).then(Sums.sums).rows(Sums.notes) == []


def test_a_handler_that_fails_names_the_event() -> None:
    with pytest.raises(HandlerError, match="too small") as caught:
        project(Sums, Added(amount=1), ("a/b", Added(amount=-1)))
    assert (caught.value.stream, caught.value.version) == ("a/b", 1)


def test_another_table_is_no_table_of_the_projection() -> None:
    with pytest.raises(InvalidArgumentError, match="projecting_sums, projecting_notes"):
        project(Sums).rows(Table("other", TableProjection.metadata.__class__()))


def test_rows_that_differ_are_shown_by_column() -> None:
    at = NOON.isoformat()
    model = project(
        Sums,
        ("projecting/a/events", Added(amount=1), NOON),
        ("projecting/b/events", Added(amount=2), NOON),
    )
    with pytest.raises(AssertionError) as caught:
        model.then(
            Sums.sums,
            {"counter": "a", "at": at, "amount": 5},
            {"counter": "c", "at": at, "amount": 2},
        )
    assert str(caught.value) == dedent(f"""\
        table 'projecting_sums' of Sums has other rows than expected (- expected, + found):

            counter='a', at='{at}'
        -       amount=5
        +       amount=1
        -   counter='c', at='{at}', amount=2
        +   counter='b', at='{at}', amount=2
        """)


def test_rows_of_a_table_without_a_key_are_shown_whole() -> None:
    model = project(Sums, Added(amount=1), Added(amount=2))
    with pytest.raises(AssertionError) as caught:
        model.then(Sums.notes, {"note": "1"}, {"note": "1"})
    shown = str(caught.value).partition("\n\n")[2]
    assert shown == "    note='1'\n-   note='1'\n+   note='2'\n"
    with pytest.raises(AssertionError, match=r"-   \(no rows\)\n\+   note='1'"):
        project(Sums, Added(amount=1)).then(Sums.notes)
    with pytest.raises(AssertionError, match=r"-   note='1'\n\+   \(no rows\)"):
        project(Sums).then(Sums.notes, {"note": "1"})
