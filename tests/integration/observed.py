"""A tank and what follows it, observed: providers that keep in memory what they are told."""

from __future__ import annotations

from typing import Any

from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import InMemoryMetricReader
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.trace import SpanContext, format_span_id, format_trace_id
from sqlalchemy import Column, Integer, Table

from eventstore import Aggregate, Event, EventHandler, EventStore, Projection, TableProjection, on
from eventstore.otel import observe

SECRET = "a-secret-payload"


class Filled(Event, name="otel-filled"):
    liters: int
    note: str = SECRET


class Tank(Aggregate, stream="otel-tank/{id}"):
    liters: int = 0

    def fill(self, liters: int) -> None:
        self.record(Filled(liters=liters))

    @on(Filled)
    def _filled(self, event: Filled) -> None:
        self.liters += event.liters


class Total(Projection, name="otel-total"):
    liters: int = 0

    @on(Filled)
    def _filled(self, event: Filled) -> None:
        self.liters += event.liters


class Levels(TableProjection, name="otel-levels"):
    fills = Table("otel_fills", TableProjection.metadata, Column("liters", Integer))

    @on(Filled)
    def _filled(self, event: Filled) -> None:
        if event.liters < 0:
            raise ValueError(event.note)
        self.insert(self.fills, liters=event.liters)


class Alarm(EventHandler, name="otel-alarm", attempts=2, backoff=0):
    @on(Filled)
    def _filled(self, event: Filled) -> None:
        if event.liters < 0:
            raise ValueError(event.note)
        if event.liters > 100:
            self.store.append("otel-alarms/all", Filled(liters=1))


class Telemetry:
    """Providers that keep what they are told, in memory."""

    def __init__(self) -> None:
        self._spans = InMemorySpanExporter()
        self._metrics = InMemoryMetricReader()
        self.tracers = TracerProvider(shutdown_on_exit=False)
        self.tracers.add_span_processor(SimpleSpanProcessor(self._spans))
        self.meters = MeterProvider([self._metrics], shutdown_on_exit=False)
        self.tracer = self.tracers.get_tracer("a test")

    def observe(self, store: EventStore, **options: bool) -> EventStore:
        return observe(store, self.tracers, self.meters, **options)

    def spans(self, name: str | None = None) -> list[ReadableSpan]:
        """What has ended since it was cleared, in that order."""
        found = self._spans.get_finished_spans()
        return [span for span in found if name in (None, span.name)]

    def span(self, name: str) -> ReadableSpan:
        (span,) = self.spans(name)
        return span

    def clear(self) -> None:
        self._spans.clear()

    def points(self) -> dict[str, list[Any]]:
        """The data of each metric, as they are now."""
        data = self._metrics.get_metrics_data()
        if data is None:
            return {}
        return {
            metric.name: list(metric.data.data_points)
            for resource in data.resource_metrics
            for scope in resource.scope_metrics
            for metric in scope.metrics
        }

    def value(self, name: str) -> float:
        return sum(getattr(p, "value", getattr(p, "count", 0)) for p in self.points().get(name, []))


def told(span: ReadableSpan) -> dict[str, Any]:
    return dict(span.attributes or {})


def traceparent(context: SpanContext) -> str:
    ids = format_trace_id(context.trace_id), format_span_id(context.span_id)
    return f"00-{ids[0]}-{ids[1]}-{context.trace_flags:02x}"


def context_of(span: ReadableSpan) -> str:
    assert span.context is not None
    return traceparent(span.context)


def linked(span: ReadableSpan) -> list[str]:
    return [traceparent(link.context) for link in span.links]


def is_child(span: ReadableSpan, parent: ReadableSpan) -> bool:
    return (
        span.parent is not None
        and parent.context is not None
        and span.parent.span_id == parent.context.span_id
    )


def rival(store: EventStore, times: int) -> Any:
    """A command that another writer is quicker than, so many times."""
    left = [None] * times

    def fill(tank: Tank, liters: int) -> None:
        tank.fill(liters)
        if left:
            left.pop()
            store.append("otel-tank/a", Filled(liters=1))

    return fill
