"""State: annotated attributes with defaults, which only events change.

Aggregates and projections have it. It can be told apart from everything else that an object holds,
so that it can be kept as a snapshot.
"""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Callable, Mapping
from typing import Any, ClassVar, get_type_hints

import msgspec

from eventstore.errors import DefinitionError
from eventstore.handlers import Handlers


class StateType(type):
    """The class of classes with state: turns annotated attributes into slots.

    An attribute that is not annotated cannot be set, so no state hides from snapshots.
    """

    def __new__(
        mcls, name: str, bases: tuple[type, ...], namespace: dict[str, Any], /, **options: Any
    ) -> StateType:
        owner = f"{namespace['__module__']}.{namespace['__qualname__']}"
        defaults = {}
        if "__reserved__" not in namespace:  # else one of the library's own
            reserved = {name for base in bases for name in getattr(base, "__reserved__", ())}
            for attribute, annotation in _annotations(namespace).items():
                if _is_class_variable(annotation):
                    continue
                if attribute in reserved or attribute.startswith("__"):
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
        made: Mapping[str, Any] = annotationlib.call_annotate_function(
            annotate, format=annotationlib.Format.FORWARDREF
        )
        return made
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


class Stateful(metaclass=StateType):
    """What aggregates and projections have in common: state with defaults, and handlers."""

    __slots__ = ()

    #: Names that no attribute of a state may have.
    __reserved__: ClassVar[frozenset[str]] = frozenset()
    __own_state__: ClassVar[Mapping[str, Any]]
    __handlers__: ClassVar[Handlers]
    __constants__: ClassVar[tuple[tuple[str, Any], ...]] = ()
    __factories__: ClassVar[tuple[tuple[str, Callable[[], Any]], ...]] = ()

    def __init_subclass__(cls, *, may_take_record: bool = False) -> None:
        super().__init_subclass__()
        owner = f"{cls.__module__}.{cls.__qualname__}"
        if cls.__dictoffset__:
            raise DefinitionError(
                owner,
                "one of its bases lets any attribute be set, so state could hide from snapshots: "
                "give that base __slots__ = ()",
            )
        cls.__handlers__ = Handlers(cls, may_take_record=may_take_record)
        state: dict[str, Any] = {}
        for base in reversed(cls.__mro__):
            state.update(vars(base).get("__own_state__", {}))
        cls.__constants__ = tuple((n, d[0]) for n, d in state.items() if isinstance(d, tuple))
        cls.__factories__ = tuple((n, d) for n, d in state.items() if not isinstance(d, tuple))

    def _set_defaults(self) -> None:
        for name, value in self.__constants__:
            setattr(self, name, value)
        for name, factory in self.__factories__:
            setattr(self, name, factory())

    def _state_shown(self) -> str:
        return "".join(f" {name}={getattr(self, name)!r}" for name in state_fields(type(self)))


def check_snapshot_every(owner: str, every: object) -> None:
    """Raise DefinitionError unless it is a number of events."""
    if type(every) is not int or every < 1:
        raise DefinitionError(owner, f"snapshot_every={every!r} must be a whole number from 1")


def state_fields(cls: type[Stateful]) -> tuple[str, ...]:
    """The names of the attributes that are its state."""
    return tuple(name for name, _ in (*cls.__constants__, *cls.__factories__))


def state_type(cls: type[Stateful]) -> type[msgspec.Struct]:
    """A msgspec struct with the attributes of the state as its fields."""
    try:
        hints = get_type_hints(cls, include_extras=True)
        fields = [(name, hints[name]) for name in state_fields(cls)]
        return msgspec.defstruct(f"{cls.__name__}State", fields, module=cls.__module__)
    except (TypeError, NameError) as error:
        raise DefinitionError(f"{cls.__module__}.{cls.__qualname__}", str(error)) from error
