"""Followers of an observed store at work: spans of batches and of handlers' calls."""

from __future__ import annotations

import contextlib
from collections.abc import Generator, Sequence
from typing import TYPE_CHECKING

from opentelemetry import trace
from opentelemetry.trace import Link, SpanKind, Status, StatusCode
from sqlalchemy import Connection

from eventstore.followers.follower import Follower, HandlerFollower, TableFollower
from eventstore.log.base import Row
from eventstore.log.parked import ParkedRow
from eventstore.otel.telemetry import Telemetry, type_of
from eventstore.projections.feed import Page

if TYPE_CHECKING:
    from opentelemetry.util.types import AttributeValue


class ObservedFollower(Follower):
    """What the observed followers have in common."""

    _telemetry: Telemetry

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
            told["error.type"] = type_of(error)
        trace.get_current_span().add_event("eventstore.parked", told)


class ObservedTables(ObservedFollower, TableFollower):
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


class ObservedHandler(ObservedFollower, HandlerFollower):
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
