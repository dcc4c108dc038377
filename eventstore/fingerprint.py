"""Fingerprints: a digest of everything that a fold's outcome depends on.

A snapshot is used only by code of the same fingerprint, and a read model is followed only by code
of the fingerprint that has built it. It covers the state's schema and defaults,
the schemas and upcasters of the handled events, and the bytecode of the handlers with whatever
functions, constants, modules and classes of the same package they name. Erring on one side only is
the aim: a changed fingerprint costs a replay, and an unchanged one must not hide a changed handler.
"""

from __future__ import annotations

import dis
import functools
import hashlib
import json
import re
import sys
from collections.abc import Iterable, Iterator
from datetime import date, time, timedelta
from decimal import Decimal
from enum import Enum
from fractions import Fraction
from types import CodeType, FunctionType, ModuleType
from typing import TYPE_CHECKING, Any, Final, get_args, get_type_hints
from uuid import UUID

import msgspec
from sqlalchemy.exc import SQLAlchemyError

from eventstore.event import Event, event_classes
from eventstore.state import Stateful, state_type

if TYPE_CHECKING:
    from sqlalchemy import Table

    from eventstore.handlers import Handlers

_FORMAT: Final = f"2 python {sys.version_info[0]}.{sys.version_info[1]}"
_ADDRESS: Final = re.compile(r" at 0x[0-9a-fA-F]+")
_CONSTANTS: Final = (Decimal, Fraction, Enum, date, time, timedelta, UUID, re.Pattern)
_NO_MEANING: Final = frozenset({"CACHE", "EXTENDED_ARG", "NOP", "RESUME"})
_LOCAL: Final = frozenset((*dis.haslocal, *dis.hasfree))
_SCALARS: Final = (int, float, complex, str, bytes, bool, type(None))


def fingerprint(cls: type[Stateful]) -> bytes:
    """16 bytes that change when the fold of `cls` may."""
    walk = _Walk(cls)
    parts = [_FORMAT, _schema(state_type(cls)), *walk.value(cls.__constants__)]
    for name, factory in cls.__factories__:
        parts += [name, *walk.value(factory())]
    for event_type, handler in _handled(cls):
        parts += [event_type.__event_name__, str(event_type.__event_version__)]
        parts += [_schema(event_type), *walk.members(event_type, stop=Event)]
        for step in event_type.__upcasters__.values():
            parts += walk.function(step)
        parts += walk.function(handler)
    for hint in (state_type(cls), *(event_type for event_type, _ in _handled(cls))):
        parts += walk.fields(hint)
    return _digest(parts)


def read_model_fingerprint(cls: type, handlers: Handlers, tables: Iterable[Table]) -> str:
    """Text that changes when the rows that `cls` makes of its events may.

    Unlike a snapshot, a read model is costly to make anew, and one that does not fit is refused.
    So only what is written down in code counts, not the values that objects have at run time; nor
    do side effects. Bytecode is Python's own: what stands before the colon is its version, and
    fingerprints of different versions cannot be compared.
    """
    walk = _Walk(cls, values=False)
    parts = [_described(table) for table in tables]
    for event_type, handler in sorted(handlers.declared.items(), key=_event_name):
        parts += [event_type.__event_name__, str(event_type.__event_version__)]
        parts += [_schema(event_type), *walk.members(event_type, stop=Event)]
        parts += walk.function(handler)
    return f"{sys.implementation.cache_tag}:{_digest(parts).hex()}"


def comparable(one: str, other: str) -> bool:
    """Whether two fingerprints of read models come of the same version of Python."""
    return one.partition(":")[0] == other.partition(":")[0]


def _described(table: Table) -> str:
    from sqlalchemy.schema import CreateIndex, CreateTable

    try:
        indexes = sorted(table.indexes, key=lambda index: str(index.name))
        return " ".join([str(CreateTable(table)), *(str(CreateIndex(each)) for each in indexes)])
    except SQLAlchemyError:  # a type of one database, which no other one can spell
        return _ADDRESS.sub("", repr(table))


def _event_name(item: tuple[type[Event], Any]) -> str:
    return item[0].__event_name__


def _digest(parts: Iterable[str]) -> bytes:
    digest = hashlib.blake2b(digest_size=16)
    for part in parts:
        digest.update(part.encode("utf-8", "surrogatepass"))
        digest.update(b"\0")
    return digest.digest()


def _handled(cls: type[Stateful]) -> list[tuple[type[Event], Any]]:
    """Each event class that `cls` handles, by itself or by a base class, with the handler."""
    found = dict(cls.__handlers__.declared)
    for event_type in event_classes():
        handler = cls.__handlers__.find(event_type)
        if handler is not None:
            found.setdefault(event_type, handler)
    return sorted(found.items(), key=_event_name)


def _schema(cls: type) -> str:
    try:
        return json.dumps(msgspec.json.schema(cls), sort_keys=True, default=repr)
    except (TypeError, ValueError):
        return repr(msgspec.inspect.type_info(cls))


class _Walk:
    """Walks code from function to function, each once; yields text that stands for it."""

    def __init__(self, cls: type, *, values: bool = True) -> None:
        """`values` says whether objects count by what they hold at this moment."""
        self._class = cls
        self._values = values
        self._package = cls.__module__.partition(".")[0]
        # What self.name and super().name may mean is looked up by name: no need of all members.
        self._seen: set[object] = set(cls.__mro__)
        self._open: set[int] = set()

    def function(self, function: Any) -> Iterator[str]:
        function = getattr(function, "__func__", function)
        function = getattr(function, "__wrapped__", function)
        code = getattr(function, "__code__", None)
        if code is None or function in self._seen:
            yield getattr(function, "__qualname__", type(function).__qualname__)
            return
        self._seen.add(function)
        yield from self._code(code)
        yield from self.value(function.__defaults__)
        yield from self.value(sorted((function.__kwdefaults__ or {}).items()))
        for cell in function.__closure__ or ():
            try:
                yield from self.value(cell.cell_contents)
            except ValueError:  # an empty cell: the name is not bound yet
                continue
        names = sorted(_names(code))
        for name in names:
            yield name
            yield from self._attribute(self._class, name)
            if name in function.__globals__:
                found = function.__globals__[name]
                yield from self.value(found)
                yield from self._module(found, names)

    def _module(self, found: object, names: list[str]) -> Iterator[str]:
        """What code takes from a module of the same package: `rules.RATE`."""
        if not (isinstance(found, ModuleType) and self._is_ours(found.__name__)):
            return
        for name in names:
            inner = vars(found).get(name)
            if inner is not None and (found, name) not in self._seen:
                self._seen.add((found, name))
                yield from self.value(inner)
                yield from self._module(inner, names)

    def fields(self, cls: type) -> Iterator[str]:
        """The classes of the same package that fields hold: handlers call their methods."""
        try:
            hints = get_type_hints(cls)
        except (TypeError, NameError):
            return
        for hint in hints.values():
            yield from self._hint(hint)

    def _hint(self, hint: Any) -> Iterator[str]:
        for argument in get_args(hint):
            yield from self._hint(argument)
        if isinstance(hint, type) and hint not in self._seen:
            yield from self.value(hint)

    def members(self, cls: type, stop: type) -> Iterator[str]:
        """The methods and properties of a class, up to but not of `stop`."""
        for base in cls.__mro__:
            if base is stop:
                return
            for name in sorted(vars(base)):
                if not name.startswith("__"):
                    yield name
                    yield from self._member(vars(base)[name])

    def value(self, value: Any) -> Iterator[str]:
        if isinstance(value, (list, set, dict)):
            if id(value) in self._open:  # it holds itself
                return
            self._open.add(id(value))
            yield from self._value(value)
            self._open.discard(id(value))
        else:
            yield from self._value(value)

    def _value(self, value: Any) -> Iterator[str]:
        if isinstance(value, _SCALARS):
            yield f"{type(value).__name__} {value!r}"
        elif isinstance(value, CodeType):
            yield from self._code(value)
        elif isinstance(value, (tuple, list)):
            yield f"{type(value).__name__} {len(value)}"
            for item in value:
                yield from self.value(item)
        elif isinstance(value, (set, frozenset)):  # in no order of its own
            yield f"{type(value).__name__} {sorted(' '.join(self.value(v)) for v in value)}"
        elif isinstance(value, dict):
            yield f"dict {len(value)}"
            for key, item in value.items():
                yield from self.value(key)
                yield from self.value(item)
        elif isinstance(value, FunctionType):
            if self._ours(value):
                yield from self.function(value)
        elif isinstance(value, type):
            yield value.__qualname__
            if self._ours(value) and value not in self._seen:
                self._seen.add(value)
                yield from self.members(value, stop=object)
                yield from self.fields(value)
        elif isinstance(value, ModuleType):
            yield value.__name__
        elif isinstance(value, functools.partial):
            yield from self.value((value.func, value.args, value.keywords))
        else:  # a Decimal, an enum's member, a dataclass: its repr tells its value
            yield from self.value(type(value))
            if not self._values and not isinstance(value, _CONSTANTS):
                return
            try:
                yield _ADDRESS.sub("", repr(value))
            except Exception:
                return

    def _ours(self, value: Any) -> bool:
        return self._is_ours(str(getattr(value, "__module__", "")))

    def _is_ours(self, module: str) -> bool:
        return module.partition(".")[0] == self._package

    def _attribute(self, cls: type, name: str) -> Iterator[str]:
        for base in cls.__mro__:  # all of them, since super() may be meant
            if not _is_library(base) and name in vars(base):
                yield from self._member(vars(base)[name])

    def _member(self, member: Any) -> Iterator[str]:
        if isinstance(member, property):
            member = member.fget
        if isinstance(member, (staticmethod, classmethod)):
            member = member.__func__
        yield from self.function(member) if isinstance(member, FunctionType) else self.value(member)

    def _code(self, code: CodeType) -> Iterator[str]:
        # By what instructions mean and not by their bytes, in which a docstring shifts the numbers.
        for instruction in dis.get_instructions(code):
            if instruction.opname in _NO_MEANING:
                continue
            yield instruction.opname
            if instruction.opcode in dis.hasconst:
                yield from self.value(instruction.argval)
            elif instruction.opcode in _LOCAL:  # whatever its name
                yield str(instruction.arg)
            else:
                yield repr(instruction.argval)


def _is_library(cls: type) -> bool:
    """Whether a class is this library's own: its code is the same for all."""
    return cls.__module__.partition(".")[0] == __package__


def _names(code: CodeType) -> set[str]:
    """The names that code looks up, those of its inner functions too."""
    found = set(code.co_names)
    for constant in code.co_consts:
        if isinstance(constant, CodeType):
            found |= _names(constant)
    return found
