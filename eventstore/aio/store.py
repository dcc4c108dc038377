"""AsyncEventStore: the operations of EventStore under the same names, awaited.

There is one implementation of the logic, the sync one. Each operation is declared here by the one
that it awaits, from which a type checker takes its arguments and its result.
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import (
    AsyncIterator,
    Callable,
    Coroutine,
    Generator,
    Iterable,
    Iterator,
    Mapping,
)
from datetime import datetime
from functools import wraps
from itertools import islice
from types import TracebackType
from typing import TYPE_CHECKING, Any, Concatenate, Final, ParamSpec, Self, TypeVar, Unpack, cast

from sqlalchemy import URL, Engine

from eventstore.aggregate import Aggregate
from eventstore.aio.company import Company
from eventstore.aio.connection import HoppingBlock
from eventstore.aio.hops import Hops
from eventstore.aio.subscription import AsyncSubscription, Live
from eventstore.errors import InvalidArgumentError
from eventstore.event import Event
from eventstore.following_store import LEASE, Following
from eventstore.log.base import Log
from eventstore.projections.table_projection import TableProjection
from eventstore.store import EventStore, StoreOptions
from eventstore.stream_store import wanted_events
from eventstore.streams import Cut
from eventstore.together import Load, Operation, Save, Transact

if TYPE_CHECKING:
    from sqlalchemy.ext.asyncio import AsyncEngine

P = ParamSpec("P")
R = TypeVar("R")
T = TypeVar("T")

#: Threads of a store, at the most: more only wait for each other.
THREADS: Final = 16
#: How many things an iteration takes at a hop.
_CHUNK: Final = 200


def _awaited(
    operation: Callable[Concatenate[EventStore, P], R],
) -> Callable[Concatenate[AsyncEventStore, P], Coroutine[Any, Any, R]]:
    """An operation as a coroutine: one hop, or inside the caller's async transaction."""

    @wraps(operation)
    async def hop(store: AsyncEventStore, /, *args: P.args, **kwargs: P.kwargs) -> R:
        joined = _joined(kwargs)
        if joined is not None:

            def inside(connection: Any) -> R:
                kwargs["connection"] = connection
                return operation(store.sync, *args, **kwargs)

            await store._opened()
            joint: R = await joined.run_sync(inside)
            return joint
        opened = await store._opened()
        return await store._hops.run(operation, opened, *args, **kwargs)

    return hop


def _shared(
    operation: Callable[Concatenate[EventStore, P], R], kind: type[Operation]
) -> Callable[Concatenate[AsyncEventStore, P], Coroutine[Any, Any, R]]:
    """The same for an operation that is done together with others which tasks ask for at once."""
    hop = _awaited(operation)

    @wraps(operation)
    async def join(store: AsyncEventStore, /, *args: P.args, **kwargs: P.kwargs) -> R:
        opened = await store._opened()
        one = kind.of(args, kwargs)
        if one is None or not opened._may_share(one.cls, appends=one.appends):
            return await hop(store, *args, **kwargs)
        result: R = await store._company.join(opened, one)
        return result

    return join


def _iterated(
    operation: Callable[Concatenate[EventStore, P], Iterator[T]],
) -> Callable[Concatenate[AsyncEventStore, P], AsyncIterator[T]]:
    """An iterator as an asynchronous one, which hops once for many of its items."""

    @wraps(operation)
    async def iterate(
        store: AsyncEventStore, *args: P.args, **kwargs: P.kwargs
    ) -> AsyncIterator[T]:
        joined = _joined(kwargs)
        if joined is not None:

            def inside(connection: Any) -> list[T]:
                kwargs["connection"] = connection
                return list(operation(store.sync, *args, **kwargs))

            await store._opened()
            for item in await joined.run_sync(inside):
                yield item
            return
        opened = await store._opened()
        iterator = await store._hops.run(operation, opened, *args, **kwargs)
        while chunk := await store._hops.run(lambda: list(islice(iterator, _CHUNK))):
            for item in chunk:
                yield item

    return iterate  # type: ignore[return-value]  # `wraps` names the first argument


def _joined(options: Mapping[str, Any]) -> Any:
    """The caller's AsyncConnection or AsyncSession, if the operation joins one."""
    # Known by its method: importing these classes would demand greenlet of everybody.
    connection = options.get("connection")
    return connection if hasattr(connection, "run_sync") else None


class AsyncEventStore:
    """An EventStore for asyncio: the same operations, awaited; the same classes.

        async with AsyncEventStore("postgresql://...") as store:
            await store.transact(Account, "alice", Account.deposit, 50)
            async for record in store.read("account/alice"):
                ...

    Takes the options of `EventStore`, and `threads`: how many operations run at once at the most,
    each in a worker thread and on a connection of the pool. It is opened when it is entered, or
    with the first operation that is awaited. Use it on one event loop.

    `connection=` takes a SQLAlchemy AsyncConnection or AsyncSession (with psycopg or aiosqlite) as
    well: the operation then runs on it, and it is the caller who commits.

    Loads, saves and transactions that tasks ask for at once are **done together**, each with an
    outcome of its own. Commands may therefore run one after the other in one thread: one must not
    wait for another.

    **Cancelling** an operation that has not begun to run leaves nothing behind. One that has begun
    goes on to its end in its thread: an append is then written whole or not at all, and whoever
    has to know gives an `idempotency_key` and repeats it. Correlation and causation are those of
    the task that awaits.
    """

    def __init__(
        self,
        target: str | URL | Engine | AsyncEngine | Log | EventStore,
        *,
        threads: int = THREADS,
        **options: Unpack[StoreOptions],
    ) -> None:
        """Nothing is opened yet. Raises InvalidArgumentError."""
        if threads < 1:
            raise InvalidArgumentError("threads", threads, "use a whole number from 1")
        self._target = _sync_target(target)
        self._options = options
        self._hops = Hops(threads)
        self._company = Company(self._hops)
        self._opening = threading.Lock()
        self._store: EventStore | None = None
        self._live: Live | None = None

    # --- write ---------------------------------------------------------------------------------

    save = _shared(EventStore.save, Save)
    transact = _shared(EventStore.transact, Transact)
    transact_once = _awaited(EventStore.transact_once)
    append = _awaited(EventStore.append)
    append_all = _awaited(EventStore.append_all)
    fork = _awaited(EventStore.fork)
    delete = _awaited(EventStore.delete)
    delete_stream = _awaited(EventStore.delete_stream)

    # --- read ----------------------------------------------------------------------------------

    load = _shared(EventStore.load, Load)
    exists = _awaited(EventStore.exists)
    history = _iterated(EventStore.history)
    ids = _iterated(EventStore.ids)
    load_all = _iterated(EventStore.load_all)
    read = _iterated(EventStore.read)
    read_all = _iterated(EventStore.read_all)
    version = _awaited(EventStore.version)
    streams = _iterated(EventStore.streams)
    head = _awaited(EventStore.head)
    cut = _awaited(EventStore.cut)
    delete_snapshots = _awaited(EventStore.delete_snapshots)

    # --- projections and followers ---------------------------------------------------------------

    project = _awaited(EventStore.project)
    forget = _awaited(EventStore.forget)
    catch_up = _awaited(EventStore.catch_up)
    rebuild = _awaited(EventStore.rebuild)
    accept = _awaited(EventStore.accept)
    leave_step = _awaited(EventStore.leave_step)
    status = _awaited(EventStore.status)
    parked = _awaited(EventStore.parked)
    retry = _awaited(EventStore.retry)
    discard = _awaited(EventStore.discard)

    async def wait_for(
        self, follower: Following, position: int | None = None, *, timeout: float = 10.0
    ) -> int:
        """`EventStore.wait_for`; who waits holds no thread."""
        store = await self._opened()
        waiting = store._waiting(follower, position, timeout)
        while True:
            try:
                pause = await self._hops.run(_next, waiting)
            except _Returned as returned:
                return returned.value
            await asyncio.sleep(pause)

    def as_of(
        self, cls: type[TableProjection], *, at: datetime | Cut | None = None
    ) -> HoppingBlock:
        """`EventStore.as_of`: `async with store.as_of(Balances, at=then) as db:`."""
        return HoppingBlock(self._hops, lambda: self.sync.as_of(cls, at=at))

    def connect(self) -> HoppingBlock:
        """`EventStore.connect`: `async with store.connect() as db:`."""
        return HoppingBlock(self._hops, lambda: self.sync.connect())

    def subscribe(
        self,
        after: int | str = 0,
        *,
        categories: Iterable[type[Aggregate] | str] | None = None,
        types: Iterable[type[Event] | str] | None = None,
    ) -> AsyncSubscription:
        """`EventStore.subscribe`, with `async for`; thousands of readers share one reader."""
        return AsyncSubscription(self, after, wanted_events(types, categories))

    async def run(self, *followers: Following, lease: float = LEASE) -> None:
        """`EventStore.run`, until the task is cancelled; then the leases are given back."""
        store = await self._opened()
        runner = store.runner(*followers, lease=lease)
        # A thread of its own: it lasts.
        running = asyncio.get_running_loop().run_in_executor(None, runner.run)
        try:
            await asyncio.shield(running)
        except asyncio.CancelledError:
            runner.stop()
            await running
            raise

    # --- opening and closing ---------------------------------------------------------------------

    @property
    def sync(self) -> EventStore:
        """The sync store whose operations these are; it is opened if it was not."""
        with self._opening:
            if self._store is None:
                if isinstance(self._target, EventStore):
                    self._store = self._target
                else:
                    options = StoreOptions(group_commit=True)
                    options.update(self._options)
                    self._store = EventStore(self._target, **options)
            return self._store

    @property
    def engine(self) -> Engine:
        """The sync engine, for your own tables in the same database."""
        return self.sync.engine

    async def _opened(self) -> EventStore:
        if self._store is None:
            return await self._hops.run(lambda: self.sync)
        return self._store

    def _followed(self, store: EventStore) -> Live:
        """What this loop's subscriptions share."""
        if self._live is None:
            self._live = Live(store.log, asyncio.get_running_loop())
        return self._live

    async def close(self) -> None:
        """End subscriptions, let operations that have begun end, and close what was opened.

        A store that was given stays open.
        """
        live = None if self._live is None else self._live.close()
        await asyncio.get_running_loop().run_in_executor(None, self._end, live)

    def _end(self, live: threading.Thread | None) -> None:
        # In this order: a connection that came back after the store is closed would be left open.
        self._hops.close()
        if live is not None:
            live.join()
        if self._store is not None and self._store is not self._target:
            self._store.close()

    async def __aenter__(self) -> Self:
        await self._opened()
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        await self.close()


def _sync_target(
    target: str | URL | Engine | AsyncEngine | Log | EventStore,
) -> str | URL | Engine | Log | EventStore:
    """What the sync store is opened with: for an async engine the same database's URL."""
    if not hasattr(target, "sync_engine"):
        return target  # pyright: ignore[reportReturnType]
    url = cast("AsyncEngine", target).url
    return url.set(drivername=url.drivername.replace("sqlite+aiosqlite", "sqlite"))


class _Returned(Exception):
    """The end of a generator, since a StopIteration cannot cross to a coroutine."""

    def __init__(self, value: int) -> None:
        self.value = value


def _next(generator: Generator[float, None, int]) -> float:
    try:
        return next(generator)
    except StopIteration as end:
        raise _Returned(end.value) from None
