"""A store for the tests here, closed after each."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from eventstore import EventStore

# The modules beside the tests here are theirs alone.
sys.path.insert(0, str(Path(__file__).parent))


@pytest.fixture
def store(database_url: str) -> Iterator[EventStore]:
    with EventStore(database_url) as opened:
        yield opened
