"""Read models in SQL tables: exactly once in step with the log, whatever fails."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
from sqlalchemy import (
    CheckConstraint,
    Column,
    Connection,
    Integer,
    String,
    Table,
    create_engine,
    func,
    insert,
    make_url,
    select,
    text,
    update,
)
from sqlalchemy.exc import IntegrityError

from eventstore import (
    CheckpointAheadError,
    DefinitionError,
    Event,
    EventStore,
    EventStoreError,
    HandlerError,
    LeaseLostError,
    LogUnavailableError,
    NotCaughtUpError,
    NotInStepError,
    ParkedEventsError,
    Projection,
    ProjectionOutdatedError,
    RecordedEvent,
    ShardsChangedError,
    StreamDeleted,
    TableProjection,
    TableTakenError,
    WrongExpectedVersionError,
    on,
)
from eventstore.log import tables
from eventstore.log.followers import Followers


class Opened(Event, name="rows-opened"):
    owner: str


class Moved(Event, name="rows-moved"):
    amount: int


class Renamed(Event, name="rows-renamed"):
    owner: str


class Ignored(Event, name="rows-ignored"):
    """Nobody handles it."""


class Ledger(TableProjection, name="rows-ledger"):
    accounts = Table(
        "rows_accounts",
        TableProjection.metadata,
        Column("account", String, primary_key=True),
        Column("owner", String, nullable=False),
        Column("balance", Integer, CheckConstraint("balance >= 0"), nullable=False),
    )
    entries = Table(
        "rows_entries",
        TableProjection.metadata,
        Column("position", Integer, primary_key=True),
        Column("amount", Integer, nullable=False),
    )

    @on(Opened)
    def _opened(self, event: Opened, record: RecordedEvent) -> None:
        self.insert(self.accounts, account=record.aggregate_id, owner=event.owner, balance=0)

    @on(Moved)
    def _moved(self, event: Moved, record: RecordedEvent) -> None:
        self.add(self.accounts, record.aggregate_id, balance=event.amount)
        self.insert(self.entries, position=record.position, amount=event.amount)

    @on(Renamed)
    def _renamed(self, event: Renamed, record: RecordedEvent) -> None:
        if event.owner == "poison":
            raise RuntimeError("no such name")
        self.db.execute(
            update(self.accounts)
            .where(self.accounts.c.account == record.aggregate_id)
            .values(owner=event.owner)
        )

    @on(StreamDeleted)
    def _deleted(self, event: StreamDeleted, record: RecordedEvent) -> None:
        self.delete(self.accounts, record.aggregate_id)


@pytest.fixture
def store(database_url: str) -> Iterator[EventStore]:
    with EventStore(database_url) as opened:
        yield opened


def balances(store: EventStore) -> dict[str, int]:
    with store.connect() as db:
        c = Ledger.accounts.c
        return dict(map(tuple, db.execute(select(c.account, c.balance))))


def owners(store: EventStore) -> dict[str, str]:
    with store.connect() as db:
        c = Ledger.accounts.c
        return dict(map(tuple, db.execute(select(c.account, c.owner))))


def opened(store: EventStore, *ids: str) -> None:
    for id in ids:
        store.append(f"rows/{id}", Opened("Ann"))


# --- following ---------------------------------------------------------------------------------


def test_tables_are_made_and_brought_up_to_date(store: EventStore) -> None:
    assert store.catch_up(Ledger) == 0
    assert balances(store) == {}
    opened(store, "a", "b")
    last = store.append("rows/a", [Moved(5), Ignored(), Moved(-2), Renamed("Bob")])
    assert store.catch_up(Ledger) == last.position
    assert balances(store) == {"a": 3, "b": 0}
    assert owners(store) == {"a": "Bob", "b": "Ann"}
    store.delete_stream("rows/b")
    assert store.catch_up(Ledger) == store.head()
    assert balances(store) == {"a": 3}


def test_catching_up_again_does_nothing_twice(store: EventStore) -> None:
    opened(store, "a")
    for amount in range(1, 4):
        store.append("rows/a", Moved(amount))
        store.catch_up(Ledger)
        store.catch_up(Ledger)
    assert balances(store) == {"a": 6}
    (status,) = store.status()
    assert (status.follower, status.position, status.behind) == ("rows-ledger", store.head(), 0)
    assert status.handled == 4


def test_a_long_log_goes_in_batches(store: EventStore) -> None:
    opened(store, "a", "b")
    for _ in range(3):
        store.append("rows/a", [Moved(1)] * 900)
        store.append("rows/b", [Moved(2)] * 100)
    store.catch_up(Ledger)
    assert balances(store) == {"a": 2700, "b": 600}


def test_events_that_nobody_handles_move_the_checkpoint(store: EventStore) -> None:
    store.catch_up(Ledger)
    last = store.append("other/a", [Ignored()] * 3)
    assert store.catch_up(Ledger) == last.position
    assert store.status()[0].handled == 0


def test_many_that_catch_up_at_once_do_nothing_twice(store: EventStore) -> None:
    opened(store, "a")
    store.append("rows/a", [Moved(1)] * 500)
    with ThreadPoolExecutor(6) as threads:
        reached = list(threads.map(lambda _: store.catch_up(Ledger), range(6)))
    assert set(reached) == {store.head()}
    assert balances(store) == {"a": 500}


def test_a_failed_transaction_leaves_neither_rows_nor_checkpoint(
    store: EventStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    opened(store, "a")
    store.catch_up(Ledger)
    before = store.status()[0].position
    store.append("rows/a", Moved(5))

    def failed(*_: object, **__: object) -> None:
        raise LogUnavailableError("gone", "unknown")

    with monkeypatch.context() as patched:
        patched.setattr(Followers, "advance", failed)
        with pytest.raises(LogUnavailableError):
            store.catch_up(Ledger)
    assert balances(store) == {"a": 0}
    assert store.status()[0].position == before
    store.catch_up(Ledger)
    assert balances(store) == {"a": 5}


def test_whoever_has_lost_the_lease_cannot_write(store: EventStore) -> None:
    opened(store, "a")
    store.catch_up(Ledger)
    followers = Followers(store.log)
    (row,) = followers.find("rows-ledger")
    stale = followers.claim(row.name, 0, "one", 60)
    assert stale is not None
    assert followers.claim(row.name, 0, "two", 60) is None
    assert followers.claim(row.name, 0, "two", 60, dead="one") is not None
    with store.log.transaction() as connection, pytest.raises(LeaseLostError) as caught:
        followers.advance(connection, stale, stale.position + 1, seconds=60)
    assert (caught.value.follower, caught.value.epoch) == ("rows-ledger", stale.epoch)
    with pytest.raises(LeaseLostError):
        followers.renew(stale, 60)


def test_a_handler_may_not_be_used_by_itself() -> None:
    with pytest.raises(EventStoreError, match="outside a handler"):
        _ = Ledger().db


# --- waiting -----------------------------------------------------------------------------------


def test_a_reader_can_wait_for_what_it_wrote(store: EventStore) -> None:
    opened(store, "a")
    store.catch_up(Ledger)
    receipt = store.append("rows/a", Moved(7))
    with pytest.raises(NotCaughtUpError) as caught:
        store.wait_for(Ledger, receipt.position, timeout=0.01)
    assert caught.value.wanted == receipt.position
    assert isinstance(caught.value, TimeoutError)
    with store.runner(Ledger):
        assert store.wait_for(Ledger, receipt.position, timeout=30) >= receipt.position
        assert balances(store) == {"a": 7}
        store.append("rows/a", Moved(1))
        store.wait_for(Ledger, timeout=30)
        assert balances(store) == {"a": 8}


# --- poison ------------------------------------------------------------------------------------


def test_a_poison_event_is_parked_with_what_follows_in_its_stream(store: EventStore) -> None:
    opened(store, "a", "b")
    store.append("rows/a", [Moved(1), Renamed("poison"), Moved(10)])
    store.append("rows/b", [Moved(2), Renamed("Bob")])
    assert store.catch_up(Ledger) == store.head()
    assert balances(store) == {"a": 1, "b": 2}
    store.append("rows/a", Moved(100))
    store.append("rows/b", Moved(3))
    store.catch_up(Ledger)
    assert balances(store) == {"a": 1, "b": 5}
    poison, *behind = store.parked(Ledger)
    assert (poison.stream, poison.version, poison.type) == ("rows/a", 3, "rows-renamed")
    assert poison.error == "RuntimeError: no such name"
    assert poison.attempts == 2
    assert [(p.version, p.error, p.attempts) for p in behind] == [(4, None, 0), (5, None, 0)]
    assert store.status()[0].parked == 3


def test_an_event_whose_rows_break_a_constraint_is_parked(store: EventStore) -> None:
    opened(store, "a", "b")
    store.append("rows/a", [Moved(1), Moved(-5)])
    store.append("rows/b", Moved(1))
    store.append("rows/none", Moved(1))  # there is no such row
    store.catch_up(Ledger)
    store.append("rows/a", Moved(5))  # one flush with the one before, it would have made up for it
    store.catch_up(Ledger)
    assert balances(store) == {"a": 1, "b": 1}
    assert [(p.stream, p.version) for p in store.parked("rows-ledger")] == [
        ("rows/a", 3),
        ("rows/none", 1),
        ("rows/a", 4),
    ]
    errors = [p.error or "" for p in store.parked(Ledger)]
    assert "IntegrityError" in errors[0]
    assert "RowNotFoundError" in errors[1]
    with store.connect() as db:  # an event's rows are there whole or not at all
        amounts = db.scalars(select(Ledger.entries.c.amount).order_by(Ledger.entries.c.position))
        assert list(amounts) == [1, 1]


def test_parked_events_can_be_retried(store: EventStore) -> None:
    opened(store, "a", "b")
    store.append("rows/a", Moved(-5))
    store.catch_up(Ledger)
    store.append("rows/a", Moved(6))
    store.append("rows/none", Moved(1))
    store.catch_up(Ledger)
    assert balances(store) == {"a": 0, "b": 0}
    assert store.retry(Ledger) == 3
    store.catch_up(Ledger)  # nothing has changed
    assert [(p.attempts, p.retry) for p in store.parked(Ledger)] == [
        (3, False),
        (0, False),
        (3, False),
    ]
    with store.engine.begin() as db:
        db.execute(update(Ledger.accounts).values(balance=5))
    assert store.retry(Ledger, "rows/a") == 2
    store.append("rows/a", Moved(100))
    store.catch_up(Ledger)
    assert balances(store) == {"a": 106, "b": 5}  # in the order of the stream
    assert [p.stream for p in store.parked(Ledger)] == ["rows/none"]


def test_parked_events_can_be_discarded(store: EventStore) -> None:
    opened(store, "a")
    store.append("rows/a", [Renamed("poison"), Moved(1), Renamed("poison"), Moved(2)])
    store.catch_up(Ledger)
    first, *_ = store.parked(Ledger)
    assert store.discard(Ledger, first.position)
    assert not store.discard(Ledger, first.position)
    store.catch_up(Ledger)
    assert balances(store) == {"a": 1}
    assert [p.version for p in store.parked(Ledger)] == [4, 5]
    store.discard(Ledger, store.parked(Ledger)[0].position)
    store.append("rows/a", Moved(4))
    store.catch_up(Ledger)
    assert balances(store) == {"a": 7}
    assert store.parked(Ledger) == []


def test_a_deleted_streams_parked_events_have_nothing_left_to_do(store: EventStore) -> None:
    opened(store, "a")
    store.append("rows/a", [Renamed("poison"), Moved(1)])
    store.catch_up(Ledger)
    store.delete_stream("rows/a")
    store.catch_up(Ledger)
    assert len(store.parked(Ledger)) == 3
    store.retry(Ledger)
    store.catch_up(Ledger)
    assert store.parked(Ledger) == []
    assert balances(store) == {}


# --- side effects ------------------------------------------------------------------------------


class Watched(TableProjection, name="rows-watched"):
    seen = Table(
        "rows_seen", TableProjection.metadata, Column("position", Integer, primary_key=True)
    )
    told: list[int] = []  # noqa: RUF012 (what the world outside has seen)

    @on(Moved)
    def _moved(self, event: Moved, record: RecordedEvent) -> None:
        self.insert(self.seen, position=record.position)

    @on(Moved, side_effect=True)
    def _tell(self, event: Moved) -> None:
        self.told.append(event.amount)


def test_side_effects_run_as_the_log_is_followed_and_not_in_a_rebuild(store: EventStore) -> None:
    Watched.told.clear()
    store.append("rows/a", [Moved(1), Moved(2)])
    store.catch_up(Watched)
    assert Watched.told == [1, 2]
    store.append("rows/a", Moved(4))
    store.rebuild(Watched)  # up to where the effects have run, and no further
    with store.as_of(Watched) as db:
        assert db.scalar(select(func.count()).select_from(Watched.seen)) == 3
    assert Watched.told == [1, 2]
    store.append("rows/a", Moved(3))
    store.catch_up(Watched)
    assert Watched.told == [1, 2, 4, 3]
    with store.connect() as db:
        assert db.scalar(select(func.count()).select_from(Watched.seen)) == 4


def test_catching_up_goes_on_with_the_tables_of_a_rebuild(
    store: EventStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    opened(store, "a")
    store.catch_up(Ledger)
    store.append("rows/a", Moved(5))
    advance = Followers.advance
    rebuilt: list[bool] = []

    def swapped(self: Followers, *arguments: Any, **options: Any) -> Any:
        if not rebuilt:
            rebuilt.append(True)
            raise LeaseLostError("rows-ledger", 0, 1)
        return advance(self, *arguments, **options)

    monkeypatch.setattr(Followers, "advance", swapped)
    store.catch_up(Ledger)
    assert rebuilt
    assert balances(store) == {"a": 5}


# --- shards ------------------------------------------------------------------------------------


def sharded(count: int) -> type[TableProjection]:
    class Sharded(TableProjection, name="rows-sharded", shards=count):
        sums = Table(
            "rows_sums",
            TableProjection.metadata,
            Column("category", String, primary_key=True),
            Column("total", Integer, nullable=False),
        )

        @on(Opened)
        def _opened(self, event: Opened) -> None:
            self.put(self.sums, category=event.owner, total=0)

        @on(Moved)
        def _moved(self, event: Moved) -> None:
            self.add(self.sums, "all", total=event.amount)

    return Sharded


def total(store: EventStore, cls: type[TableProjection]) -> int:
    with store.connect() as db:
        return int(db.scalar(select(func.sum(cls.__tables__[0].c.total))) or 0)


def test_shards_together_handle_each_event_once(store: EventStore) -> None:
    projection = sharded(3)
    store.append("rows/first", Opened("all"))
    store.catch_up(projection)
    for number in range(20):
        store.append(f"rows/{number}", [Moved(1)] * 5)
    with store.runner(projection):
        store.wait_for(projection, timeout=30)
    assert total(store, projection) == 100
    shards = [s for s in store.status() if s.follower == "rows-sharded"]
    assert [(s.shard, s.shards) for s in shards] == [(0, 3), (1, 3), (2, 3)]
    assert sum(s.handled for s in shards) == 101
    assert all(s.handled for s in shards)


def test_the_number_of_shards_can_change_between_two_events(store: EventStore) -> None:
    store.append("rows/first", Opened("all"))
    store.catch_up(sharded(2))
    store.append("rows/a", [Moved(1)] * 3)
    store.catch_up(sharded(2))
    store.catch_up(sharded(4))
    store.append("rows/b", [Moved(1)] * 3)
    store.catch_up(sharded(4))
    store.catch_up(sharded(1))
    assert total(store, sharded(1)) == 6
    assert len(store.status()) == 1


def test_the_number_of_shards_cannot_change_in_the_middle_of_the_log(store: EventStore) -> None:
    store.append("rows/first", Opened("all"))
    store.catch_up(sharded(2))
    with store.engine.begin() as db:
        c = tables.followers.c
        db.execute(update(tables.followers).where(c.shard == 1).values(position=0))
    with pytest.raises(ShardsChangedError) as caught:
        store.catch_up(sharded(3))
    assert (caught.value.found, caught.value.required) == (2, 3)


# --- in step -----------------------------------------------------------------------------------


class Steps(TableProjection, name="rows-steps"):
    balances = Table(
        "rows_steps",
        TableProjection.metadata,
        Column("account", String, primary_key=True),
        Column("balance", Integer, CheckConstraint("balance >= 0"), nullable=False),
    )

    @on(Opened)
    def _opened(self, event: Opened, record: RecordedEvent) -> None:
        self.insert(self.balances, account=record.aggregate_id, balance=0)

    @on(Moved)
    def _moved(self, event: Moved, record: RecordedEvent) -> None:
        self.add(self.balances, record.aggregate_id, balance=event.amount)

    @on(StreamDeleted)
    def _deleted(self, event: StreamDeleted, record: RecordedEvent) -> None:
        self.delete(self.balances, record.aggregate_id)


@pytest.fixture(params=["sqlite", "postgres"])
def shared_url(request: pytest.FixtureRequest) -> str:
    url: str = request.getfixturevalue(f"{request.param}_url")
    return url


def steps(db: Connection) -> dict[str, int]:
    return dict(map(tuple, db.execute(select(Steps.balances))))


def steps_of(store: EventStore) -> dict[str, int]:
    with store.connect() as db:
        return steps(db)


def test_a_projection_in_step_is_read_as_soon_as_a_save_returns(database_url: str) -> None:
    with EventStore(database_url, in_step=[Steps]) as store:
        store.append("rows/a", [Opened("Ann"), Moved(3)])
        assert steps_of(store) == {"a": 3}
        store.append("rows/a", [Ignored(), Moved(4)])
        assert steps_of(store) == {"a": 7}
        assert store.catch_up(Steps) == store.wait_for(Steps) == store.head()
        store.delete_stream("rows/a")
        assert steps_of(store) == {}
        (status,) = store.status()
        assert (status.in_step, status.behind) == (True, 0)


def test_what_was_there_before_is_caught_up_with_at_first(shared_url: str) -> None:
    with EventStore(shared_url) as store:
        store.append("rows/a", [Opened("Ann"), Moved(3)])
    for _ in range(2):
        with EventStore(shared_url, in_step=[Steps]) as store:
            assert steps_of(store)["a"] == 3
    with EventStore(shared_url, in_step=[Steps]) as store:
        store.append("rows/b", [Opened("Bob"), Moved(1)])
        assert steps_of(store) == {"a": 3, "b": 1}


def test_a_handler_that_fails_in_step_refuses_the_append(database_url: str) -> None:
    with EventStore(database_url, in_step=[Steps]) as store:
        store.append("rows/a", [Opened("Ann"), Moved(3)])
        with pytest.raises(HandlerError) as caught:
            store.append("rows/a", [Moved(1), Moved(-9)])
        assert isinstance(caught.value.__cause__, IntegrityError)
        assert caught.value.stream == "rows/a"
        assert store.version("rows/a") == 2
        assert steps_of(store) == {"a": 3}
        with pytest.raises(WrongExpectedVersionError):
            store.append("rows/a", Moved(1), expected=7)
        store.append("rows/a", Moved(1), expected=2)
        assert steps_of(store) == {"a": 4}


def test_in_step_with_an_idempotency_key_is_once(database_url: str) -> None:
    with EventStore(database_url, in_step=[Steps]) as store:
        store.append("rows/a", Opened("Ann"))
        for _ in range(3):
            store.append("rows/a", Moved(5), idempotency_key="payment")
        assert steps_of(store) == {"a": 5}


def test_in_step_with_the_callers_transaction(database_url: str) -> None:
    with EventStore(database_url, in_step=[Steps]) as store:
        store.append("rows/a", Opened("Ann"))
        with store.connect() as db:
            store.append("rows/a", Moved(5), connection=db)
            assert steps(db) == {"a": 5}
            db.rollback()
        assert steps_of(store) == {"a": 0}
        with store.connect() as db:
            store.append("rows/a", Moved(5), connection=db)
            with pytest.raises(HandlerError):
                store.append("rows/a", [Moved(1), Moved(-9)], connection=db)
            store.append("rows/a", Moved(1), connection=db)
            db.commit()
        assert steps_of(store) == {"a": 6}
        assert store.version("rows/a") == 3


def test_in_step_a_rollback_on_an_engine_of_the_callers_takes_all_back(shared_url: str) -> None:
    engine = create_engine(make_url(shared_url).set(drivername=_driver(shared_url)))
    with EventStore(shared_url, in_step=[Steps]) as store:
        store.append("rows/a", Opened("Ann"))
        with engine.connect() as db:
            store.append("rows/a", Moved(5), connection=db)
            db.rollback()
        assert store.version("rows/a") == 1
        assert steps_of(store) == {"a": 0}
    engine.dispose()


def _driver(url: str) -> str:
    return "sqlite" if url.startswith("sqlite") else "postgresql+psycopg"


def test_in_step_with_concurrent_writers(shared_url: str) -> None:
    with EventStore(shared_url, in_step=[Steps]) as store:
        opened(store, *"abcd")

        def write(number: int) -> None:
            for _ in range(10):
                store.append(f"rows/{'abcd'[number % 4]}", Moved(1))

        with ThreadPoolExecutor(8) as threads:
            list(threads.map(write, range(8)))
            store.rebuild(Steps)
            list(threads.map(write, range(8)))
        assert steps_of(store) == dict.fromkeys("abcd", 40)
        store.rebuild(Steps, verify=True)


def test_a_program_that_would_pass_by_is_refused(shared_url: str) -> None:
    with EventStore(shared_url, in_step=[Steps]) as store:
        store.append("rows/a", [Opened("Ann"), Moved(3)])
    with EventStore(shared_url) as other:
        with pytest.raises(NotInStepError) as caught:
            other.append("rows/a", Moved(1))
        assert caught.value.follower == "rows-steps"
        other.leave_step(Steps)
        other.append("rows/a", Moved(1))
        assert steps_of(other) == {"a": 3}
        other.catch_up(Steps)
        assert steps_of(other) == {"a": 4}


def test_old_code_in_step_does_not_write_into_newer_tables(shared_url: str) -> None:
    with EventStore(shared_url, in_step=[Steps]) as store, EventStore(shared_url) as other:
        store.append("rows/a", [Opened("Ann"), Moved(3)])
        with other.engine.begin() as db:  # as a rebuild by newer code leaves it
            db.execute(update(tables.followers).values(version=2))
        with pytest.raises(ProjectionOutdatedError):
            store.append("rows/a", Moved(1))
        assert store.version("rows/a") == 2
        store.append("rows/a", Ignored())  # what it does not handle is none of its business


def test_a_projection_with_parked_events_cannot_run_in_step(shared_url: str) -> None:
    with EventStore(shared_url) as store:
        store.append("rows/a", Moved(1))
        store.catch_up(Steps)
    with pytest.raises(ParkedEventsError):
        EventStore(shared_url, in_step=[Steps])


# --- what is refused ---------------------------------------------------------------------------


def test_a_table_that_is_there_already_is_left_alone(store: EventStore) -> None:
    class Homeless(TableProjection, name="rows-homeless"):
        taken = Table(
            "rows_taken", TableProjection.metadata, Column("id", Integer, primary_key=True)
        )

        @on(Moved)
        def _moved(self, event: Moved) -> None: ...

    with store.engine.begin() as db:
        db.execute(text("CREATE TABLE rows_taken (precious INTEGER)"))
    with pytest.raises(TableTakenError) as caught:
        store.catch_up(Homeless)
    assert caught.value.table == "rows_taken"
    assert store.status() == []


def test_a_checkpoint_beyond_the_log_is_told(store: EventStore) -> None:
    store.append("rows/a", Ignored())
    store.catch_up(Ledger)
    with store.engine.begin() as db:
        db.execute(update(tables.followers).values(position=99))
    with pytest.raises(CheckpointAheadError) as caught:
        store.catch_up(Ledger)
    assert (caught.value.position, caught.value.head) == (99, 1)


def test_declarations_that_cannot_work_are_refused() -> None:
    metadata = TableProjection.metadata
    with pytest.raises(DefinitionError, match="schema"):

        class Elsewhere(TableProjection):
            rows = Table("x", metadata, Column("id", Integer, primary_key=True), schema="reports")

    with pytest.raises(DefinitionError, match="shards"):

        class Split(TableProjection, shards=0): ...

    with pytest.raises(DefinitionError, match="version"):

        class Old(TableProjection):
            version = 0

    with pytest.raises(DefinitionError, match="side_effect"):

        class Impure(Projection):
            @on(Moved, side_effect=True)
            def _moved(self, event: Moved) -> None: ...

    with pytest.raises(DefinitionError, match="belongs to"):

        class Thief(TableProjection, name="rows-ledger"): ...

    metadata.clear()


def test_a_class_that_is_made_again_takes_its_own_place(store: EventStore) -> None:
    for _ in range(2):
        assert sharded(1).__tables__[0].name == "rows_sums"
    store.append("rows/a", Opened("all"))
    store.catch_up(sharded(1))
    assert total(store, sharded(1)) == 0


def test_handlers_of_different_threads_do_not_mix(store: EventStore) -> None:
    opened(store, "a")
    started = threading.Barrier(2)

    def follow(cls: type[TableProjection]) -> None:
        started.wait()
        store.catch_up(cls)

    store.append("rows/first", Opened("all"))
    store.append("rows/a", [Moved(1)] * 50)
    projection = sharded(1)
    with ThreadPoolExecutor(2) as threads:
        list(threads.map(follow, [Ledger, projection]))
    assert balances(store)["a"] == 50
    assert total(store, projection) == 50


def test_core_statements_and_the_buffer_keep_their_order(store: EventStore) -> None:
    class Mixed(TableProjection, name="rows-mixed"):
        rows = Table(
            "rows_mixed",
            TableProjection.metadata,
            Column("id", Integer, primary_key=True),
            Column("n", Integer, nullable=False),
        )

        @on(Moved)
        def _moved(self, event: Moved) -> None:
            self.put(self.rows, id=1, n=event.amount)
            self.db.execute(update(self.rows).values(n=self.rows.c.n * 2))
            self.add(self.rows, 1, n=1)
            found = self.get(self.rows, 1)
            assert found == {"id": 1, "n": event.amount * 2 + 1}
            self.db.execute(insert(self.rows).values(id=event.amount + 10, n=found["n"]))

    store.append("rows/a", [Moved(1), Moved(2)])
    store.catch_up(Mixed)
    with store.connect() as db:
        found = db.execute(select(Mixed.rows).order_by(Mixed.rows.c.id)).all()
    assert [tuple(row) for row in found] == [(1, 5), (11, 6), (12, 5)]
