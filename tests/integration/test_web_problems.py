"""Errors are answered with their problems, and keys that cannot be one are refused."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Annotated, Any

import pytest
from applications import in_process, run
from fastapi import Depends, FastAPI
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from eventstore import (
    NO_STREAM,
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
)
from eventstore.web import exception_handlers, idempotency_key, install

# --- problems ------------------------------------------------------------------------------------


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


# --- idempotency keys ----------------------------------------------------------------------------


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
