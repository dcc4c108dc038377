"""EventStore on every backend: transactions, idempotency, cache, metadata, deletion, errors."""

from __future__ import annotations

import asyncio
import pickle
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime
from typing import Any

import pytest
from sqlalchemy import insert, select
from sqlalchemy.orm import DeclarativeBase, Mapped, Session, mapped_column, scoped_session
from sqlalchemy.orm import sessionmaker as make_sessions

import eventstore
from eventstore import (
    ANY,
    NO_STREAM,
    STREAM_EXISTS,
    Aggregate,
    Difference,
    Event,
    EventStore,
    EventStoreError,
    EventTooLargeError,
    IdempotencyKeyReusedError,
    InvalidArgumentError,
    InvalidEventError,
    InvalidNameError,
    InvalidTimeError,
    LogLockedError,
    StoreClosedError,
    StreamDeleted,
    StreamDeletedError,
    StreamNotFoundError,
    Write,
    WrongExpectedVersionError,
    bind,
    caused_by,
    context,
    on,
)


class Deposited(Event, name="store-deposited"):
    amount: int


class Noted(Event, name="store-noted"):
    text: str


class Purse(Aggregate, stream="store-purse/{id}", snapshot_every=3):
    balance: int = 0
    notes: list[str] = []  # noqa: RUF012 (each instance has its own copy)

    def deposit(self, amount: int, *, times: int = 1) -> int:
        if amount <= 0:
            raise ValueError("a deposit must be positive")
        for _ in range(times):
            self.record(Deposited(amount))
        return self.balance

    def note(self, text: str) -> None:
        self.record(Noted(text))

    def look(self) -> int:
        return self.balance

    @on(Deposited)
    def _deposited(self, event: Deposited) -> None:
        self.balance += event.amount

    @on(Noted)
    def _noted(self, event: Noted) -> None:
        self.notes.append(event.text)


class Letter(Aggregate, stream="store-letters/{id}/events"):
    text: str = ""

    @on(Noted)
    def _noted(self, event: Noted) -> None:
        self.text = event.text


def purse(id: str, *amounts: int) -> Purse:
    made = Purse(id)
    for amount in amounts:
        made.deposit(amount)
    return made


@pytest.fixture
def store(database_url: str) -> Iterator[EventStore]:
    with EventStore(database_url) as opened:
        yield opened


def amounts(store: EventStore, stream: str) -> list[int]:
    return [r.event.amount for r in store.read(stream) if isinstance(r.event, Deposited)]


# --- save and load ---------------------------------------------------------------------------


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


# --- appending to streams ----------------------------------------------------------------------


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


# --- transact ----------------------------------------------------------------------------------


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


# --- idempotency -------------------------------------------------------------------------------


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


# --- deletion ----------------------------------------------------------------------------------


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


# --- many: ids, load_all, streams --------------------------------------------------------------


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


# --- snapshots ---------------------------------------------------------------------------------


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


# --- cache -------------------------------------------------------------------------------------


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


# --- metadata ----------------------------------------------------------------------------------


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


# --- the caller's transaction ------------------------------------------------------------------


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


# --- closing -----------------------------------------------------------------------------------


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


def test_a_key_of_another_aggregate_is_refused(store: EventStore) -> None:
    for id in "ab":
        store.save(purse(id, 1))
    store.transact_once("once", Purse, "a", Purse.deposit, 1)
    with pytest.raises(IdempotencyKeyReusedError) as caught:
        store.transact_once("once", Purse, "b", Purse.deposit, 1)
    assert caught.value.streams == ("store-purse/b",)
    assert store.load(Purse, "b").balance == 1


# --- errors ------------------------------------------------------------------------------------


def _errors() -> dict[str, EventStoreError]:
    corrupt = eventstore.CorruptEventError("t", "bad bytes")
    corrupt.locate("s/1", 3, 17)
    made: list[EventStoreError] = [
        eventstore.EventStoreError("plain"),
        eventstore.DefinitionError("m.C", "wrong", member="handler"),
        eventstore.EventNameTakenError("m.C", "n", "m.D"),
        InvalidEventError("t", "why"),
        EventTooLargeError("t", 10, 5),
        InvalidNameError("an id", "\x00", "control"),
        InvalidTimeError(datetime(2020, 1, 1), "naive"),
        InvalidArgumentError("limit", -1, "no"),
        InvalidArgumentError("connection", threading.Lock(), "cannot be pickled itself"),
        eventstore.StreamError("about"),
        WrongExpectedVersionError("s/1", NO_STREAM, 4),
        StreamNotFoundError("s/1", datetime(2020, 1, 1, tzinfo=UTC)),
        StreamDeletedError("s/1"),
        IdempotencyKeyReusedError("k", ("a",), ("b", "c")),
        eventstore.StoredEventError("t", "problem"),
        corrupt,
        eventstore.UnknownEventError("t"),
        eventstore.NewerEventError("t", 3, 2),
        eventstore.SchemaError(None, "2", "p"),
        eventstore.SchemaMissingError(None, "2", "p"),
        eventstore.SchemaOutdatedError("1", "2", "p"),
        eventstore.SchemaTooNewError("3", "2", "p"),
        eventstore.LogError("p"),
        LogLockedError("p"),
        eventstore.LogReadOnlyError("p"),
        eventstore.LogUnavailableError("p", "unknown"),
        eventstore.LogStalledError(5, ("process 1",), 2.0),
        StoreClosedError(),
        eventstore.CheckpointAheadError(9, 5),
        eventstore.FollowerError("about"),
        eventstore.HandlerError("Balances", "s/1", 2, 7, "t", "ValueError: no"),
        eventstore.LeaseLostError("Balances", 0, 3),
        eventstore.NotCaughtUpError("Balances", 5, 9, 1.5),
        eventstore.NotInStepError("Balances"),
        eventstore.ParkedEventsError("Balances"),
        eventstore.ProjectionChangedError("Balances", 2),
        eventstore.ProjectionOutdatedError("Balances", 1, 2),
        eventstore.RebuildDiffersError("Balances", (Difference("t", None, {"a": 1}),), True),
        eventstore.RebuildRunningError("Balances", "a worker"),
        eventstore.RowNotFoundError("balances", ("alice",)),
        eventstore.ShardsChangedError("Balances", 2, 3),
        eventstore.TableTakenError("Balances", "balances"),
    ]
    return {f"{number}-{type(error).__name__}": error for number, error in enumerate(made)}


@pytest.mark.parametrize("error", _errors().values(), ids=_errors().keys())
def test_every_error_crosses_process_borders(error: EventStoreError) -> None:
    copied = pickle.loads(pickle.dumps(error))
    assert type(copied) is type(error)
    assert str(copied) == str(error)
    assert copied.args == error.args
    for name, value in vars(error).items():
        carried = getattr(copied, name)
        assert carried == (value if name != "value" or value == carried else repr(value))


def test_every_exported_error_is_tried_for_pickling() -> None:
    exported = {
        member
        for member in vars(eventstore).values()
        if isinstance(member, type) and issubclass(member, EventStoreError)
    }
    assert exported == {type(error) for error in _errors().values()}


def test_errors_in_handlers_say_which_event(store: EventStore) -> None:
    class Picky(Aggregate, stream="store-picky/{id}"):
        @on(Deposited)
        def _deposited(self, event: Deposited) -> None:
            if event.amount < 0:
                raise RuntimeError("negative")

    store.append("store-picky/a", [Deposited(1), Deposited(-1)])
    with pytest.raises(RuntimeError) as caught:
        store.load(Picky, "a")
    assert "version 2 of 'store-picky/a'" in "".join(caught.value.__notes__)


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
