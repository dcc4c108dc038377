"""Who may do what: nobody but this machine unless it is said, and path by path what a hook says."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest
from starlette.applications import Starlette
from starlette.routing import Mount

from eventstore import EventStore, InvalidArgumentError
from eventstore.http import DurableStreams, Limits, Operation, Problem, Request, allow_all
from eventstore.http.access import is_loopback
from eventstore.http.tokens import BearerTokens, TokenFileError

SECRET = "top-secret"
JSON = ("content-type", "application/json")
ROOT = "/v1/stream"

Ask = Callable[..., Awaitable["Told"]]


class Told:
    """What an application has answered."""

    def __init__(self, messages: list[Any]) -> None:
        self.status: int = messages[0]["status"]
        self.headers = {name.decode(): value.decode() for name, value in messages[0]["headers"]}
        self.body = b"".join(message.get("body", b"") for message in messages[1:])


async def ask(
    app: Any,
    method: str,
    raw_path: str,
    *headers: tuple[str, str],
    body: bytes = b"",
    client: tuple[str, int] | None = ("127.0.0.1", 5),
    server: tuple[str, int | None] | None = ("127.0.0.1", 4437),
    rest: Callable[[], Awaitable[bytes]] | None = None,
) -> Told:
    """Call an ASGI application as a server would: nobody touches the path on its way.

    `rest` is the part of the body that comes later.
    """
    path, _, query = raw_path.partition("?")
    scope = {
        "type": "http",
        "http_version": "1.1",
        "method": method,
        "scheme": "http",
        "path": httpx.URL("http://x" + path).path,
        "raw_path": path.encode(),
        "query_string": query.encode(),
        "root_path": "",
        "headers": [(name.encode(), value.encode("latin-1")) for name, value in headers],
        "client": client,
        "server": server,
    }
    incoming = [{"type": "http.request", "body": body, "more_body": rest is not None}]
    sent: list[Any] = []

    async def receive() -> Any:
        nonlocal rest
        if incoming:
            return incoming.pop()
        if rest is None:
            return await asyncio.Event().wait()
        later, rest = rest, None
        return {"type": "http.request", "body": await later(), "more_body": False}

    async def send(message: Any) -> None:
        sent.append(message)

    await app(scope, receive, send)
    return Told(sent)


@pytest.fixture
def store() -> Iterator[EventStore]:
    with EventStore("sqlite://") as store:
        yield store


@asynccontextmanager
async def streams(store: EventStore, **options: Any) -> AsyncIterator[DurableStreams]:
    """An application with a secret stream, which it was allowed to make."""
    options = {"long_poll_timeout": 0.01} | options
    app = DurableStreams(store, **options)
    try:
        yield app
    finally:
        await app.aclose()


async def made(store: EventStore, path: str = "orders/secret") -> None:
    async with streams(store, authorize=allow_all) as app:
        told = await ask(app, "PUT", f"{ROOT}/{path}", JSON, body=json.dumps([SECRET]).encode())
        assert told.status == 201


# --- without a hook -------------------------------------------------------------------------------


@pytest.mark.parametrize("client", ["127.0.0.1", "127.8.8.8", "::1", "::ffff:127.0.0.1"])
def test_without_a_hook_this_machine_may_do_everything(store: EventStore, client: str) -> None:
    async def scenario() -> None:
        async with streams(store) as app:
            here = {"client": (client, 5), "server": (client, 4437)}
            assert (await ask(app, "PUT", f"{ROOT}/a", JSON, body=b"[1]", **here)).status == 201
            for host in ("localhost:4437", "127.0.0.1", "[::1]:4437", "shop.localhost"):
                assert (await ask(app, "GET", f"{ROOT}/a", ("host", host), **here)).body == b"[1]"
            page = ("origin", "http://localhost:5173")
            assert (await ask(app, "GET", f"{ROOT}/a", page, **here)).status == 200

    asyncio.run(scenario())


def test_a_socket_of_the_file_system_is_this_machine(store: EventStore) -> None:
    async def scenario() -> None:
        async with streams(store) as app:
            told = await ask(app, "GET", f"{ROOT}/a", client=None, server=("/run/store", None))
            assert told.status == 404
            assert (await ask(app, "GET", f"{ROOT}/a", client=None, server=None)).status == 403

    asyncio.run(scenario())


#: How a request comes, and what its refusal says of that.
FOREIGN: list[tuple[dict[str, Any], list[tuple[str, str]], str]] = [
    ({"client": ("10.0.0.7", 5)}, [], "10.0.0.7"),
    ({"client": ("10.0.0.7", 5), "server": ("10.0.0.1", 80)}, [], "10.0.0.7"),
    ({"client": ("testclient", 5)}, [], "client=('127.0.0.1', 0)"),
    ({"client": None}, [], "no address"),
    ({"server": ("10.0.0.1", 80)}, [], "10.0.0.1"),
    ({}, [("x-forwarded-for", "127.0.0.1")], "x-forwarded-for"),
    ({}, [("forwarded", "for=127.0.0.1")], "forwarded"),
    ({}, [("x-real-ip", "127.0.0.1")], "x-real-ip"),
    ({}, [("via", "1.1 cache")], "via"),
    ({}, [("host", "evil.example:4437")], "evil.example"),  # a name that points here
    ({}, [("host", "127.0.0.1.evil.example")], "evil.example"),
    ({}, [("host", "[::1")], "host"),
    ({}, [("origin", "https://evil.example")], "evil.example"),  # a page in a browser here
    ({}, [("origin", "https://localhost.evil.example")], "evil.example"),
    ({}, [("origin", "null")], "null"),
]


def test_without_a_hook_others_are_refused_and_told_what_to_do(store: EventStore) -> None:
    async def scenario() -> None:
        await made(store)
        async with streams(store) as app:
            for options, headers, said in FOREIGN:
                for method in ("GET", "HEAD", "PUT", "POST", "DELETE"):
                    for path in ("orders/secret", "orders/none"):
                        told = await ask(app, method, f"{ROOT}/{path}", *headers, **options)
                        assert told.status == 403
                told = await ask(app, "GET", f"{ROOT}/orders/secret", *headers, **options)
                assert said in json.loads(told.body)["detail"]
                assert "allow_all" in json.loads(told.body)["detail"]
                assert SECRET.encode() not in told.body
            told = await ask(app, "GET", f"{ROOT}/orders/secret")
            assert SECRET.encode() in told.body

    asyncio.run(scenario())


def test_named_origins_and_the_base_url_are_let_in(store: EventStore) -> None:
    async def scenario() -> None:
        options = {"origins": ["https://shop.example"], "base_url": "https://log.example/"}
        async with streams(store, **options) as app:
            headers = [("origin", "https://shop.example"), ("host", "log.example")]
            told = await ask(app, "PUT", f"{ROOT}/a b", JSON, *headers)
            assert (told.status, told.headers["location"]) == (
                201,
                "https://log.example/v1/stream/a%20b",
            )

    asyncio.run(scenario())


def test_allow_all_lets_everybody_in(store: EventStore) -> None:
    async def scenario() -> None:
        async with streams(store, authorize=allow_all) as app:
            far = {"client": ("10.0.0.7", 5), "server": ("10.0.0.1", 80)}
            told = await ask(app, "PUT", f"{ROOT}/a", JSON, ("origin", "https://x.example"), **far)
            assert told.status == 201

    asyncio.run(scenario())


def test_a_test_client_is_refused_until_it_is_told_to_be_here(store: EventStore) -> None:
    async def scenario() -> None:
        async with streams(store) as app:
            for base, client, status in (
                ("http://testserver", ("testclient", 50000), 403),
                ("http://testserver", ("127.0.0.1", 0), 403),
                ("http://127.0.0.1", ("127.0.0.1", 0), 404),
            ):
                transport = httpx.ASGITransport(app, client=client)
                async with httpx.AsyncClient(transport=transport, base_url=base) as http:
                    assert (await http.get(f"{ROOT}/a")).status_code == status

    asyncio.run(scenario())


def test_loopback_is_told_from_what_looks_like_it() -> None:
    assert is_loopback("127.0.0.1")
    for host in ("127.0.0.1.example", "128.0.0.1", "0.0.0.0", "::", "localhost", "", "::127.0.0.1"):
        assert not is_loopback(host)


# --- a hook ---------------------------------------------------------------------------------------


class Guard:
    """Forbids everything about one stream, and remembers what it was asked."""

    def __init__(self, forbidden: str = "orders/secret") -> None:
        self.forbidden = forbidden
        self.asked: list[tuple[str, Operation]] = []

    def __call__(self, request: Request, path: str, operation: Operation) -> bool:
        self.asked.append((path, operation))
        return path != self.forbidden


#: Ways to write the path of the secret stream, or what somebody might take for it.
SPELLINGS = [
    "orders/secret",
    "orders%2Fsecret",
    "orders%2fsecret",
    "%6Frders/%73ecret",
    "orders%252Fsecret",
    "orders/secret?x=1",
    "orders/./secret",
    "orders/%2e/secret",
    "orders/x/../secret",
    "orders/x/%2E%2E/secret",
    "x/..%2Forders/secret",
    "../stream/orders/secret",
    "orders//secret",
    "/orders/secret",
    "%2Forders/secret",
    "orders/secret/",
    "orders/secret%2F",
    "orders/secret%00",
    "orders/secret%0A",
    "orders/secret%20",
    "orders\\secret",
    "orders%5Csecret",
    "orders/secret;x",
    "orders/secret%3Fx",
    "orders/secret%23x",
    "ORDERS/SECRET",
    "orders/secre%EF%BD%94",  # a full-width t
    "orders/secret%C0%80",
    "orders/secret%",
    "orders/secret%zz",
    "orders/secret\\2",
    "orders/secret%5C2",
]


@pytest.mark.parametrize("mount", ["", "/log"])
def test_no_spelling_of_a_path_gets_past_a_hook(store: EventStore, mount: str) -> None:
    async def scenario() -> None:
        await made(store)
        guard = Guard()
        async with streams(store, authorize=guard) as inner:
            app = Starlette(routes=[Mount(mount, inner)]) if mount else inner
            for spelling in SPELLINGS:
                await refuses(app, guard, f"{mount}{ROOT}/{spelling}")
        async with streams(store, authorize=allow_all) as other:  # it is as it was
            assert (await ask(other, "GET", f"{ROOT}/orders/secret")).body == b'["top-secret"]'

    asyncio.run(scenario())


async def refuses(app: Any, guard: Guard, path: str) -> None:
    """Whatever is asked of a path, the answer is none, or the hook was asked about the secret."""
    mark = "&" if "?" in path else "?"
    tries = [
        ("GET", path, b""),
        ("HEAD", path, b""),
        ("GET", f"{path}{mark}offset=-1&live=long-poll", b""),
        ("GET", f"{path}{mark}offset=-1&live=sse", b""),
        ("POST", path, b'"x"'),
        ("DELETE", path, b""),
    ]
    for method, target, body in tries:
        guard.asked.clear()
        told = await ask(app, method, target, JSON, body=body)
        assert SECRET.encode() not in told.body
        if told.status not in (400, 404):
            assert told.status == 401
            assert guard.asked[0][0] == "orders/secret"
        elif told.status == 404 and guard.asked:
            assert guard.asked[0][0] != "orders/secret"


def test_no_fork_shows_what_its_maker_may_not_read(store: EventStore) -> None:
    async def scenario() -> None:
        await made(store)
        async with streams(store, authorize=Guard()) as app:
            for spelling in SPELLINGS:
                for place in ([], [("stream-fork-offset", "0000000000000000_0000000000000001")]):
                    source = ("stream-forked-from", f"{ROOT}/{spelling}")
                    told = await ask(app, "PUT", f"{ROOT}/mine", source, *place)
                    assert told.status in (400, 401, 404)
            assert (await ask(app, "GET", f"{ROOT}/mine")).status == 404

    asyncio.run(scenario())


def test_a_fork_is_asked_about_twice_and_its_own_path_counts_too(store: EventStore) -> None:
    async def scenario() -> None:
        await made(store, "orders/open")
        guard = Guard("mine")
        async with streams(store, authorize=guard) as app:
            source = ("stream-forked-from", f"{ROOT}/orders%2Fopen")
            assert (await ask(app, "PUT", f"{ROOT}/mine", source)).status == 401
            guard.asked.clear()
            told = await ask(app, "PUT", f"{ROOT}/other", source)
            assert told.status == 201
            assert guard.asked == [("other", Operation.CREATE), ("orders/open", Operation.READ)]

    asyncio.run(scenario())


def test_a_refusal_does_not_tell_whether_there_is_a_stream(store: EventStore) -> None:
    async def scenario() -> None:
        await made(store)
        async with streams(store, authorize=lambda *_: False) as app:
            for method in ("GET", "HEAD", "PUT", "POST", "DELETE"):
                told = {
                    (await ask(app, method, f"{ROOT}/orders/{name}", JSON, body=b"1")).status
                    for name in ("secret", "none")
                }
                assert told == {401}
                credentials = ("authorization", "Bearer x")
                told_too = await ask(app, method, f"{ROOT}/orders/secret", credentials)
                assert told_too.status == 403

    asyncio.run(scenario())


def test_a_hook_may_be_awaited_and_may_say_more(store: EventStore) -> None:
    async def slow(request: Request, path: str, operation: Operation) -> bool:
        await asyncio.sleep(0)
        if path == "paid":
            raise Problem(402, "this one costs")
        return operation is Operation.READ

    async def scenario() -> None:
        async with streams(store, authorize=slow) as app:
            assert (await ask(app, "GET", f"{ROOT}/a")).status == 404
            assert (await ask(app, "PUT", f"{ROOT}/a")).status == 401
            assert (await ask(app, "GET", f"{ROOT}/paid")).status == 402

    asyncio.run(scenario())


def test_what_a_hook_guards_is_never_kept_by_shared_caches(store: EventStore) -> None:
    async def scenario() -> None:
        await made(store)
        for authorize, scope in ((allow_all, "public"), (lambda *_: True, "private")):
            async with streams(store, authorize=authorize, is_public=True) as app:
                told = await ask(app, "GET", f"{ROOT}/orders/secret")
                assert told.headers["cache-control"].startswith(scope)

    asyncio.run(scenario())


# --- tokens ---------------------------------------------------------------------------------------


def test_tokens_of_a_file_allow_everything_or_reading(store: EventStore, tmp_path: Path) -> None:
    file = tmp_path / "tokens"
    file.write_text("# of the shop\nwriter-0123456789abc\n\nreader-0123456789abc read\n")

    async def scenario() -> None:
        async with streams(store, authorize=BearerTokens(str(file))) as app:

            async def status(method: str, value: str | None) -> int:
                headers = [] if value is None else [("authorization", value)]
                return (await ask(app, method, f"{ROOT}/a", JSON, *headers)).status

            assert await status("PUT", "Bearer writer-0123456789abc") == 201
            assert await status("GET", "bearer  writer-0123456789abc ") == 200
            assert await status("GET", "Bearer reader-0123456789abc") == 200
            assert await status("PUT", "Bearer reader-0123456789abc") == 403
            for wrong in ("Bearer writer-0123456789ab", "Bearer ", "Basic writer-0123456789abc"):
                assert await status("GET", wrong) == 403
            assert await status("GET", None) == 401

    asyncio.run(scenario())


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (None, "cannot be read"),
        ("# nothing\n", "no token"),
        ("short\n", "line 1"),
        ("a-long-enough-token write\n", "read"),
    ],
)
def test_a_file_of_tokens_that_is_of_no_use_is_refused(
    tmp_path: Path, content: str | None, said: str
) -> None:
    file = tmp_path / "tokens"
    if content is not None:
        file.write_text(content)
    with pytest.raises(TokenFileError, match=said):
        BearerTokens(str(file))


# --- limits ---------------------------------------------------------------------------------------


def test_a_client_that_asks_too_often_is_told_when_to_come_again(store: EventStore) -> None:
    async def scenario() -> None:
        limits = Limits(requests_per_second=0.01, burst=2)
        async with streams(store, authorize=allow_all, limits=limits) as app:

            async def status(host: str) -> Told:
                return await ask(app, "GET", f"{ROOT}/a", client=(host, 5))

            assert [(await status("10.0.0.1")).status for _ in range(3)] == [404, 404, 429]
            assert 1 <= int((await status("10.0.0.1")).headers["retry-after"]) <= 100
            assert (await status("10.0.0.2")).status == 404
            # An IPv6 client has a whole network of addresses.
            assert [(await status(f"2001:db8::{n}")).status for n in (1, 2, 3)] == [404, 404, 429]
            assert (await status("2001:db8:0:1::1")).status == 404

    asyncio.run(scenario())


@pytest.mark.parametrize("live", ["sse", "long-poll"])
@pytest.mark.parametrize("limits", [Limits(live_readers=2), Limits(live_readers_per_client=2)])
def test_there_are_so_many_live_readers_and_no_more(
    store: EventStore, live: str, limits: Limits
) -> None:
    async def scenario() -> None:
        await made(store)
        async with streams(store, limits=limits, long_poll_timeout=60) as app:
            path = f"{ROOT}/orders/secret?offset=now&live={live}"
            waiting = [asyncio.create_task(ask(app, "GET", path)) for _ in range(2)]
            await asyncio.sleep(0)  # both are counted
            told = await ask(app, "GET", path)
            assert (told.status, "retry-after" in told.headers) == (429, True)
            assert (await ask(app, "GET", f"{ROOT}/orders/secret")).status == 200
            app.drain()
            await asyncio.gather(*waiting)
            assert (await ask(app, "GET", path)).status in (200, 204)

    asyncio.run(scenario())


def test_a_body_that_is_too_large_is_refused(store: EventStore) -> None:
    async def scenario() -> None:
        async with streams(store, limits=Limits(body_bytes=10)) as app:
            large = await ask(app, "PUT", f"{ROOT}/a", body=b"x" * 11)
            assert (large.status, large.headers["connection"]) == (413, "close")
            for length in ("11", "9" * 30, "9" * 5000):
                early = await ask(app, "PUT", f"{ROOT}/a", ("content-length", length))
                assert early.status == 413
            assert (await ask(app, "PUT", f"{ROOT}/a", body=b"x" * 10)).status == 201

    asyncio.run(scenario())


def test_large_bodies_that_are_under_way_are_bounded_together(store: EventStore) -> None:
    part = b"x" * 100_000

    async def scenario() -> None:
        limits = Limits(body_bytes=300_000, all_bodies_bytes=250_000)
        async with streams(store, limits=limits) as app:
            held, goes_on = asyncio.Event(), asyncio.Event()

            async def rest() -> bytes:
                held.set()
                await goes_on.wait()
                return part

            first = asyncio.create_task(ask(app, "PUT", f"{ROOT}/a", body=part, rest=rest))
            await held.wait()
            second = await ask(app, "PUT", f"{ROOT}/b", body=2 * part)
            assert (second.status, second.headers["retry-after"]) == (429, "1")
            assert (await ask(app, "PUT", f"{ROOT}/small", body=b"x")).status == 201
            goes_on.set()
            assert (await first).status == 201
            assert (await ask(app, "PUT", f"{ROOT}/b", body=2 * part)).status == 201

    asyncio.run(scenario())


def test_a_limit_is_above_nothing() -> None:
    with pytest.raises(InvalidArgumentError, match="body_bytes"):
        Limits(body_bytes=0)


@pytest.mark.parametrize("name", ["stream-seq", "producer-id", "authorization", "content-type"])
def test_a_header_that_says_two_things_is_refused(store: EventStore, name: str) -> None:
    async def scenario() -> None:
        async with streams(store) as app:
            told = await ask(app, "PUT", f"{ROOT}/a", (name, "a"), (name, "b"))
            assert told.status == 400
            assert (await ask(app, "PUT", f"{ROOT}/a", ("x", "a"), ("x", "b"))).status == 201

    asyncio.run(scenario())
