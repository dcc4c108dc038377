"""Logs for the tests here, closed after each."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from eventstore import schema
from eventstore.log.base import Log
from eventstore.log.opening import open_log


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
