"""How a test that fails shows what it expected and what it found: events, state and rows.

A line that starts with `-` was expected, one with `+` was found, and the others were both.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from difflib import SequenceMatcher
from typing import Any, TypeVar

import msgspec

from eventstore.event import Event, _alike

T = TypeVar("T")

#: Each line of a difference, with what it starts with: "-", "+" or " ".
Lines = Iterator[tuple[str, str]]


def alike(one: Any, other: Any) -> bool:
    """Whether two values are the same, though a Decimal's NaN is not even equal to itself."""
    return _alike(one, other)


def differing_events(expected: Sequence[Event], found: Sequence[Event]) -> str:
    """The events of both, field by field where one of a kind stands for another."""
    return _text(_aligned(expected, found, _changed_event))


def differing_rows(
    expected: Sequence[Mapping[str, Any]],
    found: Sequence[Mapping[str, Any]],
    key: Sequence[str],
) -> str:
    """The rows of both, column by column where they have the same primary key."""
    return _text(_rows(expected, found, key))


def differing_values(expected: Mapping[str, Any], found: Mapping[str, Any]) -> str:
    """The values of both by their names."""
    return _text(_fields(expected, found, ""))


def call_shown(function: Callable[..., Any], args: Sequence[Any], kwargs: Mapping[str, Any]) -> str:
    """A call as it was written: `Account.withdraw(3)`."""
    name = getattr(function, "__qualname__", repr(function)).rpartition("<locals>.")[2]
    shown = [*map(repr, args), *(f"{key}={value!r}" for key, value in kwargs.items())]
    return f"{name}({', '.join(shown)})"


def events_shown(events: Iterable[Event]) -> str:
    """Events in one line."""
    return ", ".join(map(repr, events)) or "nothing"


def error_shown(error: BaseException) -> str:
    """An exception in one line."""
    text = str(error)
    return f"{type(error).__name__}: {text}" if text else type(error).__name__


# --- lines ---------------------------------------------------------------------------------------


def _text(lines: Lines) -> str:
    return "\n".join(f"{sign}   {line}" for sign, line in lines)


def _aligned(
    expected: Sequence[T], found: Sequence[T], changed: Callable[[T, T], Lines | None]
) -> Lines:
    """Both sequences side by side; `changed` shows two items that can be compared."""
    if not expected:
        yield "-", "(nothing)"
    kinds: list[T] = []
    one, other = ([_kind(item, kinds) for item in items] for items in (expected, found))
    matcher = SequenceMatcher(None, one, other, autojunk=False)
    for _, start, end, begin, stop in matcher.get_opcodes():
        pairs = list(zip(expected[start:end], found[begin:stop], strict=False))
        for wanted, got in pairs:
            if alike(wanted, got):
                yield " ", repr(got)
                continue
            lines = changed(wanted, got)
            yield from lines if lines is not None else _replaced(wanted, got)
        yield from (("-", repr(item)) for item in expected[start + len(pairs) : end])
        yield from (("+", repr(item)) for item in found[begin + len(pairs) : stop])
    if not found:
        yield "+", "(nothing)"


def _kind(item: T, kinds: list[T]) -> int:
    """A number that like items share, since items need not be hashable."""
    for number, known in enumerate(kinds):
        if alike(known, item):
            return number
    kinds.append(item)
    return len(kinds) - 1


def _changed_event(expected: Event, found: Event) -> Lines | None:
    if type(expected) is not type(found):
        return None
    return _changed(type(found).__name__, _values(expected), _values(found))


def _changed(title: str, expected: Mapping[str, Any], found: Mapping[str, Any]) -> Lines:
    yield " ", title
    for sign, line in _fields(expected, found, ""):
        yield sign, f"    {line}"


def _rows(
    expected: Sequence[Mapping[str, Any]],
    found: Sequence[Mapping[str, Any]],
    key: Sequence[str],
) -> Lines:
    left = list(found)
    if not expected:
        yield "-", "(no rows)"
    for row in expected:
        at = _place(row, left, key)
        if at is None:
            yield "-", _row(row)
            continue
        same = left.pop(at)
        if alike(dict(row), dict(same)):
            yield " ", _row(row)
        else:
            title = ", ".join(f"{name}={row[name]!r}" for name in key)
            one, other = ({n: v for n, v in r.items() if n not in key} for r in (row, same))
            yield from _changed(title, one, other)
    yield from (("+", _row(row)) for row in left)
    if not found:
        yield "+", "(no rows)"


def _place(
    row: Mapping[str, Any], rows: Sequence[Mapping[str, Any]], key: Sequence[str]
) -> int | None:
    """Which of the rows has the key of `row`, or is the same where tables have no key."""
    for number, other in enumerate(rows):
        names = key or row.keys() | other.keys()
        if all(n in row and n in other and alike(row[n], other[n]) for n in names):
            return number
    return None


def _row(row: Mapping[str, Any]) -> str:
    return ", ".join(f"{name}={value!r}" for name, value in row.items())


# --- values --------------------------------------------------------------------------------------


def _fields(expected: Mapping[str, Any], found: Mapping[str, Any], path: str) -> Lines:
    for name in dict.fromkeys((*expected, *found)):
        where = f"{path}{name}"
        if name not in found:
            yield "-", f"{where}={expected[name]!r}"
        elif name not in expected:
            yield "+", f"{where}={found[name]!r}"
        elif alike(expected[name], found[name]):
            yield " ", f"{where}={found[name]!r}"
        else:
            yield from _value(expected[name], found[name], where)


def _value(expected: Any, found: Any, where: str) -> Lines:
    """Two values that differ: only the parts in which they do, where both have the same parts."""
    one, other = _parts(expected), _parts(found)
    if type(expected) is type(found) and one and one.keys() == other.keys():
        for part, value in one.items():
            if not alike(value, other[part]):
                yield from _value(value, other[part], f"{where}{part}")
    else:
        yield from ((sign, f"{where}={line}") for sign, line in _replaced(expected, found))


def _replaced(expected: Any, found: Any) -> Lines:
    wanted, got = repr(expected), repr(found)
    if wanted == got:  # which would not tell why they differ
        wanted, got = f"{wanted} ({_named(expected)})", f"{got} ({_named(found)})"
    yield "-", wanted
    yield "+", got


def _named(value: Any) -> str:
    return f"a {type(value).__module__}.{type(value).__qualname__}"


def _parts(value: Any) -> dict[str, Any]:
    """What a value consists of, by how one gets at it."""
    if isinstance(value, dict):
        return {f"[{key!r}]": item for key, item in value.items()}
    if isinstance(value, (list, tuple)) and not hasattr(value, "_fields"):
        return {f"[{number}]": item for number, item in enumerate(value)}
    return {f".{name}": item for name, item in _values(value).items()}


def _values(value: Any) -> dict[str, Any]:
    """The values of a struct, a dataclass or a named tuple, by the names of its fields."""
    names: Iterable[str] = ()
    if isinstance(value, msgspec.Struct):
        names = value.__struct_fields__
    elif dataclasses.is_dataclass(value):
        names = [field.name for field in dataclasses.fields(value)]
    elif isinstance(value, tuple):
        names = getattr(value, "_fields", ())
    return {name: getattr(value, name) for name in names}
