"""Comparing a living projection with its rebuild."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from rebuilt import Accounts, Moved, Opened, balances, fail_on, filled, hook, leftovers, untouched
from sqlalchemy import JSON, Column, Float, Integer, Numeric, String, Table, insert, update

from eventstore import EventStore, RebuildDiffersError, RecordedEvent, TableProjection, on


@pytest.fixture(autouse=True)
def _hook_is_reset() -> Iterator[None]:
    yield
    hook.__init__()  # type: ignore[misc]


def test_a_comparison_finds_changed_missing_and_extra_rows(store: EventStore) -> None:
    filled(store)
    store.catch_up(Accounts)
    store.rebuild(Accounts, verify=True)
    accounts, moves = Accounts.accounts, Accounts.moves
    first = store.head()
    with store.log.transaction() as db:
        db.execute(update(accounts).where(accounts.c.account == "b").values(balance=0))
        db.execute(moves.delete().where(moves.c.amount == 3))
        db.execute(accounts.delete().where(accounts.c.account == "c"))
        db.execute(insert(accounts).values(account="z", owner="Z", balance=1))
        db.execute(insert(moves).values(position=first + 1000, account="z", amount=1))
    before = untouched(store, Accounts)
    with pytest.raises(RebuildDiffersError, match="7 rows") as caught:
        store.rebuild(Accounts, verify=True)
    assert untouched(store, Accounts) == before
    assert leftovers(store) == []
    found = caught.value.differences
    c = {"account": "c", "owner": "C", "balance": 9}
    z = {"account": "z", "owner": "Z", "balance": 1}
    b = {"account": "b", "owner": "B"}
    assert [(d.living, d.rebuilt) for d in found if d.table == "rebuild_accounts"] == [
        ({**b, "balance": 0}, {**b, "balance": 6}),
        (None, c),
        (z, None),
    ]
    of_moves = [(d.living, d.rebuilt) for d in found if d.table == "rebuild_moves"]
    assert [living for living, _ in of_moves[:3]] == [None] * 3
    assert [rebuilt["amount"] for _, rebuilt in of_moves[:3] if rebuilt] == [3, 3, 3]
    assert of_moves[3] == ({"position": first + 1000, "account": "z", "amount": 1}, None)
    assert not caught.value.more
    store.rebuild(Accounts)
    store.rebuild(Accounts, verify=True)


def test_no_more_differences_are_told_than_can_be_read(store: EventStore) -> None:
    store.append("rebuild/a", [Opened("A"), *[Moved(1)] * 150])
    store.catch_up(Accounts)
    with store.log.transaction() as db:
        db.execute(Accounts.moves.delete())
    with pytest.raises(RebuildDiffersError, match="more than 100 rows") as caught:
        store.rebuild(Accounts, verify=True)
    assert caught.value.more
    assert len(caught.value.differences) == 100


def test_a_living_projection_that_is_behind_is_compared_where_it_is(store: EventStore) -> None:
    filled(store, "ab")
    position = store.catch_up(Accounts)
    filled(store, "c")
    progress = store.rebuild(Accounts, verify=True)
    assert (progress.position, progress.events) == (position, 8)
    assert balances(store) == {"a": 3, "b": 6}
    store.catch_up(Accounts)
    assert len(balances(store)) == 3


class Kinds(TableProjection, name="rebuild-kinds"):
    kinds = Table(
        "rebuild_kinds",
        TableProjection.metadata,
        Column("account", String, primary_key=True),
        Column("document", JSON),
        Column("sum", Float, nullable=False),
        Column("exact", Numeric(20, 4), nullable=False),
        Column("blank", String),
    )
    log = Table(
        "rebuild_kinds_log", TableProjection.metadata, Column("what", JSON), Column("n", Integer)
    )

    @on(Opened)
    def _opened(self, event: Opened, record: RecordedEvent) -> None:
        document = {"owner": event.owner, "list": [1, None]}
        values = {"account": record.aggregate_id, "document": document, "sum": 0.0, "exact": 0}
        self.insert(self.kinds, **values)

    @on(Moved)
    def _moved(self, event: Moved, record: RecordedEvent) -> None:
        self.add(self.kinds, record.aggregate_id, sum=event.amount / 10)
        self.insert(self.log, what={"amount": event.amount}, n=None)


def test_json_floats_and_nulls_are_compared(store: EventStore) -> None:
    store.append("rebuild/a", Opened("A"))
    store.append("rebuild/b", Opened("B"))
    for number in range(1, 12):  # in batches of one, so that sums are not made in one order
        store.append("rebuild/a", [Moved(number), Moved(number)])
        store.catch_up(Kinds)
    store.rebuild(Kinds, verify=True)
    kinds, log = Kinds.kinds, Kinds.log
    with store.log.transaction() as db:
        a = update(kinds).where(kinds.c.account == "a")
        db.execute(a.values(document={"owner": "A", "list": [1, 0]}, sum=kinds.c.sum + 1e-6))
        db.execute(update(kinds).where(kinds.c.account == "b").values(blank="something"))
        db.execute(insert(log).values(what={"amount": 1}, n=None))  # there are two of it already
    with pytest.raises(RebuildDiffersError) as caught:
        store.rebuild(Kinds, verify=True)
    found = caught.value.differences
    assert [d.table for d in found] == ["rebuild_kinds", "rebuild_kinds", "rebuild_kinds_log"]
    a_was, a_is = found[0].living, found[0].rebuilt
    assert a_was is not None
    assert a_is is not None
    assert (a_was["document"]["list"], a_is["document"]["list"]) == ([1, 0], [1, None])
    assert found[1].living == {**(found[1].rebuilt or {}), "blank": "something"}
    assert found[2].rebuilt is None
    assert found[2].living is not None
    assert found[2].living["n"] is None


def test_a_parked_event_counts_as_a_difference(store: EventStore) -> None:
    filled(store, "ab")
    hook.call = fail_on("b")
    store.catch_up(Accounts)
    assert len(store.parked(Accounts)) == 3
    hook.call = lambda _: None
    with pytest.raises(RebuildDiffersError):
        store.rebuild(Accounts, verify=True)
    assert len(store.parked(Accounts)) == 3
    store.rebuild(Accounts)
    assert store.parked(Accounts) == []
    assert balances(store) == {"a": 3, "b": 6}
