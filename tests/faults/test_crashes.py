"""What crashes of a server have found, each by itself."""

from __future__ import annotations

import asyncio
import signal
from typing import TYPE_CHECKING

import pytest
from operations import Put
from sheet import Echoed
from sqlalchemy import text

from eventstore import EventStore
from eventstore.aio import AsyncEventStore
from eventstore.errors import CheckpointAheadError, LogStalledError
from eventstore.log.base import Log

if TYPE_CHECKING:
    from server import Server


def _crashed(server: Server) -> None:
    server.kill(signal.SIGQUIT)
    server.start()


def test_types_that_a_program_knows_outlive_a_crash_that_loses_their_first_events(
    mortal_server: Server, mortal_url: str
) -> None:
    with EventStore(mortal_url, durability="relaxed") as store:
        store.append("faults-sheet/1", Put(op="x", n=0))
        store.append("faults-echo/1", Echoed(source="y"))
        _crashed(mortal_server)
        store.append("faults-sheet/2", [Put(op="z", n=0), Put(op="z", n=1)])
        store.append("faults-echo/2", Echoed(source="y"))
        types = [record.type for record in store.read_all()][-3:]
        assert types == ["history-put", "history-put", "echoed"]


def _lose(log: Log, after: int) -> None:
    """What a crash does that loses the last commits: their positions are given once more."""
    with log.engine.begin() as connection:
        connection.execute(
            text("DELETE FROM eventstore_events WHERE position > :after"), {"after": after}
        )
        sequence = "pg_get_serial_sequence('eventstore_events', 'position')"
        connection.execute(text(f"SELECT setval({sequence}, :after)"), {"after": after})


def test_the_frontier_does_not_rest_on_events_that_a_crash_has_lost(postgres_url: str) -> None:
    with EventStore(postgres_url, read_timeout=0.01) as store:
        for stream in "abc":
            store.append(f"{stream}/1", Put(op=stream, n=0))
        assert store.log.frontier() == (3, ())
        _lose(store.log, 1)
        with store.connect() as slow:
            store.append("slow/1", Put(op="s", n=0), connection=slow)
            assert store.append("d/1", Put(op="d", n=0)).position == 3
            assert store.log.frontier().position < 2
            with pytest.raises(LogStalledError):
                store.head()
            slow.commit()
        assert store.log.frontier() == (3, ())


def test_nor_does_what_is_waited_for(postgres_url: str) -> None:
    with EventStore(postgres_url) as store:
        store.append("a/1", Put(op="a", n=0))
        with store.connect() as first:
            store.append("b/1", Put(op="b", n=0), connection=first)
            store.append("c/1", Put(op="c", n=0))
            assert store.log.frontier().writers  # up to 3, when the first one has ended
        _lose(store.log, 1)
        with store.connect() as slow:
            store.append("slow/1", Put(op="s", n=0), connection=slow)
            store.append("d/1", Put(op="d", n=0))
            assert store.log.frontier().position < 2
            slow.commit()
        assert store.log.frontier() == (3, ())


def test_the_frontier_gets_on_when_the_event_at_it_was_deleted(postgres_url: str) -> None:
    with EventStore(postgres_url) as store:
        store.append("a/1", Put(op="a", n=0))
        store.append("b/1", Put(op="b", n=0))
        assert store.log.frontier() == (2, ())
        tombstone = store.delete_stream("b/1")
        assert store.log.frontier() == (tombstone.position, ())


def test_a_reader_is_told_when_a_crash_has_lost_what_it_was_given(postgres_url: str) -> None:
    with EventStore(postgres_url) as store, store.subscribe() as subscription:
        store.append("a/1", [Put(op="a", n=n) for n in range(3)])
        assert [next(subscription).position for _ in range(3)] == [1, 2, 3]
        _lose(store.log, 1)
        store.append("b/1", [Put(op="b", n=n) for n in range(4)])  # past where it was
        with pytest.raises(CheckpointAheadError):
            next(subscription)


async def _told_too(url: str) -> None:
    async with AsyncEventStore(url) as store:
        await store.append("a/1", [Put(op="a", n=n) for n in range(3)])
        async with store.subscribe() as subscription:
            for position in (1, 2, 3):
                assert (await anext(subscription)).position == position
            _lose(store.sync.log, 1)
            await store.append("b/1", [Put(op="b", n=n) for n in range(4)])
            await anext(subscription)


def test_so_is_one_on_asyncio(postgres_url: str) -> None:
    with pytest.raises(CheckpointAheadError):
        asyncio.run(_told_too(postgres_url))


def test_a_reader_goes_on_when_what_it_was_given_was_deleted(postgres_url: str) -> None:
    with EventStore(postgres_url) as store, store.subscribe() as subscription:
        store.append("a/1", Put(op="a", n=0))
        store.append("b/1", Put(op="b", n=0))
        assert [next(subscription).position for _ in range(2)] == [1, 2]
        store.delete_stream("b/1")
        store.append("c/1", Put(op="c", n=0))
        assert [next(subscription).stream for _ in range(2)] == ["b/1", "c/1"]
