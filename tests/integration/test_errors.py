"""Errors cross process borders, and say which event it was."""

from __future__ import annotations

import pickle
import threading
from datetime import UTC, datetime

import pytest
from purses import Deposited

import eventstore
from eventstore import (
    NO_STREAM,
    Aggregate,
    Difference,
    EventStore,
    EventStoreError,
    EventTooLargeError,
    IdempotencyKeyReusedError,
    InvalidArgumentError,
    InvalidEventError,
    InvalidNameError,
    InvalidTimeError,
    LogLockedError,
    StoreClosedError,
    StreamDeletedError,
    StreamNotFoundError,
    WrongExpectedVersionError,
    on,
)


def _errors() -> dict[str, EventStoreError]:
    corrupt = eventstore.CorruptEventError("t", "bad bytes")
    corrupt.locate("s/1", 3, 17)
    made: list[EventStoreError] = [
        eventstore.EventStoreError("plain"),
        eventstore.DefinitionError("m.C", "wrong", member="handler"),
        eventstore.EventNameTakenError("m.C", "n", "m.D"),
        InvalidEventError("t", "why"),
        EventTooLargeError("t", 10, 5),
        InvalidNameError("an id", "\x00", "control"),
        InvalidTimeError(datetime(2020, 1, 1), "naive"),
        InvalidArgumentError("limit", -1, "no"),
        InvalidArgumentError("connection", threading.Lock(), "cannot be pickled itself"),
        eventstore.StreamError("about"),
        WrongExpectedVersionError("s/1", NO_STREAM, 4),
        StreamNotFoundError("s/1", datetime(2020, 1, 1, tzinfo=UTC)),
        StreamDeletedError("s/1"),
        IdempotencyKeyReusedError("k", ("a",), ("b", "c")),
        eventstore.StoredEventError("t", "problem"),
        corrupt,
        eventstore.UnknownEventError("t"),
        eventstore.NewerEventError("t", 3, 2),
        eventstore.SchemaError(None, "2", "p"),
        eventstore.SchemaMissingError(None, "2", "p"),
        eventstore.SchemaOutdatedError("1", "2", "p"),
        eventstore.SchemaTooNewError("3", "2", "p"),
        eventstore.LogError("p"),
        LogLockedError("p"),
        eventstore.LogReadOnlyError("p"),
        eventstore.LogUnavailableError("p", "unknown"),
        eventstore.LogStalledError(5, ("process 1",), 2.0),
        StoreClosedError(),
        eventstore.CheckpointAheadError(9, 5),
        eventstore.FollowerError("about"),
        eventstore.HandlerError("Balances", "s/1", 2, 7, "t", "ValueError: no"),
        eventstore.LeaseLostError("Balances", 0, 3),
        eventstore.NotCaughtUpError("Balances", 5, 9, 1.5),
        eventstore.NotInStepError("Balances"),
        eventstore.ParkedEventsError("Balances"),
        eventstore.ProjectionChangedError("Balances", 2),
        eventstore.ProjectionOutdatedError("Balances", 1, 2),
        eventstore.RebuildDiffersError("Balances", (Difference("t", None, {"a": 1}),), True),
        eventstore.RebuildRunningError("Balances", "a worker"),
        eventstore.RowNotFoundError("balances", ("alice",)),
        eventstore.ShardsChangedError("Balances", 2, 3),
        eventstore.TableTakenError("Balances", "balances"),
    ]
    return {f"{number}-{type(error).__name__}": error for number, error in enumerate(made)}


@pytest.mark.parametrize("error", _errors().values(), ids=_errors().keys())
def test_every_error_crosses_process_borders(error: EventStoreError) -> None:
    copied = pickle.loads(pickle.dumps(error))
    assert type(copied) is type(error)
    assert str(copied) == str(error)
    assert copied.args == error.args
    for name, value in vars(error).items():
        carried = getattr(copied, name)
        assert carried == (value if name != "value" or value == carried else repr(value))


def test_every_exported_error_is_tried_for_pickling() -> None:
    exported = {
        member
        for member in vars(eventstore).values()
        if isinstance(member, type) and issubclass(member, EventStoreError)
    }
    assert exported == {type(error) for error in _errors().values()}


def test_errors_in_handlers_say_which_event(store: EventStore) -> None:
    class Picky(Aggregate, stream="store-picky/{id}"):
        @on(Deposited)
        def _deposited(self, event: Deposited) -> None:
            if event.amount < 0:
                raise RuntimeError("negative")

    store.append("store-picky/a", [Deposited(1), Deposited(-1)])
    with pytest.raises(RuntimeError) as caught:
        store.load(Picky, "a")
    assert "version 2 of 'store-picky/a'" in "".join(caught.value.__notes__)
