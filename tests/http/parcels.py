"""Parcels, an aggregate that is read and written over HTTP as well; and who asks for them."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

from asgi import Client, client_of

from eventstore import Aggregate, Event, EventStore, on
from eventstore.http import DurableStreams


class ParcelPosted(Event):
    address: str


class ParcelMoved(Event):
    to: str
    hours: int = 0


class Parcel(Aggregate, stream="parcels/{id}/events"):
    where: str = ""
    moves: int = 0

    def post(self, address: str) -> None:
        self.record(ParcelPosted(address=address))

    def move(self, to: str, hours: int = 0) -> None:
        self.record(ParcelMoved(to=to, hours=hours))

    @on(ParcelPosted)
    def _posted(self, event: ParcelPosted) -> None:
        self.where = event.address

    @on(ParcelMoved)
    def _moved(self, event: ParcelMoved) -> None:
        self.where = event.to
        self.moves += 1


def run(store: EventStore, story: Callable[[Client], Awaitable[None]], **options: Any) -> None:
    """Let a story happen with a client of an adapter of the store."""

    async def happen() -> None:
        async with client_of(DurableStreams(store, **options)) as client:
            await story(client)

    asyncio.run(happen())


def posted(store: EventStore, id: str, address: str = "Berlin") -> None:
    parcel = Parcel(id)
    parcel.post(address)
    store.save(parcel)
