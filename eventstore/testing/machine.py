"""A state machine that throws random commands at an aggregate, and checks what must always hold.

Needs Hypothesis, and is imported only when it is asked for.
"""

from __future__ import annotations

import types
from collections.abc import Callable, Iterable, Sequence
from typing import Any, ClassVar, Final, TypeVar

from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, precondition, rule

from eventstore.aggregate import Aggregate
from eventstore.errors import EventStoreError, InvalidArgumentError, RebuildDiffersError
from eventstore.projections.projection import Projection
from eventstore.projections.table_projection import TableProjection
from eventstore.store import EventStore
from eventstore.testing.checks import (
    State,
    check_loads,
    check_projection,
    check_round_trip,
    check_snapshots,
    check_state,
    check_tables,
    replayed,
    state_of,
)
from eventstore.testing.commands import Command, Commands, commands_of
from eventstore.testing.memory import memory_store
from eventstore.testing.projecting import fold
from eventstore.testing.showing import alike, call_shown, differing_values, events_shown
from eventstore.testing.strategies import is_subclass
from eventstore.testing.surroundings import Surroundings

S = TypeVar("S", bound=Aggregate)
P = TypeVar("P", bound=Projection)

#: The aggregates that commands are given to.
IDS: Final = ("a", "b")
#: How often a snapshot is taken in a test: so that loads begin at one, and before one.
_EVERY: Final = 2
#: What no argument of a rule may be called.
_TAKEN: Final = frozenset({"id", "machine", "target", "targets"})


def aggregate_machine(
    cls: type[Aggregate],
    /,
    *,
    commands: Commands | None = None,
    refusals: type[Exception] | tuple[type[Exception], ...] = ValueError,
    projections: Iterable[type[Projection] | type[TableProjection]] = (),
    store: Callable[[], EventStore] = memory_store,
) -> type[RuleBasedStateMachine]:
    """A Hypothesis state machine that gives two aggregates of a class any commands, in any order.

        TestAccount = aggregate_machine(Account, projections=[Balances, Totals]).TestCase

    After each command it checks that

    - the aggregate is what a replay of its events leads to; so is each version that the store
      loads, with snapshots and without, each step of its history, and whatever any snapshot and
      the events after it lead to;
    - the log gives back the very events that were recorded;
    - a command that refuses records nothing, and changes nothing;
    - a projection is a fold of the log, and a read model has the rows that a rebuild gives;
    - handlers keep nothing outside the state (what they did is put back before the next run).

    `commands` says which, with strategies for the arguments that type hints do not tell enough
    about: `{Account.open: {}, Account.deposit: {"amount": st.integers(1, 100)}}`. By default they
    are all public methods, and class methods that return an instance, with any arguments that
    their hints allow; where there are such class methods, only they begin an aggregate. `refusals`
    are the errors by which a command says no; an error of this library is none, unless it is
    named. `store` makes an empty store for each run.

    What it cannot see: a handler that asks for the time, or for something else outside, and gets
    the same answer throughout a test.

    Raises InvalidArgumentError for a command whose arguments cannot be drawn.
    """
    if not is_subclass(cls, Aggregate):
        raise InvalidArgumentError("cls", cls, "give a subclass of Aggregate")
    followed = list(projections)
    snapped = _variant(cls, _EVERY)
    found = commands_of(snapped, commands)
    body: dict[str, Any] = {
        "__doc__": f"Random commands for {cls.__name__}.",
        "__module__": cls.__module__,
        "_declares_snapshots": cls.__snapshot_every__ is not None,
        "_snapped": snapped,
        "_classes": (snapped, _variant(cls, None)),
        "_begun_by_commands": any(command.makes for command in found),
        "_refusals": refusals if isinstance(refusals, tuple) else (refusals,),
        "_new_store": (store,),
        "_projections": [
            (each, _keeping(each)) for each in followed if issubclass(each, Projection)
        ],
        "_tables": [each for each in followed if issubclass(each, TableProjection)],
    }
    for command in found:
        body[f"_rule_{command.name}"] = _rule(command)
    return type(f"{cls.__name__}Machine", (AggregateMachine,), body)


def _variant(cls: type[S], every: int | None) -> type[S]:
    """The same class, with another policy of snapshots."""
    variant: type[S] = types.new_class(
        cls.__name__, (cls,), {"stream": cls.__stream__.text}, lambda body: _place(body, cls)
    )
    variant.__snapshot_every__ = every
    return variant


def _keeping(cls: type[P]) -> type[P]:
    """The same projection, which keeps its state now and then."""
    options = {"name": cls.__follower__, "snapshot_every": _EVERY}
    return types.new_class(cls.__name__, (cls,), options, lambda body: _place(body, cls))


def _place(body: dict[str, Any], cls: type) -> None:
    body.update(__module__=cls.__module__, __qualname__=cls.__qualname__, __doc__=cls.__doc__)


def _rule(command: Command) -> Any:
    # Names that mean something to Hypothesis, or here, are drawn under others.
    names = {f"{name}_" if name in _TAKEN else name: name for name in command.arguments}

    def give(machine: AggregateMachine, **drawn: Any) -> None:
        label = drawn.pop("id")
        machine._give(command, label, {names[name]: value for name, value in drawn.items()})

    give.__name__ = give.__qualname__ = command.name
    strategies = {drawn: command.arguments[name] for drawn, name in names.items()}
    made: Any = rule
    return made(id=st.sampled_from(IDS), **strategies)(give)


class AggregateMachine(RuleBasedStateMachine):
    """The machine of one class: `aggregate_machine` makes subclasses of it."""

    _declares_snapshots: ClassVar[bool]
    _snapped: ClassVar[type[Aggregate]]
    _classes: ClassVar[tuple[type[Aggregate], ...]]
    _begun_by_commands: ClassVar[bool]
    _refusals: ClassVar[tuple[type[Exception], ...]]
    _new_store: ClassVar[tuple[Callable[[], EventStore]]]  # in a tuple, so that it is no method
    _projections: ClassVar[Sequence[tuple[type[Projection], type[Projection]]]]
    _tables: ClassVar[Sequence[type[TableProjection]]]

    def __init__(self) -> None:
        super().__init__()
        (new_store,) = self._new_store
        self._store = new_store()
        self._ids: dict[str, str] = {}
        self._seen = 0
        self._live = [cls() for cls, _ in self._projections]
        watched: list[Any] = [self._snapped, *(cls for cls, _ in self._projections), *self._tables]
        self._surroundings = [Surroundings(cls) for cls in watched]

    def teardown(self) -> None:
        self._store.close()
        for each in self._surroundings:
            each.restore()

    # --- steps ---------------------------------------------------------------------------------

    def _give(self, command: Command, label: str, arguments: dict[str, Any]) -> None:
        """Give a command to the aggregate that a label stands for, and check everything."""
        id = self._ids.get(label)
        if command.makes if id is not None else self._begun_by_commands and not command.makes:
            return  # it is there already, or not yet
        if command.makes:
            named = {"id": label, **arguments} if command.takes_id else arguments
            shown = call_shown(command.function, (), named)
            done, made = self._try(shown, lambda: command.call(arguments=named))
            if not done:
                return
            aggregate: Aggregate = made
        else:
            shown = call_shown(command.function, (), arguments)
            new = id is None
            aggregate = self._snapped(label) if new else self._store.load(self._snapped, id or "")
            before = state_of(aggregate)
            done, _ = self._try(shown, lambda: command.call(aggregate, arguments=arguments))
            if not done:
                self._check_refusal(shown, aggregate, before)
                return
        recorded = aggregate.pending
        self._store.save(aggregate)
        if aggregate.version:
            self._ids[label] = aggregate.id
            self._check_aggregate(aggregate, shown, len(recorded), recorded)
        else:
            check_state(replayed(self._snapped, label, ()), 0, state_of(aggregate), shown)
        self._check_surroundings()
        self._check_projections()

    def _try(self, shown: str, call: Callable[[], Any]) -> tuple[bool, Any]:
        """Whether a command was done, and not refused, and what it returned."""
        try:
            return True, call()
        except Exception as error:
            if self._is_refusal(error):
                return False, None
            error.add_note(
                f"raised by {shown}; if that is how it refuses, give aggregate_machine(..., "
                f"refusals=...) with {type(error).__name__} among them"
            )
            raise

    def _is_refusal(self, error: Exception) -> bool:
        # InvalidEventError is a ValueError too, and tells of an event that the log cannot keep.
        named = self._refusals
        if isinstance(error, EventStoreError):
            named = tuple(each for each in named if issubclass(each, EventStoreError))
        return isinstance(error, named)

    @precondition(lambda self: self._ids)
    @rule()
    def delete_snapshots(self) -> None:
        """Without snapshots, everything is as it was."""
        self._store.delete_snapshots()
        self._store.forget()
        for id in self._ids.values():
            aggregate = self._store.load(self._snapped, id)
            self._check_aggregate(aggregate, f"{self._snapped.__name__}, loaded", 0, ())
        self._check_projections()

    @precondition(lambda self: self._tables and self._ids)
    @rule()
    def rebuild(self) -> None:
        """A rebuild changes no row."""
        for cls in self._tables:
            self._store.catch_up(cls)
            try:
                self._store.rebuild(cls, verify=True)
            except RebuildDiffersError as error:
                raise AssertionError(str(error)) from error
            check_tables(self._store, cls)

    # --- checks --------------------------------------------------------------------------------

    def _check_refusal(self, shown: str, aggregate: Aggregate, before: State) -> None:
        if aggregate.pending:
            raise AssertionError(
                f"{shown} refused after it had recorded {events_shown(aggregate.pending)}: "
                "whoever holds the aggregate could still save that; check first, then record"
            )
        after = state_of(aggregate)
        if not alike(before, after):
            raise AssertionError(
                f"{shown} refused and has changed the state (- before, + after):\n\n"
                f"{differing_values(before, after)}\n"
            )
        stream = type(aggregate).__stream__.stream(aggregate.id)
        assert self._store.version(stream) == aggregate.version

    def _check_aggregate(
        self, aggregate: Aggregate, shown: str, count: int, recorded: Sequence[Any]
    ) -> None:
        cls, id = self._snapped, aggregate.id
        records = list(self._store.read(cls.__stream__.stream(id)))
        if [record.version for record in records] != list(range(1, aggregate.version + 1)):
            raise AssertionError(f"{aggregate!r} is not at the version of its stream: {records!r}")
        check_round_trip(recorded, records[len(records) - count :])
        events = [record.event for record in records]
        states = replayed(cls, id, events)
        check_state(states, aggregate.version, state_of(aggregate), f"{shown}: the aggregate")
        check_snapshots(cls, id, events, states, kept=self._declares_snapshots)
        check_loads(self._store, self._classes, id, states)

    def _check_projections(self) -> None:
        if not self._projections and not self._tables:
            return
        records = list(self._store.read_all())
        new, self._seen = records[self._seen :], len(records)
        for live, classes in zip(self._live, self._projections, strict=True):
            for record in new:
                fold(live, record)
            check_projection(self._store, classes, live, records)
        for cls in self._tables:
            check_tables(self._store, cls)
        self._check_surroundings()

    def _check_surroundings(self) -> None:
        for each in self._surroundings:
            each.check()
