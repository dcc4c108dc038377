"""Moments are exact to the microsecond, whatever their time zone."""

from __future__ import annotations

from datetime import UTC, date, datetime, timedelta, timezone
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from eventstore import InvalidTimeError
from eventstore.moments import from_micros, now, to_micros

offsets = st.integers(-23 * 60, 23 * 60).map(lambda m: timezone(timedelta(minutes=m)))
aware = st.datetimes(datetime(2, 1, 1), datetime(9998, 1, 1), timezones=offsets)


@given(aware)
def test_a_moment_comes_back_exactly(moment: datetime) -> None:
    back = from_micros(to_micros(moment))
    assert back == moment
    assert back.tzinfo is UTC


@given(aware, aware)
def test_order_is_kept(one: datetime, two: datetime) -> None:
    assert (to_micros(one) <= to_micros(two)) == (one <= two)


@given(st.integers(-(10**16), 10**17))
def test_microseconds_come_back_exactly(micros: int) -> None:
    assert to_micros(from_micros(micros)) == micros


@pytest.mark.parametrize("bad", [datetime(2026, 1, 1), date(2026, 1, 1), "now", 5, None])
def test_what_is_no_moment_is_refused(bad: Any) -> None:
    with pytest.raises(InvalidTimeError) as caught:
        to_micros(bad)
    assert caught.value.value == bad
    assert repr(bad) in str(caught.value)


def test_the_extremes_of_time_are_moments() -> None:
    for extreme in (datetime.min, datetime.max):
        moment = extreme.replace(tzinfo=UTC)
        assert from_micros(to_micros(moment)) == moment


def test_now_is_now() -> None:
    before = datetime.now(UTC)
    assert abs(from_micros(now()) - before) < timedelta(minutes=1)
