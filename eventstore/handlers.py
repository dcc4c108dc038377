"""`on`: which method handles which event. Checked when the class that has it is made."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any, Final, Generic, Protocol, TypeVar, overload

from eventstore.errors import DefinitionError
from eventstore.event import Event, RecordedEvent

E = TypeVar("E", bound=Event)
E_co = TypeVar("E_co", bound=Event, covariant=True)
Owner = TypeVar("Owner")

_HANDLES: Final = "__handles__"
_SIDE_EFFECT: Final = "__side_effect__"


class _Marker(Protocol, Generic[E_co]):
    # What is given back takes any event, so that `@on` can stand above another `@on`.
    @overload
    def __call__(
        self, handler: Callable[[Owner, E_co], None], /
    ) -> Callable[[Owner, Any], None]: ...
    @overload
    def __call__(
        self, handler: Callable[[Owner, E_co, RecordedEvent], None], /
    ) -> Callable[[Owner, Any, RecordedEvent], None]: ...


def on(event_type: type[E], *, side_effect: bool = False) -> _Marker[E]:
    """Declare that a method handles an event: `@on(MoneyDeposited)`.

    A handler for a base class takes the events of its subclasses that have no handler of their
    own. A projection's handler may take the RecordedEvent as a second argument. A type checker
    reports a handler whose parameter is not the event that it is declared for.

    In a TableProjection an event may have one more handler, a `side_effect`: it runs after the
    other one as the projection follows the log, and not in a rebuild, nor when the past is read.
    """

    def mark(handler: Any) -> Any:
        setattr(handler, _HANDLES, (*getattr(handler, _HANDLES, ()), event_type))
        if side_effect:
            setattr(handler, _SIDE_EFFECT, True)
        return handler

    return mark


class Handlers:
    """The handlers of one class: event class to function.

    `effects` are those that are marked as side effects, `declared` all others; `takes_record` says
    which functions want the RecordedEvent too.
    """

    __slots__ = ("_found", "declared", "effects", "takes_record")

    def __init__(self, cls: type, *, may_take_record: bool, may_have_effects: bool = False) -> None:
        """Raises DefinitionError, which names the class and the method."""
        owner = f"{cls.__module__}.{cls.__qualname__}"
        self.declared: dict[type[Event], Callable[..., None]] = {}
        self.effects: dict[type[Event], Callable[..., None]] = {}
        self.takes_record: set[Callable[..., None]] = set()
        names: dict[tuple[type[Event], bool], str] = {}
        for method, event_type in _marked(cls):
            if not (isinstance(event_type, type) and issubclass(event_type, Event)):
                raise DefinitionError(
                    owner, f"@on({event_type!r}) needs a subclass of Event", member=method
                )
            function = getattr(cls, method)  # by name, so that a subclass may override it
            effect = getattr(function, _SIDE_EFFECT, False)
            if effect and not may_have_effects:
                raise DefinitionError(
                    owner, "side_effect=True is for a TableProjection's handlers", member=method
                )
            if names.setdefault((event_type, effect), method) != method:
                raise DefinitionError(
                    owner,
                    f"{event_type.__name__} is handled by {names[event_type, effect]} already; "
                    "one event has one handler",
                    member=method,
                )
            if _arguments(owner, method, function, may_take_record) == 3:
                self.takes_record.add(function)
            (self.effects if effect else self.declared)[event_type] = function
        self._found: dict[type[Event], Callable[..., None] | None] = dict(self.declared)

    def find(self, event_type: type[Event]) -> Callable[..., None] | None:
        """The handler of the class itself or of its nearest base; None if there is none."""
        try:
            return self._found[event_type]
        except KeyError:
            found = next((self.declared[c] for c in event_type.__mro__ if c in self.declared), None)
            self._found[event_type] = found
            return found

    def effect(self, event_type: type[Event]) -> Callable[..., None] | None:
        """The side effect of the class itself or of its nearest base; None if there is none."""
        return next((self.effects[c] for c in event_type.__mro__ if c in self.effects), None)


def _marked(cls: type) -> list[tuple[str, Any]]:
    """Method names with the events they are declared for, base classes first."""
    marked: dict[str, tuple[Any, ...]] = {}
    for base in reversed(cls.__mro__):
        for name, member in vars(base).items():
            events = getattr(member, _HANDLES, ())
            if events:
                marked[name] = events
    return [(name, event) for name, events in marked.items() for event in events]


def _arguments(owner: str, method: str, function: Any, may_take_record: bool) -> int:
    if inspect.iscoroutinefunction(function):
        raise DefinitionError(owner, "a handler cannot be async", member=method)
    try:
        parameters = inspect.signature(function).parameters.values()
    except (TypeError, ValueError):
        raise DefinitionError(owner, "a handler must be a method", member=method) from None
    count = len(parameters)
    if any(p.kind is p.KEYWORD_ONLY for p in parameters) or not (
        count == 2 or (count == 3 and may_take_record)
    ):
        wanted = "(self, event) or (self, event, record)" if may_take_record else "(self, event)"
        raise DefinitionError(owner, f"a handler here takes {wanted}", member=method)
    return count
