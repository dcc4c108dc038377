"""The modules beside the tests here, and histories, are also those of the processes that die."""

from __future__ import annotations

import contextlib
import sys
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from eventstore import schema

sys.path.insert(0, str(Path(__file__).parent))
sys.path.insert(0, str(Path(__file__).parent.parent / "history"))

if TYPE_CHECKING:
    from server import Server


@pytest.fixture(scope="session")
def mortal_server() -> Iterator[Server]:
    """A PostgreSQL server that a test may kill, and has to start again."""
    from server import Server

    with contextlib.closing(Server()) as server:
        yield server


@pytest.fixture
def mortal_url(mortal_server: Server) -> str:
    """A fresh database on it, with our tables."""
    name = f"crash_{uuid.uuid4().hex[:12]}"
    with mortal_server.connect() as connection:
        connection.execute(f"CREATE DATABASE {name}")
    schema.migrate(mortal_server.url(name))
    return mortal_server.url(name)
