"""Moments: UTC datetimes outside, whole microseconds since the epoch inside."""

from __future__ import annotations

import time
from datetime import UTC, datetime, timedelta
from typing import Final

from eventstore.errors import InvalidTimeError

_EPOCH: Final = datetime(1970, 1, 1, tzinfo=UTC)
_MICROSECOND: Final = timedelta(microseconds=1)


def to_micros(moment: datetime) -> int:
    """Microseconds since the epoch, exactly. Raises InvalidTimeError for a naive datetime."""
    if not isinstance(moment, datetime):  # pyright: ignore[reportUnnecessaryIsInstance]
        raise InvalidTimeError(moment, "is not a datetime")
    if moment.utcoffset() is None:
        raise InvalidTimeError(
            moment, "has no time zone, so it is no moment: use datetime.now(UTC) or tzinfo=..."
        )
    return (moment - _EPOCH) // _MICROSECOND


def from_micros(micros: int) -> datetime:
    """The UTC datetime of that many microseconds since the epoch."""
    return _EPOCH + timedelta(microseconds=micros)


def now() -> int:
    """This machine's clock, in microseconds since the epoch."""
    return time.time_ns() // 1000
