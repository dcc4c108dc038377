"""Hypothesis strategies from annotations: any event that can be recorded, or any argument.

Needs Hypothesis, and is imported only when it is asked for.
"""

from __future__ import annotations

import dataclasses
import math
import re
from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, timedelta, timezone
from typing import Any, Final, TypeVar, cast

import msgspec.inspect as shapes
from hypothesis import reject
from hypothesis import strategies as st

from eventstore.errors import InvalidArgumentError
from eventstore.event import Event, seal

E = TypeVar("E", bound=Event)

Strategy = st.SearchStrategy[Any]

#: The largest whole numbers that are drawn where an annotation has no bounds: every reader of JSON
#: has them exactly, and a thousand of them still add up to what a database's integer holds.
LARGEST: Final = 2**53

_TEXT: Final = st.characters(codec="utf-8")  # no surrogates, which JSON cannot have
_ZONES: Final = st.sampled_from(
    [UTC, timezone(timedelta(hours=5, minutes=30)), timezone(timedelta(hours=-8))]
)


def events(cls: type[E], /, **fields: st.SearchStrategy[Any]) -> st.SearchStrategy[E]:
    """Events of a class, as the log would give them back, with every value that it allows.

        @given(events(MoneyDeposited, amount=st.integers(1, 1000)))
        def test_a_deposit_is_shown(deposit): ...

    What a field may hold is read off its annotation, with the bounds and patterns of
    `msgspec.Meta`; a strategy that is given for a field takes its place. Fields with a default
    have it now and then. Where an annotation says less: whole numbers are at most 2**53, floats
    are finite, datetimes and times have an offset (with `Meta(tz=False)`: none). For several
    classes use `st.one_of(events(A), events(B))`.

    Raises InvalidArgumentError for a name that is no field, and for a field of a type that
    cannot be drawn: give a strategy for it.
    """
    if not is_subclass(cls, Event):
        raise InvalidArgumentError("cls", cls, "give a subclass of Event")
    for name in fields:
        if name not in cls.__struct_fields__:
            known = ", ".join(cls.__struct_fields__) or "none"
            raise InvalidArgumentError(name, fields[name], f"{cls.__name__} has the fields {known}")
    # A field that is given a strategy may be of a type that has none.
    drawn = _Drawn(f"events({cls.__name__}, {{field}}=...)", given=fields)
    found = cast("shapes.StructType", shapes.type_info(cls))
    return drawn.struct(found, cls.__name__, fields).map(_sealed)


def _sealed(event: E) -> E:
    return seal(event)[0]


def is_subclass(cls: Any, base: type) -> bool:
    """Whether what was given as a class is one, and of that kind."""
    return isinstance(cls, type) and issubclass(cls, base)


def values_of(annotation: Any, where: str, advice: str) -> Strategy:
    """Values that an annotation allows. Raises InvalidArgumentError, with the advice."""
    try:
        found = shapes.type_info(annotation)
    except (TypeError, NameError) as error:
        raise InvalidArgumentError(where, annotation, f"{error}; {advice}") from error
    return _Drawn(advice, custom=st.from_type).strategy(found, where)


class _Drawn:
    """Makes strategies of types, each class once, since one may hold itself."""

    def __init__(
        self,
        advice: str,
        *,
        given: Mapping[str, Strategy] | None = None,
        custom: Callable[[Any], Strategy] | None = None,
    ) -> None:
        self._advice = advice
        self._custom = custom
        self._known: dict[Any, Strategy] = {}

    def strategy(self, found: shapes.Type, where: str) -> Strategy:
        while isinstance(found, shapes.Metadata):
            found = found.type
        simple = _SIMPLE.get(type(found))
        if simple is not None:
            return simple(found)
        if isinstance(found, shapes.UnionType):
            return st.one_of(*(self.strategy(each, where) for each in _in_order(found.types)))
        if isinstance(found, (shapes.CollectionType, shapes.TupleType)):
            return self._collection(found, where)
        if isinstance(found, shapes.DictType):
            return st.dictionaries(
                self.strategy(found.key_type, where),
                self.strategy(found.value_type, where),
                min_size=found.min_length or 0,
                max_size=found.max_length,
            )
        if isinstance(
            found,
            (shapes.StructType, shapes.DataclassType, shapes.NamedTupleType, shapes.TypedDictType),
        ):
            return self._object(found, where)
        if isinstance(found, shapes.CustomType) and self._custom is not None:
            return self._custom(found.cls)
        kind = getattr(found, "cls", type(found).__name__.removesuffix("Type"))
        name = getattr(kind, "__name__", kind)
        raise InvalidArgumentError(
            where,
            name,
            "no values of this type can be drawn from its annotation: give a strategy, "
            + self._advice.format(field=where.rpartition(".")[2]),
        )

    def struct(
        self, found: Any, where: str, given: Mapping[str, Strategy] | None = None
    ) -> Strategy:
        """Instances of a class with fields; those that its own checks refuse are left out."""
        given = given or {}
        cls = found.cls
        made = {field.name: field for field in found.fields}
        if isinstance(found, shapes.DataclassType):
            initial = {f.name for f in dataclasses.fields(cls) if f.init}
            made = {name: field for name, field in made.items() if name in initial}
        always: dict[Any, Strategy] = {}
        maybe: dict[Any, Strategy] = {}
        for name, field in made.items():
            values = given.get(name)
            if values is not None:
                always[name] = values
                continue
            values = self.strategy(field.type, f"{where}.{name}")
            (always if field.required else maybe)[name] = values

        def make(values: dict[str, Any]) -> Any:
            try:
                return cls(**values)
            except ValueError:  # of a __post_init__
                reject()

        return st.fixed_dictionaries(always, optional=maybe).map(make)

    def _object(self, found: Any, where: str) -> Strategy:
        if found.cls not in self._known:
            made: list[Strategy] = []
            self._known[found.cls] = st.deferred(lambda: made[0])
            made.append(self.struct(found, where))
        return self._known[found.cls]

    def _collection(self, found: Any, where: str) -> Strategy:
        if isinstance(found, shapes.TupleType):
            return st.tuples(*(self.strategy(each, where) for each in found.item_types))
        items = self.strategy(found.item_type, where)
        sizes: Any = {"min_size": found.min_length or 0, "max_size": found.max_length}
        if isinstance(found, shapes.SetType):
            return st.sets(items, **sizes)
        if isinstance(found, shapes.FrozenSetType):
            return st.frozensets(items, **sizes)
        lists = st.lists(items, **sizes)
        return lists.map(tuple) if isinstance(found, shapes.VarTupleType) else lists


def _in_order(types: Sequence[shapes.Type]) -> list[shapes.Type]:
    """None first: what Hypothesis shrinks to."""
    return sorted(types, key=lambda each: not isinstance(each, shapes.NoneType))


def _integers(found: Any) -> Strategy:
    low = _bound(found.ge, found.gt, 1)
    high = _bound(found.le, found.lt, -1)
    if low is None:
        low = min(-LARGEST, high - LARGEST if high is not None else -LARGEST)
    if high is None:
        high = max(LARGEST, low + LARGEST)
    step = found.multiple_of
    if step is None:
        return st.integers(math.ceil(low), math.floor(high))
    return st.integers(math.ceil(low / step), math.floor(high / step)).map(lambda n: n * int(step))


def _bound(inclusive: float | None, exclusive: float | None, step: int) -> float | None:
    if inclusive is not None or exclusive is None:
        return inclusive
    whole = math.floor(exclusive) if step > 0 else math.ceil(exclusive)
    return whole + step


def _floats(found: Any) -> Strategy:
    if found.multiple_of is not None:
        step = found.multiple_of
        low = -LARGEST if found.ge is None and found.gt is None else found.ge or found.gt or 0
        high = LARGEST if found.le is None and found.lt is None else found.le or found.lt or 0
        whole = st.integers(math.ceil(low / step), math.floor(high / step))
        return whole.map(lambda n: n * step).filter(lambda n: _within(n, found))
    return st.floats(
        min_value=found.ge if found.gt is None else found.gt,
        max_value=found.le if found.lt is None else found.lt,
        exclude_min=found.gt is not None,
        exclude_max=found.lt is not None,
        allow_nan=False,
        allow_infinity=False,
    )


def _within(number: float, found: Any) -> bool:
    return (found.gt is None or number > found.gt) and (found.lt is None or number < found.lt)


def _strings(found: Any) -> Strategy:
    low, high = found.min_length or 0, found.max_length
    if found.pattern is None:
        return st.text(_TEXT, min_size=low, max_size=high)
    matching = st.from_regex(re.compile(found.pattern), alphabet=_TEXT)
    return matching.filter(lambda text: low <= len(text) <= (len(text) if high is None else high))


def _bytes(found: Any) -> Strategy:
    return st.binary(min_size=found.min_length or 0, max_size=found.max_length)


def _zones(found: Any) -> Strategy:
    return st.none() if found.tz is False else _ZONES


_JSON: Final = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-LARGEST, LARGEST)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(_TEXT),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(_TEXT), inner, max_size=3),
    max_leaves=5,
)

#: By the type of an annotation, as msgspec sees it: the values of it.
_SIMPLE: Final[dict[type[shapes.Type], Callable[[Any], Strategy]]] = {
    shapes.AnyType: lambda _: _JSON,
    shapes.NoneType: lambda _: st.none(),
    shapes.BoolType: lambda _: st.booleans(),
    shapes.IntType: _integers,
    shapes.FloatType: _floats,
    shapes.StrType: _strings,
    shapes.BytesType: _bytes,
    shapes.ByteArrayType: lambda found: _bytes(found).map(bytearray),
    shapes.DecimalType: lambda _: st.decimals(allow_nan=False, allow_infinity=False),
    shapes.UUIDType: lambda _: st.uuids(),
    shapes.DateType: lambda _: st.dates(),
    shapes.DateTimeType: lambda found: st.datetimes(timezones=_zones(found)),
    shapes.TimeType: lambda found: st.times(timezones=_zones(found)),
    shapes.TimeDeltaType: lambda _: st.timedeltas(),
    shapes.EnumType: lambda found: st.sampled_from(list(found.cls)),
    shapes.LiteralType: lambda found: st.sampled_from(found.values),
}
