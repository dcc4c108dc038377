"""Ids of events: UUIDs of version 7 (RFC 9562, section 5.7), in the order of their making."""

from __future__ import annotations

import os
import time
from random import Random
from typing import Final

_MARKS: Final = 7 << 76 | 2 << 62  # the version and the variant
# Twelve bits and sixty-one: one less than there is, so that counting up never reaches the variant.
_RANDOM: Final = 0xFFF << 64 | (1 << 61) - 1

# Seeded by the operating system. Ids have to be unique, not secret, and asking it each time would
# cost more than the rest of an id. A forked child must not go on where its parent was.
_random: Final = Random()
if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_random.seed)


def new_ids(count: int) -> list[bytes]:
    """That many new ids, 16 bytes each: random for the world, in ascending order."""
    milliseconds = time.time_ns() // 1_000_000
    first = milliseconds << 80 | _MARKS | _random.getrandbits(76) & _RANDOM
    if count == 1:
        return [first.to_bytes(16, "big")]
    return [number.to_bytes(16, "big") for number in range(first, first + count)]
