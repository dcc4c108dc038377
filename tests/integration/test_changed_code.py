"""Code that has changed is noticed, and what to do about it is said."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from sqlalchemy import Column, Integer, String, Table, select, update

from eventstore import (
    Event,
    EventStore,
    ProjectionChangedError,
    ProjectionOutdatedError,
    RecordedEvent,
    TableProjection,
    on,
)
from eventstore.log import tables as own


@pytest.fixture
def store() -> Iterator[EventStore]:
    """Code is compared in Python: any database will do."""
    with EventStore("sqlite://") as opened:
        yield opened


def reader(kind: str) -> type[TableProjection]:
    """A projection's code as it is, or changed in one way."""

    class Amount(Event, name="changed-amount"):
        __qualname__ = "Amount"
        value: int

    if kind == "event":

        class Amount(Event, name="changed-amount"):  # type: ignore[no-redef]
            __qualname__ = "Amount"
            value: int
            currency: str = "EUR"

    class Reader(TableProjection, name="changed-reader"):
        __qualname__ = "Reader"
        rows = Table(
            "changed_rows",
            TableProjection.metadata,
            Column("account", String, primary_key=True),
            Column("value", Integer, nullable=kind == "table"),
        )

        if kind == "handler":

            @on(Amount)
            def _amount(self, event: Amount, record: RecordedEvent) -> None:
                self.put(self.rows, account=record.aggregate_id, value=event.value + 1)

        elif kind == "names":

            @on(Amount)
            def _amount(self, happening: Amount, note: RecordedEvent) -> None:
                """A docstring, a comment and other names are no other code."""
                # A comment.
                self.put(self.rows, account=note.aggregate_id, value=happening.value)

        else:

            @on(Amount)
            def _amount(self, event: Amount, record: RecordedEvent) -> None:
                self.put(self.rows, account=record.aggregate_id, value=event.value)

        if kind == "effect":

            @on(Amount, side_effect=True)
            def _mail(self, event: Amount) -> None:
                raise NotImplementedError

    return Reader


@pytest.mark.parametrize("kind", ["handler", "table", "event"])
def test_code_that_changed_without_its_version_is_refused(store: EventStore, kind: str) -> None:
    store.catch_up(reader("as it is"))
    store.catch_up(reader("as it is"))
    changed = reader(kind)
    for start in (store.catch_up, lambda cls: store.runner(cls).run()):
        with pytest.raises(ProjectionChangedError, match=r"raise its `version`.*accept") as caught:
            start(changed)
    assert (caught.value.follower, caught.value.version) == ("changed-reader", 1)
    changed.version = 2
    with pytest.raises(ProjectionOutdatedError):
        store.catch_up(changed)
    store.rebuild(changed)
    store.catch_up(changed)


@pytest.mark.parametrize("kind", ["names", "effect"])
def test_what_makes_no_difference_to_any_row_is_no_change(store: EventStore, kind: str) -> None:
    store.catch_up(reader("as it is"))
    store.catch_up(reader(kind))


def test_changed_code_can_be_accepted(store: EventStore) -> None:
    before, after = reader("as it is"), reader("handler")
    store.catch_up(before)
    store.accept(after)
    store.catch_up(after)
    with pytest.raises(ProjectionChangedError):
        store.catch_up(before)


def test_another_version_of_python_is_not_taken_for_another_code(store: EventStore) -> None:
    cls = reader("as it is")
    store.catch_up(cls)
    stored = own.followers.c.fingerprint
    with store.log.transaction() as db:
        print_of = db.scalar(select(stored))
        assert print_of is not None
        python, _, digest = print_of.partition(":")
        db.execute(update(own.followers).values(fingerprint=f"cpython-27:{digest[::-1]}"))
    store.catch_up(cls)
    with store.connect() as db:
        assert db.scalar(select(stored)) == print_of
    with store.log.transaction() as db:
        db.execute(update(own.followers).values(fingerprint=f"{python}:{digest[::-1]}"))
    with pytest.raises(ProjectionChangedError):
        store.catch_up(cls)
