"""The store in an application of Starlette or FastAPI.

    Store = Annotated[AsyncEventStore, Depends(event_store)]
    app = FastAPI(lifespan=lifespan("postgresql://..."))
    install(app)

    @app.post("/accounts/{id}/deposits")
    async def deposit(id: str, amount: int, store: Store) -> None:
        await store.transact(Account, id, Account.deposit, amount)

It needs Starlette only: `pip install 'eventstore[web]'`.
"""

from eventstore.web.correlation import MetadataMiddleware
from eventstore.web.idempotency import idempotency_key
from eventstore.web.installing import install
from eventstore.web.lifespan import event_store, lifespan
from eventstore.web.problems import exception_handlers, problem

__all__ = [
    "MetadataMiddleware",
    "event_store",
    "exception_handlers",
    "idempotency_key",
    "install",
    "lifespan",
    "problem",
]
