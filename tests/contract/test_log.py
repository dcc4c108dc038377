"""Every backend meets the contract that ships with the library."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from sqlalchemy import URL, make_url

from eventstore.log.base import Log
from eventstore.log.postgres import PostgresLog, open_postgres
from eventstore.log.sqlite import SqliteLog, open_sqlite
from eventstore.log.tables import metadata
from eventstore.testing import LogContract


def sqlite_log(url: URL) -> Iterator[Log]:
    engine, close = open_sqlite(url)
    metadata.create_all(engine)
    yield SqliteLog(engine)
    close()


class TestSqliteFile(LogContract):
    @pytest.fixture
    def log(self, tmp_path: Path) -> Iterator[Log]:
        yield from sqlite_log(URL.create("sqlite", database=str(tmp_path / "events.db")))


class TestSqliteMemory(LogContract):
    @pytest.fixture
    def log(self) -> Iterator[Log]:
        yield from sqlite_log(make_url("sqlite://"))


class TestPostgres(LogContract):
    @pytest.fixture
    def log(self, postgres_url: str) -> Iterator[Log]:
        engine, close = open_postgres(make_url(postgres_url))
        metadata.create_all(engine)
        yield PostgresLog(engine)
        close()
