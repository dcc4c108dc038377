"""AsyncEventStore: the operations of the store, awaited."""

from __future__ import annotations

import asyncio
import inspect
import threading
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine
from contextlib import asynccontextmanager
from typing import Any

import pytest
from sqlalchemy import Column, Integer, Table, func, insert, select

from eventstore import (
    Aggregate,
    CheckpointAheadError,
    Event,
    EventHandler,
    EventStore,
    InvalidArgumentError,
    NotCaughtUpError,
    Projection,
    RecordedEvent,
    StoreClosedError,
    StreamNotFoundError,
    TableProjection,
    WrongExpectedVersionError,
    context,
    on,
)
from eventstore.aio import AsyncEventStore
from eventstore.store import StoreOptions


class Added(Event, name="aio-added"):
    amount: int


class Other(Event, name="aio-other"):
    """Of another type."""


class Jar(Aggregate, stream="aio-jar/{id}"):
    total: int = 0

    def add(self, amount: int) -> int:
        self.record(Added(amount))
        return self.total

    @on(Added)
    def _added(self, event: Added) -> None:
        self.total += event.amount


class Sum(Projection, name="aio-sum"):
    total: int = 0

    @on(Added)
    def _added(self, event: Added) -> None:
        self.total += event.amount


class Rows(TableProjection, name="aio-rows"):
    rows = Table(
        "aio_rows",
        TableProjection.metadata,
        Column("position", Integer, primary_key=True),
        Column("amount", Integer, nullable=False),
    )

    @on(Added)
    def _added(self, event: Added, record: RecordedEvent) -> None:
        self.insert(self.rows, position=record.position, amount=event.amount)


class Doubling(EventHandler, name="aio-doubling"):
    @on(Other)
    def _other(self, event: Other, record: RecordedEvent) -> None:
        self.store.append("aio-jar/doubled", Added(2))


@asynccontextmanager
async def opened(url: str, **options: Any) -> AsyncIterator[AsyncEventStore]:
    async with AsyncEventStore(url, **options) as store:
        yield store


def running(test: Callable[..., Coroutine[Any, Any, None]]) -> Callable[..., None]:
    """A coroutine as a test, which may take a minute and no longer."""

    def run(database_url: str) -> None:
        asyncio.run(asyncio.wait_for(test(database_url), 60))

    run.__name__ = test.__name__
    run.__doc__ = test.__doc__
    return run


# --- the same operations -----------------------------------------------------------------------


def test_every_operation_of_the_store_is_there_under_its_name() -> None:
    def public(cls: type) -> set[str]:
        return {name for name in dir(cls) if not name.startswith("_")}

    # A runner is a thing of threads, and `run` is what keeps one going.
    assert public(EventStore) - public(AsyncEventStore) == {"runner"}
    assert public(AsyncEventStore) - public(EventStore) == {"sync"}
    for name in public(EventStore) - {"runner", "engine", "close", "run"}:
        theirs = list(inspect.signature(getattr(EventStore, name)).parameters)
        ours = list(inspect.signature(getattr(AsyncEventStore, name)).parameters)
        assert ours[1:] == theirs[1:], name


def test_the_options_are_those_of_the_store() -> None:
    options = list(inspect.signature(EventStore).parameters)[1:]
    assert set(StoreOptions.__annotations__) == set(options)


@running
async def test_what_was_saved_is_loaded(url: str) -> None:
    async with opened(url) as store:
        jar = Jar("a")
        jar.add(3)
        await store.save(jar)
        assert await store.transact(Jar, "a", Jar.add, 4) == 7
        assert (await store.load(Jar, "a")).total == 7
        assert (await store.load(Jar, "a", version=1)).total == 3
        assert [step.state.total async for step in store.history(Jar, "a")] == [3, 7]
        assert [id async for id in store.ids(Jar)] == ["a"]
        assert await store.exists(Jar, "a")
        with pytest.raises(StreamNotFoundError):
            await store.load(Jar, "b")
        with pytest.raises(WrongExpectedVersionError):
            await store.append("aio-jar/a", Added(1), expected=7)


@running
async def test_iterations_of_any_length_are_whole(url: str) -> None:
    async with opened(url) as store:
        await store.append("aio-jar/a", [Added(n) for n in range(1_001)])
        read = [r.event.amount async for r in store.read("aio-jar/a")]  # type: ignore[attr-defined]
        assert read == list(range(1_001))
        async for record in store.read_all(backwards=True):
            assert record.version == 1_001
            break
        assert [r async for r in store.read("aio-jar/none")] == []


@running
async def test_projections_and_handlers(url: str) -> None:
    async with opened(url) as store:
        await store.append("aio-jar/a", [Added(1), Added(2)])
        assert (await store.project(Sum)).total == 3
        cut = await store.cut()
        await store.append("aio-jar/a", [Added(3), Other()])
        await store.catch_up(Rows)
        await store.catch_up(Doubling)
        async with store.as_of(Rows, at=cut) as past, store.connect() as db:
            count = select(func.count()).select_from(Rows.rows)
            assert (await past.scalar(count), await db.scalar(count)) == (2, 3)
            assert list(await db.scalars(select(Rows.rows.c.amount))) == [1, 2, 3]
            await db.execute(insert(Rows.rows).values(position=99, amount=9))
            await db.rollback()
        assert (await store.load(Jar, "doubled")).total == 2
        assert (await store.rebuild(Rows)).position == await store.head()


@running
async def test_waiting_for_a_follower_holds_no_thread(url: str) -> None:
    async with opened(url, threads=1) as store:
        await store.append("aio-jar/a", Added(1))
        await store.catch_up(Rows)
        receipt = await store.append("aio-jar/a", Added(1))
        waiting = [asyncio.create_task(store.wait_for(Rows, receipt.position)) for _ in range(5)]
        await asyncio.sleep(0)
        assert await store.catch_up(Rows) >= receipt.position
        assert {await task for task in waiting} == {await store.head()}
        await store.append("aio-jar/a", Added(1))
        with pytest.raises(NotCaughtUpError):
            await store.wait_for(Rows, timeout=0)


@running
async def test_running_ends_with_its_task(url: str) -> None:
    async with opened(url) as store:
        task = asyncio.create_task(store.run(Rows))
        receipt = await store.append("aio-jar/a", Added(1))
        await store.wait_for(Rows, receipt.position, timeout=30)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert [status.owner for status in await store.status()] == [None]


# --- tasks -------------------------------------------------------------------------------------


@running
async def test_many_tasks_at_once_lose_nothing(url: str) -> None:
    async with opened(url, max_attempts=200) as store:
        jar = Jar("a")
        jar.add(0)
        await store.save(jar)

        async def add(number: int) -> None:
            await store.transact(Jar, "a", Jar.add, 1)
            await store.append(f"aio-jar/{number % 7}", [Added(1), Added(1)])

        await asyncio.gather(*(add(number) for number in range(60)))
        assert (await store.load(Jar, "a")).total == 60
        assert (await store.project(Sum)).total == 180
        versions = [await store.version(f"aio-jar/{number}") for number in range(7)]
        assert sum(versions) == 120


@running
async def test_each_of_many_appends_has_its_own_outcome(url: str) -> None:
    async with opened(url) as store:
        await store.append("aio-jar/a", Added(1))
        outcomes = await asyncio.gather(
            *(store.append("aio-jar/a", Added(n), expected=1) for n in range(20)),
            *(store.append(f"aio-jar/new-{n}", Added(n), expected=0) for n in range(20)),
            *(store.append("aio-jar/b", Added(n), idempotency_key="once") for n in range(5)),
            return_exceptions=True,
        )
        contested, own, keyed = outcomes[:20], outcomes[20:40], outcomes[40:]
        assert sum(isinstance(each, WrongExpectedVersionError) for each in contested) == 19
        assert [each.version for each in own] == [1] * 20  # type: ignore[union-attr]
        assert len(set(keyed)) == 1
        assert await store.version("aio-jar/b") == 1
        assert await store.version("aio-jar/a") == 2


@running
async def test_metadata_is_the_tasks_own(url: str) -> None:
    async with opened(url) as store:

        async def append(name: str) -> None:
            with context(correlation_id=name):
                await asyncio.sleep(0)
                await store.append(f"aio-jar/{name}", Added(1))

        await asyncio.gather(*(append(f"request-{n}") for n in range(20)))
        async for record in store.read_all():
            assert record.stream == f"aio-jar/{record.metadata.correlation_id}"


@running
async def test_what_is_cancelled_before_it_began_is_not_done(url: str) -> None:
    async with opened(url, threads=1) as store:
        release, busy = threading.Event(), threading.Event()

        def hold(_: Any) -> None:
            busy.set()
            assert release.wait(30)

        async with store.connect() as db:
            holding = asyncio.create_task(db.run(hold))
            while not busy.is_set():
                await asyncio.sleep(0.001)
            queued = asyncio.create_task(store.append("aio-jar/a", Added(1)))
            await asyncio.sleep(0)
            queued.cancel()
            with pytest.raises(asyncio.CancelledError):
                await queued
            release.set()
            await holding
        assert await store.version("aio-jar/a") == 0


@running
async def test_what_is_cancelled_after_it_began_is_done_whole(url: str) -> None:
    async with opened(url) as store:
        began, release = threading.Event(), threading.Event()

        class Slow(Jar, stream="aio-slow/{id}"):
            def take(self) -> None:
                began.set()
                assert release.wait(30)
                for _ in range(3):
                    self.record(Added(1))

        await store.append("aio-slow/a", Added(1))
        task = asyncio.create_task(store.transact(Slow, "a", Slow.take))
        while not began.is_set():
            await asyncio.sleep(0.001)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        release.set()
        while (version := await store.version("aio-slow/a")) == 1:
            await asyncio.sleep(0.001)
        assert version == 4


# --- live readers ------------------------------------------------------------------------------


async def taken(subscription: Any, count: int) -> list[RecordedEvent]:
    records = []
    async for record in subscription:
        records.append(record)
        if len(records) == count:
            break
    return records


@running
async def test_a_reader_gets_what_is_there_and_then_what_comes(url: str) -> None:
    async with opened(url) as store:
        await store.append("aio-jar/a", [Added(n) for n in range(700)])
        async with store.subscribe() as subscription:
            first = await taken(subscription, 700)
            coming = asyncio.create_task(taken(subscription, 20))
            for number in range(20):
                await store.append(f"aio-jar/{number % 3}", Added(number))
            then = await coming
        positions = [record.position for record in first + then]
        assert positions == [r.position async for r in store.read_all()]
        assert subscription.position == positions[-1]
        async with store.subscribe(after=positions[-3]) as resumed:
            assert [r.position for r in await taken(resumed, 2)] == positions[-2:]


@running
async def test_a_reader_may_leave_out_types_and_categories(url: str) -> None:
    async with opened(url) as store:
        async with store.subscribe(types=[Other], categories=["aio-jar"]) as subscription:
            coming = asyncio.create_task(taken(subscription, 3))
            for number in range(3):
                await store.append("aio-jar/a", [Added(number), Other()])
                await store.append("elsewhere/a", Other())
            records = await coming
        assert [(r.stream, r.type) for r in records] == [("aio-jar/a", "aio-other")] * 3
        async with store.subscribe(types=[Other], categories=[Jar]) as again:
            assert [r.id for r in await taken(again, 3)] == [r.id for r in records]


@running
async def test_hundreds_of_readers_share_one_thread(url: str) -> None:
    async with opened(url, threads=4) as store:
        await store.append("aio-jar/a", Added(0))

        async def read() -> list[int]:
            async with store.subscribe() as subscription:
                ready.release()
                return [record.position for record in await taken(subscription, 31)]

        ready = asyncio.Semaphore(0)
        reading = [asyncio.create_task(read()) for _ in range(300)]
        for _ in reading:
            await ready.acquire()
        for number in range(30):
            await store.append(f"aio-jar/{number}", Added(number))
        live = [t.name for t in threading.enumerate() if t.name == "eventstore-live"]
        results = await asyncio.gather(*reading)
        assert len(live) <= 1
        everything = [record.position async for record in store.read_all()]
        assert all(result == everything for result in results)


@running
async def test_a_reader_can_be_stopped_from_another_task(url: str) -> None:
    async with opened(url) as store:
        async with store.subscribe() as subscription:
            reading = asyncio.create_task(taken(subscription, 1))
            await asyncio.sleep(0.01)
            subscription.stop()
            assert await reading == []
        with pytest.raises(CheckpointAheadError):
            await taken(store.subscribe(after=5), 1)


@running
async def test_readers_of_a_store_that_is_closed_are_told(url: str) -> None:
    store = AsyncEventStore(url)
    subscription = store.subscribe()
    reading = asyncio.create_task(taken(subscription, 1))
    while subscription._live is None or not subscription._live.is_known:
        await asyncio.sleep(0.001)
    await store.close()
    with pytest.raises(StoreClosedError):
        await reading
    with pytest.raises(StoreClosedError):
        await store.head()


@running
async def test_a_sync_store_may_be_shared_and_stays_open(url: str) -> None:
    with EventStore(url) as sync:
        async with AsyncEventStore(sync) as store:
            await store.append("aio-jar/a", Added(1))
        assert sync.version("aio-jar/a") == 1


def test_options_that_make_no_sense_are_refused() -> None:
    with pytest.raises(InvalidArgumentError):
        AsyncEventStore("sqlite://", threads=0)


def test_an_operation_is_a_coroutine_of_the_same_name_and_doc() -> None:
    assert inspect.iscoroutinefunction(AsyncEventStore.append)
    assert AsyncEventStore.append.__doc__ == EventStore.append.__doc__
    assert inspect.isasyncgenfunction(AsyncEventStore.read)
    _: Callable[..., Awaitable[Any]] = AsyncEventStore.load
