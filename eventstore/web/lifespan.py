"""One store for the life of an application, and how a request gets at it."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Callable, Mapping
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from typing import Any, TypeVar, Unpack, cast

from sqlalchemy import URL, Engine
from starlette.applications import Starlette
from starlette.requests import HTTPConnection
from starlette.types import Lifespan

from eventstore.aio import AsyncEventStore
from eventstore.aio.store import THREADS
from eventstore.errors import InvalidArgumentError
from eventstore.store import StoreOptions

App = TypeVar("App", bound=Starlette)


def lifespan(
    target: str | URL | Engine | AsyncEventStore,
    *,
    within: Lifespan[App] | None = None,
    threads: int = THREADS,
    **options: Unpack[StoreOptions],
) -> Callable[[App], AbstractAsyncContextManager[Mapping[str, Any]]]:
    """A lifespan that opens an AsyncEventStore as `app.state.event_store`, and closes it.

        app = Starlette(lifespan=lifespan("sqlite:///shop.db"))

    Takes the options of AsyncEventStore. `within` is the application's own lifespan: it is entered
    when the store is open and left before the store is closed, and what it yields is passed on.
    A store that is given itself is opened too, and closed; it has its options already, and others
    raise InvalidArgumentError. Starting fails with SchemaError or LogError where the store cannot
    be opened.
    """
    if isinstance(target, AsyncEventStore) and options:
        raise InvalidArgumentError("options", options, "give them to the AsyncEventStore")

    @asynccontextmanager
    async def living(app: App) -> AsyncGenerator[Mapping[str, Any], None]:
        if isinstance(target, AsyncEventStore):
            opening = target
        else:
            opening = AsyncEventStore(target, threads=threads, **options)
        async with opening as store:
            app.state.event_store = store
            try:
                if within is None:
                    yield _NO_STATE
                else:
                    async with within(app) as state:
                        yield _NO_STATE if state is None else state
            finally:
                del app.state.event_store

    return living


#: What a lifespan without a state yields. An empty mapping would demand of the server that it
#: knows of such states, and older ones do not.
_NO_STATE = cast("Mapping[str, Any]", None)


def event_store(connection: HTTPConnection) -> AsyncEventStore:
    """The application's store: a dependency of FastAPI, or called with Starlette's request.

        store: Annotated[AsyncEventStore, Depends(event_store)]
        store = event_store(request)

    Of a WebSocket too. Raises RuntimeError where no lifespan has opened a store.
    """
    store = getattr(connection.app.state, "event_store", None)
    if not isinstance(store, AsyncEventStore):
        raise RuntimeError(
            "this application has no open event store: give it "
            "lifespan=eventstore.web.lifespan(url), or set app.state.event_store; an application "
            "that is mounted in another one has a state of its own"
        )
    return store
