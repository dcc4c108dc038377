"""The standalone server: uvicorn around a DurableStreams. It needs the extra `http`."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import socket
import ssl
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from types import FrameType
from typing import Any, Final, Literal

import uvicorn

from eventstore.errors import EventStoreError, InvalidArgumentError
from eventstore.http.access_log import AccessLog, Noted
from eventstore.http.app import DurableStreams
from eventstore.http.connections import Connection, Watch
from eventstore.http.health import Health
from eventstore.http.responses import Receive, Scope, Send, send_answer

logger = logging.getLogger(__name__)

#: Files that are not connections of clients: the database's, the log's.
_OTHER_FILES: Final = 100
_BACKLOG: Final = 2048
#: Seconds that an idle connection is kept: longer than clients and proxies keep theirs (60 at most,
#: by habit), so that no request is on its way when it is closed.
_KEEP_ALIVE: Final = 75


class ServerError(EventStoreError):
    """The server cannot start: `.address` is where it was to listen."""

    def __init__(self, address: str, problem: str) -> None:
        self.address = address
        super().__init__(f"cannot serve at {address}: {problem}")


@dataclass(frozen=True, slots=True, kw_only=True)
class Options:
    """How a server listens."""

    host: str = "127.0.0.1"
    #: 0 is any free one.
    port: int = 4437
    tls_cert: str | None = None
    tls_key: str | None = None
    #: Addresses of proxies whose X-Forwarded-For and X-Forwarded-Proto are believed, or "*".
    forwarded_allow_ips: str | None = None
    #: On stderr.
    access_log: Literal["text", "json"] | None = "text"
    #: Seconds that requests under way have to end, once the server is to stop.
    shutdown_seconds: int = 10


def serve(
    app: DurableStreams,
    options: Options | None = None,
    *,
    ready: Callable[[str], object] | None = None,
) -> None:
    """Serve until SIGTERM or SIGINT: then live readers are sent away, and writes come to their end.

    A second signal ends it at once. `ready` is called with the server's URL when it listens. Call
    it in the main thread. Raises ServerError, InvalidArgumentError.
    """
    options = options or Options()
    if options.tls_key is not None and options.tls_cert is None:
        raise InvalidArgumentError("tls_key", options.tls_key, "a key needs its certificate")
    files = _more_files()
    listener = _listen(options)
    with contextlib.ExitStack() as stack:
        stack.callback(listener.close)
        log = None
        if options.access_log is not None:
            log = stack.enter_context(AccessLog(sys.stderr, options.access_log))
        front = _Front(app, log, options.shutdown_seconds)
        watch = Watch(max(files - _OTHER_FILES, files // 2), app.limits.unread_bytes)
        server = _Server(_config(front, options, watch), front, partial(_tell, options, ready))
        server.run([listener])


def _config(front: _Front, options: Options, watch: Watch) -> uvicorn.Config:
    protocol: Any = partial(Connection, watch=watch)
    config = uvicorn.Config(
        front,
        http=protocol,
        ws="none",
        lifespan="on",
        log_config=None,
        access_log=False,
        server_header=False,
        proxy_headers=options.forwarded_allow_ips is not None,
        forwarded_allow_ips=options.forwarded_allow_ips,
        timeout_keep_alive=_KEEP_ALIVE,
        timeout_graceful_shutdown=options.shutdown_seconds,
        ssl_certfile=options.tls_cert,
        ssl_keyfile=options.tls_key,
    )
    logging.getLogger("uvicorn.error").setLevel(logging.ERROR)
    try:
        config.load()
    except (OSError, ssl.SSLError) as error:
        address = f"{options.host}:{options.port}"
        raise ServerError(address, f"the certificate or its key: {error}") from error
    return config


def _listen(options: Options) -> socket.socket:
    address = f"{options.host}:{options.port}"
    try:
        family, _, _, _, place = socket.getaddrinfo(
            options.host, options.port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
        return socket.create_server(place[:2], family=family, backlog=_BACKLOG)
    except (OSError, OverflowError, UnicodeError) as error:
        raise ServerError(address, str(error)) from error


def _tell(options: Options, ready: Callable[[str], object] | None, listener: socket.socket) -> None:
    if ready is None:
        return
    scheme = "https" if options.tls_cert else "http"
    host, port = listener.getsockname()[:2]
    ready(f"{scheme}://[{host}]:{port}" if ":" in host else f"{scheme}://{host}:{port}")


def _more_files() -> int:
    """Let this process have as many files open as it may; how many these are."""
    try:
        import resource
    except ImportError:  # Windows
        return 10_000
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    with contextlib.suppress(OSError, ValueError):
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
        soft = hard
    return 1_000_000 if soft == resource.RLIM_INFINITY else soft


class _Server(uvicorn.Server):
    """Sends live readers away before it waits for what is under way."""

    def __init__(
        self, config: uvicorn.Config, front: _Front, ready: Callable[[socket.socket], object]
    ) -> None:
        super().__init__(config)
        self._front = front
        self._ready = ready

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        if self.started and sockets:
            self._ready(sockets[0])

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        self._front.drain()
        await super().shutdown(sockets)

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        # uvicorn would raise the signal again at the end; for us it is a way to end well.
        self.force_exit = self.should_exit
        self.should_exit = True


class _Front:
    """The application that a server runs: health, the access log, and the streams."""

    def __init__(self, app: DurableStreams, log: AccessLog | None, patience: float) -> None:
        self._app = app
        self._log = log
        self._patience = patience
        self._health = Health(app.store)

    def drain(self) -> None:
        self._health.is_stopping = True
        self._app.drain()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            await self._live(receive, send)
            return
        path: str = scope["path"]
        if path in ("/healthz", "/readyz"):
            answer = await self._health.answer(path)
            assert answer is not None
            await send_answer(send, answer, [], head=scope["method"] == "HEAD")
        elif self._log is None:
            await self._app(scope, receive, send)
        else:
            await self._logged(self._log, scope, receive, send)

    async def _logged(self, log: AccessLog, scope: Scope, receive: Receive, send: Send) -> None:
        began = time.perf_counter()
        noted = Noted(send)
        try:
            await self._app(scope, receive, noted.send)
        finally:
            log.note(scope, noted.status, time.perf_counter() - began)

    async def _live(self, receive: Receive, send: Send) -> None:
        await receive()
        self._app._run()
        await send({"type": "lifespan.startup.complete"})
        await receive()
        try:
            async with asyncio.timeout(self._patience):
                await self._app.aclose()
                await self._health.aclose()
        except TimeoutError:
            logger.error(
                "the database did not answer in %g s: this process ends",
                self._patience,
                extra={"eventstore.seconds": self._patience},
            )
            os._exit(1)  # threads that wait for it would be waited for; a commit is whole or not
        await send({"type": "lifespan.shutdown.complete"})
