"""Cursors: what keeps a shared cache from answering a live reader for ever. Section 10.1.

A cursor is the number of an interval of time. Live readers send the last one back, so that the URLs
of readers that wait for the same data are alike for an interval, and then no longer.
"""

from __future__ import annotations

import random
import time
from typing import Final

#: Seconds.
INTERVAL: Final = 20
_EPOCH: Final = 1_728_432_000  # 2024-10-09T00:00:00Z
_LONGEST_JITTER: Final = 3600
#: The largest number that a client may echo: past it, it is none of ours.
_LARGEST: Final = 2**53


def cursor(echoed: str | None) -> str:
    """The cursor of a response; greater than what the client has echoed, if that is not older."""
    present = int(time.time() - _EPOCH) // INTERVAL
    known = int(echoed) if echoed and echoed.isascii() and echoed.isdecimal() else -1
    if not present <= known < _LARGEST:
        return str(present)
    return str(known + max(1, random.randint(1, _LONGEST_JITTER) // INTERVAL))
