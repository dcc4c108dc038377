"""Code and stored events change apart: names, versions, upcasters."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest
from deploying import Deployment, deployments, located, reopened

from eventstore import (
    CorruptEventError,
    DefinitionError,
    EventNameTakenError,
    EventStore,
    NewerEventError,
    UnknownEventError,
)


@pytest.fixture
def deploy() -> Iterator[Callable[..., Deployment]]:
    with deployments() as run:
        yield run


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
