"""Waiting for what another thread, process or server does in its own time."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Final, TypeVar

T = TypeVar("T")

#: Seconds after which it has taken too long.
PATIENCE: Final = 60.0


def eventually(what: Callable[[], T], patience: float = PATIENCE) -> T:
    """What it returns, once that is true."""
    deadline = time.monotonic() + patience
    while not (found := what()):
        assert time.monotonic() < deadline, "it has not become so"
        time.sleep(0.01)
    return found
