"""The library on asyncio."""

from eventstore.aio.connection import HoppingConnection
from eventstore.aio.store import AsyncEventStore
from eventstore.aio.subscription import AsyncSubscription

__all__ = ["AsyncEventStore", "AsyncSubscription", "HoppingConnection"]
