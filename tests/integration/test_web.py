"""The store in applications of Starlette and FastAPI: metadata, the lifespan, the page about it."""

from __future__ import annotations

import asyncio
import re
import threading
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest
from applications import PATIENCE, in_process, run, version_of_notes
from fastapi import FastAPI
from programs import imported_by, run_examples
from starlette.applications import Starlette
from starlette.requests import HTTPConnection, Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route
from starlette.types import Message, Receive, Scope, Send

import eventstore.web
from eventstore import InvalidArgumentError, StoreClosedError, metadata
from eventstore.aio import AsyncEventStore
from eventstore.web import MetadataMiddleware, install, lifespan

PAGE = Path(__file__).parents[2] / "docs" / "web.md"


# --- metadata ------------------------------------------------------------------------------------


TRACE = "4bf92f3577b34da6a3ce929d0e0e4736"


@pytest.mark.parametrize(
    ("headers", "expected"),
    [
        ({"X-Correlation-ID": "a", "traceparent": f"00-{TRACE}-00f067aa0ba902b7-01"}, "a"),
        ({"traceparent": f"00-{TRACE}-00f067aa0ba902b7-01", "X-Request-ID": "r"}, TRACE),
        ({"traceparent": f"00-{'0' * 32}-00f067aa0ba902b7-01", "X-Request-ID": "r"}, "r"),
        ({"X-Correlation-ID": "x" * 128}, "x" * 128),
        ({"X-Correlation-ID": "x" * 129, "X-Request-ID": "r"}, "r"),
        ({"X-Correlation-ID": "a b", "X-Request-ID": "r"}, "r"),
        ({"X-Correlation-ID": b"\xff", "X-Request-ID": "r"}, "r"),
        ({"X-Correlation-ID": ""}, None),
        ({}, None),
    ],
)
def test_a_request_has_a_valid_correlation_id(
    headers: dict[str, str | bytes], expected: str | None
) -> None:
    async def show(request: Request) -> Response:
        return JSONResponse(dict(metadata.current()))

    async def main() -> None:
        app = MetadataMiddleware(Starlette(routes=[Route("/", show)]))
        transport = httpx.ASGITransport(app)
        async with httpx.AsyncClient(transport=transport, base_url="http://shop") as client:
            answer = await client.get("/", headers=headers)  # type: ignore[arg-type]
            found = answer.json()["correlation_id"]
            assert answer.headers["x-correlation-id"] == found
            if expected is None:
                again = await client.get("/", headers=headers)  # type: ignore[arg-type]
                assert len(found) == 36
                assert again.json()["correlation_id"] != found
            else:
                assert found == expected

    run(main())


def test_the_application_adds_metadata_and_cannot_replace_the_ids() -> None:
    async def who(connection: HTTPConnection) -> dict[str, Any]:
        return {"user": "ann", "correlation_id": "another"}

    async def show(request: Request) -> Response:
        return JSONResponse(dict(metadata.current()))

    async def main() -> None:
        app = Starlette(routes=[Route("/", show)])
        install(app, metadata=who)
        async with in_process(app) as client:
            headers = {"X-Correlation-ID": "c", "X-Causation-ID": "cause"}
            assert (await client.get("/", headers=headers)).json() == {
                "user": "ann",
                "correlation_id": "c",
                "causation_id": "cause",
            }
            headers = {"X-Correlation-ID": "c", "X-Causation-ID": "no cause"}
            assert "causation_id" not in (await client.get("/", headers=headers)).json()
        assert dict(metadata.current()) == {}

    run(main())


def test_metadata_of_concurrent_requests_is_never_mixed(sqlite_url: str) -> None:
    """Of coroutines and of endpoints in threads, all of which are under way at once."""
    both = threading.Barrier(2, timeout=PATIENCE)
    arrived: list[str] = []
    app = FastAPI()
    install(app)

    @app.get("/thread")
    def in_a_thread() -> dict[str, Any]:
        both.wait()
        return dict(metadata.current())

    @app.get("/task/{name}")
    async def in_a_task(name: str) -> dict[str, Any]:
        arrived.append(name)
        while len(arrived) < 2:
            await asyncio.sleep(0)
        return dict(metadata.current())

    async def main() -> None:
        async with in_process(app) as client:
            for paths in (["/thread", "/thread"], ["/task/a", "/task/b"]):
                answers = await asyncio.gather(
                    *(
                        client.get(path, headers={"X-Correlation-ID": f"id-{number}"})
                        for number, path in enumerate(paths)
                    )
                )
                assert [answer.json() for answer in answers] == [
                    {"correlation_id": "id-0"},
                    {"correlation_id": "id-1"},
                ]

    run(main())


def test_a_websocket_has_metadata_and_is_told_its_correlation_id() -> None:
    seen: list[dict[str, Any]] = []
    sent: list[Message] = []

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        seen.append(dict(metadata.current()))
        await send({"type": "websocket.accept"})

    async def send(message: Message) -> None:
        sent.append(message)

    async def receive() -> Message:
        return {"type": "websocket.connect"}

    async def main() -> None:
        scope = {"type": "websocket", "headers": [(b"x-request-id", b"r")]}
        await MetadataMiddleware(app)(scope, receive, send)

    run(main())
    assert seen == [{"correlation_id": "r"}]
    assert sent == [{"type": "websocket.accept", "headers": [(b"x-correlation-id", b"r")]}]


# --- the lifespan --------------------------------------------------------------------------------


@pytest.mark.parametrize("framework", [Starlette, FastAPI])
def test_the_lifespan_closes_the_store(framework: type[Starlette], url: str) -> None:
    kept: list[AsyncEventStore] = []

    @asynccontextmanager
    async def own(app: Starlette) -> AsyncIterator[dict[str, Any]]:
        assert await app.state.event_store.head() == 0
        yield {"shop": "open"}
        assert await app.state.event_store.head() == 0
        kept.append(app.state.event_store)

    async def main() -> None:
        app = framework(lifespan=lifespan(url, within=own, lock_timeout=1.0))
        async with app.router.lifespan_context(app) as state:
            assert state == {"shop": "open"}
        assert not hasattr(app.state, "event_store")
        with pytest.raises(StoreClosedError):
            await kept[0].head()

    run(main())


def test_the_lifespan_closes_the_store_when_the_applications_own_fails(sqlite_url: str) -> None:
    kept: list[AsyncEventStore] = []

    @asynccontextmanager
    async def own(app: Starlette) -> AsyncIterator[None]:
        kept.append(app.state.event_store)
        raise LookupError("no configuration")
        yield

    async def main() -> None:
        app = Starlette(lifespan=lifespan(sqlite_url, within=own))
        with pytest.raises(LookupError):
            async with app.router.lifespan_context(app):
                pass
        with pytest.raises(StoreClosedError):
            await kept[0].head()

    run(main())


def test_options_beside_a_store_are_refused(sqlite_url: str) -> None:
    with pytest.raises(InvalidArgumentError):
        lifespan(AsyncEventStore(sqlite_url), lock_timeout=1.0)


def test_a_request_without_a_lifespan_says_what_is_missing() -> None:
    async def main() -> None:
        app = Starlette(routes=[Route("/", version_of_notes)])
        async with in_process(app) as client:
            with pytest.raises(RuntimeError, match="lifespan"):
                await client.get("/")

    run(main())


# --- the page about it ---------------------------------------------------------------------------


def test_the_pages_examples_run(tmp_path: Path) -> None:
    blocks = re.findall(r"```python\n(.*?)```", PAGE.read_text(encoding="utf-8"), re.DOTALL)
    assert len(blocks) > 3
    run_examples(blocks, tmp_path)


def test_every_name_is_on_the_page() -> None:
    for name in set(eventstore.web.__all__):
        assert re.search(rf"\b{name}\b", PAGE.read_text(encoding="utf-8")), name


def test_the_core_imports_nothing_of_it() -> None:
    loaded = imported_by("eventstore", "eventstore.aio")
    assert not {"starlette", "fastapi", "eventstore.web"} & loaded


def test_it_needs_no_fastapi() -> None:
    loaded = imported_by("eventstore.web")
    assert not {"fastapi", "pydantic", "httpx"} & loaded
