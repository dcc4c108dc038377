"""Aggregates: state that only events change. Pure: no I/O, testable without a store."""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Callable, Mapping
from typing import Any, ClassVar, Final, TypeVar, get_type_hints

import msgspec

from eventstore import names
from eventstore.errors import DefinitionError, InvalidEventError
from eventstore.event import Event, seal
from eventstore.handlers import Handlers
from eventstore.names import StreamPattern

S = TypeVar("S", bound="Aggregate")

#: An event that was recorded and is not yet saved, with its payload.
Pending = tuple[Event, bytes]

_RESERVED: Final = frozenset({"id", "version", "pending", "record"})


class AggregateType(type):
    """The class of aggregate classes: turns annotated attributes into slots.

    An attribute that is not annotated cannot be set, so no state hides from snapshots.
    """

    def __new__(
        mcls, name: str, bases: tuple[type, ...], namespace: dict[str, Any], /, **options: Any
    ) -> AggregateType:
        owner = f"{namespace['__module__']}.{namespace['__qualname__']}"
        defaults = {}
        if bases:
            for attribute, annotation in _annotations(namespace).items():
                if _is_class_variable(annotation):
                    continue
                if attribute in _RESERVED or attribute.startswith("__"):
                    raise DefinitionError(owner, "the name is reserved", member=attribute)
                if attribute not in namespace:
                    raise DefinitionError(
                        owner,
                        "state needs a default, its value before the first event",
                        member=attribute,
                    )
                default = _factory(namespace.pop(attribute))
                if default is None:
                    raise DefinitionError(
                        owner, "its field() needs a default, or a factory of one", member=attribute
                    )
                defaults[attribute] = default
            namespace.setdefault("__slots__", tuple(defaults))
        namespace["__own_state__"] = defaults
        return super().__new__(mcls, name, bases, namespace, **options)


def _annotations(namespace: Mapping[str, Any]) -> Mapping[str, Any]:
    found: Mapping[str, Any] | None = namespace.get("__annotations__")
    if found is None:
        try:  # Python 3.14 and later make annotations when they are asked for
            import annotationlib  # type: ignore[import-not-found,unused-ignore]
        except ImportError:
            return {}
        annotate = annotationlib.get_annotate_from_class_namespace(namespace)
        if annotate is None:
            return {}
        found = annotationlib.call_annotate_function(
            annotate, format=annotationlib.Format.FORWARDREF
        )
    return found


def _is_class_variable(annotation: Any) -> bool:
    text = annotation if isinstance(annotation, str) else repr(annotation)
    return text.removeprefix("typing.").removeprefix("t.").startswith("ClassVar")


def _factory(default: Any) -> Callable[[], Any] | tuple[Any] | None:
    """What makes the default value: a factory, or the one value in a tuple if it can be shared.

    None for a field that has neither.
    """
    factory = getattr(default, "default_factory", None)
    if isinstance(default, dataclasses.Field) or type(default).__module__.startswith("msgspec"):
        if callable(factory):
            return lambda: factory()
        default = getattr(default, "default", default)
        if default is dataclasses.MISSING or default is msgspec.NODEFAULT:
            return None
    if copy.deepcopy(default) is default:
        return (default,)
    return lambda: copy.deepcopy(default)


class Aggregate(metaclass=AggregateType):
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

    __own_state__: ClassVar[Mapping[str, Any]]
    __stream__: ClassVar[StreamPattern]
    __snapshot_every__: ClassVar[int | None] = None
    __handlers__: ClassVar[Handlers]
    __constants__: ClassVar[tuple[tuple[str, Any], ...]] = ()
    __factories__: ClassVar[tuple[tuple[str, Callable[[], Any]], ...]] = ()

    def __init_subclass__(
        cls, *, stream: str | None = None, snapshot_every: int | None = None
    ) -> None:
        super().__init_subclass__()
        owner = f"{cls.__module__}.{cls.__qualname__}"
        cls.__stream__ = (
            StreamPattern.default(owner, cls.__name__)
            if stream is None
            else StreamPattern(owner, stream)
        )
        names.register(cls.__stream__)
        if snapshot_every is not None:
            if type(snapshot_every) is not int or snapshot_every < 1:
                raise DefinitionError(
                    owner, f"snapshot_every={snapshot_every!r} must be a whole number from 1"
                )
            cls.__snapshot_every__ = snapshot_every
        if cls.__dictoffset__:
            raise DefinitionError(
                owner,
                "one of its bases lets any attribute be set, so state could hide from snapshots: "
                "give that base __slots__ = ()",
            )
        cls.__handlers__ = Handlers(cls, may_take_record=False)
        state: dict[str, Any] = {}
        for base in reversed(cls.__mro__):
            state.update(vars(base).get("__own_state__", {}))
        cls.__constants__ = tuple((n, d[0]) for n, d in state.items() if isinstance(d, tuple))
        cls.__factories__ = tuple((n, d) for n, d in state.items() if not isinstance(d, tuple))

    def __init__(self, id: str) -> None:
        """A new aggregate, before its first event. Raises InvalidNameError."""
        type(self).__stream__.stream(id)
        self._reset(id)

    def _reset(self, id: str) -> None:
        self.id = id
        self.version = 0
        self._pending: list[Pending] = []
        for name, value in self.__constants__:
            setattr(self, name, value)
        for name, factory in self.__factories__:
            setattr(self, name, factory())

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
        state = "".join(f" {name}={getattr(self, name)!r}" for name in state_fields(type(self)))
        return f"<{type(self).__name__} {self.id!r} v{self.version}{state}>"


def recorded_in_handler(aggregate: Aggregate, event_type: type[Event]) -> InvalidEventError:
    """The error for a handler that records: at each load the event would be there once more."""
    return InvalidEventError(
        event_type.__event_name__,
        f"its handler in {type(aggregate).__name__} records another event; handlers only change "
        "state: record both events in the command",
    )


def blank(cls: type[S], id: str) -> S:
    """An aggregate before its first event, made without calling its `__init__`."""
    aggregate = cls.__new__(cls)
    aggregate._reset(id)
    return aggregate


def state_fields(cls: type[Aggregate]) -> tuple[str, ...]:
    """The names of the attributes that are its state."""
    return tuple(name for name, _ in (*cls.__constants__, *cls.__factories__))


def state_type(cls: type[Aggregate]) -> type[msgspec.Struct]:
    """A msgspec struct with the aggregate's state attributes as its fields."""
    try:
        hints = get_type_hints(cls, include_extras=True)
        fields = [(name, hints[name]) for name in state_fields(cls)]
        return msgspec.defstruct(f"{cls.__name__}State", fields, module=cls.__module__)
    except (TypeError, NameError) as error:
        raise DefinitionError(f"{cls.__module__}.{cls.__qualname__}", str(error)) from error
