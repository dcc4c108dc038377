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
from eventstore.names import aggregate_id

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

    The function takes and returns the decoded payload, a dict, and has no other effect.
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
        stored = class_name if name is None else name
        for claimed in (stored, *aliases):
            _check_event_name(owner, claimed, namespace["__module__"])
        upcasters = {}
        for member, value in namespace.items():
            start = getattr(value, _UPCASTS, None)
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
        cls = super().__new__(mcls, class_name, bases, namespace, **config)
        for claimed in (stored, *aliases):
            _claim(claimed, cls, owner)
        return cls


def _check_event_name(owner: str, name: object, module: str) -> None:
    if not isinstance(name, str) or not name or len(name) > 255 or not name.isprintable():
        raise DefinitionError(
            owner, f"{name!r} cannot be a stored name: use 1 to 255 printable characters"
        )
    if name.startswith("$") and module.partition(".")[0] != __package__:
        raise DefinitionError(owner, f"{name!r}: stored names that start with $ are the library's")


def _check_chain(owner: str, version: int, upcasters: Mapping[int, object]) -> None:
    if not isinstance(version, int) or version < 1:
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


def _claim(name: str, cls: EventType, owner: str) -> None:
    holder = _by_name.get(name)
    if holder is not None and (holder.__module__, holder.__qualname__) != (
        cls.__module__,
        cls.__qualname__,
    ):
        raise EventNameTakenError(owner, name, f"{holder.__module__}.{holder.__qualname__}")
    _by_name[name] = cls  # the same class made again (a notebook's cell, a reload) takes its place


def event_class(name: str) -> type[Event] | None:
    """The event class that is stored as `name`, by its own name or an alias."""
    return _by_name.get(name)  # type: ignore[return-value]


def event_classes() -> Iterable[type[Event]]:
    """Every event class that has a name now, in no order."""
    return dict.fromkeys(_by_name.values())  # type: ignore[arg-type]


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
    value that its maker still holds. Raises InvalidEventError, which names the field.
    """
    cls = type(event)
    if not isinstance(cls, EventType):
        raise InvalidEventError(cls.__name__, "it is not an instance of a subclass of Event")
    try:
        payload = _encode(event)
        return decoder(cls).decode(payload), payload
    except (msgspec.MsgspecError, TypeError, ValueError, OverflowError, RecursionError) as error:
        raise InvalidEventError(cls.__event_name__, str(error)) from error


class RecordedEvent:
    """An event as read back from the log. Immutable.

    The payload is decoded when `event` is first asked for, so that a reader may pass over events
    that it does not know.
    """

    __slots__ = (
        "_decode",
        "_event",
        "_id",
        "_metadata",
        "_micros",
        "data",
        "position",
        "schema_version",
        "stream",
        "type",
        "version",
    )

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

    def __init__(
        self,
        *,
        stream: str,
        version: int,
        position: int,
        type: str,
        schema_version: int,
        data: bytes,
        id: bytes,
        recorded_at: int,
        metadata: bytes | None,
        decode: Callable[[RecordedEvent], Event],
    ) -> None:
        self.stream = stream
        self.version = version
        self.position = position
        self.type = type
        self.schema_version = schema_version
        self.data = data
        self._id = id
        self._micros = recorded_at
        self._metadata = metadata
        self._decode = decode
        self._event: Event | None = None

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
    def aggregate_id(self) -> str:
        """The id of the aggregate whose stream this is."""
        return aggregate_id(self.stream)

    def __repr__(self) -> str:
        return (
            f"<RecordedEvent {self.type} {self.stream} v{self.version} @{self.position} "
            f"{self.recorded_at.isoformat()}>"
        )
