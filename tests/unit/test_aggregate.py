"""Aggregates without a store."""

from __future__ import annotations

import dataclasses
from typing import Any, ClassVar

import msgspec
import pytest

from eventstore import Aggregate, DefinitionError, Event, InvalidEventError, InvalidNameError, on


class Deposited(Event, name="unit-deposited"):
    amount: int


class Tagged(Event, name="unit-tagged"):
    tags: list[str]


class Unhandled(Event, name="unit-unhandled"):
    pass


class Account(Aggregate):
    LIMIT: ClassVar[int] = 100
    balance: int = 0
    tags: list[str] = []  # noqa: RUF012 (each instance has its own copy)

    def deposit(self, amount: int) -> None:
        if amount > self.LIMIT:
            raise ValueError("over the limit")
        self.record(Deposited(amount))

    @on(Deposited)
    def _deposited(self, event: Deposited) -> None:
        self.balance += event.amount

    @on(Tagged)
    def _tagged(self, event: Tagged) -> None:
        self.tags += event.tags


def test_a_new_aggregate_has_its_defaults() -> None:
    account = Account("a")
    assert (account.id, account.version, account.pending) == ("a", 0, ())
    assert (account.balance, account.tags) == (0, [])


def test_recording_applies_and_waits_to_be_saved() -> None:
    account = Account("a")
    account.deposit(5)
    account.deposit(7)
    assert account.balance == 12
    assert account.pending == (Deposited(5), Deposited(7))
    assert account.version == 0


def test_an_event_without_a_handler_is_recorded() -> None:
    account = Account("a")
    account.record(Unhandled())
    assert account.pending == (Unhandled(),)


def test_a_refused_command_records_nothing() -> None:
    account = Account("a")
    with pytest.raises(ValueError, match="limit"):
        account.deposit(101)
    assert (account.balance, account.pending) == (0, ())


@pytest.mark.parametrize("bad", ["five", None, 1.5, [1], True, b"5"])
def test_a_value_of_a_wrong_type_is_refused_before_it_is_applied(bad: Any) -> None:
    account = Account("a")
    with pytest.raises(InvalidEventError) as caught:
        account.record(Deposited(bad))
    assert caught.value.event_type == "unit-deposited"
    assert (account.balance, account.pending) == (0, ())


@pytest.mark.parametrize("bad", [None, "text", {"amount": 1}, object(), Deposited])
def test_what_is_no_event_is_refused(bad: Any) -> None:
    with pytest.raises(InvalidEventError):
        Account("a").record(bad)


def test_mutable_defaults_are_not_shared() -> None:
    one, two = Account("a"), Account("b")
    one.record(Tagged(["x"]))
    one.tags.append("y")
    assert (two.tags, Account("c").tags) == ([], [])


def test_factories_of_dataclasses_and_msgspec_make_defaults() -> None:
    class Kept(Aggregate):
        one: list[int] = dataclasses.field(default_factory=list)
        two: dict[str, int] = msgspec.field(default_factory=dict)
        three: int = dataclasses.field(default=3)
        four: int = msgspec.field(default=4)

    first, second = Kept("a"), Kept("b")
    first.one.append(1)
    first.two["x"] = 1
    assert (second.one, second.two, second.three, second.four) == ([], {}, 3, 4)


@pytest.mark.parametrize("field", [dataclasses.field(), msgspec.field()])
def test_a_field_without_a_default_is_refused(field: Any) -> None:
    with pytest.raises(DefinitionError) as caught:

        class Broken(Aggregate):
            lines: list[str] = field

    assert caught.value.member == "lines"
    assert "Broken" in caught.value.owner


def test_a_mutable_value_changed_after_recording_changes_nothing_recorded() -> None:
    mine = ["x"]
    event = Tagged(mine)
    account = Account("a")
    account.record(event)
    mine.append("y")
    event.tags.append("z")
    assert account.tags == ["x"]
    assert account.pending == (Tagged(["x"]),)


def test_a_handler_that_changes_its_events_value_changes_nothing_recorded() -> None:
    class Greedy(Aggregate):
        tags: list[str] = []  # noqa: RUF012

        @on(Tagged)
        def _tagged(self, event: Tagged) -> None:
            self.tags = event.tags
            self.tags.append("mine")

    greedy = Greedy("a")
    greedy.record(Tagged(["x"]))
    ((_, payload),) = greedy._pending
    assert payload == b'{"tags":["x"]}'


def test_state_that_is_not_annotated_cannot_be_set() -> None:
    class Sneaky(Aggregate):
        seen: int = 0

        @on(Deposited)
        def _deposited(self, event: Deposited) -> None:
            self.hidden = event.amount

    with pytest.raises(AttributeError):
        Sneaky("a").record(Deposited(1))
    with pytest.raises(AttributeError):
        Account("a").other = 1  # type: ignore[attr-defined]


def test_a_handler_that_records_is_refused_and_nothing_is_kept() -> None:
    class Chatty(Aggregate):
        @on(Deposited)
        def _deposited(self, event: Deposited) -> None:
            self.record(Unhandled())

    chatty = Chatty("a")
    with pytest.raises(InvalidEventError) as caught:
        chatty.record(Deposited(1))
    assert "Chatty" in str(caught.value)
    assert chatty.pending == ()


def test_an_event_whose_handler_fails_is_not_recorded() -> None:
    class Failing(Aggregate):
        @on(Deposited)
        def _deposited(self, event: Deposited) -> None:
            raise RuntimeError("no")

    failing = Failing("a")
    with pytest.raises(RuntimeError):
        failing.record(Deposited(1))
    assert failing.pending == ()


def test_a_subclass_inherits_state_and_handlers() -> None:
    class Saver(Account):
        interest: int = 1

        @on(Unhandled)
        def _interest(self, event: Unhandled) -> None:
            self.balance += self.interest

    saver = Saver("a")
    saver.deposit(10)
    saver.record(Unhandled())
    assert (saver.balance, saver.interest) == (11, 1)
    saver.tags.append("x")
    assert Saver("b").tags == []
    with pytest.raises(AttributeError):
        saver.other = 1  # type: ignore[attr-defined]


def test_a_subclass_may_change_a_default() -> None:
    class Rich(Account):
        balance: int = 1000

    assert Rich("a").balance == 1000


def test_a_subclass_may_override_a_handler() -> None:
    class Double(Account):
        def _deposited(self, event: Deposited) -> None:
            self.balance += 2 * event.amount

    double = Double("a")
    double.deposit(3)
    assert double.balance == 6


@pytest.mark.parametrize("every", [0, -1, 1.5, "5", True, False])
def test_a_snapshot_policy_that_makes_no_sense_is_refused(every: Any) -> None:
    with pytest.raises(DefinitionError) as caught:

        class Broken(Aggregate, snapshot_every=every):
            pass

    assert "Broken" in caught.value.owner
    assert "snapshot_every" in str(caught.value)
    assert isinstance(caught.value, TypeError)


@pytest.mark.parametrize("name", ["id", "version", "pending", "record"])
def test_reserved_names_cannot_be_state(name: str) -> None:
    with pytest.raises(DefinitionError) as caught:
        exec(
            f"class Broken(Aggregate):\n    {name}: int = 0",
            {"Aggregate": Aggregate, "__name__": "m"},
        )
    assert (caught.value.owner, caught.value.member) == ("m.Broken", name)


def test_state_needs_a_default() -> None:
    with pytest.raises(DefinitionError) as caught:

        class Broken(Aggregate):
            owner: str

    assert caught.value.member == "owner"
    assert "Broken.owner" in str(caught.value)


def test_a_base_that_lets_any_attribute_be_set_is_refused() -> None:
    class Mixin:
        pass

    with pytest.raises(DefinitionError) as caught:

        class Broken(Mixin, Aggregate):
            pass

    assert "__slots__" in str(caught.value)


def test_a_mixin_with_slots_is_welcome() -> None:
    class Mixin:
        __slots__ = ()

        def hello(self) -> str:
            return "hello"

    class Fine(Mixin, Aggregate):
        pass

    assert Fine("a").hello() == "hello"


@pytest.mark.parametrize("bad", ["", "a\tb", "x" * 513, "\ud800", "a\u2028b", 3, None, b"a"])
def test_an_id_that_cannot_be_one_is_refused(bad: Any) -> None:
    with pytest.raises(InvalidNameError) as caught:
        Account(bad)
    assert caught.value.name == bad
    assert caught.value.reason in str(caught.value)


def test_its_repr_shows_state() -> None:
    account = Account("a")
    account.deposit(1)
    assert repr(account) == "<Account 'a' v0 balance=1 tags=[]>"
