"""Errors of the library as answers: application/problem+json, RFC 9457."""

from __future__ import annotations

import json
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Final, TypeAlias

from starlette.requests import Request
from starlette.responses import Response

from eventstore.errors import (
    EventStoreError,
    EventTooLargeError,
    IdempotencyKeyReusedError,
    InvalidArgumentError,
    InvalidEventError,
    InvalidNameError,
    InvalidTimeError,
    LogLockedError,
    LogStalledError,
    LogUnavailableError,
    StreamDeletedError,
    StreamNotFoundError,
    WrongExpectedVersionError,
)

Handler: TypeAlias = Callable[[Request, Exception], Awaitable[Response]]

#: What the types of problems begin with.
TYPES: Final = "urn:eventstore:"


@dataclass(frozen=True)
class _Kind:
    """How an error is answered. `detail` stands for the error's own text where that is not for
    clients: it may name servers and processes."""

    status: int
    type: str
    title: str
    members: tuple[str, ...] = ()
    detail: str | None = None


_KINDS: Final[Mapping[type[EventStoreError], _Kind]] = {
    WrongExpectedVersionError: _Kind(
        409,
        "wrong-expected-version",
        "The stream is at another version",
        ("stream", "expected", "actual"),
    ),
    StreamNotFoundError: _Kind(
        404, "stream-not-found", "There is no such stream", ("stream", "when")
    ),
    StreamDeletedError: _Kind(410, "stream-deleted", "The stream was deleted", ("stream",)),
    EventTooLargeError: _Kind(
        413, "event-too-large", "The event is too large", ("event_type", "size", "limit")
    ),
    InvalidEventError: _Kind(
        422, "invalid-event", "The event cannot be recorded", ("event_type", "reason")
    ),
    InvalidArgumentError: _Kind(
        422, "invalid-argument", "An argument makes no sense", ("argument", "value")
    ),
    InvalidNameError: _Kind(422, "invalid-name", "That cannot be a name", ("name", "reason")),
    InvalidTimeError: _Kind(422, "invalid-time", "That is no moment", ("value",)),
    IdempotencyKeyReusedError: _Kind(
        422,
        "idempotency-key-reused",
        "The idempotency key was used for another request",
        ("key", "streams", "first"),
    ),
    LogLockedError: _Kind(
        503,
        "log-locked",
        "The log is busy",
        detail="a lock was not had in time; nothing was written, a retry is safe",
    ),
    LogUnavailableError: _Kind(
        503,
        "log-unavailable",
        "The log is not available",
        ("outcome",),
        detail="the database could not be reached, or went away; if the outcome is unknown, "
        "repeat the request with the same idempotency key, or read before you repeat it",
    ),
    LogStalledError: _Kind(
        503,
        "log-stalled",
        "The end of the log is not certain yet",
        ("position",),
        detail="open transactions keep the end of the log uncertain; nothing was skipped, a "
        "retry is safe",
    ),
}


def problem(error: EventStoreError, *, types: str = TYPES, retry_after: int = 1) -> Response | None:
    """The answer to an error, or None for one that is not a client's business (then a 500).

    Its body has type, title, status, detail, and the error's data. `types` is what the types
    begin with, an address of yours where they are explained, say; `retry_after` the seconds that
    a 503 asks for.
    """
    kind = next((_KINDS[cls] for cls in type(error).__mro__ if cls in _KINDS), None)
    if kind is None:
        return None
    body = {name: _plain(getattr(error, name)) for name in kind.members} | {
        "type": types + kind.type,
        "title": kind.title,
        "status": kind.status,
        "detail": kind.detail or str(error),
    }
    return Response(
        # Escaped to ASCII: a name that was refused may hold what UTF-8 cannot.
        json.dumps(body),
        kind.status,
        {"Retry-After": str(retry_after)} if kind.status == 503 else None,
        "application/problem+json",
    )


def _plain(value: object) -> Any:
    """An attribute of an error as JSON has it."""
    if value is None or isinstance(value, (bool, int, str)):
        return value
    if isinstance(value, (tuple, list)):
        return [_plain(item) for item in value]
    if isinstance(value, datetime):
        return value.isoformat()
    return str(value)


def exception_handlers(*, types: str = TYPES, retry_after: int = 1) -> dict[Any, Handler]:
    """For `Starlette(exception_handlers=...)` and FastAPI's: the errors that have an answer.

    Any other error of the library stays one of the server's. See `problem`.
    """

    # A coroutine function, since Starlette calls any other in a thread.
    async def answer(request: Request, error: Exception) -> Response:
        assert isinstance(error, EventStoreError)
        response = problem(error, types=types, retry_after=retry_after)
        assert response is not None
        return response

    return dict.fromkeys(_KINDS, answer)
