"""Raw drivers on asyncio: what a competent engineer would write by hand for `async_.py`.

Each does the same on the library's own tables as `raw` does in one thread: SQLite behind one worker
thread with a queue, since it has one writer anyway; PostgreSQL on eight connections of a pool, with
psycopg's own or with asyncpg, where each of a connection's two statements is prepared once.
"""

from __future__ import annotations

import asyncio
import re
import threading
from queue import SimpleQueue
from typing import Any, Final, NamedTuple, Self
from uuid import uuid4

import raw
from psycopg import AsyncConnection
from psycopg_pool import AsyncConnectionPool

CONNECTIONS: Final = 8


class _Job(NamedTuple):
    """An aggregate that is waited for."""

    id: str
    loop: asyncio.AbstractEventLoop
    future: asyncio.Future[None]


class Sqlite:
    """sqlite3 in one worker thread, with a queue."""

    def __init__(self, path: str, *, synchronous: str) -> None:
        self._path = path
        self._synchronous = synchronous
        self._queue: SimpleQueue[_Job | None] = SimpleQueue()
        self._thread = threading.Thread(target=self._work, daemon=True)

    async def command(self, id: str) -> None:
        """Load, one command, save."""
        loop = asyncio.get_running_loop()
        future: asyncio.Future[None] = loop.create_future()
        self._queue.put(_Job(id, loop, future))
        await future

    def _work(self) -> None:
        # A connection of sqlite3 is its thread's own.
        hand = raw.Sqlite(self._path, synchronous=self._synchronous)
        while (job := self._queue.get()) is not None:
            try:
                account = hand.load(job.id)
                account.deposit(1)
                hand.save(account)
            except Exception as error:
                job.loop.call_soon_threadsafe(job.future.set_exception, error)
            else:
                job.loop.call_soon_threadsafe(job.future.set_result, None)
        hand.close()

    async def __aenter__(self) -> Self:
        self._thread.start()
        return self

    async def __aexit__(self, *_: object) -> None:
        self._queue.put(None)
        self._thread.join()


class _Postgres:
    """What the two drivers share: which statements, and what their rows mean."""

    def __init__(self, url: str) -> None:
        self._url = url
        hand = raw.Postgres(url)  # knows the ids of the types
        self._steps, self._ids = hand._steps, hand._ids
        hand.close()

    def _replayed(self, id: str, rows: Any) -> raw.Account:
        account = raw.Account(id)
        raw._replay(account, self._steps, rows)
        return account

    def _saving(self, account: raw.Account) -> tuple[int, str, int, int, bytes, bytes]:
        """The parameters of a save of one event."""
        (event,) = account.new
        type_id, payload = self._ids[type(event)], raw._encode(event)
        stream = f"account/{account.id}"
        return 1, stream, account.version, type_id, uuid4().bytes, payload

    def _saved(self, account: raw.Account, row: Any) -> None:
        if row is None:
            raise raw.ConflictError(account.id)
        account.version = row[0]
        account.new.clear()


class Psycopg(_Postgres):
    """psycopg's async connections in its own pool."""

    async def command(self, id: str) -> None:
        """Load, one command, save."""
        async with self._pool.connection() as connection:
            cursor = connection.cursor(binary=True)
            await cursor.execute(_LOAD, (f"account/{id}",), prepare=True)
            account = self._replayed(id, await cursor.fetchall())
            account.deposit(1)
            await cursor.execute(_SAVE, self._saving(account), prepare=True)
            self._saved(account, await cursor.fetchone())

    async def __aenter__(self) -> Self:
        self._pool: AsyncConnectionPool[AsyncConnection[Any]] = AsyncConnectionPool(
            self._url,
            kwargs={"autocommit": True},
            min_size=CONNECTIONS,
            max_size=CONNECTIONS,
            timeout=120,
            open=False,
        )
        await self._pool.open(wait=True)
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._pool.close()


class _Held(NamedTuple):
    """A connection of asyncpg with its two statements."""

    connection: Any
    load: Any
    save: Any


class Asyncpg(_Postgres):
    """asyncpg on connections in a queue: its own pool resets one after each use, a query more."""

    async def command(self, id: str) -> None:
        """Load, one command, save."""
        held = await self._free.get()
        try:
            account = self._replayed(id, await held.load.fetch(f"account/{id}"))
            account.deposit(1)
            self._saved(account, await held.save.fetchrow(*self._saving(account)))
        finally:
            self._free.put_nowait(held)

    async def __aenter__(self) -> Self:
        import asyncpg

        # The last one first: with few tasks, few servers stay warm.
        self._free: asyncio.LifoQueue[_Held] = asyncio.LifoQueue()
        for _ in range(CONNECTIONS):
            connection = await asyncpg.connect(self._url)
            load, save = [await connection.prepare(_numbered(text)) for text in (_LOAD, _SAVE)]
            self._free.put_nowait(_Held(connection, load, save))
        return self

    async def __aexit__(self, *_: object) -> None:
        while not self._free.empty():
            await self._free.get_nowait().connection.close()


_LOAD: Final = raw._PG_LOAD
#: The types are said, since asyncpg leaves them to the server to guess.
_SAVE: Final = f"""
    WITH head AS (
        UPDATE eventstore_streams
           SET version = version + %s::bigint, recorded_at = greatest(recorded_at, {raw._PG_NOW})
         WHERE name = %s AND version = %s::bigint AND NOT deleted
        RETURNING id, version, recorded_at), new AS (
        INSERT INTO eventstore_events (stream_id, version, type_id, recorded_at, id, data)
        SELECT head.id, head.version, %s::int, head.recorded_at, %s::bytea, %s::bytea FROM head)
    SELECT version FROM head"""


def _numbered(statement: str) -> str:
    """A statement with asyncpg's placeholders."""
    numbers = iter(range(1, 100))
    return re.sub("%s", lambda _: f"${next(numbers)}", statement)
