"""Node and its packages, stores and receivers, for the tests here."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from eventstore import EventStore

# The modules beside the tests here are theirs alone.
sys.path.insert(0, str(Path(__file__).parent))

from nodejs import PACKAGES, Node
from receiver import Receiver


@pytest.fixture(scope="session")
def node() -> Node:
    """Node with the packages of `node/package.json`, which the first run installs."""
    node = Node.find()
    node.install(PACKAGES)
    return node


@pytest.fixture
def store(url: str) -> Iterator[EventStore]:
    """A store on each kind of database in turn."""
    with EventStore(url) as store:
        yield store


@pytest.fixture
def sqlite_store() -> Iterator[EventStore]:
    """Where the database makes no difference."""
    with EventStore("sqlite://") as store:
        yield store


@pytest.fixture
def receiver() -> Iterator[Receiver]:
    """What webhooks call."""
    with Receiver() as receiver:
        yield receiver
