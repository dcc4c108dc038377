"""Aggregates: state that only events change. Pure: no I/O, testable without a store."""

from __future__ import annotations

from collections.abc import Iterable
from typing import ClassVar, TypeVar

from eventstore import names
from eventstore.errors import InvalidEventError
from eventstore.event import Event, seal
from eventstore.names import StreamPattern
from eventstore.state import Stateful, check_snapshot_every

S = TypeVar("S", bound="Aggregate")

#: An event that was recorded and is not yet saved, with its payload.
Pending = tuple[Event, bytes]


class Aggregate(Stateful):
    """State that only events change.

        class Account(Aggregate):
            balance: int = 0

            def deposit(self, amount: int) -> None:
                if amount <= 0:
                    raise ValueError("a deposit must be positive")
                self.record(MoneyDeposited(amount=amount))

            @on(MoneyDeposited)
            def _deposited(self, event: MoneyDeposited) -> None:
                self.balance += event.amount

    Annotated attributes with defaults are its state; methods are its commands, which check and
    record; handlers change the state, and do nothing else, since they run again at each load.
    A mutable default is copied for each instance.

    Class options: `stream` is the pattern of its streams' names, `account/{id}` by default for a
    class Account; `snapshot_every` saves a snapshot each time so many events have been saved.

    Raises DefinitionError, when the class is made, for what cannot work.
    """

    __slots__ = ("__weakref__", "_pending", "id", "version")

    #: Its identity within its category.
    id: str
    #: The version of its stream when it was loaded or last saved; 0 for a new one.
    version: int

    __reserved__ = frozenset({"id", "version", "pending", "record"})
    __stream__: ClassVar[StreamPattern]
    __snapshot_every__: ClassVar[int | None] = None

    def __init_subclass__(
        cls, *, stream: str | None = None, snapshot_every: int | None = None
    ) -> None:
        super().__init_subclass__(may_take_record=False)
        owner = f"{cls.__module__}.{cls.__qualname__}"
        cls.__stream__ = (
            StreamPattern.default(owner, cls.__name__)
            if stream is None
            else StreamPattern(owner, stream)
        )
        names.register(cls.__stream__)
        if snapshot_every is not None:
            check_snapshot_every(owner, snapshot_every)
            cls.__snapshot_every__ = snapshot_every

    def __init__(self, id: str) -> None:
        """A new aggregate, before its first event. Raises InvalidNameError."""
        type(self).__stream__.stream(id)
        self._reset(id)

    def _reset(self, id: str) -> None:
        self._be(id, 0)
        self._set_defaults()

    def _be(self, id: str, version: int) -> None:
        self.id = id
        self.version = version
        self._pending: list[Pending] = []

    @property
    def pending(self) -> tuple[Event, ...]:
        """The events that were recorded and are not yet saved."""
        return tuple(event for event, _ in self._pending)

    def record(self, event: Event) -> None:
        """Record a new event and apply it.

        What is applied is the event as the log will give it back. Raises InvalidEventError, with
        nothing recorded, for a value that the event's annotations do not allow.
        """
        event, payload = seal(event)
        handler = self.__handlers__.find(type(event))
        if handler is not None:
            before = len(self._pending)
            handler(self, event)
            if len(self._pending) != before:
                del self._pending[before:]
                raise recorded_in_handler(self, type(event))
        self._pending.append((event, payload))

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {self.id!r} v{self.version}{self._state_shown()}>"


def recorded_in_handler(aggregate: Aggregate, event_type: type[Event]) -> InvalidEventError:
    """The error for a handler that records: at each load the event would be there once more."""
    return InvalidEventError(
        event_type.__event_name__,
        f"its handler in {type(aggregate).__name__} records another event; handlers only change "
        "state: record both events in the command",
    )


def at_version(
    cls: type[S], id: str, version: int, fields: Iterable[str], values: Iterable[object]
) -> S:
    """An aggregate with all its state given, made without calling its `__init__`."""
    aggregate = cls.__new__(cls)
    aggregate._be(id, version)
    for field, value in zip(fields, values, strict=True):
        setattr(aggregate, field, value)
    return aggregate


def blank(cls: type[S], id: str) -> S:
    """An aggregate before its first event, made without calling its `__init__`."""
    aggregate = cls.__new__(cls)
    aggregate._reset(id)
    return aggregate
