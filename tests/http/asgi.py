"""A client that calls an ASGI application in its own event loop, without a server between."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Mapping, MutableMapping
from contextlib import asynccontextmanager
from typing import Any, NamedTuple

from eventstore.http import DurableStreams

ROOT = "/v1/stream/"


class Response(NamedTuple):
    status: int
    headers: Mapping[str, str]
    body: bytes

    @property
    def json(self) -> Any:
        return json.loads(self.body)

    @property
    def offset(self) -> str:
        return self.headers["stream-next-offset"]


class Reading:
    """A response of server-sent events, as they come."""

    def __init__(self) -> None:
        self.status = 0
        self.headers: dict[str, str] = {}
        self.started = asyncio.Event()
        self.text = b""
        self._came = asyncio.Event()
        self.is_over = False

    async def send(self, message: MutableMapping[str, Any]) -> None:
        if message["type"] == "http.response.start":
            self.status = message["status"]
            self.headers = {k.decode(): v.decode() for k, v in message["headers"]}
            self.started.set()
        else:
            self.text += message.get("body", b"")
            self.is_over = not message.get("more_body", False)
            self._came.set()

    async def event(self) -> tuple[str, str]:
        """The next event: its kind and its data."""
        while b"\n\n" not in self.text:
            assert not self.is_over, "the response has ended"
            self._came.clear()
            await asyncio.wait_for(self._came.wait(), 20)
        block, _, self.text = self.text.partition(b"\n\n")
        kind, *data = block.decode().split("\n")
        return kind.removeprefix("event: "), "\n".join(d.removeprefix("data:") for d in data)

    async def messages(self) -> list[Any]:
        """The messages of the next data event, and past its control event."""
        kind, data = await self.event()
        assert kind == "data", (kind, data)
        kind, _ = await self.event()
        assert kind == "control"
        return json.loads(data)  # type: ignore[no-any-return]

    async def control(self) -> dict[str, Any]:
        """The next event, which is a control event."""
        kind, data = await self.event()
        assert kind == "control", (kind, data)
        return json.loads(data)  # type: ignore[no-any-return]

    async def ended(self) -> None:
        while not self.is_over:
            self._came.clear()
            await asyncio.wait_for(self._came.wait(), 20)


class Client:
    """Requests to an application."""

    def __init__(self, app: Any, root: str = ROOT, client: str = "127.0.0.1") -> None:
        self._app = app
        self._root = root
        self._client = client

    def _scope(self, method: str, path: str, headers: Mapping[str, str]) -> dict[str, Any]:
        path, _, query = path.partition("?")
        raw = (self._root + path).encode()
        named = {"host": "localhost", **headers}
        return {
            "type": "http",
            "asgi": {"version": "3.0"},
            "http_version": "1.1",
            "scheme": "http",
            "method": method,
            "path": raw.decode(),
            "raw_path": raw,
            "root_path": "",
            "query_string": query.encode(),
            "headers": [(k.lower().encode(), v.encode()) for k, v in named.items()],
            "client": (self._client, 50000),
            "server": ("127.0.0.1", 4437),
        }

    async def ask(
        self, method: str, path: str, body: bytes | str = b"", **headers: str
    ) -> Response:
        """A request and its whole response. `content_type` is the header Content-Type."""
        named = {name.replace("_", "-"): value for name, value in headers.items()}
        data = body.encode() if isinstance(body, str) else body
        reading = Reading()
        pending = asyncio.Event()
        sent = False

        async def receive() -> MutableMapping[str, Any]:
            nonlocal sent
            if sent:
                await pending.wait()
            sent = True
            return {"type": "http.request", "body": data, "more_body": False}

        await self._app(self._scope(method, path, named), receive, reading.send)
        return Response(reading.status, reading.headers, reading.text)

    async def put(self, path: str, body: bytes | str = b"", **headers: str) -> Response:
        return await self.ask("PUT", path, body, **{"content_type": "application/json", **headers})

    async def post(self, path: str, body: bytes | str = b"", **headers: str) -> Response:
        return await self.ask("POST", path, body, **{"content_type": "application/json", **headers})

    async def get(self, path: str, **headers: str) -> Response:
        return await self.ask("GET", path, **headers)

    @asynccontextmanager
    async def events(self, path: str) -> AsyncIterator[Reading]:
        """A reader of server-sent events, which goes away at the end of the block."""
        reading = Reading()
        gone = asyncio.Event()

        async def receive() -> MutableMapping[str, Any]:
            await gone.wait()
            return {"type": "http.disconnect"}

        scope = self._scope("GET", path, {})
        task = asyncio.create_task(self._app(scope, receive, reading.send))
        waiting = asyncio.create_task(reading.started.wait())
        await asyncio.wait([task, waiting], return_when=asyncio.FIRST_COMPLETED)
        waiting.cancel()
        try:
            yield reading
        finally:
            gone.set()
            await task


@asynccontextmanager
async def client_of(app: DurableStreams) -> AsyncIterator[Client]:
    """A client of an application that is closed at the end of the block."""
    try:
        yield Client(app)
    finally:
        await app.aclose()
