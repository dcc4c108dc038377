"""Events: immutable facts. What is written is an `Event`; what is read back, a `RecordedEvent`."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from datetime import datetime
from typing import TYPE_CHECKING, Any, ClassVar, Final, TypeAlias, TypeVar, dataclass_transform
from uuid import UUID

import msgspec

from eventstore.errors import DefinitionError, EventNameTakenError, InvalidEventError
from eventstore.metadata import Metadata
from eventstore.moments import from_micros

Payload: TypeAlias = dict[str, Any]
U = TypeVar("U", bound=Callable[[Payload], Payload])
E = TypeVar("E", bound="Event")

_UPCASTS: Final = "__upcasts_from__"
_by_name: Final[dict[str, EventType]] = {}
_encode: Final = msgspec.json.Encoder().encode


def upcast(from_version: int) -> Callable[[U], U]:
    """Declare, in an event's class body, how its payload at `from_version` becomes the next one.

        class MoneyDeposited(Event, version=2):
            amount: int
            currency: str

            @upcast(from_version=1)
            def _add_currency(payload):
                return payload | {"currency": "EUR"}

    The function takes and returns the decoded payload, a dict, and has no other effect. For a
    strict type checker, annotate it and put `@staticmethod` between.
    """

    def mark(function: U) -> U:
        setattr(function, _UPCASTS, from_version)
        return function

    return mark


@dataclass_transform(frozen_default=True, field_specifiers=(msgspec.field,))
class EventType(msgspec.StructMeta):
    """The class of event classes: gives each a stored name, a schema version and upcasters."""

    __event_name__: str
    __event_version__: int
    __event_aliases__: tuple[str, ...]
    __upcasters__: Mapping[int, Callable[[Payload], Payload]]

    def __new__(
        mcls,
        class_name: str,
        bases: tuple[type, ...],
        namespace: dict[str, Any],
        /,
        *,
        name: str | None = None,
        version: int = 1,
        aliases: tuple[str, ...] | list[str] = (),
        **config: Any,
    ) -> EventType:
        owner = f"{namespace['__module__']}.{namespace['__qualname__']}"
        if config.get("frozen") is False:
            raise DefinitionError(owner, "events are immutable: leave out frozen=False")
        if isinstance(aliases, str):
            raise DefinitionError(owner, f"aliases={aliases!r} must be a list: [{aliases!r}]")
        stored = class_name if name is None else name
        for claimed in (stored, *aliases):
            _check_event_name(owner, claimed, namespace["__module__"])
        upcasters = {}
        for member, value in namespace.items():
            start = getattr(value, _UPCASTS, getattr(_function(value), _UPCASTS, None))
            if start is None:
                continue
            if start in upcasters:
                raise DefinitionError(owner, f"two upcasters from version {start}", member=member)
            upcasters[start] = value
        _check_chain(owner, version, upcasters)
        namespace.update(
            __event_name__=stored,
            __event_version__=version,
            __event_aliases__=tuple(aliases),
            __upcasters__=upcasters,
        )
        try:
            cls = super().__new__(mcls, class_name, bases, namespace, **config)
        except TypeError as error:
            raise DefinitionError(owner, str(error)) from error
        for claimed in (stored, *aliases):
            _check_free(claimed, cls, owner)
        _by_name.update(dict.fromkeys((stored, *aliases), cls))
        return cls


def _function(member: object) -> object:
    """The function of a static method."""
    return getattr(member, "__func__", member)


def _check_event_name(owner: str, name: object, module: str) -> None:
    if not isinstance(name, str) or not name or len(name) > 255 or not name.isprintable():
        raise DefinitionError(
            owner, f"{name!r} cannot be a stored name: use 1 to 255 printable characters"
        )
    if name.startswith("$") and module.partition(".")[0] != __package__:
        raise DefinitionError(owner, f"{name!r}: stored names that start with $ are the library's")


def _check_chain(owner: str, version: int, upcasters: Mapping[int, object]) -> None:
    if type(version) is not int or version < 1:
        raise DefinitionError(owner, f"version={version!r} must be a whole number from 1")
    missing = [start for start in range(1, version) if start not in upcasters]
    if missing:
        raise DefinitionError(
            owner,
            f"it is at version {version} and lacks the upcaster from version {missing[0]}: "
            f"@upcast(from_version={missing[0]})",
        )
    beyond = [start for start in upcasters if start not in range(1, version)]
    if beyond:
        raise DefinitionError(
            owner,
            f"it has an upcaster from version {beyond[0]!r} and is itself at version {version}: "
            "raise version= or remove the upcaster",
        )


def _check_free(name: str, cls: EventType, owner: str) -> None:
    # The same class made again (a notebook's cell, a reload) takes its own place.
    holder = _by_name.get(name)
    if holder is not None and (holder.__module__, holder.__qualname__) != (
        cls.__module__,
        cls.__qualname__,
    ):
        raise EventNameTakenError(owner, name, f"{holder.__module__}.{holder.__qualname__}")


def event_class(name: str) -> type[Event] | None:
    """The event class that is stored as `name`, by its own name or an alias."""
    return _by_name.get(name)  # type: ignore[return-value]


def event_classes() -> Iterable[type[Event]]:
    """Every event class that has a name now, in no order."""
    return dict.fromkeys(_by_name.values())  # type: ignore[arg-type]


# Once more, since mypy would take what Struct itself says, and that is not frozen.
@dataclass_transform(frozen_default=True, field_specifiers=(msgspec.field,))
class Event(msgspec.Struct, frozen=True, gc=False, metaclass=EventType):
    """A fact: immutable, typed, named in the past tense.

        class MoneyDeposited(Event):
            amount: int

    Class options: `name` is the name that it is stored under (the class's own by default: set it
    before you rename a class, or list the old one in `aliases`); `version` is the version of its
    schema, raised when old payloads no longer fit, with an `upcast` for each step.

    An event is stored as the JSON of its fields, which may have any type that msgspec knows:
    numbers, strings, datetimes, UUIDs, Decimals, enums, dataclasses, containers of these.
    """

    if TYPE_CHECKING:  # for a type checker: what the metaclass adds, and which options it takes
        __event_name__: ClassVar[str]
        __event_version__: ClassVar[int]
        __event_aliases__: ClassVar[tuple[str, ...]]
        __upcasters__: ClassVar[Mapping[int, Callable[[Payload], Payload]]]

        def __init_subclass__(
            cls,
            *,
            name: str | None = None,
            version: int = 1,
            aliases: tuple[str, ...] | list[str] = (),
            kw_only: bool = False,
            forbid_unknown_fields: bool = False,
            rename: Any = None,
        ) -> None: ...


class StreamDeleted(Event, name="$deleted"):
    """The tombstone: the final event of a deleted stream. A projection may handle it."""


_decoders: Final[dict[EventType, msgspec.json.Decoder[Any]]] = {}


def decoder(cls: type[E]) -> msgspec.json.Decoder[E]:
    """The decoder of a class's payloads at its present schema version. Made once."""
    found = _decoders.get(cls)
    if found is None:
        try:
            found = msgspec.json.Decoder(cls)
        except (TypeError, NameError) as error:
            raise DefinitionError(f"{cls.__module__}.{cls.__qualname__}", str(error)) from error
        _decoders[cls] = found
    return found


def seal(event: E) -> tuple[E, bytes]:
    """The event as the log will give it back, and its payload, UTF-8 JSON.

    The round trip is what checks the types, and what makes the event independent of any mutable
    value that its maker still holds. What it would change (bytes for a string, say, or a tuple
    for a list) is of a wrong type too. Raises InvalidEventError, which names the field.
    """
    cls = type(event)
    if not isinstance(cls, EventType):  # pyright: ignore[reportUnnecessaryIsInstance]
        raise InvalidEventError(cls.__name__, "it is not an instance of a subclass of Event")
    try:
        payload = _encode(event)
        sealed = decoder(cls).decode(payload)
    except DefinitionError:
        raise
    except (msgspec.MsgspecError, TypeError, ValueError, OverflowError, RecursionError) as error:
        raise InvalidEventError(cls.__event_name__, str(error)) from error
    if sealed != event:
        for field in cls.__struct_fields__:
            given, kept = getattr(event, field), getattr(sealed, field)
            if not _alike(given, kept):
                raise InvalidEventError(
                    cls.__event_name__,
                    f"`{field}` is {given!r} and would be read back as {kept!r}: give a value of "
                    "the annotated type",
                )
    return sealed, payload


def _alike(given: Any, kept: Any) -> bool:
    """Whether two values are the same although they, or what they hold, need not be equal."""
    if given == kept:
        return True
    if type(given) is not type(kept):
        return False
    if isinstance(given, (list, tuple)):
        return len(given) == len(kept) and all(map(_alike, given, kept))
    if isinstance(given, dict):
        return given.keys() == kept.keys() and all(_alike(given[k], kept[k]) for k in given)
    if isinstance(given, msgspec.Struct):
        return all(_alike(getattr(given, f), getattr(kept, f)) for f in given.__struct_fields__)
    # Not even equal to itself (a Decimal's NaN), or a class that does not compare its values.
    compares: object = type(given).__eq__
    return bool(given != given) or compares is object.__eq__


class RecordedEvent(msgspec.Struct, eq=False, gc=False):
    """An event as read back from the log. Immutable.

    The payload is decoded when `event` is first asked for, so that a reader may pass over events
    that it does not know.
    """

    # A struct, since one is made for each event of a replay, in a quarter of the time of a class.

    #: The stream's name.
    stream: str
    #: The event's place in its stream, from 1.
    version: int
    #: The event's place in the whole log: increasing, with gaps.
    position: int
    #: The stored name of the event's type.
    type: str
    #: The version of its schema when it was written.
    schema_version: int
    #: The stored payload, UTF-8 JSON.
    data: bytes
    #: The id of the aggregate whose stream this is.
    aggregate_id: str
    _id: bytes
    _micros: int
    _metadata: bytes | None
    _decode: Callable[[RecordedEvent], Event]
    _event: Event | None = None

    @property
    def event(self) -> Event:
        """The event itself, upcast to its class's present schema.

        Raises UnknownEventError, CorruptEventError, NewerEventError.
        """
        if self._event is None:
            self._event = self._decode(self)
        return self._event

    @property
    def id(self) -> UUID:
        """The event's own id, unique in the world; ids of later events sort later (UUIDv7)."""
        return UUID(bytes=self._id)

    @property
    def recorded_at(self) -> datetime:
        """When it was recorded: UTC, with microseconds, never before the previous event's."""
        return from_micros(self._micros)

    @property
    def timestamp(self) -> int:
        """`recorded_at` in whole milliseconds since the epoch, as JavaScript's `Date.now()`."""
        return self._micros // 1000

    @property
    def metadata(self) -> Metadata:
        """What was known about it beside its payload."""
        return Metadata.stored(self._metadata)

    @property
    def checkpoint(self) -> str:
        """Its place in this very log, as text: where to resume, `subscribe(after=...)`."""
        return f"{self.position}:{self._id.hex()}"

    def __repr__(self) -> str:
        return (
            f"<RecordedEvent {self.type} {self.stream} v{self.version} @{self.position} "
            f"{self.recorded_at.isoformat()}>"
        )
