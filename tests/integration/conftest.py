"""Stores and logs for the tests here, closed after each."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from eventstore import EventStore, schema
from eventstore.log.base import Log
from eventstore.log.opening import open_log

# The modules beside the tests here are theirs alone.
sys.path.insert(0, str(Path(__file__).parent))


@pytest.fixture
def store(database_url: str) -> Iterator[EventStore]:
    """A store on each kind of database in turn."""
    with EventStore(database_url) as opened:
        yield opened


@pytest.fixture
def open_logs() -> Iterator[Callable[..., Log]]:
    """A function that opens a log like `open_log` and closes it after the test."""
    with contextlib.ExitStack() as stack:

        def open(url: str, *, prepare: bool = True, **options: Any) -> Log:
            # Notifications have connections and transactions of their own, and tests count both.
            log, close = open_log(url, **{"notify": False, **options})
            stack.callback(close)
            stack.callback(log.close)
            if prepare:
                schema.prepare(log.engine)
            return log

        yield open
