"""Forks: an aggregate's history branched for a what-if."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from sqlalchemy import Column, Integer, String, Table, select

from eventstore import (
    Aggregate,
    Event,
    EventStore,
    InvalidArgumentError,
    InvalidNameError,
    RecordedEvent,
    StreamDeletedError,
    StreamNotFoundError,
    TableProjection,
    WrongExpectedVersionError,
    on,
)
from eventstore.aio import AsyncEventStore


class ItemAdded(Event, name="fork-item-added"):
    item: str


class Basket(Aggregate, stream="fork-baskets/{id}/events", snapshot_every=3):
    items: list[str] = []  # noqa: RUF012 (a default of state)
    seen_by: str = ""

    def add(self, *items: str) -> None:
        for item in items:
            self.record(ItemAdded(item))

    @on(ItemAdded)
    def _added(self, event: ItemAdded) -> None:
        self.items.append(event.item)
        self.seen_by = self.id


class Baskets(TableProjection, name="fork-baskets"):
    baskets = Table(
        "fork_baskets",
        TableProjection.metadata,
        Column("basket", String, primary_key=True),
        Column("items", Integer, nullable=False),
    )

    @on(ItemAdded)
    def _added(self, event: ItemAdded, record: RecordedEvent) -> None:
        basket = record.stream.split("/")[1]
        if self.get(self.baskets, basket) is None:
            self.insert(self.baskets, basket=basket, items=0)
        self.add(self.baskets, basket, items=1)


@pytest.fixture
def store(database_url: str) -> Iterator[EventStore]:
    with EventStore(database_url) as opened:
        yield opened


def filled(store: EventStore, id: str, *items: str) -> Basket:
    basket = Basket(id)
    basket.add(*items)
    store.save(basket)
    return basket


def test_a_fork_begins_where_its_source_is_and_goes_its_own_way(store: EventStore) -> None:
    basket = filled(store, "b", "tea", "milk", "salt", "rice")
    fork = store.fork(Basket, "b", "what-if")
    assert (fork.id, fork.version, fork.items) == ("what-if", 4, basket.items)
    assert fork.seen_by == "what-if"  # it was folded as what it is now
    fork.add("gold")
    store.save(fork)
    basket.add("bread")
    store.save(basket)
    assert store.load(Basket, "what-if").items[4:] == ["gold"]
    assert store.load(Basket, "b").items[4:] == ["bread"]
    originals = list(store.read("fork-baskets/b/events", until=4))
    copies = list(store.read("fork-baskets/what-if/events", until=4))
    assert [r.id for r in copies] == [r.id for r in originals]
    assert [r.recorded_at for r in copies] == [r.recorded_at for r in originals]


def test_a_fork_of_the_past(store: EventStore) -> None:
    basket = filled(store, "b", "tea")
    long_ago = datetime(2020, 1, 1, tzinfo=UTC)
    store.append("fork-baskets/old/events", ItemAdded("axe"), recorded_at=long_ago)
    cut = store.cut()
    basket.add("milk")
    store.save(basket)
    store.append("fork-baskets/old/events", ItemAdded("saw"))
    assert store.fork(Basket, "b", "first", version=1).items == ["tea"]
    assert store.fork(Basket, "b", "then", at=cut).items == ["tea"]
    later = long_ago + timedelta(days=1)
    assert store.fork(Basket, "old", "older", at=later).items == ["axe"]
    assert store.load(Basket, "older", at=long_ago).items == ["axe"]


def test_what_cannot_be_forked(store: EventStore) -> None:
    filled(store, "b", "tea")
    filled(store, "taken", "milk")
    filled(store, "gone", "salt")
    store.delete(Basket, "gone")
    head = store.head()
    with pytest.raises(StreamNotFoundError):
        store.fork(Basket, "nobody", "new")
    with pytest.raises(StreamNotFoundError):
        store.fork(Basket, "b", "new", at=datetime(2020, 1, 1, tzinfo=UTC))
    with pytest.raises(InvalidArgumentError):
        store.fork(Basket, "b", "new", version=2)
    with pytest.raises(StreamDeletedError):
        store.fork(Basket, "gone", "new")
    with pytest.raises(StreamDeletedError):
        store.fork(Basket, "b", "gone")
    with pytest.raises(WrongExpectedVersionError) as caught:
        store.fork(Basket, "b", "taken")
    assert (caught.value.stream, caught.value.actual) == ("fork-baskets/taken/events", 1)
    with pytest.raises(InvalidNameError):
        store.fork(Basket, "b", "a\nb")
    assert store.head() == head
    assert not store.exists(Basket, "new")


def test_a_fork_outlives_its_source(store: EventStore) -> None:
    filled(store, "b", "tea")
    store.fork(Basket, "b", "kept")
    store.delete(Basket, "b")
    assert store.load(Basket, "kept").items == ["tea"]


def test_a_fork_joins_the_callers_transaction(store: EventStore) -> None:
    filled(store, "b", "tea")
    with store.engine.connect() as db:
        assert store.fork(Basket, "b", "draft", connection=db).items == ["tea"]
        db.rollback()
        assert not store.exists(Basket, "draft")
        store.fork(Basket, "b", "draft", connection=db)
        db.commit()
    assert store.load(Basket, "draft").items == ["tea"]


def rows(store: EventStore) -> dict[str, int]:
    with store.connect() as db:
        return dict(map(tuple, db.execute(select(Baskets.baskets))))


def test_projections_see_a_fork_as_another_aggregate(store: EventStore) -> None:
    filled(store, "b", "tea", "milk")
    store.catch_up(Baskets)
    store.fork(Basket, "b", "what-if", version=1)
    store.catch_up(Baskets)
    assert rows(store) == {"b": 2, "what-if": 1}


def test_projections_in_step_see_it_at_once(database_url: str) -> None:
    with EventStore(database_url, in_step=[Baskets]) as store:
        filled(store, "b", "tea", "milk")
        store.fork(Basket, "b", "what-if")
        assert rows(store) == {"b": 2, "what-if": 2}
        with pytest.raises(WrongExpectedVersionError):
            store.fork(Basket, "b", "what-if")
        with store.engine.connect() as db:
            store.fork(Basket, "b", "draft", connection=db)
            db.rollback()
        assert rows(store) == {"b": 2, "what-if": 2}


def test_forking_with_asyncio(tmp_path: Path) -> None:
    async def main() -> None:
        async with AsyncEventStore(f"sqlite:///{tmp_path / 'events.db'}") as store:
            await store.append("fork-baskets/b/events", ItemAdded("tea"))
            assert (await store.fork(Basket, "b", "what-if")).items == ["tea"]

    asyncio.run(main())
