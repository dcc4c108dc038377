"""What the kills have found, each by itself."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from databases import described, rows
from ledger import ACCOUNTS, Added, Ledger, Marks, Opened, Shares, Tally

from eventstore import EventStore
from eventstore.errors import LeaseLostError, LogLockedError
from eventstore.followers.in_step import InStep
from eventstore.log.followers import Followers
from eventstore.log.parked import ParkedEvents


def test_a_joined_append_in_step_lets_nobody_write_after_it_has_read(
    sqlite_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    with (
        EventStore(sqlite_url, in_step=[Tally]) as store,
        EventStore(sqlite_url, in_step=[Tally], lock_timeout=0.01) as other,
    ):
        other.append(f"{ACCOUNTS}/other", Opened(kind="cash"))
        original = InStep._hold

        def hold(*args: Any) -> Any:
            active = original(*args)
            monkeypatch.undo()
            with pytest.raises(LogLockedError):
                other.append(f"{ACCOUNTS}/other", Added(kind="cash", amount=1))
            return active

        monkeypatch.setattr(InStep, "_hold", hold)
        with store.connect() as connection:
            store.append(f"{ACCOUNTS}/mine", Opened(kind="gold"), connection=connection)
            connection.commit()
            assert len(rows(connection, Tally.entries)) == 2


def test_a_first_joined_append_lets_nobody_write_after_it_has_read(
    sqlite_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    with EventStore(sqlite_url) as store, EventStore(sqlite_url, lock_timeout=0.01) as other:
        other.append(f"{ACCOUNTS}/other", Opened(kind="cash"))
        original = InStep._check

        def check(*args: Any) -> None:
            original(*args)
            monkeypatch.undo()
            with pytest.raises(LogLockedError):
                other.append(f"{ACCOUNTS}/other", Added(kind="cash", amount=1))

        monkeypatch.setattr(InStep, "_check", check)
        with store.connect() as connection:
            store.append(f"{ACCOUNTS}/mine", Opened(kind="gold"), connection=connection)
            connection.commit()
        assert store.version(f"{ACCOUNTS}/mine") == 1


def test_a_rebuild_keeps_the_names_of_indexes_and_constraints(
    database_url: str, tmp_path: Path
) -> None:
    Ledger.marks = Marks(tmp_path / "marks")
    with EventStore(database_url) as store:
        store.append(f"{ACCOUNTS}/1", [Opened(kind="cash"), Added(kind="cash", amount=3)])
        for projection in (Ledger, Shares):
            store.catch_up(projection)
        whole = described(store)
        for projection in (Ledger, Shares):
            store.rebuild(projection)
        assert described(store) == whole
        assert any("ix_fault_holders_kind" in part for part in whole)


def test_positions_are_in_the_order_of_the_shards(database_url: str) -> None:
    with EventStore(database_url) as store:
        store.append(f"{ACCOUNTS}/1", Opened(kind="cash"))
        head = store.catch_up(Shares)
        followers = Followers(store.log)
        for moves, shard in enumerate((0, 0, 1)):  # which moves rows about in PostgreSQL
            lease = followers.claim(Shares.__follower__, shard, "somebody", 60)
            assert lease is not None
            with store.log.transaction() as connection:
                lease = followers.advance(connection, lease, head + moves + 1, seconds=60)
            followers.release(lease)
        with store.connect() as connection:
            connection.exec_driver_sql("ANALYZE")  # few rows: it looks at them as they lie
            connection.commit()
        assert followers.positions(Shares.__follower__) == [head + 2, head + 3, head]


@pytest.mark.parametrize("database_url", ["sqlite", "postgres"], indirect=True)
def test_an_event_is_not_to_blame_for_a_rebuild_that_has_swapped_the_tables(
    database_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    with EventStore(database_url) as store:
        store.append(f"{ACCOUNTS}/1", [Opened(kind="cash"), Added(kind="cash", amount=3)])
        (row,) = store._registered(Tally).register()
        worker = store._claimed(Tally, row, "somebody", 60)
        assert worker is not None
        store.rebuild(Tally)
        # What it is about to insert is in the new tables already.
        monkeypatch.setattr(ParkedEvents, "park", lambda *_, **__: pytest.fail("it was blamed"))
        with pytest.raises(LeaseLostError):
            worker.step(store.head())
