"""Defects of AsyncEventStore that were found, each kept as a test."""

from __future__ import annotations

import asyncio

from eventstore import Event, StoreClosedError
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
