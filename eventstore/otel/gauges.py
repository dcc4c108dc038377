"""How far a store's followers and subscriptions are, looked up when somebody collects it."""

from __future__ import annotations

import threading
import weakref
from collections.abc import Callable, Mapping
from functools import partial
from typing import TYPE_CHECKING, Final

from opentelemetry.metrics import CallbackOptions, Meter, Observation

from eventstore import moments
from eventstore.errors import EventStoreError
from eventstore.log.base import Bounds
from eventstore.subscriptions import Subscription

if TYPE_CHECKING:
    from opentelemetry.util.types import AttributeValue

    from eventstore.aio.subscription import AsyncSubscription
    from eventstore.store import EventStore

_FOLLOWER_EVENTS: Final = "eventstore.follower.lag.events"
_FOLLOWER_TIME: Final = "eventstore.follower.lag.time"
_FOLLOWER_RATE: Final = "eventstore.follower.rate"
_OPEN: Final = "eventstore.subscriptions"
_OPEN_EVENTS: Final = "eventstore.subscription.lag.events"
_OPEN_TIME: Final = "eventstore.subscription.lag.time"

_GAUGES: Final = (
    (_FOLLOWER_EVENTS, "{event}", "Events of the log that a follower has not handled."),
    (_FOLLOWER_TIME, "s", "How long the first of these has been waiting."),
    (_FOLLOWER_RATE, "{event}/s", "Events that a follower handles a second, lately."),
    (_OPEN, "{subscription}", "Subscriptions of this process."),
    (_OPEN_EVENTS, "{event}", "Positions from the slowest subscription to the log's end."),
    (_OPEN_TIME, "s", "How long the first of these has been waiting."),
)

_Found = dict[str, list[Observation]]


class OpenSubscriptions:
    """The subscriptions of a store that are still in use. Safe for threads."""

    def __init__(self) -> None:
        self._guard = threading.Lock()
        self._known: weakref.WeakSet[Subscription | AsyncSubscription] = weakref.WeakSet()

    def add(self, subscription: Subscription | AsyncSubscription) -> None:
        """Count it until it is stopped, or forgotten."""
        with self._guard:
            self._known.add(subscription)

    def positions(self) -> list[int]:
        """Where each of them is."""
        with self._guard:
            return [each.position for each in self._known if not _is_over(each)]


def _is_over(subscription: Subscription | AsyncSubscription) -> bool:
    if isinstance(subscription, Subscription):
        return subscription._tail.stopped
    return subscription._stopped


class Gauges:
    """The observable gauges of one store, all of them read at once."""

    def __init__(
        self,
        meter: Meter,
        store: EventStore,
        subscriptions: OpenSubscriptions,
        common: Mapping[str, AttributeValue],
    ) -> None:
        self._store = weakref.ref(store)  # instruments live as long as the program
        self._subscriptions = subscriptions
        self._common = common
        self._guard = threading.Lock()
        self._found: _Found = {}
        # The first gauge that is asked for a second time begins a new collection.
        self._shown = {name for name, *_ in _GAUGES}
        for name, unit, description in _GAUGES:
            callback: Callable[[CallbackOptions], list[Observation]] = partial(self._read, name)
            meter.create_observable_gauge(name, [callback], unit, description)

    def _read(self, gauge: str, _options: CallbackOptions) -> list[Observation]:
        with self._guard:
            if gauge in self._shown:
                self._shown.clear()
                self._found = self._look()
            self._shown.add(gauge)
            return self._found.get(gauge, [])

    def _look(self) -> _Found:
        """What is to be shown; nothing while the database is away, or the store closed."""
        store = self._store()
        if store is None:
            return {}
        try:
            return self._followers(store) | self._open(store)
        except EventStoreError:
            return {}

    def _followers(self, store: EventStore) -> _Found:
        found: _Found = {_FOLLOWER_EVENTS: [], _FOLLOWER_TIME: [], _FOLLOWER_RATE: []}
        for each in store.status():
            if each.rebuild:
                continue
            labels = {
                **self._common,
                "eventstore.follower": each.follower,
                "eventstore.shard": each.shard,
            }
            found[_FOLLOWER_EVENTS].append(Observation(each.behind, labels))
            found[_FOLLOWER_TIME].append(Observation(each.lag.total_seconds(), labels))
            found[_FOLLOWER_RATE].append(Observation(each.rate, labels))
        return found

    def _open(self, store: EventStore) -> _Found:
        positions = self._subscriptions.positions()
        found = {_OPEN: [Observation(len(positions), self._common)]}
        if positions:
            slowest = min(positions)
            first = store.log.read_all(slowest, Bounds(), limit=1)
            last = store.log.read_all(slowest, Bounds(), limit=1, backwards=True)
            behind = last[0].position - slowest if last else 0
            waiting = max(0, moments.now() - first[0].recorded_at) / 1_000_000 if first else 0.0
            found[_OPEN_EVENTS] = [Observation(behind, self._common)]
            found[_OPEN_TIME] = [Observation(waiting, self._common)]
        return found
