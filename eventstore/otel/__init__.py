"""OpenTelemetry for one store: spans, trace context in the events' metadata, and metrics.

    from eventstore.otel import observe

    store = observe(EventStore(url))

Only the store that is given is observed, by a class of its own: the others make not one call more,
and `import eventstore` does not import OpenTelemetry. docs/observability.md lists all there is.

What leaves the process: names, ids, versions, positions, counts and types of errors. Never payloads
or URLs, and an error's message only where that is asked for.
"""

from __future__ import annotations

from typing import TypeVar, cast

from opentelemetry.metrics import MeterProvider
from opentelemetry.trace import TracerProvider

from eventstore.aio.store import AsyncEventStore
from eventstore.errors import InvalidArgumentError
from eventstore.otel.store import ObservedAsyncStore, ObservedStore, derived, observe_sync
from eventstore.otel.telemetry import Telemetry
from eventstore.store import EventStore

__all__ = ["observe"]

T = TypeVar("T", bound=EventStore | AsyncEventStore)


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

    An AsyncEventStore that was given an EventStore has that one observed too; if it was already,
    both tell the same providers. Raises InvalidArgumentError for a store that is observed already.
    """
    if isinstance(store, (ObservedStore, ObservedAsyncStore)):
        raise InvalidArgumentError("store", store, "it is observed already")
    telemetry = Telemetry(tracer_provider, meter_provider, trace_context, error_messages)
    if isinstance(store, AsyncEventStore):
        if isinstance(store._target, ObservedStore):
            telemetry = store._target._telemetry
        if store._store is not None:
            observe_sync(store._store, telemetry)
        store.__class__ = derived(ObservedAsyncStore, type(store))  # type: ignore[arg-type]  # a class can be hashed
        cast("ObservedAsyncStore", store)._telemetry = telemetry
    else:
        observe_sync(store, telemetry)
    return store
