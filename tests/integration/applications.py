"""Applications with a store, and their clients: in the process or over a real server."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Coroutine
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import httpx
import uvicorn
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from eventstore import Event
from eventstore.web import event_store, install, lifespan

EXAMPLE = Path(__file__).parents[2] / "examples" / "shop_api.py"


REQUESTS = 100


#: Seconds after which a test that hangs fails.
PATIENCE = 120.0


class Noted(Event, name="web-noted"):
    text: str


def run(main: Coroutine[Any, Any, None]) -> None:
    asyncio.run(asyncio.wait_for(main, PATIENCE))


@asynccontextmanager
async def in_process(app: Starlette) -> AsyncIterator[httpx.AsyncClient]:
    """A client of the application, which lives meanwhile."""
    transport = httpx.ASGITransport(app)
    async with (
        app.router.lifespan_context(app),
        httpx.AsyncClient(transport=transport, base_url="http://shop") as client,
    ):
        yield client


@asynccontextmanager
async def served(app: Starlette) -> AsyncIterator[httpx.AsyncClient]:
    """A client of the application, served on a loopback port."""
    server = uvicorn.Server(uvicorn.Config(app, port=0, log_level="warning", ws="none"))
    serving = asyncio.create_task(server.serve())
    try:
        while not server.started:
            assert not serving.done()
            await asyncio.sleep(0.01)
        port = server.servers[0].sockets[0].getsockname()[1]
        limits = httpx.Limits(max_connections=REQUESTS)
        async with httpx.AsyncClient(
            base_url=f"http://127.0.0.1:{port}", limits=limits, timeout=PATIENCE, trust_env=False
        ) as client:
            yield client
    finally:
        server.should_exit = True
        await serving


async def append_note(request: Request) -> Response:
    """An endpoint with an explicit expected version; Starlette only."""
    given = await request.json()
    receipt = await event_store(request).append(
        "web-notes/1", Noted(text=given["text"]), expected=given["expected"]
    )
    return JSONResponse({"version": receipt.version}, 201)


async def version_of_notes(request: Request) -> Response:
    return JSONResponse(await event_store(request).version("web-notes/1"))


def notes_app(url: str) -> Starlette:
    app = Starlette(
        routes=[
            Route("/notes", append_note, methods=["POST"]),
            Route("/version", version_of_notes),
        ],
        lifespan=lifespan(url),
    )
    install(app, metadata=lambda connection: {"user": connection.headers["x-user"]})
    return app
