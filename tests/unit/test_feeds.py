"""Live readers of one stream, whatever comes between their reads and the news."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

from eventstore.http.live import Feed, Hub


def read(started: list[asyncio.Future[Any]]) -> Callable[[], asyncio.Future[Any]]:
    """What begins a read that ends when the test says so."""

    def begin() -> asyncio.Future[Any]:
        started.append(asyncio.get_running_loop().create_future())
        return started[-1]

    return begin


def test_readers_that_ask_at_once_share_a_read() -> None:
    async def story() -> None:
        feed, started = Feed("a"), list[asyncio.Future[Any]]()
        asked = [asyncio.create_task(feed.read(3, read(started))) for _ in range(5)]
        await asyncio.sleep(0)
        assert len(started) == 1
        asked[0].cancel()  # who goes away does not take it along
        started[0].set_result("page")
        assert await asyncio.gather(*asked[1:]) == ["page"] * 4

    asyncio.run(story())


def test_who_comes_after_the_news_does_not_get_what_was_read_before() -> None:
    async def story() -> None:
        feed, started = Feed("a"), list[asyncio.Future[Any]]()
        early = asyncio.create_task(feed.read(3, read(started)))
        await asyncio.sleep(0)
        feed.news()
        late = asyncio.create_task(feed.read(3, read(started)))
        await asyncio.sleep(0)
        started[0].set_result("old")
        started[1].set_result("new")
        assert (await early, await late) == ("old", "new")

    asyncio.run(story())


def test_a_reader_that_waits_is_told_of_what_another_has_read_already() -> None:
    """Another server has written, and a reader that comes just then has its message at once."""

    page = SimpleNamespace(messages=(b"5",), found=SimpleNamespace(version=5))

    class Hops:
        async def run(self, *_call: object) -> object:
            return page

    async def story() -> None:
        hub = Hub.__new__(Hub)
        hub._feeds, hub._listeners = {"a": Feed("a")}, []
        hub._hops = Hops()  # type: ignore[assignment]
        feed = hub._feeds["a"]
        waiting = feed.wait(feed.count)
        assert await hub.page(feed, "a", 4) is page  # type: ignore[comparison-overlap]
        hub._heard({"a": 5})
        assert waiting.done()
        again = feed.wait(feed.count)
        hub._heard({"a": 5})  # of which all were told
        assert not again.done()

    asyncio.run(story())
