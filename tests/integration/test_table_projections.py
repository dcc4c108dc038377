"""Read models in SQL tables: exactly once with the log, and what is refused."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
from ledgers import Ignored, Ledger, Moved, Opened, Renamed, balances, opened, owners
from sqlalchemy import Column, Integer, String, Table, func, insert, select, text, update

from eventstore import (
    CheckpointAheadError,
    DefinitionError,
    EventStore,
    EventStoreError,
    LeaseLostError,
    LogUnavailableError,
    NotCaughtUpError,
    Projection,
    RecordedEvent,
    ShardsChangedError,
    TableProjection,
    TableTakenError,
    on,
)
from eventstore.log import tables
from eventstore.log.followers import Followers

# --- following -----------------------------------------------------------------------------------


def test_tables_are_made_and_brought_up_to_date(store: EventStore) -> None:
    assert store.catch_up(Ledger) == 0
    assert balances(store) == {}
    opened(store, "a", "b")
    last = store.append("rows/a", [Moved(5), Ignored(), Moved(-2), Renamed("Bob")])
    assert store.catch_up(Ledger) == last.position
    assert balances(store) == {"a": 3, "b": 0}
    assert owners(store) == {"a": "Bob", "b": "Ann"}
    store.delete_stream("rows/b")
    assert store.catch_up(Ledger) == store.head()
    assert balances(store) == {"a": 3}


def test_catching_up_again_does_nothing_twice(store: EventStore) -> None:
    opened(store, "a")
    for amount in range(1, 4):
        store.append("rows/a", Moved(amount))
        store.catch_up(Ledger)
        store.catch_up(Ledger)
    assert balances(store) == {"a": 6}
    (status,) = store.status()
    assert (status.follower, status.position, status.behind) == ("rows-ledger", store.head(), 0)
    assert status.handled == 4


def test_a_long_log_goes_in_batches(store: EventStore) -> None:
    opened(store, "a", "b")
    for _ in range(3):
        store.append("rows/a", [Moved(1)] * 900)
        store.append("rows/b", [Moved(2)] * 100)
    store.catch_up(Ledger)
    assert balances(store) == {"a": 2700, "b": 600}


def test_events_that_nobody_handles_move_the_checkpoint(store: EventStore) -> None:
    store.catch_up(Ledger)
    last = store.append("other/a", [Ignored()] * 3)
    assert store.catch_up(Ledger) == last.position
    assert store.status()[0].handled == 0


def test_many_that_catch_up_at_once_do_nothing_twice(store: EventStore) -> None:
    opened(store, "a")
    store.append("rows/a", [Moved(1)] * 500)
    with ThreadPoolExecutor(6) as threads:
        reached = list(threads.map(lambda _: store.catch_up(Ledger), range(6)))
    assert set(reached) == {store.head()}
    assert balances(store) == {"a": 500}


def test_a_failed_transaction_leaves_neither_rows_nor_checkpoint(
    store: EventStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    opened(store, "a")
    store.catch_up(Ledger)
    before = store.status()[0].position
    store.append("rows/a", Moved(5))

    def failed(*_: object, **__: object) -> None:
        raise LogUnavailableError("gone", "unknown")

    with monkeypatch.context() as patched:
        patched.setattr(Followers, "advance", failed)
        with pytest.raises(LogUnavailableError):
            store.catch_up(Ledger)
    assert balances(store) == {"a": 0}
    assert store.status()[0].position == before
    store.catch_up(Ledger)
    assert balances(store) == {"a": 5}


def test_whoever_has_lost_the_lease_cannot_write(store: EventStore) -> None:
    opened(store, "a")
    store.catch_up(Ledger)
    followers = Followers(store.log)
    (row,) = followers.find("rows-ledger")
    stale = followers.claim(row.name, 0, "one", 60)
    assert stale is not None
    assert followers.claim(row.name, 0, "two", 60) is None
    assert followers.claim(row.name, 0, "two", 60, dead="one") is not None
    with store.log.transaction() as connection, pytest.raises(LeaseLostError) as caught:
        followers.advance(connection, stale, stale.position + 1, seconds=60)
    assert (caught.value.follower, caught.value.epoch) == ("rows-ledger", stale.epoch)
    with pytest.raises(LeaseLostError):
        followers.renew(stale, 60)


def test_a_handler_may_not_be_used_by_itself() -> None:
    with pytest.raises(EventStoreError, match="outside a handler"):
        _ = Ledger().db


# --- waiting -------------------------------------------------------------------------------------


def test_a_reader_can_wait_for_what_it_wrote(store: EventStore) -> None:
    opened(store, "a")
    store.catch_up(Ledger)
    receipt = store.append("rows/a", Moved(7))
    with pytest.raises(NotCaughtUpError) as caught:
        store.wait_for(Ledger, receipt.position, timeout=0.01)
    assert caught.value.wanted == receipt.position
    assert isinstance(caught.value, TimeoutError)
    with store.runner(Ledger):
        assert store.wait_for(Ledger, receipt.position, timeout=30) >= receipt.position
        assert balances(store) == {"a": 7}
        store.append("rows/a", Moved(1))
        store.wait_for(Ledger, timeout=30)
        assert balances(store) == {"a": 8}


# --- side effects --------------------------------------------------------------------------------


class Watched(TableProjection, name="rows-watched"):
    seen = Table(
        "rows_seen", TableProjection.metadata, Column("position", Integer, primary_key=True)
    )
    told: list[int] = []  # noqa: RUF012 (what the world outside has seen)

    @on(Moved)
    def _moved(self, event: Moved, record: RecordedEvent) -> None:
        self.insert(self.seen, position=record.position)

    @on(Moved, side_effect=True)
    def _tell(self, event: Moved) -> None:
        self.told.append(event.amount)


def test_side_effects_run_as_the_log_is_followed_and_not_in_a_rebuild(store: EventStore) -> None:
    Watched.told.clear()
    store.append("rows/a", [Moved(1), Moved(2)])
    store.catch_up(Watched)
    assert Watched.told == [1, 2]
    store.append("rows/a", Moved(4))
    store.rebuild(Watched)  # up to where the effects have run, and no further
    with store.as_of(Watched) as db:
        assert db.scalar(select(func.count()).select_from(Watched.seen)) == 3
    assert Watched.told == [1, 2]
    store.append("rows/a", Moved(3))
    store.catch_up(Watched)
    assert Watched.told == [1, 2, 4, 3]
    with store.connect() as db:
        assert db.scalar(select(func.count()).select_from(Watched.seen)) == 4


def test_catching_up_goes_on_with_the_tables_of_a_rebuild(
    store: EventStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    opened(store, "a")
    store.catch_up(Ledger)
    store.append("rows/a", Moved(5))
    advance = Followers.advance
    rebuilt: list[bool] = []

    def swapped(self: Followers, *arguments: Any, **options: Any) -> Any:
        if not rebuilt:
            rebuilt.append(True)
            raise LeaseLostError("rows-ledger", 0, 1)
        return advance(self, *arguments, **options)

    monkeypatch.setattr(Followers, "advance", swapped)
    store.catch_up(Ledger)
    assert rebuilt
    assert balances(store) == {"a": 5}


# --- shards --------------------------------------------------------------------------------------


def sharded(count: int) -> type[TableProjection]:
    class Sharded(TableProjection, name="rows-sharded", shards=count):
        sums = Table(
            "rows_sums",
            TableProjection.metadata,
            Column("category", String, primary_key=True),
            Column("total", Integer, nullable=False),
        )

        @on(Opened)
        def _opened(self, event: Opened) -> None:
            self.put(self.sums, category=event.owner, total=0)

        @on(Moved)
        def _moved(self, event: Moved) -> None:
            self.add(self.sums, "all", total=event.amount)

    return Sharded


def total(store: EventStore, cls: type[TableProjection]) -> int:
    with store.connect() as db:
        return int(db.scalar(select(func.sum(cls.__tables__[0].c.total))) or 0)


def test_shards_together_handle_each_event_once(store: EventStore) -> None:
    projection = sharded(3)
    store.append("rows/first", Opened("all"))
    store.catch_up(projection)
    for number in range(20):
        store.append(f"rows/{number}", [Moved(1)] * 5)
    with store.runner(projection):
        store.wait_for(projection, timeout=30)
    assert total(store, projection) == 100
    shards = [s for s in store.status() if s.follower == "rows-sharded"]
    assert [(s.shard, s.shards) for s in shards] == [(0, 3), (1, 3), (2, 3)]
    assert sum(s.handled for s in shards) == 101
    assert all(s.handled for s in shards)


def test_the_number_of_shards_can_change_between_two_events(store: EventStore) -> None:
    store.append("rows/first", Opened("all"))
    store.catch_up(sharded(2))
    store.append("rows/a", [Moved(1)] * 3)
    store.catch_up(sharded(2))
    store.catch_up(sharded(4))
    store.append("rows/b", [Moved(1)] * 3)
    store.catch_up(sharded(4))
    store.catch_up(sharded(1))
    assert total(store, sharded(1)) == 6
    assert len(store.status()) == 1


def test_the_number_of_shards_cannot_change_in_the_middle_of_the_log(store: EventStore) -> None:
    store.append("rows/first", Opened("all"))
    store.catch_up(sharded(2))
    with store.engine.begin() as db:
        c = tables.followers.c
        db.execute(update(tables.followers).where(c.shard == 1).values(position=0))
    with pytest.raises(ShardsChangedError) as caught:
        store.catch_up(sharded(3))
    assert (caught.value.found, caught.value.required) == (2, 3)


# --- what is refused -----------------------------------------------------------------------------


def test_a_table_that_is_there_already_is_left_alone(store: EventStore) -> None:
    class Homeless(TableProjection, name="rows-homeless"):
        taken = Table(
            "rows_taken", TableProjection.metadata, Column("id", Integer, primary_key=True)
        )

        @on(Moved)
        def _moved(self, event: Moved) -> None: ...

    with store.engine.begin() as db:
        db.execute(text("CREATE TABLE rows_taken (precious INTEGER)"))
    with pytest.raises(TableTakenError) as caught:
        store.catch_up(Homeless)
    assert caught.value.table == "rows_taken"
    assert store.status() == []


def test_a_checkpoint_beyond_the_log_is_told(store: EventStore) -> None:
    store.append("rows/a", Ignored())
    store.catch_up(Ledger)
    with store.engine.begin() as db:
        db.execute(update(tables.followers).values(position=99))
    with pytest.raises(CheckpointAheadError) as caught:
        store.catch_up(Ledger)
    assert (caught.value.position, caught.value.head) == (99, 1)


def test_declarations_that_cannot_work_are_refused() -> None:
    metadata = TableProjection.metadata
    with pytest.raises(DefinitionError, match="schema"):

        class Elsewhere(TableProjection):
            rows = Table("x", metadata, Column("id", Integer, primary_key=True), schema="reports")

    with pytest.raises(DefinitionError, match="shards"):

        class Split(TableProjection, shards=0): ...

    with pytest.raises(DefinitionError, match="version"):

        class Old(TableProjection):
            version = 0

    with pytest.raises(DefinitionError, match="side_effect"):

        class Impure(Projection):
            @on(Moved, side_effect=True)
            def _moved(self, event: Moved) -> None: ...

    with pytest.raises(DefinitionError, match="belongs to"):

        class Thief(TableProjection, name="rows-ledger"): ...

    metadata.clear()


def test_a_class_that_is_made_again_takes_its_own_place(store: EventStore) -> None:
    for _ in range(2):
        assert sharded(1).__tables__[0].name == "rows_sums"
    store.append("rows/a", Opened("all"))
    store.catch_up(sharded(1))
    assert total(store, sharded(1)) == 0


def test_handlers_of_different_threads_do_not_mix(store: EventStore) -> None:
    opened(store, "a")
    started = threading.Barrier(2)

    def follow(cls: type[TableProjection]) -> None:
        started.wait()
        store.catch_up(cls)

    store.append("rows/first", Opened("all"))
    store.append("rows/a", [Moved(1)] * 50)
    projection = sharded(1)
    with ThreadPoolExecutor(2) as threads:
        list(threads.map(follow, [Ledger, projection]))
    assert balances(store)["a"] == 50
    assert total(store, projection) == 50


def test_core_statements_and_the_buffer_keep_their_order(store: EventStore) -> None:
    class Mixed(TableProjection, name="rows-mixed"):
        rows = Table(
            "rows_mixed",
            TableProjection.metadata,
            Column("id", Integer, primary_key=True),
            Column("n", Integer, nullable=False),
        )

        @on(Moved)
        def _moved(self, event: Moved) -> None:
            self.put(self.rows, id=1, n=event.amount)
            self.db.execute(update(self.rows).values(n=self.rows.c.n * 2))
            self.add(self.rows, 1, n=1)
            found = self.get(self.rows, 1)
            assert found == {"id": 1, "n": event.amount * 2 + 1}
            self.db.execute(insert(self.rows).values(id=event.amount + 10, n=found["n"]))

    store.append("rows/a", [Moved(1), Moved(2)])
    store.catch_up(Mixed)
    with store.connect() as db:
        found = db.execute(select(Mixed.rows).order_by(Mixed.rows.c.id)).all()
    assert [tuple(row) for row in found] == [(1, 5), (11, 6), (12, 5)]
