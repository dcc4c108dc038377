"""Events that cannot be handled are parked, with what follows them, until somebody decides."""

from __future__ import annotations

from ledgers import Ledger, Moved, Renamed, balances, opened
from sqlalchemy import select, update

from eventstore import EventStore


def test_a_poison_event_is_parked_with_what_follows_in_its_stream(store: EventStore) -> None:
    opened(store, "a", "b")
    store.append("rows/a", [Moved(1), Renamed("poison"), Moved(10)])
    store.append("rows/b", [Moved(2), Renamed("Bob")])
    assert store.catch_up(Ledger) == store.head()
    assert balances(store) == {"a": 1, "b": 2}
    store.append("rows/a", Moved(100))
    store.append("rows/b", Moved(3))
    store.catch_up(Ledger)
    assert balances(store) == {"a": 1, "b": 5}
    poison, *behind = store.parked(Ledger)
    assert (poison.stream, poison.version, poison.type) == ("rows/a", 3, "rows-renamed")
    assert poison.error == "RuntimeError: no such name"
    assert poison.attempts == 2
    assert [(p.version, p.error, p.attempts) for p in behind] == [(4, None, 0), (5, None, 0)]
    assert store.status()[0].parked == 3


def test_an_event_whose_rows_break_a_constraint_is_parked(store: EventStore) -> None:
    opened(store, "a", "b")
    store.append("rows/a", [Moved(1), Moved(-5)])
    store.append("rows/b", Moved(1))
    store.append("rows/none", Moved(1))  # there is no such row
    store.catch_up(Ledger)
    store.append("rows/a", Moved(5))  # one flush with the one before, it would have made up for it
    store.catch_up(Ledger)
    assert balances(store) == {"a": 1, "b": 1}
    assert [(p.stream, p.version) for p in store.parked("rows-ledger")] == [
        ("rows/a", 3),
        ("rows/none", 1),
        ("rows/a", 4),
    ]
    errors = [p.error or "" for p in store.parked(Ledger)]
    assert "IntegrityError" in errors[0]
    assert "RowNotFoundError" in errors[1]
    with store.connect() as db:  # an event's rows are there whole or not at all
        amounts = db.scalars(select(Ledger.entries.c.amount).order_by(Ledger.entries.c.position))
        assert list(amounts) == [1, 1]


def test_parked_events_can_be_retried(store: EventStore) -> None:
    opened(store, "a", "b")
    store.append("rows/a", Moved(-5))
    store.catch_up(Ledger)
    store.append("rows/a", Moved(6))
    store.append("rows/none", Moved(1))
    store.catch_up(Ledger)
    assert balances(store) == {"a": 0, "b": 0}
    assert store.retry(Ledger) == 3
    store.catch_up(Ledger)  # nothing has changed
    assert [(p.attempts, p.retry) for p in store.parked(Ledger)] == [
        (3, False),
        (0, False),
        (3, False),
    ]
    with store.engine.begin() as db:
        db.execute(update(Ledger.accounts).values(balance=5))
    assert store.retry(Ledger, "rows/a") == 2
    store.append("rows/a", Moved(100))
    store.catch_up(Ledger)
    assert balances(store) == {"a": 106, "b": 5}  # in the order of the stream
    assert [p.stream for p in store.parked(Ledger)] == ["rows/none"]


def test_parked_events_can_be_discarded(store: EventStore) -> None:
    opened(store, "a")
    store.append("rows/a", [Renamed("poison"), Moved(1), Renamed("poison"), Moved(2)])
    store.catch_up(Ledger)
    first, *_ = store.parked(Ledger)
    assert store.discard(Ledger, first.position)
    assert not store.discard(Ledger, first.position)
    store.catch_up(Ledger)
    assert balances(store) == {"a": 1}
    assert [p.version for p in store.parked(Ledger)] == [4, 5]
    store.discard(Ledger, store.parked(Ledger)[0].position)
    store.append("rows/a", Moved(4))
    store.catch_up(Ledger)
    assert balances(store) == {"a": 7}
    assert store.parked(Ledger) == []


def test_a_deleted_streams_parked_events_have_nothing_left_to_do(store: EventStore) -> None:
    opened(store, "a")
    store.append("rows/a", [Renamed("poison"), Moved(1)])
    store.catch_up(Ledger)
    store.delete_stream("rows/a")
    store.catch_up(Ledger)
    assert len(store.parked(Ledger)) == 3
    store.retry(Ledger)
    store.catch_up(Ledger)
    assert store.parked(Ledger) == []
    assert balances(store) == {}
