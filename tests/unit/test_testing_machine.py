"""The state machine: an aggregate that is right passes, and each planted bug is found."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Annotated, Any, ClassVar, Self

import msgspec
import pytest
from hypothesis import Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, run_state_machine_as_test
from msgspec import Meta
from sqlalchemy import Column, Integer, String, Table

from eventstore import (
    Aggregate,
    Event,
    EventStore,
    InvalidArgumentError,
    InvalidEventError,
    Projection,
    RecordedEvent,
    TableProjection,
    on,
)
from eventstore.testing import aggregate_machine, memory_store


class Opened(Event, name="machine-opened"):
    owner: str


class Deposited(Event, name="machine-deposited"):
    amount: int


class Listed(Event, name="machine-listed"):
    items: list[str]


class Noted(Event, name="machine-noted"):
    note: Any


small = st.integers(-2, 20)


def run(
    machine: type[RuleBasedStateMachine],
    *,
    examples: int = 60,
    steps: int = 12,
    shrink: bool = False,
) -> None:
    run_state_machine_as_test(
        machine,
        settings=settings(
            max_examples=examples,
            stateful_step_count=steps,
            deadline=None,
            database=None,
            derandomize=True,
            phases=[Phase.generate, Phase.shrink] if shrink else [Phase.generate],
        ),
    )


def found(
    machine: type[RuleBasedStateMachine],
    error: type[Exception] = AssertionError,
    *,
    shrink: bool = False,
) -> str:
    """What the machine says about a planted bug, with what Hypothesis adds: the steps."""
    with pytest.raises(error) as caught:
        run(machine, shrink=shrink)
    return "\n".join([str(caught.value), *caught.value.__notes__])


class Account(Aggregate, stream="machine/{id}", snapshot_every=10):
    owner: str = ""
    balance: int = 0
    items: list[str] = []  # noqa: RUF012

    @classmethod
    def open(cls, id: str, owner: str) -> Self:
        account = cls(id)
        account.record(Opened(owner=owner))
        return account

    def deposit(self, amount: Annotated[int, Meta(ge=-5, le=1000)], *, twice: bool = False) -> None:
        if amount <= 0:
            raise ValueError("a deposit must be positive")
        for _ in range(1 + twice):
            self.record(Deposited(amount=amount))

    def fill(self, items: list[str], /, target: int = 0) -> None:
        self.record(Listed(items=items))

    def look(self) -> int:
        return self.balance

    @on(Opened)
    def _opened(self, event: Opened) -> None:
        self.owner = event.owner

    @on(Deposited)
    def _deposited(self, event: Deposited) -> None:
        self.balance += event.amount

    @on(Listed)
    def _listed(self, event: Listed) -> None:
        self.items = self.items + event.items


class Totals(Projection, name="machine-totals"):
    total: int = 0
    streams: dict[str, int] = {}  # noqa: RUF012

    @on(Deposited)
    def _deposited(self, event: Deposited, record: RecordedEvent) -> None:
        self.total += event.amount
        self.streams[record.aggregate_id] = record.version


class Balances(TableProjection, name="machine-balances"):
    rows = Table(
        "machine_balances",
        TableProjection.metadata,
        Column("id", String, primary_key=True),
        Column("balance", Integer, nullable=False),
    )

    @on(Opened)
    def _opened(self, event: Opened, record: RecordedEvent) -> None:
        self.insert(self.rows, id=record.aggregate_id, balance=0)

    @on(Deposited)
    def _deposited(self, event: Deposited, record: RecordedEvent) -> None:
        self.add(self.rows, record.aggregate_id, balance=event.amount)


# --- what is right ---------------------------------------------------------------------------


def test_an_aggregate_and_projections_that_are_right_pass() -> None:
    run(aggregate_machine(Account, projections=[Totals, Balances]), examples=15)


def test_it_is_a_test_case() -> None:
    case = aggregate_machine(Account).TestCase
    case.settings = settings(max_examples=3, stateful_step_count=5, deadline=None)
    case("runTest").debug()
    assert case.__name__ == "AccountMachine.TestCase"


def test_commands_can_be_named_with_their_arguments() -> None:
    given: list[tuple[str, Any]] = []

    class Watched(Account, stream="machine-watched/{id}"):
        def deposit(self, amount: int, *, twice: bool = False) -> None:
            given.append((self.id, amount))
            super().deposit(amount, twice=False)

        def close(self, because) -> None:  # type: ignore[no-untyped-def]
            raise AssertionError("nobody asked for it")

    commands = {Watched.open: {}, Watched.deposit: {"amount": st.sampled_from([3, 4])}}
    run(aggregate_machine(Watched, commands=commands), examples=5)
    assert {amount for _, amount in given} == {3, 4}
    assert {id for id, _ in given} == {"a", "b"}
    with pytest.raises(InvalidArgumentError, match=r'Watched\.close: \{"because": \.\.\.\}'):
        aggregate_machine(Watched)
    with pytest.raises(InvalidArgumentError, match="no such parameter"):
        aggregate_machine(Watched, commands={Watched.deposit: {"amuont": st.just(1)}})


def test_without_a_factory_any_command_begins_an_aggregate() -> None:
    versions: set[int] = set()

    class Plain(Aggregate, stream="machine-plain/{id}"):
        count: int = 0

        def deposit(self) -> None:
            versions.add(self.version)
            self.record(Deposited(amount=1))

        @on(Deposited)
        def _deposited(self, event: Deposited) -> None:
            self.count += event.amount

    run(aggregate_machine(Plain), examples=5)
    assert {0, 1, 2} <= versions


def test_any_function_of_an_aggregate_is_a_command() -> None:
    def pay_in(account: Account, amount: int) -> None:
        account.deposit(max(1, amount))

    run(aggregate_machine(Account, commands={pay_in: {"amount": small}}), examples=5)


def test_the_store_can_be_another_one() -> None:
    opened: list[EventStore] = []

    def cached() -> EventStore:
        opened.append(memory_store(cache=10))
        return opened[-1]

    run(aggregate_machine(Account, store=cached), examples=5)
    assert opened
    assert all(store._cache is not None for store in opened)


def test_the_class_itself_is_left_as_it_was() -> None:
    before = (Account.__snapshot_every__, Account.__stream__.text, Totals.__snapshot_every__)
    aggregate_machine(Account, projections=[Totals])
    after = (Account.__snapshot_every__, Account.__stream__.text, Totals.__snapshot_every__)
    assert before == after == (10, "machine/{id}", None)


def test_refusals_can_be_other_errors() -> None:
    class Denied(Exception):
        pass

    class Strict(Account, stream="machine-strict/{id}"):
        def deposit(self, amount: int, *, twice: bool = False) -> None:
            raise Denied("no")

    text = found(aggregate_machine(Strict), Denied)
    assert "refusals=...) with Denied among them" in text
    run(aggregate_machine(Strict, refusals=(Denied, ValueError)), examples=5)


def test_what_is_no_aggregate_or_has_no_command_is_refused() -> None:
    class Idle(Aggregate, stream="machine-idle/{id}"):
        pass

    with pytest.raises(InvalidArgumentError, match="no public method"):
        aggregate_machine(Idle)
    with pytest.raises(InvalidArgumentError, match="subclass of Aggregate"):
        aggregate_machine(Totals)  # type: ignore[arg-type]


# --- planted in aggregates -------------------------------------------------------------------

SEEN: list[int] = []
OWNERS: dict[str, str] = {}
CALLS = itertools.count()


def broken(name: str, handler: Callable[[Any, Deposited], None]) -> type[Aggregate]:
    class Broken(Account, stream=f"machine-{name}/{{id}}"):
        _deposited = on(Deposited)(handler)

    return Broken


def commands_for(cls: Any) -> dict[Any, Any]:
    return {cls.open: {"owner": st.sampled_from(["x", "y"])}, cls.deposit: {"amount": small}}


def test_state_in_a_list_of_the_module_is_found() -> None:
    def _deposited(self: Account, event: Deposited) -> None:
        SEEN.append(event.amount)
        self.balance = sum(SEEN)

    cls = broken("seen", _deposited)
    text = found(aggregate_machine(cls, commands=commands_for(cls)))
    assert "is not what a replay of its events leads to (- replayed, + found)" in text
    assert "state.deposit(" in text


def test_state_outside_is_found_where_each_replay_gives_the_same() -> None:
    def _deposited(self: Account, event: Deposited) -> None:
        OWNERS[self.id] = f"{event.amount}"
        self.owner = OWNERS[self.id]

    cls = broken("owners", _deposited)
    machine = aggregate_machine(cls, commands=commands_for(cls))
    text = found(machine, shrink=True)
    assert "uses `OWNERS`, which has changed: handlers of Broken must not keep" in text
    steps = (
        "state = BrokenMachine()\n"
        "state.open(id='a', owner='x')\n"
        "state.deposit(amount=1, id='a', twice=False)\n"
        "state.teardown()"
    )
    assert steps in text
    assert OWNERS == {}  # it is put back


def test_a_default_that_all_instances_share_is_found() -> None:
    class Shared:
        """A ledger that refuses to be copied."""

        def __init__(self) -> None:
            self.amounts: list[int] = []

        def __deepcopy__(self, memo: object) -> Shared:
            return self

    ledger = Shared()

    def _deposited(self: Account, event: Deposited) -> None:
        ledger.amounts.append(event.amount)
        self.balance = len(ledger.amounts)

    cls = broken("ledger", _deposited)
    assert "is not what a replay" in found(aggregate_machine(cls, commands=commands_for(cls)))


def test_state_in_a_mutable_default_of_a_handler_is_found() -> None:
    def _deposited(self: Account, event: Deposited) -> None:
        _keep(event.amount)
        self.balance += event.amount

    def _keep(amount: int, kept: list[int] = []) -> None:  # noqa: B006
        kept.append(amount)

    cls = broken("kept", _deposited)
    text = found(aggregate_machine(cls, commands=commands_for(cls)))
    assert "which has changed: handlers of Broken" in text


def test_a_handler_that_asks_for_the_time_is_found() -> None:
    def _deposited(self: Account, event: Deposited) -> None:
        self.owner = datetime.now(UTC).isoformat()

    cls = broken("clock", _deposited)
    assert "is not what a replay" in found(aggregate_machine(cls, commands=commands_for(cls)))


def test_a_handler_that_depends_on_the_order_of_calls_is_found() -> None:
    def _deposited(self: Account, event: Deposited) -> None:
        self.balance = next(CALLS)

    cls = broken("calls", _deposited)
    assert "is not what a replay" in found(aggregate_machine(cls, commands=commands_for(cls)))


def test_a_command_that_changes_state_itself_is_found() -> None:
    class Direct(Account, stream="machine-direct/{id}"):
        def rename(self, owner: str) -> None:
            self.owner = owner
            self.record(Deposited(amount=0))

    text = found(aggregate_machine(Direct))
    assert "Direct.rename(" in text
    assert "the aggregate, at version" in text


def test_a_command_that_refuses_after_it_recorded_is_found() -> None:
    class Late(Account, stream="machine-late/{id}"):
        def withdraw(self, amount: int) -> None:
            self.record(Deposited(amount=-amount))
            if self.balance < 0:
                raise ValueError("too much")

    text = found(aggregate_machine(Late))
    assert "refused after it had recorded Deposited(amount=" in text


def test_a_command_that_refuses_after_it_changed_state_is_found() -> None:
    class Hasty(Account, stream="machine-hasty/{id}"):
        def rename(self, owner: str) -> None:
            self.owner = owner
            if not owner:
                raise ValueError("no owner")
            self.record(Opened(owner=owner))

    commands = {Hasty.open: {"owner": st.just("x")}, Hasty.rename: {"owner": st.just("")}}
    text = found(aggregate_machine(Hasty, commands=commands))
    assert "refused and has changed the state" in text
    assert "-   owner='x'\n+   owner=''" in text


def test_state_that_no_snapshot_can_keep_is_found() -> None:
    class Wrong(Account, stream="machine-wrong/{id}", snapshot_every=5):
        last: int = 0

        @on(Opened)
        def _opened(self, event: Opened) -> None:
            self.last = event.owner  # type: ignore[assignment]

    text = found(aggregate_machine(Wrong))
    assert "cannot be kept as a snapshot: correct the annotations" in text


def test_a_handler_that_tells_a_restored_value_from_another_is_found() -> None:
    class Fussy(Account, stream="machine-fussy/{id}", snapshot_every=5):
        known: Any = None

        @on(Opened)
        def _opened(self, event: Opened) -> None:
            self.known = MARK

        @on(Deposited)
        def _deposited(self, event: Deposited) -> None:
            self.balance += 1 if self.known is MARK else 2

    text = found(aggregate_machine(Fussy, commands=commands_for(Fussy)))
    assert "from a snapshot at version" in text


MARK = "".join(["ma", "rk"])


# --- planted in events -----------------------------------------------------------------------


def test_a_field_that_does_not_come_back_is_found() -> None:
    class Noting(Account, stream="machine-noting/{id}"):
        def note(self, day: int) -> None:
            self.record(Noted(note=datetime(2026, 1, day % 28 + 1)))

    text = found(aggregate_machine(Noting), InvalidEventError)
    assert "would be read back as" in text
    assert "raised by Noting.note(day=" in text


@dataclass
class Money:
    """The rounding is done again each time, and equality does not look at it."""

    amount: int
    rounds: int = field(default=0, compare=False)

    def __post_init__(self) -> None:
        self.rounds += 1


class Paid(Event, name="machine-paid"):
    money: Money


def test_a_field_that_changes_with_each_reading_is_found() -> None:
    class Paying(Account, stream="machine-paying/{id}"):
        def pay(self, amount: int) -> None:
            self.record(Paid(money=Money(amount)))

    text = found(aggregate_machine(Paying))
    assert "Paid changes each time it is written and read" in text or "gives back other" in text


def test_an_event_that_a_handler_changes_is_found() -> None:
    class Sorting(Account, stream="machine-sorting/{id}"):
        @on(Listed)
        def _listed(self, event: Listed) -> None:
            event.items.append("and more")
            self.items = list(event.items)

    text = found(aggregate_machine(Sorting))
    assert "the log gives back other events than were recorded" in text


# --- planted in projections ------------------------------------------------------------------


def test_a_projection_that_keeps_state_on_its_class_is_found() -> None:
    class Hoarding(Projection, name="machine-hoarding"):
        sums: ClassVar[dict[str, int]] = {}
        total: int = 0

        @on(Deposited)
        def _deposited(self, event: Deposited) -> None:
            self.sums["all"] = self.sums.get("all", 0) + event.amount
            self.total = self.sums["all"]

    machine = aggregate_machine(Account, commands=commands_for(Account), projections=[Hoarding])
    assert "Hoarding: an instance that follows the log is not what a fold" in found(machine)


def test_a_projection_that_keeps_what_makes_no_difference_yet_is_found() -> None:
    class Remembering(Projection, name="machine-remembering"):
        owners: ClassVar[dict[str, str]] = {}
        last: str = ""

        @on(Opened)
        def _opened(self, event: Opened, record: RecordedEvent) -> None:
            self.owners[record.aggregate_id] = event.owner
            self.last = self.owners[record.aggregate_id]

    machine = aggregate_machine(Account, commands=commands_for(Account), projections=[Remembering])
    assert "uses `owners`, which has changed: handlers of Remembering" in found(machine)


def test_a_projection_whose_state_cannot_be_taken_up_again_is_found() -> None:
    class Marked(Projection, name="machine-marked"):
        known: Any = None
        count: int = 0

        @on(Deposited)
        def _deposited(self, event: Deposited) -> None:
            self.count += 1 if self.known is None or self.known is MARK else 2
            self.known = MARK

    machine = aggregate_machine(Account, commands=commands_for(Account), projections=[Marked])
    assert "store.project, from a state that was kept" in found(machine)


def test_a_read_model_that_keeps_state_on_its_class_is_found() -> None:
    class Numbering(TableProjection, name="machine-numbering"):
        rows = Table(
            "machine_numbering",
            TableProjection.metadata,
            Column("id", String, primary_key=True),
            Column("number", Integer, nullable=False),
        )
        number: ClassVar[int] = 0

        @on(Opened)
        def _opened(self, event: Opened, record: RecordedEvent) -> None:
            type(self).number += 1
            self.insert(self.rows, id=record.aggregate_id, number=self.number)

    machine = aggregate_machine(Account, commands=commands_for(Account), projections=[Numbering])
    text = found(machine)
    assert "table 'machine_numbering' of Numbering has other rows than a rebuild gives" in text
    assert "+       number=" in text


def test_a_read_model_whose_handler_fails_is_found() -> None:
    class Failing(TableProjection, name="machine-failing"):
        rows = Table(
            "machine_failing", TableProjection.metadata, Column("id", String, primary_key=True)
        )

        @on(Deposited)
        def _deposited(self, event: Deposited, record: RecordedEvent) -> None:
            self.insert(self.rows, id=record.aggregate_id)

    machine = aggregate_machine(Account, commands=commands_for(Account), projections=[Failing])
    text = found(machine)
    assert "a handler of Failing failed" in text
    assert "machine-deposited" in text


def test_events_of_any_struct_can_be_drawn_for_a_command() -> None:
    class Item(msgspec.Struct):
        name: str
        count: Annotated[int, Meta(ge=1, le=3)]

    counts: set[int] = set()

    def add(account: Account, item: Item) -> None:
        counts.add(item.count)
        account.record(Listed(items=[item.name]))

    items = st.builds(Item, st.just("x"), st.integers(1, 3))
    run(aggregate_machine(Account, commands={add: {"item": items}}), examples=5)
    assert counts == {1, 2, 3}
