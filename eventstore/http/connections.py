"""Connections, before a request is known and after its answer is: what uvicorn leaves unbounded.

A client that connects and says nothing, or never comes to the end of its headers, is sent away; so
is one that does not take what it has asked for.
"""

from __future__ import annotations

import asyncio
import logging
import time
from typing import Any, Final, cast

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

#: Bytes past which a write is told from what always fits.
_LARGE: Final = 64 * 1024
_HEAD_TOO_LARGE: Final = (
    b"HTTP/1.1 431 Request Header Fields Too Large\r\n"
    b"content-length: 0\r\nconnection: close\r\n\r\n"
)


class Watch:
    """Watches the connections of one server."""

    def __init__(
        self,
        most: int,
        unread_bytes: int,
        *,
        head_seconds: float = HEAD_SECONDS,
        stalled_seconds: float = STALLED_SECONDS,
    ) -> None:
        """`most` is how many connections there may be.

        Past `unread_bytes` in all that wait for clients, who has taken nothing for longest goes.
        """
        self.most = most
        self.heads: Deadlines[Connection] = Deadlines(head_seconds, lambda late: late.abort())
        self._stalled_seconds = stalled_seconds
        self._unread_bytes = unread_bytes
        self._slow: dict[Connection, _Slow] = {}
        #: Bytes that are held for them.
        self.unread = 0
        self._timer: asyncio.TimerHandle | None = None

    def slow(self, connection: Connection) -> None:
        """A connection's client does not take as fast as it is given."""
        self.quick(connection)
        slow = self._slow[connection] = _Slow(connection)
        self.unread += slow.held
        while self.unread > self._unread_bytes:
            logger.warning("a slow reader is sent away: too much waits for slow readers")
            self._drop(min(self._slow, key=lambda each: self._slow[each].taken_at))
        if self._timer is None:
            self._arm()

    def quick(self, connection: Connection) -> None:
        """It has taken what waited, or it is gone."""
        slow = self._slow.pop(connection, None)
        if slow is not None:
            self.unread -= slow.held

    def _drop(self, connection: Connection) -> None:
        self.quick(connection)
        connection.abort()

    def _arm(self) -> None:
        self._timer = asyncio.get_running_loop().call_later(1.0, self._look)

    def _look(self) -> None:
        self._timer = None
        latest = time.monotonic() - self._stalled_seconds
        for connection, slow in list(self._slow.items()):
            if not slow.has_taken(connection) and slow.taken_at < latest:
                self._drop(connection)
        if self._slow:
            self._arm()


class _Slow:
    """What waits for a client that takes slowly."""

    __slots__ = ("held", "taken_at", "waiting")

    def __init__(self, connection: Connection) -> None:
        self.taken_at = time.monotonic()
        self.waiting = connection.waiting
        self.held = max(connection.held, self.waiting)

    def has_taken(self, connection: Connection) -> bool:
        """Whether it has taken anything since this was asked last."""
        waiting = connection.waiting
        if waiting == self.waiting:
            return False
        self.waiting, self.taken_at = waiting, time.monotonic()
        return True


class _Metered:
    """A transport that sends a response's head together with what comes right after it.

    And that remembers how much it holds for a client who takes slowly: it keeps what it was given
    until the last byte is gone, so what is left is not what it holds.
    """

    __slots__ = ("_call_soon", "_head", "_transport", "_write", "abort", "held", "is_closing")

    def __init__(self, transport: asyncio.Transport, loop: asyncio.AbstractEventLoop) -> None:
        self._transport = transport
        self._write = transport.write
        self._call_soon = loop.call_soon
        self.abort = transport.abort
        self.is_closing = transport.is_closing
        self.held = 0
        self._head = b""

    def write(self, data: bytes) -> None:
        head = self._head
        if head:
            self._head = b""
            if len(data) > _LARGE:
                self._write(head)
            else:
                data = head + data
        elif data.startswith(b"HTTP/1.1 "):
            # uvicorn writes the body by itself, which were a second packet, at half the cost of a
            # small response.
            self._head = data
            self._call_soon(self._flush)
            return
        if len(data) > _LARGE:
            self.held = len(data)
        self._write(data)

    def close(self) -> None:
        self._flush()
        self._transport.close()

    def _flush(self) -> None:
        """Send a head that nothing has come after."""
        head, self._head = self._head, b""
        if head and not self.is_closing():
            self._write(head)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._transport, name)


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
        self._metered: _Metered | None = None

    @property
    def held(self) -> int:
        """Bytes of the largest piece that is kept until the client has taken all of it."""
        return 0 if self._metered is None else self._metered.held

    @property
    def waiting(self) -> int:
        """Bytes that the client has not taken yet."""
        return 0 if self.transport.is_closing() else self.transport.get_write_buffer_size()

    def abort(self) -> None:
        """Close it, whatever waits."""
        self.transport.abort()

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        self._metered = _Metered(transport, self.loop)
        super().connection_made(cast("asyncio.Transport", self._metered))
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
        self._watch.slow(self)

    def resume_writing(self) -> None:
        super().resume_writing()
        if self._metered is not None:
            self._metered.held = 0
        self._watch.quick(self)
