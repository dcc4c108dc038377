"""Observed stores: classes that do what a store's own does, and tell it."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable, Sequence
from datetime import datetime
from functools import cache, wraps
from typing import TYPE_CHECKING, Any, Concatenate, ParamSpec, TypeVar, cast

from opentelemetry import trace
from opentelemetry.trace import SpanKind
from sqlalchemy import Connection

from eventstore.aggregate import Aggregate
from eventstore.aio.store import AsyncEventStore, _awaited
from eventstore.aio.subscription import AsyncSubscription
from eventstore.errors import EventStoreError, WrongExpectedVersionError
from eventstore.event import Event
from eventstore.followers.follower import Follower, HandlerFollower, TableFollower
from eventstore.followers.rebuild import Progress
from eventstore.following_store import Following
from eventstore.log import base
from eventstore.log.base import ANY, Expected
from eventstore.log.followers import Checkpoint
from eventstore.otel.followers import ObservedHandler, ObservedTables
from eventstore.otel.telemetry import Telemetry
from eventstore.projections.projection import Projection
from eventstore.projections.table_projection import TableProjection
from eventstore.store import EventStore
from eventstore.stream_store import Joinable
from eventstore.streams import Cut, Receipt, Write
from eventstore.subscriptions import Subscription

if TYPE_CHECKING:
    from opentelemetry.util.types import AttributeValue

S = TypeVar("S", bound=Aggregate)
Q = TypeVar("Q", bound=Projection)
P = ParamSpec("P")
R = TypeVar("R")


class ObservedStore(EventStore):
    """What an observed store does around what it did before."""

    _telemetry: Telemetry

    def append_all(
        self,
        writes: Iterable[Write],
        *,
        idempotency_key: str | None = None,
        recorded_at: datetime | None = None,
        connection: Joinable | None = None,
    ) -> tuple[Receipt, ...]:
        writes = list(writes)
        with self._telemetry.writing("eventstore.append", [write.stream for write in writes]):
            return super().append_all(
                writes,
                idempotency_key=idempotency_key,
                recorded_at=recorded_at,
                connection=connection,
            )

    def _save(
        self,
        aggregates: Iterable[Aggregate],
        key: str | None,
        recorded_at: datetime | None,
        joined: Connection | None,
    ) -> bool:
        changed = [aggregate for aggregate in aggregates if aggregate._pending]
        if not changed:
            return True
        streams = [type(each).__stream__.stream(each.id) for each in changed]
        with self._telemetry.writing("eventstore.save", streams):
            return super()._save(changed, key, recorded_at, joined)

    def _append(
        self,
        writes: Sequence[base.Write],
        *,
        key: str | None,
        recorded_at: int | None,
        connection: Connection | None,
    ) -> tuple[base.Receipt, ...]:
        telemetry = self._telemetry
        try:
            receipts = super()._append(
                writes, key=key, recorded_at=recorded_at, connection=connection
            )
        except WrongExpectedVersionError:
            telemetry.conflicts.add(1, telemetry.common)
            raise
        events = sum(len(write.events) for write in writes)
        if key is not None and events and not self._has_written(writes, receipts, connection):
            events = 0
        telemetry.appended.add(events, telemetry.common)
        told = {"eventstore.events": events}
        if len(receipts) == 1:
            told["eventstore.version"] = receipts[0].version
            told["eventstore.position"] = receipts[0].position
        trace.get_current_span().set_attributes(told)
        return receipts

    def _has_written(
        self,
        writes: Sequence[base.Write],
        receipts: Sequence[base.Receipt],
        connection: Connection | None,
    ) -> bool:
        """Whether a keyed append wrote something: a repetition has the first one's receipts."""
        for write, receipt in zip(writes, receipts, strict=True):
            if write.events:
                with contextlib.suppress(EventStoreError):  # what was written is written
                    return self._is_ours(write, receipt, connection)
                break
        return True

    def delete_stream(self, stream: str, *, expected: Expected = ANY) -> Receipt:
        telemetry = self._telemetry
        with telemetry.span(
            "eventstore.delete", SpanKind.CLIENT, writes=True, stream=stream
        ) as span:
            try:
                receipt = super().delete_stream(stream, expected=expected)
            except WrongExpectedVersionError:
                telemetry.conflicts.add(1, telemetry.common)
                raise
            span.set_attribute("eventstore.position", receipt.position)
            return receipt

    def _fork(
        self, source: str, version: int, target: str, connection: Connection | None
    ) -> base.Receipt:
        telemetry = self._telemetry
        with telemetry.span(
            "eventstore.fork", SpanKind.CLIENT, writes=True, source=source, stream=target
        ) as span:
            receipt = super()._fork(source, version, target, connection)
            span.set_attribute("eventstore.version", receipt.version)
            span.set_attribute("eventstore.position", receipt.position)
            return receipt

    def _may_share(self, cls: type[Aggregate], *, appends: bool) -> bool:
        return False  # each has a span of its own

    def _transact(
        self, key: str | None, cls: type[S], id: str, command: Callable[[S], R]
    ) -> tuple[R, bool]:
        telemetry = self._telemetry
        stream = cls.__stream__.stream(id)
        with telemetry.span(
            "eventstore.transact", writes=True, aggregate=cls.__name__, stream=stream
        ) as span:
            attempt = 0

            def counted(aggregate: S) -> R:
                nonlocal attempt
                attempt += 1
                if attempt > 1:
                    span.add_event("eventstore.retry", {"eventstore.attempt": attempt})
                    telemetry.retries.add(
                        1, {**telemetry.common, "eventstore.operation": "transact"}
                    )
                return command(aggregate)

            try:
                return super()._transact(key, cls, id, counted)
            finally:
                span.set_attribute("eventstore.attempts", attempt)

    def load(
        self,
        cls: type[S],
        id: str,
        *,
        at: datetime | Cut | None = None,
        version: int | None = None,
        connection: Joinable | None = None,
    ) -> S:
        telemetry = self._telemetry
        labels: dict[str, AttributeValue] = {"eventstore.aggregate": cls.__name__}
        telemetry.loads.add(1, {**telemetry.common, **labels})
        with telemetry.span(
            "eventstore.load",
            SpanKind.CLIENT,
            seconds=telemetry.load_seconds,
            labels=labels,
            stream=cls.__stream__.stream(id),
        ) as span:
            aggregate = super().load(cls, id, at=at, version=version, connection=connection)
            span.set_attribute("eventstore.version", aggregate.version)
            return aggregate

    def project(self, cls: type[Q], *, at: datetime | Cut | None = None) -> Q:
        with self._telemetry.span(
            "eventstore.project", SpanKind.CLIENT, projection=cls.__follower__
        ) as span:
            projection = super().project(cls, at=at)
            span.set_attribute("eventstore.position", projection.position)
            return projection

    def catch_up(self, follower: Following) -> int:
        with self._telemetry.span(
            "eventstore.catch_up", follower=getattr(follower, "__follower__", None)
        ) as span:
            position = super().catch_up(follower)
            span.set_attribute("eventstore.position", position)
            return position

    def _claimed(
        self, follower: Following, row: Checkpoint, owner: str, seconds: float
    ) -> Follower | None:
        claimed = super()._claimed(follower, row, owner, seconds)
        if isinstance(claimed, TableFollower):
            claimed.__class__ = ObservedTables
            cast("ObservedTables", claimed)._telemetry = self._telemetry
            claimed._wants_rows = self._telemetry.trace_context  # where the traces are
        elif isinstance(claimed, HandlerFollower):
            claimed.__class__ = ObservedHandler
            cast("ObservedHandler", claimed)._telemetry = self._telemetry
        return claimed

    def subscribe(
        self,
        after: int | str = 0,
        *,
        categories: Iterable[type[Aggregate] | str] | None = None,
        types: Iterable[type[Event] | str] | None = None,
    ) -> Subscription:
        found = super().subscribe(after, categories=categories, types=types)
        self._telemetry.subscriptions.add(found)
        return found

    def rebuild(
        self,
        cls: type[TableProjection],
        *,
        verify: bool = False,
        progress: Callable[[Progress], None] | None = None,
    ) -> Progress:
        with self._telemetry.span(
            "eventstore.rebuild", follower=cls.__follower__, verify=verify
        ) as span:
            done = super().rebuild(cls, verify=verify, progress=progress)
            span.set_attribute("eventstore.events", done.events)
            span.set_attribute("eventstore.position", done.position)
            return done


def _chosen(
    operation: Callable[Concatenate[EventStore, P], R],
) -> Callable[Concatenate[EventStore, P], R]:
    """The operation of that name of the store itself, instead of that of EventStore."""

    @wraps(operation)
    def call(store: EventStore, /, *args: P.args, **kwargs: P.kwargs) -> R:
        found: R = getattr(store, operation.__name__)(*args, **kwargs)
        return found

    return call


class ObservedAsyncStore(AsyncEventStore):
    """An observed AsyncEventStore: its sync store is observed as soon as it is opened."""

    _telemetry: Telemetry

    # The others call what is observed by themselves.
    append_all = _awaited(_chosen(EventStore.append_all))
    load = _awaited(_chosen(EventStore.load))
    delete_stream = _awaited(_chosen(EventStore.delete_stream))
    project = _awaited(_chosen(EventStore.project))
    catch_up = _awaited(_chosen(EventStore.catch_up))
    rebuild = _awaited(_chosen(EventStore.rebuild))

    def subscribe(
        self,
        after: int | str = 0,
        *,
        categories: Iterable[type[Aggregate] | str] | None = None,
        types: Iterable[type[Event] | str] | None = None,
    ) -> AsyncSubscription:
        found = super().subscribe(after, categories=categories, types=types)
        self._telemetry.subscriptions.add(found)
        return found

    @property
    def sync(self) -> EventStore:
        """The sync store whose operations these are, observed."""
        store = super().sync
        with self._telemetry.opening:
            observe_sync(store, self._telemetry)
        return store


def observe_sync(store: EventStore, telemetry: Telemetry) -> None:
    if not isinstance(store, ObservedStore):
        telemetry.begin(store)
        # Last, since from here on it is asked for.
        store._telemetry = telemetry  # type: ignore[attr-defined]
        store.__class__ = derived(ObservedStore, type(store))  # type: ignore[arg-type]


@cache
def derived(mixin: type[Any], cls: type[Any]) -> type[Any]:
    """The observed class of a store's own, which may be derived from ours."""
    return type(cls.__name__, (mixin, cls), {"__module__": cls.__module__, "__doc__": cls.__doc__})
