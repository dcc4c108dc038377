"""The task that wakes subscriptions: when streams move, and when something is due.

News come from the hub, in the order of commits and at once; what nobody tells (a lease that runs
out, an attempt that is due, what another server has left) is found in the database.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Mapping
from typing import Final

from eventstore.aio.hops import Hops
from eventstore.errors import EventStoreError
from eventstore.http.committing import Committer
from eventstore.http.live import Hub
from eventstore.http.subscriptions.delivery import Failed, Webhooks, announce, is_pull
from eventstore.http.subscriptions.keys import Keys
from eventstore.http.subscriptions.ledger import Delivery, Interests, Ledger
from eventstore.http.subscriptions.tokens import token
from eventstore.log.wakes import Link

logger = logging.getLogger(__name__)

#: Seconds after which a server looks for subscriptions that others have made or left.
_SELDOM: Final = 5.0
#: Seconds between two looks at what has moved, under load.
_OFTEN: Final = 0.02
#: Seconds after which every stream is looked at whatever was heard.
_RECHECK: Final = 60.0
#: Deliveries of one server at a time: few, and slow receivers would keep the others waiting.
_MOST: Final = 256


class Waker:
    """Wakes the subscriptions of one log, on one event loop."""

    def __init__(
        self,
        ledger: Ledger,
        keys: Keys,
        hub: Hub,
        hops: Hops,
        committer: Committer,
        webhooks: Webhooks,
    ) -> None:
        self._ledger = ledger
        self._keys = keys
        self._hub = hub
        self._hops = hops
        self._committer = committer
        self._webhooks = webhooks
        self._interests = Interests()
        self._is_listening = False
        self._is_stale = True
        self._anything = False
        self._moved: set[str] = set()
        self._news = asyncio.Event()
        self._loaded = 0.0
        self._checked = 0.0
        self._waiting: list[asyncio.Future[None]] = []
        self._deliveries: set[asyncio.Task[None]] = set()
        self._running = asyncio.create_task(self._run())

    def changed(self) -> None:
        """A subscription was made or removed, or something may be due."""
        self._is_stale = True
        self._news.set()

    def due(self) -> None:
        """Something may be due."""
        self._news.set()

    async def caught_up(self) -> None:
        """Wait until what was heard of before is seen to: what this server has committed, say."""
        future = asyncio.get_running_loop().create_future()
        self._waiting.append(future)
        self._news.set()
        await future

    async def close(self) -> None:
        """End; what is under way is taken up again by whoever finds it due."""
        tasks = [self._running, *self._deliveries]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        _tell(self._waiting)
        await self._webhooks.close()

    # --- the task ------------------------------------------------------------------------------

    async def _run(self) -> None:
        while True:
            self._news.clear()
            waiting, self._waiting = self._waiting, []
            try:
                pause = await self._step()
            except EventStoreError as error:
                # The database is away, say. What was heard may be lost.
                logger.debug("subscriptions wait: %s", error)
                self._anything = True
                pause = 1.0
            except Exception:
                logger.exception("subscriptions wait, for what must not happen")
                self._anything = True
                pause = _SELDOM
            finally:
                _tell(waiting)
            if self._interests.ids:
                await asyncio.sleep(_OFTEN)
                pause -= _OFTEN
            if pause > 0:
                try:
                    async with asyncio.timeout(pause):
                        await self._news.wait()
                except TimeoutError:
                    pass

    async def _step(self) -> float:
        """Do what is to be done now; seconds until something is due."""
        await self._load()
        if not self._interests.ids:
            self._moved.clear()
            return _SELDOM
        moved, self._moved = self._moved, set()
        anything, self._anything = self._anything, False
        now = asyncio.get_running_loop().time()
        recheck = now > self._checked + _RECHECK
        if recheck or anything:
            self._checked = now
        free = _MOST - len(self._deliveries)
        due, pause = await self._hops.run(self._look, moved, anything, recheck, free)
        for delivery in due:
            task = asyncio.create_task(self._deliver(delivery))
            self._deliveries.add(task)
            task.add_done_callback(self._delivered)
        if len(self._deliveries) >= _MOST:
            return _SELDOM  # the end of one is news
        return pause

    async def _load(self) -> None:
        """Learn of subscriptions that were made elsewhere, and listen if there are any."""
        now = asyncio.get_running_loop().time()
        if not self._is_stale and now < self._loaded + _SELDOM:
            return
        self._is_stale = False
        found = await self._hops.run(self._ledger.interests)
        self._loaded = now
        if found.ids - self._interests.ids:
            self._anything = True
        self._interests = found
        if found.ids and not self._is_listening:
            self._is_listening = True
            self._hub.listen(self._heard)
        elif self._is_listening and not found.ids:
            self._is_listening = False
            self._hub.ignore(self._heard)

    def _heard(self, streams: Mapping[str, int]) -> None:
        if not self._interests.ids:
            return
        if not streams:
            self._anything = True
        # What comes after a backslash tells streams of one path apart.
        self._moved.update([name.partition("\\")[0] for name in streams])
        self._news.set()

    # --- in a worker thread ----------------------------------------------------------------------

    def _look(
        self, moved: set[str], anything: bool, recheck: bool, free: int
    ) -> tuple[list[Delivery], float]:
        if anything:
            self._ledger.look(self._interests)
        elif moved:
            self._ledger.notice(moved, self._interests)
        if recheck and not anything:
            self._ledger.recheck(self._interests)
        due = self._ledger.take(free) if free else []
        left = self._ledger.wakes.next_due()
        return due, _SELDOM if left is None else min(left / 1_000_000, _SELDOM)

    def _prepare(self, delivery: Delivery) -> tuple[list[Link], str]:
        """What a wake tells of, and the token for it."""
        links = self._ledger.contents(delivery)
        subscription = delivery.subscription
        if not links or is_pull(subscription):
            return links, ""
        now = self._ledger.wakes.now()
        return links, token(self._keys.tokens(), subscription.id, delivery.fence, now)

    # --- a delivery ----------------------------------------------------------------------------

    async def _deliver(self, delivery: Delivery) -> None:
        subscription = delivery.subscription
        links, secret = await self._hops.run(self._prepare, delivery)
        if not links:
            return
        acks = None
        try:
            if is_pull(subscription):
                await announce(self._committer, subscription, links[0].path)
            else:
                key = await self._hops.run(self._keys.signing)
                if await self._webhooks.call(delivery, links, key, secret):
                    acks = {link.path: (link.tail_incarnation, link.tail) for link in links}
        except Failed as failed:
            logger.info("subscription %r: %s; tried again later", subscription.id, failed)
            await self._hops.run(self._ledger.failed, delivery)
        else:
            await self._hops.run(self._ledger.delivered, delivery, acks)

    def _delivered(self, task: asyncio.Task[None]) -> None:
        self._deliveries.discard(task)
        self._news.set()
        if not task.cancelled() and task.exception() is not None:
            # It is due again, as if this server had died.
            logger.warning("a delivery has failed", exc_info=task.exception())


def _tell(waiting: list[asyncio.Future[None]]) -> None:
    for future in waiting:
        if not future.done():
            future.set_result(None)
