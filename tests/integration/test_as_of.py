"""The past of a read model: tables as they were, and nothing that is done to them stays."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from sqlalchemy import (
    Column,
    Connection,
    ForeignKey,
    Identity,
    Integer,
    String,
    Table,
    func,
    insert,
    inspect,
    select,
    text,
)
from sqlalchemy.exc import IntegrityError
from sqlalchemy.orm import Session

from eventstore import (
    Cut,
    Event,
    EventStore,
    HandlerError,
    InvalidTimeError,
    RecordedEvent,
    TableProjection,
    on,
)
from eventstore.log.followers import Followers

NOON = datetime(2026, 3, 1, 12, 0, 0, 500_000, tzinfo=UTC)
MICROSECOND = timedelta(microseconds=1)


class Joined(Event, name="past-joined"):
    town: str


class Moved(Event, name="past-moved"):
    town: str


class Members(TableProjection, name="past-members"):
    members = Table(
        "past_members",
        TableProjection.metadata,
        Column("member", String, primary_key=True),
        Column("town", String, nullable=False, index=True),
    )
    moves = Table(
        "past_moves",
        TableProjection.metadata,
        Column("id", Integer, Identity(), primary_key=True),
        Column("member", ForeignKey("past_members.member"), nullable=False),
    )

    @on(Joined)
    def _joined(self, event: Joined, record: RecordedEvent) -> None:
        self.insert(self.members, member=record.aggregate_id, town=event.town)

    @on(Moved)
    def _moved(self, event: Moved, record: RecordedEvent) -> None:
        if event.town == "nowhere":
            raise RuntimeError("no such town")
        self.update(self.members, record.aggregate_id, town=event.town)
        self.db.execute(insert(self.moves).values(member=record.aggregate_id))


class Clock:
    """A clock that shows what it is set to."""

    def __init__(self) -> None:
        self.time = NOON

    def __call__(self) -> datetime:
        return self.time

    def step(self, **by: float) -> datetime:
        self.time += timedelta(**by)
        return self.time


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def store(database_url: str, clock: Clock) -> Iterator[EventStore]:
    with EventStore(database_url, clock=clock) as opened:
        yield opened


def towns(db: Connection) -> dict[str, str]:
    c = Members.members.c
    return dict(map(tuple, db.execute(select(c.member, c.town))))


def living(store: EventStore) -> dict[str, str]:
    with store.connect() as db:
        return towns(db)


def then(store: EventStore, at: datetime | Cut | None) -> dict[str, str]:
    with store.as_of(Members, at=at) as db:
        return towns(db)


def test_a_moment_is_inclusive_to_the_microsecond(store: EventStore, clock: Clock) -> None:
    store.append("past/ann", Joined("Bonn"))
    clock.step(seconds=1)
    store.append("past/bob", Joined("Bern"))
    moved = clock.step(microseconds=1)
    store.append("past/ann", Moved("Basel"))
    store.catch_up(Members)
    for at, expected in [
        (NOON - MICROSECOND, {}),
        (NOON, {"ann": "Bonn"}),
        (moved - 2 * MICROSECOND, {"ann": "Bonn"}),
        (moved - MICROSECOND, {"ann": "Bonn", "bob": "Bern"}),
        (moved, {"ann": "Basel", "bob": "Bern"}),
        (moved + timedelta(days=10_000), {"ann": "Basel", "bob": "Bern"}),
        (None, {"ann": "Basel", "bob": "Bern"}),
    ]:
        assert then(store, at) == expected, at
        assert then(store, store.cut(at)) == expected, at
    with pytest.raises(InvalidTimeError), store.as_of(Members, at=datetime(2026, 3, 1)):
        pass


def test_a_cut_stays_what_it_is(store: EventStore, clock: Clock) -> None:
    store.append("past/ann", Joined("Bonn"))
    cut, later = store.cut(), store.cut(NOON + timedelta(hours=1))
    store.append("past/ann", Moved("Bern"))
    assert then(store, cut) == then(store, later) == {"ann": "Bonn"}
    assert then(store, NOON) == {"ann": "Bern"}


def test_imports_with_older_times_are_an_exact_prefix(store: EventStore, clock: Clock) -> None:
    store.append("past/ann", Joined("Bonn"))
    hour = timedelta(hours=1)
    store.append("past/old", Joined("Bern"), recorded_at=NOON - 2 * hour)
    store.append("past/old", Moved("Basel"), recorded_at=NOON - hour)
    cut = store.cut(NOON - hour)
    store.append("past/older", Joined("Rome"), recorded_at=NOON - 3 * hour)
    assert then(store, NOON - 2 * hour) == {"old": "Bern", "older": "Rome"}
    assert then(store, cut) == {"old": "Basel"}
    assert then(store, NOON) == {"ann": "Bonn", "old": "Basel", "older": "Rome"}


def test_a_projection_that_nobody_has_started_has_a_past(store: EventStore) -> None:
    store.append("past/ann", [Joined("Bonn"), Moved("Bern")])
    with store.as_of(Members, at=NOON) as db:
        assert towns(db) == {"ann": "Bern"}
        assert db.execute(select(Members.moves)).all() == [(1, "ann")]
    assert store.status() == []
    with store.connect() as db:
        assert not inspect(db).has_table("past_members")


def test_the_living_tables_and_checkpoints_are_left_alone(store: EventStore, clock: Clock) -> None:
    store.append("past/ann", Joined("Bonn"))
    store.catch_up(Members)
    before = Followers(store.log).find("past-members")
    clock.step(hours=1)
    store.append("past/ann", Moved("Bern"))
    with store.as_of(Members, at=NOON) as db:
        db.execute(Members.members.delete())
        assert towns(db) == {}
        assert living(store) == {"ann": "Bonn"}
        if store.engine.url.query.get("uri") is None:  # a memory database has its writers wait
            store.append("past/ann", Moved("Rome"))
            store.catch_up(Members)
            assert living(store) == {"ann": "Rome"}
        assert towns(db) == {}
    store.append("past/ann", Moved("Rome"))
    store.catch_up(Members)
    assert living(store) == {"ann": "Rome"}
    (after,) = Followers(store.log).find("past-members")
    assert after.position == store.head()
    assert before[0].position < after.position
    with store.connect() as db:  # of the identity, no number was used up
        ids = list(db.scalars(select(Members.moves.c.id)))
    assert ids == [*range(1, len(ids) + 1)]


def test_nothing_that_is_written_stays(store: EventStore) -> None:
    with store.log.transaction() as db:
        db.execute(text("CREATE TABLE past_mine (n INTEGER)"))
    store.append("past/ann", Joined("Bonn"))
    store.catch_up(Members)
    with store.as_of(Members) as db:
        db.execute(text("INSERT INTO past_mine VALUES (1)"))
        db.execute(insert(Members.members).values(member="bob", town="Bern"))
        db.execute(text("CREATE TABLE past_other (n INTEGER)"))
    assert living(store) == {"ann": "Bonn"}
    with store.connect() as db:
        assert db.scalar(text("SELECT count(*) FROM past_mine")) == 0
        assert not inspect(db).has_table("past_other")


def test_a_commit_or_a_rollback_in_the_block_does_no_harm(store: EventStore, clock: Clock) -> None:
    store.append("past/ann", Joined("Bonn"))
    clock.step(hours=1)
    store.append("past/ann", Moved("Bern"))
    store.catch_up(Members)
    members = Members.members
    with store.as_of(Members, at=NOON) as db:
        db.commit()
        assert towns(db) == {"ann": "Bonn"}
        db.execute(insert(members).values(member="bob", town="Rome"))
        db.commit()
        with pytest.raises(IntegrityError):
            db.execute(insert(members).values(member="bob", town="Paris"))
        db.rollback()
        assert towns(db) == {"ann": "Bonn", "bob": "Rome"}
        with Session(db) as session:
            session.execute(insert(members).values(member="cleo", town="Rome"))
            session.commit()
        assert len(towns(db)) == 3
        assert living(store) == {"ann": "Bern"}
    assert living(store) == {"ann": "Bern"}


@pytest.mark.parametrize("at", [NOON, None])
def test_not_even_a_commit_by_hand_reaches_the_living_tables(
    store: EventStore, clock: Clock, at: datetime | None
) -> None:
    store.append("past/ann", Joined("Bonn"))
    store.catch_up(Members)
    with store.as_of(Members, at=at) as db:
        db.execute(insert(Members.members).values(member="bob", town="Rome"))
        db.exec_driver_sql("COMMIT")
        if store.engine.dialect.name == "sqlite":
            db.exec_driver_sql("BEGIN")
    assert living(store) == {"ann": "Bonn"}
    assert then(store, at) == {"ann": "Bonn"}


def test_the_connection_goes_back_as_it_was(store: EventStore) -> None:
    store.append("past/ann", Joined("Bonn"))
    store.catch_up(Members)
    with store.engine.connect() as one:
        assert towns(one) == {"ann": "Bonn"}
    for _ in range(2):
        with pytest.raises(IntegrityError), store.as_of(Members, at=NOON - MICROSECOND) as db:
            db.execute(insert(Members.members).values(member="bob"))
        with store.engine.connect() as one, store.engine.connect() as two:
            assert towns(one) == towns(two) == {"ann": "Bonn"}


def test_two_moments_can_be_read_side_by_side(store: EventStore, clock: Clock) -> None:
    store.append("past/ann", Joined("Bonn"))
    store.catch_up(Members)
    clock.step(hours=1)
    store.append("past/ann", Moved("Bern"))
    with store.as_of(Members, at=NOON) as early, store.as_of(Members, at=clock.time) as late:
        assert towns(early) == {"ann": "Bonn"}
        assert towns(late) == {"ann": "Bern"}
        with store.as_of(Members, at=NOON - MICROSECOND) as first:
            assert towns(first) == {}
        assert towns(early) == {"ann": "Bonn"}


def test_several_moments_can_be_read_at_once(store: EventStore, clock: Clock) -> None:
    moments = []
    for number in range(4):
        store.append("past/ann", Moved(f"Town {number}") if number else Joined("Town 0"))
        moments.append(clock.time)
        clock.step(seconds=1)
    store.catch_up(Members)
    together = threading.Barrier(4)

    def read(number: int) -> dict[str, str]:
        with store.as_of(Members, at=moments[number]) as db:
            together.wait(30)
            found = towns(db)
            together.wait(30)
            return found

    with ThreadPoolExecutor(4) as threads:
        found = list(threads.map(read, range(4)))
    assert found == [{"ann": f"Town {number}"} for number in range(4)]


def test_a_handler_that_fails_is_told_with_its_event(store: EventStore, clock: Clock) -> None:
    store.append("past/ann", [Joined("Bonn"), Moved("nowhere")])
    before = clock.step(hours=1)
    with pytest.raises(HandlerError, match="no such town") as caught, store.as_of(Members):
        pytest.fail("there is no such past")
    assert (caught.value.stream, caught.value.version) == ("past/ann", 2)
    assert then(store, NOON - MICROSECOND) == {}
    store.append("past/bob", Joined("Bern"))
    assert before == clock.time
    assert living_or_none(store) is None


def living_or_none(store: EventStore) -> Any:
    with store.connect() as db:
        return towns(db) if inspect(db).has_table("past_members") else None


def test_a_long_past_is_read_in_pages(
    store: EventStore, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("eventstore.projections.past._PAGE", 7)
    for number in range(20):
        store.append(f"past/{number}", [Joined("Bonn"), Moved("Bern")])
    clock.step(hours=1)
    store.append("past/0", Moved("Rome"))
    with store.as_of(Members, at=NOON) as db:
        assert set(towns(db).values()) == {"Bern"}
        assert db.scalar(select(func.count()).select_from(Members.moves)) == 20
