"""Observing: what nobody pays unasked, spans, metrics and failures; asyncio too."""

from __future__ import annotations

import asyncio
import gc
import weakref
from collections.abc import Iterator
from typing import Any

import pytest
from observed import (
    SECRET,
    Alarm,
    Filled,
    Levels,
    Tank,
    Telemetry,
    Total,
    context_of,
    is_child,
    linked,
    rival,
    told,
)
from opentelemetry.trace import SpanKind, StatusCode
from programs import imported_by

from eventstore import (
    EventStore,
    InvalidArgumentError,
    StreamNotFoundError,
    Write,
    WrongExpectedVersionError,
    context,
)
from eventstore.aio import AsyncEventStore
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


# --- what nobody pays unasked --------------------------------------------------------------------


def test_importing_the_library_does_not_import_opentelemetry() -> None:
    loaded = imported_by("eventstore", "eventstore.aio")
    assert "opentelemetry" not in {name.partition(".")[0] for name in loaded}


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
