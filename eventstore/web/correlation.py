"""The metadata of a request: what events that are appended while it is answered will carry."""

from __future__ import annotations

import re
import uuid
from collections.abc import Awaitable, Callable, Mapping
from inspect import isawaitable
from typing import Any, Final, TypeAlias

from starlette.datastructures import Headers, MutableHeaders
from starlette.requests import HTTPConnection
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from eventstore.metadata import context

#: What an application adds to a request's metadata.
Adding: TypeAlias = Callable[[HTTPConnection], "Mapping[str, Any] | Awaitable[Mapping[str, Any]]"]

CORRELATION: Final = "X-Correlation-ID"
CAUSATION: Final = "X-Causation-ID"

# Visible ASCII, and not much of it: it is stored with each event, and written into logs.
_ID: Final = re.compile(r"[\x21-\x7e]{1,128}")
_TRACEPARENT: Final = re.compile(
    r"(?!ff)[0-9a-f]{2}-(?!0{32})([0-9a-f]{32})-(?!0{16})[0-9a-f]{16}-[0-9a-f]{2}(-.*)?"
)


class MetadataMiddleware:
    """Puts the metadata of each request, or WebSocket, into `eventstore.context`.

    - `correlation_id`: the first valid one of `X-Correlation-ID`, the trace of `traceparent`, and
      `X-Request-ID`; else a new one. The response carries it as `X-Correlation-ID`.
    - `causation_id`: `X-Causation-ID`, where that is given and valid.
    - what `metadata`, a function or coroutine function of the connection, returns. It cannot
      replace the two.

    An id is valid with 1 to 128 visible ASCII characters; another is passed over. Requests that
    are answered at the same time do not see each other's metadata, and threads that FastAPI calls
    endpoints in have their request's.
    """

    def __init__(self, app: ASGIApp, *, metadata: Adding | None = None) -> None:
        self._app = app
        self._metadata = metadata

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] not in ("http", "websocket"):
            await self._app(scope, receive, send)
            return
        ids = request_ids(Headers(scope=scope))

        async def send_with_id(message: Message) -> None:
            if message["type"] in ("http.response.start", "websocket.accept"):
                message.setdefault("headers", [])
                MutableHeaders(scope=message)[CORRELATION] = ids["correlation_id"]
            await send(message)

        with context(**{**await self._added(scope), **ids}):
            await self._app(scope, receive, send_with_id)

    async def _added(self, scope: Scope) -> Mapping[str, Any]:
        if self._metadata is None:
            return {}
        added = self._metadata(HTTPConnection(scope))
        return await added if isawaitable(added) else added


def request_ids(headers: Headers) -> dict[str, str]:
    """The ids that a request's headers give; a new correlation id if they give none."""
    ids = {"correlation_id": _correlation(headers)}
    causation = headers.get(CAUSATION, "")
    if _ID.fullmatch(causation):
        ids["causation_id"] = causation
    return ids


def _correlation(headers: Headers) -> str:
    own = headers.get(CORRELATION, "")
    if _ID.fullmatch(own):
        return own
    trace = _TRACEPARENT.fullmatch(headers.get("traceparent", ""))
    if trace:
        return trace[1]
    request = headers.get("X-Request-ID", "")
    return request if _ID.fullmatch(request) else str(uuid.uuid4())
