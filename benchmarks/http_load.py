"""A load of HTTP requests from one process: connections with a request each under way."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from itertools import count
from typing import Any, Final, NamedTuple

import uvloop

ROOT: Final = "/v1/stream"
_numbers: Final = count()


class Response(NamedTuple):
    status: int
    head: bytes
    body: bytes

    def header(self, name: bytes) -> str | None:
        _, found, rest = self.head.partition(b"\r\n" + name + b": ")
        return rest.partition(b"\r\n")[0].decode() if found else None


class Connection(asyncio.Protocol):
    """A keep-alive connection. It reads what these servers send, and no more of HTTP than that."""

    def __init__(self) -> None:
        self._data = bytearray()
        self._answer: asyncio.Future[Response] | None = None
        #: Called with what comes, where that is a stream of events.
        self.heard: Callable[[bytes], None] | None = None

    def connection_made(self, transport: Any) -> None:
        self._transport = transport

    def connection_lost(self, error: Exception | None) -> None:
        if self._answer is not None and not self._answer.done():
            self._answer.set_exception(error or ConnectionError("the server has closed"))

    def ask(self, request: bytes) -> asyncio.Future[Response]:
        self._answer = asyncio.get_running_loop().create_future()
        self._transport.write(request)
        return self._answer

    def close(self) -> None:
        self._transport.close()

    def data_received(self, data: bytes) -> None:
        if self.heard is not None:
            self.heard(data)
            return
        self._data += data
        end = self._data.find(b"\r\n\r\n")
        if end < 0 or self._answer is None:
            return
        head = bytes(self._data[: end + 2]).lower()
        length = head.find(b"\r\ncontent-length: ")
        if length >= 0:
            size = int(head[length + 18 :].partition(b"\r\n")[0])
            if len(self._data) < end + 4 + size:
                return
            body = bytes(self._data[end + 4 : end + 4 + size])
        elif b"\r\ntransfer-encoding: chunked" in head:
            if not self._data.endswith(b"0\r\n\r\n"):
                return
            body = b"".join(_chunks(bytes(self._data[end + 4 :])))
        else:
            body = b""
        self._data.clear()
        answer, self._answer = self._answer, None
        answer.set_result(Response(int(head[9:12]), head, body))


def _chunks(data: bytes) -> Iterator[bytes]:
    at = 0
    while True:
        line = data.index(b"\r\n", at)
        size = int(data[at:line], 16)
        if not size:
            return
        yield data[line + 2 : line + 2 + size]
        at = line + 4 + size


def request(method: str, path: str, body: bytes = b"") -> bytes:
    head = (
        f"{method} {path} HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Type: application/json\r\n"
        f"Content-Length: {len(body)}\r\n\r\n"
    )
    return head.encode() + body


class Load:
    """The requests that a server on a port is asked. Each method is a run, and a stream its own."""

    def __init__(self, port: int) -> None:
        self._port = port
        self._runner = asyncio.Runner(loop_factory=uvloop.new_event_loop)

    def close(self) -> None:
        self._runner.close()

    def appends(self, connections: int, streams: int, body: bytes, posts: int) -> None:
        """So many POSTs of a body, over so many connections, to so many streams in turns."""

        async def run() -> None:
            paths = [await self._created() for _ in range(streams)]
            left = iter(range(posts))

            async def post(number: int, connection: Connection) -> None:
                raw = request("POST", paths[number % streams], body)
                for _ in left:
                    answer = await connection.ask(raw)
                    while answer.status == 404:  # the reference's file store, at times
                        answer = await connection.ask(raw)
                    assert answer.status == 204, answer

            with self._closing(await self._connect(connections)) as opened:
                await asyncio.gather(*(post(*one) for one in enumerate(opened)))

        self._runner.run(run())

    def filled(self, body: bytes, posts: int) -> str:
        """The path of a stream with so many times that body."""

        async def run() -> str:
            path = await self._created()
            left = iter(range(posts))

            async def fill(connection: Connection) -> None:
                for _ in left:
                    answer = await connection.ask(request("POST", path, body))
                    assert answer.status == 204, answer

            with self._closing(await self._connect(min(posts, 16))) as opened:
                await asyncio.gather(*map(fill, opened))
            return path

        return self._runner.run(run())

    def catch_up(self, path: str, mark: bytes, messages: int) -> None:
        """Read a stream from its beginning; each message holds the mark once."""

        async def run() -> None:
            found, offset = 0, "-1"
            with self._closing(await self._connect(1)) as (connection,):
                while True:
                    raw = request("GET", f"{path}?offset={offset}")
                    answer = await connection.ask(raw)
                    assert answer.status == 200, answer
                    found += answer.body.count(mark)
                    offset = answer.header(b"stream-next-offset") or ""
                    if answer.header(b"stream-up-to-date"):
                        break
            assert found == messages, (found, messages)

        self._runner.run(run())

    def at_tail(self, path: str, connections: int, reads: int) -> None:
        """So many GETs at the end of a stream."""

        async def run() -> None:
            with self._closing(await self._connect(connections)) as opened:
                answer = await opened[0].ask(request("HEAD", path).replace(b"HEAD", b"GET", 1))
                while not answer.header(b"stream-up-to-date"):
                    offset = answer.header(b"stream-next-offset")
                    answer = await opened[0].ask(request("GET", f"{path}?offset={offset}"))
                raw = request("GET", f"{path}?offset={answer.header(b'stream-next-offset')}")
                left = iter(range(reads))

                async def get(connection: Connection) -> None:
                    for _ in left:
                        answer = await connection.ask(raw)
                        assert answer.status == 200, answer

                await asyncio.gather(*map(get, opened))

        self._runner.run(run())

    def fan_out(self, readers: int, messages: int, pause: float) -> list[float]:
        """The milliseconds from the beginning of each append to each reader's having it."""

        async def run() -> list[float]:
            path = await self._created()
            waits: list[float] = []
            begun: dict[int, float] = {}
            done = asyncio.Event()
            with self._closing(await self._connect(readers)) as opened:
                for connection in opened:
                    connection.heard = _listener(begun, waits, readers * messages, done)
                    url = f"{path}?offset=-1&live=sse"
                    connection._transport.write(request("GET", url))
                await asyncio.sleep(0.3)
                (writer,) = await self._connect(1)
                for number in range(messages):
                    begun[number] = time.perf_counter()
                    body = b'{"n":%d,"note":"%b"}' % (number, b"x" * 100)
                    await writer.ask(request("POST", path, body))
                    await asyncio.sleep(pause)
                await asyncio.wait_for(done.wait(), 30)
                writer.close()
            return waits

        return self._runner.run(run())

    @contextmanager
    def idle(self, readers: int) -> Iterator[None]:
        """So many readers of events at the end of a stream, for as long as the block lasts."""

        async def run() -> list[Connection]:
            path = await self._created()
            opened: list[Connection] = []
            while len(opened) < readers:  # fewer at once than a server lets wait
                more = await self._connect(min(100, readers - len(opened)))
                heard = [asyncio.Event() for _ in more]
                for connection, event in zip(more, heard, strict=True):
                    connection.heard = _until(b"event: control", event)
                    url = f"{path}?offset=-1&live=sse"
                    connection._transport.write(request("GET", url))
                async with asyncio.timeout(30):
                    await asyncio.gather(*(event.wait() for event in heard))
                opened += more
            return opened

        with self._closing(self._runner.run(run())):
            yield
        self._runner.run(asyncio.sleep(0.1))  # for the server to see them go

    # --- parts ---------------------------------------------------------------------------------

    async def _created(self) -> str:
        path = f"{ROOT}/bench/{time.time_ns()}-{next(_numbers)}"
        (connection,) = await self._connect(1)
        answer = await connection.ask(request("PUT", path))
        assert answer.status == 201, answer
        connection.close()
        return path

    async def _connect(self, number: int) -> list[Connection]:
        loop = asyncio.get_running_loop()
        made = [loop.create_connection(Connection, "127.0.0.1", self._port) for _ in range(number)]
        return [connection for _, connection in await asyncio.gather(*made)]

    @contextmanager
    def _closing(self, opened: Sequence[Connection]) -> Iterator[Sequence[Connection]]:
        """The connections, closed at the end."""
        try:
            yield opened
        finally:
            for connection in opened:
                connection.close()


def _listener(
    begun: dict[int, float], waits: list[float], total: int, done: asyncio.Event
) -> Callable[[bytes], None]:
    """What hears the events of one reader: notes when each numbered message came."""
    rest = b""

    def hear(data: bytes) -> None:
        nonlocal rest
        now = time.perf_counter()
        *whole, rest = (rest + data).split(b"\n\n")
        for block in whole:
            for piece in block.split(b'"n":')[1:]:
                number = int(piece.partition(b",")[0])
                waits.append((now - begun[number]) * 1000)
        if len(waits) == total:
            done.set()

    return hear


def _until(mark: bytes, event: asyncio.Event) -> Callable[[bytes], None]:
    """What sets an event when something has come."""
    heard = b""

    def hear(data: bytes) -> None:
        nonlocal heard
        heard += data
        if mark in heard:
            event.set()

    return hear
