"""OpenTelemetry: what an observed store tells, and never tells, and that nobody else pays."""

from __future__ import annotations

import ast
import asyncio
import gc
import logging
import re
import subprocess
import sys
import weakref
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import InMemoryMetricReader
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.sdk.trace.sampling import ALWAYS_OFF
from opentelemetry.trace import (
    SpanContext,
    SpanKind,
    StatusCode,
    TraceFlags,
    format_span_id,
    format_trace_id,
)
from sqlalchemy import Column, Integer, Table

import eventstore
from eventstore import (
    Aggregate,
    Event,
    EventHandler,
    EventStore,
    InvalidArgumentError,
    Projection,
    StreamNotFoundError,
    TableProjection,
    Write,
    WrongExpectedVersionError,
    context,
    on,
)
from eventstore.aio import AsyncEventStore
from eventstore.otel import observe

ROOT = Path(eventstore.__file__).parent
PAGE = (ROOT.parent / "docs" / "observability.md").read_text(encoding="utf-8")
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


@pytest.fixture
def telemetry() -> Iterator[Telemetry]:
    found = Telemetry()
    yield found
    found.tracers.shutdown()
    found.meters.shutdown()


@pytest.fixture
def store(database_url: str, telemetry: Telemetry) -> Iterator[EventStore]:
    with EventStore(database_url) as store:
        yield telemetry.observe(store)


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


# --- what nobody pays unasked --------------------------------------------------------------------


def test_importing_the_library_does_not_import_opentelemetry() -> None:
    script = "import sys, eventstore, eventstore.aio; print(*sorted(sys.modules))"
    ran = subprocess.run(
        [sys.executable, "-W", "error", "-c", script],
        capture_output=True,
        text=True,
        check=True,
        env={"PYTHONPATH": ":".join(filter(None, sys.path))},
    )
    assert "opentelemetry" not in {name.partition(".")[0] for name in ran.stdout.split()}


def test_a_store_beside_an_observed_one_stays_as_it_was(
    sqlite_url: str, telemetry: Telemetry
) -> None:
    with EventStore(sqlite_url) as observed, EventStore(sqlite_url) as other:
        telemetry.observe(observed)
        assert type(other) is EventStore
        other.append("otel-tank/a", Filled(liters=1))
        assert not telemetry.spans()
        assert dict(next(other.read("otel-tank/a")).metadata) == {}


def test_without_a_set_up_opentelemetry_all_works_and_nothing_is_added(sqlite_url: str) -> None:
    with observe(EventStore(sqlite_url)) as store:
        store.append("otel-tank/a", Filled(liters=3))
        assert store.load(Tank, "a").liters == 3
        assert store.catch_up(Alarm) == 1
        assert dict(next(store.read("otel-tank/a")).metadata) == {}


def test_observing_keeps_a_stores_own_class_and_is_for_once(
    sqlite_url: str, telemetry: Telemetry
) -> None:
    class Ours(EventStore):
        """A store of somebody's own."""

        def load(self, *args: Any, **options: Any) -> Any:
            calls.append(args)
            return super().load(*args, **options)

    calls: list[Any] = []
    with Ours(sqlite_url) as store:
        assert telemetry.observe(store) is store
        assert isinstance(store, Ours)
        assert type(store).__name__ == "Ours"
        store.append("otel-tank/a", Filled(liters=3))
        assert store.load(Tank, "a").liters == 3
        assert calls == [(Tank, "a")]
        with pytest.raises(InvalidArgumentError, match="observed already"):
            telemetry.observe(store)


def test_instruments_do_not_keep_a_store(sqlite_url: str, telemetry: Telemetry) -> None:
    store = telemetry.observe(EventStore(sqlite_url))
    store.catch_up(Alarm)
    assert "eventstore.follower.lag.events" in telemetry.points()
    store.close()
    assert telemetry.points().get("eventstore.follower.lag.events", []) == []
    reference = weakref.ref(store)
    del store
    gc.collect()
    assert reference() is None
    telemetry.points()


# --- spans ---------------------------------------------------------------------------------------


def test_an_append_is_a_span_that_says_where_and_how_many(
    store: EventStore, telemetry: Telemetry
) -> None:
    receipt = store.append("otel-tank/a", [Filled(liters=1), Filled(liters=2)])
    span = telemetry.span("eventstore.append")
    assert span.kind is SpanKind.CLIENT
    assert span.status.status_code is StatusCode.UNSET
    assert told(span) == {
        "db.system": store.engine.dialect.name,
        "db.namespace": told(span)["db.namespace"],
        "eventstore.stream": "otel-tank/a",
        "eventstore.streams": 1,
        "eventstore.events": 2,
        "eventstore.version": 2,
        "eventstore.position": receipt.position,
    }
    assert "/" not in told(span)["db.namespace"]


def test_writes_to_several_streams_are_one_span(store: EventStore, telemetry: Telemetry) -> None:
    store.append_all(Write(f"otel-tank/{n}", Filled(liters=n)) for n in range(3))
    seen = told(telemetry.span("eventstore.append"))
    assert (seen["eventstore.streams"], seen["eventstore.events"]) == (3, 3)
    assert "eventstore.stream" not in seen


def test_a_transaction_has_its_loads_and_saves_as_children(
    store: EventStore, telemetry: Telemetry
) -> None:
    store.append("otel-tank/a", Filled(liters=1))
    telemetry.clear()
    store.transact(Tank, "a", Tank.fill, 2)
    load, save, transact = telemetry.spans()
    assert [load.name, save.name] == ["eventstore.load", "eventstore.save"]
    assert is_child(load, transact)
    assert is_child(save, transact)
    assert told(load)["eventstore.version"] == 1
    assert told(load)["eventstore.aggregate"] == "Tank"
    assert told(save)["eventstore.version"] == 2
    assert told(transact)["eventstore.attempts"] == 1


def test_a_conflict_is_an_event_and_a_retry_another_and_neither_is_an_error(
    store: EventStore, telemetry: Telemetry
) -> None:
    store.append("otel-tank/a", Filled(liters=1))
    store.transact(Tank, "a", rival(store, 2), 5)
    transact = telemetry.span("eventstore.transact")
    assert [event.name for event in transact.events] == ["eventstore.retry"] * 2
    assert told(transact)["eventstore.attempts"] == 3
    saves = telemetry.spans("eventstore.save")
    assert [[event.name for event in save.events] for save in saves] == [
        ["eventstore.conflict"],
        ["eventstore.conflict"],
        [],
    ]
    assert dict(saves[0].events[0].attributes or {}) == {
        "eventstore.stream": "otel-tank/a",
        "eventstore.expected": "1",
        "eventstore.version": 2,
    }
    assert {span.status.status_code for span in telemetry.spans()} == {StatusCode.UNSET}
    assert telemetry.value("eventstore.conflicts") == 2
    assert telemetry.value("eventstore.retries") == 2
    assert telemetry.value("eventstore.events.appended") == 4


def test_a_conflict_that_its_caller_gets_is_none_of_the_traces_errors(
    store: EventStore, telemetry: Telemetry
) -> None:
    with pytest.raises(WrongExpectedVersionError):
        store.append("otel-tank/a", Filled(liters=1), expected=7)
    span = telemetry.span("eventstore.append")
    assert span.status.status_code is StatusCode.UNSET
    assert [event.name for event in span.events] == ["eventstore.conflict"]
    assert telemetry.value("eventstore.conflicts") == 1
    assert telemetry.value("eventstore.events.appended") == 0


def test_an_error_is_recorded_by_its_type(store: EventStore, telemetry: Telemetry) -> None:
    with pytest.raises(StreamNotFoundError):
        store.load(Tank, "nobody")
    span = telemetry.span("eventstore.load")
    assert span.status.status_code is StatusCode.ERROR
    assert span.status.description is None
    assert told(span)["error.type"] == "eventstore.errors.StreamNotFoundError"
    assert dict(span.events[0].attributes or {}) == {
        "exception.type": "eventstore.errors.StreamNotFoundError"
    }


def test_messages_of_errors_are_told_where_that_is_asked_for(
    sqlite_url: str, telemetry: Telemetry
) -> None:
    with EventStore(sqlite_url) as plain:
        store = telemetry.observe(plain, error_messages=True)
        with pytest.raises(StreamNotFoundError):
            store.load(Tank, "nobody")
    span = telemetry.span("eventstore.load")
    assert "otel-tank/nobody" in str(span.status.description)
    assert "otel-tank/nobody" in str(dict(span.events[0].attributes or {})["exception.message"])


def test_projecting_deleting_and_rebuilding_are_spans(
    store: EventStore, telemetry: Telemetry
) -> None:
    store.append("otel-tank/a", Filled(liters=1))
    last = store.append("otel-tank/b", Filled(liters=1)).position
    store.catch_up(Levels)
    telemetry.clear()
    assert store.project(Total).liters == 2
    store.rebuild(Levels, verify=True)
    forked = store.fork(Tank, "a", "a2")
    store.delete(Tank, "a")
    fork = told(telemetry.span("eventstore.fork"))
    assert (fork["eventstore.source"], fork["eventstore.stream"]) == ("otel-tank/a", "otel-tank/a2")
    assert fork["eventstore.version"] == forked.version == 1
    assert told(telemetry.span("eventstore.project"))["eventstore.position"] == last
    rebuild = told(telemetry.span("eventstore.rebuild"))
    assert rebuild["eventstore.follower"] == "otel-levels"
    assert (rebuild["eventstore.events"], rebuild["eventstore.verify"]) == (2, True)
    assert told(telemetry.span("eventstore.delete"))["eventstore.stream"] == "otel-tank/a"


def test_no_payload_metadata_or_url_is_told(store: EventStore, telemetry: Telemetry) -> None:
    with context(user="a-secret-user"):
        store.append("otel-tank/a", Filled(liters=-1))
        store.append("otel-tank/b", Filled(liters=500))
    store.transact(Tank, "a", Tank.fill, 7)
    store.catch_up(Alarm)
    store.catch_up(Levels)
    store.retry(Levels)
    store.append("otel-tank/b", Filled(liters=1))
    store.catch_up(Levels)
    everything = "".join(span.to_json() for span in telemetry.spans()) + repr(telemetry.points())
    assert "otel-tank/a" in everything
    for secret in (SECRET, "a-secret-user", "://", "host="):
        assert secret not in everything


# --- the trace goes along ------------------------------------------------------------------------


def test_events_carry_the_trace_that_they_were_appended_in(
    store: EventStore, telemetry: Telemetry
) -> None:
    with telemetry.tracer.start_as_current_span("a request"), context(user="ann"):
        store.append("otel-tank/a", Filled(liters=1))
        store.transact(Tank, "a", Tank.fill, 2)
    request = telemetry.span("a request")
    first, second = (record.metadata for record in store.read("otel-tank/a"))
    append, save = telemetry.span("eventstore.append"), telemetry.span("eventstore.save")
    assert dict(first) == {"user": "ann", "traceparent": context_of(append)}
    assert second["traceparent"] == context_of(save)
    assert request.context is not None
    assert append.context is not None
    assert append.context.trace_id == request.context.trace_id


def test_a_repetition_under_an_idempotency_key_is_the_same_in_another_trace(
    store: EventStore, telemetry: Telemetry
) -> None:
    first = store.append("otel-tank/a", Filled(liters=1), idempotency_key="once")
    again = store.append("otel-tank/a", Filled(liters=1), idempotency_key="once")
    assert first == again
    store.transact_once("twice", Tank, "a", Tank.fill, 2)
    store.transact_once("twice", Tank, "a", Tank.fill, 2)
    assert telemetry.value("eventstore.events.appended") == 2
    appends = telemetry.spans("eventstore.append")
    assert [told(span)["eventstore.events"] for span in appends] == [1, 0]


def test_a_handlers_call_links_to_the_append_and_its_own_appends_are_below_it(
    store: EventStore, telemetry: Telemetry
) -> None:
    store.append("otel-tank/a", Filled(liters=500))
    append = telemetry.span("eventstore.append")
    record = next(store.read("otel-tank/a"))
    telemetry.clear()
    store.catch_up(Alarm)
    handle, batch = telemetry.span("eventstore.handle"), telemetry.span("eventstore.batch")
    assert handle.kind is SpanKind.CONSUMER
    assert linked(handle) == [context_of(append)]
    assert is_child(handle, batch)
    assert is_child(batch, telemetry.span("eventstore.catch_up"))
    assert is_child(telemetry.span("eventstore.append"), handle)
    assert told(handle)["eventstore.event_id"] == str(record.id)
    assert told(handle)["eventstore.follower"] == "otel-alarm"
    assert told(batch)["eventstore.events"] == 1
    assert told(batch)["eventstore.position"] == record.position


def test_a_projections_batch_links_to_the_appends_of_its_events(
    store: EventStore, telemetry: Telemetry
) -> None:
    store.catch_up(Levels)
    for liters in range(1, 4):
        store.append("otel-tank/a", [Filled(liters=liters)] * 2)
    appends = [context_of(span) for span in telemetry.spans("eventstore.append")]
    store.catch_up(Levels)
    batches = telemetry.spans("eventstore.batch")
    assert list(dict.fromkeys(link for batch in batches for link in linked(batch))) == appends
    assert sum(told(batch)["eventstore.events"] for batch in batches) == 6
    with store.connect() as db:
        assert len(db.execute(Levels.fills.select()).all()) == 6


@pytest.mark.parametrize("value", ["nonsense", 7, None, ["00"]])
def test_what_others_call_traceparent_stops_no_follower(
    store: EventStore, telemetry: Telemetry, value: object
) -> None:
    with EventStore(store.engine) as other, context(traceparent=value):
        other.append("otel-tank/a", Filled(liters=1))
    store.catch_up(Alarm)
    assert linked(telemetry.span("eventstore.handle")) == []


def test_trace_context_can_be_left_out(sqlite_url: str, telemetry: Telemetry) -> None:
    with EventStore(sqlite_url) as plain:
        store = telemetry.observe(plain, trace_context=False)
        store.append("otel-tank/a", Filled(liters=1))
        store.catch_up(Levels)
        store.catch_up(Alarm)
        assert dict(next(store.read("otel-tank/a")).metadata) == {}
    assert telemetry.span("eventstore.append").context
    assert not any(span.links for span in telemetry.spans())


def test_a_trace_that_is_not_sampled_is_carried_as_such(
    sqlite_url: str, telemetry: Telemetry
) -> None:
    tracers = TracerProvider(sampler=ALWAYS_OFF, shutdown_on_exit=False)
    with observe(EventStore(sqlite_url), tracers, telemetry.meters) as store:
        store.append("otel-tank/a", Filled(liters=1))
        carried = next(store.read("otel-tank/a")).metadata["traceparent"]
    assert not int(carried[-2:], 16) & TraceFlags.SAMPLED


# --- failures of followers -----------------------------------------------------------------------


def test_each_attempt_of_a_handler_is_a_span_and_parking_is_told(
    store: EventStore, telemetry: Telemetry
) -> None:
    store.append("otel-tank/a", [Filled(liters=-1), Filled(liters=1)])
    store.catch_up(Alarm)
    calls = telemetry.spans("eventstore.handle")
    assert [told(call)["eventstore.attempt"] for call in calls] == [1, 2]
    assert {call.status.status_code for call in calls} == {StatusCode.ERROR}
    parked = [e for span in telemetry.spans("eventstore.batch") for e in span.events]
    assert [event.name for event in parked] == ["eventstore.parked"] * 2
    assert dict(parked[0].attributes or {})["error.type"] == "ValueError"
    assert telemetry.value("eventstore.events.parked") == 2
    assert telemetry.value("eventstore.retries") == 1
    assert telemetry.value("eventstore.handler.duration") == 2


def test_a_projection_that_parks_tells_it_and_so_does_a_retry(
    store: EventStore, telemetry: Telemetry
) -> None:
    store.append("otel-tank/a", Filled(liters=-1))
    store.append("otel-tank/b", Filled(liters=1))
    store.catch_up(Levels)
    assert telemetry.value("eventstore.events.parked") == 1
    assert store.retry(Levels) == 1
    store.append("otel-tank/b", Filled(liters=1))
    store.catch_up(Levels)
    retried = telemetry.span("eventstore.handle")
    assert retried.status.status_code is StatusCode.ERROR
    assert linked(retried) == [context_of(telemetry.spans("eventstore.append")[0])]


def test_a_runners_followers_are_observed(sqlite_url: str, telemetry: Telemetry) -> None:
    with EventStore(sqlite_url) as plain:
        store = telemetry.observe(plain)
        with store.runner(Alarm, Levels):
            position = store.append("otel-tank/a", Filled(liters=1)).position
            store.wait_for(Alarm, position)
            store.wait_for(Levels, position)
    names = {told(span)["eventstore.follower"] for span in telemetry.spans("eventstore.batch")}
    assert names == {"otel-alarm", "otel-levels"}


# --- metrics -------------------------------------------------------------------------------------


def test_gauges_show_how_far_followers_are_and_look_once_a_collection(
    store: EventStore, telemetry: Telemetry, monkeypatch: pytest.MonkeyPatch
) -> None:
    store.append("otel-tank/a", [Filled(liters=1)] * 3)
    store.catch_up(Alarm)
    store.append("otel-tank/a", [Filled(liters=1)] * 4)
    looks = []
    look = store.status
    monkeypatch.setattr(store, "status", lambda: looks.append(1) or look())
    points = telemetry.points()
    assert len(looks) == 1
    (lag,) = points["eventstore.follower.lag.events"]
    assert lag.value == 4
    assert dict(lag.attributes)["eventstore.follower"] == "otel-alarm"
    assert points["eventstore.follower.lag.time"][0].value >= 0
    assert "eventstore.follower.rate" in points
    store.append("otel-tank/a", Filled(liters=1))
    assert telemetry.value("eventstore.follower.lag.events") == 5
    assert len(looks) == 2


def test_gauges_show_how_far_the_slowest_open_subscription_is(
    store: EventStore, telemetry: Telemetry
) -> None:
    first, *_, last = (store.append("otel-tank/a", Filled(liters=1)).position for _ in range(4))
    with store.subscribe(after=first) as slow, store.subscribe() as quick:
        for _ in range(4):
            next(quick)
        assert telemetry.value("eventstore.subscriptions") == 2
        assert telemetry.value("eventstore.subscription.lag.events") == last - first
        assert telemetry.points()["eventstore.subscription.lag.time"][0].value >= 0
        for _ in range(3):
            next(slow)
        assert telemetry.value("eventstore.subscription.lag.events") == 0
    assert telemetry.value("eventstore.subscriptions") == 0
    assert "eventstore.subscription.lag.events" not in telemetry.points()


def test_durations_are_in_buckets_of_seconds(store: EventStore, telemetry: Telemetry) -> None:
    store.append("otel-tank/a", Filled(liters=1))
    store.load(Tank, "a")
    store.catch_up(Levels)
    points = telemetry.points()
    for name in ("append", "load", "batch"):
        (point,) = points[f"eventstore.{name}.duration"]
        assert point.count == 1
        assert 0.0005 in point.explicit_bounds
    assert points["eventstore.batch.size"][0].sum == 1
    assert telemetry.value("eventstore.loads") == 1


# --- asyncio -------------------------------------------------------------------------------------


@pytest.mark.parametrize("given", [False, True])
def test_an_async_store_is_observed_in_the_trace_of_its_task(
    database_url: str, telemetry: Telemetry, given: bool
) -> None:
    async def scenario(store: AsyncEventStore) -> None:
        async with store:
            with telemetry.tracer.start_as_current_span("a request"):
                await store.append("otel-tank/a", Filled(liters=1))
                await store.transact(Tank, "a", Tank.fill, 2)
                assert (await store.load(Tank, "a")).liters == 3
            assert await store.catch_up(Levels) >= 2
            await store.rebuild(Levels)
            assert (await store.project(Total)).liters == 3
            async for record in store.read("otel-tank/a"):
                assert "traceparent" in record.metadata
            async with store.subscribe() as subscription:
                assert (await anext(subscription)).stream == "otel-tank/a"
                assert telemetry.value("eventstore.subscriptions") == 1
            await store.delete(Tank, "a")

    with EventStore(database_url) as sync:
        target = sync if given or database_url == "sqlite://" else database_url
        store = observe(AsyncEventStore(target), telemetry.tracers, telemetry.meters)
        asyncio.run(scenario(store))
    request = telemetry.span("a request")
    for name in ("append", "transact"):
        assert is_child(telemetry.span(f"eventstore.{name}"), request)
    names = {span.name for span in telemetry.spans()}
    assert {"eventstore.save", "eventstore.load", "eventstore.batch"} <= names
    assert {"eventstore.project", "eventstore.rebuild", "eventstore.delete"} <= names


def test_an_async_store_on_an_observed_one_tells_the_same(
    store: EventStore, telemetry: Telemetry
) -> None:
    async def scenario() -> None:
        async with observe(AsyncEventStore(store)) as other:
            await other.append("otel-tank/a", Filled(liters=1))
            subscription = other.subscribe()
            assert telemetry.value("eventstore.subscriptions") == 1
            subscription.stop()

    asyncio.run(scenario())
    assert told(telemetry.span("eventstore.append"))["eventstore.events"] == 1


# --- what is documented --------------------------------------------------------------------------


def test_the_pages_examples_run() -> None:
    program: dict[str, Any] = {"__name__": "page"}
    for block in re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL):
        exec(compile(block, "observability.md", "exec"), program)
    record = logging.makeLogRecord({"msg": "stopped", "eventstore.owner": "me"})
    assert program["Fields"]().format(record) == "stopped {'eventstore.owner': 'me'}"
    program["store"].close()


def logged() -> Iterator[tuple[str, str, str, str]]:
    """Each call of a logger in the library: the logger, levels, message and fields."""
    for path in ROOT.rglob("*.py"):
        name = ".".join(path.relative_to(ROOT.parent).with_suffix("").parts)
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            match node:
                case ast.Call(
                    func=ast.Attribute(value=ast.Name(id="logger"), attr=level), args=arguments
                ):
                    if level == "log":
                        level, arguments = "info, warning", arguments[1:]
                    fields = [
                        ast.literal_eval(key)
                        for option in node.keywords
                        if option.arg == "extra" and isinstance(option.value, ast.Dict)
                        for key in option.value.keys
                        if key is not None
                    ]
                    shown = ", ".join(f"`{field}`" for field in fields)
                    message = ast.literal_eval(arguments[0])
                    yield name.removesuffix(".__init__"), level.upper(), message, shown


def rows(heading: str) -> list[list[str]]:
    """The rows of the table on the page whose first heading is this."""
    _, _, rest = PAGE.partition(f"\n| {heading} |")
    lines = rest.split("\n\n")[0].splitlines()[2:]
    return [[cell.strip() for cell in line.strip().strip("|").split("|")] for line in lines]


def test_the_page_lists_each_log_record_with_its_fields() -> None:
    listed = [(*(cell.strip("`") for cell in row[:3]), row[3]) for row in rows("Logger")]
    assert sorted(listed) == sorted(logged())


def test_the_page_explains_each_field_of_log_records() -> None:
    explained = {name for row in rows("Field") for name in re.findall(r"`([^`]+)`", row[0])}
    used = {name for *_, shown in logged() for name in re.findall(r"`([^`]+)`", shown)}
    assert used == explained
    assert not used & vars(logging.makeLogRecord({})).keys()


def test_the_page_lists_each_span_event_and_metric() -> None:
    names = {
        node.value
        for path in (ROOT / "otel").rglob("*.py")
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, ast.Constant)
        and isinstance(node.value, str)
        and re.fullmatch(r"eventstore\.[a-z_.]+[a-z]", node.value)
    }
    listed = {
        heading: {row[0].strip("`") for row in rows(heading)}
        for heading in ("Span", "Event", "Metric")
    }
    attributes = {
        name for name in re.findall(r"`(eventstore\.[a-z_.]+)`", PAGE) if name.count(".") == 1
    }
    assert names <= set.union(*listed.values()) | attributes
    assert set.union(*listed.values()) <= names


def test_the_page_lists_each_attribute_that_spans_have(
    store: EventStore, telemetry: Telemetry
) -> None:
    store.append("otel-tank/a", [Filled(liters=1), Filled(liters=-1)])
    store.transact(Tank, "a", rival(store, 1), 5)
    store.catch_up(Alarm)
    store.catch_up(Levels)
    store.project(Total)
    store.delete(Tank, "a")
    listed = {row[0].strip("`"): row[3] for row in rows("Span")}
    listed["eventstore.save"] += listed["eventstore.append"]
    for span in telemetry.spans():
        common = {"db.system", "db.namespace", "error.type"}
        for name in told(span).keys() - common:
            assert f"`{name}`" in listed[span.name], (span.name, name)
    metrics = {row[0].strip("`") for row in rows("Metric")}
    assert telemetry.points().keys() <= metrics
