"""The tracer and the instruments of one store: how its spans and their links are made."""

from __future__ import annotations

import contextlib
import inspect
import threading
import time
from collections.abc import Callable, Generator, Iterable, Mapping, Sequence
from contextlib import AbstractContextManager
from pathlib import PurePath
from typing import TYPE_CHECKING, Any, Final
from uuid import UUID

import msgspec
from opentelemetry import metrics, trace
from opentelemetry.metrics import Histogram, MeterProvider
from opentelemetry.trace import Link, Span, SpanKind, Status, StatusCode, TracerProvider
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator
from sqlalchemy import Engine

from eventstore import metadata
from eventstore.errors import WrongExpectedVersionError
from eventstore.log.base import Row
from eventstore.otel.gauges import Gauges, OpenSubscriptions
from eventstore.projections.applying import described
from eventstore.store import EventStore

if TYPE_CHECKING:
    from opentelemetry.util.types import AttributeValue

_NAME: Final = "eventstore"
#: Links of a batch, at the most: as many as OpenTelemetry keeps by default.
_LINKS: Final = 128
#: Bounds of the buckets, in seconds: the default ones are meant for milliseconds.
_SECONDS: Final = (0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10)
_SIZES: Final = (1, 4, 16, 64, 256, 1000)

_traces = TraceContextTextMapPropagator()


class Telemetry:
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
        self.subscriptions = OpenSubscriptions()
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
        """Observe this store: its attributes, and how far its readers are when that is asked."""
        self.common = _database(store.engine)
        Gauges(self._meter, store, self.subscriptions, self.common)

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
                measured["error.type"] = type_of(error)
                if writes and isinstance(error, WrongExpectedVersionError):
                    conflicted(span, error)
                else:
                    self.failed(span, error)
                raise
            finally:
                if seconds is not None:
                    seconds.record(time.perf_counter() - began, measured)

    def failed(self, span: Span, error: BaseException) -> None:
        """Give a span the status of an error."""
        told: dict[str, AttributeValue] = {"exception.type": type_of(error)}
        if self._messages:
            told["exception.message"] = described(error)
        span.add_event("exception", told)
        span.set_attribute("error.type", type_of(error))
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


def conflicted(span: Span, error: WrongExpectedVersionError) -> None:
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


def type_of(error: BaseException) -> str:
    cls = type(error)
    return cls.__qualname__ if cls.__module__ == "builtins" else f"{cls.__module__}.{cls.__name__}"


def _database(engine: Engine) -> dict[str, AttributeValue]:
    """Which database, without where it is."""
    name = engine.url.database or ":memory:"
    if engine.dialect.name == "sqlite":
        name = PurePath(name).name
    return {"db.system": engine.dialect.name, "db.namespace": name}
