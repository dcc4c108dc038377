"""Read models in step with the log: in the transaction of each append."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import pytest
from ledgers import Ignored, Moved, Opened, opened
from sqlalchemy import (
    CheckConstraint,
    Column,
    Connection,
    Integer,
    String,
    Table,
    create_engine,
    make_url,
    select,
    update,
)
from sqlalchemy.exc import IntegrityError

from eventstore import (
    EventStore,
    HandlerError,
    NotInStepError,
    ParkedEventsError,
    ProjectionOutdatedError,
    RecordedEvent,
    StreamDeleted,
    TableProjection,
    WrongExpectedVersionError,
    on,
)
from eventstore.log import tables


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


def test_what_was_there_before_is_caught_up_with_at_first(url: str) -> None:
    with EventStore(url) as store:
        store.append("rows/a", [Opened("Ann"), Moved(3)])
    for _ in range(2):
        with EventStore(url, in_step=[Steps]) as store:
            assert steps_of(store)["a"] == 3
    with EventStore(url, in_step=[Steps]) as store:
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


def test_in_step_a_rollback_on_an_engine_of_the_callers_takes_all_back(url: str) -> None:
    engine = create_engine(make_url(url).set(drivername=_driver(url)))
    with EventStore(url, in_step=[Steps]) as store:
        store.append("rows/a", Opened("Ann"))
        with engine.connect() as db:
            store.append("rows/a", Moved(5), connection=db)
            db.rollback()
        assert store.version("rows/a") == 1
        assert steps_of(store) == {"a": 0}
    engine.dispose()


def _driver(url: str) -> str:
    return "sqlite" if url.startswith("sqlite") else "postgresql+psycopg"


def test_in_step_with_concurrent_writers(url: str) -> None:
    with EventStore(url, in_step=[Steps]) as store:
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


def test_a_program_that_would_pass_by_is_refused(url: str) -> None:
    with EventStore(url, in_step=[Steps]) as store:
        store.append("rows/a", [Opened("Ann"), Moved(3)])
    with EventStore(url) as other:
        with pytest.raises(NotInStepError) as caught:
            other.append("rows/a", Moved(1))
        assert caught.value.follower == "rows-steps"
        other.leave_step(Steps)
        other.append("rows/a", Moved(1))
        assert steps_of(other) == {"a": 3}
        other.catch_up(Steps)
        assert steps_of(other) == {"a": 4}


def test_old_code_in_step_does_not_write_into_newer_tables(url: str) -> None:
    with EventStore(url, in_step=[Steps]) as store, EventStore(url) as other:
        store.append("rows/a", [Opened("Ann"), Moved(3)])
        with other.engine.begin() as db:  # as a rebuild by newer code leaves it
            db.execute(update(tables.followers).values(version=2))
        with pytest.raises(ProjectionOutdatedError):
            store.append("rows/a", Moved(1))
        assert store.version("rows/a") == 2
        store.append("rows/a", Ignored())  # what it does not handle is none of its business


def test_a_projection_with_parked_events_cannot_run_in_step(url: str) -> None:
    with EventStore(url) as store:
        store.append("rows/a", Moved(1))
        store.catch_up(Steps)
    with pytest.raises(ParkedEventsError):
        EventStore(url, in_step=[Steps])
