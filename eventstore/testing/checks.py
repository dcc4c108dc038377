"""What must hold of an aggregate and of projections, whatever has happened: a test's assertions."""

from __future__ import annotations

import copy
from collections.abc import Iterable, Sequence
from typing import Any

import msgspec
from sqlalchemy import Connection

from eventstore.aggregate import Aggregate, blank, recorded_in_handler
from eventstore.event import Event, RecordedEvent
from eventstore.projections.projection import Projection
from eventstore.projections.table_projection import TableProjection
from eventstore.snapshots import StateCodec, state_codec
from eventstore.state import Stateful, state_fields
from eventstore.store import EventStore
from eventstore.testing.projecting import fold, rows_of, same_rows
from eventstore.testing.showing import alike, differing_events, differing_rows, differing_values

_encode = msgspec.json.Encoder(order="deterministic").encode

State = dict[str, Any]


def state_of(owner: Stateful) -> State:
    """The values of its state, which stay as they are whatever becomes of the owner."""
    return {name: copy.deepcopy(getattr(owner, name)) for name in state_fields(type(owner))}


# --- events --------------------------------------------------------------------------------------


def check_round_trip(recorded: Sequence[Event], read: Sequence[RecordedEvent]) -> None:
    """What was recorded is what the log gives back, byte for byte as well."""
    found = [record.event for record in read]
    if not alike(list(recorded), found) or list(map(_encode, recorded)) != list(
        map(_encode, found)
    ):
        raise AssertionError(
            "the log gives back other events than were recorded (- recorded, + read); a handler "
            "or a command may have changed a value that an event holds:\n\n"
            f"{differing_events(recorded, found)}\n"
        )
    for event in found:
        again = msgspec.json.decode(_encode(event), type=type(event))
        if not alike(event, again) or _encode(event) != _encode(again):
            raise AssertionError(
                f"{type(event).__name__} changes each time it is written and read "
                f"(- once, + twice):\n\n{differing_events([event], [again])}\n"
            )


# --- aggregates ----------------------------------------------------------------------------------


def replayed(cls: type[Aggregate], id: str, events: Iterable[Event]) -> list[State]:
    """The state at each version, from 0, by nothing but the handlers."""
    aggregate = blank(cls, id)
    states = [state_of(aggregate)]
    for event in events:
        _apply(aggregate, event)
        states.append(state_of(aggregate))
    return states


def _apply(aggregate: Aggregate, event: Event) -> None:
    handler = aggregate.__handlers__.find(type(event))
    if handler is not None:
        handler(aggregate, event)
    if aggregate._pending:
        raise recorded_in_handler(aggregate, type(event))


def check_state(states: Sequence[State], version: int, found: State, how: str) -> None:
    """A state is the one that a replay leads to."""
    if not alike(states[version], found):
        raise AssertionError(
            f"{how}, at version {version}, is not what a replay of its events leads to "
            f"(- replayed, + found):\n\n{differing_values(states[version], found)}\n"
        )


def check_snapshots(
    cls: type[Aggregate], id: str, events: Sequence[Event], states: Sequence[State], *, kept: bool
) -> None:
    """From a snapshot at any version, the events after it lead to each later state.

    `kept` says that the class declares snapshots: then its state has to be one that can be kept.
    """
    codec = state_codec(cls)
    for taken, state in enumerate(states):
        encoded = _snapshot(codec, cls, id, state)
        if encoded is None:
            if kept:
                raise AssertionError(
                    f"the state of {cls.__name__} {id!r} at version {taken} cannot be kept as a "
                    f"snapshot: correct the annotations of its state.\n\n"
                    f"{differing_values(state, state)}\n"
                )
            continue
        aggregate = blank(cls, id)
        codec.restore(aggregate, encoded)
        how = f"{cls.__name__} {id!r} from a snapshot at version {taken} and the events after it"
        check_state(states, taken, state_of(aggregate), how)
        for version, event in enumerate(events[taken:], taken + 1):
            _apply(aggregate, event)
            check_state(states, version, state_of(aggregate), how)


def _snapshot(codec: StateCodec, cls: type[Aggregate], id: str, state: State) -> bytes | None:
    aggregate = blank(cls, id)
    for name, value in state.items():
        setattr(aggregate, name, copy.deepcopy(value))
    return codec.encode(aggregate)


def check_loads(
    store: EventStore, classes: Iterable[type[Aggregate]], id: str, states: Sequence[State]
) -> None:
    """The store gives each version so, with snapshots and without, and `history` does too."""
    for cls in classes:
        for version in range(1, len(states)):
            loaded = store.load(cls, id, version=version)
            check_state(states, version, state_of(loaded), f"{cls.__name__} {id!r}, loaded")
        latest = store.load(cls, id)
        how = f"{cls.__name__} {id!r}, loaded without a version"
        check_state(states, latest.version, state_of(latest), how)
        for step in store.history(cls, id):
            how = f"{cls.__name__} {id!r} in its history"
            check_state(states, step.record.version, state_of(step.state), how)


# --- projections ---------------------------------------------------------------------------------


def check_projection(
    store: EventStore,
    classes: Iterable[type[Projection]],
    live: Projection,
    records: Sequence[RecordedEvent],
) -> None:
    """`project` is a fold of the log, and so is an instance that has seen the events as they came.

    `classes` are the projection as it is, and as it keeps its state now and then.
    """
    cls = type(live)
    fresh = cls()
    for record in records:
        fold(fresh, record)
    expected = state_of(fresh)
    found = {"an instance that follows the log": state_of(live)}
    for number, each in enumerate(classes):
        how = "store.project" if not number else "store.project, from a state that was kept"
        found[how] = state_of(store.project(each))
    for how, state in found.items():
        if not alike(expected, state):
            raise AssertionError(
                f"{cls.__name__}: {how} is not what a fold of the whole log leads to (- folded, "
                f"+ found); handlers may use more than their event and the state:\n\n"
                f"{differing_values(expected, state)}\n"
            )


def check_tables(store: EventStore, cls: type[TableProjection]) -> None:
    """The living tables, brought up to date, have the rows that building them anew gives."""
    store.catch_up(cls)
    parked = store.parked(cls)
    if parked:
        raise AssertionError(f"a handler of {cls.__name__} failed: {parked[0]}")
    with store.connect() as connection:
        living = _tables(connection, cls)
    with store.as_of(cls) as connection:
        rebuilt = _tables(connection, cls)
    for table, now, anew in zip(cls.__tables__, living, rebuilt, strict=True):
        if not same_rows(anew, now):
            key = [column.name for column in table.primary_key.columns]
            raise AssertionError(
                f"table {table.name!r} of {cls.__name__} has other rows than a rebuild gives "
                f"(- rebuilt, + living):\n\n{differing_rows(anew, now, key)}\n"
            )


def _tables(connection: Connection, cls: type[TableProjection]) -> list[list[dict[str, Any]]]:
    return [rows_of(connection, table) for table in cls.__tables__]
