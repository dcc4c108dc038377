"""The trace goes along with the events, to whoever handles them."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from observed import Alarm, Filled, Levels, Tank, Telemetry, context_of, is_child, linked, told
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.sampling import ALWAYS_OFF
from opentelemetry.trace import SpanKind, TraceFlags

from eventstore import EventStore, context
from eventstore.otel import observe


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
