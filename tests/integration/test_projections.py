"""Pure projections: the whole log folded into one value, now and as it was."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import UTC, datetime, timedelta

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sqlalchemy import select

from eventstore import (
    Aggregate,
    CorruptEventError,
    DefinitionError,
    Event,
    EventStore,
    Projection,
    RecordedEvent,
    StreamDeleted,
    on,
)
from eventstore.log import tables

NOON = datetime(2024, 3, 14, 12, tzinfo=UTC)


class Counted(Event, name="fold-counted"):
    number: int


class Named(Event, name="fold-named"):
    name: str


class Passed(Event, name="fold-passed"):
    """Nobody handles it."""


class Special(Counted, name="fold-special"):
    """Handled where Counted is."""


class Tally(Aggregate, stream="tally/{id}"):
    @on(Counted)
    def _counted(self, event: Counted) -> None: ...


class Totals(Projection):
    total: int = 0
    by_id: dict[str, int] = {}  # noqa: RUF012 (each instance has its own copy)

    @on(Counted)
    def _counted(self, event: Counted, record: RecordedEvent) -> None:
        self.total += event.number
        self.by_id[record.aggregate_id] = self.by_id.get(record.aggregate_id, 0) + event.number


class Kept(Projection, snapshot_every=10):
    total: int = 0
    names: list[str] = []  # noqa: RUF012 (each instance has its own copy)

    @on(Counted)
    def _counted(self, event: Counted) -> None:
        self.total += event.number

    @on(Named)
    def _named(self, event: Named) -> None:
        self.names.append(event.name)


class Tallies(Projection, categories=[Tally]):
    count: int = 0

    @on(Counted)
    def _counted(self, event: Counted) -> None:
        self.count += 1


class Graves(Projection):
    streams: list[str] = []  # noqa: RUF012 (each instance has its own copy)

    @on(StreamDeleted)
    def _deleted(self, event: StreamDeleted, record: RecordedEvent) -> None:
        self.streams.append(record.stream)


@pytest.fixture
def store(database_url: str) -> Iterator[EventStore]:
    with EventStore(database_url) as opened:
        yield opened


def kept_positions(store: EventStore) -> list[int]:
    with store.connect() as db:
        return list(db.scalars(select(tables.folds.c.position).order_by(tables.folds.c.position)))


def test_a_projection_folds_the_events_of_all_streams(store: EventStore) -> None:
    assert store.project(Totals).total == 0
    store.append("tally/a", [Counted(1), Passed(), Counted(2)])
    last = store.append("other/b", [Special(10)])
    totals = store.project(Totals)
    assert (totals.total, totals.by_id) == (13, {"a": 3, "b": 10})
    assert totals.position == last.position
    assert store.project(Totals) is not totals


def test_a_projection_may_keep_to_categories(store: EventStore) -> None:
    store.append("tally/a", [Counted(1), Counted(2)])
    store.append("other/b", [Counted(3)])
    assert store.project(Tallies).count == 2


def test_a_projection_may_handle_deletions(store: EventStore) -> None:
    store.append("tally/a", Counted(1))
    store.delete_stream("tally/a")
    assert store.project(Graves).streams == ["tally/a"]
    assert store.project(Totals).total == 0


def test_a_projection_may_be_asked_for_the_past(store: EventStore) -> None:
    for hour in range(5):
        at = NOON + timedelta(hours=hour)
        store.append(f"tally/{hour % 2}", Counted(10**hour), recorded_at=at)
    assert store.project(Totals, at=NOON - timedelta(microseconds=1)).total == 0
    assert store.project(Totals, at=NOON).total == 1
    assert store.project(Totals, at=NOON + timedelta(hours=2, minutes=59)).total == 111
    cut = store.cut()
    store.append("tally/9", Counted(5), recorded_at=NOON)  # an import: an old time, a new place
    assert store.project(Totals, at=NOON).total == 6
    assert store.project(Totals, at=cut).total == 11111


def test_several_projections_and_aggregates_are_read_at_one_cut(store: EventStore) -> None:
    store.append("tally/a", Counted(1))
    cut = store.cut()
    store.append("tally/a", [Counted(2), Named("late")])
    assert store.project(Totals, at=cut).total == 1
    assert store.project(Kept, at=cut).names == []
    assert store.load(Tally, "a", at=cut).version == 1


def test_a_long_log_is_folded_whole(store: EventStore) -> None:
    for batch in range(4):
        store.append(f"tally/{batch}", [Counted(1)] * 3_000)
    assert store.project(Totals).total == 12_000


def test_what_was_folded_is_kept_and_only_what_is_new_is_read(store: EventStore) -> None:
    store.append("tally/a", [Counted(1)] * 25)
    assert store.project(Kept).total == 25
    (kept,) = kept_positions(store)
    # What the kept state covers is not looked at again: spoil it.
    with store.engine.begin() as db:
        spoilt = tables.events.update().where(tables.events.c.position <= kept)
        db.execute(spoilt.values(data=b"spoilt"))
    store.append("tally/b", [Counted(100)])
    assert store.project(Kept).total == 125
    with pytest.raises(CorruptEventError):
        store.project(Totals)
    assert store.forget(Kept) == 1
    with pytest.raises(CorruptEventError):
        store.project(Kept)


def test_kept_states_serve_the_past_too(store: EventStore) -> None:
    for hour in range(4):
        at = NOON + timedelta(hours=hour)
        store.append("tally/a", [Counted(1)] * 10, recorded_at=at)
        assert store.project(Kept).total == 10 * (hour + 1)
    assert len(kept_positions(store)) == 4
    for hour in range(4):
        at = NOON + timedelta(hours=hour)
        assert store.project(Kept, at=at).total == 10 * (hour + 1)
        assert store.project(Kept, at=at - timedelta(seconds=1)).total == 10 * hour


def test_an_import_of_old_events_does_not_mislead_a_kept_state(store: EventStore) -> None:
    store.append("tally/a", [Counted(1)] * 10, recorded_at=NOON)
    store.append("tally/b", [Counted(1)] * 10, recorded_at=NOON - timedelta(hours=1))
    assert store.project(Kept).total == 20
    assert store.project(Kept, at=NOON - timedelta(minutes=30)).total == 10
    assert store.project(Kept, at=NOON).total == 20


def test_a_new_version_begins_anew(store: EventStore) -> None:
    store.append("tally/a", [Counted(1)] * 10)

    def defined(number: int, factor: int) -> type[Projection]:
        class Scaled(Projection, name="fold-scaled", snapshot_every=5):
            version = number
            total: int = 0

            @on(Counted)
            def _counted(self, event: Counted) -> None:
                self.total += event.number * factor

        return Scaled

    first = store.project(defined(1, 1))
    assert first.total == 10  # type: ignore[attr-defined]
    # Changed code, by itself, is noticed as well.
    assert store.project(defined(1, 3)).total == 30  # type: ignore[attr-defined]
    assert store.project(defined(2, 3)).total == 30  # type: ignore[attr-defined]
    assert len(kept_positions(store)) == 3
    assert store.forget() == 3


def test_a_fold_without_a_store_is_a_test_of_the_projection() -> None:
    totals = Tallies()
    totals.apply(Counted(1))
    totals.apply(Named("passed over"))
    totals.apply(Special(2))
    assert totals.count == 2
    assert repr(totals) == "<Tallies @0 count=2>"


def test_an_event_that_fails_says_where_it_is(store: EventStore) -> None:
    class Picky(Projection, name="fold-picky"):
        @on(Counted)
        def _counted(self, event: Counted) -> None:
            if event.number < 0:
                raise RuntimeError("negative")

    store.append("tally/a", [Counted(1), Counted(2)])
    bad = store.append("tally/b", [Counted(-1)])
    with pytest.raises(RuntimeError) as caught:
        store.project(Picky)
    (note,) = caught.value.__notes__
    assert f"version 1 of 'tally/b' (position {bad.position})" in note
    with store.engine.begin() as db:
        spoilt = tables.events.update().where(tables.events.c.position == bad.position)
        db.execute(spoilt.values(data=b"{}"))
    with pytest.raises(CorruptEventError) as corrupt:
        store.project(Picky)
    assert (corrupt.value.stream, corrupt.value.position) == ("tally/b", bad.position)


@pytest.mark.parametrize("member", ["position", "version", "apply"])
def test_reserved_names_are_refused(member: str) -> None:
    with pytest.raises(DefinitionError, match=member):
        type(Projection)(
            "Bad", (Projection,), {**BODY, "__annotations__": {member: int}, member: 1}
        )


BODY = {"__module__": __name__, "__qualname__": "Bad"}


def test_a_projection_without_handlers_is_refused(store: EventStore) -> None:
    class Idle(Projection):
        total: int = 0

    with pytest.raises(DefinitionError, match="@on"):
        store.project(Idle)


def test_a_name_must_be_one() -> None:
    with pytest.raises(DefinitionError, match="cannot be the name"):

        class Nameless(Projection, name=""): ...


@settings(max_examples=30, deadline=None)
@given(st.lists(st.tuples(st.sampled_from("ab"), st.integers(-5, 5), st.booleans()), max_size=40))
def test_a_kept_fold_is_a_whole_fold(steps: list[tuple[str, int, bool]]) -> None:
    with EventStore("sqlite://") as store:
        total = 0
        for id, number, look in steps:
            store.append(f"tally/{id}", Counted(number))
            total += number
            if look:
                assert store.project(Kept).total == total
        assert store.project(Kept).total == store.project(Totals).total == total
