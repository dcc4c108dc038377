"""What handlers use beside their state, which has to stay as it is."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, MutableMapping, Sequence
from types import FunctionType, ModuleType
from typing import Any

from eventstore.fingerprint import _names, _Walk
from eventstore.handlers import Handlers
from eventstore.projections.table_projection import TableProjection
from eventstore.state import Stateful


class Surroundings:
    """Globals, class attributes, defaults and closures that the handlers of a class name.

    A handler that keeps something there leads to another state the next time, and neither a
    snapshot nor another process has it.
    """

    def __init__(self, cls: type[Stateful] | type[TableProjection]) -> None:
        handlers: Handlers = cls.__handlers__
        self._class = cls
        self._functions = list(dict.fromkeys(handlers.declared.values()))
        found = [_Look(cls) for _ in self._functions]
        self._first = [list(w.function(f)) for w, f in zip(found, self._functions, strict=True)]
        self._before = self._first
        self._kept = [kept for look in found for kept in look.kept]

    def check(self) -> None:
        """Raise AssertionError if something has changed since the last time."""
        before, self._before = self._before, self._seen()
        for function, one, other in zip(self._functions, before, self._before, strict=True):
            if one != other:
                raise AssertionError(
                    f"{function.__qualname__} uses {_changed(function, one, other)}, which has "
                    f"changed: handlers of {self._class.__name__} must not keep anything but "
                    "state, since a replay, a snapshot and another process do not have it"
                )

    def restore(self) -> None:
        """Put back what has changed, so that the next run finds what this one has found."""
        if self._seen() != self._first:
            for put_back in self._kept:
                put_back()

    def _seen(self) -> list[list[str]]:
        return [list(_Look(self._class).function(function)) for function in self._functions]


class _Look(_Walk):
    """The walk of a fingerprint; it looks into objects too, and keeps how to put values back."""

    def __init__(self, cls: type) -> None:
        super().__init__(cls)
        self.kept: list[Callable[[], None]] = []

    def function(self, function: Any) -> Iterator[str]:
        code = getattr(function, "__code__", None)
        if code is not None and function not in self._seen:
            for name in _names(code) & function.__globals__.keys():
                self._keep_item(function.__globals__, name)
        yield from super().function(function)

    def value(self, value: Any) -> Iterator[str]:
        if isinstance(value, (list, dict, set)) and id(value) not in self._open:
            self.kept.append(_Contents(value))
        yield from super().value(value)

    def _value(self, value: Any) -> Iterator[str]:
        yield from super()._value(value)
        if not isinstance(value, (type, FunctionType, ModuleType)) and self._ours(type(value)):
            yield from self.value(getattr(value, "__dict__", None))

    def _attribute(self, cls: type, name: str) -> Iterator[str]:
        for base in cls.__mro__:
            if name in vars(base):
                self.kept.append(_Attribute(base, name))
        yield from super()._attribute(cls, name)

    def _keep_item(self, namespace: MutableMapping[str, Any], name: str) -> None:
        value = namespace[name]
        self.kept.append(lambda: namespace.__setitem__(name, value))


class _Contents:
    """What a list, a dict or a set holds now."""

    def __init__(self, container: Any) -> None:
        self._container = container
        self._held = copy.copy(container)

    def __call__(self) -> None:
        self._container.clear()
        if isinstance(self._container, list):
            self._container.extend(self._held)
        else:
            self._container.update(self._held)


class _Attribute:
    """What an attribute of a class is now."""

    def __init__(self, owner: type, name: str) -> None:
        self._owner = owner
        self._name = name
        self._value = vars(owner)[name]

    def __call__(self) -> None:
        if vars(self._owner).get(self._name) is not self._value:
            setattr(self._owner, self._name, self._value)


def _changed(function: Callable[..., None], one: Sequence[str], other: Sequence[str]) -> str:
    """The name that stands before the first difference."""
    pairs = zip(one, other, strict=False)
    at = next((n for n, (a, b) in enumerate(pairs) if a != b), min(len(one), len(other)))
    named = (text for text in reversed(one[:at]) if text.isidentifier())
    return f"`{next(named, function.__name__)}`"
