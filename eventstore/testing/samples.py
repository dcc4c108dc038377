"""Sample events of a class, always the same ones, and its schema in words."""

from __future__ import annotations

import dataclasses
import math
import re
from collections.abc import Callable
from datetime import UTC, date, datetime, time, timedelta
from decimal import Decimal
from typing import Any, Final, TypeVar
from uuid import UUID

import msgspec.inspect as shapes
from msgspec import NODEFAULT

from eventstore.errors import DefinitionError, InvalidArgumentError
from eventstore.event import Event, seal

E = TypeVar("E", bound=Event)

_WITH_FIELDS: Final = (
    shapes.StructType,
    shapes.DataclassType,
    shapes.NamedTupleType,
    shapes.TypedDictType,
)


def samples_of(cls: type[E]) -> list[E]:
    """One event with all that may be left out left out, and one with everything there.

    Raises InvalidArgumentError where a value cannot be made up from its annotation.
    """
    made: list[E] = []
    for full in (False, True):
        try:
            event, _ = seal(_Sampler(full).instance(_fields_of(cls), cls.__name__))
        except ValueError as error:
            if isinstance(error, InvalidArgumentError):
                raise
            raise InvalidArgumentError(
                cls.__name__, cls, f"no sample can be made up ({error}): give an instance of it"
            ) from error
        if event not in made:
            made.append(event)
    return made


def schema_of(cls: type[Event]) -> dict[str, str]:
    """What each field of a payload may hold, in words that change when that does.

    Names of classes are not in it, since they are not in a payload.
    """
    return _described_fields(_fields_of(cls), ())


def _fields_of(cls: type[Event]) -> Any:
    try:
        return shapes.type_info(cls)
    except (TypeError, NameError) as error:
        raise DefinitionError(f"{cls.__module__}.{cls.__qualname__}", str(error)) from error


# --- samples -------------------------------------------------------------------------------------

_MOMENT: Final = datetime(2026, 1, 2, 3, 4, 5, 678901, UTC)


class _Sampler:
    """Makes up values: as few as can be, or `full`."""

    def __init__(self, full: bool) -> None:
        self._full = full
        self._open: list[Any] = []

    def instance(self, found: Any, where: str) -> Any:
        """An instance of a class with fields. One inside itself is as small as can be."""
        full = self._full and found.cls not in self._open
        before, self._full = self._full, full
        self._open.append(found.cls)
        try:
            if isinstance(found, shapes.DataclassType):
                initial = {f.name for f in dataclasses.fields(found.cls) if f.init}
            else:
                initial = {field.name for field in found.fields}
            values = {
                field.name: self.value(field.type, f"{where}.{field.name}")
                for field in found.fields
                if field.name in initial and (field.required or full)
            }
            return found.cls(**values)
        finally:
            self._open.pop()
            self._full = before

    def value(self, found: Any, where: str) -> Any:
        while isinstance(found, shapes.Metadata):
            found = found.type
        if isinstance(found, shapes.UnionType):
            some = [each for each in found.types if not isinstance(each, shapes.NoneType)]
            if self._full:
                return self.value(some[-1], where)
            return None if len(some) < len(found.types) else self.value(some[0], where)
        if isinstance(found, _WITH_FIELDS):
            return self.instance(found, where)
        if isinstance(found, shapes.TupleType):
            return tuple(self.value(each, where) for each in found.item_types)
        if isinstance(found, shapes.CollectionType):
            return self._collection(found, where)
        if isinstance(found, shapes.DictType):
            if not self._wanted(found):
                return {}
            return {self.value(found.key_type, where): self.value(found.value_type, where)}
        simple = _SIMPLE.get(type(found))
        if simple is None:
            raise InvalidArgumentError(
                where,
                type(found).__name__.removesuffix("Type"),
                "no sample can be made up: give an instance of the event",
            )
        return simple(found, self._full)

    def _wanted(self, found: Any) -> int:
        return max(found.min_length or 0, int(self._full and found.max_length != 0))

    def _collection(self, found: Any, where: str) -> Any:
        items = [self.value(found.item_type, where)] * self._wanted(found)
        if isinstance(found, shapes.SetType):
            return set(items)
        if isinstance(found, shapes.FrozenSetType):
            return frozenset(items)
        return tuple(items) if isinstance(found, shapes.VarTupleType) else items


def _number(found: Any, wanted: float, small: float) -> float:
    """The number nearest to the wanted one that is within the bounds."""
    low = found.ge if found.gt is None else found.gt + small
    high = found.le if found.lt is None else found.lt - small
    number = wanted
    if high is not None:
        number = min(number, high)
    if low is not None:
        number = max(number, low)
    if found.multiple_of is not None:
        step = found.multiple_of
        number = math.ceil(number / step) * step
        if high is not None and number > high:
            number = math.floor(high / step) * step
    return number


def _string(found: Any, full: bool) -> str:
    text = "Grüße, 日本 🐚" if full else "x"
    if found.pattern is not None:
        candidates = ("x", "A", "1", "AB", "ABC", "12", "1234", "a-1", "A-1", "a@b.example", "")
        fitting = [each for each in candidates if re.search(found.pattern, each)]
        if not fitting:
            raise ValueError(f"nothing was found that matches {found.pattern!r}")
        text = fitting[0]
    text = text.ljust(found.min_length or 0, "x")
    return text if found.max_length is None else text[: found.max_length]


def _binary(found: Any, full: bool) -> bytes:
    data = (b"\x00\xff" if full else b"").ljust(found.min_length or 0, b"\x00")
    return data if found.max_length is None else data[: found.max_length]


def _anything(_: Any, full: bool) -> Any:
    return {"some": ["value", 1, None]} if full else None


def _decimal(_: Any, full: bool) -> Decimal:
    return Decimal("12.50" if full else "1")


def _duration(_: Any, full: bool) -> timedelta:
    return timedelta(days=1, milliseconds=500 * full)


def _zoned(moment: Any, found: Any) -> Any:
    return moment.replace(tzinfo=None) if found.tz is False else moment


#: By the type of an annotation, as msgspec sees it: a value, as small as can be or a fuller one.
_SIMPLE: Final[dict[type[shapes.Type], Callable[[Any, bool], Any]]] = {
    shapes.AnyType: _anything,
    shapes.NoneType: lambda found, full: None,
    shapes.BoolType: lambda found, full: full,
    shapes.IntType: lambda found, full: int(_number(found, 42 if full else 1, 1)),
    shapes.FloatType: lambda found, full: float(_number(found, 2.5 if full else 1.0, 1e-6)),
    shapes.StrType: _string,
    shapes.BytesType: _binary,
    shapes.ByteArrayType: lambda found, full: bytearray(_binary(found, full)),
    shapes.DecimalType: _decimal,
    shapes.UUIDType: lambda found, full: UUID("01234567-89ab-4def-8123-456789abcdef"),
    shapes.DateType: lambda found, full: date(2026, 1, 2),
    shapes.DateTimeType: lambda found, full: _zoned(_MOMENT, found),
    shapes.TimeType: lambda found, full: _zoned(time(3, 4, 5, 678901, UTC), found),
    shapes.TimeDeltaType: _duration,
    shapes.EnumType: lambda found, full: list(found.cls)[-1 if full else 0],
    shapes.LiteralType: lambda found, full: found.values[-1 if full else 0],
}


# --- schemas -------------------------------------------------------------------------------------


def _described_fields(found: Any, open: tuple[Any, ...]) -> dict[str, str]:
    described = {}
    for field in found.fields:
        text = _described(field.type, (*open, found.cls))
        if field.default is not NODEFAULT:
            text += f" = {field.default!r}"
        elif field.default_factory is not NODEFAULT:
            text += f" = {getattr(field.default_factory, '__name__', 'made')}()"
        elif not field.required:
            text += " = left out"
        described[field.encode_name] = text
    if getattr(found, "tag", None) is not None:
        described[found.tag_field] = f"always {found.tag!r}"
    return described


def _described(found: Any, open: tuple[Any, ...]) -> str:
    while isinstance(found, shapes.Metadata):
        found = found.type
    if isinstance(found, _WITH_FIELDS):
        if found.cls in open:
            return "the same again"
        fields = _described_fields(found, open)
        marks = "[]" if getattr(found, "array_like", False) else "{}"
        return f"{marks[0]}{', '.join(f'{n}: {text}' for n, text in fields.items())}{marks[1]}"
    if isinstance(found, shapes.UnionType):
        return " | ".join(sorted(_described(each, open) for each in found.types))
    if isinstance(found, (shapes.EnumType, shapes.LiteralType)):
        values = found.values if isinstance(found, shapes.LiteralType) else _enumerated(found.cls)
        return f"one of {', '.join(sorted(map(repr, values)))}"
    name = type(found).__name__.removesuffix("Type").lower()
    if isinstance(found, shapes.TupleType):
        name += f" of {', '.join(_described(each, open) for each in found.item_types)}"
    elif isinstance(found, shapes.CollectionType):
        name += f" of {_described(found.item_type, open)}"
    elif isinstance(found, shapes.DictType):
        name += f" of {_described(found.key_type, open)} to {_described(found.value_type, open)}"
    rules = [
        f"{rule}={getattr(found, rule)!r}"
        for rule in found.__struct_fields__
        if rule not in ("item_type", "item_types", "key_type", "value_type", "cls")
        and getattr(found, rule) is not None
    ]
    return f"{name} ({', '.join(rules)})" if rules else name


def _enumerated(cls: Any) -> list[Any]:
    return [member.value for member in cls]
