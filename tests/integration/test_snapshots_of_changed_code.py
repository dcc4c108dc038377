"""Snapshots across deployments: whatever changes the state makes a load replay."""

from __future__ import annotations

import sys
import types
from collections.abc import Callable, Iterator
from datetime import timedelta
from typing import Any

import msgspec
import pytest
from deploying import HEADER, Deployment, deployments, reopened
from sqlalchemy import select, update

from eventstore import EventStore
from eventstore.event import _by_name
from eventstore.log.tables import snapshots


@pytest.fixture
def deploy() -> Iterator[Callable[..., Deployment]]:
    with deployments() as run:
        yield run


SNAPPED = """
RATE = Decimal("2")
LIMITS = {"low": 1}

def bonus(amount: int) -> int:
    return amount

class Paid(Event, name="evo-paid"):
    amount: int

    @property
    def doubled(self) -> int:
        return self.amount * 2

class Wallet(Aggregate, stream="evo-wallet/{id}", snapshot_every=2):
    total: int = 0

    STEP = 1

    def _more(self, amount: int) -> int:
        return amount + self.STEP

    @on(Paid)
    def _paid(self, event: Paid) -> None:
        self.total += int(bonus(self._more(event.amount)) * RATE) + LIMITS["low"] + event.doubled
"""
# One event of 10: (10 + 1) * 2 + 1 + 20
EACH = 43


def tamper(store: EventStore) -> int:
    """Make every snapshot's state a sentinel, so that a load tells whether it used one."""
    state = msgspec.msgpack.encode({"total": 1_000_000})
    with store.engine.begin() as connection:
        return connection.execute(update(snapshots).values(state=state)).rowcount


def fingerprints(store: EventStore) -> set[bytes]:
    with store.connect() as connection:
        return set(connection.scalars(select(snapshots.c.fingerprint)))


def test_an_unchanged_deployment_uses_the_snapshots_it_finds(
    store: EventStore, deploy: Callable[..., Deployment]
) -> None:
    first = deploy(SNAPPED)
    store.append("evo-wallet/a", [first.Paid(10)] * 2)
    assert store.load(first.Wallet, "a").total == 2 * EACH
    assert tamper(store) == 1
    again = deploy(SNAPPED)
    with reopened(store) as later:
        assert later.load(again.Wallet, "a").total == 1_000_000


CHANGES = {
    "the handler": ("self.total += int", "self.total += 5 + int", 48),
    "a helper function": ("    return amount\n", "    return amount + 1\n", 45),
    "a constant": ('Decimal("2")', 'Decimal("3")', 54),
    "a constant in a container": ('{"low": 1}', '{"low": 2}', 44),
    "a class's constant": ("STEP = 1", "STEP = 2", 45),
    "a helper method": ("amount + self.STEP", "amount - self.STEP", 39),
    "a property of the event": ("self.amount * 2", "self.amount * 3", 53),
}


@pytest.mark.parametrize(("old", "new", "each"), CHANGES.values(), ids=CHANGES.keys())
def test_a_change_of_the_code_that_folds_replays_and_rewrites(
    store: EventStore, deploy: Callable[..., Deployment], old: str, new: str, each: int
) -> None:
    first = deploy(SNAPPED)
    store.append("evo-wallet/a", [first.Paid(10)] * 2)
    assert store.load(first.Wallet, "a").total == 2 * EACH
    before = fingerprints(store)
    assert old in SNAPPED
    second = deploy(SNAPPED.replace(old, new))
    with reopened(store) as later:
        assert later.load(second.Wallet, "a").total == 2 * each
        assert len(fingerprints(store) - before) == 1  # rewritten, beside the old one
        tamper(store)
        assert later.load(second.Wallet, "a").total == 1_000_000
        store.delete_snapshots()
        assert later.load(second.Wallet, "a").total == 2 * each


def test_a_change_of_the_default_replays(
    store: EventStore, deploy: Callable[..., Deployment]
) -> None:
    first = deploy(SNAPPED)
    store.append("evo-wallet/a", [first.Paid(10)] * 2)
    store.load(first.Wallet, "a")
    second = deploy(SNAPPED.replace("total: int = 0", "total: int = 7"))
    with reopened(store) as later:
        assert later.load(second.Wallet, "a").total == 2 * EACH + 7


def test_a_change_of_the_states_schema_replays(
    store: EventStore, deploy: Callable[..., Deployment]
) -> None:
    first = deploy(SNAPPED)
    store.append("evo-wallet/a", [first.Paid(10)] * 3)
    store.load(first.Wallet, "a")
    second = deploy(
        SNAPPED.replace("total: int = 0", "total: int = 0\n    count: int = 0").replace(
            "        self.total +=", "        self.count += 1\n        self.total +="
        )
    )
    with reopened(store) as later:
        wallet = later.load(second.Wallet, "a")
        assert (wallet.total, wallet.count) == (3 * EACH, 3)


def test_a_new_handler_replays(store: EventStore, deploy: Callable[..., Deployment]) -> None:
    extra = '\nclass Fined(Event, name="evo-fined"):\n    amount: int\n'
    first = deploy(SNAPPED + extra)
    store.append("evo-wallet/a", [first.Paid(10), first.Fined(3)])
    assert store.load(first.Wallet, "a").total == EACH
    assert fingerprints(store)
    second = deploy(
        SNAPPED.replace("class Paid(", f"{extra}\nclass Paid(")
        + "\n    @on(Fined)\n    def _fined(self, event: Fined) -> None:\n"
        + "        self.total -= event.amount\n"
    )
    with reopened(store) as later:
        assert later.load(second.Wallet, "a").total == EACH - 3


def test_a_changed_upcaster_replays(store: EventStore, deploy: Callable[..., Deployment]) -> None:
    store.append("evo-wallet/a", [deploy(SNAPPED).Paid(10)] * 2)
    upcasting = SNAPPED.replace(
        'name="evo-paid"):\n    amount: int\n',
        'name="evo-paid", version=2):\n    amount: int\n\n'
        "    @upcast(from_version=1)\n    def _up(payload):\n        return {'amount': 10}\n",
    )
    second = deploy(upcasting)
    with reopened(store) as middle:
        assert middle.load(second.Wallet, "a").total == 2 * EACH
    third = deploy(upcasting.replace("'amount': 10", "'amount': 0"))
    with reopened(store) as later:
        assert later.load(third.Wallet, "a").total == 2 * 3


def test_a_change_in_another_module_of_the_package_replays(
    store: EventStore, deploy: Callable[..., Deployment]
) -> None:
    rules = deploy("RATE = 1\n\ndef rated(amount: int) -> int:\n    return amount * RATE", "rules")
    source = f"""
        import {rules.__name__} as rules

        class Paid(Event, name="evo-paid"):
            amount: int

        class Wallet(Aggregate, stream="evo-wallet/{{id}}", snapshot_every=1):
            total: int = 0

            @on(Paid)
            def _paid(self, event: Paid) -> None:
                self.total += rules.rated(event.amount)
    """
    parent = rules.__name__.partition(".")[0]
    sys.modules[parent] = types.ModuleType(parent)
    try:
        vars(sys.modules[parent])["rules"] = rules
        first = deploy(source)
        store.append("evo-wallet/a", first.Paid(5))
        assert store.load(first.Wallet, "a").total == 5
        vars(sys.modules[parent])["rules"] = deploy(
            "RATE = 3\n\ndef rated(amount: int) -> int:\n    return amount * RATE", "rules"
        )
        second = deploy(source)
        with reopened(store) as later:
            assert later.load(second.Wallet, "a").total == 15
    finally:
        del sys.modules[parent]


@pytest.mark.parametrize("state", [b"", b"\xc1", b"\x80", b"\x81\xa5total\xa1x", b"[]"], ids=str)
def test_a_damaged_snapshot_is_passed_over(
    store: EventStore,
    deploy: Callable[..., Deployment],
    state: bytes,
    caplog: pytest.LogCaptureFixture,
) -> None:
    module = deploy(SNAPPED)
    store.append("evo-wallet/a", [module.Paid(10)] * 2)
    store.load(module.Wallet, "a")
    with store.engine.begin() as connection:
        assert connection.execute(update(snapshots).values(state=state)).rowcount == 1
    assert store.load(module.Wallet, "a").total == 2 * EACH
    assert "ignored" in caplog.text


ODD_STATES = {
    "an offset from UTC": (
        "when: datetime = datetime(2020, 1, 1, tzinfo=UTC)",
        "self.when = datetime(2026, 1, 1, 12, tzinfo=timezone(timedelta(hours=2)))",
    ),
    "a defaultdict": (
        "counts: dict[str, int] = defaultdict(int)",
        "self.counts['x'] += event.amount",
    ),
    "a set": ("seen: set[int] = set()", "self.seen.add(event.amount)"),
    "a decimal": ("sum: Decimal = Decimal(0)", "self.sum += Decimal('1.10')"),
    "tuples as keys": (
        "cells: dict[tuple[int, int], bytes] = {}",
        "self.cells[event.amount, 1] = b'\\xff'",
    ),
    "infinity": ("top: float = 0.0", "self.top = float('inf')"),
    "not a number": ("top: float = 0.0", "self.top = float('nan')"),
    "a wrong annotation": ("items: list[int] = []", "self.items.append('text')"),
    "anything": ("items: Any = None", "self.items = (event.amount, timedelta(1))"),
}


@pytest.mark.parametrize(("field", "change"), ODD_STATES.values(), ids=ODD_STATES.keys())
def test_a_snapshot_gives_back_what_a_replay_does_or_is_not_kept(
    store: EventStore, deploy: Callable[..., Deployment], field: str, change: str
) -> None:
    module = deploy(f"""
        from collections import defaultdict
        from datetime import UTC, datetime, timedelta, timezone
        from typing import Any

        class Paid(Event, name="evo-paid"):
            amount: int

        class Odd(Aggregate, stream="evo-odd/{{id}}", snapshot_every=1):
            {field}

            @on(Paid)
            def _paid(self, event: Paid) -> None:
                {change}
    """)
    name = field.partition(":")[0]
    store.append("evo-odd/a", module.Paid(1))
    with EventStore(store.engine, cache=5) as cached:
        for amount in (1, 2):
            replayed = getattr(store.load(module.Odd, "a"), name)
            for other in (store, cached, cached):
                value = getattr(other.load(module.Odd, "a"), name)
                assert repr(value) == repr(replayed)
                assert type(value) is type(replayed)
            store.delete_snapshots()
            store.append("evo-odd/a", module.Paid(amount))


def test_what_a_handler_of_a_base_class_depends_on_is_covered(
    store: EventStore, deploy: Callable[..., Deployment]
) -> None:
    source = """
        class Money(Event, name="evo-money"):
            amount: int

        class Paid(Money, name="evo-paid", version=2):
            @upcast(from_version=1)
            def _up(payload):
                return {"amount": 10}

        class Wallet(Aggregate, stream="evo-wallet/{id}", snapshot_every=1):
            total: int = 0

            @on(Money)
            def _money(self, event: Money) -> None:
                self.total += event.amount
    """
    first = deploy('class Paid(Event, name="evo-paid"):\n    x: int')
    store.append("evo-wallet/a", first.Paid(1))
    second = deploy(source)
    with reopened(store) as middle:
        assert middle.load(second.Wallet, "a").total == 10
    third = deploy(source.replace("10", "20"))
    with reopened(store) as later:
        assert later.load(third.Wallet, "a").total == 20


def test_snapshots_of_two_deployments_live_side_by_side(
    store: EventStore, deploy: Callable[..., Deployment]
) -> None:
    """As while one is rolled out: each uses its own, and neither spoils the other's."""
    changed = SNAPPED.replace("STEP = 1", "STEP = 2")
    first = deploy(SNAPPED, "one")
    deploy("", "one")
    second = deploy(changed, "two")
    with reopened(store) as one, reopened(store) as two:
        for count in range(1, 6):
            one.append("evo-wallet/a", second.Paid(10))
            assert two.load(second.Wallet, "a").total == 45 * count
            _by_name["evo-paid"] = first.Paid
            assert one.load(first.Wallet, "a").total == EACH * count
            _by_name["evo-paid"] = second.Paid
    assert len(fingerprints(store)) == 2


def test_a_notebook_cell_may_be_run_again(store: EventStore) -> None:
    cell = """if True:
        class Cell(Event, name="evo-cell"):
            x: int

        class Book(Aggregate, stream="evo-book/{id}"):
            x: int = 0

            @on(Cell)
            def _cell(self, event: Cell) -> None:
                self.x = event.x
    """
    space: dict[str, Any] = {"__name__": "notebook"}
    for value in range(3):
        exec(HEADER + cell, space)
        store.append("evo-book/a", space["Cell"](value))
        assert store.load(space["Book"], "a").x == value


def test_recorded_times_are_no_part_of_what_changes(
    store: EventStore, deploy: Callable[..., Deployment]
) -> None:
    """A snapshot answers for its moment only when the present code made it."""
    first = deploy(SNAPPED)
    wallet = first.Wallet("a")
    for _ in range(4):
        wallet.record(first.Paid(10))
        store.save(wallet)
    moments = [r.recorded_at for r in store.read("evo-wallet/a")]
    second = deploy(SNAPPED.replace("STEP = 1", "STEP = 2"))
    with reopened(store) as later:
        for count, at in enumerate(moments, 1):
            then = sum(moment <= at for moment in moments)
            assert later.load(second.Wallet, "a", at=at).total == 45 * then
            assert later.load(second.Wallet, "a", version=count).total == 45 * count
        future = moments[-1] + timedelta(days=1)
        assert later.load(second.Wallet, "a", at=future).total == 45 * 4
