"""Defects of AsyncEventStore that were found, each kept as a test."""

from __future__ import annotations

import asyncio
import gc

import pytest

from eventstore import Event, Receipt, StoreClosedError
from eventstore.aio import AsyncEventStore


class FoundNote(Event):
    text: str


def test_closing_the_store_ends_readers_that_wait(database_url: str) -> None:
    """They were woken, and waited again, for ever."""

    async def main() -> list[str]:
        store = AsyncEventStore(database_url)
        await store.append("found/1", FoundNote(text="before"))
        seen: list[str] = []
        first = asyncio.Event()

        async def read() -> None:
            async with store.subscribe(types=[FoundNote]) as subscription:
                async for record in subscription:
                    seen.append(record.stream)
                    first.set()

        readers = [asyncio.create_task(read()) for _ in range(3)]
        await first.wait()
        await store.close()
        for told in await asyncio.gather(*readers, return_exceptions=True):
            assert isinstance(told, StoreClosedError)
        return seen

    assert "found/1" in asyncio.run(main())


def test_closing_the_store_lets_what_has_begun_end(
    database_url: str, recwarn: pytest.WarningsRecorder
) -> None:
    """Connections that came back after the close were left open."""

    async def main() -> int:
        store = AsyncEventStore(database_url)
        await store.head()
        appends = [
            asyncio.create_task(store.append(f"found/{number}", FoundNote(text="x")))
            for number in range(30)
        ]
        await asyncio.sleep(0.003)
        await store.close()
        outcomes = await asyncio.gather(*appends, return_exceptions=True)
        return sum(isinstance(outcome, Receipt) for outcome in outcomes)

    assert asyncio.run(main()) == 30
    gc.collect()  # a connection that was left open says so now
    assert [str(warning.message) for warning in recwarn] == []
