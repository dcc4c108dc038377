"""Responses, and the headers that all of them have."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterable, Mapping, MutableMapping
from typing import Any, Final, TypeAlias

Scope: TypeAlias = MutableMapping[str, Any]
Receive: TypeAlias = Callable[[], Awaitable[MutableMapping[str, Any]]]
Send: TypeAlias = Callable[[MutableMapping[str, Any]], Awaitable[None]]
Headers: TypeAlias = list[tuple[bytes, bytes]]

_SECURITY: Final[Headers] = [
    (b"x-content-type-options", b"nosniff"),
    (b"cross-origin-resource-policy", b"cross-origin"),
]
_METHODS: Final = b"GET, POST, PUT, DELETE, HEAD, OPTIONS"
_ALLOWED: Final = (
    b"Content-Type, Authorization, If-None-Match, Stream-Seq, Stream-TTL, Stream-Expires-At, "
    b"Stream-Closed, Stream-Forked-From, Stream-Fork-Offset, Stream-Fork-Sub-Offset, "
    b"Stream-Expected-Version, Producer-Id, Producer-Epoch, Producer-Seq"
)
_EXPOSED: Final = (
    b"Stream-Next-Offset, Stream-Cursor, Stream-Up-To-Date, Stream-Closed, Stream-TTL, "
    b"Stream-Expires-At, Stream-Version, Stream-SSE-Data-Encoding, Producer-Epoch, Producer-Seq, "
    b"Producer-Expected-Seq, Producer-Received-Seq, ETag, Location, Content-Type, Retry-After"
)


class Answer:
    """A response that is sent as a whole."""

    __slots__ = ("body", "headers", "status")

    def __init__(
        self, status: int, headers: Mapping[str, str] | None = None, body: bytes = b""
    ) -> None:
        self.status = status
        self.headers = headers or {}
        self.body = body


class Origins:
    """Which pages of other origins may read the responses: CORS."""

    def __init__(self, allowed: Iterable[str]) -> None:
        """Origins such as "https://app.example", or "*" for every one."""
        origins = frozenset(origin.encode("latin-1") for origin in allowed)
        self._any = b"*" in origins
        self._origins = origins

    def common(self, origin: bytes | None) -> Headers:
        """The headers of every response to a request from there."""
        if self._any:
            return _TO_ANY
        if origin is not None and origin in self._origins:
            return [*_SECURITY, *_shared_with(origin), (b"vary", b"Origin")]
        return [*_SECURITY, (b"vary", b"Origin")]

    def preflight(self, origin: bytes | None) -> Headers:
        """The headers of the answer to a browser that asks before it sends the request."""
        return [
            *self.common(origin),
            (b"access-control-allow-methods", _METHODS),
            (b"access-control-allow-headers", _ALLOWED),
            (b"access-control-max-age", b"86400"),
        ]


def _shared_with(origin: bytes) -> Headers:
    return [
        (b"access-control-allow-origin", origin),
        (b"access-control-expose-headers", _EXPOSED),
    ]


_TO_ANY: Final = [*_SECURITY, *_shared_with(b"*")]

#: Statuses whose responses have no body, and no length of one.
_BODILESS: Final = frozenset({204, 304})


async def send_answer(send: Send, answer: Answer, common: Headers, *, head: bool = False) -> None:
    """Send a response; of an answer to HEAD, all but the body."""
    headers = [
        (name.lower().encode("latin-1"), value.encode("latin-1"))
        for name, value in answer.headers.items()
    ]
    if answer.status not in _BODILESS:
        headers.append((b"content-length", b"%d" % len(answer.body)))
    await send(
        {"type": "http.response.start", "status": answer.status, "headers": [*headers, *common]}
    )
    body = b"" if head else answer.body
    await send({"type": "http.response.body", "body": body, "more_body": False})
