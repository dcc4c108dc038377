"""Commands in a transaction: what is tried again, and what has one effect however often it is."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor

import pytest
from purses import Deposited, Purse, purse

from eventstore import (
    EventStore,
    IdempotencyKeyReusedError,
    InvalidArgumentError,
    LogLockedError,
    StreamNotFoundError,
    WrongExpectedVersionError,
)

# --- transact ------------------------------------------------------------------------------------


def test_transact_gives_back_what_the_command_does(store: EventStore) -> None:
    store.save(purse("a", 1))
    assert store.transact(Purse, "a", Purse.deposit, 5, times=2) == 11
    assert store.transact(Purse, "a", lambda p: p.balance) == 11
    assert store.version("store-purse/a") == 3


def test_racing_transactions_lose_nothing(database_url: str) -> None:
    threads, each = 8, 10
    with EventStore(database_url, max_attempts=1000, lock_timeout=60) as store:
        store.save(purse("a", 1))
        start = threading.Barrier(threads)

        def work(number: int) -> None:
            start.wait()
            for _ in range(each):
                store.transact(Purse, "a", Purse.deposit, number + 1)

        with ThreadPoolExecutor(threads) as pool:
            list(pool.map(work, range(threads)))
        expected = 1 + each * sum(range(1, threads + 1))
        assert store.version("store-purse/a") == 1 + threads * each
        assert store.load(Purse, "a").balance == expected
        store.delete_snapshots()
        assert store.load(Purse, "a").balance == expected


def test_a_command_runs_again_on_a_conflict_with_the_newer_state(store: EventStore) -> None:
    store.save(purse("a", 1))
    seen = []

    def double(mine: Purse) -> None:
        seen.append(mine.balance)
        if len(seen) == 1:  # somebody else is quicker
            store.append("store-purse/a", Deposited(10))
        mine.deposit(mine.balance)

    store.transact(Purse, "a", double)
    assert seen == [1, 11]
    assert store.load(Purse, "a").balance == 22


def test_attempts_are_bounded(database_url: str) -> None:
    with EventStore(database_url, max_attempts=3) as store:
        store.save(purse("a", 1))
        tries = 0

        def never(mine: Purse) -> None:
            nonlocal tries
            tries += 1
            store.append("store-purse/a", Deposited(1))
            mine.deposit(1000)

        with pytest.raises(WrongExpectedVersionError) as caught:
            store.transact(Purse, "a", never)
        assert tries == 3
        assert (caught.value.expected, caught.value.actual) == (3, 4)
        assert store.load(Purse, "a").balance == 4
    with pytest.raises(InvalidArgumentError):
        EventStore(database_url, max_attempts=0)


@pytest.mark.parametrize(
    "error", [ValueError("no"), LogLockedError("locked"), StreamNotFoundError("x")]
)
def test_only_conflicts_are_retried(
    store: EventStore, monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    store.save(purse("a", 1))
    calls = 0

    def refuse(*_: object, **__: object) -> None:
        nonlocal calls
        calls += 1
        raise error

    monkeypatch.setattr(store.log, "append", refuse)
    with pytest.raises(type(error)):
        store.transact(Purse, "a", Purse.deposit, 1)
    assert calls == 1


def test_the_conflict_of_another_stream_inside_a_command_is_not_retried(store: EventStore) -> None:
    store.save(purse("a", 1))
    tries = 0

    def command(mine: Purse) -> None:
        nonlocal tries
        tries += 1
        store.append("s/other", Deposited(1), expected=99)

    with pytest.raises(WrongExpectedVersionError):
        store.transact(Purse, "a", command)
    assert tries == 1


def test_a_command_that_fails_leaves_nothing(store: EventStore) -> None:
    store.save(purse("a", 1))

    def fails(mine: Purse) -> None:
        mine.deposit(5)
        mine.deposit(-1)

    with pytest.raises(ValueError, match="positive"):
        store.transact(Purse, "a", fails)
    assert store.load(Purse, "a").balance == 1
    assert store.version("store-purse/a") == 1


# --- transact_once -------------------------------------------------------------------------------


def test_transact_once_has_one_effect_a_key(store: EventStore) -> None:
    store.save(purse("a", 1))
    assert store.transact_once("k1", Purse, "a", Purse.deposit, 5) == 6
    assert store.transact_once("k1", Purse, "a", Purse.deposit, 5) is None
    assert store.transact_once("k2", Purse, "a", Purse.deposit, 5) == 11
    assert store.load(Purse, "a").balance == 11


def test_transact_once_leaves_the_key_free_where_nothing_was_recorded(store: EventStore) -> None:
    store.save(purse("a", 1))
    assert store.transact_once("k", Purse, "a", Purse.look) == 1
    with pytest.raises(ValueError, match="positive"):
        store.transact_once("k", Purse, "a", Purse.deposit, -1)
    assert store.transact_once("k", Purse, "a", Purse.deposit, 5) == 6


@pytest.mark.parametrize("cache", [0, 10])
def test_transact_once_racing_itself_has_one_effect(database_url: str, cache: int) -> None:
    with EventStore(database_url, cache=cache, max_attempts=100) as store:
        store.save(purse("a", 1))
        for round in range(5):
            key = f"k{round}"
            start = threading.Barrier(4)

            def work(
                _: int, key: str = key, start: threading.Barrier = start, round: int = round
            ) -> int | None:
                start.wait()
                return store.transact_once(key, Purse, "a", Purse.deposit, 10**round)

            with ThreadPoolExecutor(4) as pool:
                results = list(pool.map(work, range(4)))
            assert len([r for r in results if r is not None]) == 1
        assert store.load(Purse, "a").balance == 1 + 11111
        assert store.version("store-purse/a") == 6
        for version in range(1, 7):
            expected = 1 + sum(10**n for n in range(version - 1))
            assert store.load(Purse, "a", version=version).balance == expected


def test_transact_once_done_by_another_during_the_command_gives_none(store: EventStore) -> None:
    store.save(purse("a", 1))

    def command(mine: Purse) -> str:
        store.save(*_deposited(store.load(Purse, "a"), 7), idempotency_key="k")
        mine.deposit(7)
        return "done"

    assert store.transact_once("k", Purse, "a", command) is None
    assert store.load(Purse, "a").balance == 8


def _deposited(mine: Purse, amount: int) -> tuple[Purse]:
    mine.deposit(amount)
    return (mine,)


def test_a_key_of_another_aggregate_is_refused(store: EventStore) -> None:
    for id in "ab":
        store.save(purse(id, 1))
    store.transact_once("once", Purse, "a", Purse.deposit, 1)
    with pytest.raises(IdempotencyKeyReusedError) as caught:
        store.transact_once("once", Purse, "b", Purse.deposit, 1)
    assert caught.value.streams == ("store-purse/b",)
    assert store.load(Purse, "b").balance == 1
