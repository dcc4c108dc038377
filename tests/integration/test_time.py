"""The past: boundaries are exact to the microsecond, on every backend."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta, timezone
from typing import Any
from zoneinfo import ZoneInfo

import pytest

from eventstore import (
    Aggregate,
    Cut,
    Event,
    EventStore,
    InvalidArgumentError,
    InvalidTimeError,
    StreamNotFoundError,
    Write,
    on,
)

MICROSECOND = timedelta(microseconds=1)
NOON = datetime(2026, 3, 1, 12, 0, 0, 500_000, tzinfo=UTC)


class Counted(Event, name="time-counted"):
    by: int


class Counter(Aggregate, stream="time-counter/{id}", snapshot_every=2):
    total: int = 0

    def count(self, by: int) -> None:
        self.record(Counted(by))

    @on(Counted)
    def _counted(self, event: Counted) -> None:
        self.total += event.by


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


def counted(store: EventStore, id: str, by: int, **options: Any) -> datetime:
    return store.append(f"time-counter/{id}", Counted(by), **options).recorded_at


def total(store: EventStore, at: datetime | Cut | None, id: str = "a") -> int | None:
    """The total then; None: it was not there."""
    try:
        return store.load(Counter, id, at=at).total
    except StreamNotFoundError as error:
        assert error.when == (at.at if isinstance(at, Cut) else at)  # noqa: PT017
        assert error.stream == f"time-counter/{id}"  # noqa: PT017
        return None


def test_a_moment_is_inclusive_to_the_microsecond(store: EventStore, clock: Clock) -> None:
    first = counted(store, "a", 1)
    second_at = clock.step(seconds=1)
    counted(store, "a", 10)
    third_at = clock.step(microseconds=1)
    counted(store, "a", 100)
    assert (first, third_at - second_at) == (NOON, MICROSECOND)
    for at, expected in [
        (NOON - timedelta(days=10_000), None),
        (NOON - MICROSECOND, None),
        (NOON, 1),
        (NOON + MICROSECOND, 1),
        (second_at - MICROSECOND, 1),
        (second_at, 11),
        (third_at, 111),
        (third_at + MICROSECOND, 111),
        (third_at + timedelta(days=100_000), 111),
    ]:
        assert total(store, at) == expected, at
        assert total(store, store.cut(at)) == expected, at
        count = 0 if expected is None else len(str(expected))
        assert len(list(store.read("time-counter/a", at=at))) == count
        assert len(list(store.read_all(at=at))) == count
        assert len(list(store.read_all(at=store.cut(at), backwards=True))) == count


def test_moments_come_back_exactly(store: EventStore, clock: Clock) -> None:
    for moment in (
        datetime(1969, 12, 31, 23, 59, 59, 999_999, tzinfo=UTC),
        datetime(2001, 9, 9, 1, 46, 40, 1, tzinfo=UTC),
        datetime(2200, 1, 1, 0, 0, 0, 123_457, tzinfo=UTC),
    ):
        clock.time = moment
        id = str(moment.year)
        counted(store, id, 1)
        (record,) = store.read(f"time-counter/{id}")
        assert record.recorded_at == moment
        assert record.recorded_at.tzinfo is UTC
        assert record.timestamp == (moment - datetime(1970, 1, 1, tzinfo=UTC)) // timedelta(
            milliseconds=1
        )
        assert total(store, moment, id) == 1
        assert total(store, moment - MICROSECOND, id) is None


def test_before_the_first_event_nothing_is_found(store: EventStore) -> None:
    counted(store, "a", 1)
    with pytest.raises(StreamNotFoundError) as caught:
        store.load(Counter, "a", at=NOON - MICROSECOND)
    assert caught.value.when == NOON - MICROSECOND
    assert str(caught.value.when) in str(caught.value)


NAIVE = datetime(2026, 3, 1, 12)

CALLS: dict[str, Callable[[EventStore, Any], object]] = {
    "load": lambda store, at: store.load(Counter, "a", at=at),
    "load_all": lambda store, at: list(store.load_all(Counter, at=at)),
    "read": lambda store, at: store.read("time-counter/a", at=at),
    "read_all": lambda store, at: store.read_all(at=at),
    "cut": lambda store, at: store.cut(at),
    "a cut of one's own": lambda store, at: store.load(Counter, "a", at=Cut(1, at)),
    "append": lambda store, at: store.append("time-counter/a", Counted(1), recorded_at=at),
    "append_all": lambda store, at: store.append_all(
        [Write("time-counter/a", Counted(1))], recorded_at=at
    ),
    "save": lambda store, at: store.save(_changed(store), recorded_at=at),
}


def _changed(store: EventStore) -> Counter:
    counter = store.load(Counter, "a")
    counter.count(5)
    return counter


@pytest.mark.parametrize("call", CALLS.values(), ids=CALLS.keys())
@pytest.mark.parametrize("bad", [NAIVE, "2026-03-01T12:00:00Z", 1772366400, NAIVE.date()])
def test_what_is_no_moment_is_refused(
    store: EventStore, call: Callable[[EventStore, Any], object], bad: object
) -> None:
    counted(store, "a", 1)
    with pytest.raises(InvalidTimeError) as caught:
        call(store, bad)
    assert caught.value.value == bad
    assert isinstance(caught.value, ValueError)
    assert store.version("time-counter/a") == 1


def test_a_naive_clock_is_refused(store: EventStore, clock: Clock) -> None:
    clock.time = NAIVE
    with pytest.raises(InvalidTimeError):
        counted(store, "a", 1)
    clock.time = NOON
    assert counted(store, "a", 1) == NOON


@pytest.mark.parametrize(
    "zone",
    [timezone(timedelta(hours=-11, minutes=-30)), timezone(timedelta(hours=14)), "Europe/Berlin"],
)
def test_a_moment_in_another_time_zone_is_the_same_moment(store: EventStore, zone: Any) -> None:
    zone = ZoneInfo(zone) if isinstance(zone, str) else zone
    local = NOON.astimezone(zone)
    assert counted(store, "a", 1, recorded_at=local) == NOON
    assert total(store, local) == 1
    assert total(store, local - MICROSECOND) is None
    assert [r.recorded_at.tzinfo for r in store.read("time-counter/a", at=local)] == [UTC]


def test_the_hour_that_comes_twice_is_told_apart(store: EventStore) -> None:
    berlin = ZoneInfo("Europe/Berlin")
    summer = datetime(2026, 10, 25, 2, 30, tzinfo=berlin)
    winter = summer.replace(fold=1)
    counted(store, "a", 1, recorded_at=winter)
    assert total(store, winter) == 1
    assert total(store, summer) is None


def test_events_of_one_append_share_a_moment(store: EventStore, clock: Clock) -> None:
    store.append("time-counter/a", [Counted(1), Counted(2), Counted(3)])
    clock.step(seconds=1)
    store.append_all(
        [Write("time-counter/a", [Counted(4), Counted(5)]), Write("time-counter/b", Counted(6))]
    )
    moments = [r.recorded_at for r in store.read_all()]
    assert moments == [NOON] * 3 + [NOON + timedelta(seconds=1)] * 3
    assert total(store, NOON) == 6  # all of them, never a part
    assert total(store, NOON - MICROSECOND) is None
    assert store.load(Counter, "a", version=2).total == 3


def test_a_clock_that_steps_back_never_turns_a_stream_around(
    store: EventStore, clock: Clock
) -> None:
    counted(store, "a", 1)
    clock.step(hours=-1)
    assert counted(store, "a", 10) == NOON
    assert counted(store, "b", 5) == NOON - timedelta(hours=1)  # another stream is not held up
    clock.step(hours=2)
    assert counted(store, "a", 100) == NOON + timedelta(hours=1)
    times = [r.recorded_at for r in store.read("time-counter/a")]
    assert times == sorted(times)
    assert total(store, NOON) == 11
    assert total(store, NOON, "b") == 5


def test_an_append_to_several_streams_is_at_one_moment_not_before_any_of_them(
    store: EventStore, clock: Clock
) -> None:
    counted(store, "a", 1)
    clock.step(seconds=-5)
    receipts = store.append_all(
        [Write("time-counter/b", Counted(1)), Write("time-counter/a", Counted(1))]
    )
    assert [r.recorded_at for r in receipts] == [NOON, NOON]


def test_a_tombstone_is_not_before_what_it_ends(store: EventStore, clock: Clock) -> None:
    counted(store, "a", 1)
    clock.step(hours=-1)
    assert store.delete_stream("time-counter/a").recorded_at == NOON


def test_an_import_keeps_its_times(store: EventStore) -> None:
    days = [NOON - timedelta(days=n) for n in (400, 399, 399, 30)]
    counter = Counter("a")
    for number, day in enumerate(days):
        counter.count(10**number)
        store.save(counter, recorded_at=day)
    assert [r.recorded_at for r in store.read("time-counter/a")] == days
    assert total(store, days[0] - MICROSECOND) is None
    assert total(store, days[0]) == 1
    assert total(store, days[1]) == 111
    assert total(store, days[3]) == 1111


def test_an_earlier_import_is_raised_and_the_receipt_tells(store: EventStore) -> None:
    counted(store, "a", 1, recorded_at=NOON)
    receipt = store.append(
        "time-counter/a", [Counted(10), Counted(100)], recorded_at=NOON - timedelta(days=1)
    )
    assert receipt.recorded_at == NOON
    assert [r.recorded_at for r in store.read("time-counter/a")] == [NOON] * 3
    assert total(store, NOON - MICROSECOND) is None
    assert total(store, NOON) == 111


def test_an_import_from_the_future_holds_the_stream_there(store: EventStore) -> None:
    tomorrow = NOON + timedelta(days=1)
    counted(store, "a", 1, recorded_at=tomorrow)
    assert counted(store, "a", 10) == tomorrow
    assert total(store, NOON) is None


def test_a_cut_gives_the_same_answer_for_ever(store: EventStore, clock: Clock) -> None:
    counted(store, "a", 1)
    counted(store, "b", 2)
    cut = store.cut(NOON)
    now = store.cut()

    def answer(at: Cut) -> list[object]:
        return [
            [(c.id, c.total, c.version) for c in store.load_all(Counter, at=at)],
            [(r.position, r.stream) for r in store.read_all(at=at)],
            [r.version for r in store.read("time-counter/a", at=at)],
            total(store, at),
            total(store, at, "c"),
        ]

    before = answer(cut)
    assert before[0] == [("a", 1, 1), ("b", 2, 1)]
    assert answer(now) == before
    counted(store, "a", 10)  # at the cut's own microsecond, but later
    counted(store, "c", 3, recorded_at=NOON - timedelta(days=9))  # an import of older times
    clock.step(hours=1)
    counted(store, "b", 20)
    assert answer(cut) == answer(now) == before
    assert total(store, NOON) == 11
    assert total(store, store.cut(NOON), "c") == 3


def test_a_cut_says_what_it_is(store: EventStore) -> None:
    assert store.cut() == Cut(0, None)
    receipt = store.append("time-counter/a", Counted(1))
    assert store.cut() == Cut(receipt.position, None)
    assert store.cut(NOON) == Cut(receipt.position, NOON)


def test_a_cut_without_a_time_holds_what_was_there(store: EventStore) -> None:
    first = store.append("time-counter/a", Counted(1))
    store.append("time-counter/a", Counted(10))
    assert total(store, Cut(first.position)) == 1
    assert total(store, Cut(0)) is None


def test_load_all_leaves_out_what_was_not_there_yet(store: EventStore, clock: Clock) -> None:
    counted(store, "b", 1)
    later = clock.step(seconds=1)
    counted(store, "a", 2)
    counted(store, "b", 10)
    counted(store, "gone", 1, recorded_at=NOON)
    store.delete(Counter, "gone")

    def all_at(at: datetime | Cut | None) -> list[tuple[str, int]]:
        return [(counter.id, counter.total) for counter in store.load_all(Counter, at=at)]

    assert all_at(NOON - MICROSECOND) == []
    assert all_at(NOON) == [("b", 1)]
    assert all_at(later - MICROSECOND) == [("b", 1)]
    assert all_at(later) == all_at(None) == all_at(store.cut()) == [("a", 2), ("b", 11)]


def test_load_all_is_of_one_instant_although_writers_go_on(store: EventStore) -> None:
    counted(store, "a", 1)
    counted(store, "b", 1)
    seen = []
    for counter in store.load_all(Counter, at=NOON):
        seen.append((counter.id, counter.total))
        counted(store, "b", 100)  # at NOON too, after the cut was made
    assert seen == [("a", 1), ("b", 1)]


def test_history_has_each_event_with_the_state_it_led_to(store: EventStore, clock: Clock) -> None:
    for by in (1, 10, 100):
        counted(store, "a", by)
        clock.step(seconds=1)
    steps = list(store.history(Counter, "a"))
    assert [(s.record.version, s.state.version, s.state.total) for s in steps] == [
        (1, 1, 1),
        (2, 2, 11),
        (3, 3, 111),
    ]
    assert [s.record.event for s in steps] == [Counted(1), Counted(10), Counted(100)]
    assert [s.record.recorded_at - NOON for s in steps] == [timedelta(seconds=n) for n in range(3)]
    assert [s.state.total for s in store.history(Counter, "a", after=1, until=2)] == [11]
    assert [s.state.total for s in store.history(Counter, "a", until=1)] == [1]
    assert list(store.history(Counter, "a", after=3)) == []
    with pytest.raises(InvalidArgumentError):
        store.history(Counter, "a", after=4)


def test_states_of_a_history_are_independent(store: EventStore) -> None:
    store.append("time-counter/a", [Counted(1), Counted(10)])
    first, second = store.history(Counter, "a")
    assert first.state is not second.state
    first.state.count(5)
    assert (first.state.total, second.state.total) == (6, 11)
    assert second.state.pending == ()


def test_the_past_uses_the_latest_snapshot_not_after_it(
    store: EventStore, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    counter = Counter("a")
    moments = []
    for _ in range(9):
        counter.count(1)
        store.save(counter)
        moments.append(clock.time)
        clock.step(seconds=1)
    replayed = []
    fold = store.log.fold

    def counting(*arguments: Any, **named: Any) -> Any:
        snapshot, pages = fold(*arguments, **named)
        read = list(pages)
        replayed.append(sum(map(len, read)))
        return snapshot, iter(read)

    monkeypatch.setattr(store.log, "fold", counting)
    for version, at in enumerate(moments, 1):
        assert total(store, at) == version
        assert total(store, store.cut(at)) == version
        assert store.load(Counter, "a", version=version).total == version
    assert replayed == [version % 2 for version in range(1, 10) for _ in range(3)]


def test_without_a_clock_times_are_the_present_ones(database_url: str) -> None:
    with EventStore(database_url) as store:
        before = datetime.now(UTC)
        recorded_at = counted(store, "a", 1)
        assert before - timedelta(minutes=1) < recorded_at < before + timedelta(minutes=1)
        assert recorded_at.tzinfo is UTC
