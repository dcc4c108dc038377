"""Events and their classes."""

from __future__ import annotations

import datetime as dt
import decimal
import enum
import uuid
from dataclasses import dataclass
from typing import Any

import msgspec
import pytest

from eventstore import DefinitionError, Event, EventNameTakenError, InvalidEventError, upcast
from eventstore.event import EventType, event_class, seal


class Color(enum.Enum):
    RED = "red"


@dataclass
class Point:
    x: int
    y: int


class Everything(Event, name="unit-everything"):
    number: int
    real: float
    text: str
    flag: bool
    when: dt.datetime
    day: dt.date
    span: dt.timedelta
    key: uuid.UUID
    sum: decimal.Decimal
    color: Color
    point: Point
    raw: bytes
    many: list[Point]
    named: dict[str, int]
    pair: tuple[int, str]
    unique: frozenset[int]
    maybe: int | None = None


EVERYTHING = Everything(
    number=-(2**63),
    real=0.1,
    text='ä\x00"\\\n🐚',
    flag=True,
    when=dt.datetime(2026, 1, 1, 1, 2, 3, 4, tzinfo=dt.timezone(dt.timedelta(hours=2))),
    day=dt.date(2026, 1, 1),
    span=dt.timedelta(days=-1, microseconds=1),
    key=uuid.UUID(int=5),
    sum=decimal.Decimal("1.10"),
    color=Color.RED,
    point=Point(1, 2),
    raw=b"\x00\xff",
    many=[Point(3, 4)],
    named={"x": 1},
    pair=(1, "a"),
    unique=frozenset({1, 2}),
)


def test_every_kind_of_value_comes_back_as_it_was() -> None:
    sealed, payload = seal(EVERYTHING)
    assert sealed == EVERYTHING
    assert isinstance(payload, bytes)
    assert sealed.when.utcoffset() == dt.timedelta(hours=2)


def test_an_event_cannot_be_changed() -> None:
    with pytest.raises(AttributeError):
        EVERYTHING.number = 1


def test_sealing_makes_an_event_independent_of_mutable_values() -> None:
    class Held(Event, name="unit-held"):
        values: list[int]

    mine = [1]
    sealed, payload = seal(Held(mine))
    mine.append(2)
    assert (sealed.values, payload) == ([1], b'{"values":[1]}')


class Strict(Event, name="unit-strict"):
    number: int
    text: str = ""
    nested: dict[str, list[int]] = {}  # noqa: RUF012 (msgspec copies it)
    maybe: float | None = None
    anything: Any = None
    amount: decimal.Decimal = decimal.Decimal(0)


@pytest.mark.parametrize(
    ("values", "reason"),
    [
        ({"number": "1"}, "number"),
        ({"number": 1.5}, "number"),
        ({"number": None}, "number"),
        ({"number": True}, "number"),
        ({"text": b"x"}, "`text` is b'x'"),
        ({"text": uuid.UUID(int=1)}, "`text`"),
        ({"text": dt.date(2026, 1, 1)}, "`text`"),
        ({"text": "\ud800"}, "surrogates"),
        ({"nested": {"a": [1, "2"]}}, "nested"),
        ({"nested": {"a": (1, 2)}}, "`nested`"),
        pytest.param({"nested": {"a": [object()]}}, "object", id="an object"),
        ({"maybe": float("nan")}, "`maybe` is nan"),
        ({"maybe": float("inf")}, "`maybe` is inf"),
        ({"anything": (1, 2)}, "`anything`"),
        ({"anything": dt.date(2026, 1, 1)}, "`anything`"),
        ({"amount": 0.1}, "`amount` is 0.1"),
    ],
    ids=str,
)
def test_a_wrong_value_is_refused_by_name(values: dict[str, Any], reason: str) -> None:
    event = Strict(**{"number": 1, **values})
    with pytest.raises(InvalidEventError) as caught:
        seal(event)
    assert caught.value.event_type == "unit-strict"
    assert reason in caught.value.reason
    assert isinstance(caught.value, ValueError)


@pytest.mark.parametrize(
    "values",
    [
        {"number": 2**65},
        {"maybe": 1},
        {"amount": 5},
        {"amount": decimal.Decimal("NaN")},
        {"anything": [{"a": [1.5, None]}]},
    ],
    ids=str,
)
def test_a_value_that_comes_back_the_same_is_welcome(values: dict[str, Any]) -> None:
    event = Strict(**{"number": 1, **values})
    sealed, _ = seal(event)
    assert repr(sealed.number) == repr(event.number)


class Plain(msgspec.Struct, eq=False):
    x: int


@dataclass(eq=False)
class Other:
    y: int


class Holding(Event, name="unit-holding"):
    plain: Plain
    others: list[Other]


def test_values_that_do_not_compare_are_welcome() -> None:
    sealed, payload = seal(Holding(Plain(1), [Other(2)]))
    assert payload == b'{"plain":{"x":1},"others":[{"y":2}]}'
    assert (sealed.plain.x, sealed.others[0].y) == (1, 2)


def test_a_value_that_contains_itself_is_refused() -> None:
    class Deep(Event, name="unit-deep"):
        value: Any

    circle: list[Any] = []
    circle.append(circle)
    with pytest.raises(InvalidEventError):
        seal(Deep(circle))


def test_the_stored_name_is_the_class_name_or_an_explicit_one() -> None:
    class UnitPlain(Event):
        pass

    class UnitNamed(Event, name="unit-named-1", aliases=["unit-named-0"]):
        pass

    assert UnitPlain.__event_name__ == "UnitPlain"
    assert event_class("UnitPlain") is UnitPlain
    assert event_class("unit-named-1") is event_class("unit-named-0") is UnitNamed
    assert event_class("UnitNamed") is None


def test_the_name_of_a_base_class_is_not_inherited() -> None:
    class UnitBase(Event, name="unit-base"):
        x: int

    class UnitChild(UnitBase):
        y: int = 0

    assert UnitChild.__event_name__ == "UnitChild"
    assert seal(UnitChild(1, 2))[1] == b'{"x":1,"y":2}'


def test_two_classes_cannot_claim_one_name() -> None:
    class UnitFirst(Event, name="unit-claimed"):
        pass

    for declare in ('name="unit-claimed"', 'name="unit-free", aliases=["unit-claimed"]'):
        with pytest.raises(EventNameTakenError) as caught:
            exec(f"class Second(Event, {declare}): pass", {"Event": Event, "__name__": "m"})
        assert (caught.value.owner, caught.value.name) == ("m.Second", "unit-claimed")
        assert caught.value.holder.endswith("UnitFirst")
    assert event_class("unit-claimed") is UnitFirst


def test_a_refused_class_claims_no_name() -> None:
    class UnitHolder(Event, name="unit-held-name"):
        pass

    with pytest.raises(EventNameTakenError):
        exec(
            'class Second(Event, name="unit-never", aliases=["unit-held-name"]): pass',
            {"Event": Event, "__name__": "m"},
        )
    assert event_class("unit-never") is None


def test_the_same_class_made_again_takes_its_own_place() -> None:
    source = 'class Cell(Event, name="unit-cell"):\n    x: int = {}'
    space: dict[str, Any] = {"Event": Event, "__name__": "notebook"}
    exec(source.format(1), space)
    exec(source.format(2), space)
    assert event_class("unit-cell") is space["Cell"]


@pytest.mark.parametrize("name", ["", "a\nb", "x" * 256, 5, "$mine"])
def test_a_name_that_cannot_be_stored_is_refused(name: Any) -> None:
    with pytest.raises(DefinitionError) as caught:

        class Broken(Event, name=name):
            pass

    assert "Broken" in caught.value.owner


@pytest.mark.parametrize("version", [0, -1, "2", 1.5, True])
def test_a_version_that_is_no_version_is_refused(version: Any) -> None:
    with pytest.raises(DefinitionError) as caught:

        class Broken(Event, name="unit-broken", version=version):
            pass

    assert "version" in str(caught.value)


def test_aliases_must_be_a_list() -> None:
    with pytest.raises(DefinitionError):

        class Broken(Event, name="unit-broken", aliases="old-name"):
            pass


def test_required_fields_come_first() -> None:
    with pytest.raises(DefinitionError) as caught:

        class Broken(Event, name="unit-order"):
            x: int = 0
            y: str  # type: ignore[misc]

    assert "Broken" in caught.value.owner
    assert "'y'" in str(caught.value)
    assert event_class("unit-order") is None


def test_an_annotation_that_cannot_be_stored_is_refused_by_name() -> None:
    class UnitSocket(Event, name="unit-socket"):
        x: Missing  # type: ignore[name-defined] # noqa: F821

    with pytest.raises(DefinitionError) as caught:
        seal(UnitSocket(1))
    assert "UnitSocket" in caught.value.owner


def test_a_chain_of_upcasters_has_no_gap_no_double_and_no_excess() -> None:
    def declared(version: int, *starts: Any) -> DefinitionError:
        body: dict[str, Any] = {"__module__": "m", "__qualname__": "Chained"}
        for number, start in enumerate(starts):
            body[f"_from_{number}"] = upcast(start)(lambda payload: payload)
        with pytest.raises(DefinitionError) as caught:
            EventType("Chained", (Event,), body, name="unit-chained", version=version)
        assert caught.value.owner == "m.Chained"
        return caught.value

    assert "lacks the upcaster from version 1" in str(declared(2))
    assert "lacks the upcaster from version 2" in str(declared(4, 1, 3))
    assert "two upcasters from version 1" in str(declared(2, 1, 1))
    assert declared(2, 1, 1).member == "_from_1"
    assert "upcaster from version 2" in str(declared(2, 1, 2))
    assert "upcaster from version 0" in str(declared(1, 0))
    assert event_class("unit-chained") is None


def test_an_upcaster_may_be_a_static_method() -> None:
    class UnitStatic(Event, name="unit-static", version=3):
        x: int

        @upcast(from_version=1)
        @staticmethod
        def _one(payload: dict[str, Any]) -> dict[str, Any]:
            return {"y": payload["x"]}

        @staticmethod
        @upcast(from_version=2)
        def _two(payload: dict[str, Any]) -> dict[str, Any]:
            return {"x": payload["y"]}

    assert UnitStatic.__upcasters__[2](UnitStatic.__upcasters__[1]({"x": 4})) == {"x": 4}


def test_events_stay_immutable() -> None:
    with pytest.raises(DefinitionError) as caught:
        exec("class Broken(Event, frozen=False): pass", {"Event": Event, "__name__": "m"})
    assert caught.value.owner == "m.Broken"
