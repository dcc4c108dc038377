"""What clients may send, and how: no fault, no hang, bounded memory, and others are served.

A server in a process of its own is spoken to in raw bytes. EVENTSTORE_HOSTILE_SECONDS makes the
long form.
"""

from __future__ import annotations

import contextlib
import http.client
import itertools
import json
import os
import random
import socket
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psycopg
import pytest
from child import PATIENCE, Child, child
from hostile import ROOT, controls, request, requests
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from psycopg import sql
from sqlalchemy import URL

#: Seconds that the long form takes, for each database; 0 is the short form.
SECONDS = float(os.environ.get("EVENTSTORE_HOSTILE_SECONDS", "0"))
#: Requests of the short form.
EXAMPLES = 200
BODY_SECONDS = 1
BODY_BYTES = 4 * 1024 * 1024
#: Bytes that a server may have grown by after all of this, caches and heaps and all.
GROWTH = 400 * 1024 * 1024
on_both = pytest.mark.parametrize("server", ["sqlite", "postgres"], indirect=True)
OPTIONS = [
    "--max-body",
    str(BODY_BYTES),
    "--body-timeout",
    str(BODY_SECONDS),
    "--max-unread",
    str(16 * 1024 * 1024),
    "--long-poll-timeout",
    "0.05",
    "--allow-anyone",
    "--no-access-log",
]


@pytest.fixture(scope="module", params=["sqlite"])
def server(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Child]:
    """One server for all of this, which lives through it in good health."""
    folder = tmp_path_factory.mktemp("hostile")
    with database(request, folder) as url, child(folder, url, *OPTIONS) as running:
        well(running)
        before = running.rss
        with meanwhile(running):
            yield running
        well(running)
        assert running.rss < before + GROWTH
        assert running.stop() == 0
        assert "Traceback" not in running.log
        assert "a request failed" not in running.log


@contextlib.contextmanager
def database(request: pytest.FixtureRequest, folder: Path) -> Iterator[str]:
    """A database of the parameter's kind, for all tests of the module."""
    if request.param == "sqlite":
        yield f"sqlite:///{folder / 'events.db'}"
        return
    server: URL = request.getfixturevalue("postgres_server")
    template: str = request.getfixturevalue("_template")
    name = "eventstore_hostile_" + template.rpartition("_")[2]
    url = server.set(database=name)
    with psycopg.connect(server.render_as_string(hide_password=False), autocommit=True) as admin:
        admin.execute(
            sql.SQL("CREATE DATABASE {} TEMPLATE {}").format(*map(sql.Identifier, (name, template)))
        )
        yield url.render_as_string(hide_password=False)
        admin.execute(sql.SQL("DROP DATABASE {} WITH (FORCE)").format(sql.Identifier(name)))


names = itertools.count()


def well(server: Child) -> None:
    """A client who means well gets what it wants."""
    path = f"/v1/stream/well/{next(names)}"
    connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=PATIENCE)
    with contextlib.closing(connection):
        for method, status in (("PUT", 201), ("POST", 204), ("GET", 200), ("DELETE", 204)):
            headers = {"Content-Type": "application/json"}
            connection.request(method, path, b"[1,2]" if method == "POST" else None, headers)
            answer = connection.getresponse()
            assert answer.status == status
            assert method != "GET" or answer.read() == b"[1,2]"
            answer.read()


@contextlib.contextmanager
def meanwhile(server: Child) -> Iterator[None]:
    """Somebody else is served all the time."""
    over = threading.Event()
    faults: list[BaseException] = []

    def work() -> None:
        try:
            while not over.wait(0.05):
                well(server)
        except BaseException as error:
            faults.append(error)

    thread = threading.Thread(target=work)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()
    assert not faults


def answer(connection: socket.socket, method: str = "GET") -> http.client.HTTPResponse:
    """Read one response. Raises http.client.HTTPException if it is none, TimeoutError."""
    response = http.client.HTTPResponse(connection, method=method)
    response.begin()
    return response


def told(server: Child, data: bytes, method: str = "GET") -> int:
    """The status that bytes are answered with; 0 if the connection is closed without one."""
    with server.connect() as connection:
        try:
            connection.sendall(data)
            response = answer(connection, method)
            if response.headers.get_content_type() == "application/problem+json":
                if method != "HEAD":
                    assert json.loads(response.read())["status"] == response.status
            elif response.headers.get_content_type() != "text/event-stream":
                response.read()
        except (ConnectionError, http.client.RemoteDisconnected):
            return 0
        return response.status


def repeat(run: Callable[[], None]) -> None:
    """Run it once, or in the long form until the time is over."""
    ends = time.monotonic() + SECONDS / 2
    run()
    times = 1
    while time.monotonic() < ends:
        run()
        times += 1
    print(f"{times} times")  # noqa: T201  `pytest -rP` shows it


fuzzed = settings(
    max_examples=EXAMPLES,
    deadline=None,
    database=None,
    derandomize=not SECONDS,
    suppress_health_check=list(HealthCheck),
)


# --- requests ------------------------------------------------------------------------------------


@on_both
def test_no_request_is_answered_by_a_fault(server: Child) -> None:
    statuses: set[int] = set()

    @fuzzed
    @given(requests() | controls())
    def run(made: tuple[bytes, bytes]) -> None:
        method, data = made
        status = told(server, data, method.decode())
        assert status < 500
        statuses.add(status)

    repeat(run)
    assert {200, 201, 204, 400, 404} <= statuses


def test_no_bytes_are_answered_by_a_fault(server: Child) -> None:
    pieces = st.sampled_from(
        [
            b"GET ",
            b"POST ",
            b"PUT ",
            ROOT,
            b"a",
            b" HTTP/1.1\r\n",
            b" HTTP/9.9\r\n",
            b"\r\n",
            b"\n",
            b"content-length: 5\r\n",
            b"content-length: -1\r\n",
            b"transfer-encoding: chunked\r\n",
            b"transfer-encoding: gzip, chunked\r\n",
            b"host: localhost\r\n",
            b"5\r\n",
            b"0\r\n\r\n",
            b"fffffffffffffffff\r\n",
            b"\0",
            b"\xff",
            b"x" * 1000,
            b": ",
            b"\t folded\r\n",
            b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
            b"\x16\x03\x01\x02\x00",
        ]
    )

    @fuzzed
    @given(st.lists(pieces | st.binary(max_size=30), max_size=12))
    def run(parts: list[bytes]) -> None:
        with server.connect() as connection, contextlib.suppress(ConnectionError):
            connection.sendall(b"".join(parts))
            connection.shutdown(socket.SHUT_WR)
            answered = b""
            while piece := connection.recv(65536):
                answered += piece
            assert b"HTTP/1.1 5" not in answered

    repeat(run)


@pytest.mark.parametrize("media", [b"application/json", b"text/plain"])
def test_large_and_deep_bodies_are_taken_or_refused(server: Child, media: bytes) -> None:
    path = ROOT + b"large/%d" % next(names)
    headers = [(b"content-type", media)]
    assert told(server, request(b"PUT", path, headers, b"")) == 201
    half = BODY_BYTES // 2
    for body in (
        b"[" * half,
        b"[" * (half // 2) + b"]" * (half // 2),
        b'{"a":' * (half // 5),
        b"[" + b"0," * (half // 2) + b"0]",
        b"[" + b"[]," * (half // 3) + b"0]",
        b'"' + b"x" * half + b'"',
        b"[" + b" " * half + b"]",
        b"[" + b"0," * (half // 2) + b'{"type":"x","data":1}]',
        b"[" + b'{"type":"x","data":1},' * (half // 22) + b"0]",
        b"9" * half,
        b'{"type":"x","data":' + b"[" * half,
    ):
        assert told(server, request(b"POST", path, headers, body)) in (204, 400, 413)
    for body in (b"x" * (BODY_BYTES + 1), b"[" * (100 * 1024 * 1024)):
        # Who sends on after the refusal may not get to read it.
        assert told(server, request(b"POST", path, headers, body)) in (413, 0)
    chunks = b"10000\r\n" + b"x" * 65536 + b"\r\n"
    chunked = b"POST %b HTTP/1.1\r\nhost: localhost\r\ntransfer-encoding: chunked\r\n\r\n" % path
    assert told(server, chunked + chunks * (BODY_BYTES // 65536 + 1) + b"0\r\n\r\n") in (413, 0)
    assert told(server, request(b"DELETE", path, [], b"")) == 204


# --- connections ---------------------------------------------------------------------------------


def post(path: bytes, length: int) -> bytes:
    return (
        b"POST %b%b HTTP/1.1\r\nhost: localhost\r\ncontent-type: text/plain\r\n"
        b"content-length: %d\r\n\r\n" % (ROOT, path, length)
    )


def test_bodies_that_do_not_come_are_not_waited_for(server: Child) -> None:
    """Whether nothing comes or a byte now and then."""
    connections = [server.connect() for _ in range(100)]
    for connection in connections:
        connection.sendall(post(b"slow", 1000) + b"x")
    ends = time.monotonic() + PATIENCE
    waiting = dict(enumerate(connections))
    while waiting and time.monotonic() < ends:
        for number, connection in list(waiting.items()):
            with contextlib.suppress(ConnectionError):
                if number % 2:
                    connection.send(b"x")
                connection.settimeout(0.001)
                with contextlib.suppress(TimeoutError):
                    assert answer(connection).status == 408
                    del waiting[number]
                continue
            waiting.pop(number, None)
        time.sleep(0.1)
    assert not waiting
    for connection in connections:
        connection.close()


def test_half_closed_connections_are_answered_or_closed(server: Child) -> None:
    path = b"half/%d" % next(names)
    assert told(server, request(b"PUT", ROOT + path, [], b"")) == 201
    with server.connect() as connection:
        connection.sendall(request(b"GET", ROOT + path, [], b""))
        connection.shutdown(socket.SHUT_WR)  # which is taken for a client that has gone
        with contextlib.suppress(ConnectionError, http.client.RemoteDisconnected):
            assert answer(connection).status == 200
    with server.connect() as connection:  # in the middle of its body
        connection.sendall(post(path, 1000) + b"x")
        connection.shutdown(socket.SHUT_WR)
        with contextlib.suppress(ConnectionError, http.client.RemoteDisconnected):
            assert answer(connection).status in (400, 408)
    for live in (b"sse", b"long-poll"):
        with server.connect() as connection:
            target = ROOT + path + b"?offset=now&live=" + live
            connection.sendall(request(b"GET", target, [], b""))
            connection.shutdown(socket.SHUT_WR)
            with contextlib.suppress(ConnectionError, http.client.RemoteDisconnected):
                assert answer(connection).status in (200, 204)


def test_pipelined_requests_are_answered_in_their_order(server: Child) -> None:
    path = b"pipe/%d" % next(names)
    count = 200
    with server.connect() as connection:
        head = b"PUT %b%b HTTP/1.1\r\nhost: localhost\r\ncontent-type: text/plain\r\n\r\n"
        posts = [post(path, 4) + b"%04d" % number for number in range(count)]
        get = b"GET %b%b HTTP/1.1\r\nhost: localhost\r\n\r\n" % (ROOT, path)
        connection.sendall(head % (ROOT, path) + b"".join(posts) + get)
        with connection.makefile("rb") as file:
            statuses = [_next(file)[0] for _ in range(count + 1)]
            assert statuses == [201] + [204] * count
            assert _next(file) == (200, b"".join(b"%04d" % number for number in range(count)))


def _next(file: Any) -> tuple[int, bytes]:
    """The next of several responses on one connection."""
    status = int(file.readline().split()[1])
    length = 0
    while (line := file.readline()) not in (b"\r\n", b""):
        name, _, value = line.partition(b":")
        if name.lower() == b"content-length":
            length = int(value)
    return status, file.read(length)


def test_a_thousand_connections_that_say_nothing_are_in_nobodys_way(server: Child) -> None:
    before = server.rss
    with contextlib.ExitStack() as stack:
        for number in range(1000):
            connection = stack.enter_context(server.connect())
            if number % 4 == 1:
                connection.sendall(b"GET /v1/str")
            elif number % 4 == 2:
                connection.sendall(b"GET /v1/stream/a HTTP/1.1\r\nx: " + b"y" * 1000)
        well(server)
        assert server.rss < before + GROWTH / 4


def test_headers_without_end_are_cut_off(server: Child) -> None:
    with server.connect() as connection:
        connection.sendall(b"GET /v1/stream/a HTTP/1.1\r\n")
        sent = 0
        with contextlib.suppress(ConnectionError):
            for number in range(100_000):
                connection.sendall(b"x-%d: %b\r\n" % (number, b"y" * 1000))
                sent += 1000
                time.sleep(0)
        assert sent < 20_000_000


def test_readers_that_do_not_read_hold_bounded_memory(server: Child) -> None:
    path = ROOT + b"unread/%d" % next(names)
    part = b"x" * (BODY_BYTES - 1)
    assert told(server, request(b"PUT", path, [], part)) == 201
    before = server.rss
    with contextlib.ExitStack() as stack:
        for number in range(100):  # a gigabyte, if it were all kept
            connection = stack.enter_context(server.connect())
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
            live = b"?offset=-1&live=sse" if number % 2 else b""
            connection.sendall(request(b"GET", path + live, [], b""))
        well(server)
        time.sleep(1)
        assert server.rss < before + GROWTH
    assert told(server, request(b"DELETE", path, [], b"")) == 204


def test_connections_that_break_anywhere_leave_nothing(server: Child) -> None:
    chance = random.Random(7)
    path = b"broken/%d" % next(names)
    assert (
        told(server, request(b"PUT", ROOT + path, [(b"content-type", b"text/plain")], b"")) == 201
    )
    whole = post(path, 300) + b"x" * 300

    def run() -> None:
        for _ in range(100):
            with server.connect() as connection:
                connection.sendall(whole[: chance.randrange(len(whole))])
                if chance.random() < 0.5:  # a reset, not an end
                    linger = (1).to_bytes(4, "little") + (0).to_bytes(4, "little")
                    connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)

    repeat(run)
    with server.connect() as connection:
        connection.sendall(request(b"GET", ROOT + path, [], b""))
        assert answer(connection).read() == b""
