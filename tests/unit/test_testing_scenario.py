"""Given, when, then: what passes, and the very text of what fails."""

from __future__ import annotations

from dataclasses import dataclass
from decimal import Decimal
from textwrap import dedent
from typing import Self

import pytest

from eventstore import Aggregate, Event, InvalidArgumentError, InvalidEventError, on
from eventstore.testing import Outcome, given, when


@dataclass
class Address:
    street: str
    lines: list[str]


class Opened(Event, name="scenario-opened"):
    owner: str


class Deposited(Event, name="scenario-deposited"):
    amount: Decimal
    note: str = ""


class Moved(Event, name="scenario-moved"):
    to: Address


class Noticed(Event, name="scenario-noticed"):
    """Nobody handles it."""


class Account(Aggregate, stream="scenario/{id}"):
    owner: str = ""
    balance: Decimal = Decimal(0)

    @classmethod
    def open(cls, id: str, owner: str) -> Self:
        account = cls(id)
        if not owner:
            raise ValueError("an account has an owner")
        account.record(Opened(owner=owner))
        return account

    def deposit(self, amount: Decimal, *, note: str = "") -> str:
        self.record(Deposited(amount=amount, note=note))
        if amount <= 0:
            raise ValueError("a deposit must be positive")
        return "thanks"

    def deposit_in_halves(self, amount: Decimal) -> None:
        self.deposit(amount / 2)
        self.deposit(amount / 2)

    def move(self, street: str, *lines: str) -> None:
        self.record(Moved(to=Address(street, list(lines))))

    def look(self) -> Decimal:
        return self.balance

    @property
    def rich(self) -> bool:
        return self.balance > 100

    @on(Opened)
    def _opened(self, event: Opened) -> None:
        self.owner = event.owner

    @on(Deposited)
    def _deposited(self, event: Deposited) -> None:
        self.balance += event.amount


FIVE = Decimal(5)


def failure(check: object) -> str:
    with pytest.raises(AssertionError) as caught:
        check()  # type: ignore[operator]
    return str(caught.value)


def text(shown: str) -> str:
    return dedent(shown).lstrip("\n")


# --- what passes -----------------------------------------------------------------------------


def test_a_command_records_events_and_changes_state() -> None:
    outcome = (
        given(Account, Opened(owner="Ann"), Deposited(amount=FIVE))
        .when(Account.deposit, Decimal(3), note="rent")
        .then(Deposited(amount=Decimal(3), note="rent"))
        .state(balance=Decimal(8), owner="Ann", rich=False)
    )
    assert outcome.result == "thanks"
    assert outcome.events == (Deposited(amount=Decimal(3), note="rent"),)
    assert outcome.aggregate.balance == 8
    assert outcome.aggregate.version == 2


def test_nothing_happened_before_a_factory() -> None:
    made = when(Account.open, "ann", owner="Ann").then(Opened(owner="Ann")).state(owner="Ann")
    assert made.aggregate.id == "ann"
    assert made.result is made.aggregate
    when(Account.open, "ann", "").raises(ValueError, match="has an owner").nothing()


def test_a_command_may_record_nothing() -> None:
    assert given(Account).when(Account.look).nothing().result == 0


def test_any_function_of_an_aggregate_is_a_command() -> None:
    given(Account).when(lambda account: account.deposit(FIVE)).then(Deposited(amount=FIVE))


def test_an_event_that_is_not_handled_still_counts_as_a_version() -> None:
    assert given(Account, Noticed(), Opened(owner="Ann"), id="x").aggregate.version == 2
    assert given(Account, id="x").aggregate.id == "x"


def test_what_was_given_serves_several_commands() -> None:
    account = given(Account, Deposited(amount=FIVE))
    account.when(Account.deposit, FIVE).state(balance=Decimal(10))
    account.when(Account.deposit, FIVE).state(balance=Decimal(10))
    assert account.aggregate.pending == ()


def test_an_error_is_expected_by_class_and_by_text() -> None:
    refused = given(Account).when(Account.deposit, Decimal(0))
    refused.raises(ValueError)
    refused.raises((KeyError, ValueError), match=r"must be \w+")


def test_after_an_error_the_rest_says_what_was_done_before() -> None:
    refused = given(Account).when(Account.deposit, Decimal(0)).raises(ValueError)
    refused.then(Deposited(amount=Decimal(0)))
    assert refused.events == (Deposited(amount=Decimal(0)),)
    with pytest.raises(AssertionError, match="recorded events"):
        refused.nothing()


def test_an_error_comes_out_of_plain_asserts() -> None:
    for look in ("events", "aggregate", "result"):
        outcome = given(Account).when(Account.deposit, Decimal(0))
        with pytest.raises(ValueError, match="must be positive"):
            getattr(outcome, look)


def test_an_error_that_nobody_looked_at_is_told() -> None:
    with pytest.warns(RuntimeWarning, match=r"Account\.deposit\(Decimal\('0'\)\) raised"):
        given(Account).when(Account.deposit, Decimal(0))


def test_values_that_are_not_equal_to_themselves_are_alike() -> None:
    nan = Decimal("NaN")
    given(Account).when(lambda account: account.record(Deposited(amount=nan))).then(
        Deposited(amount=nan)
    )


# --- what is refused -------------------------------------------------------------------------


def test_given_events_are_checked_as_recorded_ones_are() -> None:
    with pytest.raises(InvalidEventError, match="owner"):
        given(Account, Opened(owner=5))  # type: ignore[arg-type]


def test_a_factory_is_no_command_of_what_was_given() -> None:
    with pytest.raises(InvalidArgumentError, match="use when"):
        given(Account).when(Account.open, "x", "Ann")  # type: ignore[arg-type]


def test_a_factory_makes_an_aggregate() -> None:
    with pytest.raises(InvalidArgumentError, match="not an aggregate"):
        when(lambda: 5)  # type: ignore[arg-type, return-value]


def test_state_has_a_name() -> None:
    with pytest.raises(InvalidArgumentError, match="its state is: owner, balance"):
        given(Account).when(Account.look).state(balanc=5)


# --- the text of failures --------------------------------------------------------------------


def deposited() -> Outcome[Account, None]:
    return given(Account).when(Account.deposit_in_halves, Decimal(10))


def test_a_field_of_another_value_is_shown_as_such() -> None:
    shown = failure(lambda: deposited().then(Deposited(amount=FIVE), Deposited(FIVE, "tip")))
    assert shown == text("""
        Account.deposit_in_halves(Decimal('10')) recorded other events than expected (- expected, + recorded):

            Deposited(amount=Decimal('5'), note='')
            Deposited
                amount=Decimal('5')
        -       note='tip'
        +       note=''
        """)  # noqa: E501


def test_an_event_of_another_class_is_shown_whole() -> None:
    shown = failure(lambda: deposited().then(Deposited(amount=FIVE), Opened(owner="Ann")))
    assert shown.partition("\n\n")[2] == text("""
            Deposited(amount=Decimal('5'), note='')
        -   Opened(owner='Ann')
        +   Deposited(amount=Decimal('5'), note='')
        """)


def test_too_few_and_too_many_events_are_lined_up() -> None:
    few = failure(lambda: deposited().then(Deposited(amount=FIVE)))
    assert few.partition("\n\n")[2] == text("""
            Deposited(amount=Decimal('5'), note='')
        +   Deposited(amount=Decimal('5'), note='')
        """)
    five = Deposited(amount=FIVE)
    many = failure(lambda: deposited().then(Opened(owner="Ann"), five, five))
    assert many.partition("\n\n")[2] == text("""
        -   Opened(owner='Ann')
            Deposited(amount=Decimal('5'), note='')
            Deposited(amount=Decimal('5'), note='')
        """)


def test_nothing_is_shown_as_nothing() -> None:
    shown = failure(lambda: given(Account).when(Account.look).then(Opened(owner="Ann")))
    assert shown == text("""
        Account.look() recorded other events than expected (- expected, + recorded):

        -   Opened(owner='Ann')
        +   (nothing)
        """)
    shown = failure(lambda: given(Account).when(Account.deposit, FIVE, note="x").nothing())
    assert shown == text("""
        Account.deposit(Decimal('5'), note='x') recorded events (- expected, + recorded):

        -   (nothing)
        +   Deposited(amount=Decimal('5'), note='x')
        """)


def test_of_a_value_with_parts_only_those_that_differ_are_shown() -> None:
    moved = given(Account).when(Account.move, "Hill", "left", "2nd floor")
    shown = failure(lambda: moved.then(Moved(to=Address("Hill", ["left", "3rd floor"]))))
    assert shown.partition("\n\n")[2] == text("""
            Moved
        -       to.lines[1]='3rd floor'
        +       to.lines[1]='2nd floor'
        """)
    shown = failure(lambda: moved.then(Moved(to=Address("Hill", ["left"]))))
    assert shown.partition("\n\n")[2] == text("""
            Moved
        -       to.lines=['left']
        +       to.lines=['left', '2nd floor']
        """)


def test_values_that_look_the_same_are_told_apart_by_their_types() -> None:
    class Odd(str):
        __slots__ = ()

        def __eq__(self, other: object) -> bool:
            return False

        __hash__ = str.__hash__

        def __repr__(self) -> str:
            return "'Ann'"

    outcome = given(Account, Opened(owner="Ann")).when(Account.look)
    shown = failure(lambda: outcome.state(owner=Odd("Ann")))
    assert "-   owner='Ann' (a " in shown
    assert "+   owner='Ann' (a builtins.str)" in shown


def test_an_error_where_events_were_expected_is_the_cause() -> None:
    with pytest.raises(AssertionError) as caught:
        given(Account).when(Account.deposit, Decimal(0)).then(Deposited(amount=FIVE))
    assert str(caught.value) == (
        "Account.deposit(Decimal('0')) raised ValueError: a deposit must be positive; it should "
        "have recorded Deposited(amount=Decimal('5'), note='')"
    )
    assert isinstance(caught.value.__cause__, ValueError)


def test_an_error_that_did_not_come_is_told_with_what_was_recorded() -> None:
    assert failure(lambda: given(Account).when(Account.deposit, FIVE).raises(ValueError)) == (
        "Account.deposit(Decimal('5')) should have raised ValueError, and recorded "
        "Deposited(amount=Decimal('5'), note='')"
    )


def test_another_error_and_another_text_are_told() -> None:
    refused = given(Account).when(Account.deposit, Decimal(0))
    assert failure(lambda: refused.raises((KeyError, OSError))) == (
        "Account.deposit(Decimal('0')) should have raised KeyError or OSError, and raised "
        "ValueError: a deposit must be positive"
    )
    assert failure(lambda: refused.raises(ValueError, match="large")) == text("""
        Account.deposit(Decimal('0')) raised ValueError with another text (- expected, + raised):

        -   large
        +   a deposit must be positive
        """)


def test_another_state_is_shown_by_attribute() -> None:
    outcome = given(Account, Opened(owner="Ann")).when(Account.deposit, FIVE)
    assert failure(lambda: outcome.state(owner="Ann", balance=Decimal(6))) == text("""
        Account.deposit(Decimal('5')) led to another state than expected (- expected, + found):

            owner='Ann'
        -   balance=Decimal('6')
        +   balance=Decimal('5')
        """)
