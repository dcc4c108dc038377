"""A rebuild that fails, is interrupted or meets another leaves the living tables alone."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
from rebuilt import (
    Accounts,
    Moved,
    Sharded,
    balances,
    fail_on,
    filled,
    hook,
    is_postgres,
    leftovers,
    newer,
    untouched,
)
from sqlalchemy import Column, Integer, String, Table, insert, inspect, select, update

from eventstore import (
    EventStore,
    HandlerError,
    LeaseLostError,
    NewerEventError,
    Progress,
    RebuildRunningError,
    RecordedEvent,
    TableProjection,
    on,
)
from eventstore.followers import rebuild as rebuilding
from eventstore.followers.rebuild import Rebuild
from eventstore.log import tables as own
from eventstore.log.tables import REBUILD
from eventstore.projections.places import SHADOW


@pytest.fixture(autouse=True)
def _hook_is_reset() -> Iterator[None]:
    yield
    hook.__init__()  # type: ignore[misc]


@pytest.fixture
def postgres_store(postgres_url: str) -> Iterator[EventStore]:
    with EventStore(postgres_url) as opened:
        yield opened


@pytest.fixture
def small_batches(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rebuilding, "BATCH", 10)


def test_a_handler_that_fails_leaves_nothing_behind(store: EventStore, small_batches: None) -> None:
    filled(store, "abcdefg")
    store.catch_up(Accounts)
    before = untouched(store, Accounts)
    hook.call = fail_on("e")
    with pytest.raises(HandlerError, match="RuntimeError: no") as caught:
        store.rebuild(Accounts)
    found = caught.value
    assert (found.follower, found.stream, found.version) == ("rebuild-accounts", "rebuild/e", 2)
    (record,) = store.read("rebuild/e", after=1, limit=1)
    assert (found.position, found.event_type) == (record.position, "rebuild-moved")
    assert isinstance(found.__cause__, RuntimeError)
    assert untouched(store, Accounts) == before
    assert leftovers(store) == []
    hook.call = lambda _: None
    store.rebuild(Accounts, verify=True)


def test_an_event_that_fails_as_the_tables_are_swapped_is_the_one_to_blame(
    store: EventStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    filled(store)
    store.catch_up(Accounts)
    finish = Rebuild._finish

    def late(*args: Any) -> Any:
        with monkeypatch.context():
            monkeypatch.setattr(Rebuild, "_finish", finish)
            filled(store, "xyz")
            store.catch_up(Accounts)
            hook.call = fail_on("y")
            return finish(*args)

    monkeypatch.setattr(Rebuild, "_finish", late)
    with pytest.raises(HandlerError) as caught:
        store.rebuild(Accounts)
    assert (caught.value.stream, caught.value.version) == ("rebuild/y", 2)
    assert leftovers(store) == []
    assert len(balances(store)) == 6


def test_an_event_that_cannot_be_read_is_told_with_its_place(
    store: EventStore, small_batches: None
) -> None:
    filled(store)
    store.catch_up(Accounts)
    last = store.head() - 1
    with store.log.transaction() as db:
        db.execute(insert(own.types).values(name="rebuild-moved", version=9))
        later = db.scalar(select(own.types.c.id).where(own.types.c.version == 9))
        where = own.events.c.position == last
        db.execute(update(own.events).where(where).values(type_id=later))
    before = untouched(store, Accounts)
    with pytest.raises(NewerEventError) as caught:
        store.rebuild(Accounts)
    assert (caught.value.stream, caught.value.version) == ("rebuild/c", 4)
    assert untouched(store, Accounts) == before
    assert leftovers(store) == []


class Unique(TableProjection, name="rebuild-unique"):
    seats = Table(
        "rebuild_seats",
        TableProjection.metadata,
        Column("account", String, primary_key=True),
        Column("seat", Integer, unique=True),
    )

    @on(Moved)
    def _moved(self, event: Moved, record: RecordedEvent) -> None:
        self.put(self.seats, account=record.aggregate_id, seat=event.amount)


def test_events_that_only_fit_one_after_the_other_are_applied_so(store: EventStore) -> None:
    for id, seat in [("a", 1), ("b", 2), ("a", 3), ("b", 1), ("a", 2)]:
        store.append(f"rebuild/{id}", Moved(seat))
    store.rebuild(Unique)
    with store.as_of(Unique) as past, store.connect() as db:
        for connection in (past, db):
            rows = connection.execute(select(Unique.seats).order_by("account")).all()
            assert rows == [("a", 2), ("b", 1)]


class Stopped(Exception):
    """Somebody pulls the plug."""


def test_an_interrupted_rebuild_goes_on_or_begins_anew(
    store: EventStore, small_batches: None
) -> None:
    filled(store, "abcdefgh", moves=10)
    store.catch_up(Accounts)
    before = untouched(store, Accounts)
    reports: list[Progress] = []
    handled: list[str] = []
    hook.call = handled.append

    def stop(progress: Progress) -> None:
        reports.append(progress)
        if len(reports) == 5:
            raise Stopped

    with pytest.raises(Stopped):
        store.rebuild(Accounts, progress=stop)
    assert untouched(store, Accounts) == before
    assert [p.events for p in reports] == [10, 20, 30, 40, 50]
    first = len(handled)
    status = [s for s in store.status() if s.rebuild]
    handled.clear()
    if is_postgres(store):
        assert [(s.position, s.handled, s.owner) for s in status] == [
            (reports[-1].position, 50, None)
        ]
        progress = store.rebuild(Accounts, progress=reports.append)
        assert (progress.events, progress.started) == (88 - 50, status[0].position)
        assert len(handled) == 80 - first
    else:
        assert leftovers(store) == []
        progress = store.rebuild(Accounts)
        assert (progress.events, progress.started) == (88, 0)
        assert len(handled) == 80
    assert leftovers(store) == []
    store.rebuild(Accounts, verify=True)


@pytest.mark.parametrize("reason", ["other code", "a comparison with what is further back"])
def test_what_does_not_fit_any_more_is_begun_anew(
    postgres_store: EventStore, small_batches: None, reason: str
) -> None:
    store = postgres_store
    filled(store, "abcdefgh", moves=10)

    def stop(progress: Progress) -> None:
        if progress.events == 50:
            raise Stopped

    store.catch_up(Sharded)  # so that Accounts has not even begun
    with pytest.raises(Stopped):
        store.rebuild(Accounts, progress=stop)
    if reason == "other code":
        assert store.rebuild(newer()).events == 88
    else:
        progress = store.rebuild(Accounts, verify=True)
        assert (progress.events, progress.position) == (0, 0)
        store.catch_up(Accounts)
        assert store.rebuild(Accounts, verify=True).events == 88
    assert leftovers(store) == []
    assert len(balances(store)) == 8


def test_two_rebuilds_at_once_are_one_too_many(store: EventStore) -> None:
    filled(store)
    store.catch_up(Accounts)
    caught: list[str] = []

    def again(_: Progress) -> None:
        if not caught:
            with pytest.raises(RebuildRunningError, match="rebuild-accounts") as error:
                store.rebuild(Accounts)
            caught.append(error.value.owner)
            (status,) = (s for s in store.status() if s.rebuild)
            assert status.owner == error.value.owner

    assert store.rebuild(Accounts, progress=again).events == 12
    assert caught
    assert leftovers(store) == []


def test_who_has_lost_a_rebuild_to_another_leaves_his_tables_alone(
    postgres_store: EventStore, small_batches: None
) -> None:
    store = postgres_store
    filled(store, "abcdef")
    store.catch_up(Accounts)
    hook.call = fail_on("f")

    def lose(_: Progress) -> None:
        with store.log.transaction() as db:
            where = own.followers.c.shard == REBUILD
            db.execute(update(own.followers).where(where).values(owner="another", epoch=99))

    with pytest.raises((LeaseLostError, HandlerError)):
        store.rebuild(Accounts, progress=lose)
    (status,) = (s for s in store.status() if s.rebuild)
    assert status.owner == "another"
    with store.connect() as db:
        assert sorted(inspect(db).get_table_names(SHADOW)) == ["rebuild_accounts", "rebuild_moves"]
