"""A shop's orders over HTTP, with FastAPI.

    pip install 'eventstore[web]' fastapi uvicorn
    python examples/shop_api.py                   # embedded: shop.db in this folder
    SHOP_URL=postgresql://user@host/db python examples/shop_api.py

    curl -X POST localhost:8000/orders -d '{"id": "7"}' -H 'content-type: application/json'
    curl -X POST localhost:8000/orders/7/lines -H 'content-type: application/json' \\
        -H 'Idempotency-Key: 1' -d '{"sku": "tea", "quantity": 2}'
    curl 'localhost:8000/orders/7?at=2030-01-01T00:00:00Z'
    curl -N localhost:8000/orders/7/events
    curl -X POST localhost:8000/orders/7/place -H 'If-Match: "2"'
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator
from datetime import datetime
from typing import Annotated, Any, Self

from fastapi import Depends, FastAPI, Header, HTTPException, Query, Request
from fastapi.responses import JSONResponse, StreamingResponse
from pydantic import BaseModel, Field
from starlette.requests import HTTPConnection

from eventstore import Aggregate, Event, RecordedEvent, StreamDeleted, StreamNotFoundError, on
from eventstore.aio import AsyncEventStore
from eventstore.web import event_store, idempotency_key, install, lifespan

#: Seconds after which a live answer with nothing to tell says so, which a client that has gone
#: without a word does not survive.
BREATH = 15.0


# --- the domain -----------------------------------------------------------------------------------


class OrderOpened(Event):
    pass


class LineAdded(Event):
    sku: str
    quantity: int


class OrderPlaced(Event):
    pass


class Order(Aggregate, snapshot_every=100):
    lines: dict[str, int] = {}  # noqa: RUF012 (each order has a copy)
    placed: bool = False

    @classmethod
    def open(cls, id: str) -> Self:
        order = cls(id)
        order.record(OrderOpened())
        return order

    def add_line(self, sku: str, quantity: int) -> None:
        if self.placed:
            raise OrderRefused("the order has been placed")
        self.record(LineAdded(sku=sku, quantity=quantity))

    def place(self) -> None:
        if self.placed or not self.lines:
            raise OrderRefused("an order is placed once, and with something in it")
        self.record(OrderPlaced())

    @on(LineAdded)
    def _added(self, event: LineAdded) -> None:
        self.lines[event.sku] = self.lines.get(event.sku, 0) + event.quantity

    @on(OrderPlaced)
    def _placed(self, event: OrderPlaced) -> None:
        self.placed = True


class OrderRefused(Exception):
    """The order's own rules say no."""


# --- the API --------------------------------------------------------------------------------------


class NewOrder(BaseModel):
    id: str = Field(pattern="^[A-Za-z0-9-]{1,50}$")


class Line(BaseModel):
    sku: str = Field(min_length=1, max_length=100)
    quantity: int = Field(ge=1, le=1000)


class OrderView(BaseModel):
    id: str
    version: int
    lines: dict[str, int]
    placed: bool


Store = Annotated[AsyncEventStore, Depends(event_store)]
Key = Annotated[str | None, Depends(idempotency_key)]


def expected_version(
    if_match: Annotated[str | None, Header(pattern=r'^"[1-9]\d{0,17}"$')] = None,
) -> int:
    """The version that the client has seen, from `If-Match: "3"`."""
    if if_match is None:
        raise HTTPException(428, 'say which version you have seen: If-Match: "3"')
    return int(if_match.strip('"'))


def _user(connection: HTTPConnection) -> dict[str, Any]:
    """Who asks goes along with each event. A real shop takes it from its authentication."""
    user = connection.headers.get("x-user")
    return {"user": user} if user else {}


def _view(order: Order) -> OrderView:
    return OrderView(id=order.id, version=order.version, lines=order.lines, placed=order.placed)


def make_app(url: str, *, breath: float = BREATH) -> FastAPI:
    app = FastAPI(title="Shop", lifespan=lifespan(url))
    install(app, metadata=_user)

    @app.exception_handler(OrderRefused)
    async def refused(request: Request, error: OrderRefused) -> JSONResponse:
        return JSONResponse({"detail": str(error)}, 422)

    @app.post("/orders", status_code=201)
    async def open_order(new: NewOrder, store: Store, key: Key) -> OrderView:
        """Open an order: 409 if there is one of that id."""
        order = Order.open(new.id)
        await store.save(order, idempotency_key=key and f"{new.id} {key}")
        return _view(order)

    @app.post("/orders/{id}/lines", status_code=204)
    async def add_line(id: str, line: Line, store: Store, key: Key) -> None:
        """Add to an order, whatever others do at the same time."""
        if key is None:
            await store.transact(Order, id, Order.add_line, line.sku, line.quantity)
            return
        # The order is part of the key: a client may take the same one for another order.
        key = f"{id} {key}"
        await store.transact_once(key, Order, id, Order.add_line, line.sku, line.quantity)

    @app.post("/orders/{id}/place")
    async def place(
        id: str, store: Store, version: Annotated[int, Depends(expected_version)]
    ) -> OrderView:
        """Place the order that the client has seen: 409 if it has changed since."""
        order = await store.load(Order, id, version=version)
        order.place()
        await store.save(order)
        return _view(order)

    @app.get("/orders/{id}")
    async def show(
        id: str, store: Store, at: Annotated[datetime | None, Query()] = None
    ) -> OrderView:
        """The order now, or as it was at a moment."""
        return _view(await store.load(Order, id, at=at))

    @app.get("/orders/{id}/events")
    async def events(
        id: str, store: Store, last_event_id: Annotated[int, Header(ge=0)] = 0
    ) -> StreamingResponse:
        """The order's events, and then those that come, as server-sent events.

        `Last-Event-ID` resumes, as browsers do by themselves.
        """
        stream = f"order/{id}"
        if not await store.version(stream):
            raise StreamNotFoundError(stream)
        return StreamingResponse(
            _live(store, stream, last_event_id, breath),
            media_type="text/event-stream",
            headers={"Cache-Control": "no-store", "X-Accel-Buffering": "no"},
        )

    return app


async def _live(
    store: AsyncEventStore, stream: str, after: int, breath: float
) -> AsyncIterator[str]:
    # What is there comes from the stream itself, which is short; then from the end of the log on.
    async for record in store.read(stream):
        if record.position > after:
            after = record.position
            yield _sse(record)
    async with store.subscribe(after, categories=[Order]) as subscription:
        while True:
            try:
                record = await asyncio.wait_for(anext(subscription), breath)
            except TimeoutError:
                yield ": nothing yet\n\n"
                continue
            if record.stream == stream:
                yield _sse(record)
                if isinstance(record.event, StreamDeleted):
                    return


def _sse(record: RecordedEvent) -> str:
    return f"id: {record.position}\nevent: {record.type}\ndata: {record.data.decode()}\n\n"


if __name__ == "__main__":
    import uvicorn

    # A live answer does not end by itself: the server ends those that are left after a while.
    uvicorn.run(
        make_app(os.environ.get("SHOP_URL", "sqlite:///shop.db")), timeout_graceful_shutdown=3
    )
