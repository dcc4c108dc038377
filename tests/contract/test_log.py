"""Every backend meets the contract that ships with the library."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from eventstore import schema
from eventstore.log.base import Log
from eventstore.log.opening import open_log
from eventstore.testing import LogContract


def opened(url: str) -> Iterator[Log]:
    log, close = open_log(url)
    schema.prepare(log.engine)
    yield log
    log.close()
    close()


class TestSqliteFile(LogContract):
    @pytest.fixture
    def log(self, sqlite_url: str) -> Iterator[Log]:
        yield from opened(sqlite_url)


class TestSqliteMemory(LogContract):
    @pytest.fixture
    def log(self) -> Iterator[Log]:
        yield from opened("sqlite://")


class TestPostgres(LogContract):
    @pytest.fixture
    def log(self, postgres_url: str) -> Iterator[Log]:
        yield from opened(postgres_url)


class TestSqliteInGroups(LogContract):
    """Appends of many threads share transactions."""

    @pytest.fixture
    def log(self, sqlite_url: str) -> Iterator[Log]:
        for log in opened(sqlite_url):
            log.group_commits()
            yield log


class TestPostgresInGroups(LogContract):
    """Appends of many threads share transactions."""

    @pytest.fixture
    def log(self, postgres_url: str) -> Iterator[Log]:
        for log in opened(postgres_url):
            log.group_commits()
            yield log
