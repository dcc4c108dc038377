"""How a rebuild, and the past of a read model, read the log: pages ahead of what is applied."""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterator
from typing import Any

import pytest
from sqlalchemy import Column, Integer, NullPool, String, Table, create_engine, make_url, select

from eventstore import (
    Event,
    EventStore,
    HandlerError,
    LogError,
    Progress,
    RecordedEvent,
    TableProjection,
    on,
)
from eventstore.followers import rebuild as rebuilding
from eventstore.projections import feed, past, replaying
from eventstore.projections.replaying import Replay


class Added(Event, name="reading-added"):
    amount: int


class Sums(TableProjection, name="reading-sums"):
    sums = Table(
        "reading_sums",
        TableProjection.metadata,
        Column("stream", String, primary_key=True),
        Column("sum", Integer, nullable=False),
        Column("last", Integer, nullable=False),
    )

    @on(Added)
    def _added(self, event: Added, record: RecordedEvent) -> None:
        if event.amount < 0:
            raise ValueError("it takes away")
        if record.version == 1:
            self.insert(self.sums, stream=record.stream, sum=0, last=0)
        self.add(self.sums, record.stream, sum=event.amount)
        self.update(self.sums, record.stream, last=record.position)


@pytest.fixture
def store(url: str) -> Iterator[EventStore]:
    with EventStore(url, notify=False) as opened:
        yield opened


@pytest.fixture
def small_pages(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rebuilding, "_PAGE", 10)
    monkeypatch.setattr(rebuilding, "_CATCH_UP", 10)
    monkeypatch.setattr(replaying, "_AGAIN", 7)
    monkeypatch.setattr(past, "_PAGE", 10)


def filled(store: EventStore, streams: int = 5, times: int = 20) -> None:
    for number in range(times):
        for stream in range(streams):
            store.append(f"reading/{stream}", Added(amount=number))


def rows(store: EventStore) -> list[Any]:
    with store.connect() as db:
        return list(map(tuple, db.execute(select(Sums.sums).order_by("stream"))))


def counted(store: EventStore) -> list[int]:
    """How many events were handled after each batch of a rebuild."""
    reports: list[Progress] = []
    store.rebuild(Sums, verify=True, progress=reports.append)
    return [report.events for report in reports]


# --- what ends a batch ---------------------------------------------------------------------------


def test_many_pages_are_one_batch(store: EventStore, small_pages: None) -> None:
    filled(store)
    store.catch_up(Sums)
    assert counted(store) == [100, 100]  # and the swap


def test_rows_to_be_written_end_a_batch(
    store: EventStore, small_pages: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    filled(store, streams=20, times=2)
    store.catch_up(Sums)
    monkeypatch.setattr(replaying, "_ROWS", 15)
    assert counted(store) == [20, 40, 40]


def test_time_ends_a_batch(
    store: EventStore, small_pages: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    filled(store, times=6)
    store.catch_up(Sums)
    monkeypatch.setattr(replaying, "_SECONDS", -1.0)
    assert counted(store) == [10, 20, 30, 30]


# --- what fails ----------------------------------------------------------------------------------


def test_a_read_that_fails_is_no_end_of_the_log_and_no_events_fault(
    store: EventStore, small_pages: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    filled(store)
    store.catch_up(Sums)
    before = rows(store)
    pages = Replay.pages

    def failing(self: Replay, *args: Any) -> Generator[Any]:
        for number, page in enumerate(pages(self, *args)):
            if number == 3:
                raise LogError("this page cannot be read")
            yield page

    monkeypatch.setattr(Replay, "pages", failing)
    store.append("reading/0", Added(amount=1))
    with pytest.raises(LogError, match="this page cannot be read"):
        store.rebuild(Sums)
    with pytest.raises(LogError, match="this page cannot be read"), store.as_of(Sums):
        pytest.fail("it was taken for the end")
    assert rows(store) == before
    monkeypatch.undo()
    store.rebuild(Sums)
    assert rows(store) != before


def test_an_event_that_fails_late_in_a_batch_is_named(store: EventStore, small_pages: None) -> None:
    filled(store)
    receipt = store.append("reading/3", Added(amount=-1))
    filled(store, times=3)
    for replay in (store.rebuild, lambda cls: store.as_of(cls).__enter__()):
        with pytest.raises(HandlerError, match="it takes away") as caught:
            replay(Sums)
        error = caught.value
        assert (error.stream, error.position) == ("reading/3", receipt.position)


# --- where connections are few -------------------------------------------------------------------


def test_streams_beyond_those_whose_names_are_kept_are_looked_up_again(
    store: EventStore, small_pages: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(feed, "_NAMES", 3)
    filled(store, streams=25, times=4)
    store.catch_up(Sums)
    store.rebuild(Sums, verify=True)
    with store.as_of(Sums) as db:
        assert list(map(tuple, db.execute(select(Sums.sums).order_by("stream")))) == rows(store)


@pytest.mark.parametrize("size", [1, 2, 3])
def test_a_pool_of_few_connections_is_enough(url: str, size: int, small_pages: None) -> None:
    if url.startswith("sqlite"):
        size += 1  # the new tables live on a connection of their own
    address = make_url(url)
    if not url.startswith("sqlite"):
        address = address.set(drivername="postgresql+psycopg")
    engine = create_engine(address, pool_size=size, max_overflow=0, pool_timeout=5)
    with EventStore(engine, notify=False) as store:
        filled(store)
        store.catch_up(Sums)
        assert store.log.reads_aside is (size >= 3)
        store.rebuild(Sums, verify=True)
        if size > 1:
            with store.as_of(Sums) as db:
                found = db.execute(select(Sums.sums).order_by("stream"))
                assert list(map(tuple, found)) == rows_of(store, engine)
    engine.dispose()


def rows_of(store: EventStore, engine: Any) -> list[Any]:
    other = create_engine(engine.url, poolclass=NullPool)
    with other.connect() as db:
        return list(map(tuple, db.execute(select(Sums.sums).order_by("stream"))))


def test_what_follows_the_log_goes_on_while_a_rebuild_reads(
    store: EventStore, small_pages: None
) -> None:
    filled(store)
    store.catch_up(Sums)
    late: list[Callable[[], object]] = [
        lambda: store.append("reading/0", Added(amount=1)),
        lambda: store.catch_up(Sums),
    ]
    store.rebuild(Sums, progress=lambda _: late.pop(0)() if late else None)
    before = rows(store)
    store.rebuild(Sums, verify=True)
    assert rows(store) == before
