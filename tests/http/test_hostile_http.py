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
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import psycopg
import pytest
from child import PATIENCE, Child, child
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from psycopg import sql
from sqlalchemy import URL

#: Seconds that the long form takes, for each database; 0 is the short form.
SECONDS = float(os.environ.get("EVENTSTORE_HOSTILE_SECONDS", "0"))
#: Requests of the short form.
EXAMPLES = 200
ROOT = b"/v1/stream/"
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


def request(
    method: bytes, target: bytes, headers: Sequence[tuple[bytes, bytes]], body: bytes
) -> bytes:
    head = b"".join(b"%b: %b\r\n" % header for header in headers)
    return (
        b"%b %b HTTP/1.1\r\nhost: localhost\r\ncontent-length: %d\r\nconnection: close\r\n%b\r\n%b"
        % (method, target, len(body), head, body)
    )


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


# --- requests ---------------------------------------------------------------------------------

NUMBERS = [
    b"0",
    b"1",
    b"-1",
    b"+1",
    b"01",
    b"1.0",
    b"1e3",
    b"0x1",
    b" 1",
    b"1 ",
    b"1,1",
    b"",
    b"NaN",
    b"9007199254740991",
    b"9007199254740992",
    b"9223372036854775807",
    b"9223372036854775808",
    b"9" * 400,
    b"\xd9\xa1",
    b"\xb2",
    b"1_0",
]
OFFSETS = [
    b"-1",
    b"now",
    b"0",
    b"0000000000000000_0000000000000000",
    b"0000000000000000_0000000000000001",
    b"9999999999999999_9999999999999999",
    b"0000000000000000_9223372036854775808",
    b"1_1",
    b"",
    b"%00",
    b"%ff",
    b"-1%0d%0aX:%20y",
    b"0000000000000000_000000000000000%D9%A1",
    b"-1,now",
]
TIMES = [
    b"2030-01-01T00:00:00Z",
    b"0001-01-01T00:00:00+23:59",
    b"9999-12-31T23:59:59-23:59",
    b"2030-02-30T00:00:00Z",
    b"2030-01-01",
    b"2030-01-01T00:00:00",
    b"2030-01-01t24:00:00z",
    b"1969-12-31T00:00:00Z",
    b"0000-01-01T00:00:00Z",
    b"2030-01-01T00:00:00.1234567890123Z",
]
TYPES = [
    b"application/json",
    b"APPLICATION/JSON; charset=utf-16",
    b"text/plain",
    b"",
    b";",
    b"a/" + b"b" * 300,
    b"text/event-stream",
    b"\xff\xfe",
    b"application/json\tx",
    b"text/plain;\xe9",
    b"multipart/form-data",
]
BODIES = [
    b"",
    b"[]",
    b"[[]]",
    b"{}",
    b"1",
    b"null",
    b'"x"',
    b"[1,2,3]",
    b"[1",
    b"]",
    b"[1]x",
    b"\xff",
    b'["\xff"]',
    b'["\\ud800"]',
    b'"\\u0000"',
    b"1e999999",
    b"-0",
    b"[1,]",
    b"NaN",
    b"\xef\xbb\xbf[]",
    b"[" * 100_000,
    b"[" * 50_000 + b"]" * 50_000,
    b'{"a":' * 50_000 + b"1" + b"}" * 50_000,
    b"9" * 100_000,
    b'{"type":"x","data":{}}',
    b'{"type":"x\\u0000","data":{}}',
    b'{"type":"\\ud800","data":1}',
    b'{"type":"$json","data":1}',
    b'{"type":"x","data":1,"id":"00000000-0000-0000-0000-000000000000"}',
    b'{"type":"x","data":1,"metadata":{"a":NaN}}',
    b'{"type":"x","data":1,"version":1e400}',
    b'{"type":"x","data":1,"metadata":"\\ud800"}',
    b'{"type":"x","data":1,"metadata":{"\\u0000":1}}',
    b'{"type":"' + b"x" * 300 + b'","data":1}',
    b'{"type":"x","type":"y","data":1,"data":2}',
    b"a\r\n\r\nevent: control\rdata: x\n",
    b" \n",
    b"x" * 200_000,
]
#: Those that most streams take.
SENSE = [b"[1,2,3]", b'{"type":"x","data":{}}']
TARGETS = [
    b"a",
    b"b",
    b"c/d",
    b"%00",
    b"%ff",
    b"%",
    b"%zz",
    b"a%2fb",
    b"..",
    b"a/../b",
    b"a//b",
    b"",
    b"/",
    b"__ds",
    b"__ds/",
    b"__ds/jwks.json",
    b"__ds/subscriptions/x",
    b"%5f%5fds/x",
    b"__ds%2fx",
    b"x" * 600,
    b"%F0%9F%90%98",
    b"a%0d%0ab",
    b"a%5cb",
    b"a;b",
    b"\xc3\xa9",
    b"\xff",
    b"'\"`--",
    b"%ED%A0%80",
    b"well/none",
    b"a%E2%80%A8b",
]
HEADERS: dict[bytes, list[bytes]] = {
    b"content-type": TYPES,
    b"stream-seq": [*NUMBERS, b"\xff", b"x" * 3000, b"x" * 20_000],
    b"stream-ttl": NUMBERS,
    b"stream-expires-at": TIMES,
    b"stream-closed": [b"true", b"TRUE", b"false", b"1", b"\xff"],
    b"stream-forked-from": [ROOT + target for target in TARGETS]
    + [b"a", b"http://x" + ROOT + b"a"],
    b"stream-fork-offset": OFFSETS,
    b"stream-fork-sub-offset": NUMBERS,
    b"stream-expected-version": NUMBERS,
    b"producer-id": [b"p", b"", b"\xff", b"x" * 512, b"x" * 513, b"\xc3\xa9", b"'"],
    b"producer-epoch": NUMBERS,
    b"producer-seq": NUMBERS,
    b"if-none-match": [b"*", b'"x"', b",,,", b"\xff", b'W/"a"' * 1000],
    b"authorization": [b"Bearer x", b"\xff"],
    b"origin": [b"null", b"http://localhost", b"x", b"\xff"],
    b"range": [b"bytes=0-1"],
    b"accept-encoding": [b"gzip"],
    b"expect": [b"100-continue", b"x"],
    b"upgrade": [b"websocket", b"h2c"],
    b"x-http-method-override": [b"DELETE"],
    b"x-forwarded-for": [b"1.1.1.1"],
}
NAMES = list(HEADERS)
PARAMETERS: dict[bytes, list[bytes]] = {
    b"offset": OFFSETS,
    b"live": [b"long-poll", b"sse", b"LONG-POLL", b"true", b"", b"%ff", b"%00"],
    b"cursor": [*NUMBERS, b"%F0", b"x" * 5000],
    b"x": [b"%", b"&&&;;;===", b"y=" * 100],
}
METHODS = [b"GET", b"HEAD", b"PUT", b"POST", b"DELETE", b"OPTIONS", b"PATCH", b"TRACE", b"QUERY"]

printable = st.binary(max_size=40).map(lambda b: bytes(c for c in b if c >= 32 and c != 127))


@st.composite
def requests(draw: st.DrawFn) -> tuple[bytes, bytes]:
    """A request of some sense, most of it odd: its method, and its bytes."""
    method = draw(st.sampled_from([*METHODS[:5], *METHODS]))
    # Mostly few paths, so that there are streams at which something happens.
    fresh = st.integers(0, 10**6).map(lambda number: b"fresh/%d" % number)
    path = draw(st.sampled_from([*TARGETS[:3] * 10, *TARGETS]) | fresh)
    pairs = []
    for name in draw(st.lists(st.sampled_from(list(PARAMETERS)), max_size=2)):
        pairs.append(name + b"=" + draw(st.sampled_from(PARAMETERS[name])))
    target = ROOT + path + (b"?" + b"&".join(pairs) if pairs else b"")
    headers = {b"content-type": b"application/json"}
    for name in draw(st.lists(st.sampled_from(NAMES), max_size=2)):
        headers[name] = draw(st.sampled_from(HEADERS[name]) | printable)
    body = draw(st.sampled_from([*SENSE * 5, *BODIES])) if method in (b"PUT", b"POST") else b""
    return method, request(method, target, list(headers.items()), body)


ODD: list[Any] = [
    None,
    True,
    0,
    -1,
    1.5,
    2**53,
    2**63,
    10**400,
    "",
    "a",
    "c/*",
    "**",
    "../x",
    "\ud800",
    "\0",
    "x" * 2000,
    "__ds/x",
    "0000000000000000_0000000000000001",
    [],
    ["a", 1],
    [{}],
    {},
    {"url": "http://10.0.0.1"},
    {"url": "::"},
    {"url": "https://[::1/"},
    [{"stream": "a", "offset": "0000000000000000_0000000000000001"}],
]
SUBSCRIPTION = {"type": "pull-wake", "pattern": "c/*", "wake_stream": "wake"}
MEMBERS = [
    "type",
    "pattern",
    "streams",
    "webhook",
    "wake_stream",
    "lease_ttl_ms",
    "description",
    "worker",
    "wake_id",
    "generation",
    "acks",
    "done",
]
CONTROLS = [
    b"",
    b"/claim",
    b"/ack",
    b"/release",
    b"/callback",
    b"/streams",
    b"/streams/a",
    b"/streams/%00",
]


@st.composite
def controls(draw: st.DrawFn) -> tuple[bytes, bytes]:
    """A request for the control APIs."""
    method = draw(st.sampled_from([b"PUT", b"POST", b"POST", b"GET", b"DELETE"]))
    id = draw(st.sampled_from([b"s", b"s", b"t", b"%00", b"%2f", b"x" * 600, b""]))
    target = ROOT + b"__ds/subscriptions/" + id + draw(st.sampled_from(CONTROLS))
    body: dict[str, Any] = draw(st.sampled_from([SUBSCRIPTION, {"worker": "w"}, {}]))
    odd = draw(st.dictionaries(st.sampled_from(MEMBERS), st.sampled_from(ODD), max_size=3))
    headers = [(b"content-type", b"application/json")]
    if draw(st.booleans()):
        headers.append(
            (b"authorization", draw(st.sampled_from([b"Bearer ", b"Bearer a.b.c", b"\xff"])))
        )
    return method, request(method, target, headers, json.dumps(body | odd).encode())


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


# --- connections ------------------------------------------------------------------------------


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
