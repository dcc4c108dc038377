"""The store in applications of Starlette and FastAPI, under concurrent load too."""

from __future__ import annotations

import asyncio
import importlib.util
import re
import subprocess
import sys
import threading
from collections.abc import AsyncIterator, Coroutine
from contextlib import asynccontextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, Any

import httpx
import pytest
import uvicorn
from fastapi import Depends, FastAPI
from starlette.applications import Starlette
from starlette.requests import HTTPConnection, Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route
from starlette.types import Message, Receive, Scope, Send

import eventstore.web
from eventstore import (
    NO_STREAM,
    Event,
    EventStore,
    EventStoreError,
    EventTooLargeError,
    IdempotencyKeyReusedError,
    InvalidArgumentError,
    InvalidEventError,
    InvalidNameError,
    InvalidTimeError,
    LogLockedError,
    LogReadOnlyError,
    LogStalledError,
    LogUnavailableError,
    StoreClosedError,
    StreamDeletedError,
    StreamNotFoundError,
    WrongExpectedVersionError,
    metadata,
)
from eventstore.aio import AsyncEventStore
from eventstore.web import (
    MetadataMiddleware,
    event_store,
    exception_handlers,
    idempotency_key,
    install,
    lifespan,
)

EXAMPLE = Path(__file__).parents[2] / "examples" / "shop_api.py"
PAGE = Path(__file__).parents[2] / "docs" / "web.md"
REQUESTS = 100
#: Seconds after which a test that hangs fails.
PATIENCE = 120.0


class Noted(Event, name="web-noted"):
    text: str


@pytest.fixture(scope="module")
def shop() -> Any:
    """The example application's module."""
    spec = importlib.util.spec_from_file_location("shop_api", EXAMPLE)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["shop_api"] = module  # where pydantic looks for the names in annotations
    spec.loader.exec_module(module)
    return module


@pytest.fixture(params=["sqlite", "postgres"])
def url(request: pytest.FixtureRequest) -> str:
    found: str = request.getfixturevalue(f"{request.param}_url")
    return found


def run(main: Coroutine[Any, Any, None]) -> None:
    asyncio.run(asyncio.wait_for(main, PATIENCE))


@asynccontextmanager
async def in_process(app: Starlette) -> AsyncIterator[httpx.AsyncClient]:
    """A client of the application, which lives meanwhile."""
    transport = httpx.ASGITransport(app)
    async with (
        app.router.lifespan_context(app),
        httpx.AsyncClient(transport=transport, base_url="http://shop") as client,
    ):
        yield client


@asynccontextmanager
async def served(app: Starlette) -> AsyncIterator[httpx.AsyncClient]:
    """A client of the application, served on a loopback port."""
    server = uvicorn.Server(uvicorn.Config(app, port=0, log_level="warning", ws="none"))
    serving = asyncio.create_task(server.serve())
    try:
        while not server.started:
            assert not serving.done()
            await asyncio.sleep(0.01)
        port = server.servers[0].sockets[0].getsockname()[1]
        limits = httpx.Limits(max_connections=REQUESTS)
        async with httpx.AsyncClient(
            base_url=f"http://127.0.0.1:{port}", limits=limits, timeout=PATIENCE, trust_env=False
        ) as client:
            yield client
    finally:
        server.should_exit = True
        await serving


async def append_note(request: Request) -> Response:
    """An endpoint with an explicit expected version; Starlette only."""
    given = await request.json()
    receipt = await event_store(request).append(
        "web-notes/1", Noted(text=given["text"]), expected=given["expected"]
    )
    return JSONResponse({"version": receipt.version}, 201)


async def version_of_notes(request: Request) -> Response:
    return JSONResponse(await event_store(request).version("web-notes/1"))


def notes_app(url: str) -> Starlette:
    app = Starlette(
        routes=[
            Route("/notes", append_note, methods=["POST"]),
            Route("/version", version_of_notes),
        ],
        lifespan=lifespan(url),
    )
    install(app, metadata=lambda connection: {"user": connection.headers["x-user"]})
    return app


# --- under load -----------------------------------------------------------------------------------


def ids_of(name: str) -> dict[str, str]:
    return {"X-Correlation-ID": f"request-{name}", "X-User": f"user-{name}"}


def check_log(url: str, stream: str, answers: dict[str, int], success: int, member: str) -> None:
    """Each success is in the log once with its own metadata, each conflict is not, that is all."""
    assert set(answers.values()) <= {success, 409}
    with EventStore(url) as store:
        records = [r for r in store.read(stream) if r.type != "OrderOpened"]
        assert [r.version for r in store.read(stream)] == [*range(1, store.version(stream) + 1)]
    names = [getattr(record.event, member) for record in records]
    assert sorted(names) == sorted(name for name, status in answers.items() if status == success)
    assert names
    for record, name in zip(records, names, strict=True):
        assert record.metadata.correlation_id == f"request-{name}"
        assert record.metadata["user"] == f"user-{name}"


async def add_lines(client: httpx.AsyncClient) -> dict[str, int]:
    assert (await client.post("/orders", json={"id": "7"})).status_code == 201
    answers: dict[str, int] = {}

    async def add(name: str) -> None:
        line = {"sku": name, "quantity": 1}
        answer = await client.post("/orders/7/lines", json=line, headers=ids_of(name))
        answers[name] = answer.status_code
        assert answer.headers["x-correlation-id"] == f"request-{name}"

    await asyncio.gather(*(add(f"{number}") for number in range(REQUESTS)))
    assert len(answers) == REQUESTS
    assert (await client.get("/orders/7")).json()["lines"] == {
        name: 1 for name, status in answers.items() if status == 204
    }
    return answers


def test_transact_under_load_loses_nothing(shop: Any, url: str) -> None:
    async def main() -> None:
        async with in_process(shop.make_app(url)) as client:
            answers = await add_lines(client)
        check_log(url, "order/7", answers, 204, "sku")

    run(main())


def test_transact_under_load_loses_nothing_on_a_real_server(shop: Any, url: str) -> None:
    async def main() -> None:
        async with served(shop.make_app(url)) as client:
            answers = await add_lines(client)
        check_log(url, "order/7", answers, 204, "sku")

    run(main())


def test_expected_versions_under_load_lose_nothing(url: str) -> None:
    async def main() -> None:
        answers: dict[str, int] = {}
        async with in_process(notes_app(url)) as client:

            async def note(name: str) -> None:
                headers = ids_of(name)
                expected = (await client.get("/version", headers=headers)).json()
                body = {"text": name, "expected": expected}
                answer = await client.post("/notes", json=body, headers=headers)
                answers[name] = answer.status_code
                if answer.status_code == 409:
                    conflict = answer.json()
                    assert conflict["expected"] == expected
                    assert conflict["actual"] > expected

            for start in range(0, REQUESTS, 25):  # so that several versions are fought for
                await asyncio.gather(*(note(f"{n}") for n in range(start, start + 25)))
        assert len(answers) == REQUESTS
        assert 409 in answers.values()
        check_log(url, "web-notes/1", answers, 201, "text")

    run(main())


def test_of_conflicting_requests_with_one_version_one_is_written(url: str) -> None:
    async def main() -> None:
        answers: dict[str, int] = {}
        async with in_process(notes_app(url)) as client:

            async def note(name: str) -> None:
                body = {"text": name, "expected": 0}
                answer = await client.post("/notes", json=body, headers=ids_of(name))
                answers[name] = answer.status_code

            await asyncio.gather(*(note(f"{n}") for n in range(REQUESTS)))
        assert sorted(answers.values()) == [201] + [409] * (REQUESTS - 1)
        check_log(url, "web-notes/1", answers, 201, "text")

    run(main())


def test_requests_repeated_with_one_key_have_one_effect(shop: Any, url: str) -> None:
    async def main() -> None:
        async with in_process(shop.make_app(url)) as client:
            for id in ("7", "8"):
                await client.post("/orders", json={"id": id})
            line = {"sku": "tea", "quantity": 2}
            for id in ("7", "8"):
                adding = [
                    client.post(f"/orders/{id}/lines", json=line, headers={"Idempotency-Key": "k"})
                    for _ in range(20)
                ]
                for answer in await asyncio.gather(*adding):
                    assert answer.status_code in (204, 409)
                assert (await client.get(f"/orders/{id}")).json()["lines"] == {"tea": 2}

    run(main())


# --- metadata -------------------------------------------------------------------------------------


TRACE = "4bf92f3577b34da6a3ce929d0e0e4736"


@pytest.mark.parametrize(
    ("headers", "expected"),
    [
        ({"X-Correlation-ID": "a", "traceparent": f"00-{TRACE}-00f067aa0ba902b7-01"}, "a"),
        ({"traceparent": f"00-{TRACE}-00f067aa0ba902b7-01", "X-Request-ID": "r"}, TRACE),
        ({"traceparent": f"00-{'0' * 32}-00f067aa0ba902b7-01", "X-Request-ID": "r"}, "r"),
        ({"X-Correlation-ID": "x" * 128}, "x" * 128),
        ({"X-Correlation-ID": "x" * 129, "X-Request-ID": "r"}, "r"),
        ({"X-Correlation-ID": "a b", "X-Request-ID": "r"}, "r"),
        ({"X-Correlation-ID": b"\xff", "X-Request-ID": "r"}, "r"),
        ({"X-Correlation-ID": ""}, None),
        ({}, None),
    ],
)
def test_a_request_has_a_valid_correlation_id(
    headers: dict[str, str | bytes], expected: str | None
) -> None:
    async def show(request: Request) -> Response:
        return JSONResponse(dict(metadata.current()))

    async def main() -> None:
        app = MetadataMiddleware(Starlette(routes=[Route("/", show)]))
        transport = httpx.ASGITransport(app)
        async with httpx.AsyncClient(transport=transport, base_url="http://shop") as client:
            answer = await client.get("/", headers=headers)  # type: ignore[arg-type]
            found = answer.json()["correlation_id"]
            assert answer.headers["x-correlation-id"] == found
            if expected is None:
                again = await client.get("/", headers=headers)  # type: ignore[arg-type]
                assert len(found) == 36
                assert again.json()["correlation_id"] != found
            else:
                assert found == expected

    run(main())


def test_the_application_adds_metadata_and_cannot_replace_the_ids() -> None:
    async def who(connection: HTTPConnection) -> dict[str, Any]:
        return {"user": "ann", "correlation_id": "another"}

    async def show(request: Request) -> Response:
        return JSONResponse(dict(metadata.current()))

    async def main() -> None:
        app = Starlette(routes=[Route("/", show)])
        install(app, metadata=who)
        async with in_process(app) as client:
            headers = {"X-Correlation-ID": "c", "X-Causation-ID": "cause"}
            assert (await client.get("/", headers=headers)).json() == {
                "user": "ann",
                "correlation_id": "c",
                "causation_id": "cause",
            }
            headers = {"X-Correlation-ID": "c", "X-Causation-ID": "no cause"}
            assert "causation_id" not in (await client.get("/", headers=headers)).json()
        assert dict(metadata.current()) == {}

    run(main())


def test_metadata_of_concurrent_requests_is_never_mixed(sqlite_url: str) -> None:
    """Of coroutines and of endpoints in threads, all of which are under way at once."""
    both = threading.Barrier(2, timeout=PATIENCE)
    arrived: list[str] = []
    app = FastAPI()
    install(app)

    @app.get("/thread")
    def in_a_thread() -> dict[str, Any]:
        both.wait()
        return dict(metadata.current())

    @app.get("/task/{name}")
    async def in_a_task(name: str) -> dict[str, Any]:
        arrived.append(name)
        while len(arrived) < 2:
            await asyncio.sleep(0)
        return dict(metadata.current())

    async def main() -> None:
        async with in_process(app) as client:
            for paths in (["/thread", "/thread"], ["/task/a", "/task/b"]):
                answers = await asyncio.gather(
                    *(
                        client.get(path, headers={"X-Correlation-ID": f"id-{number}"})
                        for number, path in enumerate(paths)
                    )
                )
                assert [answer.json() for answer in answers] == [
                    {"correlation_id": "id-0"},
                    {"correlation_id": "id-1"},
                ]

    run(main())


def test_a_websocket_has_metadata_and_is_told_its_correlation_id() -> None:
    seen: list[dict[str, Any]] = []
    sent: list[Message] = []

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        seen.append(dict(metadata.current()))
        await send({"type": "websocket.accept"})

    async def send(message: Message) -> None:
        sent.append(message)

    async def receive() -> Message:
        return {"type": "websocket.connect"}

    async def main() -> None:
        scope = {"type": "websocket", "headers": [(b"x-request-id", b"r")]}
        await MetadataMiddleware(app)(scope, receive, send)

    run(main())
    assert seen == [{"correlation_id": "r"}]
    assert sent == [{"type": "websocket.accept", "headers": [(b"x-correlation-id", b"r")]}]


# --- problems -------------------------------------------------------------------------------------

MOMENT = datetime(2026, 1, 2, tzinfo=UTC)
PROBLEMS: list[tuple[EventStoreError, int, str, dict[str, Any]]] = [
    (
        WrongExpectedVersionError("order/7", 3, 4),
        409,
        "wrong-expected-version",
        {
            "title": "The stream is at another version",
            "stream": "order/7",
            "expected": 3,
            "actual": 4,
        },
    ),
    (
        WrongExpectedVersionError("order/7", NO_STREAM, 4),
        409,
        "wrong-expected-version",
        {
            "title": "The stream is at another version",
            "stream": "order/7",
            "expected": str(NO_STREAM),
            "actual": 4,
        },
    ),
    (
        StreamNotFoundError("order/7", MOMENT),
        404,
        "stream-not-found",
        {
            "title": "There is no such stream",
            "stream": "order/7",
            "when": "2026-01-02T00:00:00+00:00",
        },
    ),
    (
        StreamDeletedError("order/7"),
        410,
        "stream-deleted",
        {"title": "The stream was deleted", "stream": "order/7"},
    ),
    (
        EventTooLargeError("Noted", 20, 10),
        413,
        "event-too-large",
        {"title": "The event is too large", "event_type": "Noted", "size": 20, "limit": 10},
    ),
    (
        InvalidEventError("Noted", "no text"),
        422,
        "invalid-event",
        {"title": "The event cannot be recorded", "event_type": "Noted", "reason": "no text"},
    ),
    (
        InvalidArgumentError("limit", -1, "use another"),
        422,
        "invalid-argument",
        {"title": "An argument makes no sense", "argument": "limit", "value": -1},
    ),
    (
        InvalidNameError("an aggregate's id", "\ud800", "a surrogate"),
        422,
        "invalid-name",
        {"title": "That cannot be a name", "name": "\ud800", "reason": "a surrogate"},
    ),
    (
        InvalidTimeError(datetime(2026, 1, 2), "has no time zone"),
        422,
        "invalid-time",
        {"title": "That is no moment", "value": "2026-01-02T00:00:00"},
    ),
    (
        IdempotencyKeyReusedError("k", ("a/1",), ("a/2", "a/3")),
        422,
        "idempotency-key-reused",
        {
            "title": "The idempotency key was used for another request",
            "key": "k",
            "streams": ["a/1"],
            "first": ["a/2", "a/3"],
        },
    ),
    (
        LogLockedError("host db7, process 12"),
        503,
        "log-locked",
        {
            "title": "The log is busy",
            "detail": "a lock was not had in time; nothing was written, a retry is safe",
        },
    ),
    (
        LogUnavailableError("host db7", "unknown"),
        503,
        "log-unavailable",
        {
            "title": "The log is not available",
            "outcome": "unknown",
            "detail": "the database could not be reached, or went away; if the outcome is "
            "unknown, repeat the request with the same idempotency key, or read before you "
            "repeat it",
        },
    ),
    (
        LogStalledError(5, ("process 12",), 1.0),
        503,
        "log-stalled",
        {
            "title": "The end of the log is not certain yet",
            "position": 5,
            "detail": "open transactions keep the end of the log uncertain; nothing was "
            "skipped, a retry is safe",
        },
    ),
]


@pytest.mark.parametrize("framework", [Starlette, FastAPI])
@pytest.mark.parametrize(("error", "status", "type", "members"), PROBLEMS)
def test_an_error_is_answered_with_its_problem(
    framework: type[Starlette],
    error: EventStoreError,
    status: int,
    type: str,
    members: dict[str, Any],
) -> None:
    async def fail(request: Request) -> Response:
        raise error

    async def main() -> None:
        app = framework(routes=[Route("/", fail)])
        install(app, types="https://shop.example/problems/", retry_after=7)
        async with in_process(app) as client:
            answer = await client.get("/")
        assert answer.status_code == status
        assert answer.headers["content-type"] == "application/problem+json"
        assert answer.headers.get("retry-after") == ("7" if status == 503 else None)
        assert "x-correlation-id" in answer.headers
        assert answer.json() == {
            "type": f"https://shop.example/problems/{type}",
            "status": status,
            "detail": str(error),
            **members,
        }

    run(main())


@pytest.mark.parametrize("error", [LogReadOnlyError("no"), StoreClosedError(), ValueError("no")])
def test_any_other_error_is_left_to_the_application(error: Exception) -> None:
    async def fail(request: Request) -> Response:
        raise error

    async def main() -> None:
        app = Starlette(routes=[Route("/", fail)], exception_handlers=exception_handlers())
        async with in_process(app) as client:
            with pytest.raises(type(error)):
                await client.get("/")

    run(main())


# --- idempotency keys -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ([], None),
        (["k 1"], "k 1"),
        (['"k"'], "k"),
        (["x" * 255], "x" * 255),
        (["x" * 256], 422),
        ([""], 422),
        (['""'], 422),
        ([b"\xe9"], 422),
        (["a", "b"], 422),
    ],
)
def test_an_idempotency_key_is_validated(
    given: list[str | bytes], expected: str | int | None
) -> None:
    app = FastAPI()
    install(app)

    @app.get("/")
    async def show(key: Annotated[str | None, Depends(idempotency_key)]) -> str | None:
        return key

    async def main() -> None:
        async with in_process(app) as client:
            headers = [
                (b"idempotency-key", key if isinstance(key, bytes) else key.encode())
                for key in given
            ]
            answer = await client.get("/", headers=headers)
        if expected == 422:
            assert answer.status_code == 422
            assert answer.json()["argument"] == "Idempotency-Key"
        else:
            assert answer.json() == expected

    run(main())


# --- the lifespan ---------------------------------------------------------------------------------


@pytest.mark.parametrize("framework", [Starlette, FastAPI])
def test_the_lifespan_closes_the_store(framework: type[Starlette], url: str) -> None:
    kept: list[AsyncEventStore] = []

    @asynccontextmanager
    async def own(app: Starlette) -> AsyncIterator[dict[str, Any]]:
        assert await app.state.event_store.head() == 0
        yield {"shop": "open"}
        assert await app.state.event_store.head() == 0
        kept.append(app.state.event_store)

    async def main() -> None:
        app = framework(lifespan=lifespan(url, within=own, lock_timeout=1.0))
        async with app.router.lifespan_context(app) as state:
            assert state == {"shop": "open"}
        assert not hasattr(app.state, "event_store")
        with pytest.raises(StoreClosedError):
            await kept[0].head()

    run(main())


def test_the_lifespan_closes_the_store_when_the_applications_own_fails(sqlite_url: str) -> None:
    kept: list[AsyncEventStore] = []

    @asynccontextmanager
    async def own(app: Starlette) -> AsyncIterator[None]:
        kept.append(app.state.event_store)
        raise LookupError("no configuration")
        yield

    async def main() -> None:
        app = Starlette(lifespan=lifespan(sqlite_url, within=own))
        with pytest.raises(LookupError):
            async with app.router.lifespan_context(app):
                pass
        with pytest.raises(StoreClosedError):
            await kept[0].head()

    run(main())


def test_options_beside_a_store_are_refused(sqlite_url: str) -> None:
    with pytest.raises(InvalidArgumentError):
        lifespan(AsyncEventStore(sqlite_url), lock_timeout=1.0)


def test_a_request_without_a_lifespan_says_what_is_missing() -> None:
    async def main() -> None:
        app = Starlette(routes=[Route("/", version_of_notes)])
        async with in_process(app) as client:
            with pytest.raises(RuntimeError, match="lifespan"):
                await client.get("/")

    run(main())


# --- the example ----------------------------------------------------------------------------------


def test_the_example_answers_of_the_past_and_of_conflicts(shop: Any, url: str) -> None:
    async def main() -> None:
        async with in_process(shop.make_app(url)) as client:
            assert (await client.post("/orders", json={"id": "7"})).status_code == 201
            assert (await client.post("/orders", json={"id": "7"})).status_code == 409
            with EventStore(url) as store:
                opened = next(store.read("order/7")).recorded_at
            await client.post("/orders/7/lines", json={"sku": "tea", "quantity": 2})
            now = {"id": "7", "version": 2, "lines": {"tea": 2}, "placed": False}
            assert (await client.get("/orders/7")).json() == now
            then = {"id": "7", "version": 1, "lines": {}, "placed": False}
            at = {"at": opened.isoformat()}
            assert (await client.get("/orders/7", params=at)).json() == then
            assert (await client.get("/orders/7", params={"at": "2026-01-02"})).status_code == 422
            assert (await client.get("/orders/9")).status_code == 404
            assert (await client.post("/orders/7/place")).status_code == 428
            for version, status in (("1", 422), ("2", 200), ("2", 409), ("3", 422)):
                headers = {"If-Match": f'"{version}"'}
                answer = await client.post("/orders/7/place", headers=headers)
                assert answer.status_code == status, version

    run(main())


def readers() -> set[threading.Thread]:
    """The threads that follow a log for live readers."""
    return {thread for thread in threading.enumerate() if thread.name == "eventstore-live"}


def test_a_live_answer_ends_when_the_client_leaves(shop: Any, url: str) -> None:
    before = readers()

    async def main() -> None:
        async with served(shop.make_app(url)) as client:
            await client.post("/orders", json={"id": "7"})
            await client.post("/orders", json={"id": "8"})
            ids: list[str] = []
            async with client.stream("GET", "/orders/7/events") as answer:
                lines = answer.aiter_lines()
                assert await event_of(lines, ids) == "OrderOpened"
                for id in ("8", "7"):  # the other order's events are not given
                    line = {"sku": f"for-{id}", "quantity": 1}
                    await client.post(f"/orders/{id}/lines", json=line)
                assert await event_of(lines, ids) == "LineAdded"
                assert readers() - before
            while readers() - before:
                await asyncio.sleep(0.01)
            resumed = {"Last-Event-ID": ids[0]}
            async with client.stream("GET", "/orders/7/events", headers=resumed) as answer:
                assert await event_of(answer.aiter_lines(), ids) == "LineAdded"
            assert ids[1] == ids[2]
            assert (await client.get("/orders/9/events")).status_code == 404

    run(main())


async def event_of(lines: AsyncIterator[str], ids: list[str]) -> str:
    """The type of the next event, whose id is noted."""
    fields: dict[str, str] = {}
    async for line in lines:
        if line.startswith(":"):
            continue
        if not line and fields:
            ids.append(fields["id"])
            return fields["event"]
        if line:
            name, _, value = line.partition(": ")
            fields[name] = value
    raise AssertionError("the answer ended")


def test_a_live_answer_with_nothing_to_tell_says_so(shop: Any, sqlite_url: str) -> None:
    async def main() -> None:
        async with served(shop.make_app(sqlite_url, breath=0.01)) as client:
            await client.post("/orders", json={"id": "7"})
            async with client.stream("GET", "/orders/7/events") as answer:
                async for line in answer.aiter_lines():
                    if line == ": nothing yet":
                        break

    run(main())


# --- the page about it ----------------------------------------------------------------------------


def test_the_pages_examples_run(tmp_path: Path) -> None:
    blocks = re.findall(r"```python\n(.*?)```", PAGE.read_text(encoding="utf-8"), re.DOTALL)
    assert len(blocks) > 3
    # A program of its own: its classes have names that others have too.
    program = tmp_path / "page.py"
    program.write_text("\n".join(blocks), encoding="utf-8")
    ran = subprocess.run(
        [sys.executable, "-W", "error", str(program)],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        env={"PYTHONPATH": ":".join(filter(None, sys.path))},
    )
    assert ran.returncode == 0, ran.stderr


def test_every_name_is_on_the_page() -> None:
    for name in set(eventstore.web.__all__):
        assert re.search(rf"\b{name}\b", PAGE.read_text(encoding="utf-8")), name


def test_the_core_imports_nothing_of_it() -> None:
    script = "import sys, eventstore, eventstore.aio; print(*sys.modules)"
    ran = subprocess.run(
        [sys.executable, "-W", "error", "-c", script],
        capture_output=True,
        text=True,
        check=True,
        env={"PYTHONPATH": ":".join(filter(None, sys.path))},
    )
    assert not {"starlette", "fastapi", "eventstore.web"} & set(ran.stdout.split())


def test_it_needs_no_fastapi() -> None:
    script = "import sys, eventstore.web; print(*sys.modules)"
    ran = subprocess.run(
        [sys.executable, "-W", "error", "-c", script],
        capture_output=True,
        text=True,
        check=True,
        env={"PYTHONPATH": ":".join(filter(None, sys.path))},
    )
    assert not {"fastapi", "pydantic", "httpx"} & set(ran.stdout.split())
