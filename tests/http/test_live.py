"""Live readers: told of every message and of the end, once, and idle at no cost."""

from __future__ import annotations

import asyncio
import threading
from typing import Any

import pytest
from asgi import Client, client_of
from parcels import ParcelMoved, run

from eventstore import EventStore
from eventstore.http import DurableStreams
from eventstore.http.live import Hub
from eventstore.http.reading import Reader


def test_the_last_message_comes_before_the_end(store: EventStore) -> None:
    async def story(client: Client) -> None:
        await client.put("end/1")
        tail = (await client.get("end/1")).offset
        async with client.events("end/1?offset=-1&live=sse") as reading:
            await reading.control()
            poll = asyncio.create_task(client.get(f"end/1?offset={tail}&live=long-poll"))
            await asyncio.sleep(0.05)
            await client.post("end/1", "[1]", stream_closed="true")
            kind, data = await reading.event()
            assert (kind, data) == ("data", "[1]")
            assert (await reading.control())["streamClosed"]
            await reading.ended()
            response = await poll
            assert (response.status, response.json) == (200, [1])
            assert response.headers["stream-closed"] == "true"

    run(store, story)


def test_readers_hear_of_the_end_that_another_server_made(url: str, store: EventStore) -> None:
    async def both() -> None:
        with EventStore(url) as far:
            async with (
                client_of(DurableStreams(store)) as here,
                client_of(DurableStreams(far)) as there,
            ):
                await there.put("end/1")
                await there.put("end/2", "[1]")
                async with (
                    here.events("end/1?offset=-1&live=sse") as one,
                    here.events("end/2?offset=now&live=sse") as two,
                ):
                    await one.control()
                    await two.control()
                    await there.post("end/1", stream_closed="true")
                    assert (await one.control())["streamClosed"]
                    await there.ask("DELETE", "end/2")
                    await two.ended()

    asyncio.run(both())


def test_an_append_is_read_once_for_all_its_readers(
    sqlite_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    reads: list[str] = []
    page = Reader.page

    def counted(self: Reader, found: Any, start: int) -> Any:
        reads.append(found.resource.path)
        return page(self, found, start)

    async def story(client: Client) -> None:
        await client.put("many/1")
        await client.put("other/1")
        async with asyncio.TaskGroup() as group:
            ready = asyncio.Barrier(101)
            told: list[Any] = []

            async def read() -> None:
                async with client.events("many/1?offset=now&live=sse") as reading:
                    await reading.control()
                    await ready.wait()
                    told.append(await reading.messages())

            for _ in range(100):
                group.create_task(read())
            await ready.wait()
            await asyncio.sleep(0.3)  # what has woken them at the start is over
            monkeypatch.setattr(Reader, "page", counted)
            await client.post("other/1", "0")
            await client.post("many/1", "7")
        assert told == [[7]] * 100
        assert 1 <= reads.count("many/1") <= 3
        assert "other/1" not in reads

    with EventStore(sqlite_url) as store:
        run(store, story)


def test_thousands_of_idle_readers_hold_neither_threads_nor_connections(sqlite_url: str) -> None:
    count = 5_000

    async def story(client: Client) -> None:
        for number in range(50):
            await client.put(f"idle/{number}")
        app = client._app
        gone = asyncio.Event()
        controls = 0
        ready = asyncio.Event()

        async def receive() -> dict[str, Any]:
            await gone.wait()
            return {"type": "http.disconnect"}

        async def send(message: Any) -> None:
            nonlocal controls
            if b"control" in message.get("body", b""):
                controls += 1
                if controls == count:
                    ready.set()

        tasks = [
            asyncio.create_task(
                app(client._scope("GET", f"idle/{n % 50}?offset=now&live=sse", {}), receive, send)
            )
            for n in range(count)
        ]
        await asyncio.wait_for(ready.wait(), 60)
        assert threading.active_count() < 40
        assert store.engine.pool.checkedout() < 20  # type: ignore[attr-defined]
        assert (await client.post("idle/3", "1")).status == 204  # others are served
        gone.set()
        await asyncio.gather(*tasks)

    with EventStore(sqlite_url) as store:
        run(store, story)


def test_draining_sends_live_readers_away(sqlite_url: str) -> None:
    async def story(client: Client) -> None:
        await client.put("a/1")
        tail = (await client.get("a/1")).offset
        async with client.events("a/1?offset=-1&live=sse") as reading:
            await reading.control()
            poll = asyncio.create_task(client.get(f"a/1?offset={tail}&live=long-poll"))
            await asyncio.sleep(0.05)
            client._app.drain()
            assert (await poll).status == 204
            await reading.ended()

    with EventStore(sqlite_url) as store:
        run(store, story)


def test_the_watching_ends_with_the_last_reader(
    sqlite_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("eventstore.http.live._LINGER", 0.01)

    def watching() -> bool:
        return any(thread.name == "eventstore-http" for thread in threading.enumerate())

    async def story(client: Client) -> None:
        await client.put("a/1")
        async with client.events("a/1?offset=-1&live=sse") as reading:
            await reading.control()
            assert watching()
        while watching():
            await asyncio.sleep(0.01)
        async with client.events("a/1?offset=now&live=sse") as reading:
            await reading.control()
            await asyncio.to_thread(store.append, "b/1", ParcelMoved(to="x"))
            await client.post("a/1", "1")
            assert await reading.messages() == [1]

    with EventStore(sqlite_url) as store:
        run(store, story)


def test_a_hub_without_readers_tells_nobody(sqlite_url: str) -> None:
    async def story() -> None:
        with EventStore(sqlite_url) as store:
            app = DurableStreams(store)
            async with client_of(app) as client:
                await client.put("a/1", "[1]")
                hub: Hub = app._running.hub  # type: ignore[union-attr]
                assert hub._feeds == {}
                assert hub._watcher is None

    asyncio.run(story())
