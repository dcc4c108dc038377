"""Aggregates are saved, loaded, listed and deleted, in a caller's transaction too."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime
from typing import Any

import pytest
from purses import Deposited, Letter, Noted, Purse, amounts, purse
from sqlalchemy import insert, select
from sqlalchemy.orm import DeclarativeBase, Mapped, Session, mapped_column, scoped_session
from sqlalchemy.orm import sessionmaker as make_sessions

from eventstore import (
    NO_STREAM,
    EventStore,
    InvalidArgumentError,
    InvalidNameError,
    StoreClosedError,
    StreamDeleted,
    StreamDeletedError,
    StreamNotFoundError,
    Write,
    WrongExpectedVersionError,
)

# --- save and load -------------------------------------------------------------------------------


def test_what_was_saved_is_loaded(store: EventStore) -> None:
    saved = purse("a", 5, 7)
    store.save(saved)
    assert (saved.version, saved.pending) == (2, ())
    loaded = store.load(Purse, "a")
    assert (loaded.id, loaded.version, loaded.balance, loaded.pending) == ("a", 2, 12, ())


def test_an_aggregate_goes_on_after_a_save(store: EventStore) -> None:
    mine = purse("a", 1)
    store.save(mine)
    mine.deposit(2)
    store.save(mine)
    assert mine.version == 2
    assert store.load(Purse, "a").balance == 3


def test_saving_nothing_new_writes_nothing(store: EventStore) -> None:
    fresh = Purse("a")
    store.save(fresh)
    store.save()
    assert not store.exists(Purse, "a")
    assert store.head() == 0


def test_a_stale_aggregate_conflicts_and_keeps_its_events(store: EventStore) -> None:
    store.save(purse("a", 1))
    stale = store.load(Purse, "a")
    store.transact(Purse, "a", Purse.deposit, 5)
    stale.deposit(100)
    with pytest.raises(WrongExpectedVersionError) as caught:
        store.save(stale)
    assert caught.value.stream == "store-purse/a"
    assert caught.value.expected == 1
    assert caught.value.actual == 2
    assert stale.pending == (Deposited(100),)
    assert stale.version == 1
    assert store.load(Purse, "a").balance == 6


def test_a_second_new_aggregate_of_one_id_conflicts(store: EventStore) -> None:
    store.save(purse("a", 1))
    with pytest.raises(WrongExpectedVersionError) as caught:
        store.save(purse("a", 2))
    assert (caught.value.expected, caught.value.actual) == (0, 1)


def test_several_aggregates_are_saved_all_or_none(store: EventStore) -> None:
    a, b = purse("a", 1), purse("b", 1)
    store.save(a, b)
    one, two = store.load(Purse, "a"), store.load(Purse, "b")
    store.transact(Purse, "b", Purse.deposit, 10)
    one.deposit(100)
    two.deposit(100)
    with pytest.raises(WrongExpectedVersionError) as caught:
        store.save(one, two)
    assert caught.value.stream == "store-purse/b"
    assert store.load(Purse, "a").balance == 1
    assert store.load(Purse, "b").balance == 11
    assert one.pending == two.pending == (Deposited(100),)
    two = store.load(Purse, "b")
    two.deposit(100)
    store.save(one, two)
    assert (store.load(Purse, "a").balance, store.load(Purse, "b").balance) == (101, 111)


def test_aggregates_of_several_classes_are_saved_together_at_one_moment(store: EventStore) -> None:
    letter = Letter("dear/you")
    letter.record(Noted("hello"))
    store.save(purse("a", 1, 2), letter)
    records = list(store.read_all())
    assert len({record.recorded_at for record in records}) == 1
    assert store.load(Letter, "dear/you").text == "hello"
    assert {r.aggregate_id for r in records} == {"a", "dear/you"}


def test_one_aggregate_given_twice_is_refused(store: EventStore) -> None:
    mine = purse("a", 1)
    with pytest.raises(InvalidArgumentError):
        store.save(mine, mine)
    assert not store.exists(Purse, "a")


def test_what_does_not_exist_is_not_found(store: EventStore) -> None:
    with pytest.raises(StreamNotFoundError) as caught:
        store.load(Purse, "nobody")
    assert caught.value.stream == "store-purse/nobody"
    assert caught.value.when is None
    assert isinstance(caught.value, LookupError)
    with pytest.raises(StreamNotFoundError):
        store.load(Purse, "nobody", version=1)
    with pytest.raises(StreamNotFoundError):
        store.history(Purse, "nobody")
    with pytest.raises(StreamNotFoundError):
        store.transact(Purse, "nobody", Purse.deposit, 1)
    assert list(store.read("store-purse/nobody")) == []
    assert store.version("store-purse/nobody") == 0
    assert not store.exists(Purse, "nobody")


def test_a_version_that_is_not_there_is_refused(store: EventStore) -> None:
    store.save(purse("a", 1, 2))
    for version in (3, 0, -1):
        with pytest.raises(InvalidArgumentError) as caught:
            store.load(Purse, "a", version=version)
        assert caught.value.argument == "version"
    with pytest.raises(InvalidArgumentError):
        store.load(Purse, "a", version=1, at=datetime.now(UTC))


@pytest.mark.parametrize("bad", ["", "x" * 600, "a\nb", "a\x00b", "\ud800", 7, None])
def test_an_id_that_cannot_be_one_is_refused_everywhere(store: EventStore, bad: Any) -> None:
    for call in (
        lambda: Purse(bad),
        lambda: store.load(Purse, bad),
        lambda: store.exists(Purse, bad),
        lambda: store.history(Purse, bad),
        lambda: store.delete(Purse, bad),
        lambda: store.transact(Purse, bad, Purse.deposit, 1),
        lambda: store.append(bad, Deposited(1)),
        lambda: store.read(bad),
        lambda: store.version(bad),
    ):
        with pytest.raises(InvalidNameError) as caught:
            call()
        assert caught.value.name == bad


@pytest.mark.parametrize("id", ["src/main.py", "ä/ö ü", "日本語", "%_'\"\\", "🐚" * 100, "x" * 500])
def test_any_printable_id_works(store: EventStore, id: str) -> None:
    store.save(purse(id, 4))
    assert store.load(Purse, id).balance == 4
    assert list(store.ids(Purse)) == [id]
    assert [r.aggregate_id for r in store.read_all()] == [id]


def test_one_store_serves_many_threads(store: EventStore) -> None:
    def work(number: int) -> int:
        mine = purse(str(number), 1)
        store.save(mine)
        store.transact(Purse, str(number), Purse.deposit, number + 1)
        return store.load(Purse, str(number)).balance

    with ThreadPoolExecutor(8) as pool:
        calls: Callable[[int], int] = work
        assert list(pool.map(calls, range(40))) == [n + 2 for n in range(40)]
    assert len(list(store.read_all())) == 80


# --- deletion ------------------------------------------------------------------------------------


@pytest.mark.parametrize("cache", [0, 10])
def test_a_deleted_aggregate_is_gone_and_its_name_closed(database_url: str, cache: int) -> None:
    with EventStore(database_url, cache=cache) as store:
        store.save(purse("a", 1, 2, 3), purse("b", 1))
        stale = store.load(Purse, "a")
        store.delete(Purse, "a")
        for call in (
            lambda: store.load(Purse, "a"),
            lambda: store.load(Purse, "a", version=1),
            lambda: store.load(Purse, "a", version=4),
            lambda: store.load(Purse, "a", at=datetime.now(UTC)),
            lambda: store.load(Purse, "a", at=datetime(2000, 1, 1, tzinfo=UTC)),
            lambda: store.history(Purse, "a"),
            lambda: store.transact(Purse, "a", Purse.deposit, 1),
            lambda: store.append("store-purse/a", Deposited(1)),
            lambda: store.append("store-purse/a", Deposited(1), expected=4),
            lambda: store.save(purse("a", 1)),
            lambda: store.delete(Purse, "a"),
        ):
            with pytest.raises(StreamDeletedError) as caught:
                call()
            assert caught.value.stream == "store-purse/a"
        stale.deposit(1)
        with pytest.raises(StreamDeletedError):
            store.save(stale)
        assert not store.exists(Purse, "a")
        assert list(store.ids(Purse)) == ["b"]
        assert [p.id for p in store.load_all(Purse)] == ["b"]


def test_the_tombstone_is_what_is_left_of_a_stream(store: EventStore) -> None:
    store.append("s/1", [Deposited(1), Deposited(2)])
    receipt = store.delete_stream("s/1", expected=2)
    assert (receipt.stream, receipt.version) == ("s/1", 3)
    (record,) = store.read("s/1")
    assert record.event == StreamDeleted()
    assert (record.version, record.position) == (3, receipt.position)
    assert [r.event for r in store.read_all()] == [StreamDeleted()]
    (info,) = store.streams("s")
    assert (info.name, info.version, info.deleted) == ("s/1", 3, True)


def test_a_delete_requires_its_version(store: EventStore) -> None:
    with pytest.raises(StreamNotFoundError):
        store.delete_stream("s/1")
    with pytest.raises(StreamNotFoundError):
        store.delete(Purse, "a")
    store.append("s/1", [Deposited(1), Deposited(2)])
    with pytest.raises(WrongExpectedVersionError) as caught:
        store.delete_stream("s/1", expected=1)
    assert (caught.value.expected, caught.value.actual) == (1, 2)
    with pytest.raises(InvalidArgumentError):
        store.delete_stream("s/1", expected=NO_STREAM)
    assert amounts(store, "s/1") == [1, 2]


# --- many: ids, load_all, streams ----------------------------------------------------------------


def test_ids_are_those_of_the_pattern_in_order_of_stream_name(store: EventStore) -> None:
    for id in ("b", "a/b", "a", "Z", "ä"):
        store.save(purse(id, 1))
    store.append("store-letters/x/events", Noted("hi"))
    store.append("store-letters/x/other", Noted("no aggregate's"))
    store.append("store-purses/no", Deposited(1))
    assert list(store.ids(Purse)) == ["Z", "a", "a/b", "b", "ä"]
    assert list(store.ids(Letter)) == ["x"]
    assert [p.id for p in store.load_all(Purse)] == ["Z", "a", "a/b", "b", "ä"]


def test_streams_lists_heads_by_category(store: EventStore) -> None:
    moments = [store.append(f"s/{n}", Deposited(n)).recorded_at for n in range(3)]
    store.append("t/1", [Deposited(1), Deposited(2)])
    assert [(s.name, s.version, s.recorded_at) for s in store.streams("s")] == [
        (f"s/{n}", 1, moment) for n, moment in enumerate(moments)
    ]
    assert [s.name for s in store.streams()] == ["s/0", "s/1", "s/2", "t/1"]
    assert list(store.streams("none")) == []
    assert list(store.streams(Purse)) == []


# --- the caller's transaction --------------------------------------------------------------------


class Base(DeclarativeBase):
    pass


class Item(Base):
    __tablename__ = "store_test_items"
    id: Mapped[int] = mapped_column(primary_key=True)
    name: Mapped[str]


def test_an_orm_session_and_events_commit_or_roll_back_as_one(store: EventStore) -> None:
    Base.metadata.create_all(store.engine)
    with Session(store.engine) as session:
        session.add(Item(id=1, name="kept"))
        mine = purse("a", 5)
        store.save(mine, connection=session)
        assert store.load(Purse, "a", connection=session).balance == 5
        assert store.exists(Purse, "a", connection=session)
        assert [r.version for r in store.read("store-purse/a", connection=session)] == [1]
        session.commit()
    with Session(store.engine) as session:
        session.add(Item(id=2, name="lost"))
        session.flush()
        store.append("store-purse/a", Deposited(7), connection=session)
        store.append_all([Write("s/1", Deposited(1))], connection=session)
        session.rollback()
    assert store.load(Purse, "a").balance == 5
    assert store.version("s/1") == 0
    with Session(store.engine) as session:
        assert session.scalars(select(Item.name)).all() == ["kept"]


def test_a_scoped_session_can_be_joined(store: EventStore) -> None:
    sessions = scoped_session(make_sessions(store.engine))
    store.save(purse("a", 1), connection=sessions)
    sessions.commit()
    sessions.remove()
    assert store.exists(Purse, "a")


def test_what_the_caller_never_commits_is_not_there(store: EventStore) -> None:
    Base.metadata.create_all(store.engine)
    with store.connect() as connection:
        connection.execute(insert(Item).values(id=1, name="lost"))
        store.save(purse("a", 1, 2, 3), connection=connection)
    assert not store.exists(Purse, "a")
    assert store.delete_snapshots() == 0
    with store.engine.begin() as connection:
        store.save(purse("a", 1, 2, 3), connection=connection)
    assert store.load(Purse, "a").balance == 6


def test_a_refused_append_leaves_the_callers_transaction_usable(store: EventStore) -> None:
    Base.metadata.create_all(store.engine)
    store.save(purse("a", 1))
    with store.engine.begin() as connection:
        connection.execute(insert(Item).values(id=1, name="kept"))
        with pytest.raises(WrongExpectedVersionError):
            store.append("store-purse/a", Deposited(1), expected=7, connection=connection)
        with pytest.raises(WrongExpectedVersionError):
            store.append_all(
                [Write("s/1", Deposited(1)), Write("store-purse/a", Deposited(1), 7)],
                idempotency_key="k",
                connection=connection,
            )
    with store.connect() as connection:
        assert connection.scalar(select(Item.name)) == "kept"


# --- closing -------------------------------------------------------------------------------------


def test_a_closed_store_says_so(database_url: str) -> None:
    store = EventStore(database_url)
    store.save(purse("a", 1))
    mine = store.load(Purse, "a")
    mine.deposit(1)
    store.close()
    store.close()
    for call in (
        lambda: store.load(Purse, "a"),
        lambda: store.save(mine),
        lambda: store.append("s/1", Deposited(1)),
        lambda: store.head(),
        lambda: store.cut(),
        lambda: store.exists(Purse, "a"),
        lambda: store.version("s/1"),
        lambda: list(store.read("s/1")),
        lambda: list(store.read_all()),
        lambda: list(store.ids(Purse)),
        lambda: list(store.streams()),
        lambda: list(store.load_all(Purse)),
        lambda: store.history(Purse, "a"),
        lambda: store.transact(Purse, "a", Purse.deposit, 1),
        lambda: store.transact_once("k", Purse, "a", Purse.deposit, 1),
        lambda: store.delete(Purse, "a"),
        lambda: store.delete_snapshots(),
    ):
        with pytest.raises(StoreClosedError):
            call()
    assert mine.pending == (Deposited(1),)


def test_the_callers_engine_stays_open(store: EventStore) -> None:
    with EventStore(store.engine) as other:
        other.save(purse("a", 1))
    assert store.load(Purse, "a").balance == 1
