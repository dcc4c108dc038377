"""Stream names, and the pattern between an id and its stream."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from eventstore import Aggregate, DefinitionError, InvalidNameError
from eventstore.names import (
    MAX_STREAM_NAME,
    StreamPattern,
    aggregate_id,
    category_of,
    check_stream_name,
)


def stream_of(class_name: str) -> str:
    return StreamPattern.default("m.C", class_name).stream("1")


@pytest.mark.parametrize(
    ("class_name", "stream"),
    [
        ("Account", "account/1"),
        ("BankAccount", "bank_account/1"),
        ("HTTPServer", "http_server/1"),
        ("_Private", "private/1"),
        ("Order2Line", "order2_line/1"),
    ],
)
def test_the_default_category_is_the_class_name(class_name: str, stream: str) -> None:
    assert stream_of(class_name) == stream


def test_a_class_may_set_its_own_pattern() -> None:
    class UnitOrder(Aggregate, stream="unit-orders/{id}/events"):
        pass

    pattern = UnitOrder.__stream__
    assert pattern.stream("a/b") == "unit-orders/a/b/events"
    assert pattern.id("unit-orders/a/b/events") == "a/b"
    for other in ("unit-orders/a/b", "unit-orders//events", "unit-orders/events", "else/a/events"):
        assert pattern.id(other) is None
    assert aggregate_id("unit-orders/a/b/events") == "a/b"
    assert aggregate_id("unit-orders/a/other") == "a/other"
    assert aggregate_id("unit-nobody/x/y") == "x/y"


def test_the_most_specific_pattern_tells_the_id() -> None:
    class UnitAny(Aggregate, stream="unit-things/{id}"):
        pass

    class UnitBox(Aggregate, stream="unit-things/box-{id}"):
        pass

    assert aggregate_id("unit-things/box-7") == "7"
    assert aggregate_id("unit-things/bag-7") == "bag-7"


@pytest.mark.parametrize(
    "pattern",
    ["", "orders", "orders/", "{id}", "{id}/orders", "orders{id}", "/{id}", "a/{id}/{id}",
     "a/{name}", "a/{id", "a/{id}}", "a\n/{id}", "x" * 512 + "/{id}"],
)  # fmt: skip
def test_a_pattern_that_cannot_work_is_refused(pattern: str) -> None:
    with pytest.raises(DefinitionError) as caught:

        class Broken(Aggregate, stream=pattern):
            pass

    assert "Broken" in caught.value.owner
    assert "stream=" in str(caught.value)


@pytest.mark.parametrize(
    "bad",
    ["", "a\x00", "\x1f", "\x7f", "a\x85b", "a\u2028", "\u2029", "\udfff", "x" * 513, 1, None],
)
def test_a_name_that_cannot_be_one_is_refused(bad: Any) -> None:
    with pytest.raises(InvalidNameError) as caught:
        check_stream_name(bad)
    assert caught.value.name == bad
    assert len(str(caught.value)) < 300


def test_the_limit_is_the_whole_names() -> None:
    pattern = StreamPattern("m.C", "orders/{id}")
    fits = "x" * (MAX_STREAM_NAME - len("orders/"))
    assert len(pattern.stream(fits)) == MAX_STREAM_NAME
    with pytest.raises(InvalidNameError):
        pattern.stream(fits + "x")


@given(st.text(min_size=1, max_size=300))
def test_an_id_comes_back_from_its_streams_name_or_is_refused(id: str) -> None:
    pattern = StreamPattern("m.C", "orders/{id}/events")
    try:
        stream = pattern.stream(id)
    except InvalidNameError:
        return
    assert pattern.id(stream) == id
    assert category_of(stream) == "orders"
    assert check_stream_name(stream) == stream
