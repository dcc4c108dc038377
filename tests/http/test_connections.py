"""Connections whose clients say nothing, come to no end, or do not take what they asked for."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from functools import partial
from typing import Any

import pytest
import uvicorn
from child import PATIENCE
from uvicorn.server import ServerState

from eventstore.http.connections import HEAD_BYTES, Connection, Watch

LARGE = b"x" * (8 * 1024 * 1024)
UNREAD = 64 * 1024 * 1024
GET = b"GET / HTTP/1.1\r\nhost: localhost\r\n\r\n"


async def answers(scope: Any, receive: Any, send: Any) -> None:
    """An application that answers /large with a lot, and anything else with a little.

    /slow has its head first, and its body when there is the request's.
    """
    body = LARGE if scope["path"] == "/large" else b"ok"
    headers = [(b"content-length", b"%d" % len(body))]
    await send({"type": "http.response.start", "status": 200, "headers": headers})
    if scope["path"] == "/slow":
        await receive()
    await send({"type": "http.response.body", "body": body})


Connect = Callable[[], Awaitable[tuple[asyncio.StreamReader, asyncio.StreamWriter]]]


@asynccontextmanager
async def server(**options: Any) -> AsyncIterator[tuple[Connect, Watch]]:
    """A server with a watch of these options; what connects to it."""
    options = {"most": 100, "unread_bytes": UNREAD} | options
    watch = Watch(**options)
    protocol: Any = partial(Connection, watch=watch)
    config = uvicorn.Config(answers, http=protocol, ws="none", log_config=None, lifespan="off")
    config.load()
    state = ServerState()
    loop = asyncio.get_running_loop()
    listening = await loop.create_server(
        lambda: Connection(config, state, {}, watch=watch), "127.0.0.1", 0
    )
    port = listening.sockets[0].getsockname()[1]
    writers: list[asyncio.StreamWriter] = []

    async def connect() -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        writers.append(writer)
        return reader, writer

    try:
        yield connect, watch
    finally:
        listening.close()
        for connection in list(state.connections):
            connection.transport.abort()
        for writer in writers:
            writer.transport.abort()
        await asyncio.sleep(0)


async def ended(reader: asyncio.StreamReader) -> bytes:
    """What comes until the server closes."""
    async with asyncio.timeout(PATIENCE):
        try:
            return await reader.read()
        except ConnectionError:
            return b""


def test_a_head_does_not_wait_for_a_body_that_is_not_there_yet() -> None:
    async def scenario() -> None:
        async with server() as (connect, _), asyncio.timeout(PATIENCE):
            reader, writer = await connect()
            writer.write(b"POST /slow HTTP/1.1\r\nhost: localhost\r\ncontent-length: 1\r\n\r\n")
            assert b"content-length: 2" in await reader.readuntil(b"\r\n\r\n")
            writer.write(b"x")
            assert await reader.readexactly(2) == b"ok"

    asyncio.run(scenario())


@pytest.mark.parametrize(
    "said", [b"", b"GET / HT", GET[:-2] + b"x: y", GET + b"GET /", b"\r\n", GET + b"\r\nPO"]
)
def test_who_does_not_finish_the_head_of_a_request_is_sent_away(said: bytes) -> None:
    async def scenario() -> None:
        async with server(head_seconds=0.1) as (connect, _):
            reader, writer = await connect()
            writer.write(said)
            answered = await ended(reader)
            assert answered.count(b"200 OK") == said.count(GET)

    asyncio.run(scenario())


def test_a_head_that_is_too_large_is_refused() -> None:
    async def scenario() -> None:
        async with server() as (connect, _):
            reader, writer = await connect()
            writer.write(GET[:-2])
            reading = asyncio.create_task(ended(reader))
            for number in range(3 * HEAD_BYTES // 1000):
                writer.write(b"x-%d: %b\r\n" % (number, b"y" * 1000))
                await asyncio.sleep(0)
                if reading.done():
                    break
            assert reading.done()  # it was cut off before all was sent
            assert reading.result() == b"" or reading.result().startswith(b"HTTP/1.1 431")

    asyncio.run(scenario())


def test_a_large_body_does_not_count_as_the_head_of_what_follows() -> None:
    async def scenario() -> None:
        async with server() as (connect, _):
            reader, writer = await connect()
            post = b"POST / HTTP/1.1\r\nhost: localhost\r\ncontent-length: 300000\r\n\r\n"
            writer.write(post + b"x" * 300_000 + GET[:20])
            await writer.drain()
            assert (await reader.readuntil(b"ok")).startswith(b"HTTP/1.1 200")
            writer.write(GET[20:])
            assert (await reader.readuntil(b"ok")).startswith(b"HTTP/1.1 200")

    asyncio.run(scenario())


def test_connections_past_the_most_are_closed() -> None:
    async def scenario() -> None:
        async with server(most=2) as (connect, _):
            for _ in range(2):
                reader, writer = await connect()
                writer.write(GET)
                await reader.readuntil(b"ok")
            reader, writer = await connect()
            writer.write(GET)
            assert await ended(reader) == b""

    asyncio.run(scenario())


def test_who_takes_nothing_of_an_answer_is_sent_away() -> None:
    async def scenario() -> None:
        async with server(stalled_seconds=0.1) as (connect, watch):
            reader, writer = await connect()
            writer.transport.pause_reading()
            writer.write(GET.replace(b"/ ", b"/large "))
            async with asyncio.timeout(PATIENCE):
                while not watch.unread:
                    await asyncio.sleep(0.01)
                while watch.unread:
                    await asyncio.sleep(0.01)
            writer.transport.resume_reading()
            assert len(await ended(reader)) < len(LARGE)

    asyncio.run(scenario())


def test_who_takes_slowly_gets_all_of_it() -> None:
    async def scenario() -> None:
        async with server() as (connect, watch):
            reader, writer = await connect()
            writer.transport.pause_reading()
            writer.write(GET.replace(b"/ ", b"/large "))
            async with asyncio.timeout(PATIENCE):
                while not watch.unread:
                    await asyncio.sleep(0.01)
                assert watch.unread == len(LARGE)
                writer.transport.resume_reading()
                await reader.readuntil(b"\r\n\r\n")
                assert await reader.readexactly(len(LARGE)) == LARGE
                while watch.unread:
                    await asyncio.sleep(0.01)

    asyncio.run(scenario())


def test_what_waits_for_slow_readers_is_bounded(caplog: pytest.LogCaptureFixture) -> None:
    async def scenario() -> None:
        async with server(unread_bytes=3 * len(LARGE)) as (connect, watch):
            clients = [await connect() for _ in range(6)]
            for _, writer in clients:
                writer.transport.pause_reading()
                writer.write(GET.replace(b"/ ", b"/large ")[:-2] + b"connection: close\r\n\r\n")
            async with asyncio.timeout(PATIENCE):
                while caplog.text.count("a slow reader is sent away") < 3:
                    await asyncio.sleep(0.01)
            for _, writer in clients:
                assert watch.unread <= 3 * len(LARGE)
                writer.transport.resume_reading()
            got = [len(await ended(reader)) for reader, _ in clients]
            assert sum(length > len(LARGE) for length in got) == 3

    asyncio.run(scenario())
