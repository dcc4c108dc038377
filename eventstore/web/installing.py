"""Everything for an application in one call."""

from __future__ import annotations

from starlette.applications import Starlette

from eventstore.web.correlation import Adding, MetadataMiddleware
from eventstore.web.problems import TYPES, exception_handlers


def install(
    app: Starlette,
    *,
    metadata: Adding | None = None,
    types: str = TYPES,
    retry_after: int = 1,
) -> None:
    """Give a Starlette or FastAPI application the metadata of requests, and problem responses.

    Before it has begun to serve. Options are those of MetadataMiddleware and `problem`. Middleware
    that is added later lies outside of it: add one that `metadata` relies on (authentication)
    after this call.
    """
    app.add_middleware(MetadataMiddleware, metadata=metadata)
    for error, handler in exception_handlers(types=types, retry_after=retry_after).items():
        app.add_exception_handler(error, handler)
