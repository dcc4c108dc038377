"""Seats: connections of a driver with a cursor, as the log's operations use them."""

from __future__ import annotations

from typing import Any, Final

#: How many idle ones are kept at most: as many as were ever needed at once, up to the threads of an
#: AsyncEventStore, else these would open connections anew all the time. The engine's pool is made
#: larger by as many.
KEPT: Final = 16


class Seat:
    """A driver's connection with a cursor: one of the pool's, or (`pooled` is None) a caller's."""

    __slots__ = ("cursor", "pooled", "raw")

    def __init__(self, raw: Any, cursor: Any, pooled: Any) -> None:
        self.raw = raw
        self.cursor = cursor
        self.pooled = pooled
