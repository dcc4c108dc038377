"""The clock that stands still."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta, timezone

import pytest

from eventstore import InvalidArgumentError, InvalidTimeError
from eventstore.testing import FrozenClock

NOON = datetime(2026, 3, 1, 12, tzinfo=UTC)


def test_it_stands_still() -> None:
    clock = FrozenClock(NOON)
    assert clock() == clock() == clock.now == NOON
    assert FrozenClock()() == datetime(2026, 1, 1, tzinfo=UTC)


def test_its_moments_are_in_utc() -> None:
    clock = FrozenClock(datetime(2026, 3, 1, 14, tzinfo=timezone(timedelta(hours=2))))
    assert clock.now.tzinfo is UTC
    assert clock.now == NOON


def test_it_moves_by_seconds_and_by_durations() -> None:
    clock = FrozenClock(NOON)
    assert clock.advance(1.5) == NOON + timedelta(seconds=1.5)
    assert clock.advance(timedelta(days=1)) == clock.now == NOON + timedelta(days=1, seconds=1.5)
    assert clock.advance(0) == clock.now


def test_it_can_be_set() -> None:
    clock = FrozenClock(NOON)
    assert clock.set(NOON + timedelta(hours=1)) == clock.now == NOON + timedelta(hours=1)


def test_it_does_not_go_back_unless_that_is_meant() -> None:
    clock = FrozenClock(NOON)
    for move in (
        lambda: clock.advance(-1),
        lambda: clock.advance(timedelta(microseconds=-1)),
        lambda: clock.set(NOON - timedelta(microseconds=1)),
    ):
        with pytest.raises(InvalidArgumentError, match="backwards=True"):
            move()
        assert clock.now == NOON
    assert clock.set(NOON - timedelta(days=1), backwards=True) == NOON - timedelta(days=1)


def test_a_naive_moment_is_none() -> None:
    with pytest.raises(InvalidTimeError):
        FrozenClock(datetime(2026, 1, 1))
    with pytest.raises(InvalidTimeError):
        FrozenClock().set(datetime(2027, 1, 1))


def test_threads_move_it_by_the_sum_of_their_steps() -> None:
    clock = FrozenClock(NOON)
    with ThreadPoolExecutor(8) as threads:
        list(threads.map(lambda _: clock.advance(0.001), range(1000)))
    assert clock.now == NOON + timedelta(seconds=1)


def test_it_shows_its_moment() -> None:
    assert repr(FrozenClock(NOON)) == "<FrozenClock 2026-03-01T12:00:00+00:00>"
