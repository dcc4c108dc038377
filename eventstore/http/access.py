"""Who may do what: asked before anything is looked up, so that a refusal tells nothing."""

from __future__ import annotations

import enum
import inspect
from collections.abc import Awaitable, Callable
from typing import TypeAlias

from eventstore.http.problems import Problem
from eventstore.http.requests import Request


class Operation(enum.Enum):
    """What a request does to a stream. A fork is CREATE of the new one, and READ of its source."""

    READ = "read"
    CREATE = "create"
    APPEND = "append"
    DELETE = "delete"
    SUBSCRIBE = "subscribe"


#: Says whether a request may do that to the stream of that path: true or false, or awaited.
Authorize: TypeAlias = Callable[[Request, str, Operation], bool | Awaitable[bool]]


async def check(authorize: Authorize | None, request: Request, operation: Operation) -> None:
    """Raise Problem (401 or 403) unless the request may do that to its stream."""
    await check_path(authorize, request, request.path, operation)


async def check_path(
    authorize: Authorize | None, request: Request, path: str, operation: Operation
) -> None:
    """The same for another stream, which the request concerns as well."""
    if authorize is None:
        return
    allowed = authorize(request, path, operation)
    if inspect.isawaitable(allowed):
        allowed = await allowed
    if not allowed:
        anonymous = b"authorization" not in request.headers
        raise Problem(
            401 if anonymous else 403,
            f"this request may not {operation.value} the stream {path!r}",
            {"WWW-Authenticate": "Bearer"} if anonymous else {},
        )
