"""Operations of AsyncEventStore that join a caller's async transaction."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any, TypeAlias

import pytest
from sqlalchemy import Column, Integer, String, Table, create_engine, make_url, select, text
from sqlalchemy.ext.asyncio import (
    AsyncConnection,
    AsyncEngine,
    AsyncSession,
    create_async_engine,
)

from eventstore import (
    Aggregate,
    Event,
    EventStore,
    HandlerError,
    InvalidArgumentError,
    LogError,
    SchemaMissingError,
    StreamNotFoundError,
    TableProjection,
    Write,
    WrongExpectedVersionError,
    on,
)
from eventstore.aio import AsyncEventStore

Joined: TypeAlias = AsyncConnection | AsyncSession
Opens: TypeAlias = Callable[[AsyncEngine], Joined]


class Counted(Event, name="awaited-counted"):
    by: int


class Counter(Aggregate, stream="awaited-counter/{id}"):
    total: int = 0

    def count(self, by: int) -> None:
        self.record(Counted(by=by))

    @on(Counted)
    def _counted(self, event: Counted) -> None:
        self.total += event.by


class Totals(TableProjection, name="awaited-totals"):
    table = Table(
        "awaited_totals",
        TableProjection.metadata,
        Column("stream", String, primary_key=True),
        Column("total", Integer, nullable=False),
    )

    @on(Counted)
    def _counted(self, event: Counted, record: Any) -> None:
        if event.by < 0:
            raise ValueError("it counts upwards")
        row = self.get(self.table, record.stream)
        total = event.by + (row["total"] if row else 0)
        self.put(self.table, stream=record.stream, total=total)


@pytest.fixture(params=["sqlite", "postgres"])
def url(request: pytest.FixtureRequest) -> str:
    url: str = request.getfixturevalue(f"{request.param}_url")
    with EventStore(url) as store, store.engine.begin() as connection:
        connection.execute(text("CREATE TABLE orders (id INTEGER PRIMARY KEY)"))
    return url


@pytest.fixture(params=[AsyncConnection, AsyncSession])
def opens(request: pytest.FixtureRequest) -> Opens:
    """What the caller has the transaction on."""
    opened: Opens = request.param
    return opened


@contextlib.asynccontextmanager
async def engine_of(url: str) -> AsyncIterator[AsyncEngine]:
    drivers = {"sqlite": "sqlite+aiosqlite", "postgresql": "postgresql+psycopg"}
    parsed = make_url(url)
    engine = create_async_engine(parsed.set(drivername=drivers[parsed.drivername]))
    try:
        yield engine
    finally:
        await engine.dispose()


def run(
    url: str, scenario: Callable[[AsyncEventStore, AsyncEngine], Awaitable[None]], **options: Any
) -> None:
    async def main() -> None:
        async with engine_of(url) as engine, AsyncEventStore(url, **options) as store:
            await scenario(store, engine)

    asyncio.run(main())


def counter(id: str, *by: int) -> Counter:
    made = Counter(id)
    for each in by:
        made.count(each)
    return made


async def order(joined: Joined, id: int) -> None:
    await joined.execute(text("INSERT INTO orders VALUES (:id)"), {"id": id})


def orders(url: str) -> list[int]:
    with EventStore(url) as store, store.connect() as connection:
        return list(connection.scalars(text("SELECT id FROM orders ORDER BY id")))


def streams(url: str) -> list[str]:
    with EventStore(url) as store:
        return [stream.name for stream in store.streams()]


def test_a_commit_keeps_the_events_and_the_callers_row(url: str, opens: Opens) -> None:
    async def scenario(store: AsyncEventStore, engine: AsyncEngine) -> None:
        async with opens(engine) as db:
            await order(db, 1)
            await store.save(counter("a", 1, 2), connection=db)
            await db.commit()
        assert (await store.load(Counter, "a")).total == 3

    run(url, scenario)
    assert orders(url) == [1]


def test_a_rollback_leaves_no_trace(url: str, opens: Opens) -> None:
    async def scenario(store: AsyncEventStore, engine: AsyncEngine) -> None:
        async with opens(engine) as db:
            await store.save(counter("a", 1), idempotency_key="k", connection=db)
            await store.append_all(
                [Write("b/1", Counted(by=1)), Write("b/2", [Counted(by=1), Counted(by=2)])],
                connection=db,
            )
            await order(db, 1)
            await db.rollback()
        assert await store.head() == 0
        again = counter("a", 5)
        await store.save(again, idempotency_key="k")
        assert again.version == 1

    run(url, scenario)
    assert orders(url) == []
    assert streams(url) == ["awaited-counter/a"]


def test_the_callers_block_ends_the_transaction(url: str) -> None:
    async def scenario(store: AsyncEventStore, engine: AsyncEngine) -> None:
        async with engine.begin() as db:
            await store.save(counter("a", 1), connection=db)
        with contextlib.suppress(ZeroDivisionError):
            async with engine.begin() as db:
                await store.save(counter("b", 1), connection=db)
                raise ZeroDivisionError
        async with AsyncSession(engine) as session, session.begin():
            await store.save(counter("c", 1), connection=session)

    run(url, scenario)
    assert streams(url) == ["awaited-counter/a", "awaited-counter/c"]


def test_what_was_saved_is_read_in_the_same_transaction(url: str, opens: Opens) -> None:
    async def scenario(store: AsyncEventStore, engine: AsyncEngine) -> None:
        async with opens(engine) as db:
            await store.save(counter("a", 1, 2, 3), connection=db)
            assert await store.exists(Counter, "a", connection=db)
            assert not await store.exists(Counter, "a")
            loaded = await store.load(Counter, "a", connection=db)
            assert (loaded.total, loaded.version) == (6, 3)
            loaded.count(4)
            await store.save(loaded, connection=db)
            read = store.read("awaited-counter/a", backwards=True, connection=db)
            assert [record.event async for record in read] == [Counted(by=n) for n in (4, 3, 2, 1)]
            with pytest.raises(StreamNotFoundError):
                await store.load(Counter, "b", connection=db)
            await db.commit()

    run(url, scenario)


def test_a_long_stream_is_loaded_in_the_callers_transaction(url: str) -> None:
    async def scenario(store: AsyncEventStore, engine: AsyncEngine) -> None:
        async with engine.begin() as db:
            await store.save(counter("a", *[1] * 2_500), connection=db)
            assert (await store.load(Counter, "a", connection=db)).total == 2_500

    run(url, scenario)


@pytest.mark.parametrize("key", [None, "k"])
def test_a_conflict_leaves_the_rest_of_the_transaction_alone(
    url: str, opens: Opens, key: str | None
) -> None:
    async def scenario(store: AsyncEventStore, engine: AsyncEngine) -> None:
        await store.save(counter("taken", 1))
        async with opens(engine) as db:
            await store.save(counter("kept", 1), connection=db)
            with pytest.raises(WrongExpectedVersionError):
                await store.save(counter("taken", 1), idempotency_key=key, connection=db)
            with pytest.raises(WrongExpectedVersionError):
                await store.append_all(
                    [Write("new/1", Counted(by=1)), Write("awaited-counter/taken", [], 7)],
                    idempotency_key=key,
                    connection=db,
                )
            await order(db, 1)
            await db.commit()

    run(url, scenario)
    assert orders(url) == [1]
    assert streams(url) == ["awaited-counter/kept", "awaited-counter/taken"]


def test_a_savepoint_of_the_callers_takes_events_back(url: str, opens: Opens) -> None:
    async def scenario(store: AsyncEventStore, engine: AsyncEngine) -> None:
        async with opens(engine) as db:
            await order(db, 1)
            with contextlib.suppress(ZeroDivisionError):
                async with db.begin_nested():
                    await store.save(counter("a", 1), connection=db)
                    raise ZeroDivisionError
            async with db.begin_nested():
                await store.save(counter("b", 1), connection=db)
            await db.commit()

    run(url, scenario)
    assert streams(url) == ["awaited-counter/b"]


def test_a_reader_is_woken_after_the_commit_and_not_before(url: str, opens: Opens) -> None:
    async def scenario(store: AsyncEventStore, engine: AsyncEngine) -> None:
        signal = store.sync.log.signal
        async with opens(engine) as db:
            seen = signal.count
            await store.save(counter("a", 1), connection=db)
            await db.rollback()
            await store.save(counter("b", 1), connection=db)
            assert signal.count == seen
            await db.commit()
            assert await asyncio.to_thread(signal.wait, seen, None) != seen
            assert [each.name async for each in store.streams()] == ["awaited-counter/b"]

    run(url, scenario)


def test_subscribers_see_what_was_committed(url: str, opens: Opens) -> None:
    async def scenario(store: AsyncEventStore, engine: AsyncEngine) -> None:
        async with store.subscribe() as subscription, opens(engine) as db:
            await store.save(counter("a", 1), connection=db)
            await db.rollback()
            await store.save(counter("b", 1), connection=db)
            await db.commit()
            record = await anext(subscription)
            assert record.stream == "awaited-counter/b"

    run(url, scenario)


def test_a_projection_in_step_runs_in_the_callers_transaction(url: str, opens: Opens) -> None:
    async def totals(db: Joined) -> list[int]:
        found = await db.execute(select(Totals.table.c.total))
        return list(found.scalars())

    async def scenario(store: AsyncEventStore, engine: AsyncEngine) -> None:
        async with opens(engine) as db:
            await order(db, 1)
            await store.save(counter("a", 1, 2), connection=db)
            assert await totals(db) == [3]
            await db.rollback()
            assert await totals(db) == []
            await db.rollback()
            await order(db, 2)
            await store.save(counter("a", 4), connection=db)
            with pytest.raises(HandlerError):
                await store.save(counter("b", -1), connection=db)
            await db.commit()
            assert await totals(db) == [4]

    run(url, scenario, in_step=[Totals])
    assert orders(url) == [2]
    assert streams(url) == ["awaited-counter/a"]


def test_the_drivers_errors_become_the_librarys(url: str, opens: Opens) -> None:
    async def scenario(store: AsyncEventStore, engine: AsyncEngine) -> None:
        async with opens(engine) as db:
            await order(db, 1)  # as SQLite's driver begins no transaction before an ALTER
            await db.execute(text("ALTER TABLE eventstore_streams RENAME TO gone"))
            expected = SchemaMissingError if engine.dialect.name == "postgresql" else LogError
            with pytest.raises(expected):
                await store.save(counter("a", 1), connection=db)
            await db.rollback()
            await store.save(counter("a", 1), connection=db)
            await db.commit()

    run(url, scenario)
    assert streams(url) == ["awaited-counter/a"]
    assert orders(url) == []


def test_a_cancelled_task_leaves_the_transaction_to_be_rolled_back(url: str) -> None:
    async def scenario(store: AsyncEventStore, engine: AsyncEngine) -> None:
        async with AsyncConnection(engine) as db:
            saving = asyncio.ensure_future(
                store.save(counter("a", 1), idempotency_key="k", connection=db)
            )
            await asyncio.sleep(0)
            saving.cancel()
            with pytest.raises(asyncio.CancelledError):
                await saving
            await db.rollback()
            await store.save(counter("b", 1), connection=db)
            await db.commit()

    run(url, scenario)
    assert streams(url) == ["awaited-counter/b"]


def test_a_sync_store_joins_inside_run_sync(url: str, opens: Opens) -> None:
    async def scenario(store: AsyncEventStore, engine: AsyncEngine) -> None:
        async with opens(engine) as db:
            await db.run_sync(lambda inner: store.sync.save(counter("a", 1), connection=inner))
            with pytest.raises(InvalidArgumentError, match="run_sync") as caught:
                store.sync.save(counter("b", 1), connection=db)
            assert caught.value.argument == "connection"
            await db.commit()

    run(url, scenario)
    assert streams(url) == ["awaited-counter/a"]


def test_an_async_connection_in_autocommit_is_refused(url: str) -> None:
    async def scenario(store: AsyncEventStore, engine: AsyncEngine) -> None:
        async with engine.execution_options(isolation_level="AUTOCOMMIT").connect() as db:
            with pytest.raises(InvalidArgumentError, match="AUTOCOMMIT"):
                await store.save(counter("a", 1), connection=db)

    run(url, scenario)
    assert streams(url) == []


def test_another_driver_for_postgresql_is_refused_with_the_one_to_use(postgres_url: str) -> None:
    class Foreign:
        """A connection of a driver that is not psycopg."""

    url = make_url(postgres_url).set(drivername="postgresql+psycopg")
    engine = create_engine(url, creator=Foreign, _initialize=False)
    engine.dialect.do_rollback = engine.dialect.do_close = lambda raw: None  # type: ignore[method-assign]
    with (
        EventStore(postgres_url) as store,
        engine.connect() as connection,
        pytest.raises(InvalidArgumentError, match=r"use postgresql\+psycopg"),
    ):
        store.load(Counter, "a", connection=connection)
