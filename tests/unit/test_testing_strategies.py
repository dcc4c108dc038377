"""Strategies for events: everything that annotations allow, and nothing else."""

from __future__ import annotations

import enum
import re
from dataclasses import dataclass, field
from datetime import date, datetime, time, timedelta
from decimal import Decimal
from typing import Annotated, Any, Literal, NamedTuple, Required, TypedDict
from uuid import UUID

import msgspec
import pytest
from hypothesis import HealthCheck, find, given, settings
from hypothesis import strategies as st
from msgspec import UNSET, Meta, UnsetType

from eventstore import Event, InvalidArgumentError
from eventstore.event import seal
from eventstore.testing import events

thorough = settings(max_examples=60, deadline=None, suppress_health_check=list(HealthCheck))


class Colour(enum.Enum):
    RED = "r"
    BLUE = "b"


@dataclass
class Line:
    item: str
    count: Annotated[int, Meta(ge=1, le=9)]
    notes: list[str] = field(default_factory=list)
    total: int = field(init=False, default=0)


class Node(msgspec.Struct):
    value: int
    below: list[Node] = []


class Cat(msgspec.Struct, tag=True):
    lives: int


class Dog(msgspec.Struct, tag=True):
    name: str


class Place(NamedTuple):
    x: float
    y: float = 0.0


class Options(TypedDict, total=False):
    size: Required[int]
    label: str


class Numbers(Event, name="strategies-numbers"):
    small: Annotated[int, Meta(ge=1, le=10)]
    sevens: Annotated[int, Meta(gt=100, multiple_of=7)]
    below: Annotated[int, Meta(lt=-(2**60))]
    share: Annotated[float, Meta(gt=0, lt=1)]
    halves: Annotated[float, Meta(ge=0, le=10, multiple_of=0.5)]
    price: Decimal
    free: int
    real: float
    flag: bool


class Texts(Event, name="strategies-texts"):
    code: Annotated[str, Meta(pattern=r"^[A-Z]{3}-[0-9]+$", max_length=8)]
    short: Annotated[str, Meta(min_length=1, max_length=3)]
    any: str
    data: Annotated[bytes, Meta(max_length=4)]
    more: bytearray


class Times(Event, name="strategies-times"):
    at: datetime
    aware: Annotated[datetime, Meta(tz=True)]
    naive: Annotated[datetime, Meta(tz=False)]
    day: date
    hour: time
    lasted: timedelta


class Things(Event, name="strategies-things"):
    id: UUID
    colour: Colour
    size: Literal[1, "x", None]
    maybe: int | None
    either: int | str | None
    few: Annotated[list[int], Meta(min_length=1, max_length=3)]
    names: frozenset[str]
    numbers: set[int]
    pair: tuple[int, str]
    reals: tuple[float, ...]
    counts: dict[str, int]
    colours: dict[UUID, Colour]
    anything: Any
    line: Line
    tree: Node
    pet: Cat | Dog
    place: Place
    options: Options


class Lenient(Event, name="strategies-lenient"):
    left_out: int | UnsetType = UNSET
    amount: int = 5
    lines: list[Line] = []  # noqa: RUF012 (msgspec copies it)


class Span(Event, name="strategies-span"):
    first: int
    last: int

    def __post_init__(self) -> None:
        if self.last < self.first:
            raise ValueError("it ends before it begins")


class Empty(Event, name="strategies-empty"):
    pass


@pytest.mark.parametrize("cls", [Numbers, Texts, Times, Things, Lenient, Span, Empty])
def test_every_event_can_be_recorded_and_read_back(cls: type[Event]) -> None:
    @thorough
    @given(events(cls))
    def check(event: Event) -> None:
        assert type(event) is cls
        sealed, payload = seal(event)
        assert sealed == event
        assert seal(sealed)[1] == payload or cls is Things  # sets have no order

    check()


@thorough
@given(events(Numbers), events(Texts), events(Times))
def test_bounds_and_patterns_are_kept(number: Numbers, text: Texts, when: Times) -> None:
    assert 1 <= number.small <= 10
    assert number.sevens > 100
    assert number.sevens % 7 == 0
    assert number.below < -(2**60)
    assert 0 < number.share < 1
    assert number.halves in [half / 2 for half in range(21)]
    assert abs(number.free) <= 2**53
    assert number.price.is_finite()
    assert re.search(r"^[A-Z]{3}-[0-9]+$", text.code)
    assert len(text.code) <= 8
    assert 1 <= len(text.short) <= 3
    assert len(text.data) <= 4
    assert when.at.tzinfo is not None
    assert when.aware.tzinfo is not None
    assert when.naive.tzinfo is None


@pytest.mark.parametrize(
    ("cls", "wanted"),
    [
        (Things, lambda e: e.maybe is None),
        (Things, lambda e: e.maybe is not None),
        (Things, lambda e: isinstance(e.pet, Dog) and isinstance(e.either, str)),
        (Things, lambda e: e.colour is Colour.BLUE and e.size == "x"),
        (Things, lambda e: any(node.below for node in e.tree.below)),
        (Things, lambda e: "label" in e.options),
        (Lenient, lambda e: e.left_out is UNSET and e.lines),
        (Lenient, lambda e: e.left_out is not UNSET and e.amount == 5),
    ],
)
def test_all_kinds_of_values_are_found(cls: type[Event], wanted: Any) -> None:
    found = find(events(cls), wanted, settings=settings(max_examples=2000, deadline=None))
    assert wanted(found)


@given(events(Numbers, small=st.just(7), free=st.integers(0, 3)))
def test_a_field_can_be_given_a_strategy(event: Numbers) -> None:
    assert event.small == 7
    assert 0 <= event.free <= 3


def test_unknown_fields_and_classes_are_refused() -> None:
    with pytest.raises(InvalidArgumentError, match="has the fields first, last"):
        events(Span, frist=st.integers())
    with pytest.raises(InvalidArgumentError, match="subclass of Event"):
        events(Cat)  # type: ignore[type-var]


def test_a_field_of_a_type_that_cannot_be_drawn_says_what_to_give() -> None:
    class Raw(Event, name="strategies-raw"):
        body: msgspec.Raw

    with pytest.raises(InvalidArgumentError, match=r"Raw\.body.*events\(Raw, body=\.\.\.\)"):
        events(Raw)
    events(Raw, body=st.just(msgspec.Raw(b"1")))


def test_a_given_value_that_the_annotation_does_not_allow_is_an_error() -> None:
    @settings(max_examples=5)
    @given(events(Span, last=st.just("x"), first=st.just("a")))
    def check(event: Span) -> None: ...

    with pytest.raises(ValueError, match="cannot be recorded"):
        check()
