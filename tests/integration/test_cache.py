"""Snapshots and the cache spare a load the reading, and change no answer."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
from purses import Deposited, Letter, Noted, Purse, purse

from eventstore import EventStore, InvalidArgumentError, StreamDeletedError

# --- snapshots -----------------------------------------------------------------------------------


def test_snapshots_are_kept_by_policy_and_thrown_away_on_demand(store: EventStore) -> None:
    for id in "ab":
        mine = Purse(id)
        for _ in range(10):
            mine.deposit(1)
            store.save(mine)
    assert store.delete_snapshots(Purse, "a") == 3
    assert store.delete_snapshots(Purse, "a") == 0
    assert store.delete_snapshots() == 3
    with pytest.raises(InvalidArgumentError):
        store.delete_snapshots(Purse)
    with pytest.raises(InvalidArgumentError):
        store.delete_snapshots(id="a")


def test_a_load_that_replayed_much_keeps_a_snapshot(store: EventStore) -> None:
    store.append("store-purse/a", [Deposited(1)] * 10)
    assert store.load(Purse, "a").balance == 10
    assert store.delete_snapshots() == 1


# --- cache ---------------------------------------------------------------------------------------


@pytest.fixture
def cached(database_url: str) -> Iterator[EventStore]:
    with EventStore(database_url, cache=2) as opened:
        yield opened


def rows_folded(store: EventStore, monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """How many events each load read, from now on."""
    folded: list[int] = []
    fold = store.log.fold

    def counting(*arguments: Any, **named: Any) -> Any:
        snapshot, pages = fold(*arguments, **named)
        read = list(pages)
        folded.append(sum(map(len, read)))
        return snapshot, iter(read)

    monkeypatch.setattr(store.log, "fold", counting)
    return folded


def test_a_cached_aggregate_reads_newer_events_only(
    cached: EventStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    cached.save(purse("a", 1, 2, 3, 4))
    folded = rows_folded(cached, monkeypatch)
    assert cached.load(Purse, "a").balance == 10
    cached.append("store-purse/a", Deposited(5))  # behind the cache's back
    assert cached.load(Purse, "a").balance == 15
    assert cached.load(Purse, "a").balance == 15
    assert folded == [0, 1, 0]


def test_the_cache_sees_what_other_stores_write(database_url: str, cached: EventStore) -> None:
    cached.save(purse("a", 1))
    with EventStore(cached.engine) as other:
        other.transact(Purse, "a", Purse.deposit, 5)
        assert cached.load(Purse, "a").balance == 6
        other.delete(Purse, "a")
        with pytest.raises(StreamDeletedError):
            cached.load(Purse, "a")


def test_the_cache_is_bounded(cached: EventStore, monkeypatch: pytest.MonkeyPatch) -> None:
    for id in "abc":
        letter = Letter(id)
        letter.record(Noted(id))
        cached.save(letter)
    folded = rows_folded(cached, monkeypatch)
    for id in "bcabc":
        assert cached.load(Letter, id).text == id
    assert folded == [0, 0, 1, 1, 1]  # the one that was used least recently makes room


def test_the_cache_shares_no_instance(cached: EventStore) -> None:
    mine = Purse("a")
    mine.note("one")
    cached.save(mine)
    mine.notes.append("not an event")
    one, two = cached.load(Purse, "a"), cached.load(Purse, "a")
    assert one is not two
    assert one.notes == two.notes == ["one"]
    one.notes.append("mine alone")
    one.note("unsaved")
    assert cached.load(Purse, "a").notes == ["one"]


def test_the_past_does_not_come_from_the_cache(cached: EventStore) -> None:
    moment = cached.append("store-purse/a", Deposited(1)).recorded_at
    cached.append("store-purse/a", Deposited(2))
    assert cached.load(Purse, "a").balance == 3
    assert cached.load(Purse, "a", version=1).balance == 1
    assert cached.load(Purse, "a", at=moment).balance in (1, 3)
    assert cached.load(Purse, "a").balance == 3


def test_what_was_rolled_back_is_not_cached(cached: EventStore) -> None:
    cached.save(purse("a", 1))
    with cached.connect() as connection:
        mine = cached.load(Purse, "a", connection=connection)
        mine.deposit(100)
        cached.save(mine, connection=connection)
        assert cached.load(Purse, "a", connection=connection).balance == 101
        connection.rollback()
    assert cached.load(Purse, "a").balance == 1
