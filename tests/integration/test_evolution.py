"""Code changes and the log does not: names, versions, upcasters, snapshots, damaged payloads.

A deployment is simulated by running source text as the module that it would be.
"""

from __future__ import annotations

import itertools
import sys
import types
from collections.abc import Callable, Iterator
from datetime import timedelta
from textwrap import dedent
from typing import Any

import msgspec
import pytest
from sqlalchemy import insert, select, update

from eventstore import (
    CorruptEventError,
    DefinitionError,
    Event,
    EventNameTakenError,
    EventStore,
    NewerEventError,
    StoredEventError,
    UnknownEventError,
    upcast,
)
from eventstore.event import _by_name
from eventstore.log.tables import events, snapshots
from eventstore.log.tables import types as event_types

HEADER = """
from __future__ import annotations
from decimal import Decimal
from eventstore import Aggregate, Event, on, upcast
"""

_numbers = itertools.count()


class Deployment(types.ModuleType):
    """A module made of source text."""

    def __getattr__(self, name: str) -> Any:
        raise AttributeError(name)


@pytest.fixture
def deploy() -> Iterator[Callable[..., Deployment]]:
    """Runs source text as one module, which takes the place of its last version."""
    package = f"deployed{next(_numbers)}"
    names = dict(_by_name)
    made = []

    def run(source: str, module: str = "domain") -> Deployment:
        for name in [n for n, c in _by_name.items() if c.__module__ == f"{package}.{module}"]:
            del _by_name[name]  # a new process has not heard of them
        deployed = Deployment(f"{package}.{module}")
        sys.modules[deployed.__name__] = deployed
        made.append(deployed.__name__)
        exec(compile(dedent(HEADER) + dedent(source), deployed.__name__, "exec"), vars(deployed))
        return deployed

    yield run
    for name in made:
        sys.modules.pop(name, None)
    _by_name.clear()
    _by_name.update(names)


@pytest.fixture
def store(database_url: str) -> Iterator[EventStore]:
    with EventStore(database_url) as opened:
        yield opened


def reopened(store: EventStore) -> EventStore:
    """Another process: nothing that was learnt of the log or the classes is known."""
    return EventStore(store.engine)


# --- names and versions ------------------------------------------------------------------------

ONE = """
class Opened(Event, name="evo-opened"):
    owner: str

class Account(Aggregate, stream="evo/{id}"):
    owner: str = ""

    def open(self, owner: str) -> None:
        self.record(Opened(owner))

    @on(Opened)
    def _opened(self, event: Opened) -> None:
        self.owner = event.owner
"""


def test_a_class_may_be_renamed_when_its_stored_name_is_explicit(
    store: EventStore, deploy: Callable[..., Deployment]
) -> None:
    old = deploy(ONE)
    account = old.Account("a")
    account.open("Ann")
    store.save(account)
    new = deploy(ONE.replace("Opened", "AccountWasOpened"))
    with reopened(store) as later:
        assert later.load(new.Account, "a").owner == "Ann"
        (record,) = later.read("evo/a")
        assert record.type == "evo-opened"
        assert isinstance(record.event, new.AccountWasOpened)
        assert [r.version for r in later.read("evo/a", types=[new.AccountWasOpened])] == [1]


def test_a_stored_name_may_change_when_the_old_one_is_an_alias(
    store: EventStore, deploy: Callable[..., Deployment]
) -> None:
    old = deploy(ONE)
    store.append("evo/a", old.Opened("Ann"))
    new = deploy(ONE.replace('name="evo-opened"', 'name="evo-began", aliases=["evo-opened"]'))
    with reopened(store) as later:
        later.append("evo/a", new.Opened("Bob"))
        assert later.load(new.Account, "a").owner == "Bob"
        assert later.load(new.Account, "a", version=1).owner == "Ann"
        assert [r.type for r in later.read("evo/a")] == ["evo-opened", "evo-began"]
        assert [r.event for r in later.read("evo/a", types=[new.Opened])] == [
            new.Opened("Ann"),
            new.Opened("Bob"),
        ]
        assert [r.version for r in later.read_all(types=["evo-opened"])] == [1]


def test_a_class_may_move_to_another_module(
    store: EventStore, deploy: Callable[..., Deployment]
) -> None:
    store.append("evo/a", deploy(ONE, "here").Opened("Ann"))
    deploy("", "here")
    there = deploy(ONE, "there")
    with reopened(store) as later:
        assert later.load(there.Account, "a").owner == "Ann"


def test_two_modules_cannot_claim_one_name(deploy: Callable[..., Deployment]) -> None:
    deploy(ONE, "here")
    with pytest.raises(EventNameTakenError) as caught:
        deploy(ONE, "there")
    assert caught.value.name == "evo-opened"
    assert "here.Opened" in caught.value.holder


THREE_STEPS = """
class Moved(Event, name="evo-moved", version=4):
    cents: int
    currency: str
    tags: list[str]

    @upcast(from_version=1)
    def _to_cents(payload):
        return {"cents": payload["euros"] * 100}

    @upcast(from_version=2)
    def _name_the_currency(payload):
        return payload | {"currency": "EUR"}

    @upcast(from_version=3)
    def _tag(payload):
        return payload | {"tags": ["old"]}

class Purse(Aggregate, stream="evo/{id}"):
    cents: int = 0
    tags: tuple[str, ...] = ()

    @on(Moved)
    def _moved(self, event: Moved) -> None:
        self.cents += event.cents
        self.tags += tuple(event.tags)
"""


def test_payloads_of_every_version_become_the_present_one(
    store: EventStore, deploy: Callable[..., Deployment]
) -> None:
    first = deploy('class Moved(Event, name="evo-moved"):\n    euros: int')
    store.append("evo/a", first.Moved(2))
    second = deploy("""
        class Moved(Event, name="evo-moved", version=2):
            cents: int

            @upcast(from_version=1)
            def _to_cents(payload):
                return {"cents": payload["euros"] * 100}
    """)
    with reopened(store) as middle:
        middle.append("evo/a", second.Moved(5))
        assert [r.event.cents for r in middle.read("evo/a")] == [200, 5]  # type: ignore[attr-defined]
    last = deploy(THREE_STEPS)
    with reopened(store) as later:
        later.append("evo/a", last.Moved(7, "USD", ["new"]))
        records = list(later.read("evo/a"))
        assert [r.schema_version for r in records] == [1, 2, 4]
        assert [r.event for r in records] == [
            last.Moved(200, "EUR", ["old"]),
            last.Moved(5, "EUR", ["old"]),
            last.Moved(7, "USD", ["new"]),
        ]
        assert records[0].data == b'{"euros":2}'  # what was written stays as it was written
        purse = later.load(last.Purse, "a")
        assert (purse.cents, purse.tags) == (212, ("old", "old", "new"))
        assert [step.state.cents for step in later.history(last.Purse, "a")] == [200, 205, 212]


@pytest.mark.parametrize("missing", ["1", "2", "3"])
def test_a_chain_with_a_gap_is_refused_when_the_class_is_made(
    deploy: Callable[..., Deployment], missing: str
) -> None:
    with pytest.raises(DefinitionError) as caught:
        deploy(THREE_STEPS.replace(f"@upcast(from_version={missing})", ""))
    assert "Moved" in caught.value.owner
    assert f"from version {missing}" in str(caught.value)


def test_an_upcaster_that_fails_says_which_and_where(
    store: EventStore, deploy: Callable[..., Deployment]
) -> None:
    first = deploy('class Moved(Event, name="evo-moved"):\n    euros: int | None')
    store.append("evo/good", first.Moved(1))
    receipt = store.append("evo/a", [first.Moved(1), first.Moved(None)])
    last = deploy(THREE_STEPS)
    with reopened(store) as later:
        with pytest.raises(CorruptEventError) as caught:
            later.load(last.Purse, "a")
        located(caught.value, "evo/a", 2, receipt.position)
        assert caught.value.event_type == "evo-moved"
        assert "from version 1" in str(caught.value)
        assert "TypeError" in str(caught.value)
        assert isinstance(caught.value.__cause__, TypeError)
        assert later.load(last.Purse, "a", version=1).cents == 100
        assert later.load(last.Purse, "good").cents == 100
        good, bad = later.read("evo/a")
        assert good.event.cents == 100  # type: ignore[attr-defined]
        with pytest.raises(CorruptEventError) as caught:
            bad.event  # noqa: B018
        located(caught.value, "evo/a", 2, receipt.position)


@pytest.mark.parametrize("result", ["None", "[]", '{"cents": "many"}', '{"other": 1}'])
def test_what_an_upcaster_makes_must_fit_the_class(
    store: EventStore, deploy: Callable[..., Deployment], result: str
) -> None:
    store.append("evo/a", deploy('class Moved(Event, name="evo-moved"):\n    euros: int').Moved(2))
    last = deploy(f"""
        class Moved(Event, name="evo-moved", version=2):
            cents: int

            @upcast(from_version=1)
            def _wrong(payload):
                return {result}

        class Purse(Aggregate, stream="evo/{{id}}"):
            @on(Moved)
            def _moved(self, event: Moved) -> None:
                pass
    """)
    with reopened(store) as later:
        with pytest.raises(CorruptEventError) as caught:
            later.load(last.Purse, "a")
        located(caught.value, "evo/a", 1)
        (record,) = later.read("evo/a")
        with pytest.raises(CorruptEventError):
            record.event  # noqa: B018


def located(
    error: StoredEventError, stream: str, version: int, position: int | None = None
) -> None:
    assert (error.stream, error.version) == (stream, version)
    assert error.position is not None
    assert position is None or error.position == position
    for part in (stream, f"version {version}", f"position {error.position}"):
        assert part in str(error)


def test_an_event_of_a_newer_version_is_refused_and_located(
    store: EventStore, deploy: Callable[..., Deployment]
) -> None:
    last = deploy(THREE_STEPS)
    receipt = store.append("evo/a", last.Moved(7, "USD", []))
    old = deploy("""
        class Moved(Event, name="evo-moved", version=2):
            cents: int

            @upcast(from_version=1)
            def _to_cents(payload):
                return {"cents": payload["euros"] * 100}

        class Purse(Aggregate, stream="evo/{id}"):
            cents: int = 0

            @on(Moved)
            def _moved(self, event: Moved) -> None:
                self.cents += event.cents
    """)
    with reopened(store) as behind:
        with pytest.raises(NewerEventError) as caught:
            behind.load(old.Purse, "a")
        located(caught.value, "evo/a", 1, receipt.position)
        assert (caught.value.stored, caught.value.known) == (4, 2)
        (record,) = behind.read("evo/a")
        with pytest.raises(NewerEventError) as caught:
            record.event  # noqa: B018
        located(caught.value, "evo/a", 1, receipt.position)
        behind.append("evo/b", old.Moved(1))
        assert behind.load(old.Purse, "b").cents == 1


def test_an_unknown_event_fails_a_load_and_not_a_read(
    store: EventStore, deploy: Callable[..., Deployment]
) -> None:
    old = deploy(ONE + '\nclass Forgotten(Event, name="evo-forgotten"):\n    x: int\n')
    receipt = store.append("evo/a", [old.Opened("Ann"), old.Forgotten(1), old.Opened("Bob")])
    new = deploy(ONE)
    with reopened(store) as later:
        with pytest.raises(UnknownEventError) as caught:
            later.load(new.Account, "a")
        assert caught.value.event_type == "evo-forgotten"
        located(caught.value, "evo/a", 2, receipt.position - 1)
        assert later.load(new.Account, "a", version=1).owner == "Ann"
        records = list(later.read("evo/a"))
        assert [r.type for r in records] == ["evo-opened", "evo-forgotten", "evo-opened"]
        assert records[1].data == b'{"x":1}'
        assert records[2].event == new.Opened("Bob")
        with pytest.raises(UnknownEventError) as caught:
            records[1].event  # noqa: B018
        located(caught.value, "evo/a", 2, receipt.position - 1)
        with pytest.raises(UnknownEventError):
            list(later.history(new.Account, "a"))


def test_an_event_that_an_aggregate_does_not_handle_is_passed_over(
    store: EventStore, deploy: Callable[..., Deployment]
) -> None:
    module = deploy(ONE + '\nclass Other(Event, name="evo-other"):\n    x: int\n')
    store.append("evo/a", [module.Opened("Ann"), module.Other(1)])
    account = store.load(module.Account, "a")
    assert (account.owner, account.version) == ("Ann", 2)


def test_new_fields_with_defaults_and_dropped_fields_need_no_new_version(
    store: EventStore, deploy: Callable[..., Deployment]
) -> None:
    old = deploy('class Opened(Event, name="evo-opened"):\n    owner: str\n    branch: str')
    store.append("evo/a", old.Opened("Ann", "main"))
    new = deploy('class Opened(Event, name="evo-opened"):\n    owner: str\n    level: int = 3')
    with reopened(store) as later:
        (record,) = later.read("evo/a")
        assert record.event == new.Opened("Ann", 3)


# --- damaged payloads --------------------------------------------------------------------------


class Weighed(Event, name="evo-weighed", version=2):
    grams: int
    by: str = ""

    @upcast(from_version=1)
    @staticmethod
    def _from_kilos(payload: dict[str, Any]) -> dict[str, Any]:
        return {"grams": payload["kilos"] * 1000}


SCALES = """
from {module} import Weighed

class Scales(Aggregate, stream="evo-scales/{{id}}"):
    grams: int = 0

    @on(Weighed)
    def _weighed(self, event: Weighed) -> None:
        self.grams += event.grams
"""


@pytest.mark.parametrize(
    "payload",
    [
        b"",
        b'{"grams":',
        b'{"grams":12,"by":"an',
        b"\x00\xff\xfe",
        b'{"grams":1,"by":"\xff\xfe"}',
        b'{"grams":"heavy"}',
        b'{"kilos":1}',
        b"[1]",
        b"null",
    ],
    ids=str,
)
@pytest.mark.parametrize("schema_version", [2, 1])
def test_a_damaged_payload_is_located_and_hurts_no_other_stream(
    store: EventStore, deploy: Callable[..., Deployment], payload: bytes, schema_version: int
) -> None:
    if schema_version == 1 and payload == b'{"kilos":1}':
        payload = b'{"grams":1}'  # what is damage in the one version is right in the other
    module = deploy(SCALES.format(module=__name__))
    store.append("evo-scales/good", [Weighed(1), Weighed(2)])
    receipt = store.append("evo-scales/a", [Weighed(1), Weighed(2), Weighed(3)])
    position = receipt.position - 1
    with store.engine.begin() as connection:
        type_id = connection.scalar(
            select(event_types.c.id).where(
                event_types.c.name == "evo-weighed", event_types.c.version == schema_version
            )
        ) or connection.scalar(
            insert(event_types)
            .values(name="evo-weighed", version=schema_version)
            .returning(event_types.c.id)
        )
        connection.execute(
            update(events)
            .where(events.c.position == position)
            .values(data=payload, type_id=type_id)
        )
    with reopened(store) as later:
        with pytest.raises(CorruptEventError) as caught:
            later.load(module.Scales, "a")
        located(caught.value, "evo-scales/a", 2, position)
        assert caught.value.event_type == "evo-weighed"
        assert isinstance(caught.value.__cause__, (ValueError, LookupError, TypeError))
        with pytest.raises(CorruptEventError) as caught:
            list(later.history(module.Scales, "a"))
        located(caught.value, "evo-scales/a", 2, position)
        assert later.load(module.Scales, "a", version=1).grams == 1
        assert later.load(module.Scales, "good").grams == 3
        first, second, third = later.read("evo-scales/a")
        assert (first.event, third.event) == (Weighed(1), Weighed(3))
        assert second.data == payload
        with pytest.raises(CorruptEventError) as caught:
            second.event  # noqa: B018
        located(caught.value, "evo-scales/a", 2, position)
        assert len(list(later.read_all())) == 5


# --- snapshots across deployments --------------------------------------------------------------

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
