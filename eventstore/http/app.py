"""DurableStreams: the ASGI application."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Iterable
from typing import Final
from urllib.parse import quote

from eventstore.aggregate import Aggregate
from eventstore.aio import AsyncEventStore
from eventstore.aio.hops import Hops
from eventstore.errors import EventStoreError, LogLockedError, LogUnavailableError
from eventstore.http.access import Authorize, LocalOnly, allow_all
from eventstore.http.committing import Committer
from eventstore.http.expiring import expire
from eventstore.http.limits import Bodies, Limits, LiveReaders, Rates, client_of
from eventstore.http.live import Hub
from eventstore.http.problems import Problem
from eventstore.http.reading import Reader
from eventstore.http.requests import Disconnected, Request, stream_path
from eventstore.http.responses import Answer, Headers, Origins, Receive, Scope, Send, send_answer
from eventstore.http.streaming import Streaming
from eventstore.http.subscriptions import Subscriptions, concerns
from eventstore.http.writing import Writing
from eventstore.store import EventStore

logger = logging.getLogger(__name__)

#: Threads that wait for the database, at the most; and those that read streams, which never wait
#: behind a writer. More of them only wait for each other where nothing goes over a network.
_THREADS: Final = 16
_READERS: Final = {"sqlite": 4, "postgresql": 8}


class DurableStreams:
    """The streams of a store, served by the Durable Streams protocol: an ASGI application.

        app = DurableStreams(EventStore("sqlite:///shop.db"))

    Alone (`uvicorn module:app`, `eventstore serve`), or mounted in Starlette, FastAPI or any other
    ASGI application. A stream is at `{root}/{path}`, and its path is its name in the log.

    **Durability.** What is answered is committed, together with the state of its idempotent
    producer. Requests that come at once share transactions, each with its own outcome.
    **Order.** A stream's messages have one order, that of its events; readers see all of them, each
    once, and never one whose transaction may still be rolled back.
    **Aggregates.** What the application writes is readable in the envelope `{type, id, version,
    timestamp, data, metadata}` as soon as it is saved. A stream that an aggregate class claims, or
    that the application has written, is read-only over HTTP, unless its class is `writable`: then
    each event is validated against its class, and `Stream-Expected-Version` may say at which
    version the stream must be (412 if it is not). **Stream-Seq** is compared per stream.
    **Access.** Without `authorize` only requests from the same machine are allowed: `access`.

    Use it on one event loop, and close it with `aclose` where no server runs its lifespan.
    """

    def __init__(
        self,
        store: EventStore | AsyncEventStore,
        *,
        root: str = "/v1/stream",
        authorize: Authorize | None = None,
        writable: Iterable[type[Aggregate]] = (),
        long_poll_timeout: float = 20.0,
        limits: Limits | None = None,
        origins: Iterable[str] = ("*",),
        is_public: bool = False,
        base_url: str | None = None,
        local_webhooks: bool | None = None,
    ) -> None:
        """Nothing is opened or started before the first request.

        `authorize` is asked about each stream that a request concerns; `allow_all` is one.
        `long_poll_timeout` is in seconds. `origins` are those whose pages may read (CORS). With
        `is_public`, shared caches may keep what streams made over HTTP have answered, if everybody
        may read them; never what aggregates have. `base_url` is what clients have in front of
        `root`, where that is not what they send as Host: "https://shop.example/log".
        `local_webhooks` says whether webhooks may be on the server's own machine; by default those
        of subscriptions that are made from there.
        """
        origins = tuple(origins)
        #: What a server keeps to beside the application.
        self.limits = limits = limits or Limits()
        self._store = store
        self._root = root.rstrip("/").encode()
        self._origins = Origins(origins)
        self._authorize: Authorize | None = None
        if authorize is not allow_all:
            self._authorize = authorize or LocalOnly(origins, base_url)
        self._base_url = None if base_url is None else base_url.rstrip("/")
        self._writable = tuple(writable)
        self._timeout = long_poll_timeout
        self._bodies = Bodies(limits)
        self._live_readers = LiveReaders(limits)
        self._rates: Rates | None = None
        if limits.requests_per_second is not None:
            self._rates = Rates(limits.requests_per_second, limits.burst)
        self._is_public = is_public
        self._local_webhooks = local_webhooks
        self._running: _Running | None = None

    @property
    def store(self) -> EventStore:
        """The store whose streams these are."""
        return self._store if isinstance(self._store, EventStore) else self._store.sync

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http":
            await self._respond(scope, receive, send)
        elif scope["type"] == "lifespan":
            await self._live(receive, send)
        elif scope["type"] == "websocket":
            await send({"type": "websocket.close", "code": 1000})

    # --- a request -----------------------------------------------------------------------------

    async def _respond(self, scope: Scope, receive: Receive, send: Send) -> None:
        origin = None
        for name, value in scope["headers"]:
            if name == b"origin":
                origin = value
                break
        common = self._origins.common(origin)
        head = scope["method"] == "HEAD"
        try:
            answer = await self._answer(scope, receive, send, origin, common)
        except Problem as problem:
            answer = _told(problem)
        except Disconnected:
            return
        except EventStoreError as error:
            answer = _told(_failed(error))
        if answer is not None:
            await send_answer(send, answer, common, head=head)

    async def _answer(
        self, scope: Scope, receive: Receive, send: Send, origin: bytes | None, common: Headers
    ) -> Answer | None:
        """The answer to a request; None where it has been sent already."""
        if self._rates is not None:
            self._rates.take(client_of(scope))
        method = scope["method"]
        if method == "OPTIONS":
            headers = self._origins.preflight(origin)
            return Answer(204, {k.decode(): v.decode("latin-1") for k, v in headers})
        encoded = self._encoded_path(scope)
        running = self._run()
        if concerns(encoded):
            return await running.subscriptions.answer(scope, encoded, receive)
        request = Request(scope, stream_path(encoded))
        if method in ("GET", "HEAD"):
            if "live" not in request.query:
                return await running.streaming.answer(request, receive, send, common)
            with self._live_readers.one(scope):
                return await running.streaming.answer(request, receive, send, common)
        if method in ("PUT", "POST", "DELETE"):
            return await running.writing.answer(request, receive)
        raise Problem(405, f"{method} is not supported", {"Allow": "GET, HEAD, PUT, POST, DELETE"})

    def _encoded_path(self, scope: Scope) -> bytes:
        """The part of the path below the root, still encoded. Raises Problem (404)."""
        raw: bytes = scope.get("raw_path") or quote(scope["path"]).encode()
        raw = raw.partition(b"?")[0]
        mounted = scope.get("root_path", "").encode()
        if mounted and raw.startswith(mounted):
            raw = raw[len(mounted) :]
        root = self._root
        if not raw.startswith(root) or raw[len(root) : len(root) + 1] != b"/":
            raise Problem(404, f"streams are at {root.decode()}/<path>")
        return raw[len(root) + 1 :]

    # --- running -------------------------------------------------------------------------------

    def _run(self) -> _Running:
        if self._running is None:
            self._running = _Running(self)
            if isinstance(self._authorize, LocalOnly):
                logger.info("no authorize was given: only requests of this machine are allowed")
            elif self._authorize is None:
                logger.info("everybody who can reach this server may read and write its streams")
        return self._running

    async def _live(self, receive: Receive, send: Send) -> None:
        while True:
            message = await receive()
            if message["type"] == "lifespan.startup":
                self._run()
                await send({"type": "lifespan.startup.complete"})
            elif message["type"] == "lifespan.shutdown":
                await self.aclose()
                await send({"type": "lifespan.shutdown.complete"})
                return

    def drain(self) -> None:
        """Send live readers away, so that a server can stop: they reconnect where they were."""
        if self._running is not None:
            self._running.hub.drain()

    async def aclose(self) -> None:
        """End what runs for the application: its threads and tasks. The store stays open."""
        running, self._running = self._running, None
        if running is not None:
            await running.close()


class _Running:
    """What an application needs on its event loop."""

    def __init__(self, app: DurableStreams) -> None:
        log = app.store.log
        self.hops = Hops(_THREADS)
        self.reads = Hops(_READERS[log.engine.dialect.name])
        self.reader = Reader(log)
        self.hub = Hub(log, self.reads, self.reader)
        self.committer = Committer(log, self.hops, self.hub.moved)
        self.writing = Writing(
            self.committer,
            app._authorize,
            app._writable,
            app._bodies,
            app._root.decode(),
            app._base_url,
        )
        self.streaming = Streaming(
            self.hub,
            self.committer,
            self.reads,
            self.reader,
            app._authorize,
            timeout=app._timeout,
            is_public=app._is_public,
        )
        self.subscriptions = Subscriptions(
            log,
            self.hub,
            self.hops,
            self.committer,
            app._authorize,
            app._bodies,
            app._root.decode(),
            app._base_url,
            app._local_webhooks,
        )
        self._expiring = asyncio.create_task(expire(log, self.hops, self.committer))

    async def close(self) -> None:
        self._expiring.cancel()
        await self.subscriptions.close()
        thread = self.hub.close()
        await self.committer.finish()
        loop = asyncio.get_running_loop()
        if thread is not None:
            await loop.run_in_executor(None, thread.join)
        for hops in (self.reads, self.hops):
            await loop.run_in_executor(None, hops.close)


def _told(problem: Problem) -> Answer:
    headers = {"Content-Type": "application/problem+json", "Cache-Control": "no-store"}
    return Answer(problem.status, headers | problem.headers, problem.body)


def _failed(error: EventStoreError) -> Problem:
    """What a client is told of an error that is not its own."""
    logger.error("a request failed: %s", error, extra={"eventstore.error": type(error).__name__})
    if isinstance(error, LogLockedError):
        return Problem(503, "the log is busy; nothing was written", {"Retry-After": "1"})
    if isinstance(error, LogUnavailableError):
        return Problem(503, "the log is not available", {"Retry-After": "1"})
    return Problem(500, "the server could not do it; its log says why")
