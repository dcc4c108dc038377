"""Connections, before a request is known and after its answer is: what uvicorn leaves unbounded.

A client that connects and says nothing, or never comes to the end of its headers, is sent away; so
is one that does not take what it has asked for.
"""

from __future__ import annotations

import asyncio
import logging
import time
from typing import Any, Final

from uvicorn.config import Config
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol, RequestResponseCycle
from uvicorn.server import ServerState

from eventstore.http.limits import Deadlines

logger = logging.getLogger(__name__)

#: Bytes of a request's line and headers.
HEAD_BYTES: Final = 64 * 1024
#: Seconds within which they have to be there.
HEAD_SECONDS: Final = 20.0
#: Seconds within which a client has to take some of what waits for it.
STALLED_SECONDS: Final = 60.0
#: Bytes that wait for clients in all; past that, who has been slow longest is sent away.
WAITING_BYTES: Final = 256 * 1024 * 1024

_HEAD_TOO_LARGE: Final = (
    b"HTTP/1.1 431 Request Header Fields Too Large\r\n"
    b"content-length: 0\r\nconnection: close\r\n\r\n"
)


class Watch:
    """Watches the connections of one server."""

    def __init__(
        self,
        most: int,
        *,
        head_seconds: float = HEAD_SECONDS,
        stalled_seconds: float = STALLED_SECONDS,
        waiting_bytes: int = WAITING_BYTES,
    ) -> None:
        """`most` is how many connections there may be."""
        self.most = most
        self.heads: Deadlines[Connection] = Deadlines(head_seconds, lambda late: late.abort())
        self._stalled_seconds = stalled_seconds
        self._waiting_bytes = waiting_bytes
        #: Connections that take slowly: when each was last seen to take, and what waited then.
        self._slow: dict[Connection, tuple[float, int]] = {}
        self._waiting = 0
        self._timer: asyncio.TimerHandle | None = None

    def slow(self, connection: Connection, waiting: int) -> None:
        """A connection's client does not take as fast as it is given."""
        self._set(connection, time.monotonic(), waiting)
        while self._waiting > self._waiting_bytes:
            logger.warning("a slow reader is sent away: too much waits for slow readers")
            self._drop(next(iter(self._slow)))
        if self._timer is None:
            self._arm()

    def quick(self, connection: Connection) -> None:
        """It has taken what waited, or it is gone."""
        _, waiting = self._slow.pop(connection, (0.0, 0))
        self._waiting -= waiting

    def _set(self, connection: Connection, moment: float, waiting: int) -> None:
        _, before = self._slow.get(connection, (0.0, 0))
        self._slow[connection] = (moment, waiting)
        self._waiting += waiting - before

    def _drop(self, connection: Connection) -> None:
        self.quick(connection)
        connection.abort()

    def _arm(self) -> None:
        self._timer = asyncio.get_running_loop().call_later(1.0, self._look)

    def _look(self) -> None:
        self._timer = None
        now = time.monotonic()
        for connection, (moment, before) in list(self._slow.items()):
            waiting = connection.waiting
            if waiting < before:
                self._set(connection, now, waiting)
            elif now - moment > self._stalled_seconds:
                self._drop(connection)
        if self._slow:
            self._arm()


class Connection(HttpToolsProtocol):
    """One connection of a server that has a Watch."""

    def __init__(
        self,
        config: Config,
        server_state: ServerState,
        app_state: dict[str, Any],
        _loop: asyncio.AbstractEventLoop | None = None,
        *,
        watch: Watch,
    ) -> None:
        super().__init__(config, server_state, app_state, _loop)
        self._watch = watch
        #: Whether the head of a request is still to come, and how much of it is there.
        self._in_head = True
        self._head = 0

    @property
    def waiting(self) -> int:
        """Bytes that the client has not taken yet."""
        return 0 if self.transport.is_closing() else self.transport.get_write_buffer_size()

    def abort(self) -> None:
        """Close it, whatever waits."""
        self.transport.abort()

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        if len(self.connections) > self._watch.most:
            transport.abort()
            return
        self._watch.heads.begin(self)

    def connection_lost(self, exc: Exception | None) -> None:
        self._watch.heads.end(self)
        self._watch.quick(self)
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        super().data_received(data)
        if self._in_head:
            self._await_head(len(data))

    def _await_head(self, size: int) -> None:
        """The head of a request does not come in one piece."""
        if not self._head:
            self._watch.heads.begin(self)
            self._head = 1  # most of the piece may belong to the request before
            return
        self._head += size
        if self._head <= HEAD_BYTES or self.transport.is_closing():
            return
        cycle: RequestResponseCycle | None = self.cycle
        if cycle and not cycle.response_complete:
            self.abort()
        else:
            self.transport.write(_HEAD_TOO_LARGE)
            self.transport.close()

    def on_message_begin(self) -> None:
        super().on_message_begin()
        self._in_head = True

    def on_headers_complete(self) -> None:
        self._in_head = False
        self._head = 0
        self._watch.heads.end(self)
        super().on_headers_complete()

    def pause_writing(self) -> None:
        super().pause_writing()
        self._watch.slow(self, self.transport.get_write_buffer_size())

    def resume_writing(self) -> None:
        super().resume_writing()
        self._watch.quick(self)
