"""A long replay on SQLite, whose rows a thread reads ahead, gives what any other reading gives."""

from __future__ import annotations

import random
import threading
from collections.abc import Callable
from itertools import chain
from typing import Any

import pytest

from eventstore import Event, EventStore, Projection, on
from eventstore.errors import LogError
from eventstore.ids import new_ids
from eventstore.log import ahead, sqlite
from eventstore.log.base import Bounds, EventType, Log, NewEvent, Wanted, Write

TYPES = [EventType(name, 1) for name in ("up", "down", "else")]
PAYLOADS = (b"", b"{}", b"\0", b"a\0b\0", "\u20ac".encode(), b"\xff\xfe", b"x" * 5_000)
METADATA = (None, b"", b"{}", b"\0\0", b'{"who":"me"}')


@pytest.fixture(autouse=True)
def _from_the_first_row(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sqlite, "has_idle_core", lambda: True)
    monkeypatch.setattr(sqlite, "_FIRST_ROWS", 1)
    monkeypatch.setattr(ahead, "_ROWS", 28)
    monkeypatch.setattr(ahead, "_BYTES", 10_000)


@pytest.fixture
def log(open_logs: Callable[..., Log], sqlite_url: str) -> Log:
    return open_logs(sqlite_url)


def fill(log: Log, count: int, payloads: Any, metadata: Any) -> None:
    chance = random.Random(count)
    for number, id in enumerate(new_ids(count)):
        event = NewEvent(chance.choice(TYPES), chance.choice(payloads), id, chance.choice(metadata))
        log.append([Write(f"{'ab'[number % 2]}/{chance.randrange(9)}", [event])])


def rows(log: Log, whole: bool, wanted: Wanted, until: Bounds) -> list[tuple[Any, ...]]:
    pages = list(log.pages(0, until, size=10, wanted=wanted, whole=whole))
    assert all(0 < len(page) <= 10 for page in pages)
    return [tuple(row) for row in chain.from_iterable(pages)]


def at_once(log: Log, whole: bool, wanted: Wanted, until: Bounds) -> list[tuple[Any, ...]]:
    if not whole:
        return [tuple(row) for row in log.scan(0, until, limit=9_999, wanted=wanted)]
    found = log.read_all(0, until, limit=9_999, wanted=wanted)
    keys = {name: key for key, name in log.stream_names(range(1, 99)).items()}
    return [(row[0], keys[row.stream], *row[2:]) for row in found]


def readers() -> list[threading.Thread]:
    return [each for each in threading.enumerate() if each.name == "eventstore-ahead"]


@pytest.mark.parametrize("metadata", [METADATA, (None,), (b"",)])
@pytest.mark.parametrize("payloads", [PAYLOADS, (b"",), (b"{}",)])
def test_every_byte_comes_as_it_is(log: Log, payloads: Any, metadata: Any) -> None:
    fill(log, 150, payloads, metadata)
    half = Bounds(position=75)
    everything = Bounds(position=log.settled(1))
    for whole in (False, True):
        for wanted in (Wanted(), Wanted(["up", "else"]), Wanted(["down"], ["a"]), Wanted(["no"])):
            for until in (everything, half, Bounds()):
                found = rows(log, whole, wanted, until)
                assert found == at_once(log, whole, wanted, until)
    assert not readers()


def test_it_is_a_thread_that_reads(log: Log) -> None:
    fill(log, 100, PAYLOADS, METADATA)
    pages = log.pages(0, Bounds(), size=10)
    next(pages)
    next(pages)
    assert len(readers()) == 1
    pages.close()
    assert not readers()


@pytest.mark.parametrize("column", ["data", "metadata", "id"])
def test_what_is_no_bytes_is_read_without_it(log: Log, column: str) -> None:
    fill(log, 100, PAYLOADS, METADATA)
    with log.engine.begin() as db:
        statement = f"UPDATE eventstore_events SET {column} = '\u20ac\u20ac' WHERE position = 60"
        db.exec_driver_sql(statement)
    for whole in (False, True):
        found = rows(log, whole, Wanted(), Bounds())
        assert found == at_once(log, whole, Wanted(), Bounds())
        assert len(found) == 100


def test_an_error_of_the_database_reaches_the_reader(log: Log) -> None:
    fill(log, 200, PAYLOADS, METADATA)
    pages = log.pages(0, Bounds(), size=1)
    next(pages)
    with log.engine.begin() as db:
        db.exec_driver_sql("ALTER TABLE eventstore_events RENAME TO elsewhere")
    with pytest.raises(LogError, match="eventstore_events"):
        list(pages)
    assert not readers()


def test_a_memory_database_is_read_without_it(
    open_logs: Callable[..., Log], monkeypatch: pytest.MonkeyPatch
) -> None:
    log = open_logs("sqlite://")
    fill(log, 50, PAYLOADS, METADATA)
    pages = log.pages(0, Bounds(), size=10)
    next(pages)
    next(pages)
    assert not readers()
    pages.close()


class Numbered(Event, name="ahead-numbered"):
    number: int


class Numbers(Projection):
    seen: list[int] = []  # noqa: RUF012 (a default, copied for each instance)

    @on(Numbered)
    def _numbered(self, event: Numbered) -> None:
        if event.number == 150 and poison:
            raise ZeroDivisionError
        self.seen.append(event.number)


poison: list[bool] = []


def test_a_handler_that_fails_leaves_no_thread_behind(sqlite_url: str) -> None:
    with EventStore(sqlite_url) as store:
        for start in range(0, 200, 10):
            store.append(f"ahead/{start % 3}", [Numbered(n) for n in range(start, start + 10)])
        assert store.project(Numbers).seen == list(range(200))
        poison.append(True)
        try:
            with pytest.raises(ZeroDivisionError) as caught:
                store.project(Numbers)
        finally:
            poison.clear()
        assert "position 151" in caught.value.__notes__[0]
        assert not readers()
