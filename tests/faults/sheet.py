"""What the clients of a campaign write, and what is made of it: by the library, and by hand."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from typing import Any, NamedTuple

from operations import Put
from sqlalchemy import Column, Integer, String, Table

from eventstore import Event, EventHandler, RecordedEvent, TableProjection, on

SHEETS = "faults-sheet"
ECHOES = "faults-echo"
BUCKETS = 5


class Echoed(Event, name="echoed"):
    source: str


class Sheet(TableProjection, name="faults-sheet", categories=[SHEETS]):
    """A row a stream."""

    lines = Table(
        "faults_lines",
        TableProjection.metadata,
        Column("stream", String(60), primary_key=True),
        Column("events", Integer, nullable=False),
        Column("amount", Integer, nullable=False, index=True),
        Column("last", Integer, nullable=False),
    )

    @on(Put)
    def _put(self, event: Put, record: RecordedEvent) -> None:
        if record.version == 1:
            self.insert(
                self.lines,
                stream=record.stream,
                events=1,
                amount=event.amount,
                last=record.position,
            )
        else:
            self.add(self.lines, record.stream, events=1, amount=event.amount)
            self.update(self.lines, record.stream, last=record.position)


class Parts(TableProjection, name="faults-parts", categories=[SHEETS], shards=3):
    """A few rows, to which three workers add."""

    buckets = Table(
        "faults_buckets",
        TableProjection.metadata,
        Column("bucket", Integer, primary_key=True, autoincrement=False),
        Column("events", Integer, nullable=False, default=0),
        Column("amount", Integer, nullable=False, default=0),
    )

    @on(Put)
    def _put(self, event: Put) -> None:
        bucket = event.amount % BUCKETS
        self.put(self.buckets, bucket=bucket)
        self.add(self.buckets, bucket, events=1, amount=event.amount)


class Echo(EventHandler, name="faults-echo", categories=[SHEETS]):
    """Answers the first event of each stream: called at least once, with an effect exactly once."""

    @on(Put)
    def _put(self, event: Put, record: RecordedEvent) -> None:
        if record.version == 1:
            source = str(record.id)
            stream = f"{ECHOES}/{record.aggregate_id}"
            self.store.append(stream, Echoed(source=source), idempotency_key=f"echo {source}")


class Fold(NamedTuple):
    """What the log adds up to, by plain Python."""

    lines: list[tuple[Any, ...]]
    buckets: list[tuple[Any, ...]]
    #: The first event of each stream, and those that were echoed.
    firsts: list[str]
    echoed: list[str]


def folded(records: Iterable[RecordedEvent]) -> Fold:
    """The fold of the whole log. Nothing of the library folds here."""
    lines: dict[str, tuple[int, int, int]] = {}
    events: Counter[int] = Counter()
    amounts: Counter[int] = Counter()
    firsts, echoed = [], []
    for record in records:
        event = record.event
        if isinstance(event, Echoed):
            echoed.append(event.source)
        elif isinstance(event, Put):
            count, amount, _ = lines.get(record.stream, (0, 0, 0))
            lines[record.stream] = (count + 1, amount + event.amount, record.position)
            events[event.amount % BUCKETS] += 1
            amounts[event.amount % BUCKETS] += event.amount
            if not count:
                firsts.append(str(record.id))
    return Fold(
        [(stream, *lines[stream]) for stream in sorted(lines)],
        [(bucket, events[bucket], amounts[bucket]) for bucket in sorted(events)],
        sorted(firsts),
        sorted(echoed),
    )
