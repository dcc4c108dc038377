"""Streams whose time is over are erased. Nobody sees them any more even before that."""

from __future__ import annotations

import asyncio
from typing import Final

from eventstore import moments
from eventstore.aio.hops import Hops
from eventstore.errors import EventStoreError
from eventstore.http.commands import Expire
from eventstore.http.committing import Committer
from eventstore.log.base import Log
from eventstore.log.resources import Resources

#: Seconds between two looks, and how many streams are erased at one.
_PAUSE: Final = 5.0
_MANY: Final = 100


async def expire(log: Log, hops: Hops, committer: Committer) -> None:
    """Erase them, for ever."""
    resources = Resources(log)
    while True:
        count = 0
        try:
            due = await hops.run(resources.due, moments.now(), _MANY)
            count = len(due)
            await asyncio.gather(*(committer.commit(Expire(path)) for path in due))
        except EventStoreError:
            pass  # the database is away, say: they are still due next time
        if count < _MANY:
            await asyncio.sleep(_PAUSE)
