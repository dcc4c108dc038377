"""Ids of events: UUIDs of version 7 (RFC 9562, section 5.7), whose order is that of their making."""

from __future__ import annotations

import os
import time
from typing import Final

_VERSION: Final = 7 << 76
_VARIANT: Final = 2 << 62
_TWELVE: Final = 0xFFF << 64
# One bit less than there is, so that counting up from it never overflows into the variant.
_SIXTY_ONE: Final = (1 << 61) - 1


def new_ids(count: int) -> list[bytes]:
    """That many new ids, 16 bytes each: random for the world, in ascending order."""
    random = int.from_bytes(os.urandom(10), "big")
    first = (
        (time.time_ns() // 1_000_000 << 80)
        | _VERSION
        | (random & _TWELVE)
        | _VARIANT
        | (random & _SIXTY_ONE)
    )
    return [number.to_bytes(16, "big") for number in range(first, first + count)]
