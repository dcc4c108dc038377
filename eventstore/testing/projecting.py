"""What events add up to in a projection, tested without a database of your own."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping, Sequence
from datetime import datetime, timedelta
from typing import Any, Final, TypeAlias, TypeVar, overload

from sqlalchemy import Connection, Table, select

from eventstore import metadata
from eventstore.codec import recorded
from eventstore.errors import DefinitionError, InvalidArgumentError
from eventstore.event import Event, RecordedEvent, seal
from eventstore.ids import new_ids
from eventstore.log.base import EventType, Row
from eventstore.moments import to_micros
from eventstore.names import category_of, check_stream_name
from eventstore.projections.declared import owner_of
from eventstore.projections.projection import Projection
from eventstore.projections.table_projection import TableProjection
from eventstore.testing.clock import START
from eventstore.testing.memory import memory_store
from eventstore.testing.showing import alike, differing_rows

P = TypeVar("P", bound=Projection)

#: An event that has happened, with its stream and its time where these matter.
Happened: TypeAlias = Event | tuple[str, Event] | tuple[str, Event, datetime]

#: The stream of an event that is given without one.
STREAM: Final = "test/test"


@overload
def project(cls: type[P], /, *events: Happened) -> P: ...
@overload
def project(cls: type[TableProjection], /, *events: Happened) -> ReadModel: ...
def project(cls: type[P] | type[TableProjection], /, *events: Happened) -> P | ReadModel:
    """The projection of these events, which are the whole log.

        totals = project(Totals, MoneyDeposited(amount=5), MoneyDeposited(amount=2))
        assert totals.deposited == 7

        balances = project(
            Balances,
            ("account/ann", AccountOpened(owner="Ann")),
            ("account/ann", MoneyDeposited(amount=5), datetime(2026, 3, 1, tzinfo=UTC)),
        )
        assert balances.rows(Balances.accounts) == [{"account": "ann", "balance": 5}]

    An event without a stream is in "test/test". One without a time happens a second after the
    one before it; the first, at the start of 2026. A pure projection is folded without a database;
    a TableProjection's tables are built in memory. Side effects do not run.

    Raises InvalidEventError, InvalidNameError, InvalidTimeError; what a pure projection's handler
    raises; HandlerError, which says on which event a table projection's handler has failed.
    """
    if not cls.__handlers__.declared:
        raise DefinitionError(owner_of(cls), "it handles no event: declare a handler with @on")
    if issubclass(cls, TableProjection):
        return _read_model(cls, events)
    projection = cls()
    for record in _records(events):
        fold(projection, record)
        projection.position = record.position
    return projection


def fold(projection: Projection, record: RecordedEvent) -> None:
    """Apply one event of the log to a pure projection, as the store does.

    An exception of its handler passes through with a note that says where the event is.
    """
    wanted = projection.__categories__
    if wanted is not None and category_of(record.stream) not in wanted:
        return
    try:
        projection.apply(record.event, record)
    except Exception as error:
        error.add_note(
            f"while handling {record.type}, version {record.version} of {record.stream!r} "
            f"(position {record.position})"
        )
        raise


class ReadModel:
    """The tables of a projection, as its handlers have left them: see `project`."""

    def __init__(self, name: str, rows: Mapping[Table, Sequence[dict[str, Any]]]) -> None:
        self._name = name
        self._rows = rows

    def rows(self, table: Table) -> list[dict[str, Any]]:
        """The rows of a table, each as column name to value, in the order of the primary key."""
        try:
            return copy.deepcopy(list(self._rows[table]))
        except KeyError:
            known = ", ".join(str(each.name) for each in self._rows)
            raise InvalidArgumentError(
                "table", table.name, f"{self._name} has these tables: {known}"
            ) from None

    def then(self, table: Table, *rows: Mapping[str, Any]) -> ReadModel:
        """The table has exactly these rows, in any order; shows a difference column by column."""
        __tracebackhide__ = True
        found = self.rows(table)
        key = [column.name for column in table.primary_key.columns]
        if not same_rows(rows, found):
            raise AssertionError(
                f"table {table.name!r} of {self._name} has other rows than expected "
                f"(- expected, + found):\n\n{differing_rows(rows, found, key)}\n"
            )
        return self

    def __repr__(self) -> str:
        counts = ", ".join(f"{table.name}: {len(rows)} rows" for table, rows in self._rows.items())
        return f"<ReadModel {self._name} {counts}>"


def rows_of(connection: Connection, table: Table) -> list[dict[str, Any]]:
    """What a table holds, in the order of its primary key."""
    query = select(table).order_by(*table.primary_key.columns)
    return [dict(row) for row in connection.execute(query).mappings()]


def same_rows(expected: Sequence[Mapping[str, Any]], found: Sequence[Mapping[str, Any]]) -> bool:
    left = list(found)
    for row in expected:
        at = next((n for n, other in enumerate(left) if alike(dict(row), dict(other))), None)
        if at is None:
            return False
        left.pop(at)
    return not left


def _read_model(cls: type[TableProjection], events: Sequence[Happened]) -> ReadModel:
    with memory_store() as store:
        for stream, event, at in _placed(events):
            store.append(stream, event, recorded_at=at)
        with store.as_of(cls) as connection:
            rows = {table: rows_of(connection, table) for table in cls.__tables__}
    return ReadModel(cls.__name__, rows)


def _placed(events: Sequence[Happened]) -> Iterator[tuple[str, Event, datetime]]:
    """Each event with a stream and a time."""
    moment = START - timedelta(seconds=1)
    for happened in events:
        stream, event, at = STREAM, happened, None
        if isinstance(happened, tuple):
            stream, event, at = happened if len(happened) == 3 else (*happened, None)
        if not isinstance(event, Event):
            raise InvalidArgumentError(
                "events", happened, "give events, (stream, event) or (stream, event, time)"
            )
        moment = moment + timedelta(seconds=1) if at is None else at
        yield stream, event, moment


def _records(events: Sequence[Happened]) -> Iterator[RecordedEvent]:
    """The events as a log that has nothing else would give them back."""
    versions: dict[str, int] = {}
    latest: dict[str, int] = {}
    carried = metadata.current().encoded
    placed = zip(_placed(events), new_ids(len(events)), strict=True)
    for position, ((stream, event, at), id) in enumerate(placed, 1):
        version = versions[check_stream_name(stream)] = versions.get(stream, 0) + 1
        micros = latest[stream] = max(to_micros(at), latest.get(stream, to_micros(at)))
        sealed, data = seal(event)
        row = Row(position, stream, version, 0, data, carried, id, micros)
        cls = type(event)
        yield recorded(row, EventType(cls.__event_name__, cls.__event_version__), sealed)
