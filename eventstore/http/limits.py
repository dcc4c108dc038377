"""How much a client may take: bytes, requests a second, live readers, and time for a body."""

from __future__ import annotations

import asyncio
import ipaddress
import math
import time
from collections.abc import Callable, Generator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, Final, Generic, TypeVar

from eventstore.errors import InvalidArgumentError
from eventstore.http.problems import Problem
from eventstore.http.requests import Disconnected, Request
from eventstore.http.responses import Receive, Scope

K = TypeVar("K")

#: Clients whose requests are counted at a time; the one that was quiet longest is forgotten.
_BUCKETS: Final = 10_000
#: Bodies up to here are not counted among those that are under way.
_SMALL: Final = 64 * 1024


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """What the clients of one server may take. None means: without a limit.

    A client is an address: for IPv6 a network of 64 bits. Behind a proxy that is the proxy, unless
    the server takes the client from a header (`eventstore serve --forwarded-allow-ips`).
    """

    #: Bytes of a request's body; more is answered 413.
    body_bytes: int = 16 * 1024 * 1024
    #: Seconds within which a body has to be there as a whole; else 408.
    body_seconds: float = 60.0
    #: Bytes of all large bodies that are held at once; past that, 429.
    all_bodies_bytes: int = 256 * 1024 * 1024
    #: Bytes of large answers that wait for clients to take them; past that, `eventstore serve`
    #: sends away who has taken nothing for longest. Another server does as it is made.
    unread_bytes: int = 256 * 1024 * 1024
    #: Requests of one client a second, on average; past that, 429.
    requests_per_second: float | None = None
    #: Requests that a client which was quiet may make at once; by default two seconds' worth.
    burst: int | None = None
    #: Readers that wait for news at once; past that, 429.
    live_readers: int = 20_000
    #: Those of one client.
    live_readers_per_client: int | None = None

    def __post_init__(self) -> None:
        for name in self.__slots__:
            value = getattr(self, name)
            if value is not None and not 0 < value < math.inf:
                raise InvalidArgumentError(name, value, "a limit is a number above 0")


def client_of(scope: Scope) -> str:
    """Whose request it is, as far as limits go."""
    client = scope.get("client")
    if not client:
        return ""
    host: str = client[0]
    return _network(host) if ":" in host else host


@lru_cache(maxsize=4096)
def _network(host: str) -> str:
    try:
        return str(ipaddress.ip_network(f"{host}/64", strict=False))
    except ValueError:
        return host


class Deadlines(Generic[K]):
    """Notices what does not end in time, with one timer for all: a timer for each costs more."""

    def __init__(self, seconds: float, late: Callable[[K], object]) -> None:
        """`late` is called on the loop, once, for each that was begun and has not ended."""
        self._seconds = seconds
        self._late = late
        self._since: dict[K, float] = {}
        self._timer: asyncio.TimerHandle | None = None

    def begin(self, key: K) -> None:
        """From now on its time runs, if it did not already."""
        self._since.setdefault(key, time.monotonic())
        if self._timer is None:
            self._arm()

    def end(self, key: K) -> None:
        """It has ended, or does not matter any more."""
        self._since.pop(key, None)

    def _arm(self) -> None:
        loop = asyncio.get_running_loop()
        self._timer = loop.call_later(min(1.0, self._seconds / 4), self._look)

    def _look(self) -> None:
        self._timer = None
        latest = time.monotonic() - self._seconds
        late = []
        for key, since in self._since.items():  # the oldest first
            if since > latest:
                break
            late.append(key)
        for key in late:
            del self._since[key]
            self._late(key)
        if self._since:
            self._arm()


class Bodies:
    """Reads the bodies of requests, within the limits."""

    def __init__(self, limits: Limits) -> None:
        self._limit = limits.body_bytes
        self._most = limits.all_bodies_bytes
        self._held = 0
        self._late: set[asyncio.Task[Any]] = set()
        self._deadlines: Deadlines[asyncio.Task[Any]] = Deadlines(limits.body_seconds, self._end)

    async def read(self, request: Request, receive: Receive) -> bytes:
        """The body; when the request is answered, it is to be given back by `release`.

        Raises Problem: 408, 413, 429; Disconnected.
        """
        length = request.headers.get(b"content-length", b"")
        if length.isdigit() and (len(length) > 15 or int(length) > self._limit):
            raise self._too_large()
        task = asyncio.current_task()
        assert task is not None
        self._deadlines.begin(task)
        try:
            return await self._read(request, receive)
        except asyncio.CancelledError:
            if task not in self._late:
                raise
            self._late.discard(task)
            task.uncancel()
            raise Problem(
                408, "the body did not come in time; nothing was written", {"Connection": "close"}
            ) from None
        finally:
            self._deadlines.end(task)

    def release(self, request: Request) -> None:
        """The request's body is not held any more."""
        self._held -= request.held
        request.held = 0

    async def _read(self, request: Request, receive: Receive) -> bytes:
        parts: list[bytes] = []
        size = 0
        while True:
            message = await receive()
            if message["type"] == "http.disconnect":
                raise Disconnected
            body: bytes = message.get("body", b"")
            size += len(body)
            if size > self._limit:
                raise self._too_large()
            if size > _SMALL:
                self._hold(request, size)
            if not message.get("more_body", False):
                return body if not parts else b"".join([*parts, body])
            parts.append(body)

    def _hold(self, request: Request, size: int) -> None:
        more = size - request.held
        if self._held + more > self._most:
            headers = {"Retry-After": "1", "Connection": "close"}
            raise Problem(429, "too many large requests are under way; come again", headers)
        self._held += more
        request.held = size

    def _end(self, task: asyncio.Task[Any]) -> None:
        self._late.add(task)
        task.cancel()

    def _too_large(self) -> Problem:
        detail = f"the body is larger than {self._limit} bytes"
        return Problem(413, detail, {"Connection": "close"})


class Rates:
    """Requests a second of each client: a bucket of tokens each."""

    def __init__(self, per_second: float, burst: int | None) -> None:
        self._rate = per_second
        self._burst = float(burst or max(1, math.ceil(2 * per_second)))
        #: Tokens of each client, and when they were counted. The client that was quiet longest
        #: comes first.
        self._buckets: dict[str, tuple[float, float]] = {}

    def take(self, client: str) -> None:
        """Take one token. Raises Problem (429)."""
        now = time.monotonic()
        tokens, counted = self._buckets.pop(client, (self._burst, now))
        tokens = min(self._burst, tokens + (now - counted) * self._rate)
        if len(self._buckets) >= _BUCKETS:
            del self._buckets[next(iter(self._buckets))]
        self._buckets[client] = (tokens - 1 if tokens >= 1 else tokens, now)
        if tokens < 1:
            seconds = math.ceil((1 - tokens) / self._rate)
            detail = f"a client may make {self._rate:g} requests a second"
            raise Problem(429, detail, {"Retry-After": str(seconds)})


class LiveReaders:
    """How many readers wait for news."""

    def __init__(self, limits: Limits) -> None:
        self._most = limits.live_readers
        self._most_of_one = limits.live_readers_per_client
        self._count = 0
        self._of: dict[str, int] = {}

    @contextmanager
    def one(self, scope: Scope) -> Generator[None]:
        """For as long as the block lasts, there is one more. Raises Problem (429)."""
        client = client_of(scope)
        own = self._of.get(client, 0)
        if self._count >= self._most:
            raise _too_many(f"this server has {self._most} live readers already")
        if self._most_of_one is not None and own >= self._most_of_one:
            raise _too_many(f"a client may have {self._most_of_one} live readers at once")
        self._count += 1
        self._of[client] = own + 1
        try:
            yield
        finally:
            self._count -= 1
            if self._of[client] == 1:
                del self._of[client]
            else:
                self._of[client] -= 1


def _too_many(detail: str) -> Problem:
    return Problem(429, detail, {"Retry-After": "5"})
