"""Appends: expected versions, limits, idempotency keys and metadata."""

from __future__ import annotations

import asyncio
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
from purses import Deposited, Noted, Purse, amounts, purse

from eventstore import (
    ANY,
    NO_STREAM,
    STREAM_EXISTS,
    EventStore,
    EventTooLargeError,
    IdempotencyKeyReusedError,
    InvalidArgumentError,
    InvalidEventError,
    InvalidNameError,
    Write,
    WrongExpectedVersionError,
    bind,
    caused_by,
    context,
)

# --- appending to streams ------------------------------------------------------------------------


def test_expected_versions_decide(store: EventStore) -> None:
    for expected in (STREAM_EXISTS, 1, 5):
        with pytest.raises(WrongExpectedVersionError) as caught:
            store.append("s/1", Deposited(1), expected=expected)
        assert (caught.value.expected, caught.value.actual) == (expected, 0)
    assert store.append("s/1", Deposited(1), expected=NO_STREAM).version == 1
    for expected in (NO_STREAM, 0, 2):
        with pytest.raises(WrongExpectedVersionError) as caught:
            store.append("s/1", Deposited(1), expected=expected)
        assert (caught.value.expected, caught.value.actual) == (expected, 1)
    assert store.append("s/1", Deposited(2), expected=1).version == 2
    assert store.append("s/1", Deposited(3), expected=STREAM_EXISTS).version == 3
    assert store.append("s/1", [Deposited(4), Deposited(5)], expected=ANY).version == 5
    assert amounts(store, "s/1") == [1, 2, 3, 4, 5]


def test_an_append_to_several_streams_is_all_or_none(store: EventStore) -> None:
    store.append("s/1", Deposited(1))
    with pytest.raises(WrongExpectedVersionError):
        store.append_all([Write("s/2", Deposited(2), NO_STREAM), Write("s/1", Deposited(3), 5)])
    assert store.version("s/2") == 0
    first, second = store.append_all(
        [Write("s/2", [Deposited(2), Deposited(3)], NO_STREAM), Write("s/1", Deposited(4), 1)]
    )
    assert (first.stream, first.version, second.stream, second.version) == ("s/2", 2, "s/1", 2)
    assert first.recorded_at == second.recorded_at


def test_a_write_without_events_is_a_condition(store: EventStore) -> None:
    store.append("s/1", Deposited(1))
    receipts = store.append_all([Write("s/1", [], 1), Write("s/2", Deposited(2))])
    assert [r.version for r in receipts] == [1, 1]
    with pytest.raises(WrongExpectedVersionError):
        store.append_all([Write("s/1", [], 2), Write("s/2", Deposited(3))])
    assert store.version("s/2") == 1


def test_a_value_of_a_wrong_type_is_refused_and_nothing_is_written(store: EventStore) -> None:
    with pytest.raises(InvalidEventError) as caught:
        store.append("s/1", [Deposited(1), Deposited("much")])  # type: ignore[arg-type]
    assert caught.value.event_type == "store-deposited"
    assert "amount" in caught.value.reason
    assert store.version("s/1") == 0


def test_an_event_over_the_limit_is_refused(database_url: str) -> None:
    with EventStore(database_url, max_event_bytes=200) as store:
        fits = "x" * (200 - len('{"text":""}'))
        store.append("s/1", Noted(fits))
        with pytest.raises(EventTooLargeError) as caught:
            store.append("s/1", [Noted("small"), Noted(fits + "x")])
        error = caught.value
        assert (error.event_type, error.size, error.limit) == ("store-noted", 201, 200)
        with context(blob="x" * 300), pytest.raises(EventTooLargeError) as caught:
            store.append("s/1", Noted("small"))
        assert caught.value.event_type == "metadata"
        mine = Purse("a")
        mine.note(fits + "x")
        with pytest.raises(EventTooLargeError):
            store.save(mine)
        assert len(mine.pending) == 1
        assert store.version("s/1") == 1


def test_limits_of_a_read_are_checked(store: EventStore) -> None:
    store.append("s/1", [Deposited(n) for n in range(5)])
    assert [r.version for r in store.read("s/1", limit=0)] == []
    assert [r.version for r in store.read("s/1", limit=2, backwards=True)] == [5, 4]
    with pytest.raises(InvalidArgumentError):
        store.read("s/1", limit=-1)
    with pytest.raises(InvalidArgumentError):
        store.read_all(limit=-1)


def test_reads_go_on_over_many_pages(store: EventStore) -> None:
    store.append("s/1", [Deposited(n) for n in range(2500)])
    store.append("s/2", Deposited(-1))
    assert amounts(store, "s/1") == list(range(2500))
    back = [r.event for r in store.read("s/1", backwards=True, after=10, until=2400)]
    assert back == [Deposited(n) for n in range(2399, 9, -1)]
    assert len(list(store.read_all(categories=["s"], limit=2200))) == 2200
    assert len(list(store.read_all(backwards=True))) == 2501
    big = purse("big", *([1] * 2100))
    store.save(big)
    store.delete_snapshots()
    assert store.load(Purse, "big").balance == 2100
    assert store.load(Purse, "big", version=2050).balance == 2050
    assert sum(1 for _ in store.history(Purse, "big", after=1990, until=2050)) == 60


# --- idempotency ---------------------------------------------------------------------------------


def test_a_repeated_append_gives_the_first_receipt(store: EventStore) -> None:
    first = store.append("s/1", Deposited(1), expected=0, idempotency_key="k")
    store.append("s/1", Deposited(2))
    assert store.append("s/1", Deposited(1), expected=0, idempotency_key="k") == first
    assert amounts(store, "s/1") == [1, 2]


def test_a_key_for_other_streams_is_refused(store: EventStore) -> None:
    store.append("s/1", Deposited(1), idempotency_key="k")
    with pytest.raises(IdempotencyKeyReusedError) as caught:
        store.append("s/2", Deposited(1), idempotency_key="k")
    assert (caught.value.key, caught.value.streams, caught.value.first) == (
        "k",
        ("s/2",),
        ("s/1",),
    )
    assert store.version("s/2") == 0


def test_a_refused_append_leaves_its_key_free(store: EventStore) -> None:
    with pytest.raises(WrongExpectedVersionError):
        store.append("s/1", Deposited(1), expected=9, idempotency_key="k")
    assert store.append("s/1", Deposited(1), idempotency_key="k").version == 1


def test_a_repeated_save_writes_once(store: EventStore) -> None:
    for _ in range(3):  # as after an acknowledgement that was lost
        mine = purse("a", 5, 6)
        other = purse("b", 1)
        store.save(mine, other, idempotency_key="request-1")
        assert (mine.version, other.version, mine.pending) == (2, 1, ())
    assert store.version("store-purse/a") == 2
    assert store.load(Purse, "b").balance == 1


@pytest.mark.parametrize("cache", [0, 10])
def test_a_repeated_save_of_other_events_changes_no_answer(database_url: str, cache: int) -> None:
    with EventStore(database_url, cache=cache) as store:
        store.save(purse("a", 1, 1, 1), idempotency_key="k")
        store.delete_snapshots()
        store.save(purse("a", 50, 50, 50), idempotency_key="k")
        assert store.load(Purse, "a").balance == 3
        late = store.load(Purse, "a")
        late.deposit(500)
        store.save(late, idempotency_key="k")
        assert store.load(Purse, "a").balance == 3
        assert store.load(Purse, "a", version=3).balance == 3


@pytest.mark.parametrize("key", ["", "a\nb", "\ud800", "x" * 513, 7])
def test_a_key_that_no_database_could_keep_is_refused_before_anything_is_written(
    store: EventStore, key: Any
) -> None:
    purse = Purse("keyed")
    purse.deposit(1)
    with pytest.raises(InvalidNameError, match="idempotency key"):
        store.save(purse, idempotency_key=key)
    with pytest.raises(InvalidNameError, match="idempotency key"):
        store.append("keys/one", Deposited(amount=1), idempotency_key=key)
    with pytest.raises(InvalidNameError, match="idempotency key"):
        store.transact_once(key, Purse, "keyed", Purse.deposit, 1)
    assert store.head() == 0
    assert purse.pending == (Deposited(amount=1),)


# --- metadata ------------------------------------------------------------------------------------


def test_the_context_is_carried_and_inner_values_win(store: EventStore) -> None:
    store.append("s/1", Deposited(0))
    with context(correlation_id="c", user="ann"):
        store.append("s/1", Deposited(1))
        with context(user="bob", tags=["x"]):
            store.append("s/1", Deposited(2))
        store.save(purse("a", 1))
    store.append("s/1", Deposited(3))
    plain, outer, inner, after = (r.metadata for r in store.read("s/1"))
    assert dict(plain) == dict(after) == {}
    assert dict(outer) == {"correlation_id": "c", "user": "ann"}
    assert outer.correlation_id == "c"
    assert dict(inner) == {"correlation_id": "c", "user": "bob", "tags": ["x"]}
    (saved,) = store.read("store-purse/a")
    assert saved.metadata["user"] == "ann"


def test_an_event_names_its_cause_and_shares_its_conversation(store: EventStore) -> None:
    store.append("s/1", Deposited(1))
    (first,) = store.read("s/1")
    with caused_by(first):
        store.append("s/2", Deposited(2))
    (second,) = store.read("s/2")
    with caused_by(second):
        store.append("s/3", Deposited(3))
    (third,) = store.read("s/3")
    assert second.metadata.causation_id == str(first.id)
    assert second.metadata.correlation_id == str(first.id)
    assert third.metadata.causation_id == str(second.id)
    assert third.metadata.correlation_id == str(first.id)


def test_tasks_have_contexts_of_their_own(store: EventStore) -> None:
    async def write(number: int) -> None:
        with context(task=number):
            await asyncio.sleep(0)
            store.append(f"s/{number}", Deposited(number))
            await asyncio.sleep(0)
            await asyncio.to_thread(store.append, f"s/{number}", Deposited(number))

    async def main() -> None:
        with context(correlation_id="all"):
            await asyncio.gather(*(write(number) for number in range(5)))

    asyncio.run(main())
    for number in range(5):
        carried = [dict(r.metadata) for r in store.read(f"s/{number}")]
        assert carried == [{"correlation_id": "all", "task": number}] * 2


def test_threads_carry_the_context_when_bound(store: EventStore) -> None:
    def write(stream: str) -> None:
        store.append(stream, Deposited(1))

    with ThreadPoolExecutor(2) as pool, context(user="ann"):
        pool.submit(bind(write), "s/bound").result()
        pool.submit(write, "s/plain").result()
    assert [dict(r.metadata) for r in store.read("s/bound")] == [{"user": "ann"}]
    assert [dict(r.metadata) for r in store.read("s/plain")] == [{}]
