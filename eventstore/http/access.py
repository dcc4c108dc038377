"""Who may do what: asked before anything is looked up, so that a refusal tells nothing."""

from __future__ import annotations

import enum
import inspect
import ipaddress
from collections.abc import Awaitable, Callable, Iterable
from functools import lru_cache
from typing import Final, TypeAlias
from urllib.parse import urlsplit

from eventstore.http.problems import Problem
from eventstore.http.requests import Request
from eventstore.http.responses import Scope


class Operation(enum.Enum):
    """What a request does to a stream. A fork is CREATE of the new one, and READ of its source."""

    READ = "read"
    CREATE = "create"
    APPEND = "append"
    DELETE = "delete"
    SUBSCRIBE = "subscribe"


#: Says whether a request may do that to the stream of that path: true or false, or awaited. It may
#: raise Problem, to say more.
Authorize: TypeAlias = Callable[[Request, str, Operation], bool | Awaitable[bool]]


def allow_all(request: Request, path: str, operation: Operation) -> bool:
    """Everybody may do everything: for a server whose network or proxy decides who reaches it."""
    return True


async def check(authorize: Authorize | None, request: Request, operation: Operation) -> None:
    """Raise Problem (401 or 403) unless the request may do that to its stream."""
    await check_path(authorize, request, request.path, operation)


async def check_path(
    authorize: Authorize | None, request: Request, path: str, operation: Operation
) -> None:
    """The same for another stream, which the request concerns as well."""
    if authorize is None:
        return
    allowed = authorize(request, path, operation)
    if inspect.isawaitable(allowed):
        allowed = await allowed
    if not allowed:
        anonymous = b"authorization" not in request.headers
        raise Problem(
            401 if anonymous else 403,
            f"this request may not {operation.value} the stream {path!r}",
            {"WWW-Authenticate": "Bearer"} if anonymous else {},
        )


# --- without a hook ------------------------------------------------------------------------------

_FORWARDED: Final = (
    b"forwarded",
    b"x-forwarded-for",
    b"x-forwarded-host",
    b"x-forwarded-proto",
    b"x-real-ip",
    b"via",
)


class LocalOnly:
    """What is allowed where nothing was said: requests from programs of the same machine.

    And from pages that this machine serves, or whose origin was named. A page of any other site
    that is open in a browser here is refused, also where it makes its name point to this machine.
    """

    def __init__(self, origins: Iterable[str], base_url: str | None) -> None:
        self._origins = frozenset(origin.encode("latin-1") for origin in origins) - {b"*"}
        self._hosts = frozenset([urlsplit(base_url).netloc.lower().encode()] if base_url else [])

    def __call__(self, request: Request, path: str, operation: Operation) -> bool:
        """True. Raises Problem (403)."""
        foreign = self._foreign(request)
        if foreign is not None:
            raise Problem(
                403,
                f"{foreign}: only requests from the server's own machine are allowed until it is "
                "told whom else to allow, by DurableStreams(authorize=...), which may be "
                "eventstore.http.allow_all, or eventstore serve --token-file, --authorize or "
                "--allow-anyone",
            )
        return True

    def _foreign(self, request: Request) -> str | None:
        """Why a request is not of this machine; None if it is."""
        told = _foreign_connection(request.scope)
        if told is not None:
            return told
        headers = request.headers
        for name in _FORWARDED:
            if name in headers:
                return f"a proxy has forwarded the request ({name.decode()})"
        host = headers.get(b"host")
        if host is not None and not _is_local(host) and host.lower() not in self._hosts:
            return f"the request is for the host {host.decode('latin-1')!r}"
        origin = headers.get(b"origin")
        if origin is not None and origin not in self._origins:
            scheme, found, host = origin.partition(b"://")
            if not found or scheme not in (b"http", b"https") or not _is_local(host):
                return f"a page of {origin.decode('latin-1')!r} has made the request"
        return None


def _foreign_connection(scope: Scope) -> str | None:
    client, server = scope.get("client"), scope.get("server")
    if not client:
        # A socket of the file system has no address but its path, and its clients have none.
        if server and server[1] is None and server[0].startswith("/"):
            return None
        return "the client has no address"
    if not is_loopback(client[0]):
        return (
            f"the client's address is {client[0]!r}"
            " (a test client may be given another: client=('127.0.0.1', 0))"
        )
    if not server or server[1] is None:
        return None
    at: str = server[0]
    if is_loopback(at) or _is_local(at.encode()):
        return None
    return f"the request came in at {at!r}"


@lru_cache(maxsize=1024)
def is_loopback(host: str) -> bool:
    """Whether an address is of this machine alone."""
    try:
        address = ipaddress.ip_address(host)
    except ValueError:
        return False
    mapped = getattr(address, "ipv4_mapped", None)
    return (mapped or address).is_loopback


@lru_cache(maxsize=1024)
def _is_local(host: bytes) -> bool:
    """Whether a host, as URLs have it, with or without a port, is this machine."""
    try:
        name = urlsplit(b"//" + host).hostname or b""
    except ValueError:
        return False
    text = name.decode("latin-1")
    return text == "localhost" or text.endswith(".localhost") or is_loopback(text)
