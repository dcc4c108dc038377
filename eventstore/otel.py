"""OpenTelemetry for one store: spans, trace context in the events' metadata, and metrics.

    from eventstore.otel import observe

    store = observe(EventStore(url))

Only the store that is given is observed, by a class of its own: the others make not one call more,
and `import eventstore` does not import OpenTelemetry. docs/observability.md lists all there is.

What leaves the process: names, ids, versions, positions, counts and types of errors. Never payloads
or URLs, and an error's message only where that is asked for.
"""

from __future__ import annotations

import contextlib
import inspect
import threading
import time
import weakref
from collections.abc import Callable, Generator, Iterable, Mapping, Sequence
from contextlib import AbstractContextManager
from datetime import datetime
from functools import cache, wraps
from pathlib import PurePath
from typing import TYPE_CHECKING, Any, Concatenate, Final, ParamSpec, TypeVar, cast
from uuid import UUID

import msgspec
from opentelemetry import metrics, trace
from opentelemetry.metrics import CallbackOptions, Histogram, MeterProvider, Observation
from opentelemetry.trace import Link, Span, SpanKind, Status, StatusCode, TracerProvider
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator
from sqlalchemy import Connection, Engine

from eventstore import metadata
from eventstore.aggregate import Aggregate
from eventstore.aio.store import AsyncEventStore, _awaited
from eventstore.errors import (
    EventStoreError,
    InvalidArgumentError,
    WrongExpectedVersionError,
)
from eventstore.followers.follower import Follower, HandlerFollower, TableFollower
from eventstore.followers.rebuild import Progress
from eventstore.followers.status import FollowerStatus
from eventstore.following_store import Following
from eventstore.log import base
from eventstore.log.base import ANY, Expected, Row
from eventstore.log.followers import Checkpoint
from eventstore.log.parked import ParkedRow
from eventstore.projections.applying import described
from eventstore.projections.feed import Page
from eventstore.projections.projection import Projection
from eventstore.projections.table_projection import TableProjection
from eventstore.store import EventStore
from eventstore.stream_store import Joinable
from eventstore.streams import Cut, Receipt, Write

if TYPE_CHECKING:
    from opentelemetry.util.types import AttributeValue

T = TypeVar("T", bound=EventStore | AsyncEventStore)
S = TypeVar("S", bound=Aggregate)
Q = TypeVar("Q", bound=Projection)
P = ParamSpec("P")
R = TypeVar("R")

_NAME: Final = "eventstore"
#: Links of a batch, at the most: as many as OpenTelemetry keeps by default.
_LINKS: Final = 128
#: Bounds of the buckets, in seconds: the default ones are meant for milliseconds.
_SECONDS: Final = (0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10)
_SIZES: Final = (1, 4, 16, 64, 256, 1000)

_traces = TraceContextTextMapPropagator()


def observe(
    store: T,
    tracer_provider: TracerProvider | None = None,
    meter_provider: MeterProvider | None = None,
    *,
    trace_context: bool = True,
    error_messages: bool = False,
) -> T:
    """Have a store tell OpenTelemetry what it does; the same store.

    The providers are the global ones where none are given. Call it before the store is used, and
    once: then runners, and handlers' own appends, are observed too.

    - `trace_context`: whether new events carry the trace that they were appended in, as the W3C
      `traceparent` (and `tracestate`) in their metadata, and whoever handles them links to it.
    - `error_messages`: whether spans tell the first line of an error's message beside its type.
      A handler's message may hold what was in an event.

    An AsyncEventStore that was given an EventStore has that one observed too. Raises
    InvalidArgumentError for a store that is observed already.
    """
    if isinstance(store, (_Observed, _AsyncObserved)):
        raise InvalidArgumentError("store", store, "it is observed already")
    telemetry = _Telemetry(tracer_provider, meter_provider, trace_context, error_messages)
    if isinstance(store, AsyncEventStore):
        if store._store is not None:
            _observe(store._store, telemetry)
        store.__class__ = _derived(_AsyncObserved, type(store))  # type: ignore[arg-type]  # a class can be hashed
        cast("_AsyncObserved", store)._telemetry = telemetry
    else:
        _observe(store, telemetry)
    return store


def _observe(store: EventStore, telemetry: _Telemetry) -> None:
    if not isinstance(store, _Observed):
        telemetry.begin(store)
        # Last, since from here on it is asked for.
        store._telemetry = telemetry  # type: ignore[attr-defined]
        store.__class__ = _derived(_Observed, type(store))  # type: ignore[arg-type]


@cache
def _derived(mixin: type[Any], cls: type[Any]) -> type[Any]:
    """The observed class of a store's own, which may be derived from ours."""
    return type(cls.__name__, (mixin, cls), {"__module__": cls.__module__, "__doc__": cls.__doc__})


class _Telemetry:
    """The tracer and the instruments of one store."""

    def __init__(
        self,
        tracer_provider: TracerProvider | None,
        meter_provider: MeterProvider | None,
        trace_context: bool,
        error_messages: bool,
    ) -> None:
        self._tracer = trace.get_tracer(_NAME, tracer_provider=tracer_provider)
        self._meter = meter = metrics.get_meter(_NAME, meter_provider=meter_provider)
        self.trace_context = trace_context
        self._messages = error_messages
        self.common: dict[str, AttributeValue] = {}
        self.opening = threading.Lock()
        self.appended = meter.create_counter(
            "eventstore.events.appended", "{event}", "Events written to the log."
        )
        self.loads = meter.create_counter("eventstore.loads", "{load}", "Aggregates loaded.")
        self.conflicts = meter.create_counter(
            "eventstore.conflicts", "{conflict}", "Writes refused since another writer was first."
        )
        self.retries = meter.create_counter(
            "eventstore.retries", "{retry}", "Commands and handlers that were called again."
        )
        self.parked = meter.create_counter(
            "eventstore.events.parked", "{event}", "Events set aside by followers."
        )
        self.append_seconds = self._histogram(
            "eventstore.append.duration", "s", "An append or a save.", _SECONDS
        )
        self.load_seconds = self._histogram(
            "eventstore.load.duration", "s", "A load of one aggregate.", _SECONDS
        )
        self.handler_seconds = self._histogram(
            "eventstore.handler.duration", "s", "One call of an event handler.", _SECONDS
        )
        self.batch_seconds = self._histogram(
            "eventstore.batch.duration", "s", "A follower's batch, without reading it.", _SECONDS
        )
        self.batch_size = self._histogram(
            "eventstore.batch.size", "{event}", "Events of a follower's batch.", _SIZES
        )

    def _histogram(
        self, name: str, unit: str, description: str, bounds: Sequence[float]
    ) -> Histogram:
        create: Callable[..., Histogram] = self._meter.create_histogram
        hint = "explicit_bucket_boundaries_advisory"  # older versions do not take it
        known = hint in inspect.signature(create).parameters
        return create(name, unit, description, **({hint: bounds} if known else {}))

    def begin(self, store: EventStore) -> None:
        """Observe this store: its attributes, and how far its followers are when that is asked."""
        self.common = _database(store.engine)
        statuses = _Statuses(store)
        for name, unit, description, value in _GAUGES:
            self._meter.create_observable_gauge(
                name, [self._reader(statuses, name, value)], unit, description
            )

    def _reader(
        self, statuses: _Statuses, name: str, value: Callable[[FollowerStatus], float]
    ) -> Callable[[CallbackOptions], list[Observation]]:
        def read(_options: CallbackOptions) -> list[Observation]:
            return [
                Observation(
                    value(each),
                    {
                        **self.common,
                        "eventstore.follower": each.follower,
                        "eventstore.shard": each.shard,
                    },
                )
                for each in statuses.read(name)
            ]

        return read

    # --- spans ---------------------------------------------------------------------------------

    @contextlib.contextmanager
    def span(
        self,
        name: str,
        kind: SpanKind = SpanKind.INTERNAL,
        *,
        links: Sequence[Link] = (),
        writes: bool = False,
        seconds: Histogram | None = None,
        labels: Mapping[str, AttributeValue] | None = None,
        **attributes: AttributeValue | None,
    ) -> Generator[Span]:
        """A span around the block, with `eventstore.` before each attribute's name.

        A conflict in what `writes` is an event and no error; any other error is one. `labels` are
        attributes of the duration too.
        """
        known = {f"eventstore.{key}": value for key, value in attributes.items()}
        measured = {**self.common, **(labels or {})}
        began = time.perf_counter()
        with self._tracer.start_as_current_span(
            name,
            kind=kind,
            attributes=measured | {k: v for k, v in known.items() if v is not None},
            links=links,
            record_exception=False,  # it would tell messages, and SQL with its parameters
            set_status_on_exception=False,
        ) as span:
            try:
                yield span
            except BaseException as error:
                measured["error.type"] = _type(error)
                if writes and isinstance(error, WrongExpectedVersionError):
                    _conflicted(span, error)
                else:
                    self.failed(span, error)
                raise
            finally:
                if seconds is not None:
                    seconds.record(time.perf_counter() - began, measured)

    def failed(self, span: Span, error: BaseException) -> None:
        """Give a span the status of an error."""
        told: dict[str, AttributeValue] = {"exception.type": _type(error)}
        if self._messages:
            told["exception.message"] = described(error)
        span.add_event("exception", told)
        span.set_attribute("error.type", _type(error))
        span.set_status(Status(StatusCode.ERROR, described(error) if self._messages else None))

    @contextlib.contextmanager
    def writing(self, name: str, streams: Sequence[str]) -> Generator[Span]:
        """The span of an append, whose trace its events carry."""
        with (
            self.span(
                name,
                SpanKind.CLIENT,
                writes=True,
                seconds=self.append_seconds,
                streams=len(streams),
                stream=streams[0] if len(streams) == 1 else None,
            ) as span,
            self._carried(),
        ):
            yield span

    def _carried(self) -> AbstractContextManager[object]:
        carrier: dict[str, str] = {}
        if self.trace_context:
            _traces.inject(carrier)
        return metadata.context(**carrier) if carrier else contextlib.nullcontext()

    def handling(
        self, follower: str, row: Row, attempt: int | None = None
    ) -> AbstractContextManager[Span]:
        """The span of one event in a handler, linked to the trace that it was appended in."""
        return self.span(
            "eventstore.handle",
            SpanKind.CONSUMER,
            links=self.links((row,)),
            seconds=self.handler_seconds,
            labels={"eventstore.follower": follower},
            stream=row.stream,
            version=row.version,
            position=row.position,
            event_id=str(UUID(bytes=row.id)),
            attempt=attempt,
        )

    def links(self, rows: Iterable[Any]) -> list[Link]:
        """Links to the traces that events were appended in, each once."""
        found: dict[bytes, Link] = {}
        if self.trace_context:
            for row in rows:
                # Most often every event of a trace has the same bytes.
                if row.metadata and row.metadata not in found and len(found) < _LINKS:
                    link = _link(row.metadata)
                    if link is not None:
                        found[row.metadata] = link
        return list(found.values())


def _conflicted(span: Span, error: WrongExpectedVersionError) -> None:
    """Tell a conflict: another writer was first, which is nobody's failure."""
    span.add_event(
        "eventstore.conflict",
        {
            "eventstore.stream": error.stream,
            "eventstore.expected": str(error.expected),
            "eventstore.version": error.actual,
        },
    )


def _link(encoded: bytes) -> Link | None:
    if b'"traceparent"' not in encoded:
        return None
    try:
        values = msgspec.json.decode(encoded)
        carrier = {k: values[k] for k in ("traceparent", "tracestate") if k in values}
        context = trace.get_current_span(_traces.extract(carrier)).get_span_context()
    except Exception:  # what others have written under that name must not stop a follower
        return None
    return Link(context) if context.is_valid else None


def _type(error: BaseException) -> str:
    cls = type(error)
    return cls.__qualname__ if cls.__module__ == "builtins" else f"{cls.__module__}.{cls.__name__}"


def _database(engine: Engine) -> dict[str, AttributeValue]:
    """Which database, without where it is."""
    name = engine.url.database or ":memory:"
    if engine.dialect.name == "sqlite":
        name = PurePath(name).name
    return {"db.system": engine.dialect.name, "db.namespace": name}


# --- the store -----------------------------------------------------------------------------------


class _Observed(EventStore):
    """What an observed store does around what it did before."""

    _telemetry: _Telemetry

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
        span = trace.get_current_span()
        span.set_attribute("eventstore.events", events)
        if len(receipts) == 1:
            span.set_attribute("eventstore.version", receipts[0].version)
            span.set_attribute("eventstore.position", receipts[0].position)
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
            claimed.__class__ = _ObservedTables
            cast("_ObservedTables", claimed)._telemetry = self._telemetry
            claimed._wants_rows = self._telemetry.trace_context  # where the traces are
        elif isinstance(claimed, HandlerFollower):
            claimed.__class__ = _ObservedHandler
            cast("_ObservedHandler", claimed)._telemetry = self._telemetry
        return claimed

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


# --- followers at work ---------------------------------------------------------------------------


class _ObservedFollower(Follower):
    """What the observed followers have in common."""

    _telemetry: _Telemetry

    @contextlib.contextmanager
    def _batch(self, page: Page, links: Sequence[Link]) -> Generator[None]:
        if not page:  # the checkpoint passes over what is not handled here
            yield
            return
        telemetry = self._telemetry
        labels: dict[str, AttributeValue] = {"eventstore.follower": self.lease.name}
        telemetry.batch_size.record(len(page), {**telemetry.common, **labels})
        with telemetry.span(
            "eventstore.batch",
            SpanKind.CONSUMER,
            links=links,
            seconds=telemetry.batch_seconds,
            labels=labels,
            shard=self.lease.shard,
            events=len(page),
        ) as span:
            try:
                yield
            finally:
                span.set_attribute("eventstore.position", self.position)

    def _park(
        self, connection: Connection, row: Row, error: Exception | None, attempts: int
    ) -> None:
        super()._park(connection, row, error, attempts)
        telemetry = self._telemetry
        name = self.lease.name
        telemetry.parked.add(1, {**telemetry.common, "eventstore.follower": name})
        told: dict[str, AttributeValue] = {
            "eventstore.stream": row.stream,
            "eventstore.version": row.version,
            "eventstore.position": row.position,
        }
        if error is not None:
            told["error.type"] = _type(error)
        trace.get_current_span().add_event("eventstore.parked", told)


class _ObservedTables(_ObservedFollower, TableFollower):
    """A projection's shard: a span a batch, since handlers only write to its tables."""

    def _handle(self, page: Page, to: int) -> None:
        links = self._telemetry.links(page) if self._wants_rows or self._waiting else []
        with self._batch(page, links):
            super()._handle(page, to)

    def _retry(self, parked: ParkedRow, row: Row) -> bool:
        with self._telemetry.handling(self.lease.name, row) as span:
            done = super()._retry(parked, row)
            if not done:
                span.set_status(Status(StatusCode.ERROR))
            return done


class _ObservedHandler(_ObservedFollower, HandlerFollower):
    """An event handler's shard: a span for each call, in that of its batch."""

    _last = -1
    _attempts = 0

    def _handle(self, page: Sequence[Row], to: int) -> None:  # type: ignore[override]
        with self._batch(page, ()):
            super()._handle(page, to)

    def _call(self, row: Row) -> None:
        telemetry = self._telemetry
        self._attempts = self._attempts + 1 if row.position == self._last else 1
        self._last = row.position
        if self._attempts > 1:
            telemetry.retries.add(1, {**telemetry.common, "eventstore.operation": "handle"})
        with telemetry.handling(self.lease.name, row, self._attempts):
            super()._call(row)


# --- how far followers are -----------------------------------------------------------------------


class _Statuses:
    """The status of a store's followers, read once for all the gauges of a collection."""

    def __init__(self, store: EventStore) -> None:
        self._store = weakref.ref(store)  # instruments live as long as the program
        self._guard = threading.Lock()
        self._found: list[FollowerStatus] = []
        self._shown: set[str] = set(_NAMES)

    def read(self, gauge: str) -> list[FollowerStatus]:
        """What is to be shown; nothing while the database is away, or the store closed."""
        with self._guard:
            if gauge in self._shown:
                self._shown.clear()
                self._found = self._look()
            self._shown.add(gauge)
            return self._found

    def _look(self) -> list[FollowerStatus]:
        store = self._store()
        try:
            return [] if store is None else [each for each in store.status() if not each.rebuild]
        except EventStoreError:
            return []


_GAUGES: Final[tuple[tuple[str, str, str, Callable[[FollowerStatus], float]], ...]] = (
    (
        "eventstore.follower.lag.events",
        "{event}",
        "Events of the log that a follower has not handled.",
        lambda status: status.behind,
    ),
    (
        "eventstore.follower.lag.time",
        "s",
        "How long the first of these has been waiting.",
        lambda status: status.lag.total_seconds(),
    ),
    (
        "eventstore.follower.rate",
        "{event}/s",
        "Events that a follower handles a second, lately.",
        lambda status: status.rate,
    ),
)
_NAMES: Final = tuple(name for name, *_ in _GAUGES)


# --- the async store -----------------------------------------------------------------------------


def _chosen(
    operation: Callable[Concatenate[EventStore, P], R],
) -> Callable[Concatenate[EventStore, P], R]:
    """The operation of that name of the store itself, instead of that of EventStore."""

    @wraps(operation)
    def call(store: EventStore, /, *args: P.args, **kwargs: P.kwargs) -> R:
        found: R = getattr(store, operation.__name__)(*args, **kwargs)
        return found

    return call


class _AsyncObserved(AsyncEventStore):
    """An observed AsyncEventStore: its sync store is observed as soon as it is opened."""

    _telemetry: _Telemetry

    # The others call what is observed by themselves.
    append_all = _awaited(_chosen(EventStore.append_all))
    load = _awaited(_chosen(EventStore.load))
    delete_stream = _awaited(_chosen(EventStore.delete_stream))
    project = _awaited(_chosen(EventStore.project))
    catch_up = _awaited(_chosen(EventStore.catch_up))
    rebuild = _awaited(_chosen(EventStore.rebuild))

    @property
    def sync(self) -> EventStore:
        """The sync store whose operations these are, observed."""
        store = super().sync
        with self._telemetry.opening:
            _observe(store, self._telemetry)
        return store
